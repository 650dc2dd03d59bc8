"""`mforce evaluate --trajectory-sweep`: joint generation from depth-first to image-first."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modality_forcing import __version__
from modality_forcing.data.files import read_image
from modality_forcing.errors import UserError
from modality_forcing.evaluation.heldout import Evaluator, joint_set
from modality_forcing.evaluation.predictions import network_settings
from modality_forcing.generator import Generator, num_steps
from modality_forcing.paths import check_folder, write_file
from modality_forcing.progress import ProgressMeter, print_stderr
from modality_forcing.text_io import parse_number, read_verified, with_checksum
from modality_forcing.train.state import params_hash
from modality_forcing.tree import JsonObject
from modality_forcing.viz import figures, images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = 4  # captions on the sample sheet: the first ones, not selected
MAX_VALUES = 65
MAX_LOG2_ALPHA = 64.0  # as in a config
_KINDS = ("image", "depth", "reestimated")  # shown of each example, one below the other
_SYNTAX = "give log2_alpha:-5..5, log2_alpha:-5..5:0.5 or log2_alpha:-3,0,3"

Row = dict[str, float | None]


def parse_values(text: str) -> tuple[float, ...]:
    """Parses log2_alpha:FIRST..LAST, log2_alpha:FIRST..LAST:STEP or log2_alpha:A,B,C.

    Returns rising values. The default step is 1; LAST is included if a step reaches it. Raises
    UserError for anything else.
    """
    name, colon, rest = text.partition(":")
    if not colon or name != "log2_alpha":
        raise UserError(f"cannot sweep {name!r}", hint=_SYNTAX)
    first, dots, last = rest.partition("..")
    try:
        if not dots:
            values = [float(part) for part in rest.split(",")]
        else:
            last, _, step = last.partition(":")
            values = _spaced(float(first), float(last), float(step or 1))
    except ValueError as error:
        raise UserError(
            f"sweep {text!r} is not a rising range or a list of numbers", hint=_SYNTAX
        ) from error
    outside = [x for x in values if not abs(x) <= MAX_LOG2_ALPHA]  # NaN is one
    if outside:
        limits = f"{-MAX_LOG2_ALPHA:g} to {MAX_LOG2_ALPHA:g}"
        raise UserError(f"log2_alpha is {outside[0]:g}", hint=f"it must be from {limits}")
    if len(values) > MAX_VALUES:
        what = f"sweep {text!r} has {len(values)} values"
        raise UserError(what, hint=f"ask for at most {MAX_VALUES}")
    return tuple(sorted({x + 0.0 for x in values}))  # + 0.0: no -0


def _spaced(first: float, last: float, step: float) -> list[float]:
    if not (first <= last and step > 0 and math.isfinite(last - first) and math.isfinite(step)):
        raise ValueError
    # 0.1 * 3 is a little more than 0.3
    count = math.floor((last - first) / step * (1 + 1e-12)) + 1
    return [round(first + i * step, 9) for i in range(min(count, MAX_VALUES + 1))]


def run(
    generator: Generator,
    evaluator: Evaluator,
    values: Sequence[float],
    *,
    out: Path,
    checkpoint: str | Path = "",
    log: Callable[[str], None] = print_stderr,
) -> JsonObject:
    """Scores joint generation for every held-out caption at each log2 alpha, with equal noise.

    Writes into `out`: trajectory_sweep.json (the returned `config` and `rows`), .md
    (`to_markdown`), .png and .svg (`plot`), samples.png (the first captions), and the row of each
    value in rows/ as soon as it is done. Rows of equal weights, data and settings are reused,
    unless the evaluator saves images.

    checkpoint: the name of the weights in the result. log: receives a line after each value.
    Raises UserError before generating if `out` cannot be a folder or the estimator lacks maps.
    """
    check_folder(out, "--out")
    fingerprints = {x: evaluator.fingerprint(joint_set(x)) for x in values}
    config = sweep_config(generator, evaluator)
    identity = {**config, "network": network_settings(generator.config)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    stems = {x: out / "rows" / digest / joint_set(x) for x in values}

    rows: dict[float, Row] = {}
    cells: dict[float, np.ndarray] = {}
    for x in values:
        stored = None if evaluator.save_images else _read_row(stems[x], fingerprints[x])
        if stored is not None:
            rows[x], cells[x] = stored
    if rows:
        log(f"trajectory sweep  {len(rows)}/{len(values)} already done")
    progress = ProgressMeter("trajectory sweep", len(values), done=len(rows), write=log)
    for x in values:
        if x in rows:
            continue
        start = time.monotonic()
        row, cells[x] = _evaluate_row(generator, evaluator, x)
        rows[x] = row | {"seconds": round(time.monotonic() - start, 2)}
        _write_row(stems[x], fingerprints[x], rows[x], cells[x])
        shown = {name: _format(row[name]) for name in ("absrel", "constant_absrel", "delta1")}
        progress.report(len(rows), log2_alpha=f"{x:+g}", **shown)

    config = {"checkpoint": str(checkpoint), **config}
    result = {"config": config, "rows": [rows[x] for x in values]}
    write_file(out / "trajectory_sweep.json", json.dumps(result, indent=1) + "\n")
    write_file(out / "trajectory_sweep.md", to_markdown(result))
    with figures.style():
        figures.save(plot(result), out / "trajectory_sweep")
    captions = evaluator.data.captions[:EXAMPLES]
    sheet = sample_sheet(captions, {x: cells[x] for x in values})
    write_file(out / "samples.png", images.png_bytes(sheet))
    return result


def sweep_config(generator: Generator, evaluator: Evaluator) -> JsonObject:
    """Returns the settings of all rows that the result names, JSON-able."""
    config, sample, data = evaluator.config, evaluator.config.sample, evaluator.data
    records = hashlib.sha256(json.dumps(data.captions).encode() + data.image.tobytes()).hexdigest()
    settings = {
        "version": __version__,
        "weights": params_hash(generator.params),
        "data": records[:12],
        "examples": len(data.captions),
        "resolution": config.data.resolution,
        "seed": config.seed,
        "steps": num_steps("joint", sample),
        "solver": sample.solver,
        "timestep_shift": generator.shift("joint", sample),
        "guidance": dict(sample.guidance),
        "estimator": "self" if evaluator.estimator is None else evaluator.estimator.name,
        "estimator_steps": num_steps("i2d", sample) if evaluator.estimator is None else None,
    }
    if evaluator.estimator is None and (weight := sample.condition_guidance.get("image", 1.0)) != 1:
        settings["estimator_guidance"] = weight
    return settings


def _evaluate_row(
    generator: Generator, evaluator: Evaluator, log2_alpha: float
) -> tuple[Row, np.ndarray]:
    """Returns one value's metrics, None for NaN, and cells u8 [e k h w 3] of e examples."""
    metrics, maps = evaluator.joint(generator, log2_alpha)
    ratio = metrics["absrel"] / (metrics["constant_absrel"] or math.nan)
    row = {"log2_alpha": log2_alpha, **metrics, "absrel_over_constant": ratio}
    row |= evaluator.text(maps["image"])
    columns = [images.to_u8(maps["image"][:EXAMPLES])]
    for kind in _KINDS[1:]:
        columns.append(np.stack([images.colorize_disparity(z) for z in maps[kind][:EXAMPLES]]))
    finite = {k: x if math.isfinite(x) else None for k, x in row.items()}
    return finite, np.stack(columns, axis=1)


