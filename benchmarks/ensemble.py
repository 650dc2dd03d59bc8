"""Time of an ensemble of ten maps, next to Marigold's alignment; prints a table.

    python benchmarks/ensemble.py

Marigold's method: SciPy's BFGS with numeric gradients, each evaluation over all pixels of all
pairs, in NumPy float32; up to 50 iterations, tolerance 1e-6. PyTorch, which Marigold uses, is not
needed. How far that search gets before rounding stops it differs between ensembles, so the row is
the median of several, with the number of evaluations.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from scipy.optimize import minimize

from modality_forcing.evaluation.ensemble import ensemble

MEMBERS = 10
SCENES = 5  # of the search


def samples(seed: int, height: int, width: int) -> np.ndarray:
    """Ten noisy maps of one smooth scene, each with its own scale and shift, in about [0, 1.3]."""
    rng = np.random.default_rng(seed)
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    scene = 0.5 + 0.3 * y + 0.2 * np.sin(9 * x + rng.uniform(0, 6)) * np.cos(7 * y)
    maps = scene + 0.05 * rng.normal(size=(MEMBERS, height, width))
    scale, shift = rng.uniform(0.6, 1.1, (MEMBERS, 1, 1)), rng.uniform(0, 0.15, (MEMBERS, 1, 1))
    return (scale * maps + shift).astype(np.float32)


def numeric(members: np.ndarray) -> tuple[np.ndarray, int]:
    """Depth as Marigold's search has it, and how often that evaluated its objective."""
    pixels = members.reshape(len(members), -1)
    i, j = np.triu_indices(len(members), 1)

    def placed(parameters: np.ndarray) -> np.ndarray:
        scale, shift = np.split(parameters.astype(np.float32), 2)
        return scale[:, None] * pixels + shift[:, None]

    def median(maps: np.ndarray) -> np.ndarray:
        return np.partition(maps, (len(maps) - 1) // 2, axis=0)[(len(maps) - 1) // 2]

    def objective(parameters: np.ndarray) -> float:
        maps = placed(parameters)
        middle = median(maps)
        pairs = np.sqrt(np.mean((maps[i] - maps[j]) ** 2, axis=1)).sum(dtype=np.float64)
        return float(pairs + 0.02 * (abs(float(middle.min())) + abs(1 - float(middle.max()))))

    low, high = pixels.min(axis=1), pixels.max(axis=1)
    start = np.concatenate((1 / (high - low), -low / (high - low))).astype(np.float64)
    found = minimize(objective, start, method="BFGS", tol=1e-6, options={"maxiter": 50})
    depth = median(placed(found.x))
    return (depth - depth.min()) / np.ptp(depth), found.nfev


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The best of several."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    device = f"{jax.devices()[0].platform}, {os.cpu_count()} cores"
    print(f"{MEMBERS} maps, affine, median; {device}; ours best of 9, theirs once\n")
    print("| | size | first call, s | s | evaluations | difference in depth, max | ratio |")
    print("|---|---|---|---|---|---|---|")
    ours = 0.0
    for size in ((480, 640), (256, 256), (64, 64)):
        members = samples(0, *size)
        run = partial(ensemble, members)
        first, ours = seconds(run, 1), seconds(run, 9)
        print(f"| ours | {size[0]}x{size[1]} | {first:.2f} | {ours:.4f} | | | |")
    runs = []
    for seed in range(SCENES):
        members = samples(seed, 64, 64)
        start = time.perf_counter()
        depth, evaluations = numeric(members)
        elapsed = time.perf_counter() - start
        runs.append(
            (elapsed, evaluations, float(np.abs(depth - ensemble(members).depth.ravel()).max()))
        )
    runs.sort()
    for name, run in (("fastest", runs[0]), ("median", runs[SCENES // 2]), ("slowest", runs[-1])):
        elapsed, evaluations, error = run
        row = f"| 64x64 | | {elapsed:.2f} | {evaluations} | {error:.3f} | {elapsed / ours:.0f} |"
        print(f"| numeric gradients, {name} of {SCENES} {row}")
    each = statistics.median(elapsed / evaluations for elapsed, evaluations, _ in runs)
    print(f"\none evaluation over pixels: {1e3 * each:.2f} ms; our ensemble: {1e3 * ours:.2f} ms")


if __name__ == "__main__":
    main()
