"""The HTML report of a run: one file with its metrics in sentences, loss curves and images."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modality_forcing.paths import write_file
from modality_forcing.tree import flatten
from modality_forcing.viz import figures
from modality_forcing.viz.images import png_bytes

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


def page(title: str, body: str) -> str:
    """Returns a page in the style of all reports, which fetches nothing."""
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def section(title: str, content: str) -> str:
    """Returns a section with its heading; nothing if it has no content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def chart(svg: bytes, alt: str) -> str:
    """Returns an SVG file as an image of the page, with its alternative text."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    return f"<img class=chart alt='{escape(alt, quote=True)}' src='{source}'>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of text cells, which scrolls sideways if it is too wide."""
    lines = [_row("th", header), *(_row("td", row) for row in rows)]
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


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


# --- page --------------------------------------------------------------------------------------


def _image(title: str, caption: str, image: bytes | np.ndarray) -> str:
    png = image if isinstance(image, bytes) else png_bytes(image)
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (
        f"<figure><h3>{escape(title)}</h3><img alt='{escape(title, quote=True)}' src='{source}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


# The policy enforces that a browser fetches nothing, whatever a caption contains.
_PAGE = """<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<meta http-equiv=Content-Security-Policy
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_STYLE = """
:root{color-scheme:light dark;--paper:#fcfcfb;--ink:#1c1c1f;--soft:#66666e;--line:#e2e2e6;
  --own:#2f5fd0;--other:#b9bcc6}
@media(prefers-color-scheme:dark){:root{--paper:#141416;--ink:#e8e8ec;--soft:#9c9ca6;
  --line:#2e2e34;--own:#7aa2ff;--other:#51545e}}
body{margin:0 auto;max-width:860px;padding:2.5rem 1.25rem 4rem;background:var(--paper);
  color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1rem;font-weight:600;color:var(--soft);margin:0 0 1.5rem}
h2{font-size:1.25rem;margin:0 0 .5rem;padding-top:1.5rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.25rem 0 .25rem}
section{margin-top:2.5rem}
.headline{font-size:1.25rem;margin:0}
.headline b{font-size:4rem;line-height:1;letter-spacing:-.03em;margin-right:.25rem}
.lead{font-size:1.125rem;max-width:62ch;margin:.75rem 0 0}
.note,figcaption{color:var(--soft);font-size:.9rem;margin:.25rem 0 .5rem}
table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{text-align:left;vertical-align:top;padding:.4rem .75rem .4rem 0;
  border-bottom:1px solid var(--line)}
th{font-weight:500;white-space:nowrap;color:var(--soft);width:1%}
.value{text-align:right;font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap;
  width:1%}
.plain{overflow-wrap:anywhere}
.bars{margin-bottom:1.25rem}
.bars th{min-width:9.5rem}
.bars td,.bars th{border:0;padding-top:.15rem;padding-bottom:.15rem;vertical-align:middle}
.bar span{display:block;height:.8rem;min-width:2px;border-radius:2px;background:var(--other)}
.ours th{color:var(--ink);font-weight:600}
.ours .bar span{background:var(--own)}
figure{margin:0 0 1.5rem}
.chart{width:100%}
.chart{background:#fff;border-radius:4px}
.wide{overflow-x:auto}
.wide th{width:auto}
.wide td:first-child{white-space:nowrap}
img{max-width:100%;image-rendering:pixelated;border-radius:4px;display:block}
svg{width:100%;height:auto;display:block}
@media(max-width:600px){th{white-space:normal}.headline b{font-size:3rem;display:block}}
"""
