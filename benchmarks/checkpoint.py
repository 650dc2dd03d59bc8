"""Seconds to save and restore a state, and the part of the checksums.

python benchmarks/checkpoint.py --mib=1024
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from modality_forcing import config_file
from modality_forcing.progress import format_table
from modality_forcing.train import checksums
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import TrainState

COPIES = 4  # of the weights in a state: parameters, EMA, two moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the state (%(default)s)")
    options = parser.parse_args()
    size = options.mib * 2**18 // COPIES
    keys = jax.random.split(jax.random.key(0), COPIES)
    params, ema, first, second = ({"w": jax.random.normal(key, (4, size // 4))} for key in keys)
    state = jax.block_until_ready(TrainState(jnp.int32(1), params, (first, second), ema))
    rows = [(attempt, *measure(state)) for attempt in ("first", "second")]
    header = ("", "checksums alone s", "save s", "restore s")
    print(format_table(rows, header))


def measure(state: TrainState) -> list[str]:
    config = config_file.load("demo:phase=t2i")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints")
        parts = (
            lambda: checksums.checksums(tuple(state)[1:]),
            lambda: checkpoints.save(state, config, {}),
            lambda: checkpoints.restore(state),
        )
        seconds = [timed(part) for part in parts]
        checkpoints.close()
    return [f"{s:.2f}" for s in seconds]


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
