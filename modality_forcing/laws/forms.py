"""The forms of scaling laws: sums of positive terms, a coefficient times powers of variables.

    chinchilla  E + A N^-alpha + B D^-beta                  Hoffmann et al. 2022 (2203.15556), eq. 2
    power       E + A x^-alpha                              a saturating power law
    transfer    E + (G + A N^-alpha + B n^-beta) s^-gamma   Mikami et al. 2021 (2108.11018), eq. 1,
                                                            with a term for the model size; G is the
                                                            gap that no pretraining closes

N parameters, D training examples, n pretraining images, s post-training frames. The logarithm of
every term is linear in (log coefficient, exponent). The logarithm of the sum is therefore convex in
them and its gradient is the terms' shares, so that one fit serves every form.

No pretraining, n = 0, has a level of its own. B n^-beta is infinite there, and `none` replaces the
term: E + (G + A N^-alpha + none) s^-gamma. An offset, B (n + n0)^-beta, would need as many
parameters and would bend the law at small n towards a point that is another kind of run. With a
level, n = 0 measures the gain from pretraining and does not affect its growth with n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modality_forcing.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """A summand coefficient · Π variable^-exponent, in rows where none of the variables is 0."""

    coefficient: str
    powers: tuple[tuple[str, str], ...] = ()  # (variable, its exponent)
    at_zero: str = ""  # a variable: only rows where it is 0 have the term

    def __str__(self) -> str:
        return " ".join(
            (self.coefficient, *(f"{variable}^-{exponent}" for variable, exponent in self.powers))
        )


@dataclass(frozen=True)
class Form:
    """A sum of terms; its parameters are the coefficients (above 0) and the exponents (0 to 5)."""

    name: str
    terms: tuple[Term, ...]
    meaning: Mapping[str, str]  # variable -> what it counts
    size: tuple[str, ...]  # the variables whose product is the size of a cell

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables that a term uses."""
        used = {variable for term in self.terms for variable in (*dict(term.powers), term.at_zero)}
        return tuple(variable for variable in self.meaning if variable in used)

    @property
    def may_be_zero(self) -> tuple[str, ...]:
        """The variables with a term for the value 0."""
        return tuple(term.at_zero for term in self.terms if term.at_zero)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """The parameters in which the law is linear."""
        return tuple(term.coefficient for term in self.terms)

    @property
    def parameters(self) -> tuple[str, ...]:
        """All names: each coefficient, then the exponents that first appear in its term."""
        return tuple(
            dict.fromkeys(
                name
                for term in self.terms
                for name in (term.coefficient, *dict(term.powers).values())
            )
        )

    @property
    def exponents(self) -> tuple[str, ...]:
        """The parameters that are not coefficients."""
        return tuple(name for name in self.parameters if name not in self.coefficients)

    @property
    def equation(self) -> str:
        """The sum as text, with the terms that are replaced where a variable is 0."""
        text = " + ".join(str(term) for term in self.terms if not term.at_zero)
        for level in (term for term in self.terms if term.at_zero):
            gone = " + ".join(
                str(term) for term in self.terms if level.at_zero in dict(term.powers)
            )
            text += f"; where {level.at_zero} = 0, {level} {f'for {gone}' if gone else 'more'}"
        return text

    def predict(
        self, parameters: ArrayLike | Sequence[float], variables: Mapping[str, ArrayLike]
    ) -> Array:
        """Returns the log of the law [... n].

        parameters: [... p], in the order of `self.parameters`. variables: [n] each.
        """
        p = dict(
            zip(
                self.parameters,
                np.moveaxis(np.asarray(parameters, float)[..., None], -2, 0),
                strict=True,
            )
        )
        x = {name: np.asarray(variables[name], float) for name in self.variables}
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = []
            for term in self.terms:
                log_term = np.log(p[term.coefficient]) + _absent(term, x)
                for variable, exponent in term.powers:
                    log_term = log_term - p[exponent] * np.log(
                        np.where(x[variable] > 0, x[variable], 1)
                    )
                logs.append(log_term)
            return np.logaddexp.reduce(np.stack(np.broadcast_arrays(*logs)))

    def without(self, name: str) -> Form:
        """Returns the form without the term of a coefficient or without a variable.

        Terms that differ only in the variable become one: without s, E and G are a single level.
        Raises UserError for a name that the form does not have, and if no variable remains.
        """
        if name in self.coefficients:
            terms = [term for term in self.terms if term.coefficient != name]
        elif name in self.variables:
            terms = []
            for term in self.terms:
                powers = tuple(power for power in term.powers if power[0] != name)
                equal = [
                    other
                    for other in terms
                    if (other.powers, other.at_zero) == (powers, term.at_zero)
                ]
                if term.at_zero != name and not equal:
                    terms.append(replace(term, powers=powers))
        else:
            coefficients, variables = ", ".join(self.coefficients), ", ".join(self.variables)
            hint = f"it has the terms {coefficients} and the variables {variables}"
            raise UserError(f"form {self.name!r} has no {name!r} to leave out", hint=hint)
        simpler = replace(self, name=f"{self.name}-{name}", terms=tuple(terms))
        if not simpler.variables:
            raise UserError(f"form {simpler.name!r} depends on no variable", hint="leave out less")
        return simpler

    def seen_by(self, variables: Mapping[str, Array]) -> Form:
        """Returns the form without the levels of zeros that no row of the table has."""
        terms = tuple(
            term for term in self.terms if not term.at_zero or np.any(variables[term.at_zero] == 0)
        )
        return replace(self, terms=terms)


