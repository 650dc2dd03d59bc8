"""The main job end to end: pretrain on text and images, post-train on sparse depth, evaluate, sample, report."""

from __future__ import annotations

import functools
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing import config_file
from modality_forcing.atomic_io import write_file
from modality_forcing.config import Config
from modality_forcing.data.in_memory import Cached
from modality_forcing.data.records import RecordSource
from modality_forcing.errors import UserError
from modality_forcing.evaluation.heldout import SHOWN, Evaluator
from modality_forcing.generator import Generator
from modality_forcing.train import checkpoint, inputs
from modality_forcing.train.loop import train
from modality_forcing.train.metrics import read_metrics
from modality_forcing.train.workdir import check_resumable
from modality_forcing.viz import images
from modality_forcing.viz.html_report import write_report

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.py"
ABREAST = 3  # examples in a row of a picture sheet


@dataclass(frozen=True)
class Options:
    """What a person may change about the demo."""

    workdir: Path
    ablate: bool = False
    t2i_steps: int | None = None
    forcing_steps: int | None = None
    examples: int | None = None


def run(options: Options) -> dict[str, Any]:
    """Runs or goes on with the demo and returns its summary; finished phases are read back, not run again.

    Writes under the workdir: `t2i/`, `diffusion/` (and `no_pretraining/`) with checkpoints and TensorBoard events,
    `summary.json` and `report.html`.
    """
    workdir = options.workdir
    t2i, forcing = configs(options)
    for config in (t2i, forcing):  # also where the phase is done and would only be read back
        check_resumable(workdir / config.name, config, ignore=("train.init_from",))
    ledger = Ledger(workdir / "phases.json")
    records = Cached(
        inputs.open_source(t2i)
    )  # both phases see the same scenes: each is rendered once

    ledger.run("t2i", lambda: _train(t2i, workdir / "t2i", records))
    ledger.run("forcing", lambda: _train(forcing, workdir / "forcing", records))
    if options.ablate:
        scratch = replace(
            forcing,
            name="no_pretraining",
            train=replace(forcing.train, init_from="", allow_missing_modalities=()),
        )
        ledger.run("no_pretraining", lambda: _train(scratch, workdir / "no_pretraining", records))

    evaluator = functools.cache(lambda: Evaluator(forcing))
    numbers = ledger.run("evaluate", lambda: _evaluate(evaluator(), workdir))
    if options.ablate:
        ablation = lambda: evaluator().i2d(Generator.from_checkpoint(workdir / "no_pretraining"))[0]
        numbers |= {"no_pretraining": ledger.run("evaluate_no_pretraining", ablation)}

    summary = numbers | {
        "seconds": ledger.seconds,
        "breakdown": {p: _where_time_went(workdir / p) for p in ("t2i", "forcing")},
        "peak_rss_mb": ledger.peak_rss_mb,
        "checkpoint": str(checkpoint.resolve_checkpoint(workdir / "forcing")),
    }
    phases = [
        p for p in ("t2i", "forcing", "no_pretraining") if (workdir / p / "metrics.jsonl").exists()
    ]
    curves = {f"{p}/{n}": c for p in phases for n, c in _curves(workdir / p).items()}
    write_report(workdir / "report.html", summary, curves, _grids(workdir))
    write_file(workdir / "summary.json", json.dumps(summary, indent=1))
    return summary


def configs(options: Options) -> tuple[Config, Config]:
    """Returns the configs of the two phases."""
    if not CONFIG.is_file():
        raise UserError(
            "no such config file",
            where=CONFIG,
            hint="run the demo from a clone, installed with pip -e",
        )
    t2i = config_file.load(f"{CONFIG}:phase=t2i", _given({"train.steps": options.t2i_steps}))
    changes = {"train.steps": options.forcing_steps, "eval.examples": options.examples}
    forcing = config_file.load(f"{CONFIG}:phase=forcing", _given(changes))
    return t2i, replace(
        forcing, train=replace(forcing.train, init_from=str(options.workdir / "t2i"))
    )


class Ledger:
    """Which phases are done, how long each took and what it returned; survives a kill at any point."""

    def __init__(self, path: Path):
        self._path = path
        self._done: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self._done = dict(json.loads(path.read_text()))
            except (OSError, TypeError, ValueError) as error:
                raise UserError(
                    "is not a record of phases", where=path, hint="choose another --workdir"
                ) from error

    def run(self, phase: str, work: Callable[[], Any]) -> Any:
        """Does a phase unless it is done; returns what it returned (JSON-able)."""
        if phase in self._done:
            print(f"{phase}: already done", file=sys.stderr)
            return self._done[phase]["result"]
        print(f"{phase}: started", file=sys.stderr)
        started = time.monotonic()
        result = work()
        seconds = time.monotonic() - started
        if isinstance(result, dict) and "seconds" in result:
            seconds = max(seconds, result.pop("seconds"))  # of all its attempts
        self._done[phase] = {
            "seconds": round(seconds, 2),
            "peak_rss_mb": _peak_rss_mb(),
            "result": result,
        }
        write_file(self._path, json.dumps(self._done, indent=1))
        return result

    @property
    def seconds(self) -> dict[str, Any]:
        """Seconds per phase, and their sum."""
        each = {phase: entry["seconds"] for phase, entry in self._done.items()}
        return each | {"total": round(sum(each.values()), 2)}

    @property
    def peak_rss_mb(self) -> float:
        """The largest memory any phase was seen with."""
        return max(entry["peak_rss_mb"] for entry in self._done.values())


