"""`mforce evaluate`: which of the four things that are scored was asked for, and which options it takes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from modality_forcing.commands.arguments import positive_int
from modality_forcing.errors import UserError

EXAMPLES = """examples:
  mforce evaluate --checkpoint runs/demo/forcing
  mforce evaluate --checkpoint runs/demo/forcing --benchmark nyuv2 --root data/eval --protocol moge --ensemble 10
  mforce evaluate --checkpoint runs/demo/forcing --sweep log2_alpha:-5..5
  mforce evaluate --pred p.npz --truth g.npz --protocol moge --json
arrays: `depth` [n h w] in both, `valid` bool [n h w] in the truth; with --align disparity, `disparity` in the first"""

_MODEL = ("checkpoint", "text_encoder", "autoencoder", "steps", "solver", "seed")

# What each use takes, besides --out and --json.
_USES = {
    "arrays (--pred, --truth)": ("pred", "truth", "protocol", "align", "depth_range", "strict"),
    "a benchmark (--benchmark)": (
        *(*_MODEL, "benchmark", "root", "list", "view", "ensemble", "ensemble_mode"),
        *("protocol", "align", "depth_range", "strict"),
    ),
    "a sweep (--sweep)": (*_MODEL, "sweep", "examples", "estimator", "pictures"),
    "a checkpoint's own records (--checkpoint alone)": (
        *_MODEL,
        "examples",
        "estimator",
        "pictures",
    ),
}
_ARRAYS, _BENCHMARK, _SWEEP, _RECORDS = _USES
_OUT = Path("runs/evaluation")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("--checkpoint", type=Path, help="a workdir, its checkpoints/ or one step of it")
    add("--text-encoder", metavar="umt5:PATH", help="frozen, if not where the config says")
    add("--autoencoder", metavar="flux2:PATH", help="frozen, if not where the config says")
    add("--examples", type=positive_int, help="held-out records, instead of the config's")
    add(
        "--estimator",
        help="judge of generated pictures: self (default), a folder of maps, or package.module:function",
    )
    add(
        "--pictures",
        type=Path,
        help="write the generated pictures here, for an estimator of another program",
    )
    add(
        "--sweep",
        metavar="log2_alpha:FROM..TO",
        help="joint generation along tilted trajectories, e.g. log2_alpha:-5..5",
    )
    add(
        "--benchmark",
        help="nyuv2, kitti, eth3d, scannet, diode, ibims1, sintel, ddad...; several with commas",
    )
    add("--root", type=Path, help="the folder that the benchmark is unpacked in")
    add("--list", type=Path, help="frames to score, a name a line, instead of the official list")
    add(
        "--view",
        help="what is scored: square (default, the model's own), moge (its published view) or frame (as stored)",
    )
    add("--ensemble", type=positive_int, help="samples of each frame, merged into one map (1)")
    add("--ensemble-mode", choices=("scale", "affine"), help="what differs between samples (scale)")
    add("--seed", type=int, help="of the samples (benchmarks: 0; others: the config's)")
    add("--steps", type=positive_int, help="sampler steps, instead of the config's")
    add("--solver", choices=("euler", "heun"))
    add("--pred", type=Path, help="predicted depth, .npz")
    add("--truth", type=Path, help="true depth and where it is known, .npz")
    add("--protocol", help="moge (default), marigold or metric")
    add("--align", help="affine, scale, disparity or none: what the prediction is known up to")
    add("--depth-range", help="LEAST:MOST depth that is scored, e.g. 0.001:10")
    add(
        "--strict",
        action="store_true",
        default=None,
        help="an aligned depth of 0 or less never counts as close",
    )
    add("--json", action="store_true", help="print JSON, with a row per image, not a table")
    add(
        "--out",
        type=Path,
        help=f"arrays and records: also write the JSON here; others: a folder ({_OUT})",
    )


def main(options: argparse.Namespace) -> None:
    """Scores what was asked for and prints it; raises UserError before any work for options that do not go together."""
    use = which(options)
    idle = sorted({name for names in _USES.values() for name in names} - set(_USES[use]))
    for name in idle:
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is not for {use}",
                hint="leave it out; see mforce evaluate --help",
            )
    {_ARRAYS: _arrays, _BENCHMARK: _benchmarks, _SWEEP: _sweep, _RECORDS: _records}[use](options)


def which(options: argparse.Namespace) -> str:
    """Returns the use that the options name; raises UserError where they name none or lack what it needs."""
    arrays = options.pred is not None or options.truth is not None
    if arrays == (options.checkpoint is not None):
        raise UserError(
            "nothing to score, or two things",
            hint="give either --checkpoint, or --pred and --truth",
        )
    if arrays:
        return _ARRAYS
    if options.benchmark is not None and options.sweep is not None:
        raise UserError("--benchmark and --sweep are two runs", hint="give one of them")
    return (
        _BENCHMARK
        if options.benchmark is not None
        else _SWEEP
        if options.sweep is not None
        else _RECORDS
    )


def tell(line: str) -> None:
    """Prints progress, apart from results."""
    print(line, file=sys.stderr, flush=True)


def _protocol(options: argparse.Namespace):
    from modality_forcing.evaluation import arrays
    from modality_forcing.evaluation.protocols import protocol

    bounds = None if options.depth_range is None else arrays.depth_range(options.depth_range)
    return protocol(options.protocol or "moge", options.align, bool(options.strict), bounds)


def _arrays(options: argparse.Namespace) -> None:
    from modality_forcing.evaluation import arrays

    _check_file(options.out)
    result = arrays.evaluate(options.pred, options.truth, _protocol(options))
    _print(options, result, arrays.table(result))


def _records(options: argparse.Namespace) -> None:
    _check_file(options.out)
    generator, evaluator = _own_records(options, "i2d")
    numbers = evaluator(generator).numbers
    if evaluator.estimator is not None:
        numbers["estimator"] = evaluator.estimator.name
    _print(options, numbers, json.dumps(numbers, indent=1))


def _sweep(options: argparse.Namespace) -> None:
    from modality_forcing.atomic_io import check_folder
    from modality_forcing.evaluation import trajectory_sweep
    from modality_forcing.train import checkpoint

    values, out = trajectory_sweep.parse_range(options.sweep), options.out or _OUT
    check_folder(out, "--out")
    generator, evaluator = _own_records(options, "joint")
    result = trajectory_sweep.run(
        generator, evaluator, values, out, checkpoint.resolve_checkpoint(options.checkpoint), tell
    )
    print(json.dumps(result, indent=1) if options.json else trajectory_sweep.table(result))


def _own_records(options: argparse.Namespace, task: str) -> tuple[Any, Any]:
    """A generator and an evaluator of the records in its config; what cannot work is refused before records are made."""
    from modality_forcing.evaluation import estimators
    from modality_forcing.evaluation.heldout import Evaluator, with_examples

    judge = estimators.parse(options.estimator or "self")
    generator = _generator(options, options.seed)
    config = (
        with_examples(generator.config, options.examples) if options.examples else generator.config
    )
    generator.trajectory(task, config.sample)
    return generator, Evaluator(config, judge, options.pictures)


def _benchmarks(options: argparse.Namespace) -> None:
    from modality_forcing.atomic_io import check_folder
    from modality_forcing.evaluation import benchmark_run
    from modality_forcing.evaluation.benchmark import Setup
    from modality_forcing.evaluation.framing import view_name
    from modality_forcing.evaluation.report import to_markdown
    from modality_forcing.train import checkpoint

    if options.root is None:
        raise UserError(
            "--root is missing", hint="name the folder that the benchmark is unpacked in"
        )
    if options.ensemble_mode is not None and (options.ensemble or 1) == 1:
        raise UserError("--ensemble-mode is for several samples", hint="give --ensemble 10 as well")
    chosen, out = _protocol(options), options.out or _OUT
    check_folder(out, "--out")
    setup = Setup(
        view_name(options.view or "square"),
        options.ensemble or 1,
        options.ensemble_mode or "scale",
        options.seed or 0,
    )
    opened = benchmark_run.open_all(options.benchmark, options.root, options.list)
    generator = _generator(options, setup.seed)
    results = benchmark_run.run(
        generator,
        checkpoint.resolve_checkpoint(options.checkpoint).name,
        opened,
        chosen,
        setup,
        out,
        tell,
    )
    told = results if len(results) > 1 else results[0]
    print(json.dumps(told, indent=1) if options.json else to_markdown(results))


def _generator(options: argparse.Namespace, seed: int | None) -> Any:
    from modality_forcing.generator import Generator

    return Generator.from_checkpoint(
        options.checkpoint,
        text_encoder=options.text_encoder or "",
        autoencoder=options.autoencoder or "",
        seed=seed,
        sample={"steps": options.steps, "solver": options.solver},
    )


def _check_file(out: Path | None) -> None:
    if out is not None and out.is_dir():
        raise UserError("is a folder", where=out, hint="name a file with --out")


def _print(options: argparse.Namespace, result: Any, table: str) -> None:
    from modality_forcing.atomic_io import write_file

    text = json.dumps(result, indent=1)
    if options.out:
        write_file(options.out, text)
    print(text if options.json else table)
