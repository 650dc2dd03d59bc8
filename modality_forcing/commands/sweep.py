"""`mforce sweep`: trains and scores the cells of a sweep, or prints commands for many machines."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from modality_forcing import distributed
from modality_forcing.commands.arguments import positive_int, shard_of
from modality_forcing.errors import UserError

if TYPE_CHECKING:  # jax is loaded where the work starts
    from modality_forcing.sweeps.run import SweepDir
    from modality_forcing.sweeps.spec import Cell, Run, Sweep

LAUNCHERS = ("local", "tpu_vm", "gke", "slurm")
EXAMPLES = """examples:
  mforce plan --sweep=configs/sweep_paper.py                                    # what it costs
  mforce sweep --config=configs/sweep_scenes.py --workdir=runs/scenes           # do it; the same again goes on
  mforce sweep --config=configs/sweep_scenes.py --workdir=runs/scenes --status
  mforce sweep --config=configs/sweep_paper.py --workdir=/gcs/bucket/paper --launcher=gke --jobs=12 \\
      --launcher-options='--cluster=C --topology=v5p:4x4x4 --image=IMAGE'       # prints a command per job
Finished cells are skipped, failed ones tried again and named, killed ones go on from their last checkpoint; runs that cells
share are done once. Rows come to rows.jsonl (to the bit the same, however often it was stopped) and rows.csv (with seconds),
curves and law to report.html.
Exit code 1: a cell failed, 2: all that failed are mistakes that a second try would repeat."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a file with get_sweep(arg), e.g. configs/sweep_scenes.py",
    )
    add("--workdir", type=Path, required=True, help="runs, rows and locks go here")
    add(
        "--part",
        type=shard_of,
        metavar="I/N",
        help="the I-th of N parts that share no run, I from 0: one of N jobs",
    )
    add("--dry-run", action="store_true", help="list what would be done, and do nothing")
    add("--status", action="store_true", help="a table of the cells, and do nothing")
    add(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="others print the commands of launch/ (%(default)s)",
    )
    add(
        "--jobs",
        type=positive_int,
        metavar="N",
        help="for a launcher: into so many parts (one for each group that shares runs)",
    )
    add(
        "--launcher-options",
        default="",
        metavar="'...'",
        help="for a launcher: its own options, the same for every job",
    )


def main(options: argparse.Namespace) -> int:
    """Does what was asked for; returns 0, or 1 or 2 where cells failed. Raises UserError for
    options that do not go together.
    """
    if options.launcher == "local" and not (options.status or options.dry_run):
        distributed.initialize()
    from modality_forcing.sweeps import spec
    from modality_forcing.sweeps.price import run_flops

    if options.launcher == "local" and (options.jobs or options.launcher_options):
        raise UserError(
            "--jobs and --launcher-options are for a launcher",
            hint="give --launcher=slurm, tpu_vm or gke as well",
        )
    if options.launcher != "local" and (options.part or options.status):
        raise UserError(
            f"--launcher={options.launcher} makes the parts itself",
            hint="leave --part and --status out",
        )
    sweep = spec.load(options.config)
    if options.launcher != "local":
        print("\n".join(commands(options, sweep, options.jobs or len(sweep.groups()))))
        return 0
    at, of = options.part or (0, 1)
    cells = sweep.cells if of == 1 else spec.partition(sweep, of, run_flops)[at]

    from modality_forcing.sweeps.run import SweepDir, work

    folder = SweepDir(sweep, options.workdir)
    if options.status:
        print(status(folder, cells))
        return 0
    if options.dry_run:
        print(dry_run(folder, cells))
        return 0
    failed = work(folder, cells, _log)
    if not distributed.is_primary():
        return 1 if failed else 0
    done = sum(folder.row(cell) is not None for cell in cells)
    print(f"{done} of {len(cells)} cells are done; rows in {options.workdir / 'rows.jsonl'}")
    _report(folder)
    for name, (line, _) in failed.items():
        print(
            f"failed: {name}: {line} ({options.workdir / 'failed' / f'{name}.log'})",
            file=sys.stderr,
        )
    return 0 if not failed else 2 if all(mistake for _, mistake in failed.values()) else 1


def _report(folder: SweepDir) -> None:
    """Writes the report of all rows there are; a sweep without scores of depth, as of
    text-to-image alone, has none.
    """
    from modality_forcing.sweeps import report

    rows = [row for cell in folder.sweep.cells if (row := folder.row(cell))]
    with suppress(UserError):
        print(f"report in {report.write(folder.path, folder.sweep.name, rows)}")


