"""The named sizes of the from-scratch family (paper, table 2): depth fixed at 30 blocks, scaled by width alone."""

from __future__ import annotations

import dataclasses
from functools import partial

from modality_forcing.config import ModelConfig
from modality_forcing.errors import UserError

# Norms, rotations and activations are cheaper to compute again than to keep (docs/benchmarks.md).
_family = partial(ModelConfig, num_layers=30, head_dim=128, dtype="bfloat16", remat="elementwise")

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
}


def size(name: str, **changes) -> ModelConfig:
    """Returns the architecture of a named size; raises UserError for a name that is not in the family."""
    if name not in SIZES:
        raise UserError(f"unknown model size {name!r}", hint=f"known sizes: {', '.join(SIZES)}")
    return dataclasses.replace(SIZES[name], **changes)


def with_head_dim(c: ModelConfig, head_dim: int) -> ModelConfig:
    """Returns an architecture of the same width with wider heads, such as 256 for the matrix units of v6e and tpu7x.

    As many kv channels as before, or the next number that divides among the query heads (800m: 512 instead of 384).
    Raises UserError if the width of all heads is not a multiple of head_dim.
    """
    channels, kv_channels = c.heads * c.head_dim, c.kv_heads * c.head_dim
    if head_dim < 1 or channels % head_dim:
        raise UserError(
            f"head_dim {head_dim} does not divide the {channels} channels of all heads",
            hint="take 128 or 256",
        )
    heads = channels // head_dim
    kv_heads = next(g for g in range(-(-kv_channels // head_dim), heads + 1) if heads % g == 0)
    return dataclasses.replace(c, head_dim=head_dim, heads=heads, kv_heads=kv_heads)


def block_parameters(c: ModelConfig) -> int:
    """Weights in the matrices of one block: 11.5 d^2 at the family's proportions."""
    return c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.mlp_dim
