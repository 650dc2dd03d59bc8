"""The best use of a budget against brute force, and the bias of isoFLOP parabolas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.laws import compute_optimal
from modality_forcing.laws.fit import Fit, fit
from modality_forcing.laws.forms import FORMS, parse
from modality_forcing.laws.table import Table

K = 6.0
TRUE = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}


def fitted(
    decades: float = 1.0, shift: float = 0.0, noise: float = 1e-4, **true: float
) -> tuple[Table, Fit]:
    """Runs on five isoFLOP lines, `decades` to either side of the best N times 10^shift, and their
    law.
    """
    p = TRUE | true
    size, data = [], []
    for flops in np.geomspace(1e18, 1e20, 5):
        a = p["beta"] / (p["alpha"] + p["beta"])
        g = (p["alpha"] * p["A"] / p["beta"] / p["B"]) ** (1 / (p["alpha"] + p["beta"]))
        size.append(g * (flops / K) ** a * 10 ** (shift + np.linspace(-decades, decades, 9)))
        data.append(flops / K / size[-1])
    variables = {"N": np.concatenate(size), "D": np.concatenate(data)}
    law = FORMS["chinchilla"].predict(list(p.values()), variables)
    table = Table.of(variables, np.exp(law + np.random.default_rng(0).normal(0, noise, law.size)))
    return table, fit(table, FORMS["chinchilla"], resamples=100)


def test_no_other_size_has_a_lower_loss():
    _, law = fitted()
    found = compute_optimal.allocate(law, K, [1e19, 1e22])
    for budget in found.budgets:
        n = np.geomspace(1e6, 1e12, 200_001)
        loss = np.exp(law.predict({"N": n, "D": budget.flops / K / n}))
        assert budget.N.value == pytest.approx(n[loss.argmin()], rel=2e-4)
        assert budget.loss.value == pytest.approx(loss.min(), rel=1e-9)
        assert (
            budget.N.value
            and budget.D.value
            and budget.flops == pytest.approx(K * budget.N.value * budget.D.value)
        )
    assert found.a.value == pytest.approx(0.37 / 0.72, abs=2e-3)
    assert found.a.value and found.b.value and found.a.value + found.b.value == pytest.approx(1)


def test_intervals_contain_the_truth_and_widen_beyond_the_runs():
    _, law = fitted(noise=0.01)
    found = compute_optimal.allocate(law, K, [1e19, 1e24])
    assert found.a.low and found.a.high and found.a.low < 0.37 / 0.72 < found.a.high
    near, far = (np.log(row.N.high / row.N.low) for row in found.budgets)
    assert far > 2 * near


def test_resamples_without_an_effect_of_n_are_tolerated():
    _, law = fitted()
    spread = law.replicates.copy()
    spread[0, 2] = 0  # alpha
    found = compute_optimal.allocate(replace(law, replicates=spread), K, [1e20]).budgets[0]
    for part in (found.N, found.D, found.loss):
        assert part.value and part.low and part.high and np.isfinite([part.low, part.high]).all()
    assert found.D.stderr is None  # the deviation is infinite
    spread[:50, 2] = 0
    assert (
        compute_optimal.allocate(replace(law, replicates=spread), K, [1e20]).budgets[0].D.reason
        == "its interval has no end"
    )


def test_more_flops_per_example_means_less_of_both():
    _, law = fitted()
    one, six = (compute_optimal.allocate(law, k, [1e20]).budgets[0] for k in (1.0, 6.0))
    a = 0.37 / 0.72
    assert (
        one.N.value and six.N.value and one.N.value / six.N.value == pytest.approx(6**a, rel=0.01)
    )


def test_isoflop_lines_are_found_where_runs_share_a_budget():
    table, law = fitted()
    view = compute_optimal.isoflop(table, law, K)
    assert [line.flops for line in view.lines] == pytest.approx(np.geomspace(1e18, 1e20, 5))
    assert sorted(row for line in view.lines for row in line.rows) == list(range(45))
    assert compute_optimal.decades(table, K)[0] == 1e18 and compute_optimal.decades(table, K)[
        -1
    ] in (1e20, 1e21)


def test_parabola_is_exact_for_a_symmetric_law_and_biased_otherwise():
    """Czech et al. (2603.22339): no bias where alpha = beta and the sizes are centered, some where
    either fails.
    """
    table, law = fitted(alpha=0.37)
    for line in compute_optimal.isoflop(table, law, K).lines:
        assert line.bias == pytest.approx(1, abs=2e-3)
    table, law = fitted(alpha=0.2, beta=0.45, decades=1.5)
    uneven = compute_optimal.isoflop(table, law, K)
    assert all(line.bias is not None and abs(line.bias - 1) > 0.03 for line in uneven.lines)
    table, law = fitted(alpha=0.37, shift=0.7)
    off = compute_optimal.isoflop(table, law, K)
    assert all(line.bias is not None and abs(line.bias - 1) > 0.03 for line in off.lines)
    assert off.a_law == pytest.approx(0.5, abs=2e-3)


def test_parabola_in_log_n_may_have_no_minimum():
    size = np.geomspace(1e7, 1e9, 7)
    lowest, curve = compute_optimal.parabola(size, 2 + 0.1 * np.log(size / 2e8) ** 2)
    assert lowest == pytest.approx(2e8)
    np.testing.assert_allclose(np.polyval(curve, np.log(size)), 2 + 0.1 * np.log(size / 2e8) ** 2)
    assert compute_optimal.parabola(size, 2 - 0.1 * np.log(size / 2e8) ** 2)[0] is None


def test_applies_only_to_identified_laws_of_n_and_d():
    table, law = fitted()
    assert compute_optimal.applies(law)
    assert compute_optimal.applies(fit(table, parse("chinchilla-E"), resamples=100))
    assert not compute_optimal.applies(fit(table, parse("chinchilla-D"), resamples=100))
    one_size = table.variables | {"N": np.full(45, 1e8)}
    assert not compute_optimal.applies(
        fit(Table.of(one_size, table.loss), FORMS["chinchilla"], resamples=100)
    )
