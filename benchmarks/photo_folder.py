"""Photographs a second of a folder, next to the network alone, and the memory of many; prints rows.

    python benchmarks/photo_folder.py [--config=demo:phase=forcing,resolution=64] [--files=1000]

Weights are random, and depth takes one step. The network alone runs batches that are in memory.
Files are JPEGs of 640 x 480 pixels, and every eighth is of another aspect. Memory is the largest
resident set of the process.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from modality_forcing import config_file
from modality_forcing.generator import Generator
from modality_forcing.inference.folder import run_job
from modality_forcing.inference.job import Job
from modality_forcing.inference.photos import PHOTO_SUFFIXES, find_items
from modality_forcing.inference.pipeline import Pipeline
from modality_forcing.modalities import base
from modality_forcing.progress import format_table
from modality_forcing.train.state import init_params

FIRST = 96  # files, before the memory is noted for the first time


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def write_photos(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (30, 40, 3), np.uint8)
    for i in range(count):
        size = (640, 480) if i % 8 else (640 - i % 97, 300 + i % 211)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(
            folder / f"{i:05d}.jpg", quality=90
        )


def network_rate(pipeline: Pipeline, seconds: float = 5.0) -> float:
    """Returns examples a second of the network, without files."""
    batch, (height, width) = pipeline.batch, pipeline.size
    images = np.zeros((batch, height, width, 3), np.uint8)
    options = pipeline.sampling("i2d", steps=1).options
    how = {"batch": {"image": images}, "index": np.zeros(batch, int), "options": options}
    pipeline.generator.run("i2d", [""] * batch, **how)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        pipeline.generator.run("i2d", [""] * batch, **how)
        count += batch
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="demo:phase=forcing,resolution=64")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    config = config_file.load(options.config)
    params = jax.jit(lambda: init_params(config, base.build(config)))()
    pipeline = Pipeline(Generator(config, params), batch=options.batch)
    rows = [["network alone, a second", f"{network_rate(pipeline):.3g}"]]
    with tempfile.TemporaryDirectory() as name:
        photos = Path(name) / "in"
        photos.mkdir()
        write_photos(photos, options.files)
        items = find_items([photos], PHOTO_SUFFIXES, "--image")
        sampling = pipeline.sampling("i2d", steps=1)
        for formats in (("npy",), ("npy", "png", "color")):
            job = Job("i2d", Path(name) / "_".join(formats), sampling, formats=formats)
            if len(items) > FIRST:
                out = Path(name) / f"first{len(formats)}"
                run_job(pipeline, items[:FIRST], replace(job, out=out))
            before, start = memory(), time.perf_counter()
            run_job(pipeline, items, job)
            rate = len(items) / (time.perf_counter() - start)
            label = ",".join(formats)
            rows.append([f"folder, {label}, a second", f"{rate:.3g}"])
            first = f"{before:.0f} MB after {min(FIRST, len(items))} files"
            rows.append([f"memory, {label}", f"{first}, {memory():.0f} MB after {len(items)}"])
        compiled = pipeline.generator._sample._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
        rows.append(["programs compiled", str(compiled)])
    print(format_table(rows))


if __name__ == "__main__":
    main()
