"""`mforce evaluate --sweep`: joint generation along a range of trajectories, from depth first to image first."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modality_forcing import __version__
from modality_forcing.atomic_io import check_folder, write_file
from modality_forcing.data.files import read_image
from modality_forcing.errors import UserError
from modality_forcing.evaluation.heldout import Evaluator, joint_set
from modality_forcing.generator import Generator, num_steps
from modality_forcing.train.state import params_hash
from modality_forcing.viz import figures
from modality_forcing.viz import images as pictures

SHOWN = 4  # captions of the contact sheet: the first ones, unpicked
MOST = 65  # values of a sweep
REACH = 64.0  # of log2 alpha, as in a config
_KINDS = ("image", "depth", "again")  # what is shown of each example, under one another
_SYNTAX = "give log2_alpha:-5..5, log2_alpha:-5..5:0.5 or log2_alpha:-3,0,3"


def parse_range(text: str) -> tuple[float, ...]:
    """Reads `log2_alpha:FIRST..LAST`, `log2_alpha:FIRST..LAST:STEP` or `log2_alpha:A,B,C`; returns rising values.

    The step is 1 where none is given; the last value is LAST where steps arrive there. Raises UserError for anything else.
    """
    name, colon, rest = text.partition(":")
    if not colon or name != "log2_alpha":
        raise UserError(f"sweep of {name!r} is not known", hint=_SYNTAX)
    first, dots, last = rest.partition("..")
    try:
        if not dots:
            values = [float(part) for part in rest.split(",")]
        else:
            last, _, step = last.partition(":")
            values = _spaced(float(first), float(last), float(step or 1))
    except ValueError as error:
        raise UserError(f"sweep {text!r} holds no such numbers", hint=_SYNTAX) from error
    if beyond := [x for x in values if not -REACH <= x <= REACH]:  # NaN is one
        raise UserError(
            f"log2_alpha is {beyond[0]:g}", hint=f"it must be from {-REACH:g} to {REACH:g}"
        )
    if len(values) > MOST:
        raise UserError(f"sweep {text!r} has {len(values)} values", hint=f"ask for at most {MOST}")
    return tuple(sorted({x + 0.0 for x in values}))  # + 0.0: no -0


def _spaced(first: float, last: float, step: float) -> list[float]:
    if not (first <= last and step > 0 and math.isfinite(last - first) and math.isfinite(step)):
        raise ValueError
    count = math.floor((last - first) / step * (1 + 1e-12)) + 1  # 0.1 * 3 is a little more than 0.3
    return [round(first + i * step, 9) for i in range(min(count, MOST + 1))]


def run(
    generator: Generator,
    evaluator: Evaluator,
    values: Sequence[float],
    out: Path,
    checkpoint: str | Path = "",
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Generates image and depth for every held-out caption at each log2 alpha, with the same noise, and scores them.

    Writes into `out`: sweep.json (what is returned: `config` and `rows`), sweep.md (its `table`), sweep.png and sweep.svg
    (`draw`), sheet.png (the first captions), and below rows/ each value's row as soon as it is done. Rows of equal weights,
    data and settings are read back, not made again, unless the evaluator is to write pictures.
    checkpoint: how the result names the weights. tell: takes a line after each value.
    Raises UserError if `out` cannot be a folder, or the estimator lacks pictures: before any is made.
    """
    check_folder(out, "--out")
    versions = {x: evaluator.version(joint_set(x)) for x in values}
    same = settings(generator, evaluator)
    folder = (
        out / "rows" / hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]
    )
    rows, cells, spent = {}, {}, []
    for done, x in enumerate(values, 1):
        stem = folder / joint_set(x)
        found = None if evaluator.pictures is not None else _read(stem, versions[x])
        if found is None:
            started = time.monotonic()
            row, cells[x] = _row(generator, evaluator, x)
            spent.append(time.monotonic() - started)
            rows[x] = row | {"seconds": round(spent[-1], 2)}
            _write(stem, versions[x], rows[x], cells[x])
        else:
            rows[x], cells[x] = found
        tell(
            _progress(rows[x], done, len(values), spent, same["examples"], reused=found is not None)
        )
    result = {"config": {"checkpoint": str(checkpoint), **same}, "rows": [rows[x] for x in values]}
    write_file(out / "sweep.json", json.dumps(result, indent=1) + "\n")
    write_file(out / "sweep.md", table(result))
    with figures.style():
        figures.save(draw(result), out / "sweep")
    captions = evaluator.data.captions[:SHOWN]
    write_file(
        out / "sheet.png", pictures.png_bytes(sheet(captions, {x: cells[x] for x in values}))
    )
    return result


