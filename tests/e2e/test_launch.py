"""Launch commands in the documentation."""

from __future__ import annotations

import shlex
import sys

from tests import runs
from tests.fakes import Tools


def test_documented_launch_commands_are_valid(tools: Tools):
    text = (runs.ROOT / "launch/README.md").read_text()
    blocks = [block for i, block in enumerate(text.split("```")) if i % 2]
    commands = [
        line
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("python launch/")
    ]
    assert {shlex.split(line)[1] for line in commands} == {
        f"launch/{name}.py" for name in ("local_multiprocess", "gke", "tpu_vm", "slurm")
    }
    for line in commands:
        words = shlex.split(line)
        done = tools.run(sys.executable, runs.ROOT / words[1], "--dry-run", *words[2:])
        assert done.code == 0 and done.out, (line, done.err)