def _train(config: Config, workdir: Path, records: RecordSource) -> dict[str, float]:
    train(config, workdir, records=records)
    return {"seconds": read_metrics(workdir)[-1]["elapsed_s"]}


def _evaluate(evaluator: Evaluator, workdir: Path) -> dict[str, Any]:
    result = evaluator(Generator.from_checkpoint(workdir / "forcing"))
    for name, shown in result.pictures.items():
        write_file(workdir / "pictures" / f"{name}.png", images.png_bytes(_sheet(shown)))
    write_file(workdir / "pictures" / "captions.json", json.dumps(evaluator.data.captions[:SHOWN]))
    return result.numbers


def _sheet(shown: dict[str, np.ndarray]) -> np.ndarray:
    """Returns one picture of examples side by side, ABREAST to a row; depth in disparity colours."""
    valid = shown.get("valid")
    columns = [name for name in shown if name != "valid"]

    def example(i: int) -> list[np.ndarray | None]:
        cells = [_picture(shown[name][i], None if valid is None else valid[i]) for name in columns]
        return [images.upscale(cell, 96 // cell.shape[0] or 1) for cell in cells]

    count = len(shown[columns[0]])
    rows = [
        [cell for i in range(at, min(at + ABREAST, count)) for cell in example(i)]
        for at in range(0, count, ABREAST)
    ]
    return images.grid(rows, labels=columns * min(ABREAST, count))


def _picture(x: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    if x.ndim == 2:
        return images.disparity_colours(x, known)
    return x if x.dtype == np.uint8 else images.to_u8(x)


def _grids(workdir: Path) -> list[tuple[str, str, bytes]]:
    told = {
        "i2d": ("Image to depth", "picture | generated depth | ground truth"),
        "d2i": (
            "Depth to image",
            "generated picture | depth it was given | depth re-estimated from the picture",
        ),
        "joint_image_first": (
            "Joint, image first",
            "picture | depth, generated together | depth re-estimated",
        ),
        "joint_depth_first": (
            "Joint, depth first",
            "picture | depth, generated together | depth re-estimated",
        ),
    }
    captions = json.loads((workdir / "pictures" / "captions.json").read_text())
    listed = "; ".join(f"{i}. {caption}" for i, caption in enumerate(captions, 1))
    sheets = []
    for name, (title, columns) in told.items():
        text = columns if name == "i2d" else f"{columns}. Captions, row by row: {listed}"
        sheets.append((title, text, (workdir / "pictures" / f"{name}.png").read_bytes()))
    return sheets


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    rows = read_metrics(folder)
    names = sorted({n for row in rows for n in row if n.startswith("loss_")})
    return {n: [(int(row["step"]), row[n]) for row in rows if n in row] for n in names}


def _where_time_went(folder: Path) -> dict[str, float]:
    return {k: round(v, 4) for k, v in read_metrics(folder)[-1].items() if k != "step"}


def _peak_rss_mb() -> float:
    """Returns this process's peak plus its largest child's: no less than what the two ever held together."""
    peaks = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return round(sum(peaks) / (1024 if sys.platform != "darwin" else 1024**2), 1)


def _given(changes: dict[str, Any]) -> dict[str, str]:
    return {k: str(v) for k, v in changes.items() if v is not None}


def told(summary: dict[str, Any], workdir: Path) -> str:
    """Returns the summary in a few lines for the terminal."""
    i2d, constant, rows, d2i = (summary[k] for k in ("i2d", "constant", "row_mean", "d2i"))
    lines = [
        f"image to depth: AbsRel {i2d['absrel']:.3f}, delta1 {i2d['delta1']:.3f} "
        f"(constant {constant['absrel']:.3f}, row mean {rows['absrel']:.3f})",
        f"depth to image: AbsRel {d2i['absrel']:.3f} (another scene's picture {d2i['absrel_unrelated']:.3f})",
        f"{summary['seconds']['total']:.0f} s, {summary['peak_rss_mb']:.0f} MB at most",
        f"{workdir / 'report.html'}",
    ]
    return "\n".join(lines)
