"""The family's sizes, counted without allocating them."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import pytest
from flax import nnx

from modality_forcing.config import ModelConfig, TextConfig
from modality_forcing.errors import UserError
from modality_forcing.models.dit import DiT
from modality_forcing.models.presets import SIZES, block_parameters, size, with_head_dim

FAMILY = [("370m", 1024, 0.362, 0.370), ("800m", 1536, 0.814, 0.82), ("3b3", 3072, 3.256, 3.30)]


@dataclass(frozen=True)
class Latents:
    """An image of 256 px as 16 x 16 latents of 128 channels."""

    position_id: int = 0
    grid: tuple[int, int] = (16, 16)
    channels: int = 128
    detokenizer_layers: int = 0


def counted(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "width", "blocks", "whole"), FAMILY)
def test_parameter_counts_equal_those_of_the_paper(name, width, blocks, whole):
    c = size(name)
    assert (
        c.width == width and c.num_layers == 30 and c.head_dim == 128 and c.heads == 4 * c.kv_heads
    )
    assert block_parameters(c) == 11.5 * width**2
    assert 30 * block_parameters(c) / 1e9 == pytest.approx(blocks, abs=5e-4)
    text = TextConfig(tokens=128, vocab_size=0, channels=4096)
    model = nnx.eval_shape(lambda: DiT(c, text, {"image": Latents()}, rngs=nnx.Rngs(0)))
    weights = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert counted(weights) / 1e9 == pytest.approx(whole, rel=0.03)
    matrices = {n: w for n, w in weights["trunk"]["layers"].items() if w.ndim == 3}
    assert counted(matrices) == 30 * block_parameters(c)


def test_size_takes_overrides():
    assert size("370m", remat="full", num_layers=2) == ModelConfig(
        width=1024,
        mlp_dim=3072,
        num_layers=2,
        heads=8,
        kv_heads=2,
        head_dim=128,
        dtype="bfloat16",
        remat="full",
    )
    assert SIZES["370m"].num_layers == 30


def test_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown model size '7b'; known sizes: .*370m, 800m, 3b3"):
        size("7b")


@pytest.mark.parametrize(
    ("name", "heads", "kv_heads"), [("370m", 4, 1), ("800m", 6, 2), ("3b3", 12, 3)]
)
def test_heads_may_be_wider(name, heads, kv_heads):
    wide = with_head_dim(size(name), 256)
    assert (wide.heads, wide.kv_heads, wide.head_dim, wide.width) == (
        heads,
        kv_heads,
        256,
        size(name).width,
    )
    assert with_head_dim(size(name), 128) == size(name)
    assert block_parameters(wide) == pytest.approx(block_parameters(size(name)), rel=0.02)


def test_head_dim_that_does_not_divide_is_one_line():
    with pytest.raises(UserError, match=r"head_dim 384 does not divide the 1024 channels"):
        with_head_dim(size("370m"), 384)
