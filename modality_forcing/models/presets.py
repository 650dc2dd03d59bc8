"""Named sizes: the from-scratch family (paper, table 2: 30 blocks, scaled by width), and FLUX.2."""

from __future__ import annotations

import dataclasses
from functools import partial

from modality_forcing.config import ModelConfig
from modality_forcing.errors import UserError

# Norms, RoPE and activations are cheaper to recompute than to keep (docs/benchmarks.md).
_family = partial(ModelConfig, num_layers=30, head_dim=128, dtype="bfloat16", remat="elementwise")
_flux2 = partial(ModelConfig, family="flux2", head_dim=128, dtype="bfloat16", remat="elementwise")

SIZES = {
    "demo": ModelConfig(
        width=96,
        mlp_dim=288,
        num_layers=4,
        heads=4,
        kv_heads=2,
        head_dim=24,
        unroll=4,
        rope_theta=10.0,
        attention="einsum",
    ),
    "370m": _family(width=1024, mlp_dim=3072, heads=8, kv_heads=2),
    "800m": _family(width=1536, mlp_dim=4608, heads=12, kv_heads=3),
    "3b3": _family(width=3072, mlp_dim=9216, heads=24, kv_heads=6),
    # Black Forest Labs' transformers. All text encoders give 512 tokens; width of their states:
    # 7680, 12,288 and 15,360 channels.
    "klein-4b": _flux2(
        width=3072, mlp_dim=9216, heads=24, kv_heads=24, double_layers=5, num_layers=20
    ),
    "klein-9b": _flux2(
        width=4096, mlp_dim=12_288, heads=32, kv_heads=32, double_layers=8, num_layers=24
    ),
    "flux2-dev": _flux2(
        width=6144,
        mlp_dim=18_432,
        heads=48,
        kv_heads=48,
        double_layers=8,
        num_layers=48,
        embedded_guidance=4.0,
    ),
}


def size(name: str, **changes: object) -> ModelConfig:
    """Returns the architecture of a named size; raises UserError for an unknown name."""
    if name not in SIZES:
        raise UserError(f"unknown model size {name!r}", hint=f"known sizes: {', '.join(SIZES)}")
    return dataclasses.replace(SIZES[name], **changes)


def with_head_dim(c: ModelConfig, head_dim: int) -> ModelConfig:
    """Returns the same width with wider heads, such as 256 for the matrix units of v6e and tpu7x.

    Keeps the kv channels, or takes the next number that divides the query heads (800m: 512 instead
    of 384). Raises UserError if head_dim does not divide the width of all heads.
    """
    channels, kv_channels = c.heads * c.head_dim, c.kv_heads * c.head_dim
    if head_dim < 1 or channels % head_dim:
        what = f"head_dim {head_dim} does not divide the {channels} channels of all heads"
        raise UserError(what, hint="take 128 or 256")
    heads = channels // head_dim
    kv_heads = next(g for g in range(-(-kv_channels // head_dim), heads + 1) if heads % g == 0)
    return dataclasses.replace(c, head_dim=head_dim, heads=heads, kv_heads=kv_heads)


def block_parameters(c: ModelConfig) -> int:
    """Returns the weights in the matrices of one block: 11.5 d^2 at the family's proportions."""
    return c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.mlp_dim
