"""`mforce demo`: pretrains, post-trains on depth, evaluates, samples and reports."""

from __future__ import annotations

import argparse
import functools
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modality_forcing.commands.arguments import path_option, positive_int
from modality_forcing.errors import UserError
from modality_forcing.paths import exists, read_bytes, write_file
from modality_forcing.progress import print_stderr
from modality_forcing.text_io import read_json, read_verified, with_checksum

if TYPE_CHECKING:
    import numpy as np

    from modality_forcing.config import Config
    from modality_forcing.data.in_memory import InMemory
    from modality_forcing.evaluation.heldout import Evaluator

PHASES = "phases.json"  # in the workdir: which phases are done, and their numbers
SCENES_MB = 2048  # of memory for scenes; those of `night` take 1200
EXAMPLES_PER_ROW = 3  # of a sheet
Summary = dict[str, Any]  # JSON


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add(
        "--workdir",
        type=path_option,
        default=Path("runs/demo"),
        help="for all output (%(default)s)",
    )
    add(
        "--scale",
        choices=("short", "hour", "night"),
        default="short",
        help="the budget, for two idle cores (%(default)s)",
    )
    add("--sparse-only", action="store_true", help="post-train without dense depth maps")
    add("--seed", type=int, default=0, help="of scenes, weights and noise (%(default)s)")
    add("--ablate", action="store_true", help="also post-train from scratch; doubles the time")
    add("--t2i-steps", type=positive_int, help="steps of pretraining, instead of the config's")
    add(
        "--forcing-steps", type=positive_int, help="steps of post-training, instead of the config's"
    )
    add("--examples", type=positive_int, help="held-out scenes, instead of the config's")


def main(options: argparse.Namespace) -> None:
    """Runs or resumes the demo and prints its summary. Finished phases are read back.

    Writes under the workdir: `t2i/`, `forcing/` and, with --ablate, `no_pretraining/` with
    checkpoints and TensorBoard events, `images/`, `summary.json` and `report.html`.
    """
    from modality_forcing import compilation_cache, locks
    from modality_forcing.evaluation.heldout import with_num_examples
    from modality_forcing.train.workdir import check_resumable

    t2i, forcing = configs(options)
    with_num_examples(forcing, forcing.eval.examples)  # raises for more than there are
    _check_no_other(options.workdir)
    hint = "choose another --workdir, or give that demo's --scale, --sparse-only, --seed and steps"
    for config in (t2i, forcing):  # also where the phase is done and would only be read back
        ignored = ("train.init_from",)
        check_resumable(options.workdir / config.name, config, ignored, hint=hint)
    cache = compilation_cache.enabled(t2i.train.compilation_cache, options.workdir)
    with locks.hold(options.workdir, "--workdir"), cache:
        _run_phases(options, t2i, forcing)


def _check_no_other(workdir: Path) -> None:
    """Raises UserError for a folder with files that would be replaced and are of no demo."""
    if exists(workdir / PHASES):
        return
    for name in ("summary.json", "report.html", "images", "config.json", "checkpoints"):
        if exists(workdir / name):
            what = f"holds {name}, and no {PHASES} of a demo"
            raise UserError(what, where=workdir, hint="choose another --workdir")


def _run_phases(options: argparse.Namespace, t2i: Config, forcing: Config) -> None:
    from modality_forcing.data.in_memory import InMemory
    from modality_forcing.evaluation.heldout import Evaluator
    from modality_forcing.generator import Generator
    from modality_forcing.train import checkpoint, inputs
    from modality_forcing.viz.html_report import write_report

    workdir = options.workdir
    phases = PhaseCache(workdir / PHASES)
    records = InMemory(inputs.open_source(t2i), SCENES_MB)  # both phases see the same scenes

    phases.run("t2i", lambda: _train(t2i, workdir / "t2i", records))
    phases.run("forcing", lambda: _train(forcing, workdir / "forcing", records))
    if options.ablate:
        train = replace(forcing.train, init_from="", allow_missing_modalities=())
        scratch = replace(forcing, name="no_pretraining", train=train)
        phases.run("no_pretraining", lambda: _train(scratch, workdir / "no_pretraining", records))

    evaluator = functools.cache(lambda: Evaluator(forcing))
    numbers = phases.run("evaluate", lambda: _evaluate(evaluator(), workdir))
    if options.ablate:

        def ablation() -> Summary:
            return evaluator().i2d(Generator.from_checkpoint(workdir / "no_pretraining"))[0]

        numbers |= {"no_pretraining": phases.run("evaluate_no_pretraining", ablation)}

    summary = numbers | {
        "seconds": phases.seconds,
        "cpu_seconds": phases.cpu_seconds,
        "breakdown": {p: _last_metrics(workdir / p) for p in ("t2i", "forcing")},
        "peak_rss_mb": phases.peak_rss_mb,
        "checkpoint": str(checkpoint.resolve_checkpoint(workdir / "forcing")),
    }
    curves = {
        f"{phase}/{name}": curve
        for phase in ("t2i", "forcing", "no_pretraining")
        if exists(workdir / phase / "metrics.jsonl")
        for name, curve in _curves(workdir / phase).items()
    }
    write_report(workdir / "report.html", summary, curves, _sheets(workdir))
    write_file(workdir / "summary.json", json.dumps(summary, indent=1))
    print(format_summary(summary, workdir))