def settings(generator: Generator, evaluator: Evaluator) -> dict[str, Any]:
    """Returns all that a row depends on besides its value and the estimator's own state, JSON-able."""
    config, sample, data = evaluator.config, evaluator.config.sample, evaluator.data
    records = hashlib.sha256(json.dumps(data.captions).encode() + data.image.tobytes()).hexdigest()
    return {
        "version": __version__,
        "weights": params_hash(generator.params),
        "data": records[:12],
        "examples": len(data.captions),
        "resolution": config.data.resolution,
        "seed": config.seed,
        "steps": num_steps("joint", sample),
        "solver": sample.solver,
        "mu": sample.timestep_shift,
        "guidance": dict(sample.guidance),
        "estimator": "self" if evaluator.estimator is None else evaluator.estimator.name,
        "estimator_steps": num_steps("i2d", sample) if evaluator.estimator is None else None,
    }


def _row(
    generator: Generator, evaluator: Evaluator, log2_alpha: float
) -> tuple[dict[str, Any], np.ndarray]:
    """One value's numbers, None where there is none, and its cells u8 [e k h w 3] of the first e examples."""
    numbers, made = evaluator.joint(generator, log2_alpha)
    text = evaluator.text(made["image"])
    row = {
        "log2_alpha": log2_alpha,
        **numbers,
        "ratio": numbers["absrel"] / (numbers["constant"] or math.nan),
        **text,
    }
    shown = {k: x[:SHOWN] for k, x in made.items()}
    images = pictures.to_u8(shown["image"])
    depths = [[pictures.disparity_colours(z) for z in shown[k]] for k in _KINDS[1:]]
    return {k: x if math.isfinite(x) else None for k, x in row.items()}, np.stack(
        [images, *map(np.stack, depths)], axis=1
    )


def _write(stem: Path, version: str, row: dict[str, Any], cells: np.ndarray) -> None:
    """The numbers come last: where they are, the pictures are."""
    write_file(
        _with(stem, ".png"),
        pictures.png_bytes(pictures.grid([list(example) for example in cells], pad=0)),
    )
    write_file(_with(stem, ".json"), json.dumps({"version": version, "row": row}, indent=1) + "\n")


def _read(stem: Path, version: str) -> tuple[dict[str, Any], np.ndarray] | None:
    """A row that was finished, unless the estimator has changed since."""
    try:
        stored = json.loads(_with(stem, ".json").read_text())
        if stored["version"] != version:
            return None
        shown = read_image(_with(stem, ".png"))
        side = shown.shape[1] // len(_KINDS)
        cells = shown.reshape(-1, side, len(_KINDS), side, 3).swapaxes(1, 2)
        return dict(stored["row"]), cells
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        UserError,
    ):  # not there, or damaged: it is made again
        return None


