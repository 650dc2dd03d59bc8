"""Event files as TensorBoard reads them, and errors that end a run in place of a thread."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from modality_forcing.errors import UserError
from modality_forcing.train.events import EventFile


def events(folder: Path) -> list[Event]:
    """The events of a file, which is a TFRecord file."""
    (path,) = folder.iterdir()
    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack("<Q", content[at : at + 8])
        found.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 16 + length
    return found


def test_file_holds_scalars_and_images(tmp_path):
    file = EventFile(tmp_path / "events")
    file.add_scalars(3, {"loss": 0.25, "perf/step_s": 2.0})
    file.add_image(4, "eval/sheet", np.zeros((5, 7, 3), np.uint8))
    file.flush()
    version, scalars, image = events(tmp_path / "events")
    assert version.file_version == "brain.Event:2"
    values = {value.tag: value.simple_value for value in scalars.summary.value}
    assert scalars.step == 3 and values == {"loss": 0.25, "perf/step_s": 2.0}
    (value,) = image.summary.value
    assert (image.step, value.tag) == (4, "eval/sheet")
    assert (value.image.height, value.image.width) == (5, 7)
    assert scalars.wall_time > 1e9
    file.close()


def test_resumed_file_purges_later_steps_of_earlier_files(tmp_path):
    file = EventFile(tmp_path, purge_step=9)
    file.close()
    _, version, start = events(tmp_path)
    assert version.step == start.step == 9
    assert start.session_log.status == SessionLog.START


def test_two_files_of_one_second_are_two(tmp_path):
    for step in (1, 2):
        file = EventFile(tmp_path)
        file.add_scalars(step, {"loss": 1.0})
        file.close()
    assert len(list(tmp_path.iterdir())) == 2


class Full:
    """A file on a full disk."""

    def fail(self, *_: object) -> None:
        raise OSError(28, "No space left on device")

    write = flush = close = fail


def test_full_disk_is_one_line_each_time_and_close_adds_none(tmp_path):
    file = EventFile(tmp_path / "events")
    file._file._py_recordio_writer._writer = Full()
    for _ in range(20):  # more than a queue would hold
        with pytest.raises(UserError, match=r"events: cannot be written \(No space left on device"):
            file.add_scalars(1, {"loss": 1.0})
    with pytest.raises(UserError, match="No space left"):
        file.flush()
    file.close()


def test_folder_that_cannot_be_created_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/events: "):
        EventFile(tmp_path / "file" / "events")
