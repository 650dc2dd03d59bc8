"""The FLUX.2 network beside diffusers': seconds of a forward and of a training pass on a CPU.

    taskset -c 0 python -m benchmarks.flux2    # needs the `parity` extra

Both have the same sizes: width 512, 2 double and 4 single blocks, 512 text and 1024 image tokens,
float32. Ours computes norms and activations again in the backward pass, as its named sizes do. They
take turns in one process, each first in every second turn. A ratio is theirs to ours in one turn,
above 1 where ours is faster; on a machine that others use too, that of processor seconds says more
than that of wall seconds. A training pass is the forward pass and the gradient of every weight.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from modality_forcing.config import Config, DataConfig, ModalityConfig, ModelConfig, TextConfig
from modality_forcing.modalities import base
from modality_forcing.train.state import abstract_model

WIDTH, HEAD_DIM, DOUBLE, SINGLE = 512, 128, 2, 4
TEXT, CONTEXT, SIDE = 512, 1536, 32  # tokens, channels of a state, image tokens along a side
CHANNELS = 128


def ours() -> tuple[Callable[[], object], Callable[[], object]]:
    """Returns our forward and training pass."""
    heads = WIDTH // HEAD_DIM
    model = ModelConfig(
        family="flux2",
        width=WIDTH,
        mlp_dim=3 * WIDTH,
        num_layers=SINGLE,
        double_layers=DOUBLE,
        heads=heads,
        kv_heads=heads,
        head_dim=HEAD_DIM,
        remat="elementwise",
        attention="einsum",
    )
    image = ModalityConfig(patch=16, prediction="v", latent_channels=CHANNELS)
    config = Config(
        data=DataConfig(resolution=16 * SIDE),
        text=TextConfig(tokens=TEXT, vocab_size=0, channels=CONTEXT),
        model=model,
        modalities={"image": image},
    )
    graph, shapes = abstract_model(config, base.build(config))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.02 * rng.standard_normal(s.shape, np.float32)), shapes
    )
    x = jnp.asarray(rng.standard_normal((1, SIDE * SIDE, CHANNELS), np.float32))
    text = {"tokens": jnp.asarray(rng.standard_normal((1, TEXT, CONTEXT), np.float32))}
    t = jnp.array([0.5])

    def predict(params, x):
        return nnx.merge(graph, params)({"image": x}, {"image": t}, text)["image"]

    forward = jax.jit(predict)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.mean(jnp.square(predict(p, x)))))
    return (
        lambda: jax.block_until_ready(forward(params, x)),
        lambda: jax.block_until_ready(gradient(params, x)),
    )


def theirs() -> tuple[Callable[[], object], Callable[[], object]]:
    """Returns the same of diffusers."""
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers import Flux2Transformer2DModel  # pyright: ignore[reportMissingImports]

    model = Flux2Transformer2DModel(
        in_channels=CHANNELS,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=WIDTH // HEAD_DIM,
        joint_attention_dim=CONTEXT,
        axes_dims_rope=(HEAD_DIM // 4,) * 4,
        guidance_embeds=False,
    )
    arguments = {
        "hidden_states": torch.randn(1, SIDE * SIDE, CHANNELS),
        "encoder_hidden_states": torch.randn(1, TEXT, CONTEXT),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.tensor([(0, r, c, 0) for r in range(SIDE) for c in range(SIDE)]),
        "txt_ids": torch.tensor([(0, 0, 0, i) for i in range(TEXT)]),
        "return_dict": False,
    }

    def forward() -> object:
        with torch.no_grad():
            return model(**arguments)[0]

    def train() -> object:
        model.zero_grad(set_to_none=True)
        model(**arguments)[0].square().mean().backward()
        return model

    return forward, train


def measure(call: Callable[[], object]) -> tuple[float, float]:
    """Returns the processor seconds and the wall seconds of a call, over all its threads."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - processor, time.perf_counter() - wall


def main() -> None:
    """Prints medians, and the median, least and largest of the turns' ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=9, help="of each, after one to warm up")
    turns = parser.parse_args().turns
    for name, mine, other in zip(("forward", "training"), ours(), theirs(), strict=True):
        pairs = []
        for turn in range(turns + 1):
            swap = turn % 2
            first, second = (measure(call) for call in ((other, mine) if swap else (mine, other)))
            pairs.append((second, first) if swap else (first, second))
        for i, kind in enumerate(("processor", "wall")):
            ratios = sorted(b[i] / a[i] for a, b in pairs[1:])
            a, b = (statistics.median(pair[j][i] for pair in pairs[1:]) for j in (0, 1))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"{name}, {kind} seconds: ours {a:.3f}, diffusers {b:.3f}, ratio {spread}")


if __name__ == "__main__":
    main()
