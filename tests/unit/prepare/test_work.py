"""Preparing: equal bytes for any workers, jobs and runs; unreadable records are limited."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from modality_forcing import progress
from modality_forcing.data.records import Record, RecordSource
from modality_forcing.datasets.folder import DATASET
from modality_forcing.errors import UserError, WorkerDied
from modality_forcing.prepare import work
from modality_forcing.prepare.job import PrepareJob, Settings
from modality_forcing.storage import manifest
from modality_forcing.storage.shards import Shards
from modality_forcing.synthetic.source import Scenes

COUNT = 11


@dataclass(frozen=True)
class Torn:
    """Scenes of which some cannot be read."""

    bad: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()  # of which a promise does not hold
    kills: int = -1  # the process that reads it

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Record:
        if index in self.bad:
            raise UserError("cannot be read", where=f"{index}.png")
        if index == self.kills:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
        record = Scenes(resolution=24)[index]
        if index in self.broken:
            record.depth[record.valid] = -1
        return record


def job_in(folder: Path, shard_size: int = 3) -> PrepareJob:
    settings = Settings(
        dataset="folder",
        split="train",
        records=COUNT,
        resolution=16,
        max_side=None,
        image_format="png",
        quality=95,
        shard_size=shard_size,
    )
    return PrepareJob(folder, DATASET, settings)


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def prepare(folder: Path, source: RecordSource, **options) -> None:
    work.prepare(job_in(folder), source, **options)


def test_records_are_resized_and_stored(tmp_path: Path, capsys):
    prepare(tmp_path, Torn())
    source = Shards(tmp_path)
    assert len(source) == COUNT and source[7].id == Torn()[7].id
    assert source[7].image.shape == (16, 16, 3)
    found = manifest.read(tmp_path, "train")
    assert found and [file.records for file in found.files] == [3, 3, 3, 2]
    manifest.verify(found)
    assert found.stats["records"] == COUNT and found.stats["sizes"] == {"16 x 16": COUNT}
    last = capsys.readouterr().err.splitlines()[-1]
    assert "folder train records  11/11" in last and "errors" not in last


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_do_not_depend_on_workers(tmp_path: Path, capsys, workers: int):
    torn = Torn(bad=(4,))
    prepare(tmp_path / "here", torn, max_errors=0.1)
    prepare(tmp_path / "there", torn, max_errors=0.1, workers=workers)
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "there")
    last = capsys.readouterr().err.splitlines()[-1]
    assert "11/11" in last and last.endswith("errors 1")


def test_bad_records_move_no_other(tmp_path: Path):
    prepare(tmp_path / "whole", Torn())
    prepare(tmp_path / "torn", Torn(bad=(4,), broken=(0,)), max_errors=0.2)
    whole, torn = bytes_of(tmp_path / "whole"), bytes_of(tmp_path / "torn")
    shard = "folder-train.array_record-0000{}-of-00004"
    assert [whole[shard.format(i)] == torn[shard.format(i)] for i in range(4)] == [
        False,
        False,
        True,
        True,
    ]
    ids = [Shards(tmp_path / "torn")[i].id for i in range(COUNT - 2)]
    assert ids == [Torn()[i].id for i in range(COUNT) if i not in (0, 4)]
    found = manifest.read(tmp_path / "torn", "train")
    assert found and found.failed == 2 and [file.failed for file in found.files] == [1, 1, 0, 0]
    lines = (tmp_path / "torn/failed-train.txt").read_text().splitlines()
    assert lines[0].startswith("0\trecord ") and "not finite and positive" in lines[0]
    assert lines[1] == "4\t4.png: cannot be read"


def test_shard_without_records_is_complete(tmp_path: Path):
    prepare(tmp_path, Torn(bad=(3, 4, 5)), max_errors=0.5)
    assert [Shards(tmp_path)[i].id for i in (2, 3)] == [Torn()[i].id for i in (2, 6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_records_stop(tmp_path: Path, workers: int):
    torn = Torn(bad=(4, 7, 8))
    with pytest.raises(UserError, match=r"more than --max-errors=0\.2 allows") as caught:
        prepare(tmp_path, torn, max_errors=0.2, workers=workers)
    assert "3 of 11 records could not be read" in str(caught.value)
    assert "(record 4: 4.png: cannot be read); all are in " in str(caught.value)
    assert (tmp_path / "failed-train.txt").read_text().count("\n") == 3
    assert not (tmp_path / "manifest-train.json").exists() and not list(tmp_path.glob(".*"))
    prepare(tmp_path, torn, max_errors=0.3)  # what was made before is kept, and counts
    prepare(tmp_path / "other", torn, max_errors=0.3)
    assert (
        bytes_of(tmp_path / "other").items()
        <= {k: v for k, v in bytes_of(tmp_path).items() if "/o" not in k}.items()
    )
    with pytest.raises(UserError, match="3 of 11 records could not be read"):
        prepare(tmp_path, torn, max_errors=0.2)


def test_reading_stops_after_too_many_errors(tmp_path: Path):
    asked: list[int] = []

    class Asked(Torn):
        def __getitem__(self, index: int) -> Record:
            asked.append(index)
            return super().__getitem__(index)

    with pytest.raises(UserError, match="2 of 11 records could not be read"):
        work.prepare(job_in(tmp_path, shard_size=11), Asked(bad=(1, 3)), max_errors=0.1)
    assert len(asked) <= 5


def test_shards_are_compared_with_their_manifest(tmp_path: Path):
    prepare(tmp_path, Torn())
    first, last = (tmp_path / f"folder-train.array_record-0000{index}-of-00004" for index in (0, 3))
    kept = first.read_bytes()
    for content in (last.read_bytes(), kept[:-1]):
        first.write_bytes(content)
        source = Shards(tmp_path)
        assert source[4].id == Torn()[4].id
        with pytest.raises(
            UserError,
            match=r"00000-of-00004: holds [02] records, not 3: truncated, or another file",
        ):
            source[0]
    first.write_bytes(kept)
    for path in tmp_path.glob("folder-train.*"):
        path.rename(tmp_path / path.name.replace("folder", "other"))
    with pytest.raises(
        UserError, match=r"manifest-train\.json: does not list the shards beside it; delete it"
    ):
        Shards(tmp_path)


def test_finished_shards_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    prepare(tmp_path, Torn())
    before = bytes_of(tmp_path)
    monkeypatch.setattr(work, "write_shard", None)
    capsys.readouterr()
    prepare(tmp_path, Torn())
    assert capsys.readouterr().err == "folder train records  11/11\n"
    assert bytes_of(tmp_path) == before
    monkeypatch.undo()
    (tmp_path / "folder-train.array_record-00002-of-00004").unlink()
    (tmp_path / "folder-train.array_record-00001-of-00004").write_bytes(b"half")
    prepare(tmp_path, Torn())
    assert bytes_of(tmp_path) == before


def test_jobs_complete_the_split_in_any_order(tmp_path: Path, capsys):
    prepare(tmp_path / "whole", Torn(bad=(4,)), max_errors=0.3)
    prepare(tmp_path / "parts", Torn(bad=(4,)), max_errors=0.3, shard=(1, 2))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "this job is done; 2 of 4 shards exist" and "5/5" in lines[-2]
    assert not (tmp_path / "parts/manifest-train.json").exists()
    with pytest.raises(UserError, match=r"lacks 2 of 4 shards of train \(0, 2\)"):
        Shards(tmp_path / "parts")
    prepare(tmp_path / "parts", Torn(bad=(4,)), shard=(0, 2))  # none of its own is bad
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_dead_worker_is_reported(tmp_path: Path):
    with pytest.raises(WorkerDied, match=r"a worker process .*; give fewer --workers; the same"):
        prepare(tmp_path, Torn(kills=10), workers=1)
    prepare(tmp_path, Torn(), workers=0)
    assert len(Shards(tmp_path)) == COUNT


def test_progress_is_reported_with_rate_and_time_left(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(work, "_REPORT_EVERY", 0)
    # However fast the machine: a rate is not shown in the first hundredth of a second.
    clock = SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(progress, "time", clock)
    prepare(tmp_path, Torn())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == COUNT + 1
    assert all("/s  ETA 0:" in line for line in lines[1:COUNT]), lines


def test_other_errors_are_not_reported_as_damaged_files(tmp_path: Path):
    class Wrong:
        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, index: int) -> Record:
            return np.zeros(3)[index + 5]  # a mistake of the reader

    with pytest.raises(IndexError):
        prepare(tmp_path, Wrong())
    assert not list(tmp_path.glob("*.array_record*")) and not list(tmp_path.glob(".*"))
