"""Resident memory, threads and open files of a long run with evaluations and saves.

python benchmarks/soak.py --steps=20000

The run is `mforce train` with a network of a few thousand weights. The table has the process with
its loaders, in ten parts of the run; a part's numbers are its medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from modality_forcing.progress import format_table

SMALL = {
    "model.width": 32,
    "model.mlp_dim": 64,
    "model.num_layers": 2,
    "model.heads": 2,
    "model.kv_heads": 1,
    "data.resolution": 16,
    "data.num_scenes": 512,
    "train.batch": 4,
    "train.log_every": 100,
    "train.save_every": 200,
    "eval.every": 1000,
    "eval.examples": 8,
    "eval.batch": 8,
    "sample.steps": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as workdir:
        settings = SMALL | {"train.steps": steps}
        options = [f"--config.{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "modality_forcing.cli", "train", "--config=demo:phase=t2i"]
        command += [f"--workdir={workdir}", *options]
        rows = watch(subprocess.Popen(command), Path(workdir) / "metrics.jsonl", steps)
    print(format_table(rows, ("steps", "resident MiB", "threads", "open files", "processes")))


def watch(run: subprocess.Popen, metrics: Path, steps: int) -> list[tuple[str, ...]]:
    """Returns a row for each tenth of the run; raises SystemExit if it fails."""
    parts: dict[int, list[tuple[float, int, int, int]]] = {}
    process = psutil.Process(run.pid)
    while run.poll() is None:
        time.sleep(2)
        step = last_step(metrics)
        if step is None:
            continue
        try:
            family = [process, *process.children(recursive=True)]
            seen = (
                sum(p.memory_info().rss for p in family) / 2**20,
                sum(p.num_threads() for p in family),
                sum(p.num_fds() for p in family),
                len(family),
            )
        except psutil.NoSuchProcess:
            continue
        parts.setdefault(min(10 * step // steps, 9), []).append(seen)
    if run.returncode:
        raise SystemExit(run.returncode)
    return [
        (
            f"from {part * steps // 10}",
            *(f"{statistics.median(column):.0f}" for column in zip(*seen, strict=True)),
        )
        for part, seen in sorted(parts.items())
    ]


def last_step(metrics: Path) -> int | None:
    """Returns the step of the last row, or None."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):
            continue
    return None


if __name__ == "__main__":
    main()
