"""Trajectories: the tilt, schedules from noise to data, refused schedules."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.diffusion.noise_levels import timestep_shift
from modality_forcing.diffusion.trajectories import (
    Trajectory,
    conditional,
    joint,
    partial,
    resolution_shift,
    tilt,
    timesteps,
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
def test_tilt_adds_ln_alpha_to_the_shift(t, alpha, mu):
    np.testing.assert_allclose(
        tilt(timestep_shift(jnp.float32(t), mu), alpha),
        timestep_shift(jnp.float32(t), mu + math.log(alpha)),
        rtol=2e-5,
    )


@given(alpha=ALPHA, steps=STEPS, mu=MU)
def test_tilt_keeps_the_ends_and_stays_inside(alpha, steps, mu):
    tilted = np.asarray(tilt(timesteps(steps, mu), alpha))
    assert tilted[0] == 1.0 and tilted[-1] == 0.0
    assert np.all(np.diff(tilted) < 0)


def test_paper_setting_leaves_depth_noisy_before_its_last_step():
    t = timesteps(50, 1.1)
    assert t[-2] == pytest.approx(0.0578, abs=5e-5)
    assert tilt(t, 32.0)[-2] == pytest.approx(0.662, abs=5e-4)
    # 59 steps are the fewest whose last one starts below the clamp of x-prediction's velocity.
    assert timesteps(58, 1.1)[-2] >= 0.05 > timesteps(59, 1.1)[-2]


def test_unshifted_timesteps_are_uniform():
    np.testing.assert_allclose(timesteps(4), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("tokens", "steps", "mu"),
    [
        (256, 4, 1.965567),
        (1024, 4, 2.030690),
        (1024, 28, 1.859177),
        (1024, 50, 1.701956),
        (4096, 4, 2.291180),
        (4096, 28, 2.151443),
        (4096, 50, 2.023351),
        (8100, 4, 1.827754),
        (8100, 50, 1.827754),
    ],
)
def test_shift_of_flux2_has_the_values_of_the_public_code(tokens, steps, mu):
    """Of diffusers 0.42's compute_empirical_mu."""
    assert resolution_shift(tokens, steps) == pytest.approx(mu, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "levels"),
    [(4096, [1, 0.967384, 0.908144, 0.767200, 0]), (1024, [1, 0.958085, 0.883982, 0.717497, 0])],
)
def test_four_steps_of_flux2_have_the_levels_of_the_public_code(tokens, levels):
    np.testing.assert_allclose(timesteps(4, resolution_shift(tokens, 4)), levels, atol=1e-6)


def test_fifty_steps_of_modality_forcing_have_the_levels_of_the_public_code():
    path = joint("image", ("depth",), 50, alpha=32.0, mu=1.1).schedule
    image = {1: 0.993253, 25: 0.750260, 40: 0.428911, 48: 0.111248, 49: 0.057768, 50: 0}
    depth = {1: 0.999788, 25: 0.989705, 40: 0.960053, 49: 0.662379, 50: 0}
    for name, levels in (("image", image), ("depth", depth)):
        np.testing.assert_allclose(path[name][list(levels)], list(levels.values()), atol=1e-6)


def test_joint_tilts_all_but_the_primary():
    path = joint("image", ("depth", "normals"), 10, alpha=4.0, mu=1.1)
    assert list(path.schedule) == ["image", "depth", "normals"] and path.steps == 10
    np.testing.assert_array_equal(path.schedule["image"], timesteps(10, 1.1))
    for name in ("depth", "normals"):
        np.testing.assert_allclose(path.schedule[name], tilt(timesteps(10, 1.1), 4.0), rtol=1e-6)
    # The image comes first.
    assert np.all(path.schedule["depth"][1:-1] > path.schedule["image"][1:-1])
    depth_first = joint("image", ("depth",), 10, alpha=0.25, mu=1.1)
    assert np.all(depth_first.schedule["depth"][1:-1] < depth_first.schedule["image"][1:-1])


@given(alpha=ALPHA, steps=STEPS, mu=MU)
def test_every_joint_path_is_valid(alpha, steps, mu):
    assert joint("image", ("depth",), steps, alpha=alpha, mu=mu).steps == steps


def test_depth_ahead_of_its_image_waits_at_the_lowest_level_of_training():
    free = joint("image", ("depth", "normals"), 10, alpha=1 / 32)
    path = joint("image", ("depth", "normals"), 10, alpha=1 / 32, least={"depth": 0.05})
    for name in ("image", "normals"):
        np.testing.assert_array_equal(path.schedule[name], free.schedule[name])
    depth = [1, 9 / 41, 1 / 9, 7 / 103, *[0.05] * 6, 0]
    np.testing.assert_allclose(path.schedule["depth"], depth, rtol=1e-5)
    assert free.schedule["depth"][-2] < 0.004
    both = joint("image", ("depth",), 50, alpha=1 / 32, least={"depth": 0.05})
    np.testing.assert_allclose(both.schedule["depth"][-4:], [0.05, 0.04, 0.02, 0], rtol=1e-5)


@given(log2_alpha=st.floats(0.0, 5.0), steps=STEPS, mu=MU, least=st.floats(0.0, 1.0))
def test_depth_that_is_not_ahead_never_waits(log2_alpha, steps, mu, least):
    plain = joint("image", ("depth",), steps, alpha=2.0**log2_alpha, mu=mu)
    path = joint("image", ("depth",), steps, alpha=2.0**log2_alpha, mu=mu, least={"depth": least})
    np.testing.assert_allclose(path.schedule["depth"], plain.schedule["depth"], atol=1e-7)


def test_conditional_trajectory_keeps_the_condition_clean():
    path = conditional(("depth",), ("image",), 5, 1.1)
    np.testing.assert_array_equal(path.schedule["depth"], timesteps(5, 1.1))
    np.testing.assert_array_equal(path.schedule["image"], np.zeros(6))


@pytest.mark.parametrize("alpha", [1 / 32, 1.0, 3.3, 32.0])
def test_partial_tilts_the_condition(alpha):
    path = partial(("image",), "depth", 7, alpha, mu=1.1)
    np.testing.assert_array_equal(path.schedule["image"], timesteps(7, 1.1))
    np.testing.assert_allclose(path.schedule["depth"], tilt(timesteps(7, 1.1), alpha), rtol=1e-6)


def test_partial_condition_is_clean_below_the_lowest_level_of_training():
    path = partial(("image",), "depth", 10, 1 / 32, least=0.05)
    depth = [1, 9 / 41, 1 / 9, 7 / 103, *[0] * 7]
    np.testing.assert_allclose(path.schedule["depth"], depth, rtol=1e-5)


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
def test_invalid_schedules_are_refused(levels):
    with pytest.raises(ValueError, match="level"):
        Trajectory(levels)