_LEVEL = Term("E")
FORMS = {
    form.name: form
    for form in (
        Form(
            "chinchilla",
            (_LEVEL, Term("A", (("N", "alpha"),)), Term("B", (("D", "beta"),))),
            {"N": "parameters", "D": "training examples"},
            ("N", "D"),
        ),
        Form("power", (_LEVEL, Term("A", (("x", "alpha"),))), {"x": ""}, ("x",)),
        Form(
            "transfer",
            (
                _LEVEL,
                Term("G", (("s", "gamma"),)),
                Term("A", (("N", "alpha"), ("s", "gamma"))),
                Term("B", (("n", "beta"), ("s", "gamma"))),
                Term("none", (("s", "gamma"),), at_zero="n"),
            ),
            {"N": "parameters", "n": "pretraining images", "s": "post-training frames"},
            ("N", "n"),
        ),
    )
}
_LEFT_OUT = {  # the simpler forms that each is compared with
    "chinchilla": (("E",), ("N",), ("D",)),
    "power": (("E",),),
    "transfer": (
        ("E",),
        ("G",),
        ("E", "G"),
        ("N",),
        ("n",),
        ("s",),
        ("s", "E"),
        ("s", "N"),
        ("s", "n"),
    ),
}


def parse(text: str) -> Form:
    """Returns the form of a name such as `transfer-G-s`; raises UserError for an unknown one."""
    name, *left_out = text.split("-")
    if name not in FORMS:
        less = "one of them less a term or a variable, e.g. transfer-G or transfer-s"
        hint = f"give {', '.join(FORMS)}, or {less}"
        raise UserError(f"form {text!r} is not known", hint=hint)
    form = FORMS[name]
    for part in left_out:
        form = form.without(part)
    return form


def nested(form: Form) -> list[Form]:
    """Returns the form and the simpler forms that it is compared with, all different."""
    found = {form.terms: form}
    for left_out in _LEFT_OUT[form.name.partition("-")[0]]:
        try:
            simpler = form
            for part in left_out:
                simpler = simpler.without(part)
        except UserError:  # the form lacks the part already, or no variable would remain
            continue
        found.setdefault(simpler.terms, simpler)
    return list(found.values())


def _absent(term: Term, variables: Mapping[str, Array]) -> Array:
    """-inf in rows that do not have the term, else 0."""
    present = np.ones(np.broadcast_shapes(*(x.shape for x in variables.values())), bool)
    for variable, _ in term.powers:
        present &= variables[variable] > 0
    if term.at_zero:
        present &= variables[term.at_zero] == 0
    return np.where(present, 0.0, -np.inf)


@dataclass(frozen=True)
class Design:
    """A form at the rows of a table, in well-conditioned coordinates.

    A point theta [p] holds the log of each coefficient, and each exponent, with every variable
    divided by its geometric mean. A coefficient is then the size of its term in the middle of the
    table, which the rows determine well. At N = 1 they determine it only together with the
    exponent.
    """

    form: Form
    slopes: Array  # [k p n]: d log term / d theta
    absent: Array  # [k n]: 0, or -inf where a row lacks the term
    to_natural: Array  # [p p]: theta -> (log coefficient, exponent) for undivided variables

    @classmethod
    def of(cls, form: Form, variables: Mapping[str, Array]) -> Design:
        """Returns the design of a form and variables [n] each."""
        names, rows = form.parameters, len(next(iter(variables.values())))
        slopes = np.zeros((len(form.terms), len(names), rows))
        to_natural = np.eye(len(names))
        logs = {
            name: np.log(np.where(variables[name] > 0, variables[name], 1))
            for name in form.variables
        }
        middle = {
            name: logs[name][variables[name] > 0].mean() if np.any(variables[name] > 0) else 0.0
            for name in logs
        }
        for k, term in enumerate(form.terms):
            slopes[k, names.index(term.coefficient)] = 1
            for variable, exponent in term.powers:
                slopes[k, names.index(exponent)] = -(logs[variable] - middle[variable])
                to_natural[names.index(term.coefficient), names.index(exponent)] = middle[variable]
        absent = np.stack([_absent(term, variables) for term in form.terms])
        return cls(form, slopes, absent, to_natural)

    @property
    def is_coefficient(self) -> NDArray[np.bool_]:
        """The mask [p] of the entries of theta that are logarithms."""
        return np.isin(self.form.parameters, self.form.coefficients)

    def natural(self, theta: Array) -> Array:
        """Returns the parameters [... p] of the equation."""
        parameters = theta @ self.to_natural.T
        with np.errstate(over="ignore"):
            return np.where(self.is_coefficient, np.exp(parameters), parameters)
