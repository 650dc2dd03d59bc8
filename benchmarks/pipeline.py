"""Examples per second of the loader, and how long a training step would wait for them.

    python benchmarks/pipeline.py

One table: pixels a side; the source (`trivial` costs nothing, so its row is the loader's own
overhead, sparse patterns included; `scenes` renders; `cached` has rendered before); loader
processes (0 is a thread of the main process); seconds to the first batch; examples a second; and
the share of time that a jax step of --step-ms waits for its batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from modality_forcing.data.in_memory import InMemory
from modality_forcing.data.pipeline import train_batches
from modality_forcing.data.records import Record, RecordSource
from modality_forcing.data.sparsity import DEFAULT_MIXTURE
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.synthetic.source import Scenes


@dataclass(frozen=True)
class Trivial:
    """Ready-made records: what is left is the loader's overhead."""

    resolution: int

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Record:
        shape = (self.resolution, self.resolution)
        return Record(
            image=np.zeros((*shape, 3), np.uint8),
            depth=np.ones(shape, np.float32),
            valid=np.ones(shape, np.bool_),
            intrinsics=np.eye(3, dtype=np.float32),
            unit="relative",
            caption="a red cube left of two blue spheres",
            source="trivial",
            id=str(index),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed of the loader, and how long a step waits for it."
    )
    parser.add_argument("--resolutions", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=40, help="batches per number")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--step-ms",
        type=float,
        default=150,
        help="length of the step that the loader feeds; 0 for none",
    )
    options = parser.parse_args()

    step = step_of(options.step_ms) if options.step_ms else None
    print("pixels  source   workers  first batch  examples/s  waits")
    for resolution in options.resolutions:
        for name, source in sources(resolution).items():
            for workers in options.workers:
                first, rate, waits = measure(
                    source, resolution, workers, options.batch, options.batches, step
                )
                line = f"{resolution:6d}  {name:7s}  {workers:7d}  {first:9.2f} s  {rate:10.0f}"
                print(line + (f"  {waits:5.1%}" if step else ""), flush=True)


def sources(resolution: int) -> dict[str, RecordSource]:
    return {
        "trivial": Trivial(resolution),
        "scenes": Scenes(resolution=resolution),
        "cached": InMemory(Scenes(count=256, resolution=resolution)),
    }


def measure(
    source: RecordSource,
    resolution: int,
    workers: int,
    batch: int,
    count: int,
    step: Callable[[], None] | None,
) -> tuple[float, float, float]:
    """Returns seconds to the first batch, examples a second, and the share of waiting."""
    loader = train_batches(
        source,
        HashedWordTokenizer(),
        batch=batch,
        seed=0,
        resolution=resolution,
        sparsity=DEFAULT_MIXTURE,
        workers=workers,
    )
    start = time.perf_counter()
    next(loader)
    first = time.perf_counter() - start
    for _ in range(max(10, 256 // batch)):  # batches prefetched at the start must not count
        next(loader)
    start = time.perf_counter()
    for _ in range(count):
        next(loader)
    rate = count * batch / (time.perf_counter() - start)
    waited, start = 0.0, time.perf_counter()
    for _ in range(count if step else 0):
        asked = time.perf_counter()
        next(loader)
        waited += time.perf_counter() - asked
        step()  # pyright: ignore[reportOptionalCall]
    elapsed = time.perf_counter() - start
    loader.close()
    return first, rate, waited / elapsed


def step_of(milliseconds: float) -> Callable[[], None]:
    """Returns a mock training step: jitted matrix products that take about this long."""
    import jax  # here, because --help should not wait for it
    import jax.numpy as jnp

    matrix = jnp.eye(512) * 0.5

    @jax.jit
    def products(count):
        return jax.lax.fori_loop(0, count, lambda _, x: x @ matrix, matrix)

    products(1).block_until_ready()
    start = time.perf_counter()
    products(100).block_until_ready()
    count = max(1, round(100 * milliseconds / 1e3 / (time.perf_counter() - start)))
    return lambda: products(count).block_until_ready()


if __name__ == "__main__":
    main()
