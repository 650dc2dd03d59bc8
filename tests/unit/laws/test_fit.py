"""The published optimum, known laws recovered, coverage of intervals, unidentified parameters."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.optimize import minimize

from modality_forcing.errors import UserError
from modality_forcing.laws import solver
from modality_forcing.laws.fit import Fit, fit, interval, optimum, project
from modality_forcing.laws.forms import FORMS, Design, parse
from modality_forcing.laws.table import Table, load
from tests.unit.laws.grid import TRUE, grid_table, theta_of

CHINCHILLA, POWER = FORMS["chinchilla"], FORMS["power"]
# Besiroglu et al. 2024 (2404.10102), table 1, to the digits published
PUBLISHED = {
    "E": (1.8172, 0.03),
    "A": (482.01, 124.58),
    "B": (2085.43, 1293.23),
    "alpha": (0.3478, 0.02),
    "beta": (0.3658, 0.02),
}
BEST = {"E": 1.8172, "A": 477.8, "alpha": 0.3473, "B": 2143, "beta": 0.3672}


@pytest.fixture(scope="module")
def hoffmann(real_data) -> Table:
    """The 245 points of Hoffmann et al. 2022, figure 4, less the five highest losses."""
    path = real_data.parent / "data" / "chinchilla_figure4.csv"
    if not path.is_file():
        pytest.skip("the digitized points are missing")
    table = load(path, "n=Model Size,d=`Training FLOP`/(6*n),loss=loss", CHINCHILLA)
    assert len(table) == 245
    return table.drop_highest_losses(5)


@pytest.fixture(scope="module")
def law(hoffmann) -> tuple[Fit, float]:
    """The law of those points and the CPU seconds that it took."""
    started = time.process_time()
    found = fit(hoffmann, CHINCHILLA, resamples=1000)
    return found, time.process_time() - started


def test_optimum_of_hoffmann_points(law):
    found, seconds = law
    assert found.optimum.objective == pytest.approx(0.00101827, abs=5e-9)
    for name, value in BEST.items():
        assert found.parameters[name].value == pytest.approx(value, rel=2e-4)
    assert seconds < 60


def test_standard_errors_are_near_the_published(law):
    for name, (value, error) in PUBLISHED.items():
        p = law[0].parameters[name]
        assert p.identified and p.low < value < p.high
        assert 0.6 * error < p.stderr < 1.4 * error


def test_any_start_reaches_the_optimum(hoffmann):
    design = Design.of(CHINCHILLA, hoffmann.variables)
    log_loss = np.log(hoffmann.loss)
    rng = np.random.default_rng(0)
    assert optimum(hoffmann, CHINCHILLA).objective == pytest.approx(0.00101827, abs=5e-9)
    # The descent without the grid: from any exponents, and nearly always from any point.
    projected = project(design, hoffmann.loss, rng.uniform(0, 5, (100, 2)))
    wild = np.where(
        design.is_coefficient, rng.uniform(-10, 1, (100, 5)), rng.uniform(0, 5, (100, 5))
    )
    for starts, share in ((projected, 0.99), (wild, 0.85)):
        _, value = solver.minimize(design, log_loss, np.ones((100, len(log_loss))), starts)
        assert np.mean(value < 0.0010182745) >= share


@pytest.mark.parametrize("form", [CHINCHILLA, POWER], ids=lambda form: form.name)
def test_known_law_is_recovered_from_noise_of_2_percent(form):
    table = grid_table() if form is CHINCHILLA else grid_table(POWER, x=np.geomspace(1e6, 1e10, 40))
    found = fit(table, form, resamples=300)
    for value, p in zip(TRUE[form.name], found.parameters.values(), strict=True):
        assert p.low < p.value < p.high and abs(p.value - value) < 3 * p.stderr
    exact = fit(grid_table(noise=1e-7), CHINCHILLA, resamples=100)
    np.testing.assert_allclose(
        [p.value for p in exact.parameters.values()], TRUE["chinchilla"], rtol=1e-4
    )


def test_optimum_equals_that_of_another_optimizer():
    table = grid_table()
    found = optimum(table, CHINCHILLA)

    def goal(p):
        law = CHINCHILLA.predict(
            np.r_[p[0], np.exp(p[1]), p[2], np.exp(p[3]), p[4]], table.variables
        )
        return 1e6 * solver.loss(law - np.log(table.loss)).sum()

    start = np.array([1.8, np.log(480), 0.35, np.log(2100), 0.37])
    other = minimize(
        goal,
        start,
        method="Nelder-Mead",
        options={"maxiter": 20000, "maxfev": 20000, "xatol": 1e-10, "fatol": 1e-10},
    )
    assert found.objective <= other.fun * 1e-6 * (1 + 1e-9)
    assert found.objective == pytest.approx(other.fun * 1e-6, rel=1e-3)


def test_transfer_law_is_recovered_with_a_level_for_zero():
    true = {"E": 0.03, "A": 20, "alpha": 0.3, "gamma": 0.25, "B": 20, "beta": 0.35, "none": 4}
    form = parse("transfer-G")
    axes = {
        "N": np.geomspace(1e5, 1e9, 5),
        "n": np.r_[0, np.geomspace(1e3, 1e7, 5)],
        "s": np.geomspace(1e3, 1e7, 4),
    }
    found = fit(
        grid_table(form, [true[name] for name in form.parameters], noise=0.01, **axes),
        form,
        resamples=300,
    )
    for name, p in found.parameters.items():
        assert p.identified and abs(p.value - true[name]) < 3 * p.stderr
    pretrained = fit(
        grid_table(form, [true[name] for name in form.parameters], **axes | {"n": axes["n"][1:]}),
        form,
        resamples=100,
    )
    assert "none" not in pretrained.parameters


@pytest.mark.parametrize(
    "form, axes",
    [
        (POWER, {"x": np.geomspace(1e6, 1e10, 12)}),
        pytest.param(
            CHINCHILLA,
            {"N": np.geomspace(1e7, 1e10, 6), "D": np.geomspace(1e8, 1e11, 6)},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["power", "chinchilla"],
)
def test_intervals_cover_the_truth_in_95_of_100_tables(form, axes):
    inside = np.zeros(len(form.parameters))
    for draw in range(100):
        found = fit(grid_table(form, seed=draw, **axes), form, resamples=200, seed=draw)
        inside += [
            p.identified and p.low <= value <= p.high
            for value, p in zip(TRUE[form.name], found.parameters.values(), strict=True)
        ]
    assert np.all((inside >= 90) & (inside <= 99)), inside


@pytest.mark.parametrize(
    "table, unidentified",
    [
        (grid_table(N=np.geomspace(1e7, 1e10, 9), D=np.array([1e9])), {"E", "B", "beta"}),
        (grid_table(N=np.array([1e8]), D=np.geomspace(1e8, 1e11, 9)), {"E", "A", "alpha"}),
        (grid_table(N=np.array([1e7, 1e9]), D=np.geomspace(1e8, 1e11, 9)), {"E", "A", "alpha"}),
        (grid_table(true=(1e-9, 480, 0.35, 2100, 0.37)), {"E"}),
        (grid_table(true=(1.8, 1e-9, 0.35, 2100, 0.37)), {"A", "alpha"}),
        (grid_table(noise=1.0), {"A", "alpha"}),
    ],
    ids=["one D", "one N", "two N", "no floor", "no effect of N", "noise"],
)
def test_unidentified_parameters_have_no_value(table, unidentified):
    found = fit(table, CHINCHILLA, resamples=200)
    unknown = {name: p for name, p in found.parameters.items() if not p.identified}
    assert unknown.keys() >= unidentified
    for p in unknown.values():
        assert p.value is p.stderr is p.low is p.high is None and p.reason
    # The law itself is known.
    np.testing.assert_allclose(found.predict(table.variables), np.log(table.loss), atol=4)


def test_too_few_rows_are_refused():
    with pytest.raises(
        UserError,
        match="4 different points cannot determine the 5 parameters of chinchilla; add runs",
    ):
        fit(grid_table(N=np.array([1e7, 1e9]), D=np.array([1e8, 1e11])), CHINCHILLA)
    with pytest.raises(UserError, match="4 runs are too few for intervals of 3 parameters"):
        fit(grid_table(POWER, x=np.geomspace(1e6, 1e9, 4)), POWER)
    few = fit(grid_table(POWER, x=np.geomspace(1e6, 1e9, 6)), POWER, resamples=100)
    assert "3 parameters for 6 runs, more than a quarter" in few.notes[0]


def test_resamples_are_at_their_own_optimum(hoffmann):
    """Descents from many starts near it do not get lower."""
    table = grid_table()
    for rows, form in ((table, CHINCHILLA), (hoffmann, CHINCHILLA)):
        found, rng = fit(rows, form, resamples=100, seed=3), np.random.default_rng(3)
        design, log_loss = found.optimum.design, np.log(rows.loss)
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=100).astype(
            float
        )
        got = solver.objective(design, log_loss, weights, theta_of(design, found.replicates))
        for _ in range(5):
            starts = found.optimum.theta + rng.normal(0, 0.3, (100, 5))
            _, value = solver.minimize(design, log_loss, weights, starts)
            assert np.all(value > got * (1 - 1e-4))


def test_resample_that_lost_a_size_is_replaced():
    table = grid_table(N=np.geomspace(1e7, 1e10, 3), D=np.geomspace(1e8, 1e11, 4))
    found = fit(table, CHINCHILLA, resamples=200)
    assert (
        np.abs(found.replicates - found.optimum.values).min(axis=1) > 0
    ).mean() > 0.95  # the descents moved


def test_checkpoints_of_a_run_count_as_one_run():
    table = grid_table(N=np.geomspace(1e7, 1e10, 5), D=np.geomspace(1e8, 1e11, 4))
    copies = np.repeat(np.arange(len(table)), 3)
    copied = Table.of(
        {k: x[copies] for k, x in table.variables.items()}, table.loss[copies], copies
    )
    once, grouped = (fit(rows, CHINCHILLA, resamples=100) for rows in (table, copied))
    assert grouped.optimum.objective == pytest.approx(3 * once.optimum.objective)
    np.testing.assert_allclose(grouped.replicates, once.replicates, rtol=1e-3)
    ungrouped = fit(Table.of(copied.variables, copied.loss), CHINCHILLA, resamples=100)
    assert once.notes == grouped.notes == ()
    assert "40 of 60 rows repeat another (line 1 repeats line 0)" in ungrouped.notes[0]
    assert ungrouped.parameters["alpha"].stderr < 0.8 * once.parameters["alpha"].stderr
    uneven = np.r_[np.zeros(40, int), np.arange(len(table))]  # one run of 41 rows
    heavy = Table.of({k: x[uneven] for k, x in table.variables.items()}, table.loss[uneven], uneven)
    np.testing.assert_allclose(optimum(heavy, CHINCHILLA).values, once.optimum.values, rtol=1e-4)


def test_equal_seeds_give_equal_fits():
    a, b, c = (fit(grid_table(), CHINCHILLA, resamples=100, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(a.replicates, b.replicates) and not np.array_equal(
        a.replicates, c.replicates
    )
    low, high = a.band(grid_table().variables)
    assert np.all(low < a.predict(grid_table().variables)) and np.all(
        a.predict(grid_table().variables) < high
    )


def test_intervals_are_corrected_for_bias():
    r = np.random.default_rng(0).normal(0, 1, 100_000)
    plain, off = interval(0.0, r), interval(0.5, r)
    assert (plain.low, plain.high) == pytest.approx(
        (-1.96, 1.96), abs=0.03
    ) and plain.stderr == pytest.approx(1, abs=0.01)
    assert (off.low, off.high) == pytest.approx((-0.96, 2.96), abs=0.05)
