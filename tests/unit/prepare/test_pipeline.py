"""Preparing by a pipeline: the bytes of the local run, also after failures and interruptions."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from modality_forcing.data.records import Record, RecordSource
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError
from modality_forcing.prepare import pipeline, work
from modality_forcing.prepare.job import PrepareJob, Settings
from modality_forcing.storage import beam, manifest
from modality_forcing.storage.shard_job import hold_job
from modality_forcing.synthetic.source import Scenes
from tests.runs import contents

COUNT = 11
INSTALLED = importlib.util.find_spec("apache_beam") is not None


@dataclass(frozen=True)
class Some:
    """Scenes of which some cannot be read."""

    count: int
    bad: tuple[int, ...]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if index in self.bad:
            raise UserError("cannot be read", where=f"{index}.png")
        return Scenes(resolution=24)[index]


@dataclass(frozen=True, kw_only=True)
class Generated(Dataset):
    """A data set without files."""

    bad: tuple[int, ...] = ()
    count: int = COUNT

    def open(self, root: Path, split: str) -> RecordSource:
        return Some(self.count, self.bad)


DATASET = Generated(name="folder", title="Scenes", splits=("train",), license="")


def job_in(folder: Path, dataset: Generated = DATASET) -> PrepareJob:
    settings = Settings(
        dataset="folder",
        split="train",
        records=COUNT,
        resolution=16,
        max_side=None,
        image_format="png",
        quality=95,
        shard_size=3,
    )
    return PrepareJob(folder, dataset, settings)


def serial(task: beam.ShardTask, shards: Sequence[int], options: str) -> None:
    """A pipeline of one worker, which writes every shard twice, the last one first."""
    for _ in range(2):
        write = task.open()
        for shard in reversed(shards):
            write(shard)


def to_write(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr that count the missing shards; Beam has others."""
    return [line for line in capsys.readouterr().err.splitlines() if line.endswith("to write")]


@pytest.fixture(params=["serial", "DirectRunner"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "serial":
        monkeypatch.setattr(beam, "run", serial)
    elif not INSTALLED:
        pytest.skip("needs the extra beam")


def test_bytes_are_those_of_a_local_run(runner: None, tmp_path: Path, capsys):
    dataset = replace(DATASET, bad=(4,))
    work.prepare(job_in(tmp_path / "local"), dataset.open(Path(), "train"), max_errors=0.1)
    made = job_in(tmp_path / "beam", dataset)
    capsys.readouterr()
    found = pipeline.prepare(made, Path(), "", max_errors=0.1)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert to_write(capsys) == ["4 of 4 shards of train to write"]
    assert found.failed == 1
    manifest.verify(found)


def test_only_missing_shards_are_written(runner: None, tmp_path: Path, capsys):
    pipeline.prepare(job_in(tmp_path), Path(), "")
    before = contents(tmp_path)
    shard = job_in(tmp_path).shards.path(2)
    shard.unlink()
    left = shard.with_name(f".{shard.name}.killed")
    left.touch()
    capsys.readouterr()
    pipeline.prepare(job_in(tmp_path), Path(), "")
    assert to_write(capsys) == ["1 of 4 shards of train to write"]
    assert contents(tmp_path) == before and not left.exists()


def test_a_worker_leaves_what_another_is_writing(tmp_path: Path):
    job = job_in(tmp_path)
    other = job.shards.path(1).with_name(f".{job.shards.path(1).name}.other")
    other.touch()
    pipeline.PrepareTask(job, Path()).open()(1)
    assert job.finished(1) and other.exists()


def test_too_many_errors_keep_the_shards_and_list_the_records(runner: None, tmp_path: Path, capsys):
    job = job_in(tmp_path, replace(DATASET, bad=(0, 5)))
    with pytest.raises(UserError, match=r"2 of 11 records could not be read.*record 0: 0.png"):
        pipeline.prepare(job, Path(), "", max_errors=0.1)
    lines = (tmp_path / "failed-train.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["0", "5"]
    assert manifest.read(tmp_path, "train") is None and all(map(job.finished, range(4)))
    capsys.readouterr()
    pipeline.prepare(job, Path(), "", max_errors=0.2)
    assert to_write(capsys) == ["0 of 4 shards of train to write"] and manifest.read(
        tmp_path, "train"
    )


def test_workers_that_see_other_files_are_refused(runner: None, tmp_path: Path):
    job = job_in(tmp_path, replace(DATASET, count=COUNT - 1))
    with pytest.raises(UserError, match="holds 10 records for a worker, not 11; all workers must"):
        pipeline.prepare(job, Path("data"), "")


def test_shards_written_elsewhere_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def elsewhere(task: pipeline.PrepareTask, shards: Sequence[int], options: str) -> None:
        serial(replace(task, job=job_in(tmp_path / "worker")), shards[1:], options)

    monkeypatch.setattr(beam, "run", elsewhere)
    with pytest.raises(UserError, match=r"lacks 4 of 4 shards after the pipeline.*the same path"):
        pipeline.prepare(job_in(tmp_path / "out"), Path(), "")


def test_who_starts_the_pipeline_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(task: beam.ShardTask, shards: Sequence[int], options: str) -> None:
        with (
            pytest.raises(UserError, match="is in use by"),
            hold_job(tmp_path, "prepare-train", (0, 2)),
        ):
            pass
        serial(task, shards, options)  # workers take none

    monkeypatch.setattr(beam, "run", refused)
    assert pipeline.prepare(job_in(tmp_path), Path(), "").stats["records"] == COUNT
