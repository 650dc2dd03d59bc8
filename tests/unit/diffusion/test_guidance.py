"""Guidance by given modalities: closed forms, what is evaluated, and what it leaves untouched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.diffusion import trajectories
from modality_forcing.diffusion.guidance import Guidance, select
from modality_forcing.diffusion.sampler import sample

SHAPES = {"image": (4, 6), "depth": (9, 2), "normals": (3, 3)}
KEYS = jax.random.split(jax.random.key(0), 3)
X0 = {n: jax.random.normal(jax.random.key(i), (3, *s)) for i, (n, s) in enumerate(SHAPES.items())}
TEXT, NULL = {"prompt": jnp.ones((3, 1))}, {"prompt": jnp.zeros((3, 1))}
D2I = trajectories.conditional(("image",), ("depth",), 8)
DN2I = trajectories.conditional(("image",), ("depth", "normals"), 8)
SOLVERS = ["euler", "heun"]


def run(model, path=D2I, *names: str, keys=KEYS, **options):
    names = names or ("depth",)
    cond = {n: (X0[n][: len(keys)], jnp.ones(X0[n][: len(keys)].shape, bool)) for n in names}
    options = {"text": TEXT, "null_text": NULL, "cond": cond, **options}
    schedule = {n: jnp.asarray(t) for n, t in path.schedule.items()}
    types = dict.fromkeys(SHAPES, "x")
    return sample(model, schedule, keys, shapes=SHAPES, prediction_types=types, **options)


def noise(name: str):
    return run(lambda x, t, text: x, trajectories.joint(name, (), 1), cond=None)[name]


def wiener(x, level, mean, deviation):
    """The best estimate of Gaussian data from x at a noise level [b]."""
    level = level[:, None, None]
    gain = (1 - level) * deviation**2 / ((1 - level) ** 2 * deviation**2 + level**2)
    return mean + gain * (x - (1 - level) * mean)


def gaussian(means: dict[str, float], spread: float = 1.0):
    """Images N(sum of the means of what is given, 0.5 or, given depth, (0.5 spread)^2)."""

    def model(noisy, t, text):
        mean = 0.1 + means["text"] * text["prompt"][:, :, None]
        for name in noisy.keys() & means.keys():
            mean = mean + jnp.where(t[name] < 1, means[name], 0.0)[:, None, None]
        deviation = 0.5 * jnp.where(t["depth"] < 1, spread, 1.0)[:, None, None]
        out = {"image": wiener(noisy["image"], t["image"], mean, deviation)}
        return {n: out.get(n, jnp.zeros_like(x)) for n, x in noisy.items()}

    return model


@pytest.mark.parametrize(
    ("scale", "weight", "solver"), [(1.0, 0.5, "euler"), (4.0, 3.0, "euler"), (4.0, 3.0, "heun")]
)
def test_mean_of_gaussian_data_moves_by_the_weights(scale, weight, solver):
    """Where conditions only shift the mean, the guided mean is that of weighted shifts."""
    model = gaussian({"text": 0.3, "depth": -0.7, "normals": 0.2})
    weights = {"depth": weight, "normals": 2.0}
    options = {"guidance": {"image": scale}, "condition_guidance": weights, "solver": solver}
    made = run(model, DN2I, "depth", "normals", **options)
    zero = run(gaussian({"text": 0.0}), DN2I, "depth", "normals", solver=solver)
    shift = scale * 0.3 - weight * 0.7 + 2 * 0.2
    np.testing.assert_allclose(made["image"], zero["image"] + shift, atol=1e-5)


def test_spread_of_gaussian_data_shrinks_by_the_power_of_the_weight():
    """Spread 0.5 absent, 0.5 r given: the guided flow ends at 0.5 r^w."""
    path = trajectories.conditional(("image",), ("depth",), 200)
    model = gaussian({"text": -0.1}, spread=0.6)  # of mean 0
    out = run(model, path, condition_guidance={"depth": 3.0}, solver="heun")["image"]
    np.testing.assert_allclose(out, 0.5 * 0.6**3 * noise("image"), atol=2e-3)


def random_model(noisy, t, text):
    """Reads everything: a change of any input changes every output."""
    parts = [jnp.sin(3 * x).mean((1, 2)) * (2 - t[n]) for n, x in sorted(noisy.items())]
    mixed = sum(i * part for i, part in enumerate(parts, 1)) + text["prompt"][:, 0]
    return {n: jnp.tanh(x + jnp.sin(mixed)[:, None, None]) for n, x in noisy.items()}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("path", [D2I, trajectories.partial(("image",), "depth", 5, 2.0)])
def test_weight_1_is_the_same_program(path, solver):
    """The same operations, so the same bits and evaluations; text guidance included."""

    def traced(weights):
        options = {"guidance": {"image": 3.0}, "condition_guidance": weights, "solver": solver}
        return str(jax.make_jaxpr(lambda: run(random_model, path, **options))())

    assert traced({"depth": 1.0, "image": 7.0}) == traced(None)  # the image is not given
    assert traced({"depth": 2.0}) != traced(None)


def test_weight_0_samples_as_if_nothing_were_given():
    cond = {"depth": (X0["depth"], jnp.zeros(X0["depth"].shape, bool))}  # nothing observed
    options = {"guidance": {"image": 3.0}}
    levels = {**D2I.schedule, "depth": np.ones_like(D2I.schedule["depth"])}
    absent = sample(
        random_model,
        {n: jnp.asarray(t) for n, t in levels.items()},
        KEYS,
        shapes=SHAPES,
        prediction_types=dict.fromkeys(SHAPES, "x"),
        text=TEXT,
        null_text=NULL,
        cond=cond,
        **options,
    )
    made = run(random_model, condition_guidance={"depth": 0.0}, **options)
    np.testing.assert_array_equal(made["image"], absent["image"])
    np.testing.assert_array_equal(made["depth"], X0["depth"])
    assert not np.allclose(made["image"], run(random_model, **options)["image"], atol=1e-3)


def test_evaluations_are_one_batch_of_what_is_needed():
    seen = []

    def model(noisy, t, text):
        values = (noisy["depth"], t["depth"], t["normals"], text["prompt"])
        jax.debug.callback(lambda *x: seen.append(x), *values, ordered=True)
        return random_model(noisy, t, text)

    options = {"guidance": {"image": 3.0}, "condition_guidance": {"normals": 3.0, "depth": 2.0}}
    path = trajectories.Trajectory({**DN2I.schedule, "normals": D2I.schedule["image"]})
    jax.block_until_ready(run(model, path, "depth", "normals", **options))
    assert len(seen) == 8  # steps
    for (depth, t_depth, t_normals, prompt), level in zip(
        seen, path.schedule["normals"][:-1], strict=True
    ):
        # Everything, no text, no depth, no normals: three examples of each.
        np.testing.assert_array_equal(prompt[:, 0], np.repeat([1, 0, 1, 1], 3))
        np.testing.assert_array_equal(t_depth, np.repeat([0, 0, 1, 0], 3))
        np.testing.assert_array_equal(t_normals, np.repeat([level, level, level, 1], 3))
        np.testing.assert_array_equal(depth[:3], X0["depth"])
        np.testing.assert_array_equal(depth[6:9], noise("depth"))  # the example's own


def test_examples_do_not_depend_on_their_batch():
    options = {"guidance": {"image": 2.0}, "condition_guidance": {"depth": 2.0}}
    whole = run(random_model, **options)
    alone = run(
        random_model,
        keys=KEYS[:1],
        **options,
        text={"prompt": TEXT["prompt"][:1]},
        null_text={"prompt": NULL["prompt"][:1]},
    )
    # The weights, 2 + 1 + 1 in size, multiply the rounding, which depends on the batch.
    np.testing.assert_allclose(alone["image"], whole["image"][:1], rtol=1e-6, atol=4e-6)


def test_a_weight_guides_all_that_is_generated_and_the_text_only_what_it_names():
    path = trajectories.conditional(("image", "normals"), ("depth",), 4)

    def model(noisy, t, text):
        """Answers 2 to a text, 1 to none, and 10 more to depth."""
        y = 1 + text["prompt"] + 10 * (t["depth"] < 1)[:, None]
        return {n: jnp.broadcast_to(y[:, :, None], x.shape) for n, x in noisy.items()}

    out = run(model, path, guidance={"image": 4.0}, condition_guidance={"depth": 2.0})
    np.testing.assert_allclose(out["image"], 1 + 4 * 1 + 2 * 10, atol=1e-5)
    np.testing.assert_allclose(out["normals"], 1 + 1 + 2 * 10, atol=1e-5)


@settings(max_examples=30)
@given(
    st.lists(st.floats(-2, 8), min_size=3, max_size=3),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0]), min_size=2, max_size=2),
)
def test_evaluations_are_counted_and_their_coefficients_sum_to_1(scales, weights):
    guide = select(
        ("image", "x", "y"),
        ("depth", "normals"),
        dict(zip(("image", "x", "y"), scales, strict=True)),
        tuple(zip(("depth", "normals"), weights, strict=True)),
    )
    assert guide.evaluations == 1 + any(s != 1 for s in scales) + sum(
        w not in (0, 1) for w in weights
    )
    equal = [jnp.float32(5.0)] * guide.evaluations
    for name in ("image", "x", "y"):
        np.testing.assert_allclose(guide._combine(name, equal), 5.0, rtol=1e-5)


def test_nothing_is_guided_by_default():
    assert select(("image",), ("depth",)) == Guidance({}, {}, frozenset())
