"""Trajectories: the tilt as a group, every path from noise to data, and what is not a path refused."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.diffusion.noise_levels import shift
from modality_forcing.diffusion.trajectories import (
    Trajectory,
    arc_grid,
    conditional,
    grid,
    joint,
    partial,
    tilt,
)

ALPHA = st.floats(-5.0, 5.0).map(lambda x: 2.0**x)
STEPS = st.sampled_from([1, 2, 7, 50])  # each length compiles anew
MU = st.floats(-2.0, 2.0)


def test_no_tilt_is_the_identity():
    t = np.linspace(0, 1, 101)
    np.testing.assert_array_equal(tilt(t, 2.0**0), t)


def test_tilt_is_the_published_curve():
    t = np.linspace(0, 1, 101)
    for alpha in (1 / 32, 0.3, 2.0, 32.0):
        np.testing.assert_allclose(tilt(t, alpha), alpha * t / (1 + (alpha - 1) * t), rtol=1e-12)


@given(t=st.floats(0.001, 0.999), alpha=ALPHA, mu=MU)
def test_tilt_after_shift_is_a_shift_by_ln_alpha_more(t, alpha, mu):
    np.testing.assert_allclose(
        tilt(shift(jnp.float32(t), mu), alpha),
        shift(jnp.float32(t), mu + math.log(alpha)),
        rtol=2e-5,
    )


@given(alpha=ALPHA, steps=STEPS, mu=MU)
def test_tilt_keeps_the_ends_and_stays_inside(alpha, steps, mu):
    tilted = np.asarray(tilt(grid(steps, mu), alpha))
    assert tilted[0] == 1.0 and tilted[-1] == 0.0
    assert np.all(np.diff(tilted) < 0)


def test_the_paper_s_setting_leaves_depth_far_from_clean_before_its_last_step():
    t = grid(50, 1.1)
    assert t[-2] == pytest.approx(0.0578, abs=5e-5)
    assert tilt(t, 32.0)[-2] == pytest.approx(0.662, abs=5e-4)
    # 59 steps are the fewest whose last one starts below the clamp of x-prediction's velocity.
    assert grid(58, 1.1)[-2] >= 0.05 > grid(59, 1.1)[-2]


def test_an_unshifted_grid_is_uniform():
    np.testing.assert_allclose(grid(4), [1, 0.75, 0.5, 0.25, 0])


@given(alpha=ALPHA, steps=STEPS, mu=MU)
def test_an_arc_runs_from_noise_to_data_and_only_falls(alpha, steps, mu):
    for t in arc_grid(steps, alpha, mu):
        assert len(t) == steps + 1
        assert t[0] == 1.0 and t[-1] == 0.0
        assert np.all(np.diff(t) <= 0) and np.all((t >= 0) & (t <= 1))


@given(alpha=ALPHA, mu=MU)
def test_an_arc_stays_on_the_tilted_path(alpha, mu):
    lead, other = arc_grid(40, alpha, mu)
    on = (
        (lead > 0) & (lead < 1) & (other > 0) & (other < 1)
    )  # between the ends, where one may wait for the other
    np.testing.assert_allclose(other[on], tilt(lead[on], alpha), rtol=1e-4)


def test_an_arc_spends_its_steps_where_either_modality_moves():
    uniform = tilt(grid(50, 1.1), 32.0)
    lead, other = arc_grid(50, 32.0, 1.1)
    assert other[-2] < 0.1 < uniform[-2]
    assert np.abs(np.diff(other)).max() < 0.2 < np.abs(np.diff(uniform)).max()
    # Equal steps in log-SNR, both modalities counted together.
    with np.errstate(divide="ignore"):
        logits = [
            np.clip(np.log(t) - np.log1p(-t), -5, 5)
            for t in (lead.astype(np.float64), other.astype(np.float64))
        ]
    lengths = np.linalg.norm(np.diff(logits, axis=1), axis=0)
    assert lengths.max() / lengths.min() < 1.3  # a step that turns a corner of the path cuts it


def test_joint_is_one_lead_and_the_others_tilted():
    path = joint("image", ("depth", "normals"), 10, alpha=4.0, mu=1.1)
    assert list(path.levels) == ["image", "depth", "normals"] and path.steps == 10
    np.testing.assert_array_equal(path.levels["image"], grid(10, 1.1))
    for name in ("depth", "normals"):
        np.testing.assert_allclose(path.levels[name], tilt(grid(10, 1.1), 4.0), rtol=1e-6)
    assert np.all(path.levels["depth"][1:-1] > path.levels["image"][1:-1])  # the image comes first
    depth_first = joint("image", ("depth",), 10, alpha=0.25, mu=1.1)
    assert np.all(depth_first.levels["depth"][1:-1] < depth_first.levels["image"][1:-1])


def test_joint_can_be_spaced_by_arc():
    path = joint("image", ("depth",), 10, alpha=32.0, mu=1.1, spacing="arc")
    lead, other = arc_grid(10, 32.0, 1.1)
    np.testing.assert_array_equal(path.levels["image"], lead)
    np.testing.assert_array_equal(path.levels["depth"], other)


@given(alpha=ALPHA, steps=STEPS, mu=MU, spacing=st.sampled_from(["uniform", "arc"]))
def test_every_joint_path_is_valid(alpha, steps, mu, spacing):
    assert joint("image", ("depth",), steps, alpha, mu, spacing).steps == steps


def test_conditional_holds_the_given_clean():
    path = conditional(("depth",), ("image",), 5, 1.1)
    np.testing.assert_array_equal(path.levels["depth"], grid(5, 1.1))
    np.testing.assert_array_equal(path.levels["image"], np.zeros(6))


@pytest.mark.parametrize("alpha", [1 / 32, 1.0, 3.3, 32.0])
def test_partial_lets_the_given_follow_the_target(alpha):
    path = partial("image", "depth", 7, alpha, 1.1)
    np.testing.assert_array_equal(path.levels["image"], grid(7, 1.1))
    np.testing.assert_allclose(path.levels["depth"], tilt(grid(7, 1.1), alpha), rtol=1e-6)


@pytest.mark.parametrize(
    "levels",
    [
        {},
        {"image": np.array([0.0])},
        {"image": np.array([1.0, 0.0]), "depth": np.array([1.0, 0.5, 0.0])},
        {"image": np.array([1.0, 0.2, 0.4, 0.0])},
        {"image": np.array([1.0, 0.5])},
        {"image": np.array([1.1, 0.0])},
        {"image": np.array([1.0, -0.1, 0.0])},
        {"image": np.array([1.0, np.nan, 0.0])},
    ],
    ids=["nothing", "one level", "two lengths", "rising", "not to 0", "above 1", "below 0", "NaN"],
)
def test_what_is_not_a_path_is_refused(levels):
    with pytest.raises(ValueError, match="level"):
        Trajectory(levels)
