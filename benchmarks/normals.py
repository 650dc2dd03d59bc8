"""Normals fitted to depth against the exact ones of procedural scenes.

    OMP_NUM_THREADS=1 python benchmarks/normals.py

Prints, for scenes of several sizes and after resizing, the share of valid pixels whose normal is
known, the angle to the exact normal in degrees, and the time of a record.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from modality_forcing.data.normals import of_record
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.evaluation.normal_metrics import angular_error
from modality_forcing.synthetic.source import Scenes

SIZES = ((32, 32), (64, 64), (128, 128), (256, 256), (80, 32), (150, 64), (480, 256))


def main() -> None:
    parser = argparse.ArgumentParser(description="Normals of depth against exact ones.")
    parser.add_argument("--scenes", type=int, default=16, help="scenes per row")
    options = parser.parse_args()
    print("stored   to  known  mean  median  99%  ms")
    for stored, size in SIZES:
        print(f"{stored:6d}  {size:3d}  {compare(stored, size, options.scenes)}")


def compare(stored: int, size: int, count: int) -> str:
    """Returns a row of scenes rendered at one size and resized to another."""
    source = Scenes(resolution=stored, fields=frozenset({"normals"}))
    errors, known, seconds = [], [], []
    for index in range(count):
        record = center_crop_resize(source[index], size)
        assert record.normals is not None
        start = time.perf_counter()
        found = of_record(replace(record, normals=None))
        seconds.append(time.perf_counter() - start)
        error = angular_error(found[None], record.normals[None])
        errors.append(error[~np.isnan(error)])
        known.append(len(errors[-1]) / record.valid.sum())
    angles = np.concatenate(errors)
    worst = np.percentile(angles, 99)
    return (
        f"{np.mean(known):5.1%} {angles.mean():5.2f}  {np.median(angles):6.3f} {worst:4.1f}"
        f"  {1e3 * np.median(seconds):4.1f}"
    )


if __name__ == "__main__":
    main()
