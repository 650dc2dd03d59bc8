"""The command line, `mforce COMMAND`: parses, dispatches, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import select
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import NamedTuple, NoReturn

from modality_forcing import signals

if __name__ == "__main__":  # python -m modality_forcing.cli; `mforce` starts in __main__.py
    signals.leave_on_signals()

from modality_forcing import __version__, distributed
from modality_forcing.commands.arguments import split_overrides
from modality_forcing.errors import UserError
from modality_forcing.paths import is_environment_error, os_error
from modality_forcing.progress import LossyStream, keep_standard_descriptors


class Command(NamedTuple):
    """A command as the command line lists it; its module in commands/ holds the rest.

    That module defines `add_options(parser)`, `main(options) -> int | None` and, optionally,
    `EXAMPLES`. It imports nothing slow before main runs, so that --help answers at once.
    """

    help: str
    resumable: bool = False  # the same command continues after an interruption
    overrides: bool = False  # takes --config.KEY=VALUE, as options.overrides


COMMANDS = {
    "demo": Command(
        "Pretrain, post-train on sparse depth, evaluate and sample; write report.html.",
        resumable=True,
    ),
    "train": Command("Train a config, or resume the run in the workdir.", True, overrides=True),
    "sample": Command("Generate images and depth from a checkpoint."),
    "evaluate": Command(
        "Score a checkpoint on held-out records or on benchmarks, or any arrays of depth.",
        resumable=True,
    ),
    "prepare": Command("Convert a data set to shards for training.", resumable=True),
    "encode": Command("Cache the frozen encoders' outputs of prepared records.", resumable=True),
    "inspect": Command("Summarize a prepared folder, plot its records, verify its bytes."),
    "app": Command("Serve a web page on which a checkpoint can be tried."),
    "export": Command("Write a checkpoint's EMA weights with a manifest, and verify them."),
    "fit": Command("Fit a scaling law to a table of runs, with error bars."),
    "sweep": Command("Run a scaling study: each run once, and a row for each.", resumable=True),
    "plan": Command(
        "Predict memory, time and cost of a run, a frozen encoder or a sweep; "
        "check that hyperparameters transfer across widths.",
        overrides=True,
    ),
    "completion": Command("Print a shell completion script for bash, zsh or fish."),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: success. 1: a plan that does not fit, or a worker process that died. 2: a mistake of the
    user, or output that could not be printed. 130: Ctrl-C. 141: the reader of the output is gone.
    143: SIGTERM, SIGHUP or SIGUSR1.
    """
    keep_standard_descriptors()
    stdout, stderr = LossyStream(sys.stdout), LossyStream(sys.stderr)
    with redirect_stdout(stdout), redirect_stderr(stderr):  # pyright: ignore[reportArgumentType]
        try:
            try:
                with signals.raise_on_signals():
                    code = _main(sys.argv[1:] if arguments is None else arguments, stdout)
            except KeyboardInterrupt as error:  # before the command began, or after its end
                print(f"mforce: {error}", file=sys.stderr)
                code = signals.exit_code(error)
            if arguments is None and code in (signals.STOPPED, signals.INTERRUPTED):
                # Threads that still compile would crash while Python takes itself down.
                with suppress(OSError):
                    stdout.flush()
                    stderr.flush()
                os._exit(code)
            return code
        finally:
            with suppress(BrokenPipeError):
                stdout.flush()


def _main(arguments: list[str], stdout: LossyStream) -> int:
    parser = build_parser()
    rest, overrides = split_overrides(arguments, parser)
    options = parser.parse_args(rest)
    command = COMMANDS[options.command]
    if overrides and not command.overrides:
        takers = " and ".join(name for name, c in COMMANDS.items() if c.overrides)
        key = next(iter(overrides))
        parser.error(f"--config.{key} is an option of {takers}, not of {options.command}")
    options.overrides, agreed = overrides, False
    try:
        with signals.settled():
            code = options.main(options) or 0
        stdout.flush()  # here, where a closed pipe can still be handled
        if stdout.error is None:
            return distributed.exit_process(code)
        reason = f"its output is lost: stdout cannot be written ({stdout.error.strerror})"
        message, code = f"{reason}; redirect it elsewhere and run the command again", 2
    except BrokenPipeError:
        if _has_reader(stdout):
            raise
        stdout.discard()
        return distributed.exit_process(141)  # the shell's code for SIGPIPE, as after `| head`
    except UserError as error:
        message, code = str(error), error.exit_code
    except FloatingPointError as error:  # training diverged
        message, code = f"{error}; lower train.learning_rate, in another --workdir", 2
    except OSError as error:  # the last net: a path that no reader or writer has looked after
        if error.filename is None and not is_environment_error(error):
            raise
        message, code = str(os_error(error, error.filename)), 2
    except (Exception, KeyboardInterrupt) as error:
        lost, request = distributed.lost_process(error), signals.behind(error)
        if lost is not None:
            message, code = f"{lost}; run the same command again to resume", 1
        elif request is not None:
            resumes = command.resumable and getattr(request, "resumes", True)
            resumes = resumes and not getattr(options, "dry_run", False)
            hint = "; run the same command again to resume" if resumes else ""
            message, code = f"{str(request) or 'interrupted'}{hint}", signals.exit_code(request)
            agreed = getattr(request, "agreed", False)
        else:
            raise
    print(f"mforce {options.command}: {message}", file=sys.stderr)
    return distributed.exit_process(code, agreed=agreed)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = _Parser(prog="mforce", description="Modality Forcing: train, sample and evaluate.")
    parser.add_argument("--version", action="version", version=f"mforce {__version__}")
    parser.set_defaults(parser=parser)  # for `mforce completion`
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        module = importlib.import_module(f"modality_forcing.commands.{name}")
        sub = commands.add_parser(
            name,
            help=command.help,
            description=command.help,
            epilog=getattr(module, "EXAMPLES", ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(main=module.main)
        module.add_options(sub)
    return parser


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def _has_reader(stream: LossyStream) -> bool:
    """Whether a pipe still has a reader."""
    pipe = select.poll()
    pipe.register(stream.fileno(), 0)
    return not pipe.poll(0)  # only errors are reported


if __name__ == "__main__":
    sys.exit(main())
