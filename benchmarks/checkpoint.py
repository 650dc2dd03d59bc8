"""Seconds to save and restore a state, and what a save costs the steps around it.

python benchmarks/checkpoint.py --mib=1024
python benchmarks/checkpoint.py --mib=1024 --bucket-mb-s=50 --step-s=0.5 --steps=100

With --bucket-mb-s the checkpoints go to a storage emulator on this machine, in a process of its
own, that takes so many megabytes a second (extra `test`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from modality_forcing import config_file, paths
from modality_forcing.progress import format_table
from modality_forcing.train import checksums
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import TrainState

ROOT = Path(__file__).parents[1]  # where tests/bucket.py is
COPIES = 4  # of the weights in a state: parameters, EMA, two moments
SERVE = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.bucket import Bucket
bucket, rate = Bucket(), float(sys.argv[1])
free = [0.0]  # when the line is free again

def throttle(method, path, size=0):
    now = time.monotonic()
    free[0] = max(free[0], now) + size / rate
    time.sleep(free[0] - now)

bucket.on_bytes = throttle
print(bucket.port, flush=True)
sys.stdin.read()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the state (%(default)s)")
    parser.add_argument("--bucket-mb-s", type=float, default=0.0, help="rate of the emulator")
    parser.add_argument("--step-s", type=float, default=0.5, help="seconds of a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="steps around a save; 0: none")
    options = parser.parse_args()
    size = options.mib * 2**18 // COPIES
    keys = jax.random.split(jax.random.key(0), COPIES)
    params, ema, first, second = ({"w": jax.random.normal(key, (4, size // 4))} for key in keys)
    state = jax.block_until_ready(TrainState(jnp.int32(1), params, (first, second), ema))
    with place(options.bucket_mb_s) as folder:
        rows = [(attempt, *measure(state, folder / attempt)) for attempt in ("first", "second")]
        header = ("", "host copy s", "checksums s", "save blocks s", "whole save s", "restore s")
        print(format_table(rows, header))
        if options.steps:
            lost = steps_lost(state, folder / "steps", options.step_s, options.steps)
            print(f"{lost:.1%} of the time of {options.steps} steps lost to one save")


@contextmanager
def place(mb_s: float) -> Iterator[Path]:
    """Yields a temporary folder, or an address in a throttled emulator."""
    if not mb_s:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    command = [sys.executable, "-c", SERVE, str(mb_s * 1e6), str(ROOT)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdout is not None
        sys.path.insert(0, str(ROOT))
        from tests.bucket import environment

        os.environ.update(environment(int(server.stdout.readline())))
        yield paths.as_path("gs://bucket/run")
        server.kill()


def measure(state: TrainState, folder: Path) -> list[str]:
    config, checkpoints = config_file.load("demo:phase=t2i"), Checkpoints(folder)
    parts = (
        lambda: jax.tree.map(lambda x: np.array(x, copy=True), state),
        lambda: checksums.checksums(tuple(state)[1:]),
        lambda: checkpoints.save(state, config, {}),
        checkpoints.wait,
        lambda: checkpoints.restore(state),
    )
    copy, hashed, blocks, rest, restore = (timed(part) for part in parts)
    checkpoints.close()
    return [f"{s:.2f}" for s in (copy, hashed, blocks, blocks + rest, restore)]


def steps_lost(state: TrainState, folder: Path, step_s: float, steps: int) -> float:
    """Returns by how much longer steps take with a save before the first of them."""
    config, checkpoints = config_file.load("demo:phase=t2i"), Checkpoints(folder)

    @jax.jit
    def work(x: jax.Array, n: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda _, y: jnp.tanh(y @ y) / 8, x)

    x = jax.random.normal(jax.random.key(1), (512, 512))
    jax.block_until_ready(work(x, jnp.int32(10)))
    once = timed(lambda: jax.block_until_ready(work(x, jnp.int32(100)))) / 100
    rounds = jnp.int32(max(int(step_s / once), 1))
    touch = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 0, s), donate_argnums=0)

    def run(state: TrainState, *, save: bool) -> tuple[TrainState, float]:
        start = time.perf_counter()
        if save:
            checkpoints.save(state, config, {})
        for _ in range(steps):
            state = touch(state)
            jax.block_until_ready((state, work(x, rounds)))
            checkpoints.check()
        return state, time.perf_counter() - start

    state, _ = run(state, save=False)
    state, without = run(state, save=False)
    _, with_save = run(state, save=True)
    checkpoints.close()
    return with_save / without - 1


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
