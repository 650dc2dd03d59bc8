"""Time of sampling with FLUX.2 networks on the first device: seconds a batch, MFU, memory.

    python benchmarks/flux2_sample.py --row=klein-9b:i2d:512:1 --row=klein-9b:i2d:1024:1:int8
    python benchmarks/flux2_sample.py --row=tiny:i2d:32:2 --steps=4      # runs on a CPU

A row is NETWORK:MODE:PIXELS:BATCH, and :int8 where block matrices are integers of 8 bits; weights
are random, in bfloat16. The program is that of `mforce sample`, all its steps, from latents to
latents: text encoder and autoencoder are not included. `seconds` is the median of the runs after
one to warm up. MFU counts FLOPs as models/flops.py does, and is blank where the device's peak is
unknown. `GiB` is what the compiler plans: weights, inputs, outputs and temporaries.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modality_forcing import chips
from modality_forcing.config_file import load
from modality_forcing.encoders.frozen import FrozenEncoders
from modality_forcing.generator import Generator, sampler_options
from modality_forcing.modalities import base
from modality_forcing.models import flops
from modality_forcing.planning.inference import Request, abstract_weights, evaluations
from modality_forcing.train.batch_shapes import abstract_batch
from modality_forcing.train.state import with_attention_kernel

COLUMNS = (
    *("network", "mode", "pixels", "batch", "weights", "evaluations", "seconds a batch"),
    *("images/s", "TFLOP/s", "MFU", "GiB", "compile s"),
)


def request(row: str, steps: int | None) -> tuple[Request, int]:
    """Returns what a row asks for, and its batch."""
    network, mode, pixels, batch, *kept = row.split(":")
    config = load(f"flux2:size={network}" + (",task=t2i" if mode == "t2i" else ""))
    if steps:
        config = replace(config, sample=replace(config.sample, steps=steps, task_steps={}))
    config = with_attention_kernel(config, jax.default_backend())
    size = (int(pixels), int(pixels))
    return Request(config, mode, size, int8="int8" in kept), int(batch)


def random(shapes: Any) -> Any:
    """Returns arrays of these shapes with small values, made on the device in one program."""

    def one(i: int, s: jax.ShapeDtypeStruct) -> jax.Array:
        flat = jax.lax.iota(jnp.uint32, s.size) * np.uint32(2_654_435_761) + np.uint32(i)
        values = (flat >> 16).astype(jnp.float32) / 2**15 - 1
        scale = 64 if jnp.issubdtype(s.dtype, jnp.integer) else 0.02
        return (values * scale).reshape(s.shape).astype(s.dtype)

    leaves, tree = jax.tree.flatten(shapes)
    make = jax.jit(lambda: [one(i, s) for i, s in enumerate(leaves)])
    return jax.tree.unflatten(tree, make())


def measure(row: str, steps: int | None, turns: int) -> list[str]:
    """Compiles and runs a row; returns its cells."""
    asked, batch = request(row, steps)
    config, modalities = asked.config, base.build(asked.config, asked.size)
    weights = random(abstract_weights(asked))
    generator = Generator(config, weights, FrozenEncoders(), size=asked.size)
    trajectory, names = generator.trajectory(asked.task)
    schedule, _ = sampler_options(trajectory, names, config.sample)
    inputs = abstract_batch(config, modalities, batch)
    cond = random({n: jax.eval_shape(modalities[n].to_tokens, inputs) for n in names})
    text = random(inputs["text"])
    keys = jax.random.split(jax.random.key(0), batch)
    started = time.perf_counter()
    run = generator.lower(asked.task, cond, (text, text), keys).compile()
    compiled = time.perf_counter() - started

    def once() -> float:
        started = time.perf_counter()
        jax.block_until_ready(run(weights, schedule, cond, text, text, keys))
        return time.perf_counter() - started

    once()
    seconds = statistics.median(once() for _ in range(turns))
    free = [name for name in trajectory.schedule if name not in names]
    count = evaluations(config, asked.task, free, names)
    work = flops.forward_flops(config, modalities, only=trajectory.schedule).total * count * batch
    chip, memory = chips.by_device_kind(jax.devices()[0].device_kind), run.memory_analysis()
    parts = ("argument", "output", "temp")
    used = sum(getattr(memory, f"{part}_size_in_bytes", 0) for part in parts)
    return [
        *row.split(":")[:4],
        "int8" if asked.int8 else "bfloat16",
        str(count),
        f"{seconds:.3f}",
        f"{batch / seconds:.3f}",
        f"{work / seconds / 1e12:.1f}",
        f"{work / seconds / chip.bf16_flops:.3f}" if chip else "",
        f"{used / 2**30:.1f}",
        f"{compiled:.1f}",
    ]


def main() -> None:
    """Prints a table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", action="append", required=True, help="several times for several")
    parser.add_argument("--steps", type=int, help="of the sampler; the config's by default")
    parser.add_argument("--turns", type=int, default=2, help="timed runs of a row")
    options = parser.parse_args()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {date}"
    print(f"{device}\n\n    {shlex.join(['python', *sys.argv])}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for row in options.row:
        try:
            cells = measure(row, options.steps, options.turns)
        except jax.errors.JaxRuntimeError as error:  # the other rows still run
            cells = [*row.split(":")[:4], str(error).splitlines()[0][:100]]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
