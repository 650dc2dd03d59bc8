"""The sampler: exact arrival, conditions, guidance, solvers, independence of examples."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.diffusion import trajectories
from modality_forcing.diffusion.sampler import sample

SHAPES = {"image": (4, 6), "depth": (9, 2)}
X = {"image": "x", "depth": "x"}
KEYS = jax.random.split(jax.random.key(0), 3)
X0 = {n: jax.random.normal(jax.random.key(i), (3, *s)) for i, (n, s) in enumerate(SHAPES.items())}
SOLVERS = ["euler", "heun"]


def run(model, path, **options):
    options = {"text": None, "keys": KEYS, "shapes": SHAPES, "prediction_types": X, **options}
    return sample(model, {n: jnp.asarray(t) for n, t in path.schedule.items()}, **options)


def identity(noisy, t, text):
    return noisy


def noise_of(name: str, keys=KEYS) -> np.ndarray:
    """The noise the sampler starts from, returned by a model that moves nothing."""
    return np.asarray(run(identity, trajectories.joint(name, (), 1), keys=keys)[name])


def oracle(noisy, t, text):
    """Knows the data."""
    return {n: X0[n] for n in noisy}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 59, 200])
def test_last_step_ends_exactly_at_the_data(steps, solver):
    # From 59 steps on, the last one starts below the clamp: a step by the velocity stops short.
    out = run(
        oracle, trajectories.joint("image", ("depth",), steps, alpha=32.0, mu=1.1), solver=solver
    )
    for name in SHAPES:
        np.testing.assert_array_equal(out[name], X0[name])
        assert out[name].dtype == jnp.float32


@pytest.mark.parametrize("solver", SOLVERS)
def test_v_prediction_ends_at_the_data(solver):
    def model(noisy, t, text):
        level = {n: jnp.maximum(t[n], 1e-6)[:, None, None] for n in noisy}
        return {n: (X0[n] - noisy[n]) / level[n] for n in noisy}  # = x0 - eps on a straight path

    path = trajectories.joint("image", ("depth",), 20, alpha=4.0, mu=1.1)
    out = run(model, path, solver=solver, prediction_types={"image": "v", "depth": "v"})
    for name in SHAPES:
        np.testing.assert_allclose(out[name], X0[name], atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_model_is_called_along_the_schedule(solver):
    """On the straight path of an oracle, x_t is (1 - t) x0 + t eps at every level."""
    seen = []

    def model(noisy, t, text):
        jax.debug.callback(
            lambda *a: seen.append(a), noisy["image"], t["image"], t["depth"], ordered=True
        )
        return oracle(noisy, t, text)

    path = trajectories.joint("image", ("depth",), 5, alpha=4.0)
    jax.block_until_ready(run(model, path, solver=solver))
    eps = noise_of("image")
    for x_t, t, _ in seen:
        np.testing.assert_allclose(
            x_t, (1 - t[:, None, None]) * X0["image"] + t[:, None, None] * eps, atol=2e-5
        )
    expected = list(zip(path.schedule["image"][:-1], path.schedule["depth"][:-1], strict=True))
    if solver == "heun":  # two slopes a step but the last: here and at the next level
        ahead = list(zip(path.schedule["image"][1:], path.schedule["depth"][1:], strict=True))
        expected = [
            pair for both in zip(expected[:-1], ahead, strict=False) for pair in both
        ] + expected[-1:]
    np.testing.assert_allclose([(t[0], s[0]) for _, t, s in seen], expected, rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "path",
    [
        trajectories.conditional(("depth",), ("image",), 4, 1.1),
        trajectories.partial(("depth",), "image", 4, 8.0, mu=1.1),
    ],
)
def test_conditions_are_returned_unchanged(path, solver):
    mask = jax.random.bernoulli(jax.random.key(5), 0.5, X0["image"].shape)
    cond = {"image": (X0["image"], mask)}

    def model(noisy, t, text):
        return {n: 0.3 * x for n, x in noisy.items()}

    out = run(model, path, cond=cond, solver=solver)
    np.testing.assert_array_equal(out["image"], X0["image"])
    assert not np.allclose(out["depth"], X0["depth"])


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_conditions_are_noised_to_their_level_and_pure_noise_where_unobserved(alpha):
    seen = []

    def model(noisy, t, text):
        jax.debug.callback(lambda *a: seen.append(a), noisy["image"], t["image"], ordered=True)
        return {n: jnp.zeros_like(noisy[n]) for n in noisy}

    mask = jax.random.bernoulli(jax.random.key(5), 0.5, X0["image"].shape)
    path = trajectories.conditional(("depth",), ("image",), 4)
    if alpha is not None:
        path = trajectories.partial(("depth",), "image", 4, alpha)
    x0 = jnp.where(mask, X0["image"], jnp.nan)
    out = run(model, path, cond={"image": (x0, mask)})
    assert np.all(np.isfinite(out["depth"]))
    eps = noise_of("image")
    assert len(seen) == 4
    for (x_t, t), level in zip(seen, path.schedule["image"], strict=False):
        np.testing.assert_array_equal(t, np.full(3, level))
        np.testing.assert_array_equal(x_t[~mask], eps[~mask])
        np.testing.assert_allclose(
            x_t[mask], ((1 - level) * X0["image"] + level * eps)[mask], atol=1e-6
        )


TEXT = {"prompt": jnp.ones((3, 1))}
NULL = {"prompt": jnp.zeros((3, 1))}


def text_model(noisy, t, text):
    """Answers 2 to a text and 1 to none, in every modality."""
    return {
        n: jnp.broadcast_to(1.0 + text["prompt"][:, :, None], x.shape) for n, x in noisy.items()
    }


@pytest.mark.parametrize("solver", SOLVERS)
def test_guidance_on_the_image_leaves_the_depth_unguided(solver):
    path = trajectories.joint("image", ("depth",), 6, alpha=4.0)
    options = {"text": TEXT, "solver": solver}
    plain = run(text_model, path, **options)
    guided = run(text_model, path, guidance={"image": 4.0}, null_text=NULL, **options)
    np.testing.assert_array_equal(guided["depth"], plain["depth"])
    np.testing.assert_allclose(plain["image"], 2.0, atol=1e-6)
    np.testing.assert_allclose(guided["image"], 1.0 + 4.0 * (2.0 - 1.0), atol=1e-6)


def test_guidance_with_a_condition():
    path = trajectories.conditional(("image",), ("depth",), 3)
    cond = {"depth": (X0["depth"], jnp.ones(X0["depth"].shape, bool))}
    out = run(text_model, path, text=TEXT, null_text=NULL, guidance={"image": 3.0}, cond=cond)
    np.testing.assert_allclose(out["image"], 4.0, atol=1e-6)
    np.testing.assert_array_equal(out["depth"], X0["depth"])


def test_guidance_of_a_condition_alone_runs_the_model_once():
    sizes = []

    def model(noisy, t, text):
        sizes.append(noisy["image"].shape[0])
        return text_model(noisy, t, text)

    cond = {"image": (X0["image"], jnp.ones(X0["image"].shape, bool))}
    run(
        model,
        trajectories.conditional(("depth",), ("image",), 3),
        text=TEXT,
        guidance={"image": 4.0},
        cond=cond,
    )
    assert set(sizes) == {3}


def test_guidance_without_null_text_and_unknown_conditions_are_refused():
    path = trajectories.joint("image", (), 2)
    with pytest.raises(ValueError, match="null_text"):
        run(text_model, path, text=TEXT, guidance={"image": 4.0})
    with pytest.raises(ValueError, match="depth"):
        run(
            text_model,
            path,
            text=TEXT,
            cond={"depth": (X0["depth"], jnp.ones(X0["depth"].shape, bool))},
        )


def wiener(noisy, t, text, mean=0.0, deviation=0.5):
    """The optimal prediction of Gaussian data, whose flow ends at mean + deviation eps."""
    clean = {}
    for name, x in noisy.items():
        level = t[name][:, None, None]
        gain = (1 - level) * deviation**2 / ((1 - level) ** 2 * deviation**2 + level**2)
        clean[name] = mean + gain * (x - (1 - level) * mean)
    return clean


def test_heun_follows_a_linear_flow_better_than_euler():
    truth = 0.5 * noise_of("image")

    def error(solver: str, steps: int) -> float:
        out = run(wiener, trajectories.joint("image", (), steps), solver=solver)
        return float(np.sqrt(np.mean((out["image"] - truth) ** 2)))

    assert error("heun", 10) < 0.3 * error("euler", 20)  # for the same number of calls
    assert error("heun", 20) < error("heun", 10) / 3  # second order
    assert error("euler", 20) > error("euler", 10) / 3  # first


@pytest.mark.parametrize("steps", [10, 50, 200])
@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_gaussian_data_get_their_mean_and_spread(solver, order, steps):
    """Both converge to 0.7 +- 0.5: the mean at any number of steps, the spread by the order."""
    shapes, path = {"image": (4096, 2)}, trajectories.joint("image", (), steps)
    data = partial(wiener, mean=0.7)
    out = np.asarray(run(data, path, solver=solver, shapes=shapes)["image"])
    eps = np.asarray(run(identity, path, shapes=shapes)["image"])
    assert out.mean() == pytest.approx(0.7 + 0.5 * eps.mean(), abs=3e-4)
    assert out.std() == pytest.approx(0.5 * eps.std(), abs=1e-5 + steps**-order)


@pytest.mark.parametrize("solver", SOLVERS)
def test_examples_do_not_depend_on_their_batch(solver):
    path = trajectories.joint("image", ("depth",), 5, alpha=4.0)
    options = {"solver": solver, "guidance": {"image": 2.0}}

    def model(noisy, t, text):
        return {
            n: jnp.tanh(x) * t[n][:, None, None] + text["prompt"][:, :, None]
            for n, x in noisy.items()
        }

    whole = run(model, path, text=TEXT, null_text=NULL, **options)
    for rows in (np.array([1]), np.array([2, 0])):
        text, null = (jax.tree.map(lambda x, rows=rows: x[rows], tree) for tree in (TEXT, NULL))
        alone = run(model, path, text=text, null_text=null, keys=KEYS[rows], **options)
        for name in SHAPES:
            np.testing.assert_allclose(alone[name], whole[name][rows], rtol=1e-6, atol=1e-6)


def test_each_example_and_modality_has_its_own_noise():
    eps = noise_of("image")
    assert len(np.unique(eps)) == eps.size
    np.testing.assert_array_equal(noise_of("image", KEYS[1:]), eps[1:])
    assert not np.intersect1d(eps, noise_of("depth")).size


def test_noise_does_not_depend_on_the_order_of_generation():
    eps = noise_of("image")
    for path in (
        trajectories.joint("image", ("depth",), 1),
        trajectories.joint("depth", ("image",), 1),
    ):
        np.testing.assert_array_equal(run(identity, path)["image"], eps)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tokens_at_level_0_do_not_move(solver):
    def model(noisy, t, text):  # at t = 0 it has nothing sensible to say
        return {n: jnp.where(t[n][:, None, None] > 0, X0[n], 1e3) for n in noisy}

    path = trajectories.Trajectory({
        "image": np.array([1.0, 0.5, 0.0, 0.0, 0.0], np.float32),
        "depth": np.array([1.0, 0.8, 0.6, 0.3, 0.0], np.float32),
    })  # fmt: skip
    out = run(model, path, solver=solver)
    for name in SHAPES:
        np.testing.assert_array_equal(out[name], X0[name])


@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling_under_jit(solver):
    path = trajectories.joint("image", ("depth",), 3, alpha=2.0)
    jitted = jax.jit(lambda keys: run(wiener, path, keys=keys, solver=solver))(KEYS)
    plain = run(wiener, path, solver=solver)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jitted, plain)
