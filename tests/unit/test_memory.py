"""Page faults of a program with large temporaries, called again and again, with and without."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runs import ROOT, environment

PROGRAM = """
import resource, sys
from modality_forcing.memory import keep_freed

if sys.argv[1] == "keep":
    assert keep_freed()
import jax, jax.numpy as jnp

f = jax.jit(lambda x: (x @ x.T @ x).sum())  # 64 MiB between the two products
x = jnp.ones((4096, 8))
f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="speaks to glibc")
def test_pages_once_touched_are_not_touched_anew():
    assert faults("keep") < 0.2 * faults("default")
