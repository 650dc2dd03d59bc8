"""The report of a run: one HTML file with its numbers in plain words, its loss curves and its pictures."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from modality_forcing.atomic_io import write_file
from modality_forcing.tree import flatten
from modality_forcing.viz.images import png_bytes

Curve = Sequence[tuple[int, float]]
Grid = tuple[str, str, bytes | np.ndarray]  # title, caption, PNG file or u8 [h w 3]


def write_report(
    path: str | Path,
    summary: Mapping[str, object],
    curves: Mapping[str, Curve],
    grids: Sequence[Grid],
    title: str = "Modality Forcing",
) -> None:
    """Writes a self-contained report.html: no script, no network, no file beside it; nothing is left half-written.

    summary: the numbers of summary.json; those known here get a sentence, all others are listed. curves: (step, value)
    by "phase/name", one chart a phase. Raises UserError if the file cannot be written.
    """
    numbers = flatten(summary, ".")
    body = [
        f"<header><h1>{escape(title)}</h1>{_headline(numbers)}</header>",
        section("Errors side by side", _bars(numbers)),
        section("What the numbers mean", _sentences(numbers)),
        section("Loss", "".join(_charts(curves))),
        section("Pictures", "".join(_figure(*grid) for grid in grids)),
        section("Where the time went", _seconds(numbers)),
        section("Also recorded", _others(numbers)),
    ]
    write_file(path, page(title, "\n".join(body)).encode())


def page(title: str, body: str) -> str:
    """Returns a whole page in the style of all reports, which fetches nothing."""
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def _number(numbers: Mapping[str, object], key: str) -> float | None:
    value = numbers.get(key)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.number)
        or not math.isfinite(float(value))
    ):
        return None
    return float(value)


def section(title: str, content: str) -> str:
    """Returns a part of a page under its heading, nothing where it has no content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


# --- numbers -----------------------------------------------------------------------------------------------------

# In the order shown. {p} is the value in percent, {ours/} the model's own AbsRel over the value, {/d2i} the value over
# d2i.absrel; where that other number is missing, the sentence ends at its colon.
_MEANINGS = {
    "i2d.absrel": "Depth from a picture: off by {p} on average on held-out scenes, scale and shift aligned per image.",
    "i2d.delta1": "On average {p} of the pixels of a picture get a depth within a factor 1.25 of the truth.",
    "row_mean.absrel": "The mean depth of each image row, the picture unseen: the model makes {ours/} of its error.",
    "constant.absrel": "The best single depth for each picture: the model makes {ours/} of its error.",
    "no_pretraining.absrel": "A model not pretrained on pictures: the pretrained one makes {ours/} of its error.",
    "joint.depth_first": "Both generated, depth ahead: off by {p} from what the model then sees in its own picture.",
    "joint.image_first": "Both generated, picture ahead: off by {p} from what the model then sees in its own picture.",
    "d2i.absrel": "Picture from a depth: what the model then sees in its own picture is off by {p} from that depth.",
    "d2i.absrel_unrelated": "The same for a picture that has nothing to do with that depth: {/d2i} times as much.",
    "text.found": "Of the colour words in a caption, {p} are found in the picture made from it.",
    "text.chance": "Of the colour words in a caption, {p} are found in a picture made from another one.",
    "text.truth": "Of the colour words in a caption, {p} are found in the true picture: as much as this measure sees.",
    "peak_rss_mb": "Peak memory in MB.",
}
_BARS = {
    "Depth from a picture, against the truth. AbsRel: mean of |predicted − true| / true, shorter is better.": {
        "i2d.absrel": "this model",
        "no_pretraining.absrel": "without pretraining",
        "row_mean.absrel": "mean of each row",
        "constant.absrel": "best constant",
    },
    "Generated depth or picture, against what the model sees in its own picture. AbsRel, shorter is better.": {
        "joint.depth_first": "joint, depth first",
        "joint.image_first": "joint, picture first",
        "d2i.absrel": "picture from depth",
        "d2i.absrel_unrelated": "an unrelated picture",
    },
}


def _headline(numbers: Mapping[str, object]) -> str:
    error = _number(numbers, "i2d.absrel")
    if error is None:
        return "<p class=lead>No image-to-depth score was recorded in this run.</p>"
    bars = [
        f"{error / other:.2f} of the error of {name}"
        for key, name in (
            ("constant.absrel", "the best constant"),
            ("row_mean.absrel", "the per-row mean"),
        )
        if (other := _number(numbers, key))
    ]
    close = _number(numbers, "i2d.delta1")
    beside = f" {close:.0%} of pixels are within a factor 1.25." if close is not None else ""
    compared = f": {' and '.join(bars)}" if bars else ""
    return (
        f"<p class=headline><b>{_short(error)}</b> AbsRel, depth from a picture</p>"
        f"<p class=lead>On held-out scenes the depth is off by {error:.1%} on average{escape(compared)}.{beside}</p>"
    )


