"""The named sizes of the from-scratch family (paper, table 2): depth fixed at 30 blocks, scaled by width alone."""

from __future__ import annotations

import dataclasses

from modality_forcing.config import ModelConfig
from modality_forcing.errors import UserError

SIZES = {
    "demo": ModelConfig(
        width=96, ffn=288, blocks=4, heads=4, kv_heads=2, head_dim=24, unroll=4, rope_theta=10.0, attention="einsum"
    ),
    "370m": ModelConfig(width=1024, ffn=3072, blocks=30, heads=8, kv_heads=2, head_dim=128, dtype="bfloat16"),
    "800m": ModelConfig(width=1536, ffn=4608, blocks=30, heads=12, kv_heads=3, head_dim=128, dtype="bfloat16"),
    "3b3": ModelConfig(width=3072, ffn=9216, blocks=30, heads=24, kv_heads=6, head_dim=128, dtype="bfloat16"),
}


def size(name: str, **changes) -> ModelConfig:
    """Returns the architecture of a named size; raises UserError for a name that is not in the family."""
    if name not in SIZES:
        raise UserError(f"unknown model size {name!r}", mend=f"known sizes: {', '.join(SIZES)}")
    return dataclasses.replace(SIZES[name], **changes)


def block_parameters(c: ModelConfig) -> int:
    """Weights in the matrices of one block: 11.5 d^2 at the family's proportions."""
    return c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.ffn
