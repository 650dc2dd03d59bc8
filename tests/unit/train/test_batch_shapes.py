"""A batch's shapes are those of the batches that the pipeline yields."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from configs import forcing
from modality_forcing.modalities import base
from modality_forcing.train.batch_shapes import abstract_batch, random_batch
from tests import tiny


def test_abstract_batch_has_the_shapes_of_a_real_batch():
    config = tiny.forcing()
    shapes = abstract_batch(config, base.build(config))
    real = tiny.batch(config, config.train.batch)
    actual = jax.tree.map(
        lambda s: (s.shape, s.dtype), shapes, is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct)
    )
    assert actual == jax.tree.map(lambda x: (x.shape, x.dtype), real)


def test_t2i_batch_has_no_depth():
    config = tiny.t2i()
    assert set(abstract_batch(config, base.build(config), batch=2)) == {"image", "text", "index"}


def test_batch_of_the_family_has_latents_and_text_states():
    config = forcing.get_config("size=800m")
    batch = abstract_batch(config, base.build(config), batch=3)
    assert batch["latent"].shape == (3, 16, 16, 128) and batch["latent"].dtype == jax.numpy.bfloat16
    assert batch["text"]["tokens"].shape == (3, 128, 4096) and batch["depth"].shape == (3, 256, 256)


def test_random_batch_has_targets_in_every_example():
    config = replace(tiny.forcing(), seed=1)
    batch = random_batch(abstract_batch(config, base.build(config)))
    assert 0.2 < batch["valid"].mean() < 0.8 and (batch["depth"] > 0).all()
    assert sorted(batch["index"]) == list(range(len(batch["index"])))
    assert (
        np.isfinite(batch["depth"]).all() and batch["text"]["tokens"].max() < config.text.vocab_size
    )
