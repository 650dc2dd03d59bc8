"""The coordinate check measures the network's own pass and finds unscaled learning rates."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.train.coord_check import (
    DEFAULT,
    STEPS,
    Row,
    measure,
    pass_mean_squares,
    plot,
    slopes,
    table,
)
from modality_forcing.train.state import init_params
from modality_forcing.train.width_scaling import scale_width
from modality_forcing.tree import flatten
from modality_forcing.viz import figures
from tests import tiny

WIDTHS = (32, 128)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return measure(widths=WIDTHS, seeds=1)


def test_squares_are_those_of_the_network_s_own_pass():
    config = tiny.forcing()
    graph, params = tiny.network(config)
    rng = np.random.default_rng(0)
    modalities = base.build(config)
    noisy = {
        n: jnp.asarray(rng.standard_normal((2, *m.shape)), jnp.float32)
        for n, m in modalities.items()
    }
    t = dict.fromkeys(modalities, jnp.full(2, 0.5))
    text = jax.tree.map(lambda x: jnp.asarray(x[:2]), tiny.batch(config)["text"])
    actual = jax.jit(lambda p: pass_mean_squares(graph, p, noisy, t, text))(params)
    whole = jax.jit(lambda p: nnx.merge(graph, p)(noisy, t, text))(params)
    for name, y in whole.items():
        np.testing.assert_allclose(
            actual[f"prediction: {name}"], jnp.mean(jnp.square(y)), rtol=1e-4
        )
    assert {"tokens", "modulation", "attention", "mlp", "stream: 2/4", "stream: 4/4"} <= set(actual)


def test_every_width_and_step_is_measured(rows):
    kinds = {row.quantity for row in rows}
    assert kinds == {
        "tokens",
        "modulation",
        *(f"stream: {i}/4" for i in (1, 2, 3, 4)),
        "attention",
        "mlp",
        "prediction: image",
    }
    assert len(rows) == len(kinds) * len(WIDTHS) * (STEPS + 1) * 2
    at = {(r.transfer, r.width, r.step, r.quantity): r.scale for r in rows}
    for (transfer, width, step, quantity), scale in at.items():
        if width == WIDTHS[0] or step == 0:  # where both kinds of runs are one
            assert scale == pytest.approx(at[not transfer, width, step, quantity], rel=1e-4)
    assert at[True, 32, 0, "prediction: image"] == 0 < at[True, 32, 1, "prediction: image"]


def test_first_update_of_a_head_grows_with_width_only_without_scaling(rows):
    actual = {(s.transfer, s.step, s.quantity): s.slope for s in slopes(rows)}
    assert actual[True, 1, "prediction: image"] == pytest.approx(0.0, abs=0.05)
    assert actual[False, 1, "prediction: image"] == pytest.approx(1.0, abs=0.05)
    for name in ("tokens", "stream: 4/4", "attention", "mlp"):
        assert abs(actual[True, STEPS, name]) < 0.1
    assert actual[False, STEPS, "modulation"] > 0.3


def test_initial_weights_have_the_documented_variance():
    """Matrices have variance 1 / fan-in, tables and gains scale 1, heads and gates are zero."""
    config = scale_width(DEFAULT, 192)
    params = init_params(config, base.build(config))
    flat = {path: np.asarray(w) for path, w in flatten(params).items()}
    for path, w in flat.items():
        last = path.split("/")[-1]
        gate = path.endswith(("modulation/w", "linear/w")) and path not in (
            "text_embedder/linear/w",
            "head/image/modulation/w",
        )
        if gate or last == "offset" or path.startswith("level_gate_cross/"):
            assert not w.any(), path
        elif last in ("q_scale", "k_scale"):
            assert np.all(w == 1), path
        elif last in tiny.MATRICES:
            wanted = 1.0 if last == "table" else 1 / math.sqrt(w.shape[-2])
            assert w.std() == pytest.approx(wanted, rel=0.02), path


def test_slope_is_the_power_of_the_width():
    made = [Row(True, w, 0, "a", 3 * w**0.5) for w in (64, 128, 256)] + [
        Row(True, w, 0, "b", 0.0) for w in (64, 128)
    ]
    made += [Row(True, w, 0, "c", x) for w, x in ((64, 1.0), (128, math.nan))]
    a, b, c = slopes(made)
    assert a.slope == pytest.approx(0.5) and not a.flat
    assert b.slope == 0 and b.flat
    assert math.isnan(c.slope) and not c.flat


def test_table_names_quantities_that_are_not_flat(rows):
    exact = [
        Row(r.transfer, r.width, r.step, r.quantity, 0.5 if r.transfer else r.width / 64)
        for r in rows
    ]
    actual = table(exact, slopes(exact))
    assert "\nFLAT: all slopes within 0.1" in actual and "| +1.00 | not flat |" in actual
    bent = [
        replace(r, scale=r.width**0.3) if r.transfer and r.quantity == "mlp" and r.step == 5 else r
        for r in exact
    ]
    assert "NOT FLAT: 1 slopes beyond 0.1; the steepest is mlp at step 5, +0.300" in table(
        bent, slopes(bent)
    )


def test_figure_is_saved(rows, tmp_path):
    with figures.style():
        png, svg = figures.save(plot(rows), tmp_path / "coord_check")
    assert png.stat().st_size > 10_000 and "prediction" in svg.read_text()


@pytest.mark.parametrize(
    ("widths", "message"),
    [((64,), "one width shows no slope"), ((64, 100), "width 100 does not divide")],
)
def test_useless_widths_are_refused(widths, message):
    with pytest.raises(UserError, match=message):
        measure(widths=widths)
