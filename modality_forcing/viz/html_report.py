"""The HTML report of a run: one file with its metrics in sentences, loss curves and images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modality_forcing.paths import write_file
from modality_forcing.tree import flatten
from modality_forcing.viz import figures
from modality_forcing.viz.images import png_bytes
from modality_forcing.viz.page import chart, data_url, page, section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]
ImageEntry = tuple[str, str, bytes | np.ndarray]  # title, caption, PNG file or u8 [h w 3]
Numbers = Mapping[str, object]  # flattened summary


def write_report(
    path: str | Path,
    summary: Mapping[str, object],
    curves: Mapping[str, Curve],
    images: Sequence[ImageEntry],
    *,
    title: str = "Modality Forcing",
) -> None:
    """Writes a self-contained report.html atomically: no script, no network, no other file.

    Args:
      path: the file.
      summary: the metrics of summary.json; known ones get a sentence, all others are listed.
      curves: (step, value) by "phase/name", one chart per phase.
      images: titles, captions and images.
      title: of the page.

    Raises UserError if the file cannot be written.
    """
    numbers = flatten(summary, ".")
    body = [
        f"<header><h1>{escape(title)}</h1>{_headline(numbers)}</header>",
        section("Errors compared", _metric_bars(numbers)),
        section("What the numbers mean", _explanations(numbers)),
        section("Loss", "".join(_loss_charts(curves))),
        section("Images", "".join(_image(*entry) for entry in images)),
        section("Run time", _phase_seconds(numbers)),
        section("Further values", _other_numbers(numbers)),
    ]
    write_file(path, page(title, "\n".join(body)).encode())


# --- numbers -----------------------------------------------------------------------------------

# In the order shown. {p} is the value in percent, {model/} the model's AbsRel over the value,
# {/d2i} the value over d2i.absrel. If that other number is missing, the sentence ends at its colon.
_MEANINGS = {
    "i2d.absrel": "Depth from an image: mean error {p} on held-out scenes, aligned per image.",
    "i2d.delta1": "Share of pixels whose depth is within a factor of 1.25 of the target: {p}.",
    "row_mean.absrel": "Mean depth of each row, ignoring the image: the model has {model/} of its "
    "error.",
    "constant.absrel": "Best constant depth per image: the model has {model/} of its error.",
    "no_pretraining.absrel": "Model without image pretraining: the pretrained one has {model/} of "
    "its error.",
    "joint.depth_first_absrel": "Joint generation, depth first: the depth differs by {p} from that "
    "estimated from the generated image.",
    "joint.image_first_absrel": "Joint generation, image first: the depth differs by {p} from that "
    "estimated from the generated image.",
    "d2i.absrel": "Image from depth: the depth estimated from the generated image differs by {p}.",
    "d2i.absrel_shuffled": "The same for the image of another example: {/d2i} times as much.",
    "text.color_recall": "Color words of a caption that its generated image shows: {p}.",
    "text.color_recall_chance": "Color words of a caption that images of other captions show: {p}.",
    "text.color_recall_dataset": "Color words of a caption that its dataset image shows: {p}, the "
    "limit of this metric.",
    "peak_rss_mb": "Peak memory in MB.",
}
_BARS = {
    "Depth from an image. AbsRel: mean of |prediction − target| / target, lower is better.": {
        "i2d.absrel": "this model",
        "no_pretraining.absrel": "without pretraining",
        "row_mean.absrel": "mean of each row",
        "constant.absrel": "best constant",
    },
    "Depth against that estimated from the generated image. AbsRel, lower is better.": {
        "joint.depth_first_absrel": "joint, depth first",
        "joint.image_first_absrel": "joint, image first",
        "d2i.absrel": "image from depth",
        "d2i.absrel_shuffled": "shuffled images",
    },
}


def _number(numbers: Numbers, key: str) -> float | None:
    value = numbers.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(float(value)) else None


def _headline(numbers: Numbers) -> str:
    error = _number(numbers, "i2d.absrel")
    if error is None:
        return "<p class=lead>This run has no image-to-depth score.</p>"
    ratios = [
        f"{error / baseline:.2f} of the error of {name}"
        for key, name in (
            ("constant.absrel", "the best constant"),
            ("row_mean.absrel", "the per-row mean"),
        )
        if (baseline := _number(numbers, key))
    ]
    compared = f", {' and '.join(ratios)}" if ratios else ""
    delta1 = _number(numbers, "i2d.delta1")
    inliers = "" if delta1 is None else f" {delta1:.0%} of pixels are within a factor of 1.25."
    return (
        f"<p class=headline><b>{_format(error)}</b> AbsRel, depth from an image</p><p class=lead>"
        f"Mean depth error {error:.1%} on held-out scenes{escape(compared)}.{inliers}</p>"
    )


def _explanations(numbers: Numbers) -> str:
    rows = []
    for key, meaning in _MEANINGS.items():
        if key in numbers:
            text = escape(_explain(key, meaning, numbers))
            value = _format(numbers[key])
            rows.append(f"<tr><th>{escape(key)}<td class=value>{value}<td>{text}")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _explain(key: str, meaning: str, numbers: Numbers) -> str:
    value = _number(numbers, key)
    if value is None:
        return "Not a number in this run."
    model, d2i = _number(numbers, "i2d.absrel"), _number(numbers, "d2i.absrel")
    for mark, numerator, denominator in (("{model/}", model, value), ("{/d2i}", value, d2i)):
        if mark in meaning:
            if numerator is None or not denominator:
                return meaning.split(":")[0] + "."
            meaning = meaning.replace(mark, f"{numerator / denominator:.2f}")
    return meaning.replace("{p}", f"{value:.1%}")


def _metric_bars(numbers: Numbers) -> str:
    tables = []
    for note, keys in _BARS.items():
        values = {label: _number(numbers, key) for key, label in keys.items()}
        values = {label: value for label, value in values.items() if value is not None}
        if values:
            tables.append(_bar_table(values, note, highlighted=keys.get("i2d.absrel")))
    return "".join(tables)


def _phase_seconds(numbers: Numbers) -> str:
    seconds = {
        key.removeprefix("seconds."): value
        for key in numbers
        if key.startswith("seconds.") and (value := _number(numbers, key)) is not None
    }
    total = sum(value for name, value in seconds.items() if name != "total")
    return _bar_table(seconds, f"Seconds per phase, {total:,.0f} in total.") if seconds else ""


def _bar_table(values: Mapping[str, float], note: str, highlighted: str | None = None) -> str:
    longest = max(*values.values(), 1e-12)
    rows = []
    for label, value in values.items():
        row = "<tr class=ours>" if label == highlighted else "<tr>"
        width = 100 * max(value, 0) / longest
        rows.append(
            f"{row}<th>{escape(label)}<td class=value>{_format(value)}"
            f"<td class=bar><span style='width:{width:.1f}%'></span>"
        )
    return f"<p class=note>{escape(note)}</p><table class=bars>{''.join(rows)}</table>"


def _other_numbers(numbers: Numbers) -> str:
    rows = []
    for key, value in numbers.items():
        timed = key.startswith("seconds.") and _number(numbers, key) is not None
        if key not in _MEANINGS and not timed:
            rows.append(f"<tr><th>{escape(key)}<td class=plain>{_format(value)}")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _format(value: object) -> str:
    """Returns a value for a table cell: few digits for numbers, everything else escaped."""
    if isinstance(value, float | np.floating):
        size = abs(float(value))
        if not math.isfinite(size):
            return "–"
        return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(json.dumps(value, default=str))


# --- loss curves -------------------------------------------------------------------------------

_POINTS = 400  # per line: more than the eye resolves, few enough for a small file


def _loss_charts(curves: Mapping[str, Curve]) -> list[str]:
    phases: dict[str, dict[str, np.ndarray]] = {}
    for name, curve in curves.items():
        phase, _, line = name.rpartition("/")
        points = np.array(curve, np.float64).reshape(-1, 2)
        # A logarithmic axis shows no others.
        points = points[np.isfinite(points).all(axis=1) & (points[:, 1] > 0)]
        if len(points):
            phases.setdefault(phase, {})[line] = points
    charts = []
    for phase, lines in phases.items():
        with figures.style():
            svg = figures.render(loss_figure(lines), "svg")
        alt = f"{phase}: {', '.join(lines)} by step, logarithmic"
        charts.append(f"<figure><h3>{escape(phase)}</h3>{chart(svg, alt)}</figure>")
    return charts


def loss_figure(lines: Mapping[str, np.ndarray]) -> Figure:
    """Returns the chart of positive losses (step, value) [n 2] by name: raw and smoothed."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    figure = figures.new_figure(columns=2, height=2.4)
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.set_xlabel("step")
    for i, (name, points) in enumerate(lines.items()):
        color = figures.COLORS[i % len(figures.COLORS)]
        count = min(len(points), _POINTS)
        index = np.unique(np.linspace(0, len(points) - 1, count).astype(int))
        steps, smooth = points[index, 0], _smooth(points[:, 1], index)
        axes.plot(steps, points[index, 1], color=color, alpha=0.3, lw=0.6)
        # Plain text: matplotlib would read $ as mathematics.
        label = f"{name} {_format(float(smooth[-1]))}".replace("$", r"\$")
        axes.plot(steps, smooth, color=color, label=label)
    values = np.concatenate([points[:, 1] for points in lines.values()])
    # A few early spikes must not compress the rest.
    low, high = np.percentile(values, (0, 99.5))
    axes.set_ylim(low / 1.05, high * 1.05)
    wide = high > 3 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(5))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def _smooth(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns centered means over a twentieth of the run, narrower at the ends."""
    reach = len(values) // 40
    room = np.maximum(np.minimum(index, len(values) - 1 - index), reach // 4)
    radius = np.minimum(reach, room)
    starts, stops = np.maximum(index - radius, 0), index + radius + 1
    return np.array([values[i:j].mean() for i, j in zip(starts, stops, strict=True)])


# --- images ------------------------------------------------------------------------------------


def _image(title: str, caption: str, image: bytes | np.ndarray) -> str:
    png = image if isinstance(image, bytes) else png_bytes(image)
    source = data_url("image/png", png)
    return (
        f"<figure><h3>{escape(title)}</h3><img alt='{escape(title, quote=True)}' src='{source}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
