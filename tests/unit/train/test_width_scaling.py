"""Other widths and horizons of a config, and the powers that the optimizer follows."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.config import TrainConfig
from modality_forcing.config_file import load
from modality_forcing.errors import UserError
from modality_forcing.models.presets import SIZES
from modality_forcing.train import width_scaling
from modality_forcing.train.optim import decay_start_step, make_optimizer, schedule, warmup_steps
from modality_forcing.train.width_scaling import RECIPE, scale_width, with_horizon
from modality_forcing.tree import flatten

CONFIGS = Path(__file__).parents[3] / "configs"
DEMO = load(f"{CONFIGS}/demo.py:phase=t2i")
PAPER = load(f"{CONFIGS}/t2i.py:size=370m")


@pytest.mark.parametrize("name", ["370m", "800m", "3b3"])
def test_scaling_the_narrowest_config_gives_the_family(name):
    assert scale_width(PAPER, SIZES[name].width) == load(f"{CONFIGS}/t2i.py:size={name}")


@pytest.mark.parametrize(
    ("width", "heads", "kv_heads"),
    [(384, 3, 1), (640, 5, 1), (1280, 10, 2), (1792, 14, 2), (2048, 16, 4), (2560, 20, 5)],
)
def test_kv_heads_of_widths_outside_the_family(width, heads, kv_heads):
    scaled = scale_width(PAPER, width)
    model = replace(PAPER.model, width=width, mlp_dim=3 * width, heads=heads, kv_heads=kv_heads)
    assert scaled == replace(PAPER, model=model)


@pytest.mark.parametrize("head_dim", [16, 24])
def test_demo_scales_to_every_multiple_of_the_head_size(head_dim):
    demo = replace(
        DEMO,
        model=replace(DEMO.model, head_dim=head_dim, heads=96 // head_dim, kv_heads=48 // head_dim),
    )
    for width in range(2 * head_dim, 385, head_dim):
        c = scale_width(demo, width).model
        assert (c.width, c.mlp_dim, c.heads * c.head_dim, c.head_dim) == (
            width,
            3 * width,
            width,
            head_dim,
        )
        assert c.kv_heads == c.heads // 2 or c.heads % 2


def test_scale_width_keeps_the_base_width():
    once = scale_width(DEMO, 192).train
    assert once == replace(DEMO.train, base_width=96)
    assert scale_width(scale_width(DEMO, 192), 384) == scale_width(DEMO, 384)


@pytest.mark.parametrize(
    ("width", "hint"),
    [(100, "multiple of 24, such as 96 or 120"), (10, "such as 24 or 48"), (0, "24 or 48")],
)
def test_width_that_is_no_multiple_of_the_head_size_is_refused(width, hint):
    with pytest.raises(
        UserError, match=f"width {width} does not divide into heads of 24 channels.*{hint}"
    ):
        scale_width(DEMO, width)


def test_horizon_is_rounded_up_to_whole_steps():
    scaled = with_horizon(PAPER, 128_000_000).train
    assert (scaled.steps, scaled.schedule, scaled.warmup_fraction, scaled.decay_fraction) == (
        125_000,
        "wsd",
        0.01,
        0.2,
    )
    assert with_horizon(PAPER, 1025).train.steps == 2 and with_horizon(PAPER, 1).train.steps == 1
    assert replace(with_horizon(PAPER, 1025), train=PAPER.train) == PAPER
    with pytest.raises(UserError, match="a run needs at least 1 image"):
        with_horizon(PAPER, 0)


@pytest.mark.parametrize("images", [16_000, 20_000, 33_333, 61_000, 64_001])
@pytest.mark.parametrize("warmup", [0.0, 0.001, 0.03, 0.049, 0.1])
def test_branch_has_the_learning_rate_of_its_trunk_until_it_decays(images, warmup):
    trunk = replace(DEMO, train=replace(DEMO.train, steps=8000, warmup_fraction=warmup))
    c = with_horizon(DEMO, images, trunk=trunk).train
    assert warmup_steps(c) == warmup_steps(trunk.train)
    steps = jnp.arange(decay_start_step(c))
    np.testing.assert_array_equal(
        jax.vmap(schedule(c))(steps), jax.vmap(schedule(trunk.train))(steps)
    )


def test_horizon_shorter_than_the_trunk_warmup_is_refused():
    with pytest.raises(
        UserError,
        match="1600 images are 100 steps of 16, fewer than the trunk's 200 warm-up steps allow",
    ):
        with_horizon(DEMO, 1600, trunk=DEMO)


def test_paper_config_equals_the_recipe():
    c = PAPER.train
    scaled = {"learning_rate", "base_width", "warmup_fraction", "decay_fraction"}
    assert {name: getattr(c, name) for name in scaled} == {
        name: getattr(RECIPE, name) for name in scaled
    }
    assert PAPER.model.mlp_dim == RECIPE.mlp_ratio * PAPER.model.width


def test_optimizer_follows_its_powers_of_the_width():
    """Rates, decay and epsilon of one step from nothing, at base width and four times it."""
    params = {
        "trunk": {"layers": {"q": jnp.ones((1, 2, 2)), "offset": jnp.ones((1, 2))}},
        "tokenizer": {"image": {"w": jnp.ones((2, 2))}},
    }
    c = TrainConfig(
        learning_rate=1.0, warmup_fraction=0.0, grad_clip_norm=1e9, base_width=64, weight_decay=0.0
    )

    def moved(c, width, gradient):
        optimizer = make_optimizer(c, width)
        grads = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
        updates = flatten(cast(dict, optimizer.update(grads, optimizer.init(params), params)[0]))
        return np.array(
            [
                float(jnp.mean(updates[p]))
                for p in ("trunk/layers/q", "trunk/layers/offset", "tokenizer/image/w")
            ]
        )

    matrix, vector, inputs = moved(c, 256, 1.0) / moved(c, 64, 1.0)
    assert matrix == pytest.approx(1 / 4, rel=1e-5)
    assert vector == pytest.approx(1.0, rel=1e-5) == inputs
    decaying = replace(c, weight_decay=0.1)
    np.testing.assert_allclose(moved(decaying, 256, 0.0), [-0.1, 0, -0.1], rtol=1e-5)
    # A gradient of epsilon's size is halved, at both widths.
    assert (
        moved(c, 256, 1e-8 / 4)[1]
        == pytest.approx(moved(c, 64, 1e-8)[1], rel=1e-3)
        == pytest.approx(-0.5, rel=1e-3)
    )


def test_every_recipe_constant_has_a_comment():
    lines = Path(str(width_scaling.__file__)).read_text().splitlines()
    for field in fields(RECIPE):
        (line,) = [line for line in lines if line.startswith(f"    {field.name}: ")]
        assert "  # " in line
