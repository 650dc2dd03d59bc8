"""`mforce evaluate` on a checkpoint: a benchmark scored twice, and a resumed trajectory sweep.

The first run of each is a real process. The second runs here and reads what the first one wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests import tiny
from tests.bundles import write_bundle
from tests.runs import Command, process, save


def test_second_protocol_reuses_predictions(tmp_path: Path, mforce: Command):
    run, out = save(tmp_path / "run", tiny.forcing()), tmp_path / "out"
    root = write_bundle(tmp_path / "data")
    benchmark = ("--benchmark", "spring", "--root", root, "--ensemble", "2")
    arguments = ("evaluate", "--checkpoint", run, *benchmark, "--out", out)
    first = process(*arguments, "--protocol", "moge")
    assert first.code == 0, first.err
    assert "# Spring: image to depth" in first.out and "predicted 3" in first.err
    assert "protocol moge, affine; view square at 16x16" in first.out and "step 0 " in first.out
    second = mforce(*arguments, "--protocol", "marigold", "--json")
    assert second.code == 0 and "predicted 0" in second.err
    result = json.loads(second.out)
    assert result["protocol"]["name"] == "marigold"
    assert (len(result["rows"]), result["skipped"]) == (3, 1)
    assert [len(list(out.glob(f"spring_*.{end}"))) for end in ("json", "md", "png")] == [2, 2, 2]


def test_trajectory_sweep_reuses_finished_rows(tmp_path: Path, mforce: Command):
    run, out = save(tmp_path / "run", tiny.forcing()), tmp_path / "out"
    arguments = ("evaluate", "--checkpoint", run, "--examples", "4", "--out", out)
    assert process(*arguments, "--trajectory-sweep", "log2_alpha:0,2").code == 0
    done = mforce(*arguments, "--trajectory-sweep", "log2_alpha:-2..2:2", "--json")
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
