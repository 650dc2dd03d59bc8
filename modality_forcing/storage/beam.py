"""Runs the shards of a job as an Apache Beam pipeline: on this machine or on any of Beam's runners.

The pipeline is the list of the missing shards, spread over the workers, each of which opens the job
once and writes one shard at a time. What a shard job needs is already true of it: a shard depends
on nothing but its index, appears as a whole, and is left alone once it is finished. So a runner may
retry a shard, or write it twice at once, and the bytes stay the same.

The process that starts the pipeline holds the lock of the job and writes what comes before and
after the shards. Workers take no lock. All of them must reach the folders by the same paths.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import io
import re
import secrets
import shlex
import threading
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from modality_forcing.errors import UserError

WriteShard = Callable[[int], None]

# Runners pass on the text of a worker's error, inside a text of their own.
_MARKED = re.compile(r"\[\[mforce (\d+): (.*?)\]\]", re.DOTALL)


@runtime_checkable
class ShardTask(Protocol):
    """The shards of a job as workers see it; must be picklable and small."""

    def open(self) -> WriteShard:
        """Returns the function that writes a shard, unless it is finished; slow, so called once.

        It is called in the worker, whose threads share the result.
        """
        ...


class PipelineFailed(UserError):
    """A pipeline ended with an error that is probably not the user's."""

    exit_code = 1  # launchers retry it


class ShardFailed(RuntimeError):
    """The error of a worker, with the one line for the user in marks."""


def split_options(text: str) -> list[str]:
    """Splits --beam-options as a shell does; raises UserError for what is not a list of options."""
    hint = "write e.g. --beam-options='--runner=DirectRunner --direct_num_workers=4'"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--beam-options={text} cannot be split ({error})", hint=hint) from error
    if words and not words[0].startswith("--"):
        raise UserError(f"--beam-options={text} does not start with an option", hint=hint)
    return words


def run(task: ShardTask, shards: Sequence[int], options: str) -> None:
    """Writes shards by a pipeline, and waits for its end.

    shards: their indices. options: of Beam, as on the command line. Raises UserError for the first
    mistake that a worker reports, and PipelineFailed for other ends of the pipeline. An
    interruption of this process cancels the pipeline.
    """
    if not shards:
        return
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    usage = io.StringIO()
    try:
        with redirect_stderr(usage):
            parsed = PipelineOptions(split_options(options))
            parsed.get_all_options()  # parses them
            pipeline = beam.Pipeline(options=parsed)
    except (ValueError, ImportError, SystemExit) as error:
        # argparse exits after a usage of a hundred lines and one with the error
        text = usage.getvalue().rpartition("error: ")[2] or str(error)
        hint = "check the runner, its options and the packages that it needs"
        raise UserError(
            f"--beam-options={options} is refused by Beam ({text})", hint=hint
        ) from error
    result = None
    try:
        _ = (
            pipeline
            | "Missing shards" >> beam.Create(list(shards))
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(_Write(task))
        )
        result = pipeline.run()
        state = result.wait_until_finish()
    except BaseException as error:
        if result is not None:
            with suppress(Exception):  # a pipeline that has ended
                result.cancel()
        raise _error_for(error) from error
    if state not in ("DONE", None):  # runners on this machine may return nothing
        raise PipelineFailed(f"the pipeline ended as {state}", hint="see the runner's logs")


@dataclass(frozen=True)
class _Write:
    """Writes one shard in a worker. token: of the pipeline; its workers open the task once."""

    task: ShardTask
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __call__(self, shard: int) -> int:
        try:
            _opened(self.token, self.task)(shard)
        except UserError as error:
            raise ShardFailed(f"[[mforce {error.exit_code}: {error}]]") from error
        return shard


_OPENED: dict[str, WriteShard] = {}
_OPENING = threading.Lock()


def _opened(token: str, task: ShardTask) -> WriteShard:
    with _OPENING:
        if token not in _OPENED:
            _OPENED.clear()  # of the pipeline before, in a worker that is used again
            _OPENED[token] = task.open()
        return _OPENED[token]


def _error_for(error: BaseException) -> BaseException:
    """Returns what to raise for an error of a pipeline."""
    seen: BaseException | None = error
    while seen is not None:
        if not isinstance(seen, Exception):  # an interruption, which Beam wraps
            return seen
        seen = seen.__cause__ or seen.__context__
    if found := _MARKED.search(str(error)):
        kind = UserError if int(found[1]) == UserError.exit_code else PipelineFailed
        return kind(found[2])
    text = " ".join(str(error).split())
    reason = f"the pipeline failed ({type(error).__name__}: {text[:500]})"
    return PipelineFailed(reason, hint="see the runner's logs; the same command resumes")
