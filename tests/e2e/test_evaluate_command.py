"""`mforce evaluate` on a checkpoint: a benchmark scored twice, and a resumed trajectory sweep."""

from __future__ import annotations

import json
from pathlib import Path

from tests import tiny
from tests.bundles import write_bundle
from tests.runs import process, save


def test_second_protocol_reuses_predictions(tmp_path: Path):
    run, root, out = (
        save(tmp_path / "run", tiny.forcing()),
        write_bundle(tmp_path / "data"),
        tmp_path / "out",
    )
    arguments = (
        "evaluate",
        "--checkpoint",
        run,
        "--benchmark",
        "spring",
        "--root",
        root,
        "--ensemble",
        "2",
        "--out",
        out,
    )
    first = process(*arguments, "--protocol", "moge")
    assert (
        first.code == 0 and "# Spring: image to depth" in first.out and "predicted 3" in first.err
    )
    assert "protocol moge, affine; view square at 16x16" in first.out and "step 0 " in first.out
    second = process(*arguments, "--protocol", "marigold", "--json")
    assert second.code == 0 and "predicted 0" in second.err
    result = json.loads(second.out)
    assert (
        result["protocol"]["name"] == "marigold"
        and len(result["rows"]) == 3
        and result["skipped"] == 1
    )
    assert (
        len(list(out.glob("spring_*.json")))
        == len(list(out.glob("spring_*.md")))
        == len(list(out.glob("spring_*.png")))
        == 2
    )


def test_trajectory_sweep_reuses_finished_rows(tmp_path: Path):
    run, out = save(tmp_path / "run", tiny.forcing()), tmp_path / "out"
    arguments = ("evaluate", "--checkpoint", run, "--examples", "4", "--out", out)
    assert process(*arguments, "--trajectory-sweep", "log2_alpha:0,2").code == 0
    done = process(*arguments, "--trajectory-sweep", "log2_alpha:-2..2:2", "--json")
    assert done.code == 0 and "2/3 already done" in done.err
    assert [row["log2_alpha"] for row in json.loads(done.out)["rows"]] == [-2, 0, 2]
    assert {path.name for path in out.iterdir()} == {
        "rows",
        "samples.png",
        "trajectory_sweep.json",
        "trajectory_sweep.md",
        "trajectory_sweep.png",
        "trajectory_sweep.svg",
    }
