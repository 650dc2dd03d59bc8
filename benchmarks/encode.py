"""Frozen encoders: on a CPU next to diffusers and transformers, on an accelerator alone.

    python benchmarks/encode.py                  # torch and the others come with the parity extra
    python benchmarks/encode.py --threads=1      # on a shared machine
    python benchmarks/encode.py --batch=32 --tokens=128 --json=encode.json   # GPU or TPU: MFU

Random weights of the published sizes: the whole FLUX.2 autoencoder at 256 pixels, and layers of
UMT5-XXL. On a CPU, in float32, the two alternate, so that other load disturbs both alike; `ratio`
is theirs over ours, the median of the turns: above 1, ours is faster. On an accelerator: bfloat16,
all 24 layers; MFU counts the FLOPs of products and convolutions (analytic for UMT5; for the
autoencoder those of the lowered program, since a compiled one counts calls of cuDNN as zero)
against the device's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from modality_forcing import chips
from modality_forcing.encoders.flux2_vae import Decoder, Encoder, VAEConfig
from modality_forcing.encoders.umt5 import UMT5
from modality_forcing.planning.encoders import XXL, text_flops

SIDE = 256
Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch", type=int, default=0, help="images and captions at a time (CPU: 1 and 4)"
    )
    parser.add_argument("--tokens", type=int, default=128, help="of a caption")
    parser.add_argument("--layers", type=int, default=2, help="of UMT5-XXL, on a CPU")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of both, on a CPU")
    parser.add_argument("--json", type=Path, help="also write everything into this file")
    options = parser.parse_args()
    rows = beside(options) if jax.default_backend() == "cpu" else alone(options)
    device = (
        jax.devices()[0].device_kind
        if jax.default_backend() != "cpu"
        else f"{platform.processor() or platform.machine()}"
    )
    print(
        f"\n{device}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; jax {jax.__version__}"
    )
    if options.json:
        options.json.write_text(
            json.dumps({"device": device, "jax": jax.__version__, "rows": rows}, indent=1)
        )


def program(build: Callable[[], nnx.Module], *inputs: Any) -> tuple[Run, Any]:
    """Returns a call of a network with random weights, and the lowered program."""
    graph, shapes = nnx.split(nnx.eval_shape(build))
    # Not by its own initializers: 11 GB of normal numbers take longer than all else here.
    weights = jax.jit(lambda: jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), shapes))()
    network = jax.jit(lambda weights, *inputs: nnx.merge(graph, weights)(*inputs))
    lowered = network.lower(weights, *inputs)
    run = lowered.compile()
    return lambda: jax.block_until_ready(run(weights, *inputs)), lowered


def make_images(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (batch, SIDE, SIDE, 3)).astype(np.float32)
    return image, rng.normal(size=(batch, SIDE // 16, SIDE // 16, 128)).astype(np.float32)


def captions(batch: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(2, 1000, (batch, tokens)).astype(np.int32), np.ones(
        (batch, tokens), bool
    )


def beside(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both on the CPU, in turns."""
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers import AutoencoderKLFlux2  # pyright: ignore[reportMissingImports]
    from transformers import UMT5Config as TheirConfig  # pyright: ignore[reportMissingImports]
    from transformers import UMT5EncoderModel  # pyright: ignore[reportMissingImports]

    if options.threads:
        torch.set_num_threads(options.threads)
        # XLA has one thread for each core that it may use.
        os.sched_setaffinity(0, range(options.threads))
    torch.manual_seed(0)
    batch = options.batch or 1
    image, latent = make_images(batch)
    vae, c = AutoencoderKLFlux2().eval(), VAEConfig()
    small = replace(XXL, num_layers=options.layers, vocab_size=1000)
    sizes = {
        "vocab_size": 1000,
        "d_model": small.width,
        "d_ff": small.mlp_dim,
        "num_heads": small.heads,
        "d_kv": small.head_dim,
    }
    their_text = UMT5EncoderModel(TheirConfig(**sizes, num_layers=options.layers)).eval()
    ids, mask = captions(options.batch or 4, options.tokens)
    tensor = torch.from_numpy
    chw, z = tensor(image).permute(0, 3, 1, 2).contiguous(), tensor(latent)
    half = (
        z.reshape(batch, SIDE // 16, SIDE // 16, 32, 2, 2)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(batch, 32, SIDE // 8, SIDE // 8)
    )
    encoder = partial(Encoder, c, rngs=nnx.Rngs(0))
    decoder = partial(Decoder, c, rngs=nnx.Rngs(0))
    text = partial(UMT5, small, rngs=nnx.Rngs(0), dtype=jnp.float32)
    cases: dict[str, tuple[Run, Run]] = {
        f"VAE encode, {batch} x {SIDE} px": (
            program(encoder, image)[0],
            lambda: vae.encode(chw).latent_dist.mean,
        ),
        f"VAE decode, {batch} x {SIDE} px": (
            program(decoder, latent)[0],
            lambda: vae.decode(half.contiguous()).sample,
        ),
        f"UMT5-XXL, {options.layers} layers, {len(ids)} x {options.tokens} tokens": (
            program(text, ids, mask)[0],
            lambda: their_text(tensor(ids).long(), tensor(mask).long()).last_hidden_state,
        ),
    }
    print("| float32 | ours, ms | torch, ms | ratio |\n|---|---|---|---|")
    rows = []
    for name, (ours, theirs) in cases.items():
        with torch.no_grad():
            # The first compiles, or warms.
            turns = [(seconds(ours), seconds(theirs)) for _ in range(options.turns + 1)][1:]
        mine, other = (median(turn[i] for turn in turns) for i in range(2))
        ratio = median(their / our for our, their in turns)
        print(f"| {name} | {1e3 * mine:.0f} | {1e3 * other:.0f} | {ratio:.2f} |", flush=True)
        rows.append({"name": name, "seconds": mine, "torch_seconds": other, "ratio": ratio})
    return rows


def alone(options: argparse.Namespace) -> list[dict[str, Any]]:
    """On an accelerator: rates and MFU."""
    batch = options.batch or 32
    (image, latent), (ids, mask) = make_images(batch), captions(batch, options.tokens)
    c, half = VAEConfig(), jnp.bfloat16
    chip = chips.by_device_kind(jax.devices()[0].device_kind)
    peak = chip.bf16_flops if chip else None
    print("| bfloat16 | batch | ms | per second | TFLOP/s | MFU |\n|---|---|---|---|---|---|")
    rows = []
    cases: dict[str, tuple[Callable[[], nnx.Module], tuple[Any, ...], int, str]] = {
        f"VAE encode, {SIDE} px": (
            lambda: Encoder(c, rngs=nnx.Rngs(0), dtype=half),
            (image,),
            batch,
            "images",
        ),
        f"VAE decode, {SIDE} px": (
            lambda: Decoder(c, rngs=nnx.Rngs(0), dtype=half),
            (latent,),
            batch,
            "images",
        ),
        f"UMT5-XXL, {options.tokens} tokens": (
            lambda: UMT5(XXL, rngs=nnx.Rngs(0), dtype=half),
            (ids, mask),
            batch * options.tokens,
            "tokens",
        ),
    }
    for name, (build, inputs, count, unit) in cases.items():
        run, lowered = program(build, *jax.device_put(inputs))
        each = median(seconds(run) for _ in range(2 * options.turns + 2))
        work = (
            text_flops(XXL, batch, options.tokens)
            if unit == "tokens"
            else lowered.cost_analysis()["flops"]
        )
        mfu = work / each / peak if peak else None
        rates = f"{count / each:.0f} {unit} | {work / each / 1e12:.0f}"
        utilization = f"{mfu:.2f}" if mfu else "-"
        print(f"| {name} | {batch} | {1e3 * each:.1f} | {rates} | {utilization} |", flush=True)
        rows.append(
            {
                "name": name,
                "batch": batch,
                "seconds": each,
                "per_second": count / each,
                "flops": work,
                "mfu": mfu,
            }
        )
    return rows


def seconds(run: Run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
