"""Losses at fixed noise levels, of networks whose loss is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.config import Config
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.evaluation.fixed_levels import LEVELS, FixedLevelLoss
from modality_forcing.evaluation.heldout import HeldOutData
from modality_forcing.generator import Generator
from modality_forcing.modalities import base
from tests import tiny

COUNT = 5
Predict = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def data(count: int = COUNT) -> HeldOutData:
    batch = tiny.batch(tiny.forcing(), b=count)
    batch["valid"][1] = False  # without depth, it has no target
    texts = [f"caption {i}" for i in range(count)]
    return HeldOutData(batch["image"], batch["depth"], batch["valid"], texts, texts)


class FakeGenerator(Generator):
    """A generator with only what the losses read."""

    def __init__(self, **attributes: object):
        vars(self).update(attributes)


def losses(predict: Predict, config: Config | None = None, **evaluation: int) -> dict[str, float]:
    config = config or tiny.forcing()
    config = replace(config, eval=replace(config.eval, **{"batch": COUNT, **evaluation}))

    class Network(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x_t, t, text):
            return {name: self.scale[...] * x for name, x in predict(x_t, t).items()}

    graph, weights = nnx.split(Network(), nnx.Param)
    generator = FakeGenerator(
        config=config,
        graph=graph,
        modalities=base.build(config),
        encoder=HashedWordTokenizer(config.text.tokens, config.text.vocab_size),
        frozen=SimpleNamespace(encode=lambda batch: batch),
        mesh=None,
    )
    return FixedLevelLoss(generator, data())(nnx.to_pure_dict(weights))


def zeros(x_t, t):
    return {name: 0 * x for name, x in x_t.items()}


def test_loss_of_a_constant_is_that_of_the_targets_at_each_level():
    found, records = losses(zeros), data()
    batch = {name: jnp.asarray(getattr(records, name)) for name in ("image", "depth", "valid")}
    for name, modality in base.build(tiny.forcing()).items():
        x0, mask = (np.asarray(x) for x in modality.to_tokens(batch))
        square = np.where(mask, x0, 0.0) ** 2
        counts = mask.sum(axis=(1, 2))
        mean = np.mean(square.sum(axis=(1, 2))[counts > 0] / counts[counts > 0])
        for t in LEVELS:  # x-prediction: the error of the velocity is that of x0 over t
            assert found[f"loss_{name}/t{t:g}"] == pytest.approx(mean / t**2, rel=1e-5)
        levels = [found[f"loss_{name}/t{t:g}"] for t in LEVELS]
        assert found[f"loss_{name}"] == pytest.approx(np.mean(levels))


def test_all_levels_have_the_same_noise():
    """x_t itself is wrong by t (eps - x0), in velocity by eps - x0."""
    found = losses(lambda x_t, t: x_t)
    for name in ("loss_image", "loss_depth"):
        each = [found[f"{name}/t{t:g}"] for t in LEVELS]
        np.testing.assert_allclose(each, each[0], rtol=1e-4)
        assert each[0] > 0.5  # the noise alone has variance 1


def test_a_condition_is_clean_and_has_no_loss():
    def predict(x_t, t):  # right about nothing, and depth is 0 if the image is clean
        clean = (t["image"] == 0)[:, None, None]
        return {"image": x_t["image"], "depth": jnp.where(clean, 0.0, x_t["depth"])}

    found, constant = losses(predict), losses(zeros)
    assert {name for name in found if "/" not in name} == {
        "loss_image",
        "loss_depth",
        "loss_depth_given_image",
        "loss_image_given_depth",
    }
    given = "loss_depth_given_image/t0.3"
    assert found[given] == pytest.approx(constant[given], rel=1e-6)
    assert found["loss_depth/t0.3"] != pytest.approx(constant["loss_depth/t0.3"], rel=0.1)


def test_batches_do_not_change_the_losses():
    """Two batches of four have five records; the repeated ones do not count."""
    whole, parts = losses(lambda x_t, t: x_t), losses(lambda x_t, t: x_t, batch=4)
    assert whole == pytest.approx(parts, rel=1e-6)


def test_noise_depends_on_the_seed_alone():
    config = tiny.forcing()
    first, again = (losses(lambda x_t, t: x_t, config) for _ in range(2))
    other = losses(lambda x_t, t: x_t, replace(config, seed=config.seed + 1))
    assert first == again and first["loss_image"] != other["loss_image"]


def test_a_text_to_image_network_has_one_loss():
    assert {n for n in losses(zeros, tiny.t2i()) if "/" not in n} == {"loss_image"}