def _sentences(numbers: Mapping[str, object]) -> str:
    rows = []
    for key, meaning in _MEANINGS.items():
        if key in numbers:
            value = numbers[key]
            rows.append(
                f"<tr><th>{escape(key)}<td class=value>{_short(value)}<td>{escape(_said(key, meaning, numbers))}"
            )
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _said(key: str, meaning: str, numbers: Mapping[str, object]) -> str:
    value = _number(numbers, key)
    if value is None:
        return "Not a number in this run."
    ours, given = _number(numbers, "i2d.absrel"), _number(numbers, "d2i.absrel")
    for mark, above, below in (("{ours/}", ours, value), ("{/d2i}", value, given)):
        if mark in meaning:
            if above is None or not below:
                return meaning.split(":")[0] + "."
            meaning = meaning.replace(mark, f"{above / below:.2f}")
    return meaning.replace("{p}", f"{value:.1%}")


def _bars(numbers: Mapping[str, object]) -> str:
    tables = []
    for note, rows in _BARS.items():
        values = {
            label: value
            for key, label in rows.items()
            if (value := _number(numbers, key)) is not None
        }
        tables.append(_bar_table(values, note, marked=rows.get("i2d.absrel")) if values else "")
    return "".join(tables)


def _seconds(numbers: Mapping[str, object]) -> str:
    phases = {
        key.removeprefix("seconds."): value
        for key in numbers
        if key.startswith("seconds.") and (value := _number(numbers, key)) is not None
    }
    parts = sum(value for name, value in phases.items() if name != "total")
    return _bar_table(phases, f"Seconds per phase, {parts:,.0f} in all.") if phases else ""


def _bar_table(values: Mapping[str, float], note: str, marked: str | None = None) -> str:
    longest = max(max(values.values()), 1e-12)
    rows = "".join(
        f"<tr{' class=ours' if label == marked else ''}><th>{escape(label)}<td class=value>{_short(value)}"
        f"<td class=bar><span style='width:{100 * max(value, 0) / longest:.1f}%'></span>"
        for label, value in values.items()
    )
    return f"<p class=note>{escape(note)}</p><table class=bars>{rows}</table>"


def _others(numbers: Mapping[str, object]) -> str:
    rows = [
        f"<tr><th>{escape(key)}<td class=plain>{_short(value)}"
        for key, value in numbers.items()
        if key not in _MEANINGS
        and not (key.startswith("seconds.") and _number(numbers, key) is not None)
    ]
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _short(value: object) -> str:
    """A value as it stands in a table: few digits for numbers, escaped for all else."""
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


# --- curves ------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 260, 52, 34, 10, 30
_POINTS = 400  # drawn per line: more than the eye resolves, few enough for a small file


def _charts(curves: Mapping[str, Curve]) -> list[str]:
    phases: dict[str, dict[str, np.ndarray]] = {}
    for name, curve in curves.items():
        phase, _, line = name.rpartition("/")
        points = np.array(curve, np.float64).reshape(-1, 2)
        points = points[
            np.isfinite(points).all(axis=1) & (points[:, 1] > 0)
        ]  # a logarithmic axis shows no others
        if len(points):
            phases.setdefault(phase, {})[line] = points
    return [_chart(phase, lines) for phase, lines in phases.items()]


