"""`mforce fit`: fits a scaling law with error bars to a table of runs; text, JSON and figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from modality_forcing.commands.arguments import path_option, positive_int
from modality_forcing.errors import UserError
from modality_forcing.progress import format_table
from modality_forcing.tree import JsonObject

if TYPE_CHECKING:  # numpy and scipy are loaded where a fit starts
    import numpy as np
    from numpy.typing import NDArray

    from modality_forcing.laws.compare import FormComparison
    from modality_forcing.laws.compute_optimal import Allocation, IsoFlop
    from modality_forcing.laws.fit import Fit, Parameter
    from modality_forcing.laws.forms import Form
    from modality_forcing.laws.table import Table

EXAMPLES = """examples:
  mforce fit --table runs/scenes --form transfer                                # a sweep's folder
  mforce fit --table rows.csv --form chinchilla --columns 'n=params,d=images,loss=loss' --out law
  mforce fit --table runs.csv --form chinchilla --drop-highest 5 \\
    --columns 'n=Model Size,d=`Training FLOP`/(6*n),loss=loss'
  mforce fit --table rows.jsonl --form transfer-s --where 'seed!=2' \\
    --columns 'N=params,n=images,loss=1-metrics.delta1'
forms (E, A, B, G and none above 0, exponents from 0 to 5):
  chinchilla  E + A N^-alpha + B D^-beta
  power       E + A x^-alpha
  transfer    E + (G + A N^-alpha + B n^-beta) s^-gamma; for n = 0, none in the place of B n^-beta
