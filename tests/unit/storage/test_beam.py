"""Shards as a Beam pipeline: what workers run, errors and interruptions, options."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from modality_forcing.errors import UserError
from modality_forcing.storage import beam

INSTALLED = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(not INSTALLED, reason="needs the extra beam")


@dataclass(frozen=True)
class Touch:
    """Creates a file for each shard, and one each time it is opened."""

    folder: Path
    fails: int = -1
    error: type[BaseException] = UserError

    def open(self) -> beam.WriteShard:
        count = len(list(self.folder.glob("opened-*")))
        (self.folder / f"opened-{count}").touch()

        def write(index: int) -> None:
            if index == self.fails:
                raise self.error(f"shard {index} cannot be written")
            (self.folder / f"shard-{index}").touch()

        return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@needs_beam
def test_every_shard_is_written_by_a_task_opened_once(tmp_path: Path):
    for attempt in range(2):  # the second pipeline opens it again
        beam.run(Touch(tmp_path), [0, 2, 5], "")
        opened = [f"opened-{i}" for i in range(attempt + 1)]
        assert names(tmp_path) == [*opened, "shard-0", "shard-2", "shard-5"]


def test_no_shards_need_no_pipeline(tmp_path: Path):
    beam.run(Touch(tmp_path), [], "--runner=NoSuchRunner")
    assert names(tmp_path) == []


@needs_beam
def test_mistakes_in_workers_are_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"^shard 2 cannot be written$") as caught:
        beam.run(Touch(tmp_path, fails=2), [2], "")
    assert caught.value.exit_code == 2


@needs_beam
def test_other_errors_of_workers_may_be_retried(tmp_path: Path):
    with pytest.raises(beam.PipelineFailed, match=r"failed \(ZeroDivisionError: shard 2") as caught:
        beam.run(Touch(tmp_path, 2, ZeroDivisionError), [2], "")
    assert caught.value.exit_code == 1


@needs_beam
def test_interruptions_stay_interruptions(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        beam.run(Touch(tmp_path, 2, KeyboardInterrupt), [2], "")


@needs_beam
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--runner=NoSuchRunner", "Unexpected pipeline runner: NoSuchRunner"),
        ("--direct_num_workers=many", "argument --direct_num_workers: invalid int value"),
    ],
)
def test_options_that_beam_refuses_are_mistakes(
    options: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(UserError, match=f"is refused by Beam .{reason}") as caught:
        beam.run(Touch(tmp_path), [0], options)
    assert caught.value.exit_code == 2 and names(tmp_path) == []
    assert "usage:" not in capfd.readouterr().err


def test_the_exit_code_of_a_worker_is_kept():
    # As a remote runner reports it: the text of a traceback, inside its own.
    text = "Job 7 failed: Traceback ...\nRuntimeError: [[mforce 1: a: b; c]] [while running"
    error = beam._error_for(RuntimeError(text))
    assert isinstance(error, beam.PipelineFailed) and (str(error), error.exit_code) == (
        "a: b; c",
        1,
    )


def test_options_are_split_as_by_a_shell():
    words = ["--runner=FlinkRunner", "--flink_master=host:8081", "--job_name=a b"]
    assert (
        beam.split_options("--runner=FlinkRunner --flink_master=host:8081 '--job_name=a b'")
        == words
    )
    assert beam.split_options("") == []
    for text in ("DataflowRunner", "--name='a"):
        with pytest.raises(UserError, match="--beam-options"):
            beam.split_options(text)