def _chart(phase: str, lines: Mapping[str, np.ndarray]) -> str:
    every = np.concatenate(list(lines.values()))
    first, last = every[:, 0].min(), max(every[:, 0].max(), every[:, 0].min() + 1)
    low, high = np.percentile(
        every[:, 1], (0, 99.5)
    )  # a few early spikes must not flatten the rest
    low, high = math.log(low / 1.05), math.log(max(high, low) * 1.05)

    def place(steps: np.ndarray, values: np.ndarray) -> str:
        x = _LEFT + (steps - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - np.log(values)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return " ".join(
            f"{a:.1f},{b:.1f}" for a, b in zip(x, np.clip(y, _TOP, _HEIGHT - _BOTTOM), strict=True)
        )

    drawn = [_axes(first, last, low, high)]
    legend = []
    for number, (name, points) in enumerate(lines.items()):
        keep = np.unique(np.linspace(0, len(points) - 1, min(len(points), _POINTS)).astype(int))
        steps, smooth, colour = points[keep, 0], _smooth(points[:, 1], keep), f"c{number % 6}"
        drawn.append(f"<polyline class='raw {colour}' points='{place(steps, points[keep, 1])}'/>")
        drawn.append(f"<polyline class='smooth {colour}' points='{place(steps, smooth)}'/>")
        legend.append(
            f"<span class='key {colour}'></span>{escape(name)} <b>{_short(float(smooth[-1]))}</b>"
        )
    label = escape(f"{phase}: {', '.join(lines)} by step, logarithmic", quote=True)
    return (
        f"<figure><h3>{escape(phase)}</h3><p class=note>{' &nbsp; '.join(legend)}</p>"
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='{label}'>{''.join(drawn)}</svg></figure>"
    )


def _smooth(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The mean over a window of a twentieth of the run around each place, narrower at the ends to stay centred."""
    reach = len(values) // 40
    room = np.maximum(np.minimum(at, len(values) - 1 - at), reach // 4)
    starts, stops = np.maximum(at - np.minimum(reach, room), 0), at + np.minimum(reach, room) + 1
    return np.array([values[start:stop].mean() for start, stop in zip(starts, stops, strict=True)])


def _axes(first: float, last: float, low: float, high: float) -> str:
    marks = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in _log_ticks(math.exp(low), math.exp(high)):
        y = _TOP + (high - math.log(value)) / (high - low) * (bottom - _TOP)
        marks.append(f"<path class=rule d='M{_LEFT} {y:.1f}H{right}'/>")
        marks.append(f"<text x={_LEFT - 6} y={y + 4:.1f} text-anchor=end>{value:g}</text>")
    step = _round_step((last - first) / 6)
    for tick in np.arange(math.ceil(first / step) * step, last + step / 1e6, step):
        x = _LEFT + (tick - first) / (last - first) * (right - _LEFT)
        marks.append(f"<text x={x:.1f} y={_HEIGHT - 10} text-anchor=middle>{tick:,.0f}</text>")
    return f"{''.join(marks)}<path class=axis d='M{_LEFT} {bottom}H{right}'/>"


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values between: 1, 2, 5 of each decade, or evenly spaced ones where the range holds fewer than three."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_ones = (1, 10) if len(decades) > 4 else (1, 2, 5)
    ticks = [digit * 10.0**decade for decade in decades for digit in round_ones if digit < 10]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) >= 3:
        return ticks
    step = _round_step((high - low) / 4)
    return [
        float(f"{k * step:.6g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)
    ]


def _round_step(about: float) -> float:
    decade = 10.0 ** math.floor(math.log10(about))
    return next(digit * decade for digit in (1, 2, 5, 10) if digit * decade >= about * 0.999)


# --- page --------------------------------------------------------------------------------------------------------


def _figure(title: str, caption: str, picture: bytes | np.ndarray) -> str:
    png = picture if isinstance(picture, bytes) else png_bytes(picture)
    source = base64.b64encode(png).decode()
    return (
        f"<figure><h3>{escape(title)}</h3><img alt='{escape(title, quote=True)}' src='data:image/png;base64,{source}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


# The policy makes the promise of the docstring: a browser will not fetch anything, whatever a caption says.
_PAGE = """<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_STYLE = """
:root{color-scheme:light dark;--paper:#fcfcfb;--ink:#1c1c1f;--soft:#66666e;--line:#e2e2e6;--own:#2f5fd0;--other:#b9bcc6;
--c0:#2f5fd0;--c1:#c2410c;--c2:#15803d;--c3:#9333ea;--c4:#0e7490;--c5:#be185d}
@media(prefers-color-scheme:dark){:root{--paper:#141416;--ink:#e8e8ec;--soft:#9c9ca6;--line:#2e2e34;--own:#7aa2ff;
--other:#51545e;--c0:#7aa2ff;--c1:#fb923c;--c2:#4ade80;--c3:#c084fc;--c4:#22d3ee;--c5:#f472b6}}
body{margin:0 auto;max-width:860px;padding:2.5rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1rem;font-weight:600;color:var(--soft);margin:0 0 1.5rem}
h2{font-size:1.25rem;margin:0 0 .5rem;padding-top:1.5rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.25rem 0 .25rem}
section{margin-top:2.5rem}
.headline{font-size:1.25rem;margin:0}.headline b{font-size:4rem;line-height:1;letter-spacing:-.03em;margin-right:.25rem}
.lead{font-size:1.125rem;max-width:62ch;margin:.75rem 0 0}
.note,figcaption{color:var(--soft);font-size:.9rem;margin:.25rem 0 .5rem}
table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{text-align:left;vertical-align:top;padding:.4rem .75rem .4rem 0;border-bottom:1px solid var(--line)}
th{font-weight:500;white-space:nowrap;color:var(--soft);width:1%}
.value{text-align:right;font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap;width:1%}
.plain{overflow-wrap:anywhere}
.bars{margin-bottom:1.25rem}.bars th{min-width:9.5rem}
.bars td,.bars th{border:0;padding-top:.15rem;padding-bottom:.15rem;vertical-align:middle}
.bar span{display:block;height:.8rem;min-width:2px;border-radius:2px;background:var(--other)}
.ours th{color:var(--ink);font-weight:600}.ours .bar span{background:var(--own)}
figure{margin:0 0 1.5rem}.drawing{background:#fff;border-radius:4px}.wide{overflow-x:auto}.wide th{width:auto}
.wide td:first-child{white-space:nowrap}
img{max-width:100%;image-rendering:pixelated;border-radius:4px;display:block}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.rule{stroke:var(--line)}.axis{stroke:var(--soft)}
polyline{fill:none;stroke:var(--c)}.raw{opacity:.3;stroke-width:1}.smooth{stroke-width:2;stroke-linejoin:round}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;background:var(--c);margin-right:.35em}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}
@media(max-width:600px){th{white-space:normal}.headline b{font-size:3rem;display:block}}
"""