def _with(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # a value like 0.5 has a dot of its own


def _progress(
    row: dict[str, Any], done: int, total: int, spent: list[float], examples: int, reused: bool
) -> str:
    line = (
        f"sweep  {done}/{total}  log2_alpha {row['log2_alpha']:+g}  AbsRel {_told(row['absrel'])}"
    )
    line += f"  constant {_told(row['constant'])}  delta1 {_told(row['delta1'])}"
    if reused:
        return line + "  already done"
    usual = float(np.mean(spent[1:] or spent))  # the first one compiles
    left = timedelta(seconds=round(usual * (total - done)))
    return line + f"  {examples / max(usual, 1e-9):.1f} examples/s  ETA {left}"


# --- what is shown -----------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """Returns the rows as Markdown under a line that says how they came about."""
    config = result["config"]
    guided = ", ".join(f"{name} {scale:g}" for name, scale in config["guidance"].items()) or "none"
    estimator = config["estimator"]
    if estimator == "self":
        estimator = f"the model's own image-to-depth (steps: {config['estimator_steps']})"
    known = min((row["known"] for row in result["rows"]), default=1)
    seen = "" if known == 1 else f", where it is known (at least {known:.0%} of the pixels)"
    lines = [
        f"Joint generation for {config['examples']} held-out captions at {config['resolution']} px with the same noise in every "
        f"row: {config['steps']} {config['solver']} steps, shift {config['mu']:g}, guidance "
        f"{guided}, seed {config['seed']}, checkpoint {config['checkpoint'] or config['weights']}. log2 alpha > 0: image first. "
        f"AbsRel (± standard error) and delta1: depth estimated from the generated picture by {estimator}, laid over the "
        f"generated depth under protocol moge, affine{seen}; unrelated: the "
        f"same of another example's picture; constant: the best constant of each example. found: colour words of the caption in "
        f"the picture; chance: in pictures of other captions; truth: in the true pictures.",
        "",
        "| log2 alpha | AbsRel | unrelated | constant | AbsRel / constant | delta1 | found | chance | truth |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        error = "" if row["absrel_se"] is None else f" ± {row['absrel_se']:.4f}"
        cells = [f"{row['log2_alpha']:g}", f"{_told(row['absrel'])}{error}"]
        cells += [_told(row[name]) for name in ("absrel_unrelated", "constant")]
        cells += [_told(row[name], 3) for name in ("ratio", "delta1", "found", "chance", "truth")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _told(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def draw(result: dict[str, Any]):
    """Returns the figure of a sweep: agreement of image and depth, and of image and caption, over log2 alpha."""
    rows = result["rows"]
    x = [row["log2_alpha"] for row in rows]
    column = {
        k: np.array([math.nan if row[k] is None else row[k] for row in rows]) for k in rows[0]
    }
    worded = not np.isnan(column["found"]).all()
    drawn = figures.figure(height=3.9 if worded else 2.8)
    panels = drawn.subplots(3 if worded else 2, 1, sharex=True)
    blue, red, green, _, orange, *_ = figures.COLOURS

    margin = 0.05 * (x[-1] - x[0]) or 0.5
    above = {
        "loc": "lower left",
        "bbox_to_anchor": (-0.01, 1),
        "borderaxespad": 0,
        "ncols": 3,
    }  # where no line passes

    error, share = panels[0], panels[1]
    spread = np.nan_to_num(column["absrel_se"])
    error.plot(x, column["absrel"], color=blue, marker="o", label="re-estimate")
    error.fill_between(
        x, column["absrel"] - spread, column["absrel"] + spread, color=blue, alpha=0.2, lw=0
    )
    error.plot(x, column["absrel_unrelated"], color=orange, marker="v", label="another picture's")
    error.plot(x, column["constant"], color=figures.SOFT, ls="--", marker="s", label="constant")
    error.set_ylabel("AbsRel")
    error.legend(**above)
    share.plot(x, column["ratio"], color=red, marker="^")
    share.axhline(1, color=figures.SOFT, ls="--", lw=0.8)
    share.set_ylabel("AbsRel / constant")
    if worded:
        words = panels[2]
        words.plot(x, column["found"], color=green, marker="D", label="generated pictures")
        words.axhline(column["truth"][0], color=figures.SOFT, ls="--", lw=0.8, label="true ones")
        chance = np.pad(column["chance"], 1, mode="edge")
        words.fill_between(
            [x[0] - margin, *x, x[-1] + margin],
            0,
            chance,
            color=figures.LINE,
            lw=0,
            label="by chance",
        )
        words.set_ylabel("colour words found")
        words.set_ylim(top=1)
        words.legend(**above)
    for panel in panels:
        panel.set_ylim(bottom=0)
    panels[-1].set_xlim(x[0] - margin, x[-1] + margin)
    panels[-1].xaxis.get_major_locator().set_params(integer=True, nbins=11)
    panels[-1].set_xlabel("depth first  ←  log₂ α  →  image first")
    return drawn


def sheet(captions: Sequence[str], cells: dict[float, np.ndarray]) -> np.ndarray:
    """Returns a picture u8 [h w 3] with a column per value: of each caption the picture, its depth, and that estimated.

    cells: u8 [e k h w 3] by log2 alpha, of e captions and k kinds.
    """
    side = next(iter(cells.values())).shape[-2]
    factor = max(1, 96 // side)
    rows: list[list[np.ndarray | None]] = []
    for i, caption in enumerate(captions):
        for k, kind in enumerate(
            (caption, "depth, generated with it", "depth, estimated from the picture")
        ):
            made = [pictures.upscale(of[i, k], factor) for of in cells.values()]
            rows.append([_written(kind, side * factor), *made])
    return pictures.grid(rows, labels=["log2 alpha", *(f"{x:+g}" for x in cells)])


def _written(text: str, side: int) -> np.ndarray:
    """A cell u8 [side side 3] that holds text, as much of it as fits."""
    cell = Image.new("RGB", (side, side), (24, 24, 27))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size=max(11, side // 12))
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= side - 6 or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    draw.multiline_text((3, 3), "\n".join(lines), fill=(228, 228, 231), font=font, spacing=2)
    return np.asarray(cell)
