"""The state of a sweep: what is done, what is left, and how long it takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from modality_forcing import paths
from modality_forcing.paths import exists
from modality_forcing.progress import format_duration, format_table
from modality_forcing.sweeps.price import SCORE_COLUMNS, run_flops
from modality_forcing.sweeps.spec import Cell, Run
from modality_forcing.sweeps.workdir import SweepDir
from modality_forcing.train.metrics import read_metrics

STATES = ("done", "running", "failed", "waiting")
_HEADER = ("cell", "state", "steps", "loss", "score", "left")


def dry_run(folder: SweepDir, cells: Sequence[Cell]) -> str:
    """Returns what is left, in order: training runs with their steps, each once, and scores."""
    lines, listed = [], set[str]()
    for cell in cells:
        if folder.row(cell) is not None:
            continue
        for run in cell.run.dependencies():
            if run.digest not in listed and not folder.is_trained(run):
                total, done = run.config.train.steps, max(folder.steps_done(run), run.branch_step)
                more = f" more, of {total}" if done else ""
                lines.append(f"train  {run.folder}  {total - done} steps{more}")
            listed.add(run.digest)
        lines.append(f"score  {cell.name}")
    done = sum(folder.row(cell) is not None for cell in cells)
    return "\n".join([*lines, f"{done} of {len(cells)} cells are done"])


def state(folder: SweepDir, cell: Cell) -> str:
    """Returns one of STATES."""
    if folder.row(cell) is not None:
        return "done"
    if folder.lock_owner(cell.name):
        return "running"
    return "failed" if exists(folder.failure_log(cell)) else "waiting"


def status(folder: SweepDir, cells: Sequence[Cell]) -> str:
    """Returns a table: cell, state, steps done, last training loss, score or error, time left.

    The time is that of one process, from the seconds per FLOP of finished runs of about the same
    size.
    """
    speeds = _speeds(folder)
    rows, states, counted, left = [], list[str](), set[str](), 0.0
    for cell in cells:
        states.append(state(folder, cell))
        runs = [(run, folder.steps_done(run)) for run in cell.runs()]
        seconds = {run.digest: _seconds_left(run, done, speeds) for run, done in runs}
        remaining = ""
        if states[-1] != "done":
            remaining = format_duration(sum(seconds.values())) if speeds else "?"
            left += sum(s for digest, s in seconds.items() if digest not in counted)
            counted |= set(seconds)
        done, total = sum(n for _, n in runs), sum(run.config.train.steps for run, _ in runs)
        result = _result(folder, cell, failed=states[-1] == "failed")
        loss = _last_loss(folder, [run for run, n in runs if n])
        rows.append((cell.name, states[-1], f"{done}/{total}", loss, result, remaining))
    counts = Counter(states)
    summary = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    time_left = f"{format_duration(left)} left for one process" if speeds else "time left unknown"
    return f"{format_table(rows, _HEADER)}\n{summary}; {time_left}"


def _result(folder: SweepDir, cell: Cell, failed: bool) -> str:
    """The score of a finished cell, the error of a failed one."""
    if failed:
        return paths.read_text(folder.failure_log(cell)).strip().rpartition("\n")[2]
    row = folder.row(cell) or {}
    return next((f"{name} {row[name]:.4f}" for name in SCORE_COLUMNS if row.get(name)), "")


def _last_loss(folder: SweepDir, started: Sequence[Run]) -> str:
    metrics = read_metrics(folder.run_dir(started[-1])) if started else []
    losses = [row["loss"] for row in metrics if "loss" in row]
    return f"{losses[-1]:.4f}" if losses else ""


def _speeds(folder: SweepDir) -> list[tuple[float, float]]:
    """FLOPs per step and seconds per FLOP of every finished run."""
    speeds = []
    for run in folder.sweep.runs():
        metrics = read_metrics(folder.run_dir(run)) if folder.is_trained(run) else []
        seconds = [row["elapsed_s"] for row in metrics if "elapsed_s" in row]
        if seconds:
            flops = run_flops(run)
            speeds.append((flops / run.config.train.steps, seconds[-1] / flops))
    return speeds


def _seconds_left(run: Run, done: int, speeds: Sequence[tuple[float, float]]) -> float:
    """Time left at the speed of the finished run whose step is closest in FLOPs."""
    left = run.config.train.steps - max(done, run.branch_step)
    if left <= 0 or not speeds:
        return 0.0
    step = run_flops(run) / run.config.train.steps
    _, rate = min(speeds, key=lambda speed: abs(math.log(speed[0] / step)))
    return left * step * rate
