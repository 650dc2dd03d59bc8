"""Fakes of the tools that the launchers call.

A fake records its calls, which tests compare with the output of a dry run. The batch script and the
commands for other hosts run in a real shell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import runs
from tests.runs import Done

ODD = '--config.name=it\'s $HOME; "x" $(id) #1'  # a shell or Kubernetes would expand this
TRAIN = ["train", "--config=configs/forcing.py:size=3b3", "--workdir=/gcs/bucket/run1", ODD]
PROGRAM = ["python", "-m", "modality_forcing.cli", *TRAIN]

# Writes its arguments and standard input as a line of JSON, then runs the body that the test gave.
FAKE = """\
#!{python}
import json, os, pathlib, shutil, subprocess, sys
name, arguments = "{name}", sys.argv[1:]
stdin = sys.stdin.read() if {reads} else None
with open("{log}", "a") as log:
    log.write(json.dumps([name, arguments, stdin]) + "\\n")
{body}
"""


class Tools:
    """A folder of fake tools, first on PATH."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log"
        self.environment = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "HOME": str(folder),
        }

    def add(self, name: str, body: str = "", reads: bool = False) -> None:
        path = self.folder / name
        path.write_text(
            FAKE.format(python=sys.executable, name=name, reads=reads, log=self.log, body=body)
        )
        path.chmod(0o755)

    def calls(self) -> list[tuple[str, list[str], str | None]]:
        """Returns the calls since the last call of this method."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [tuple(json.loads(line)) for line in lines]

    def run(self, *command: object) -> Done:
        arguments = [str(word) for word in command]
        done = subprocess.run(
            arguments,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def launch(self, launcher: str, *arguments: object) -> Done:
        return self.run(sys.executable, runs.ROOT / f"launch/{launcher}.py", *arguments)


def refused(done: Done, launcher: str, message: str) -> None:
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1, done
    assert done.err.startswith(f"{launcher}.py: ") and message in done.err, done.err


def flags(command: list[str]) -> dict[str, str]:
    return dict(word[2:].split("=", 1) for word in command if word.startswith("--") and "=" in word)
