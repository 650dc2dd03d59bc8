"""What the launchers share: the command line, refusals in one line, running or only printing, and what is tried again."""

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
MISTAKE = 2  # the exit code of a mistake that the user can hint: trying again would only repeat it
INTERRUPTED = 130  # Ctrl-C
MOUNTS = "/gcs"  # where buckets are mounted, each under its name
# What one host writes the others see at once, and a folder of a checkpoint can be renamed in a bucket of either kind.
# The first are for the driver of GKE, the second say the same to gcsfuse.
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
    """A mistake of the user, told in one line; the launcher ends with exit code 2."""


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, and keeps what stands after `--` as the command to run."""

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
        """Parses; `given` of what it returns is the command after `--`."""
        at = arguments.index("--") if "--" in arguments else len(arguments)
        options = self.parse_args(arguments[:at])
        options.given = list(arguments[at + 1 :])
        if not options.given:
            self.error("nothing to run: give the arguments of mforce after --")
        if any("\n" in argument for argument in options.given):
            self.error("an argument has a line break in it")
        return options


class Shell:
    """Runs commands, or prints each as it could be pasted."""

    def __init__(self, dry: bool):
        self.dry = dry

    def run(self, command: Sequence[str], stdin: str | None = None) -> int:
        """Runs a command and returns its exit code; 0 without running it in a dry run."""
        if self.dry:
            print(pasteable(command, stdin))
            return 0
        print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
        return exit_code(_started(command, input=stdin, text=True).returncode)

    def answer(self, command: Sequence[str]) -> tuple[int, str]:
        """Runs a command and returns its exit code and what it wrote to stdout; what it tells on stderr is shown."""
        done = _started(command, stdout=subprocess.PIPE, text=True)
        return exit_code(done.returncode), done.stdout

    def say(self, text: str) -> None:
        """Tells what goes on; a comment in a dry run, so that all of it can be pasted."""
        if self.dry:
            print(f"# {text}")
        else:
            print(f"launch: {text}", file=sys.stderr, flush=True)


def _started(command: Sequence[str], **how) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, check=False, **how)
    except FileNotFoundError:
        raise Mistake(f"{command[0]} is not installed here, or not on PATH") from None


def pasteable(command: Sequence[str], stdin: str | None = None) -> str:
    """A command as a line of shell, its standard input as a here-document."""
    if stdin is None:
        return shlex.join(command)
    end = "EOF"
    while re.search(rf"^{end}$", stdin, re.MULTILINE):
        end += "_"
    return f"{shlex.join(command)} <<'{end}'\n{stdin.rstrip()}\n{end}"


def exit_code(returncode: int) -> int:
    """The exit code that a shell would tell: a process that signal n ended has 128 + n."""
    return 128 - returncode if returncode < 0 else returncode


def tries_again(code: int) -> bool:
    """Whether a run that ended so may be started again: after a crash, not after a mistake of the user or Ctrl-C."""
    return code not in (0, MISTAKE, INTERRUPTED)


def of_all(codes: Sequence[int]) -> int:
    """The exit code of a run by those of its processes, in the order in which they ended.

    A mistake of the user anywhere makes it 2, as the others then end for want of that one. Else it is the first failure.
    """
    return MISTAKE if MISTAKE in codes else next((code for code in codes if code), 0)


def run_name(text: str) -> str:
    """Checks the name of a run: one that xpk, Kubernetes, Cloud TPU and SLURM all take."""
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
    """Where a bucket is mounted."""
    return f"{MOUNTS}/{name}"


def above(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number not below this one."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return whole


def variable(text: str) -> tuple[str, str]:
    """The type of an option NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\n" in value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Adds --env, for variables of the processes that are launched."""
    parser.add_argument(
        "--env",
        action="append",
        type=variable,
        default=[],
        metavar="NAME=VALUE",
        help="set a variable there",
    )


def program(given: Sequence[str], python: str = "python", module: str = PROGRAM) -> list[str]:
    """The command of one process: Python with the module of the command line, and what the user gave."""
    return [python, "-m", module, *given]


def workdir(given: Sequence[str]) -> str | None:
    """The --workdir of a command, if it names one."""
    for i, argument in enumerate(given):
        name, equals, value = argument.partition("=")
        if name == "--workdir":
            return value if equals else next(iter(given[i + 1 : i + 2]), None)
    return None


TRAINS = ("train", "sweep")  # commands that keep what they have done in a --workdir


def check_workdir(given: Sequence[str], below: str | None, why: str = "") -> None:
    """Refuses a workdir that is no path, or that would not be there for every process and every attempt.

    `below` is the mount it has to be in: None where it may be anywhere, empty where there is none. `why` tells what would
    go wrong elsewhere.

    Raises:
      Mistake: the command trains, and has no workdir, or one that is not there.
    """
    if given[0] not in TRAINS:
        return
    where = workdir(given)
    if not where:
        raise Mistake(f"{given[0]} has no --workdir; give it behind --")
    if address := re.match(r"[A-Za-z][-+.A-Za-z0-9]+:/+([^/]*)(.*)", where):
        name, path = address.groups()
        if not where.startswith("gs:"):
            name, path = "B", "/..."
        hint = f"mount the bucket: --bucket={name} --workdir={mount(name)}{path}"
        raise Mistake(f"--workdir={where} is an address, and training writes to paths only; {hint}")
    if below is None:
        return
    if not below or not PurePosixPath(posixpath.normpath(where)).is_relative_to(below):
        name = PurePosixPath(below).name if below not in ("", MOUNTS) else "B"
        hint = f"mount a bucket: --bucket={name} --workdir={mount(name)}/..."
        other = "or add --shared-workdir where it is a mount that all of them share"
        raise Mistake(f"--workdir={where} is on a disk of one machine, and {why}; {hint}, {other}")


def main(run: Callable[[list[str]], int]) -> NoReturn:
    """Runs a launcher: exit code 2 and one line for a mistake of the user, 130 for Ctrl-C."""
    try:
        code = run(sys.argv[1:])
    except Mistake as mistake:
        code = MISTAKE
        print(f"{Path(sys.argv[0]).name}: {mistake}", file=sys.stderr)
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)
