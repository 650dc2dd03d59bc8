"""What is told of a benchmark: JSON with a row per frame, Markdown beside published numbers, a sheet of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modality_forcing import __version__
from modality_forcing.data.resize import Window, crop_resize_depth, crop_resize_image
from modality_forcing.evaluation.benchmark import Scores
from modality_forcing.evaluation.benchmarks.open import Opened
from modality_forcing.evaluation.benchmarks.registry import find_benchmark
from modality_forcing.evaluation.depth_metrics import (
    METRICS,
    DepthScores,
    aligned,
    mean_over_sets,
    mean_scores,
)
from modality_forcing.evaluation.framing import Scored, placed, view_size
from modality_forcing.evaluation.protocols import Protocol
from modality_forcing.evaluation.published import SOURCE, Reported, reported, reported_study
from modality_forcing.viz import images

SHOWN = 3  # frames of each kind: best, median, worst
_CELL = 192  # pixels a side of one picture on the sheet
_WORST = 0.25  # relative error at the top of the colours


def to_json(
    opened: Opened,
    scores: Scores,
    protocol: Protocol,
    identity: Mapping[str, Any],
    digest: str,
    checkpoint: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns everything as JSON-able values; what is not a number (an image with nothing to score) is None."""
    resolution = identity["view"]["resolution"]
    size = view_size(opened.benchmark, identity["view"]["name"], resolution)
    rows = [
        {
            "image": i,
            "name": name,
            "pixels": int(scores.pixels[i]),
            "uncertainty": _number(scores.uncertainty[i]),
        }
        | {key: _number(values[i]) for key, values in scores.each._asdict().items()}
        for i, name in enumerate(opened.names)
    ]
    return {
        "benchmark": opened.benchmark.name,
        "title": opened.benchmark.title,
        "official": opened.official,
        "layout": opened.layout,
        "protocol": protocol.to_dict(),
        "view": {
            "name": identity["view"]["name"],
            "size": size,
            "model": resolution,
            "cameras": scores.cameras,
        },
        "sampling": identity["sampling"],
        "checkpoint": dict(checkpoint) | {"weights": identity["weights"]},
        "predictions": digest,
        "version": __version__,
        **{
            key: _number(x) if isinstance(x, float) else x
            for key, x in mean_scores(scores.each).items()
        },
        "rows": rows,
    }


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def header(result: Mapping[str, Any]) -> str:
    """Returns the one line without which its numbers mean nothing: protocol, view, resolution, steps, ensemble, seed, weights."""
    view, sampling, checkpoint = result["view"], result["sampling"], result["checkpoint"]
    size = "native size" if view["size"] is None else f"{view['size'][0]}x{view['size'][1]}"
    ensemble = (
        f"{sampling['samples']} samples ({sampling['ensemble']})"
        if sampling["samples"] > 1
        else "1 sample"
    )
    solver = f"{sampling['steps']} {sampling['solver']} step{'s' if sampling['steps'] > 1 else ''}"
    told = [
        f"protocol {Protocol.from_dict(result['protocol'])}",
        f"view {view['name']} at {size}, model at {view['model']}x{view['model']}",
        solver,
        f"ensemble {ensemble}",
        f"seed {sampling['seed']}",
        f"checkpoint {checkpoint['name']} step {checkpoint['step']} (weights {checkpoint['weights']})",
    ]
    return "; ".join(told)


