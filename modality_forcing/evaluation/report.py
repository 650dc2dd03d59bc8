"""Benchmark reports: JSON with a row per frame, Markdown with published numbers, image sheets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from modality_forcing import __version__
from modality_forcing.data.resize import Window, crop_resize_depth, crop_resize_image
from modality_forcing.evaluation.benchmarks.open import OpenedBenchmark
from modality_forcing.evaluation.benchmarks.registry import find_benchmark
from modality_forcing.evaluation.depth_metrics import (
    METRICS,
    DepthScores,
    align_prediction,
    describe_counts,
    mean_over_sets,
    mean_scores,
)
from modality_forcing.evaluation.protocols import MOGE, Protocol
from modality_forcing.evaluation.resample import resize_prediction
from modality_forcing.evaluation.views import EvalFrame, view_size
from modality_forcing.tree import JsonObject
from modality_forcing.viz import images

EXAMPLES = 3  # frames of each kind on the sheet: best, median, worst
_CELL = 192  # pixels a side of an image on the sheet
_MAX_ERROR = 0.25  # relative error at the top of the color map

Result = JsonObject  # of `make_result`, or as read from its JSON
ExampleLoader = Callable[[int], tuple[EvalFrame, np.ndarray]]


class BenchmarkScores(NamedTuple):
    """The scores of a benchmark, frame by frame."""

    per_image: DepthScores  # [n]
    pixels: np.ndarray  # i64 [n], valid pixels in the view
    uncertainty: np.ndarray  # f32 [n], mean over the view, over the greatest depth; 0: one sample
    num_with_intrinsics: int
    num_predicted: int  # frames whose prediction was not stored before


def make_result(
    opened: OpenedBenchmark, scores: BenchmarkScores, protocol: Protocol, about: Result
) -> Result:
    """Returns all numbers as JSON-able values, None for NaN and infinity.

    about: the `view`, `sampling`, `checkpoint` and `predictions_digest` of the predictions.
    """
    name, resolution = about["view"]["name"], about["view"]["resolution"]
    columns = {
        "valid_pixels": scores.pixels.tolist(),
        "uncertainty": _finite(scores.uncertainty),
        **{key: _finite(values) for key, values in scores.per_image._asdict().items()},
    }
    rows = [
        {"index": i, "name": frame} | {key: values[i] for key, values in columns.items()}
        for i, frame in enumerate(opened.names)
    ]
    means = mean_scores(scores.per_image)
    return {
        "benchmark": opened.benchmark.name,
        "title": opened.benchmark.title,
        "official_list": opened.official_list,
        "layout": opened.layout,
        "protocol": protocol.to_dict(),
        "view": {
            "name": name,
            "size": view_size(opened.benchmark, name, resolution),
            "model_resolution": resolution,
            "frames_with_intrinsics": scores.num_with_intrinsics,
        },
        "sampling": about["sampling"],
        "checkpoint": about["checkpoint"],
        "predictions_digest": about["predictions_digest"],
        "version": __version__,
        **{key: value if math.isfinite(value) else None for key, value in means.items()},
        "rows": rows,
    }


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(x) if math.isfinite(x) else None for x in values]


def describe_settings(result: Result) -> str:
    """Returns one line with everything that the numbers depend on, from protocol to weights."""
    view, sampling, checkpoint = result["view"], result["sampling"], result["checkpoint"]
    size = "native size" if view["size"] is None else "{}x{}".format(*view["size"])
    model, samples, steps = view["model_resolution"], sampling["samples"], sampling["steps"]
    ensemble = f"{samples} samples ({sampling['ensemble']})" if samples > 1 else "1 sample"
    parts = [
        f"protocol {Protocol.from_dict(result['protocol'])}",
        f"view {view['name']} at {size}, model at {model}x{model}",
        f"{steps} {sampling['solver']} step{'s' if steps > 1 else ''}",
        f"ensemble {ensemble}",
        f"seed {sampling['seed']}",
        "checkpoint {name} step {step} (weights {weights})".format(**checkpoint),
    ]
    return "; ".join(parts)


def to_markdown(results: Sequence[Result]) -> str:
    """Returns a table per benchmark beside published numbers, then the mean over benchmarks."""
    parts = [_one_table(result) for result in results]
    if len(results) > 1:
        parts.append(_mean_table(results))
    return "\n".join(parts)


def _one_table(result: Result) -> str:
    protocol = Protocol.from_dict(result["protocol"])
    notes = [f"{describe_counts(result)}."]
    if not result["official_list"]:
        notes.append("The frame list is not the official one: the mean is not the benchmark's.")
    view = result["view"]
    missing = result["images"] + result["skipped"] - view["frames_with_intrinsics"]
    if view["size"] and missing:
        notes.append(
            f"{missing} frames had no intrinsics; their principal point was assumed at the center."
        )
    published_view = "{}x{}".format(*find_benchmark(result["benchmark"]).size)
    lines = [f"# {result['title']}: image to depth", "", describe_settings(result), "", *_HEAD]
    lines.append(_row("**this model**", _format_size(result), _means(result)))
    others = published_scores(result["benchmark"], protocol)
    lines += [_row(other.method, published_view, other._asdict()) for other in others]
    if others:
        same = _format_size(result) == published_view
        note = "" if same else "; another view, so other pixels than ours: for orientation only"
        notes.append(f"Rows below the first: {SOURCE}{note}.")
    else:
        notes.append("No published numbers under this protocol are known.")
    return "\n".join([*lines, "", *notes, ""])


def _format_size(result: Result) -> str:
    size = result["view"]["size"]
    return "as stored" if size is None else "{}x{}".format(*size)


def _mean_table(results: Sequence[Result]) -> str:
    sets = {
        result["benchmark"]: _means(result) | {"images": result["images"]} for result in results
    }
    first = results[0]
    view, resolution = first["view"]["name"], first["view"]["model_resolution"]
    # The depth range differs between sets; the study's protocol has none.
    protocol = Protocol.from_dict(first["protocol"])
    others = published_study(tuple(sets), protocol, view, resolution)
    lines = [f"# Mean over {', '.join(result['title'] for result in results)}", "", *_HEAD]
    lines.append(_row("**this model**", _format_size(first), mean_over_sets(sets)))
    size = f"{resolution}x{resolution}"
    lines += [_row(other.method, size, other._asdict()) for other in others]
    note = f" Rows below the first: the scaling study of {SOURCE}." if others else ""
    return "\n".join([*lines, "", f"Each set counts once.{note}", ""])


_HEAD = (
    "| | view | AbsRel x100 | delta1 x100 | delta2 x100 | delta3 x100 "
    "| RMSE | log10 | SI-log x100 |",
    "|---|---|---|---|---|---|---|---|---|",
)
# By metric, the factor and the number of decimals in a table.
_FORMATS = {
    "absrel": (100, 2),
    "delta1": (100, 1),
    "delta2": (100, 1),
    "delta3": (100, 1),
    "rmse": (1, 3),
    "log10": (1, 4),
    "silog": (100, 2),
}


def _means(result: Result) -> dict[str, float]:
    """Returns the mean of each metric; JSON has None for infinity and for NaN."""
    missing = math.inf if result["nonfinite"] else math.nan
    return {key: missing if result[key] is None else result[key] for key in METRICS}


def _row(name: str, view: str, numbers: Mapping[str, Any]) -> str:
    cells = []
    for metric, (factor, decimals) in _FORMATS.items():
        value = numbers.get(metric)
        cells.append(
            "-" if value is None or math.isnan(value) else f"{factor * value:.{decimals}f}"
        )
    return f"| {name} | {view} | {' | '.join(cells)} |"


def example_sheet(scores: DepthScores, load: ExampleLoader, protocol: Protocol) -> np.ndarray:
    """Returns an image u8 [h w 3] of the best, median and worst frames by AbsRel.

    Columns: image, prediction, target, error. Prediction and target share a color scale; the target
    and the error are gray where not valid.

    load: returns a frame by index with its prediction f32 [h w], in the protocol's space.
    """
    rows = []
    kinds = zip(("best", "median", "worst"), best_median_worst(scores.absrel), strict=True)
    for kind, index in ((kind, index) for kind, indices in kinds for index in indices):
        frame, pred = load(index)
        pred = align_prediction(pred[None], frame.target[None], frame.valid[None], protocol)[0]
        window = Window(0, 0, *frame.target.shape)
        target, valid = crop_resize_depth(frame.target, frame.valid, window, _CELL)
        pred = resize_prediction(pred, (_CELL, _CELL))
        limits = images.disparity_limits(target, valid)
        error = np.abs(pred - target) / np.where(valid, target, 1)
        label = f"{kind} {index}: AbsRel {scores.absrel[index]:.3f}"
        rows.append(
            [
                images.add_caption(crop_resize_image(frame.image, window, _CELL), label),
                images.colorize_disparity(pred, None, limits),
                images.colorize_disparity(target, valid, limits),
                images.colorize(error, valid, (0, _MAX_ERROR)),
            ]
        )
    labels = ("image", "prediction", "target", f"error, 0 to {_MAX_ERROR:.0%}")
    return images.grid(rows, labels=labels)


def best_median_worst(absrel: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """Returns the indices of up to `EXAMPLES` images each, none twice and none unscored."""
    order = [int(i) for i in np.argsort(absrel, kind="stable") if not np.isnan(absrel[i])]
    best, order = order[:EXAMPLES], order[EXAMPLES:]
    split = max(0, len(order) - EXAMPLES)
    worst, order = order[split:][::-1], order[:split]
    start = max(0, (len(order) - EXAMPLES) // 2)
    return best, order[start : start + EXAMPLES], worst


# --- published numbers -------------------------------------------------------------------------

SOURCE = "arXiv 2606.13676, under MoGe's protocol, affine-invariant depth"


class PublishedScore(NamedTuple):
    """One method on one set, as fractions."""

    method: str
    absrel: float
    delta1: float


_PUBLISHED_SETS = ("nyuv2", "kitti", "eth3d", "scannet", "diode")
# AbsRel and delta1, both times 100, in the order of _PUBLISHED_SETS.
_PUBLISHED: dict[str, tuple[tuple[float, float] | None, ...]] = {
    "MoGe-2 (discriminative)": ((2.89, 98.6), (3.75, 98.1), (2.80, 99.1), None, (3.14, 97.4)),
    "Pixel-Perfect Depth": ((3.82, 97.7), (6.57, 95.1), (4.02, 98.3), (4.04, 97.8), (4.97, 95.6)),
    "Marigold": ((4.88, 96.8), (9.05, 90.3), (4.90, 97.2), (5.89, 95.2), (6.13, 94.5)),
    "JointNet": ((11.92, 86.7), (13.74, 81.3), (12.63, 87.1), (14.81, 81.8), (20.02, 82.7)),
    "UniCon": ((8.75, 91.7), (18.67, 73.0), (8.77, 92.9), (9.23, 91.0), (13.57, 90.8)),
    "JointDiT": ((5.12, 96.9), (10.90, 88.4), (5.32, 97.0), (5.76, 96.3), (10.22, 93.9)),
    "Modality Forcing (FLUX.2)": (
        *((2.52, 98.9), (5.37, 96.6), (2.37, 99.3)),
        *((2.32, 98.9), (3.35, 97.7)),
    ),
}

# The paper's scaling study: the mean over these sets, at 256 px, of its from-scratch models.
STUDY_SETS = ("nyuv2", "diode", "eth3d", "scannet")
_STUDY = {"370M": (0.057, 0.958), "800M": (0.051, 0.963), "3.3B": (0.044, 0.971)}


def published_scores(benchmark: str, protocol: Protocol) -> list[PublishedScore]:
    """Returns the published scores of a benchmark; none under any other protocol than theirs."""
    if protocol != MOGE or benchmark not in _PUBLISHED_SETS:
        return []
    column = _PUBLISHED_SETS.index(benchmark)
    return [
        PublishedScore(name, numbers[0] / 100, numbers[1] / 100)
        for name, row in _PUBLISHED.items()
        if (numbers := row[column])
    ]


def published_study(
    benchmarks: tuple[str, ...], protocol: Protocol, view: str, resolution: int
) -> list[PublishedScore]:
    """Returns the scaling study's means, if benchmarks, protocol and view are the study's."""
    same = sorted(benchmarks) == sorted(STUDY_SETS) and protocol == MOGE
    if not same or (view, resolution) != ("square", 256):
        return []
    return [
        PublishedScore(f"Modality Forcing {size}, 1.92B images", *numbers)
        for size, numbers in _STUDY.items()
    ]
