"""Normals fitted to depth against the exact ones of procedural scenes; a network's, as a sheet.

    OMP_NUM_THREADS=1 python benchmarks/normals.py
    python benchmarks/normals.py --checkpoint=runs/normals --sheet=normals.png

Prints, for scenes of several sizes and after resizing, the share of valid pixels whose normal is
known, the angle to the exact normal in degrees, and the time of a record.
The sheet has the first held-out records of a network with normals, a row each.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from modality_forcing.data.normals import of_record
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.evaluation.heldout import Evaluator, with_num_examples
from modality_forcing.evaluation.normal_metrics import angular_error
from modality_forcing.generator import Generator
from modality_forcing.modalities.normals import colors_of
from modality_forcing.synthetic.source import Scenes
from modality_forcing.viz import images

SIZES = ((32, 32), (64, 64), (128, 128), (256, 256), (80, 32), (150, 64), (480, 256))


def main() -> None:
    parser = argparse.ArgumentParser(description="Normals of depth against exact ones.")
    parser.add_argument("--scenes", type=int, default=16, help="scenes per row")
    parser.add_argument("--checkpoint", type=Path, help="of a network with normals, for the sheet")
    parser.add_argument("--sheet", type=Path, help="a .png to write instead of the table")
    parser.add_argument("--examples", type=int, default=6, help="rows of the sheet")
    options = parser.parse_args()
    if (options.checkpoint is None) != (options.sheet is None):
        parser.error("--checkpoint and --sheet go together")
    if options.sheet is not None:
        options.sheet.write_bytes(images.png_bytes(sheet(options.checkpoint, options.examples)))
        return
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


def sheet(checkpoint: Path, count: int) -> np.ndarray:
    """Returns an image u8 [h w 3] of what a network makes of held-out records, beside the truth."""
    generator = Generator.from_checkpoint(checkpoint)
    evaluator = Evaluator(with_num_examples(generator.config, count))
    data, inputs = evaluator.data, evaluator.data.inputs()

    def made(task: str, given: str, asked: str) -> np.ndarray:
        batch = {name: inputs[name] for name in generator.modalities[given].inputs}
        return evaluator.generate(generator, task, batch)[asked]

    def directions(vectors: np.ndarray) -> np.ndarray:
        known = np.any(inputs["normals"] != 0, axis=-1, keepdims=True)
        return colors_of(vectors * known)

    def colored(depth: np.ndarray) -> list[np.ndarray]:
        pairs = zip(depth, data.valid, strict=True)
        return [images.colorize_disparity(x, valid) for x, valid in pairs]

    columns = {
        "image": data.image,
        "from image": directions(made("i2n", "image", "normals")),
        "from depth": directions(made("d2n", "depth", "normals")),
        "true": directions(inputs["normals"]),
        "from normals": colored(made("n2d", "normals", "depth")),
        "true depth": colored(data.depth),
    }
    large = [[images.upscale(x, 96 // len(x) or 1) for x in cells] for cells in columns.values()]
    return images.grid(list(zip(*large, strict=True)), labels=list(columns))


if __name__ == "__main__":
    main()
