"""Time of one alignment and of whole scores: `python benchmarks/alignment.py` prints a table."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from modality_forcing.evaluation.alignment import align_affine_l1, align_affine_l2, align_scale_l1
from modality_forcing.evaluation.depth_metrics import score


def scenes(images: int, *size: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction that is affine in the target but for noise and a tenth of outliers."""
    rng = np.random.default_rng(0)
    pred = rng.gamma(2.0, 1.0, (images, *size))
    target = (2.5 * pred + 0.7) * np.exp(0.2 * rng.normal(size=pred.shape))
    target = np.where(rng.random(pred.shape) < 0.1, rng.uniform(0.1, 30, pred.shape), target)
    return pred.astype(np.float32), target.astype(np.float32)


def milliseconds(call: Callable[[], object], repeats: int = 5) -> float:
    jax.block_until_ready(call())  # compile
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    print(f"{jax.devices()[0].platform}, best of 5, milliseconds per image")
    print(f"{'alignment':<22}{'samples':>9}{'batch':>7}{'ms':>9}")
    for name, solve in (
        ("affine L1", align_affine_l1),
        ("scale L1", align_scale_l1),
        ("affine L2", align_affine_l2),
    ):
        run = jax.jit(solve)
        for samples in (256, 1024, 4096):
            for batch in (1, 32):
                pred, target = scenes(batch, samples)
                weight = 1 / target
                elapsed = milliseconds(partial(run, pred, target, weight)) / batch
                print(f"{name:<22}{samples:>9}{batch:>7}{elapsed:>9.3f}")
    for height, width in ((32, 32), (64, 64), (480, 640)):
        pred, target = scenes(32, height, width)
        elapsed = milliseconds(partial(score, pred, target, target > 0), repeats=2) / 32
        print(f"{'whole score ' + f'{width}x{height}':<31}{32:>7}{elapsed:>9.3f}")


if __name__ == "__main__":
    main()