def commands(options: argparse.Namespace, sweep: Sweep, jobs: int) -> list[str]:
    """Returns the launcher's command for each part, to be run from a clone; UserError for more
    parts than there is work.
    """
    if jobs > len(sweep.groups()):
        told = f"--jobs={jobs}, and sweep {sweep.name} has {len(sweep.groups())} groups of cells that share no run"
        raise UserError(told, hint="ask for no more")
    try:
        own = shlex.split(options.launcher_options)
    except ValueError as error:
        raise UserError(
            f"--launcher-options cannot be read ({error})", hint="quote them as for a shell"
        ) from None
    lines = []
    for i in range(jobs):
        given = [
            "sweep",
            f"--config={options.config}",
            f"--workdir={options.workdir}",
            f"--part={i}/{jobs}",
        ]
        dry = ["--dry-run"] if options.dry_run else []
        command = [
            "python",
            f"launch/{options.launcher}.py",
            f"--name=sweep-{sweep.name}-{i}",
            *dry,
            *own,
            "--",
            *given,
        ]
        lines.append(shlex.join(command))
    return lines


def dry_run(folder: SweepDir, cells: Sequence[Cell]) -> str:
    """Returns what would be done, in order: training runs with their steps, each once, and scores."""
    lines, listed = [], set[str]()
    for cell in cells:
        if folder.row(cell) is not None:
            continue
        for run in cell.run.dependencies():
            total, done = run.config.train.steps, max(folder.steps_done(run), run.branch_step)
            if run.digest not in listed and not folder.is_trained(run):
                lines.append(
                    f"train  {run.folder}  {total - done} steps{f' more, of {total}' if done else ''}"
                )
            listed.add(run.digest)
        lines.append(f"score  {cell.name}")
    done = sum(folder.row(cell) is not None for cell in cells)
    return "\n".join([*lines, f"{done} of {len(cells)} cells are done"])


def state(folder: SweepDir, cell: Cell) -> str:
    """Returns "done", "running", "failed" or "waiting"."""
    if folder.row(cell) is not None:
        return "done"
    if folder.lock_owner(cell.name):
        return "running"
    return "failed" if folder.failure_log(cell).exists() else "waiting"


def status(folder: SweepDir, cells: Sequence[Cell]) -> str:
    """Returns the table: cell, state, steps done, last training loss, score, time left at the
    speed of what is done.

    The time is that of one process, from seconds a FLOP of finished runs of about the same size.
    """
    from modality_forcing.train.metrics import read_metrics

    speeds = _speeds(folder)
    head = ("cell", "state", "steps", "loss", "score", "left")
    rows: list[tuple[str, ...]] = [head]
    counts: dict[str, int] = dict.fromkeys(("done", "running", "failed", "waiting"), 0)
    counted, left = set[str](), 0.0
    for cell in cells:
        counts[now := state(folder, cell)] += 1
        runs, row = cell.runs(), folder.row(cell)
        steps = [folder.steps_done(run) for run in runs]
        started = next(
            (run for run, n in zip(reversed(runs), reversed(steps), strict=True) if n), None
        )
        losses = (
            [r["loss"] for r in read_metrics(folder.run_dir(started)) if "loss" in r]
            if started
            else []
        )
        score = (
            ""
            if row is None
            else next(
                (f"{k} {row[k]:.4f}" for k in ("i2d_absrel", "absrel", "loss") if row.get(k)), ""
            )
        )
        seconds = {run.digest: _seconds(run, n, speeds) for run, n in zip(runs, steps, strict=True)}
        if now != "done":
            left += sum(s for digest, s in seconds.items() if digest not in counted)
            counted |= set(seconds)
        if now == "failed":
            score = folder.failure_log(cell).read_text().strip().splitlines()[-1]
        remaining = "" if now == "done" else _clock(sum(seconds.values())) if speeds else "?"
        total = sum(run.config.train.steps for run in runs)
        rows.append(
            (
                cell.name,
                now,
                f"{sum(steps)}/{total}",
                f"{losses[-1]:.4f}" if losses else "",
                score,
                remaining,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    told = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    return "\n".join(
        [
            *lines,
            f"{told}; {_clock(left) + ' left for one process' if speeds else 'time left is not known yet'}",
        ]
    )


def _speeds(folder: SweepDir) -> list[tuple[float, float]]:
    """FLOPs of a step, and seconds a FLOP, of every finished run."""
    from modality_forcing.sweeps.price import run_flops
    from modality_forcing.train.metrics import read_metrics

    found = []
    for run in folder.sweep.runs():
        if folder.is_trained(run) and (
            seconds := [
                r["elapsed_s"] for r in read_metrics(folder.run_dir(run)) if "elapsed_s" in r
            ]
        ):
            spent = run_flops(run)
            found.append((spent / run.config.train.steps, seconds[-1] / spent))
    return found


def _seconds(run: Run, done: int, speeds: Sequence[tuple[float, float]]) -> float:
    from modality_forcing.sweeps.price import run_flops

    steps = run.config.train.steps
    done = max(done, run.branch_step)
    if done >= steps or not speeds:
        return 0.0
    step = run_flops(run) / steps
    _, rate = min(speeds, key=lambda speed: abs(math.log(speed[0] / step)))
    return (steps - done) * step * rate


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _log(line: str) -> None:
    if distributed.is_primary():
        print(f"sweep: {line}", file=sys.stderr, flush=True)
