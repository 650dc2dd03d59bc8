"""The depth modality: tokens depend neither on the unit nor on the fill of invalid pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.diffusion.flow import add_noise
from modality_forcing.modalities import base
from modality_forcing.modalities.depth import MARGIN, contract, expand, unit_mean
from tests import tiny

DEPTH = base.build(tiny.forcing())["depth"]
BATCH = {k: v for k, v in tiny.batch(tiny.forcing()).items() if k in ("depth", "valid")}


def to_tokens(depth=BATCH["depth"], valid=BATCH["valid"]):
    batch = {"depth": jnp.asarray(depth), "valid": jnp.asarray(valid)}
    return jax.tree.map(np.asarray, DEPTH.to_tokens(batch))


@pytest.mark.parametrize(("z", "y"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (2.0, 1.5), (10.0, 1.9)])
def test_contraction_of_known_depths(z, y):
    assert float(contract(jnp.float32(z))) == pytest.approx(y, rel=1e-6)
    if z:
        assert float(expand(jnp.float32(y))) == pytest.approx(z, rel=1e-5)


@given(z=st.floats(2e-3, 500.0))
def test_expand_inverts_contract(z):
    assert float(expand(contract(jnp.float32(z)))) == pytest.approx(z, rel=2e-4)


@given(y=st.floats(-1e3, 1e3))
def test_any_prediction_becomes_a_positive_finite_depth(y):
    z = float(expand(jnp.float32(y)))
    assert 0 < z <= 1001 and float(expand(jnp.float32(2.0))) == pytest.approx(1 / MARGIN, rel=1e-3)


def test_contraction_has_a_gradient_everywhere():
    grad = jax.vmap(jax.grad(contract))(jnp.array([0.0, 0.5, 1.0, 2.0, 1e6]))
    np.testing.assert_allclose(grad, [1, 1, 1, 0.25, 0], atol=1e-6)


def test_mean_is_over_the_valid_pixels_of_each_example():
    depth, valid = BATCH["depth"].astype(np.float64), BATCH["valid"]
    out = np.asarray(unit_mean(jnp.asarray(BATCH["depth"]), jnp.asarray(valid)))
    for i in range(len(depth)):
        np.testing.assert_allclose(
            out[i][valid[i]], (depth[i] / depth[i][valid[i]].mean())[valid[i]], rtol=1e-5
        )
        assert np.all(out[i][~valid[i]] == 0.0)


def test_tokens_do_not_depend_on_the_batch():
    x0, mask = to_tokens()
    for i in range(len(x0)):
        alone, mask_alone = to_tokens(BATCH["depth"][i : i + 1], BATCH["valid"][i : i + 1])
        np.testing.assert_array_equal(alone[0], x0[i])
        np.testing.assert_array_equal(mask_alone[0], mask[i])


@pytest.mark.parametrize("scale", [2.0**-20, 0.25, 1024.0, 2.0**40])
def test_unit_that_is_a_power_of_two_changes_no_bit(scale):
    np.testing.assert_array_equal(to_tokens(BATCH["depth"] * np.float32(scale))[0], to_tokens()[0])


@given(scale=st.floats(1e-12, 1e12))
def test_no_unit_changes_the_tokens(scale):
    np.testing.assert_allclose(
        to_tokens(BATCH["depth"] * np.float32(scale))[0], to_tokens()[0], rtol=1e-6, atol=1e-7
    )


def test_meters_and_millimeters_give_the_same_tokens():
    np.testing.assert_allclose(
        to_tokens(BATCH["depth"] * np.float32(1000))[0], to_tokens()[0], rtol=1e-6
    )


@pytest.mark.parametrize("fill", [0.0, -5.0, np.nan, np.inf, 1e38])
def test_fill_of_invalid_pixels_changes_no_bit(fill):
    filled = np.where(BATCH["valid"], BATCH["depth"], np.float32(fill))
    (x0, mask), (x0_filled, mask_filled) = to_tokens(), to_tokens(filled)
    np.testing.assert_array_equal(mask, mask_filled)
    np.testing.assert_array_equal(x0, x0_filled)
    eps, t = jax.random.normal(jax.random.key(0), x0.shape), jnp.full(len(x0), 0.3)
    x_t = [add_noise(jnp.asarray(x), eps, t, jnp.asarray(mask)) for x in (x0, x0_filled)]
    np.testing.assert_array_equal(*x_t)
    assert np.all(np.isfinite(x0_filled))


def test_mask_is_cut_like_the_image():
    valid = np.zeros_like(BATCH["valid"])
    valid[:, 5, 14] = True
    depth = np.where(valid, 3.0, np.nan).astype(np.float32)
    x0, mask = to_tokens(depth, valid)
    assert mask.shape == x0.shape == (4, *DEPTH.shape) == (4, 16, 16)
    for i in range(4):
        assert np.argwhere(mask[i]).tolist() == [[4 + 3, 1 * 4 + 2]]
    np.testing.assert_array_equal(x0[mask], np.ones(4))  # a single pixel is its own mean


def test_map_without_valid_pixels_is_finite_and_unobserved():
    x0, mask = to_tokens(np.full_like(BATCH["depth"], np.nan), np.zeros_like(BATCH["valid"]))
    assert np.all(x0 == 0.0) and not mask.any()


def test_from_tokens_inverts_to_tokens_up_to_scale():
    everywhere = np.ones_like(BATCH["valid"])
    x0, _ = to_tokens(valid=everywhere)
    out = np.asarray(DEPTH.from_tokens(jnp.asarray(x0)))
    truth = BATCH["depth"] / BATCH["depth"].mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(out, truth, rtol=1e-4)
