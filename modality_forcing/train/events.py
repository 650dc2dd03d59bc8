"""TensorBoard event files, written by the process that calls, so that no error is lost.

tensorboardX's own writer passes events to a thread. On a full disk that thread dies, and the run
waits for it for ever. Only its formats are used here.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from modality_forcing import paths

_numbers = itertools.count()


class EventFile:
    """A new event file in a folder of a disk, which is created.

    purge_step: the first step that earlier files of the folder must not count for, as those of a
    run that is killed and resumed. All methods raise UserError if the file cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        paths.make_folder(folder)
        self._folder = folder
        self._failed = False
        try:
            # As TensorFlow names them: two files of one second are not one.
            suffix = f".{os.getpid()}.{next(_numbers)}"
            self._file = EventsWriter(str(folder / "events"), suffix)
        except OSError as error:
            raise paths.os_error(error, folder, "written") from error
        if purge_step is not None:
            self._write(Event(step=purge_step, file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=purge_step, session_log=start))

    def add_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of one step."""
        values = [Summary.Value(tag=name, simple_value=float(x)) for name, x in scalars.items()]
        self._add(step, Summary(value=values))

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image u8 [h w 3]."""
        self._add(step, summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Brings what was added to the disk."""
        self._act(self._file.flush)

    def close(self) -> None:
        """Brings what was added to the disk and ends the file; after an error, only the latter."""
        if self._failed:
            with suppress(OSError):  # which was raised already
                self._file.close()
        else:
            self._act(self._file.close)

    def _add(self, step: int, values: Summary) -> None:
        self._write(Event(step=step, summary=values))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._act(lambda: self._file.write_event(event))

    def _act(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self._failed = True
            raise paths.os_error(error, self._folder, "written") from error