def configs(options: argparse.Namespace) -> tuple[Config, Config]:
    """Returns the configs of the two phases."""
    from modality_forcing import config_file

    def load(phase: str, **changes: int | None) -> Config:
        changes |= {"seed": options.seed}
        overrides = {k.replace("_", ".", 1): str(v) for k, v in changes.items() if v is not None}
        dense = ",dense=0" if options.sparse_only else ""
        return config_file.load(f"demo:phase={phase},scale={options.scale}{dense}", overrides)

    t2i = load("t2i", train_steps=options.t2i_steps)
    forcing = load("forcing", train_steps=options.forcing_steps, eval_examples=options.examples)
    train = replace(forcing.train, init_from=str(options.workdir / "t2i"))
    return t2i, replace(forcing, train=train)


class PhaseCache:
    """The results of finished phases and their durations, in a file that survives a kill."""

    def __init__(self, path: Path):
        self._path = path
        self._done: dict[str, Summary] = {}
        if exists(path):
            what, hint = "is not a record of phases", "choose another --workdir"
            self._done = read_verified(path, what=what, hint=hint, finite=False)
            keys = {"seconds", "peak_rss_mb", "result"}
            if not all(isinstance(e, dict) and keys <= e.keys() for e in self._done.values()):
                raise UserError(what, where=path, hint=hint)

    def run(self, phase: str, work: Callable[[], Any]) -> Any:
        """Runs a phase unless it is done; returns its result, which must be JSON-able."""
        if phase in self._done:
            print_stderr(f"{phase}: already done")
            return self._done[phase]["result"]
        print_stderr(f"{phase}: started")
        started, cpu_started = time.monotonic(), _cpu_seconds()
        result = work()
        seconds = time.monotonic() - started
        if isinstance(result, dict) and "seconds" in result:
            seconds = max(seconds, result.pop("seconds"))  # of all its attempts
        self._done[phase] = {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(_cpu_seconds() - cpu_started, 2),
            "peak_rss_mb": _peak_rss_mb(),
            "result": result,
        }
        write_file(self._path, json.dumps(with_checksum(self._done), indent=1))
        return result

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per phase, and their sum."""
        each: dict[str, float] = {k: entry["seconds"] for k, entry in self._done.items()}
        return each | {"total": round(sum(each.values(), 0.0), 2)}

    @property
    def cpu_seconds(self) -> dict[str, float]:
        """Processor seconds of all processes, per phase, and their sum.

        Of a phase that was killed and resumed, those of its last attempt. Phases of an earlier
        version have none.
        """
        each = {k: e["cpu_seconds"] for k, e in self._done.items() if "cpu_seconds" in e}
        return each | {"total": round(sum(each.values(), 0.0), 2)}

    @property
    def peak_rss_mb(self) -> float:
        """The largest peak memory of any phase."""
        return max(entry["peak_rss_mb"] for entry in self._done.values())


def _train(config: Config, workdir: Path, records: InMemory) -> dict[str, float]:
    from modality_forcing.evaluation.while_training import make_evaluate
    from modality_forcing.train.loop import train
    from modality_forcing.train.metrics import last_value

    if not config.data.workers:
        records.fill_for(config.train.steps * config.train.batch)
    train(config, workdir, records=records, make_evaluate=make_evaluate)
    return {"seconds": last_value(workdir, "elapsed_s") or 0.0}


def _evaluate(evaluator: Evaluator, workdir: Path) -> Summary:
    from modality_forcing.evaluation.heldout import EXAMPLES
    from modality_forcing.generator import Generator
    from modality_forcing.viz import images

    result = evaluator(Generator.from_checkpoint(workdir / "forcing"))
    for name, shown in result.images.items():
        write_file(workdir / "images" / f"{name}.png", images.png_bytes(_sheet(shown)))
    write_file(workdir / "images" / "captions.json", json.dumps(evaluator.data.captions[:EXAMPLES]))
    return result.metrics


def _sheet(shown: dict[str, np.ndarray]) -> np.ndarray:
    """Returns one image of all examples, EXAMPLES_PER_ROW to a row; depth in disparity colors."""
    import numpy as np

    from modality_forcing.viz import images

    valid = shown.get("valid")
    columns = {name: x for name, x in shown.items() if name != "valid"}

    def cell(x: np.ndarray, i: int) -> np.ndarray:
        if x.ndim == 3:
            color = images.colorize_disparity(x[i], None if valid is None else valid[i])
        else:
            color = x[i] if x.dtype == np.uint8 else images.to_u8(x[i])
        return images.upscale(color, 96 // color.shape[0] or 1)

    count = len(next(iter(columns.values())))
    cells = [cell(x, i) for i in range(count) for x in columns.values()]
    width = min(EXAMPLES_PER_ROW, count) * len(columns)
    rows = [cells[at : at + width] for at in range(0, len(cells), width)]
    return images.grid(rows, labels=[*columns] * min(EXAMPLES_PER_ROW, count))


_SHEETS = {
    "i2d": ("Image to depth", "image | generated depth | ground truth"),
    "d2i": ("Depth to image", "generated image | input depth | depth re-estimated from the image"),
    "joint_image_first": ("Joint, image first", "image | depth | depth re-estimated"),
    "joint_depth_first": ("Joint, depth first", "image | depth | depth re-estimated"),
}


def _sheets(workdir: Path) -> list[tuple[str, str, bytes]]:
    captions = read_json(workdir / "images" / "captions.json", hint="choose another --workdir")
    listed = "; ".join(f"{i}. {caption}" for i, caption in enumerate(captions, 1))
    sheets = []
    for name, (title, columns) in _SHEETS.items():
        text = columns if name == "i2d" else f"{columns}. Captions, row by row: {listed}"
        sheets.append((title, text, read_bytes(workdir / "images" / f"{name}.png")))
    return sheets


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from modality_forcing.train.metrics import read_metrics

    rows = read_metrics(folder)
    names = sorted({n for row in rows for n in row if n.startswith("loss_") and "/" not in n})
    return {n: [(int(row["step"]), row[n]) for row in rows if n in row] for n in names}


def _last_metrics(folder: Path) -> dict[str, float]:
    from modality_forcing.train.metrics import read_metrics

    last = (read_metrics(folder) or [{}])[-1]
    return {k: round(v, 4) for k, v in last.items() if k != "step"}


def _cpu_seconds() -> float:
    """Returns the processor time of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _peak_rss_mb() -> float:
    """Returns this process's peak plus its largest child's, an upper bound of both together."""
    peaks = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return round(sum(peaks) / (1024 if sys.platform != "darwin" else 1024**2), 1)


def format_summary(summary: Summary, workdir: Path) -> str:
    """Returns the summary in a few lines for the terminal."""
    i2d, constant, rows, d2i = (summary[k] for k in ("i2d", "constant", "row_mean", "d2i"))
    return (
        f"image to depth: AbsRel {i2d['absrel']:.3f}, delta1 {i2d['delta1']:.3f} "
        f"(constant {constant['absrel']:.3f}, row mean {rows['absrel']:.3f})\n"
        f"depth to image: AbsRel {d2i['absrel']:.3f} "
        f"(another scene's image {d2i['absrel_shuffled']:.3f})\n"
        f"{summary['seconds']['total']:.0f} s, {summary['cpu_seconds']['total']:.0f} CPU seconds, "
        f"{summary['peak_rss_mb']:.0f} MB peak\n"
        f"{workdir / 'report.html'}"
    )