def _write_row(stem: Path, fingerprint: str, row: Row, cells: np.ndarray) -> None:
    """Writes the metrics last: where they exist, the images do."""
    sheet = images.grid([list(example) for example in cells], pad=0)
    write_file(_with_suffix(stem, ".png"), images.png_bytes(sheet))
    stored = with_checksum({"fingerprint": fingerprint, "row": row})
    write_file(_with_suffix(stem, ".json"), json.dumps(stored, indent=1) + "\n")


def _read_row(stem: Path, fingerprint: str) -> tuple[Row, np.ndarray] | None:
    """Returns a finished row, None if it is missing, damaged or of another estimator state."""
    try:
        stored = read_verified(_with_suffix(stem, ".json"), what="is damaged", hint="")
        if stored["fingerprint"] != fingerprint:
            return None
        row = dict(stored["row"])
        for name in (*_NUMBERS, *(name for name in _OPTIONAL if row[name] is not None)):
            parse_number(row[name])
        sheet = read_image(_with_suffix(stem, ".png"))
        side = sheet.shape[1] // len(_KINDS)
        cells = sheet.reshape(-1, side, len(_KINDS), side, 3).swapaxes(1, 2)
        return row, cells
    except (OSError, KeyError, TypeError, ValueError, UserError):
        return None


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # a value like 0.5 has a dot of its own


