"""Rendering speed of the procedural world, and how well depth is predicted without the image.

    OMP_NUM_THREADS=1 python benchmarks/scenes.py

Prints images a second of one core (captions included) and the AbsRel of three reference predictors:
- constant: one value for the whole image;
- row mean: the mean, over training scenes, of each row's normalized depth;
- oracle rows: each row's own best value from the true depth, the limit of any guess by rows.
The first two are aligned to each image by the scale and shift that minimize its AbsRel.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.synthetic.source import Scenes


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed of the procedural world, and baseline predictors of its depth."
    )
    parser.add_argument("--scenes", type=int, default=256, help="scenes per number")
    parser.add_argument(
        "--resolution", type=int, default=32, help="pixels a side for the baseline predictors"
    )
    options = parser.parse_args()

    print("pixels a side  images/s of a core")
    for resolution in (32, 64, 128):
        print(f"{resolution:13d}  {rate(Scenes(resolution=resolution), options.scenes):8.0f}")

    profile = row_profile(Scenes(resolution=options.resolution), 4 * options.scenes)
    held_out = Scenes(resolution=options.resolution, split="test")
    scores = np.array([baseline_errors(held_out[i], profile) for i in range(options.scenes)]).mean(
        axis=0
    )
    about = f"({options.scenes} held-out scenes, {options.resolution} px)"
    print(f"\npredictor        AbsRel  of constant   {about}")
    for name, score in zip(("constant", "row mean", "oracle rows"), scores, strict=True):
        print(f"{name:15s}  {score:6.3f}  {score / scores[0]:11.2f}")


def rate(source: Scenes, count: int) -> float:
    """Images a second of processor time (all threads), the best of three runs."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        source.records(range(count))
        best = min(best, time.process_time() - start)
    return count / best


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