FORM-TERM leaves a term or a variable out: chinchilla-E, transfer-G, transfer-s.
Columns may be arithmetic on columns and on variables before them; odd names go in `backquotes`."""

_MIN_RESAMPLES = 100  # fewer do not determine the 2.5% quantile


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add(
        "--table",
        type=path_option,
        required=True,
        help="a row per run: .csv, .jsonl (nested keys are a.b.c), or the folder of a sweep",
    )
    add(
        "--form",
        required=True,
        help="chinchilla, power or transfer, or one of them less a term, e.g. transfer-G",
    )
    add(
        "--columns",
        metavar="VARIABLE=COLUMN,...",
        help="e.g. n=params,d=images,loss=loss (those that a sweep wrote beside its rows)",
    )
    add(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN=VALUE",
        help="rows where all hold; or !=",
    )
    add(
        "--group",
        metavar="COLUMN",
        help="what rows of one run share: they count as one run, and are resampled together",
    )
    add("--drop-highest", type=positive_int, metavar="K", help="leave out the K highest losses")
    add(
        "--hold-out",
        metavar="[VARIABLE:]K",
        help="the K largest cells test the extrapolation (a tenth of them); 0: none",
    )
    add("--bootstrap", type=positive_int, default=1000, metavar="R", help="resamples (%(default)s)")
    add("--seed", type=int, default=0, help="of the resamples (%(default)s)")
    add(
        "--flops",
        type=float,
        metavar="K",
        help="chinchilla: a run costs K N D FLOPs (6, where D counts tokens)",
    )
    add(
        "--budget",
        type=float,
        nargs="+",
        metavar="C",
        help="chinchilla: FLOPs to allocate (powers of ten)",
    )
    add("--json", action="store_true", help="print JSON, not tables")
    add("--out", type=path_option, help="a folder for fit.json, fit.png and fit.svg")


def main(options: argparse.Namespace) -> None:
    """Fits a law and prints it; raises UserError for a table or options that allow no fit."""
    from modality_forcing.laws import compute_optimal, forms
    from modality_forcing.laws.compare import compare
    from modality_forcing.laws.fit import fit
    from modality_forcing.laws.table import load
    from modality_forcing.paths import check_folder, write_file

    form = forms.parse(options.form)
    budgets = _check(options, form.variables)
    if options.out is not None:
        check_folder(options.out, "--out")
    loaded = load(options.table, options.columns, form, where=options.where, group=options.group)
    table = loaded.drop_highest_losses(options.drop_highest) if options.drop_highest else loaded
    heldout_mask = _held_out(options.hold_out, table, form)
    fitted = fit(table, form, options.bootstrap, seed=options.seed)
    compared, best = compare(table, form, heldout_mask)
    k = options.flops or compute_optimal.TOKENS
    allocation = view = None
    if compute_optimal.applies(fitted):
        allocation = compute_optimal.allocate(
            fitted, k, budgets or compute_optimal.decades(table, k)
        )
        view = compute_optimal.isoflop(table, fitted, k)
    result = {
        "form": form.name,
        "equation": fitted.form.equation,
        "table": {
            "rows": len(loaded),
            "used": len(table),
            "dropped_lines": list(table.dropped),
            "runs": int(max(table.groups)) + 1,
        },
        "objective": fitted.optimum.objective,
        "parameters": {
            name: _parameter(parameter) for name, parameter in fitted.parameters.items()
        },
        "bootstrap": {"resamples": options.bootstrap, "seed": options.seed, "group": options.group},
        "notes": list(fitted.notes),
        **_comparison(compared, best),
        "allocation": _allocation(allocation),
        "isoflop": _isoflop(view, table),
        "points": _points(fitted, table),
    }
    text = json.dumps(result, indent=1, allow_nan=False)
    if options.out is not None:
        from modality_forcing.laws.figures import plot
        from modality_forcing.viz import figures

        with figures.style():
            figures.save(plot(fitted, table, view), options.out / "fit")
        write_file(options.out / "fit.json", text + "\n")
    print(text if options.json else to_text(result))


def _check(options: argparse.Namespace, variables: Sequence[str]) -> list[float] | None:
    """Returns the budgets; raises UserError for invalid options."""
    if options.bootstrap < _MIN_RESAMPLES:
        raise UserError(
            f"--bootstrap {options.bootstrap} is too few for 95% intervals",
            hint=f"give {_MIN_RESAMPLES} or more",
        )
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} is below 0", hint="give 0 or more")
    for name, values in (("flops", [options.flops]), ("budget", options.budget or [None])):
        if values != [None] and tuple(variables) != ("N", "D"):
            raise UserError(
                f"--{name} is for laws of N and D", hint="leave it out, or give --form chinchilla"
            )
        if bad := [x for x in values if x is not None and not 0 < x < float("inf")]:
            raise UserError(
                f"--{name} {bad[0]:g} is not a number of FLOPs", hint="give a number above 0"
            )
    return options.budget


def _held_out(text: str | None, table: Table, form: Form) -> NDArray[np.bool_] | None:
    """The mask of the held-out rows, None for none."""
    from modality_forcing.laws.compare import largest_cells

    by, _, number = (text or "").rpartition(":")
    if text is not None and not number.isdecimal():
        raise UserError(
            f"--hold-out {text!r} is not a number of cells",
            hint="give e.g. 3, or N:1 for the largest N",
        )
    return (
        None
        if number.strip("0") == "" and text
        else largest_cells(table, form, int(number) if text else None, by or None)
    )


def _parameter(parameter: Parameter) -> JsonObject:
    result = asdict(parameter) | {"identified": parameter.identified}
    reason = result.pop("reason")
    return result if parameter.identified else result | {"reason": reason}


def _comparison(compared: Iterable[FormComparison], best: str | None) -> JsonObject:
    rows = [asdict(row) for row in compared]
    return {"held_out": rows[0]["held_out"], "forms": rows, "best": best}


def _allocation(found: Allocation | None) -> JsonObject | None:
    if found is None:
        return None
    parts = ("N", "D", "loss")
    budgets = [
        {"flops": row.flops} | {part: _parameter(getattr(row, part)) for part in parts}
        for row in found.budgets
    ]
    return {
        "flops": "k N D",
        "k": found.k,
        "a": _parameter(found.a),
        "b": _parameter(found.b),
        "budgets": budgets,
    }


def _isoflop(view: IsoFlop | None, table: Table) -> JsonObject | None:
    if view is None:
        return None
    lines = []
    for line in view.lines:
        at = list(line.rows)
        points = {
            "line": table.lines[at].tolist(),
            "N": table.variables["N"][at].tolist(),
            "loss": table.loss[at].tolist(),
        }
        lines.append(
            {
                "flops": line.flops,
                **points,
                "N_law": line.law,
                "N_parabola_through_law": line.through_law,
            }
        )
        lines[-1] |= {"N_parabola_through_rows": line.through_rows, "parabola_bias": line.bias}
    note = (
        "parabola_bias: N at the minimum of a parabola through the noiseless law, divided by N of"
    )
    exponents = {
        "a_law": view.a_law,
        "a_parabola_through_law": view.a_through_law,
        "a_parabola_through_rows": view.a_through_rows,
    }
    return {"note": f"{note} the law; 1 is unbiased", "lines": lines, **exponents}


def _points(fitted: Fit, table: Table) -> list[JsonObject]:
    import numpy as np

    law = np.exp(fitted.predict(table.variables))
    rows = zip(table.lines.tolist(), table.loss.tolist(), law.tolist(), strict=True)
    return [{"line": line, "loss": loss, "law": predicted} for line, loss, predicted in rows]


def to_text(result: JsonObject) -> str:
    """Returns the result as text tables with at most six digits; the JSON has all digits."""
    rows, parts = result["table"], [f"{result['form']}: {result['equation']}"]
    count = len(rows["dropped_lines"])
    dropped = f", {count} of the highest losses left out" if count else ""
    objective = f"sum of Huber losses {result['objective']:.6g}"
    parts.append(f"{rows['used']} of {rows['rows']} rows{dropped}; {objective}\n")
    table: list[Sequence[str]] = []
    for name, p in result["parameters"].items():
        cells = (
            [_number(p[key]) for key in ("value", "stderr", "low", "high")]
            if p["identified"]
            else ["not identified:", p["reason"]]
        )
        table.append((name, *cells))
    header = ("parameter", "value", "stderr", "95% from", "to")
    parts += [format_table(table, header), *(f"note: {note}" for note in result["notes"])]
    table = []
    for row in result["forms"]:
        held_out = row["held_out"]
        errors = [f"{100 * held_out[key]:.2f}%" if held_out else "-" for key in ("rms", "bias")]
        verdict = ["best"] if row["form"] == result["best"] else []
        verdict += [] if row["identified"] else [f"not identified: {row['reason']}"]
        size = (str(row["parameters"]), _number(row["objective"]))
        table.append((row["form"], *size, *errors, "; ".join(verdict)))
    extent = "no cells held out"
    if held_out := result["held_out"]:
        cells, rows = _count(held_out["cells"], "cell"), _count(held_out["rows"], "row")
        extent = f"{cells} held out ({rows})"
    header = ("form", "parameters", "objective", "held-out error", "bias", "")
    parts += ["", f"nested forms, {extent}:", format_table(table, header)]
    return "\n".join(parts + _allocation_text(result["allocation"], result["isoflop"]))


def _allocation_text(found: JsonObject | None, view: JsonObject | None) -> list[str]:
    if found is None or view is None:
        return []
    names = ("N", "D", "loss")
    table = [
        (f"{row['flops']:.3g}", *(_estimate(row[name]) for name in names))
        for row in found["budgets"]
    ]
    exponents = f"N ~ C^{_estimate(found['a'])}, D ~ C^{_estimate(found['b'])}"
    title = f"compute-optimal, C = {found['k']:g} N D: {exponents}"
    biases = [line["parabola_bias"] for line in view["lines"] if line["parabola_bias"] is not None]
    lines = ["", title, format_table(table, ("FLOPs", *names))]
    if biases:
        factors = f"{min(biases):.4f} to {max(biases):.4f}"
        lines.append(f"isoFLOP parabolas miss the law's own N by a factor of {factors}")
    return lines


def _estimate(p: JsonObject) -> str:
    return f"{_number(p['value'])} ({_number(p['low'])} to {_number(p['high'])})"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("s" if n > 1 else "")


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.5g}"
