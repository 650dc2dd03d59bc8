"""Shared by the launchers: command line, one-line errors, dry runs, retries."""

from __future__ import annotations

import argparse
import posixpath
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = "modality_forcing.cli"
MISTAKE = 2  # exit code of a user's mistake: a retry would repeat it
INTERRUPTED = 130  # Ctrl-C
STOPPED = 143  # SIGTERM, SIGHUP or SIGUSR1, after saving: restarted like a crash
BUCKETS = ("gs://", "s3://")  # which mforce reads and writes, given the extras gcs and s3
MOUNTS = "/gcs"  # buckets are mounted at MOUNTS/NAME
# Writes of one host are visible to the others at once, and checkpoint folders can be renamed in
# flat and hierarchical buckets. MOUNT_OPTIONS are for GKE's driver, MOUNT_FLAGS for gcsfuse.
MOUNT_OPTIONS = (
    "implicit-dirs",
    "metadata-cache:ttl-secs:0",
    "metadata-cache:negative-ttl-secs:0",
    "file-system:rename-dir-limit:200000",
)
MOUNT_FLAGS = (
    "--implicit-dirs",
    "--metadata-cache-ttl-secs=0",
    "--metadata-cache-negative-ttl-secs=0",
    "--rename-dir-limit=200000",
)


class Mistake(Exception):
    """A mistake of the user: printed in one line, exit code 2."""


class Parser(argparse.ArgumentParser):
    """Reports errors in one line; everything after `--` is the command to run."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            usage="%(prog)s [options] -- train --config=FILE --workdir=WHERE ...",
        )
        self.add_argument(
            "--dry-run", action="store_true", help="print exactly what would run, and run nothing"
        )

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses the options; `argv` of the result is the command after `--`."""
        at = arguments.index("--") if "--" in arguments else len(arguments)
        options = self.parse_args(arguments[:at])
        options.argv = list(arguments[at + 1 :])
        if not options.argv:
            self.error("nothing to run: give the arguments of mforce after --")
        if any("\n" in argument for argument in options.argv):
            self.error("an argument has a line break in it")
        return options


class Shell:
    """Runs commands, or prints them in a dry run, ready to paste."""

    def __init__(self, dry: bool):
        self.dry = dry

    def run(self, command: Sequence[str], stdin: str | None = None) -> int:
        """Runs a command and returns its exit code; 0 without running it in a dry run."""
        if self.dry:
            print(to_shell(command, stdin))
            return 0
        print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
        return exit_code(_started(command, input=stdin, text=True).returncode)

    def answer(self, command: Sequence[str]) -> tuple[int, str]:
        """Runs a command and returns its exit code and its stdout; stderr is shown."""
        done = _started(command, stdout=subprocess.PIPE, text=True)
        return exit_code(done.returncode), done.stdout

    def log(self, text: str) -> None:
        """Prints a line to stderr; in a dry run a comment, so that the output can be pasted."""
        if self.dry:
            print(f"# {text}")
        else:
            print(f"launch: {text}", file=sys.stderr, flush=True)


def _started(command: Sequence[str], **how) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, check=False, **how)
    except FileNotFoundError:
        raise Mistake(f"{command[0]} is not installed here, or not on PATH") from None


def to_shell(command: Sequence[str], stdin: str | None = None) -> str:
    """A command as a line of shell, its standard input as a here-document."""
    if stdin is None:
        return shlex.join(command)
    end = "EOF"
    while re.search(rf"^{end}$", stdin, re.MULTILINE):
        end += "_"
    return f"{shlex.join(command)} <<'{end}'\n{stdin.rstrip()}\n{end}"


def exit_code(returncode: int) -> int:
    """Returns the shell's exit code: 128 + n for a process ended by signal n."""
    return 128 - returncode if returncode < 0 else returncode


def is_retryable(code: int) -> bool:
    """Whether a run may be restarted: after a crash, not after a user's mistake or Ctrl-C."""
    return code not in (0, MISTAKE, INTERRUPTED)


def run_exit_code(codes: Sequence[int]) -> int:
    """Returns the exit code of a run from those of its processes, in the order they ended.

    2 if any process ended with 2, as the others then fail for lack of it; else the first failure.
    """
    return MISTAKE if MISTAKE in codes else next((code for code in codes if code), 0)


def run_name(text: str) -> str:
    """Checks a run's name: it must be valid in xpk, Kubernetes, Cloud TPU and SLURM."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name of at most 40 of a-z, 0-9 and -, starting with a letter"
        )
    return text


def bucket(text: str) -> str:
    """Checks the name of a Cloud Storage bucket, without gs://."""
    if not re.fullmatch(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the name of a bucket, which has no gs:// and no folder"
        )
    return text


def mount(name: str) -> str:
    """Returns the path at which a bucket is mounted."""
    return f"{MOUNTS}/{name}"


def at_least(least: int) -> Callable[[str], int]:
    """Returns the argparse type of an integer with a minimum."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return parse


def variable(text: str) -> tuple[str, str]:
    """Parses an option NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\n" in value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Adds --env, environment variables of the launched processes."""
    parser.add_argument(
        "--env",
        action="append",
        type=variable,
        default=[],
        metavar="NAME=VALUE",
        help="environment variable of the launched processes; may be repeated",
    )


def program(argv: Sequence[str], python: str = "python", module: str = PROGRAM) -> list[str]:
    """Returns the command of one process: `python -m module` and the user's arguments."""
    return [python, "-m", module, *argv]


def workdir(argv: Sequence[str]) -> str | None:
    """Returns the --workdir of a command, if it has one."""
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name == "--workdir":
            return value if equals else next(iter(argv[i + 1 : i + 2]), None)
    return None


TRAINS = ("train", "sweep")  # commands that resume from their --workdir


def check_workdir(argv: Sequence[str], below: str | None, why: str = "") -> None:
    """Checks that every process sees the workdir in every attempt: an address, or a shared path.

    Args:
      below: the mount it must be in; None for anywhere, empty if there is no mount.
      why: what would go wrong elsewhere, for the message.

    Raises Mistake if the command needs a workdir and it is missing or elsewhere.
    """
    if argv[0] not in TRAINS:
        return
    where = workdir(argv)
    if not where:
        raise Mistake(f"{argv[0]} has no --workdir; give it after --")
    if where.startswith(BUCKETS):
        return
    if re.match(r"[A-Za-z][-+.A-Za-z0-9]+:/", where):
        known = " and ".join(BUCKETS)
        raise Mistake(f"--workdir={where} is an address of an unknown kind; known are {known}")
    if below is None:
        return
    if not below or not PurePosixPath(posixpath.normpath(where)).is_relative_to(below):
        name = PurePosixPath(below).name if below not in ("", MOUNTS) else "B"
        hint = f"mount a bucket: --bucket={name} --workdir={mount(name)}/..."
        other = "or add --shared-workdir where it is a mount that all of them share"
        raise Mistake(f"--workdir={where} is on a disk of one machine, and {why}; {hint}, {other}")


def main(run: Callable[[list[str]], int]) -> NoReturn:
    """Runs a launcher. Exit code 2 and one line for a user's mistake, 130 for Ctrl-C."""
    try:
        code = run(sys.argv[1:])
    except Mistake as mistake:
        code = MISTAKE
        print(f"{Path(sys.argv[0]).name}: {mistake}", file=sys.stderr)
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)