def _format(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


# --- table, figure and sheet -------------------------------------------------------------------

# Header and number of decimals by column.
_COLUMNS = {
    "absrel_shuffled": ("AbsRel, shuffled", 4),
    "constant_absrel": ("AbsRel, constant", 4),
    "absrel_over_constant": ("AbsRel / constant", 3),
    "delta1": ("delta1", 3),
    "color_recall": ("color recall", 3),
    "color_recall_chance": ("by chance", 3),
    "color_recall_dataset": ("dataset", 3),
}
_NUMBERS = ("log2_alpha", "coverage")
_OPTIONAL = ("absrel", "absrel_stderr", *_COLUMNS)  # None for NaN


def to_markdown(result: JsonObject) -> str:
    """Returns the rows as a Markdown table below the settings."""
    config, rows = result["config"], result["rows"]
    guidance = ", ".join(f"{name} {w:g}" for name, w in config["guidance"].items()) or "none"
    estimator = config["estimator"]
    if estimator == "self":
        steps, weight = config["estimator_steps"], config.get("estimator_guidance")
        guided = "" if weight is None else f", guidance by the image {weight:g}"
        estimator = f"the model's own image-to-depth (steps: {steps}{guided})"
    coverage = min((row["coverage"] for row in rows), default=1)
    valid = "" if coverage == 1 else f" on valid pixels (at least {coverage:.0%})"
    settings = [
        f"Joint generation for {config['examples']} held-out captions at {config['resolution']} px "
        f"with the same noise in every row: {config['steps']} {config['solver']} steps, "
        f"shift {config['timestep_shift']:g}, guidance {guidance}, "
        f"seed {config['seed']}, checkpoint {config['checkpoint'] or config['weights']}.",
        "log2 alpha > 0: image first.",
        f"AbsRel (± standard error) and delta1: depth estimated from the generated image by "
        f"{estimator}, against the generated depth, aligned by protocol moge, affine{valid}.",
        "Shuffled: the same of another example's image.",
        "Constant: the best constant of each example.",
        "Color recall: share of the caption's color words that the generated image shows; "
        "by chance: images of other captions; dataset: the images of the data set.",
    ]
    header = ["log2 alpha", "AbsRel", *(title for title, _ in _COLUMNS.values())]
    lines = [" ".join(settings), "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        stderr = "" if row["absrel_stderr"] is None else f" ± {row['absrel_stderr']:.4f}"
        cells = [f"{row['log2_alpha']:g}", f"{_format(row['absrel'])}{stderr}"]
        cells += [_format(row[name], digits) for name, (_, digits) in _COLUMNS.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(result: JsonObject) -> Figure:
    """Returns the figure: agreement of image and depth, and of image and caption."""
    rows = result["rows"]
    x = [row["log2_alpha"] for row in rows]
    columns = {
        k: np.array([math.nan if row[k] is None else row[k] for row in rows]) for k in rows[0]
    }
    has_colors = not np.isnan(columns["color_recall"]).all()
    figure = figures.new_figure(height=3.9 if has_colors else 2.8)
    panels = figure.subplots(3 if has_colors else 2, 1, sharex=True)
    blue, red, green, _, orange, *_ = figures.COLORS
    dashed = {"color": figures.GRAY, "ls": "--"}
    margin = 0.05 * (x[-1] - x[0]) or 0.5
    # Above the panel, where no line passes.
    legend = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1), "borderaxespad": 0, "ncols": 3}

    absrel, stderr = columns["absrel"], np.nan_to_num(columns["absrel_stderr"])
    panels[0].plot(x, absrel, color=blue, marker="o", label="re-estimated")
    panels[0].fill_between(x, absrel - stderr, absrel + stderr, color=blue, alpha=0.2, lw=0)
    panels[0].plot(x, columns["absrel_shuffled"], color=orange, marker="v", label="shuffled")
    panels[0].plot(x, columns["constant_absrel"], marker="s", label="constant", **dashed)
    panels[0].set_ylabel("AbsRel")
    panels[0].legend(**legend)
    panels[1].plot(x, columns["absrel_over_constant"], color=red, marker="^")
    panels[1].axhline(1, lw=0.8, **dashed)
    panels[1].set_ylabel("AbsRel / constant")
    if has_colors:
        recall, chance = columns["color_recall"], np.pad(columns["color_recall_chance"], 1, "edge")
        wide = [x[0] - margin, *x, x[-1] + margin]
        panels[2].plot(x, recall, color=green, marker="D", label="generated")
        panels[2].axhline(columns["color_recall_dataset"][0], lw=0.8, label="dataset", **dashed)
        panels[2].fill_between(wide, 0, chance, color=figures.LIGHT_GRAY, lw=0, label="by chance")
        panels[2].set_ylabel("color recall")
        panels[2].set_ylim(top=1)
        panels[2].legend(**legend)
    for panel in panels:
        panel.set_ylim(bottom=0)
    panels[-1].set_xlim(x[0] - margin, x[-1] + margin)
    panels[-1].xaxis.get_major_locator().set_params(integer=True, nbins=11)
    panels[-1].set_xlabel("depth first  ←  log₂ α  →  image first")
    return figure


def sample_sheet(captions: Sequence[str], cells: Mapping[float, np.ndarray]) -> np.ndarray:
    """Returns an image u8 [h w 3] with a column per value and three rows per caption.

    The rows are the image, its depth, and the depth estimated from it.
    cells: u8 [e k h w 3] by log2 alpha, of e captions and k kinds.
    """
    side = next(iter(cells.values())).shape[-2]
    factor = max(1, 96 // side)
    rows = []
    for i, caption in enumerate(captions):
        titles = (caption, "depth, generated jointly", "depth, estimated from the image")
        for k, title in enumerate(titles):
            samples = [images.upscale(column[i, k], factor) for column in cells.values()]
            rows.append([images.text_cell(title, side * factor), *samples])
    return images.grid(rows, labels=["log2 alpha", *(f"{x:+g}" for x in cells)])
