"""The equations of forms, forms without a part, and the coordinates of a fit."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.laws import forms
from modality_forcing.laws.forms import FORMS, Design
from tests.unit.laws.grid import theta_of

RNG = np.random.default_rng(0)
SOME = {
    "chinchilla": {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37},
    "power": {"E": 0.05, "A": 20.0, "alpha": 0.3},
    "transfer": {
        "E": 0.03,
        "G": 0.6,
        "gamma": 0.25,
        "A": 40.0,
        "alpha": 0.3,
        "B": 20.0,
        "beta": 0.35,
        "none": 2.0,
    },
}


def values(form: forms.Form) -> np.ndarray:
    return np.array([SOME[form.name.split("-")[0]][name] for name in form.parameters])


def rows(form: forms.Form, count: int = 20) -> dict[str, np.ndarray]:
    variables = {name: 10.0 ** RNG.uniform(4, 9, count) for name in form.variables}
    for name in form.may_be_zero:
        variables[name][::3] = 0
    return variables


def test_forms_equal_their_equations():
    x = rows(FORMS["chinchilla"])
    chinchilla = np.exp(FORMS["chinchilla"].predict(values(FORMS["chinchilla"]), x))
    np.testing.assert_allclose(
        chinchilla, 1.8 + 480 * x["N"] ** -0.35 + 2100 * x["D"] ** -0.37, rtol=1e-13
    )
    x = rows(FORMS["power"])
    np.testing.assert_allclose(
        np.exp(FORMS["power"].predict([0.05, 20, 0.3], x)), 0.05 + 20 * x["x"] ** -0.3, rtol=1e-13
    )
    x = rows(FORMS["transfer"])
    # none: a level of its own.
    images = np.where(x["n"] > 0, 20 * np.maximum(x["n"], 1) ** -0.35, 2.0)
    expected = 0.03 + (0.6 + 40 * x["N"] ** -0.3 + images) * x["s"] ** -0.25
    np.testing.assert_allclose(
        np.exp(FORMS["transfer"].predict(values(FORMS["transfer"]), x)), expected, rtol=1e-13
    )
    assert FORMS["transfer"].equation == (
        "E + G s^-gamma + A N^-alpha s^-gamma + B n^-beta s^-gamma; "
        "where n = 0, none s^-gamma for B n^-beta s^-gamma"
    )


def test_predict_takes_many_parameters_and_a_coefficient_of_0():
    form, x = FORMS["chinchilla"], rows(FORMS["chinchilla"])
    several = values(form) * RNG.uniform(0.5, 1.5, (4, 1))
    together = form.predict(several, x)
    assert together.shape == (4, 20)
    np.testing.assert_allclose(together[2], form.predict(several[2], x))
    np.testing.assert_allclose(
        np.exp(form.predict([0, 480, 0.35, 0, 0.37], x)), 480 * x["N"] ** -0.35
    )


@pytest.mark.parametrize("name", FORMS)
def test_coordinates_of_a_fit_give_the_same_law(name):
    form = FORMS[name]
    x = rows(form)
    design = Design.of(form, x)
    theta = theta_of(design, values(form))
    np.testing.assert_allclose(design.natural(theta), values(form), rtol=1e-10)
    logs = np.einsum("p,kpn->kn", theta, design.slopes) + design.absent
    np.testing.assert_allclose(np.logaddexp.reduce(logs), form.predict(values(form), x), rtol=1e-12)


@pytest.mark.parametrize(
    "text, equation",
    [
        ("chinchilla-E", "A N^-alpha + B D^-beta"),
        ("chinchilla-N", "E + B D^-beta"),
        (
            "transfer-G",
            "E + A N^-alpha s^-gamma + B n^-beta s^-gamma; "
            "where n = 0, none s^-gamma for B n^-beta s^-gamma",
        ),
        (
            "transfer-s",
            "E + A N^-alpha + B n^-beta; where n = 0, none for B n^-beta",
        ),  # E and G are one level then
        ("transfer-n", "E + G s^-gamma + A N^-alpha s^-gamma"),
        (
            "transfer-N",
            "E + G s^-gamma + B n^-beta s^-gamma; "
            "where n = 0, none s^-gamma for B n^-beta s^-gamma",
        ),
        ("transfer-s-E", "A N^-alpha + B n^-beta; where n = 0, none for B n^-beta"),
        ("transfer-s-B", "E + A N^-alpha; where n = 0, none more"),
    ],
)
def test_form_without_a_term(text, equation):
    form = forms.parse(text)
    assert form.equation == equation and form.name == text


@pytest.mark.parametrize("name", FORMS)
def test_nested_forms_are_different_smaller_and_have_names(name):
    found = forms.nested(FORMS[name])
    assert found[0] == FORMS[name] and len({form.terms for form in found}) == len(found)
    for form in found[1:]:
        assert len(form.parameters) < len(FORMS[name].parameters)
        assert forms.parse(form.name) == form


def test_level_exists_only_for_rows_at_0():
    form, x = FORMS["transfer"], rows(FORMS["transfer"])
    assert form.seen_by(x) == form
    assert "none" not in form.seen_by(x | {"n": x["n"] + 1}).parameters


@pytest.mark.parametrize(
    "text", ["kaplan", "chinchilla-Z", "power-x", "chinchilla-N-D", "", "transfer-"]
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UserError, match="form"):
        forms.parse(text)
