"""`mforce fit` from a file of rows to JSON, text and figures, and its error messages."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.commands import fit
from modality_forcing.errors import UserError
from modality_forcing.laws.forms import FORMS

COLUMNS = ("--columns", "n=params,d=flop/(6*n),loss=loss")


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    fit.add_options(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """36 runs of a known law, an outlier of the highest loss, and a run of another protocol."""
    path, rng = tmp_path_factory.mktemp("rows") / "rows.csv", np.random.default_rng(0)
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e8, 1e11, 6)))
    law = np.exp(
        FORMS["chinchilla"].predict([1.8, 480, 0.35, 2100, 0.37], {"N": n, "D": d})
        + rng.normal(0, 0.005, 36)
    )
    lines = [
        f"{a!r},{6 * a * b!r},{y!r},moge"
        for a, b, y in zip(n.tolist(), d.tolist(), law.tolist(), strict=True)
    ]
    path.write_text(
        "\n".join(["params,flop,loss,protocol", *lines, "1e8,6e17,50,moge", "1e8,6e17,1,marigold"])
        + "\n"
    )
    return path


def run(rows: Path, capsys, *more: object) -> str:
    chosen = ("--where", "protocol=moge", "--drop-highest", 1, "--bootstrap", 100)
    fit.main(options("--table", rows, "--form", "chinchilla", *COLUMNS, *chosen, *more))
    return capsys.readouterr().out


def test_sweep_folder_needs_no_columns(rows, capsys, tmp_path):
    table = [dict(zip(("params", "flop", "loss"), map(float, line.split(",")[:3]), strict=True))
             for line in rows.read_text().splitlines()[1:37]]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    arguments = ("--table", tmp_path, "--form", "power", "--bootstrap", 100, "--json")
    with pytest.raises(UserError, match="none: no such file"):
        fit.main(options("--table", tmp_path / "none", *arguments[2:]))
    with pytest.raises(UserError, match="--columns is missing"):
        fit.main(options(*arguments))
    (tmp_path / "columns.json").write_text(json.dumps({"x": "flop", "loss": "loss", "s": "frames"}))
    fit.main(options(*arguments))
    from_folder = json.loads(capsys.readouterr().out)
    fit.main(options(*arguments, "--columns", "x=flop,loss=loss"))
    assert from_folder == json.loads(capsys.readouterr().out)


def test_json_has_full_precision(rows, capsys, tmp_path):
    result = json.loads(run(rows, capsys, "--json", "--budget", "1e20", "--out", tmp_path / "law"))
    assert result["table"] == {"rows": 37, "used": 36, "dropped_lines": [38], "runs": 36}
    assert result["parameters"].keys() == {"E", "A", "alpha", "B", "beta"}
    for name, true in {"E": 1.8, "alpha": 0.35, "beta": 0.37}.items():
        p = result["parameters"][name]
        assert (
            p["identified"]
            and p["low"] < p["value"] < p["high"]
            and p["value"] == pytest.approx(true, rel=0.05)
        )
        assert len(repr(p["value"])) > 12 and p["stderr"] > 0
    assert result["objective"] > 0 and result["best"] == "chinchilla"
    assert [row["form"] for row in result["forms"]] == [
        "chinchilla",
        "chinchilla-E",
        "chinchilla-N",
        "chinchilla-D",
    ]
    assert result["held_out"]["rms"] < 0.03 and result["held_out"] == result["forms"][0]["held_out"]
    assert [row["flops"] for row in result["allocation"]["budgets"]] == [1e20]
    assert result["allocation"]["a"]["value"] == pytest.approx(0.37 / 0.72, abs=0.03)
    line = result["isoflop"]["lines"][0]
    assert line["parabola_bias"] == pytest.approx(line["N_parabola_through_law"] / line["N_law"])
    assert len(result["points"]) == 36
    assert json.loads((tmp_path / "law" / "fit.json").read_text()) == result
    assert sorted(path.name for path in (tmp_path / "law").iterdir()) == [
        "fit.json",
        "fit.png",
        "fit.svg",
    ]


def test_text(rows, capsys):
    text = run(rows, capsys, "--hold-out", "N:1")
    assert (
        "chinchilla: E + A N^-alpha + B D^-beta\n36 of 37 rows, 1 of the highest losses left out"
        in text
    )
    assert "nested forms, 6 cells held out (6 rows):" in text and "best" in text
    assert "compute-optimal, C = 6 N D: N ~ C^0.5" in text and "isoFLOP parabolas miss" in text
    assert "no cells held out" in run(rows, capsys, "--hold-out", "0")


def test_output_repeats(rows, capsys):
    assert run(rows, capsys, "--json") == run(rows, capsys, "--json")


def test_unidentified_parameter_is_null(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    table = [
        {"N": n, "loss": 1 + 50 * n**-0.3, "D": 1e9} for n in np.geomspace(1e6, 1e9, 12).tolist()
    ]
    path.write_text("\n".join(map(json.dumps, table)))
    common = (
        "--table",
        path,
        "--form",
        "chinchilla",
        "--columns",
        "N=N,D=D,loss=loss",
        "--bootstrap",
        100,
    )
    fit.main(options(*common, "--json"))
    result = json.loads(capsys.readouterr().out)
    assert (
        result["parameters"]["beta"]["value"] is None
        and not result["parameters"]["beta"]["identified"]
    )
    assert result["parameters"]["alpha"]["value"] == pytest.approx(0.3, rel=1e-3)
    assert (
        result["allocation"] is None
        and result["isoflop"] is None
        and result["best"] == "chinchilla-D"
    )
    fit.main(options(*common, "--out", tmp_path / "law"))
    assert "not identified:" in capsys.readouterr().out
    assert (tmp_path / "law" / "fit.png").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--form", "kaplan"), "form 'kaplan' is not known; give chinchilla, power, transfer"),
        (("--columns", "n=params,d=flop/(6*n),loss=err"), "no column 'err'"),
        (("--where", "protocol=moge", "version=2"), "--where 'version=2' names no column"),
        (("--where",), None),
        (("--bootstrap", 20), "--bootstrap 20 is too few"),
        (("--seed", -1), "--seed -1 is below 0"),
        (("--flops", 0), "--flops 0 is not a number of FLOPs"),
        (("--budget", 1e20, "nan"), "--budget nan is not"),
        (
            ("--form", "power", "--columns", "x=params,loss=loss", "--flops", 6),
            "--flops is for laws of N and D",
        ),
        (("--hold-out", "-1"), "--hold-out '-1' is not a number of cells"),
        (("--hold-out", "many"), "--hold-out 'many' is not a number of cells"),
        (("--hold-out", "s:1"), "cannot hold out by 's'"),
        (("--drop-highest", 99), "leaves none of 37 rows"),
        (("--group", "cell"), "no column 'cell' to group by"),
    ],
)
def test_invalid_arguments_are_refused(rows, arguments, message):
    common = (
        "--table",
        rows,
        "--form",
        "chinchilla",
        *COLUMNS,
        "--where",
        "protocol=moge",
        "--bootstrap",
        100,
    )
    if message is None:  # argparse's own
        with pytest.raises(SystemExit):
            options(*common, *arguments)
        return
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as error:
        fit.main(options(*common, *arguments))
    assert "\n" not in str(error.value)


def test_rows_of_two_protocols_are_refused_before_anything_is_written(rows, tmp_path):
    common = ("--table", rows, "--form", "chinchilla", *COLUMNS, "--out", tmp_path / "law")
    with pytest.raises(UserError, match="differ in protocol: marigold, moge"):
        fit.main(options(*common))
    assert not (tmp_path / "law").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; choose another --out"):
        fit.main(options(*common[:-1], tmp_path / "file" / "a"))
