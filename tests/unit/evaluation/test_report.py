"""Benchmark reports: complete settings, and published numbers of the same protocol only."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modality_forcing.evaluation import report
from modality_forcing.evaluation.benchmarks.open import OpenedBenchmark
from modality_forcing.evaluation.benchmarks.registry import BENCHMARKS, Frame
from modality_forcing.evaluation.depth_metrics import METRICS, DepthScores
from modality_forcing.evaluation.protocols import MOGE, Protocol, get_protocol
from modality_forcing.evaluation.report import (
    STUDY_SETS,
    BenchmarkScores,
    published_scores,
    published_study,
)
from modality_forcing.evaluation.views import EvalFrame


def result(
    name: str = "nyuv2",
    chosen: Protocol = MOGE,
    view: str = "square",
    resolution: int = 256,
    official: bool = True,
) -> Any:
    """A set of three images, the second without valid pixels."""
    values = {field: np.array([0.1, np.nan, 0.3], "f4") for field in DepthScores._fields}
    values["nonfinite"] = np.array([0, np.nan, 0], "f4")
    scores = BenchmarkScores(
        DepthScores(**values), np.array([5, 0, 7]), np.array([0.0, 0.1, 0.2], "f4"), 2, 3
    )
    layout: Any = SimpleNamespace(
        kind="bundle", num_expected=None, names=tuple, files=dict, read=Frame
    )
    opened = OpenedBenchmark(BENCHMARKS[name], ("a", "b", "c"), official, layout)
    about = {
        "checkpoint": {"name": "mf", "step": "1200", "weights": "f00d"},
        "predictions_digest": "d1ge57",
        "view": {"name": view, "resolution": resolution},
        "sampling": {
            "steps": 50,
            "solver": "heun",
            "timestep_shift": 1.1,
            "guidance": {},
            "samples": 10,
            "ensemble": "scale",
            "seed": 7,
        },
    }
    return report.make_result(opened, scores, chosen, about)


def test_json_has_a_row_per_image_and_the_mean_of_scored_ones():
    written = json.loads(json.dumps(result(), allow_nan=False))
    assert (written["images"], written["skipped"]) == (2, 1)
    assert written["absrel"] == np.float32([0.1, 0.3]).mean(dtype="f8")
    assert [row["name"] for row in written["rows"]] == ["a", "b", "c"]
    assert written["rows"][1]["absrel"] is None and written["rows"][2]["valid_pixels"] == 7
    assert (
        set(METRICS) <= set(written["rows"][0]) and Protocol.from_dict(written["protocol"]) == MOGE
    )


def test_settings_line_is_complete():
    header = report.describe_settings(result())
    for part in (
        "protocol moge, affine",
        "view square at 256x256",
        "model at 256x256",
        "50 heun steps",
        "10 samples (scale)",
    ):
        assert part in header
    for part in ("seed 7", "checkpoint mf step 1200 (weights f00d)"):
        assert part in header
    assert "\n" not in header and "native size" in report.describe_settings(result(view="frame"))


def table(text: str) -> dict[str, list[str]]:
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip("*"): row[1:] for row in rows[1:]}


def test_published_rows_are_listed_with_their_view():
    text = report.to_markdown([result()])
    rows = table(text)
    assert rows["this model"][:3] == ["256x256", "20.00", "20.0"]
    assert rows["Modality Forcing (FLUX.2)"] == ["640x480", "2.52", "98.9", *"-----"]
    assert "for orientation only" in text and "1 with nothing to score" in text
    assert "1 frames had no intrinsics" in text
    assert "for orientation only" not in report.to_markdown([result(view="moge")])


def test_frames_without_a_finite_prediction_are_named():
    broken = result()
    broken["absrel"], broken["nonfinite"], broken["rows"][2]["nonfinite"] = None, 1, 4
    text = report.to_markdown([broken, result("eth3d")])
    assert "2 images scored, 1 with nothing to score, 1 with a prediction" in text
    assert "not finite at valid pixels" in text and "delta 0: c (4 of 7 pixels)." in text
    assert table(text)["this model"][:3] == ["256x256", "inf", "20.0"]  # the mean over both sets


def test_other_protocols_have_no_published_rows():
    for chosen in (get_protocol("marigold"), get_protocol("moge", "scale")):
        text = report.to_markdown([result(chosen=chosen)])
        assert (
            list(table(text)) == ["this model"]
            and "No published numbers under this protocol" in text
        )


def test_unofficial_frame_list_is_noted():
    assert "not the official one" in report.to_markdown([result(official=False)])


def test_mean_over_the_study_sets_is_compared_with_the_study():
    four = [result(name) for name in ("nyuv2", "scannet", "eth3d", "diode")]
    text = report.to_markdown(four).split("# Mean over")[1]
    rows = table(text)
    assert rows["this model"][1] == "20.00" and rows["Modality Forcing 3.3B, 1.92B images"][:3] == [
        "256x256",
        "4.40",
        "97.1",
    ]
    assert list(table(report.to_markdown(four[:3]).split("# Mean over")[1])) == ["this model"]
    assert "Mean over" not in report.to_markdown(four[:1])


def test_best_median_worst_are_distinct_and_scored():
    absrel = np.array([0.5, 0.1, np.nan, 0.9, 0.3, 0.2, 0.7, 0.6, 0.4, 0.8], "f4")
    best, median, worst = report.best_median_worst(absrel)
    assert best == [1, 5, 4] and worst == [3, 9, 6] and median == [8, 0, 7]
    few = report.best_median_worst(np.array([0.2, 0.1], "f4"))
    assert sorted(i for part in few for i in part) == [0, 1]
    assert report.best_median_worst(np.full(3, np.nan, "f4")) == ([], [], [])


def test_sheet_has_a_row_per_frame_and_grays_invalid_error():
    valid = np.zeros((32, 48), bool)
    valid[:, :24] = True
    target = np.where(valid, 2.0, 0).astype("f4")
    frame = EvalFrame(
        "a", np.zeros((16, 16, 3), "u1"), np.full((32, 48, 3), 200, "u1"), target, valid, True
    )
    each = DepthScores(**{field: np.linspace(0, 1, 5, dtype="f4") for field in DepthScores._fields})
    asked: list[int] = []

    def look(index: int) -> tuple[EvalFrame, np.ndarray]:
        asked.append(index)
        return frame, np.where(valid, 3.0, 5.0).astype("f4")

    sheet = report.example_sheet(each, look, get_protocol("moge", "scale"))
    assert asked == [0, 1, 2, 4, 3] and sheet.dtype == np.uint8
    cell = (sheet.shape[1] - 4) // 4
    error = sheet[40 : 40 + cell // 2, 3 * cell + 8 : 4 * cell]
    assert (error[:, : cell // 3] == error[0, 0]).all() and len(
        np.unique(error[:, -cell // 4 :].reshape(-1, 3), axis=0)
    ) == 1
    assert (error[0, -1] == 128).all() and not (error[0, 0] == 128).all()


def test_published_scores_of_the_paper():
    found = {row.method: row for row in published_scores("nyuv2", MOGE)}
    assert len(found) == 7
    assert found["Modality Forcing (FLUX.2)"][1:] == pytest.approx((0.0252, 0.989))
    assert "MoGe-2 (discriminative)" not in {
        row.method for row in published_scores("scannet", MOGE)
    }  # it reports none
    assert published_scores("sintel", MOGE) == []


@pytest.mark.parametrize(
    "other",
    [
        get_protocol("marigold"),
        get_protocol("moge", "scale"),
        replace(MOGE, strict=True),
        replace(MOGE, depth_range=(0.1, 10.0)),
    ],
)
def test_other_protocols_have_no_published_scores(other):
    assert published_scores("nyuv2", other) == []
    assert published_study(STUDY_SETS, other, "square", 256) == []


def test_study_covers_four_sets_at_256():
    rows = published_study(STUDY_SETS[::-1], MOGE, "square", 256)
    assert [(row.absrel, row.delta1) for row in rows] == [
        (0.057, 0.958),
        (0.051, 0.963),
        (0.044, 0.971),
    ]
    assert published_study((*STUDY_SETS, "kitti"), MOGE, "square", 256) == []
    assert (
        published_study(STUDY_SETS, MOGE, "moge", 256)
        == []
        == published_study(STUDY_SETS, MOGE, "square", 128)
    )