def to_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table per benchmark under its header, beside published numbers of the same protocol, and the mean over sets."""
    parts = [_of_one(result) for result in results]
    if len(results) > 1:
        parts.append(_over_sets(results))
    return "\n".join(parts)


def _of_one(result: Mapping[str, Any]) -> str:
    protocol = Protocol.from_dict(result["protocol"])
    notes = [f"{result['images']} images scored, {result['skipped']} with nothing to score."]
    if not result["official"]:
        notes.append("A list of one's own, not the official one: this mean is not the benchmark's.")
    missing = result["images"] + result["skipped"] - result["view"]["cameras"]
    if result["view"]["size"] and missing:
        notes.append(
            f"{missing} frames came without a camera; its axis was taken to pass through their middle."
        )
    others = reported(result["benchmark"], protocol)
    lines = [f"# {result['title']}: image to depth", "", header(result), "", *_HEAD]
    lines.append(_row("**this model**", _view(result), {m: result[m] for m in METRICS}))
    published = "{}x{}".format(*find_benchmark(result["benchmark"]).size)
    lines += [_row(other.method, published, _metrics(other)) for other in others]
    if others:
        apart = (
            ""
            if _view(result) == published
            else "; at another view than ours, so on other pixels: for orientation only"
        )
        notes.append(f"Rows below the first: {SOURCE}{apart}.")
    else:
        notes.append("No numbers published under this protocol are known here.")
    return "\n".join([*lines, "", *notes, ""])


def _view(result: Mapping[str, Any]) -> str:
    size = result["view"]["size"]
    return "as stored" if size is None else f"{size[0]}x{size[1]}"


def _over_sets(results: Sequence[Mapping[str, Any]]) -> str:
    nan = lambda result: {
        k: math.nan if result[k] is None else result[k] for k in (*METRICS, "images")
    }
    mean = mean_over_sets({result["benchmark"]: nan(result) for result in results})
    first = results[0]
    name, resolution = first["view"]["name"], first["view"]["model"]
    names = tuple(result["benchmark"] for result in results)
    # The range of depth differs from set to set; the study's protocol has none.
    others = reported_study(names, Protocol.from_dict(first["protocol"]), name, resolution)
    lines = [f"# Mean over {', '.join(result['title'] for result in results)}", "", *_HEAD]
    lines.append(_row("**this model**", _view(first), mean))
    lines += [_row(other.method, f"{resolution}x{resolution}", _metrics(other)) for other in others]
    note = (
        f"Each set counts once. Rows below the first: the scaling study of {SOURCE}."
        if others
        else "Each set counts once."
    )
    return "\n".join([*lines, "", note, ""])


_HEAD = (
    "| | view | AbsRel x100 | delta1 x100 | delta2 x100 | delta3 x100 | RMSE | log10 | SI-log x100 |",
    "|---|---|---|---|---|---|---|---|---|",
)
_PLACES = {"absrel": (100, 2), "delta1": (100, 1), "delta2": (100, 1), "delta3": (100, 1)} | {
    "rmse": (1, 3),
    "log10": (1, 4),
    "silog": (100, 2),
}


def _row(name: str, view: str, numbers: Mapping[str, Any]) -> str:
    cells = []
    for metric, (factor, places) in _PLACES.items():
        value = numbers.get(metric)
        cells.append("-" if value is None or math.isnan(value) else f"{factor * value:.{places}f}")
    return f"| {name} | {view} | {' | '.join(cells)} |"


def _metrics(other: Reported) -> dict[str, float]:
    return {"absrel": other.absrel, "delta1": other.delta1}


def sheet(
    scores: DepthScores, look: Callable[[int], tuple[Scored, np.ndarray]], protocol: Protocol
) -> np.ndarray:
    """Returns one picture u8 [h w 3] of the best, median and worst frames by AbsRel: picture, prediction, truth, error.

    look: from a frame's index to the frame and its prediction f32 at the truth's size, as the protocol aligns it.
    Prediction and truth of a frame share their colours; where truth is not known, it and the error are gray.
    """
    rows, names = [], ("best", "median", "worst")
    for name, chosen in zip(names, extremes(scores.absrel), strict=True):
        for index in chosen:
            frame, pred = look(index)
            laid = aligned(pred[None], frame.truth[None], frame.valid[None], protocol)[0]
            whole = Window(0, 0, *frame.truth.shape)
            truth, known = crop_resize_depth(frame.truth, frame.valid, whole, _CELL)
            laid = placed(laid, (_CELL, _CELL))
            limits = images.disparity_limits(truth, known)
            cells = [
                crop_resize_image(frame.picture, whole, _CELL),
                images.disparity_colours(laid, None, limits),
                images.disparity_colours(truth, known, limits),
                images.value_colours(
                    np.abs(laid - truth) / np.where(known, truth, 1), known, (0, _WORST)
                ),
            ]
            told = f"{name} {index}: AbsRel {scores.absrel[index]:.3f}"
            rows.append([images.captioned(cells[0], told), *cells[1:]])
    return images.grid(rows, labels=("picture", "prediction", "truth", f"error, 0 to {_WORST:.0%}"))


def extremes(absrel: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """Returns the indices of the best, median and worst images of those scored, up to SHOWN each and no image twice."""
    order = [int(i) for i in np.argsort(absrel, kind="stable") if not np.isnan(absrel[i])]
    best, order = order[:SHOWN], order[SHOWN:]
    worst, order = order[max(0, len(order) - SHOWN) :][::-1], order[: max(0, len(order) - SHOWN)]
    start = max(0, (len(order) - SHOWN) // 2)
    return best, order[start : start + SHOWN], worst
