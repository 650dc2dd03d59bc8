"""Rendering speed of the procedural world, and how well depth is predicted without the image.

    python benchmarks/scenes.py
    python benchmarks/scenes.py --against ../older-checkout

Prints records a second of one core (captions included), read one by one and many at a time, those
that all cores read into memory, and the AbsRel of three reference predictors:
- constant: one value for the whole image;
- row mean: the mean, over training scenes, of each row's normalized depth;
- oracle rows: each row's own best value from the true depth, the limit of any guess by rows.
The first two are aligned to each image by the scale and shift that minimize its AbsRel.

--against alternates with another checkout and prints the speed of this one over that one's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modality_forcing.data.in_memory import InMemory
from modality_forcing.data.records import Record
from modality_forcing.data.worker_pool import available_cores
from modality_forcing.synthetic.source import Scenes


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed of the procedural world, and baseline predictors of its depth."
    )
    parser.add_argument("--scenes", type=int, default=256, help="scenes per number")
    parser.add_argument(
        "--resolution", type=int, default=32, help="pixels a side for the baseline predictors"
    )
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    if options.against:
        folders = (root, options.against.resolve())
        print("pixels a side  read   records/s of a core  other  ratio")
    else:
        folders = (root,)
        print("pixels a side  read   records/s of a core")
    for resolution in (32, 64, 256):
        for read in ("many", "one"):
            found = rates(folders, resolution, 8 + options.scenes * 1024 // resolution**2, read)
            ratio = [f"{found[-1]:10.0f}  {found[0] / found[-1]:5.2f}"] if found[1:] else []
            print(f"{resolution:13d}  {read:4s}  {found[0]:20.0f}", *ratio, flush=True)
    if options.against:
        return
    cached = InMemory(Scenes(resolution=32, count=32 * options.scenes))
    start = time.perf_counter()
    cached.fill()
    seconds = time.perf_counter() - start
    print(f"into memory, 32 px: {len(cached) / seconds:.0f}/s by {available_cores()} cores\n")

    profile = row_profile(Scenes(resolution=options.resolution), 4 * options.scenes)
    held_out = Scenes(resolution=options.resolution, split="test")
    scores = np.array(
        [baseline_errors(one, profile) for one in held_out.records(range(options.scenes))]
    ).mean(axis=0)
    about = f"({options.scenes} held-out scenes, {options.resolution} px)"
    print(f"\npredictor        AbsRel  of constant   {about}")
    for name, score in zip(("constant", "row mean", "oracle rows"), scores, strict=True):
        print(f"{name:15s}  {score:6.3f}  {score / scores[0]:11.2f}")


_READER = """
import sys, time
from modality_forcing.synthetic.source import Scenes
resolution, count, read = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
source = Scenes(resolution=resolution)
many = hasattr(source, "records") and read == "many"
for line in sys.stdin:
    indices = range(int(line), int(line) + count)
    start = time.process_time()
    source.records(indices) if many else [source[index] for index in indices]
    print(count / (time.process_time() - start), flush=True)
"""


def rates(folders: Sequence[Path], resolution: int, count: int, read: str) -> list[float]:
    """Records a second of processor time of each checkout in turn, the medians of seven turns."""
    command = [sys.executable, "-c", _READER, str(resolution), str(count), read]
    readers = [
        subprocess.Popen(
            command,
            cwd=folder,  # from where Python imports, as of a command
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    found: list[list[float]] = [[] for _ in folders]
    for turn in range(8):
        for reader, speeds in zip(readers, found, strict=True):
            assert reader.stdin and reader.stdout
            print(turn * count, file=reader.stdin, flush=True)
            speeds.append(float(reader.stdout.readline()))
    for reader in readers:
        reader.communicate()
    return [statistics.median(speeds[1:]) for speeds in found]  # the first turn warms up


def row_profile(source: Scenes, count: int) -> np.ndarray:
    """Mean over scenes of depth / (the scene's mean depth), per row, f64 [h]; valid pixels only."""
    total, seen = np.zeros(source.resolution), np.zeros(source.resolution)
    for record in source.records(range(count)):
        normalized = record.depth / record.depth[record.valid].mean()
        total += np.where(record.valid, normalized, 0).sum(axis=1)
        seen += record.valid.sum(axis=1)
    return total / np.maximum(seen, 1)


def baseline_errors(record: Record, profile: np.ndarray) -> tuple[float, float, float]:
    """AbsRel of the aligned constant, the aligned row profile and the best value per row."""
    depth = record.depth[record.valid].astype(np.float64)
    guess = np.broadcast_to(profile[:, None], record.depth.shape)[record.valid]
    rows = [
        weighted_median(row[known]) for row, known in zip(record.depth, record.valid, strict=True)
    ]
    oracle = np.repeat(rows, record.valid.sum(axis=1))
    constant = np.full_like(depth, weighted_median(depth))
    return absrel(constant, depth), absrel(align(guess, depth), depth), absrel(oracle, depth)


def absrel(guess: np.ndarray, depth: np.ndarray) -> float:
    return float(np.mean(np.abs(guess - depth) / depth))


def weighted_median(depth: np.ndarray) -> float:
    """The constant of least AbsRel: the median of the depths weighted by their inverse."""
    if not len(depth):
        return 0.0
    ordered = np.sort(depth.astype(np.float64))
    mass = np.cumsum(1 / ordered)
    return float(ordered[np.searchsorted(mass, mass[-1] / 2)])


def align(guess: np.ndarray, depth: np.ndarray, rounds: int = 40) -> np.ndarray:
    """scale·guess + shift of least AbsRel by reweighted least squares, or the constant."""
    design = np.stack((guess, np.ones_like(guess)), axis=1)
    best = np.full_like(depth, weighted_median(depth))
    score = absrel(best, depth)
    weight = 1 / depth**2
    for _ in range(rounds):
        scaled = design * weight[:, None]
        fitted = design @ np.linalg.lstsq(scaled.T @ design, scaled.T @ depth, rcond=None)[0]
        if absrel(fitted, depth) < score:
            best, score = fitted, absrel(fitted, depth)
        weight = 1 / (depth * np.maximum(np.abs(fitted - depth), 1e-3 * depth))
    return best


if __name__ == "__main__":
    main()
