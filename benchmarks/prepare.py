"""Frames per second and core of `mforce prepare`, for camera images and LiDAR scans.

    python benchmarks/prepare.py

Writes one log in the layout of Argoverse 2: JPEGs of 1920 x 1080 pixels, an upscaled rendered scene
with the noise of a camera, and scans of 100 000 points. Each frame is read, its points are moved to
the time of the image, projected, tested for occlusion and rasterized, everything is resized to 256
pixels on the shorter side and encoded. Processor time; medians over the turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from modality_forcing.data.resize import downscale, limit_shorter_side
from modality_forcing.datasets import argoverse2
from modality_forcing.storage import codec
from modality_forcing.synthetic.source import Scenes

ROWS, COLUMNS, SIDE, POINTS = 1080, 1920, 256, 100_000
FOCAL = 1000.0  # pixels
CAMERA = "ring_front_left"
UP = (0.5, -0.5, 0.5, -0.5)  # quaternion: the camera's z is the car's x


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Frames a second that mforce prepare makes per core."
    )
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        write_log(Path(root) / "train/log", options.frames)
        records = argoverse2.DATASET.open(Path(root), "train")
        frames = range(len(records))
        choose = partial(limit_shorter_side, pixels=SIDE)
        one = records[0]
        small = [downscale(records[i], choose) for i in frames]
        parts: dict[
            str, Callable[[int], Any]
        ] = {  # large frames are not kept, as prepare keeps none
            "read image and scan, project": records.__getitem__,
            "shrink": lambda i: downscale(one, choose),
            "encode": lambda i: codec.encode(small[i]),
            "all": lambda i: codec.encode(downscale(records[i], choose)),
        }
        print(
            f"{len(frames)} frames of {COLUMNS} x {ROWS}, {POINTS} points, "
            f"{one.valid.mean():.1%} of the pixels valid\n"
        )
        print("| part | ms a frame | frames/s a core |\n|---|---|---|")
        for name, work in parts.items():
            seconds = median(timed(work, frames) for _ in range(options.turns))
            print(f"| {name} | {1e3 * seconds:.1f} | {1 / seconds:.1f} |", flush=True)


def timed(work: Callable[[int], Any], frames: range) -> float:
    """Returns the processor seconds of one frame."""
    began = time.process_time()
    for i in frames:
        work(i)
    return (time.process_time() - began) / len(frames)


def write_log(log: Path, frames: int) -> None:
    rng, scenes = np.random.default_rng(0), Scenes(resolution=SIDE)
    for folder in ("calibration", f"sensors/cameras/{CAMERA}", "sensors/lidar"):
        (log / folder).mkdir(parents=True)
    times = 1_000_000_000 + 100_000_000 * np.arange(frames, dtype=np.int64)
    for i, at in enumerate(times):
        scene = Image.fromarray(scenes[i].image).resize((COLUMNS, ROWS), Image.Resampling.BICUBIC)
        noisy = np.asarray(scene) + rng.normal(0, 3, (ROWS, COLUMNS, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(
            log / f"sensors/cameras/{CAMERA}/{at}.jpg", quality=92
        )
        # Around and up, as a scanner turns.
        angles = (rng.uniform(-np.pi, np.pi, POINTS), rng.uniform(-0.4, 0.2, POINTS))
        away = rng.uniform(3, 60, POINTS)
        x, y, z = np.cos(angles[0]) * away, np.sin(angles[0]) * away, np.tan(angles[1]) * away
        feather(
            log / f"sensors/lidar/{at}.feather",
            x=x.astype("f2"),
            y=y.astype("f2"),
            z=z.astype("f2"),
        )
    pose = dict(zip(("qw", "qx", "qy", "qz"), UP, strict=True)) | {
        "tx_m": 1.0,
        "ty_m": 0.0,
        "tz_m": 1.5,
    }
    feather(
        log / "calibration/egovehicle_SE3_sensor.feather",
        sensor_name=[CAMERA],
        **{k: [v] for k, v in pose.items()},
    )
    lens = {
        "fx_px": FOCAL,
        "fy_px": FOCAL,
        "cx_px": COLUMNS / 2,
        "cy_px": ROWS / 2,
        "width_px": COLUMNS,
        "height_px": ROWS,
    }
    feather(
        log / "calibration/intrinsics.feather",
        sensor_name=[CAMERA],
        **{k: [v] for k, v in lens.items()},
    )
    still = {"qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0, "tx_m": 0.0, "ty_m": 0.0, "tz_m": 0.0}
    feather(
        log / "city_SE3_egovehicle.feather",
        timestamp_ns=times,
        **{k: [v] * frames for k, v in still.items()},
    )


def feather(path: Path, **columns: Any) -> None:
    import pyarrow
    import pyarrow.feather

    pyarrow.feather.write_feather(pyarrow.table(columns), str(path))


if __name__ == "__main__":
    main()
