"""Console output of all commands: stderr lines, durations, text tables and a progress meter."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import ClassVar, Protocol, runtime_checkable


@runtime_checkable
class Stream(Protocol):
    """What is needed of sys.stdout and sys.stderr."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool: ...

    def fileno(self) -> int: ...


class LossyStream:
    """A standard stream whose loss stops no work: the first error is kept, later text discarded.

    Characters that the stream's encoding lacks are escaped. A pipe without a reader raises
    BrokenPipeError, as usual.

    Args:
      stream: sys.stdout or sys.stderr; None if it was closed at the start.

    Attributes:
      error: why text was lost, None if none was.
      outlives_reader: whether text is discarded once a pipe has no reader, for all streams.
    """

    outlives_reader: ClassVar[bool] = False

    def __init__(self, stream: Stream | None):
        self._stream = stream
        self.error: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes a text and returns its length."""
        if self._stream is None:
            self._lose(OSError(errno.EBADF, "it is closed"))
        else:
            try:
                self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        """Flushes; the stream stays open. Logging libraries close at exit what stderr was."""
        self.flush()

    def isatty(self) -> bool:
        """Returns whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Returns the descriptor."""
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def discard(self) -> None:
        """Sends what is buffered, and all that follows, to nowhere."""
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())

    def _lose(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError) and not LossyStream.outlives_reader:
            raise error
        self.error = self.error or error
        self.discard()  # or Python would report the buffer at exit


def keep_standard_descriptors() -> None:
    """Opens /dev/null in place of closed standard streams, before a file gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def print_stderr(line: str) -> None:
    """Prints a line on stderr at once, apart from the results on stdout."""
    print(line, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Returns "m:ss", or "h:mm:ss" from one hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Returns left-aligned columns, two spaces apart.

    Rows may differ in length. The last cell of a row does not widen its column.
    """
    cells = [[str(cell) for cell in row] for row in ([header] if header else []) + [*rows]]
    columns = zip_longest(*(row[:-1] for row in cells), fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join([*map(str.ljust, row[:-1], widths), *row[-1:]]).rstrip() for row in cells
    )


class ProgressMeter:
    """Reports the position, rate and remaining time of a long loop.

    By default it rewrites one line on a terminal and prints lines elsewhere. The rate is that of
    the last reports, so that compilation before the first one does not count.

    Args:
      title: what the line begins with.
      total: the number of items.
      done: the number of items that are done already.
      every: the least number of seconds between two reports.
      write: receives every line instead of stderr.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        every: float = 0.0,
        write: Callable[[str], None] | None = None,
    ):
        self._title, self._total, self._done, self._every = title, total, done, every
        self._write = write
        self._live = write is None and sys.stderr.isatty()
        self._reports: list[tuple[float, int]] = []  # (time, items done)

    def update(self, done: int, **values: object) -> None:
        """Reports the number of items done, unless the last report is less than `every` s ago."""
        if not self._reports or time.monotonic() - self._reports[-1][0] >= self._every:
            self.report(done, **values)

    def report(self, done: int, **values: object) -> None:
        """Reports the number of items done, with further values behind it."""
        now = time.monotonic()
        self._reports = [*self._reports[-8:], (now, done)]
        (start, before), parts = self._reports[0], [f"{self._title}  {done}/{self._total}"]
        # The first report has nothing to measure a rate from, a moment after it hardly anything.
        if done > before and now - start >= 0.01:
            rate = (done - before) / (now - start)
            shown = f"{rate:.3g}" if rate < 1000 else f"{rate:,.0f}"
            parts += [f"{shown}/s", f"ETA {format_duration((self._total - done) / rate)}"]
        parts += [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()]
        line = "  ".join(parts)
        if self._live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            (self._write or print_stderr)(line)

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._live and self._reports:
            print_stderr("")
