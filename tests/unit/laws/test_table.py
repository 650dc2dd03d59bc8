"""Tables from files: columns, selection, groups, and rows that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.errors import UserError
from modality_forcing.laws.forms import FORMS, parse
from modality_forcing.laws.table import Table, load
from tests import damage

CHINCHILLA, TRANSFER = FORMS["chinchilla"], FORMS["transfer"]
CSV = """Model Size,Training FLOP,loss,protocol,run
1e7,6e16,4.0,moge,a
2e7,2.4e17,3.5,moge,a
4e7,9.6e17,3.0,moge,b
"""
COLUMNS = "n=Model Size, d=`Training FLOP`/(6*n), loss=loss"


@pytest.fixture
def table(tmp_path) -> Path:
    (tmp_path / "rows.csv").write_text(CSV)
    return tmp_path / "rows.csv"


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_columns_and_arithmetic_on_them(table):
    found = load(table, COLUMNS, CHINCHILLA)
    np.testing.assert_allclose(found.variables["N"], [1e7, 2e7, 4e7])
    np.testing.assert_allclose(found.variables["D"], [1e9, 2e9, 4e9])
    np.testing.assert_allclose(found.loss, [4, 3.5, 3])
    assert found.lines.tolist() == [2, 3, 4] and found.groups.tolist() == [0, 1, 2]
    power = load(table, "x=-(`Model Size`**2)*-1e-3+2, loss=1-1/loss", FORMS["power"])
    np.testing.assert_allclose(power.variables["x"], np.array([1e7, 2e7, 4e7]) ** 2 * 1e-3 + 2)
    np.testing.assert_allclose(power.loss, 1 - 1 / found.loss)


def test_nested_rows_of_jsonl(tmp_path):
    rows = [
        {"config": {"width": w, "seed": i}, "n": 10 * i, "s": 5, "m": {"delta1": 0.5 + w / 100}}
        for i, w in enumerate((1, 2))
    ]
    found = load(
        jsonl(tmp_path / "r.jsonl", rows), "N=config.width**2,n=n,s=s,loss=1-m.delta1", TRANSFER
    )
    np.testing.assert_allclose(found.variables["N"], [1, 4])
    np.testing.assert_allclose(found.variables["n"], [0, 10])  # n may be 0
    np.testing.assert_allclose(found.loss, [0.49, 0.48])


def test_rows_of_a_run_count_as_one(table):
    found = load(table, COLUMNS, CHINCHILLA, group="run")
    assert found.groups.tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.weights, [0.75, 0.75, 1.5])
    assert found.select(np.array([False, False, True])).groups.tolist() == [0]


def test_rows_are_chosen(table):
    assert len(load(table, COLUMNS, CHINCHILLA, where=["run=a"])) == 2
    assert len(load(table, COLUMNS, CHINCHILLA, where=["run=a", "Model Size=10000000"])) == 1
    assert len(load(table, COLUMNS, CHINCHILLA, where=["run!=a"])) == 1
    with pytest.raises(UserError, match=r"no row has run=c; run is a or b$"):
        load(table, COLUMNS, CHINCHILLA, where=["run=c"])
    with pytest.raises(UserError, match=r"no row has run!=a; run is a$"):
        load(table, COLUMNS, CHINCHILLA, where=["run=a", "run!=a"])
    for wrong, message in (("run>3", "has no = or !="), ("walk=a", "names no column")):
        with pytest.raises(UserError, match=message):
            load(table, COLUMNS, CHINCHILLA, where=[wrong])


def test_message_names_similar_and_top_level_columns(tmp_path):
    row = {
        "params": 1,
        "images": 2,
        "loss": 3,
        "config": {"train": {f"option{i}": i for i in range(200)}},
    }
    with pytest.raises(UserError) as raised:
        load(jsonl(tmp_path / "r.jsonl", [row]), "N=parms,D=images,loss=loss", CHINCHILLA)
    message = str(raised.value)
    assert (
        "no column 'parms'; did you mean params? "
        "it has images, loss, params, config.train.option0, " in message
    )
    assert " and 173 more; write numbers" in message and len(message) < 1000


@pytest.mark.parametrize("column", ["protocol", "version", "seeds", "metrics.protocol"])
def test_rows_of_different_studies_are_refused(tmp_path, column):
    rows = [
        {"N": 1e6 * (i + 1), "D": 1e8, "loss": 3, column: kind}
        for i, kind in enumerate(("new", "new", "old"))
    ]
    path = jsonl(tmp_path / "r.jsonl", rows)
    with pytest.raises(UserError, match=rf"differ in {column}: new, old; .*--where '{column}=new'"):
        load(path, "N=N,D=D,loss=loss", CHINCHILLA)
    assert len(load(path, "N=N,D=D,loss=loss", CHINCHILLA, where=[f"{column}=new"])) == 2
    path = jsonl(
        tmp_path / "r.jsonl", [*rows[:2], {"N": 1, "D": 1, "loss": 1}]
    )  # missing differs from present
    with pytest.raises(UserError, match="null"):
        load(path, "N=N,D=D,loss=loss", CHINCHILLA)
    assert len(load(path, "N=N,D=D,loss=loss", CHINCHILLA, where=[f"{column}=null"])) == 1


@pytest.mark.parametrize(
    "bad, shown",
    [("nan", "nan"), ("-1", "-1"), ("0", "0"), ("inf", "inf"), ("", "''"), ("abc", "'abc'")],
)
def test_invalid_value_is_refused_with_its_line(table, bad, shown):
    table.write_text(CSV.replace("3.5", bad))
    with pytest.raises(UserError, match=rf"line 3: loss .*is {shown}"):
        load(table, COLUMNS, CHINCHILLA)


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            "n=Model Size,loss=loss",
            "not define D; add D=COLUMN, or leave it out of the form: chinchilla-D",
        ),
        ("n=Model Size,d=`Training FLOP`", "not define loss"),
        ("n=Model Size,n=loss,loss=loss", "gives N twice"),
        ("q=Model Size", "'q=Model Size', which is no variable of chinchilla"),
        ("n", "write VARIABLE=COLUMN"),
        (
            "n=Modell,d=loss,loss=loss",
            r"no column 'Modell'; did you mean Model Size\? it has Model Size, Training FLOP",
        ),
        ("n=Model Size,d=loss/(n-1e7),loss=loss", r"line 2: D = loss/\(n-1e7\) is inf"),
        *(
            (f"n=Model Size,d={wrong},loss=loss", "cannot read the expression")
            for wrong in ("6*", "abs(loss)", "[1]", "loss if 1 else 2")
        ),
        *(
            (f"n=Model Size,d={wrong},loss=loss", "cannot read the expression")
            for wrong in ("'a'", "True", "loss<2", "1" + "0" * 400)
        ),
        (
            "n=Model Size,d=" + "(" * 500 + "1" + ")" * 500 + ",loss=loss",
            "cannot read the expression",
        ),
    ],
)
def test_invalid_columns_are_refused(table, columns, message):
    with pytest.raises(UserError, match=message):
        load(table, columns, CHINCHILLA)


def test_variable_that_the_form_omits_may_be_mapped(tmp_path):
    path = jsonl(tmp_path / "r.jsonl", [{"N": 1, "n": 0, "loss": 1}])
    assert len(load(path, "N=N,n=n,loss=loss", parse("transfer-s-n"))) == 1
    with pytest.raises(UserError, match="s = n is 0, not finite and above 0"):
        load(path, "N=N,n=n,s=n,loss=loss", TRANSFER)


def test_highest_losses_are_dropped():
    found = Table.of({"x": np.arange(1, 6)}, [1, 5, 2, 5, 3]).drop_highest_losses(2)
    assert found.variables["x"].tolist() == [1, 3, 5] and found.dropped == (1, 3)
    with pytest.raises(UserError, match="leaves none"):
        found.drop_highest_losses(3)


def test_a_row_without_its_run_is_refused(tmp_path):
    rows = [{"x": 1, "loss": 1, "run": "a"}, {"x": 2, "loss": 1}]
    with pytest.raises(UserError, match="line 2: has no value of run"):
        load(jsonl(tmp_path / "r.jsonl", rows), "x=x,loss=loss", FORMS["power"], group="run")


def test_damaged_columns_of_a_sweep_are_refused(tmp_path):
    jsonl(tmp_path / "rows.jsonl", [{"x": 1, "loss": 1}])
    (tmp_path / "columns.json").write_text('{"x": "x", "x": "loss"}')
    with pytest.raises(UserError, match=r"columns.json: is not a JSON object \(key 'x'"):
        load(tmp_path, None, FORMS["power"])


def test_rows_that_repeat_those_of_another_run_are_listed():
    x, loss = [1, 2, 1, 1, 2], [3, 4, 3, 5, 4]
    assert Table.of({"x": x}, loss).repeats == [(2, 0), (4, 1)]
    assert Table.of({"x": x}, loss, list("abacd")).repeats == [(4, 1)]


@pytest.mark.parametrize("value", ["1e60", "1e-60"])
def test_values_whose_powers_are_no_floats_are_refused(table, value):
    table.write_text(CSV.replace("3.5", value))
    with pytest.raises(UserError, match=r"line 3: loss = loss is 1e.60, not between 1e-50 and"):
        load(table, COLUMNS, CHINCHILLA)


@damage.examples(60)
@given(st.data())
def test_damaged_tables_are_read_or_refused_in_one_line(tmp_path, data):
    lines = "".join(json.dumps({"x": i, "m": {"loss": 9 - i}}) + "\n" for i in (1, 2))
    name, content = data.draw(
        st.sampled_from([("a.csv", b"x,m.loss\n1,8\n2,7\n"), ("a.jsonl", lines.encode())])
    )
    path = tmp_path / name
    path.write_bytes(data.draw(damage.of(content) | st.binary(max_size=40)))
    try:
        found = load(path, "x=x,loss=m.loss", FORMS["power"])
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite([found.loss, found.variables["x"]]).all() and (found.loss > 0).all()
