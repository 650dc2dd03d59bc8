"""How closely generated images follow their depth, and how much they differ, by its weight.

    python benchmarks/condition_guidance.py --checkpoint=runs/demo/forcing
    python benchmarks/condition_guidance.py --checkpoint=runs/mf --weights 1 2 4 --estimator=DIR

Held-out records of the checkpoint's source; the same noise in every row. AbsRel and delta1 are of
the depth that the estimator (by default the model's own image-to-depth) sees in the generated
image, against the given depth; `shuffled` is AbsRel against another record's depth, `following` the
ratio of the two: 1 is chance. `diversity` is the RMS difference of two images of one depth and
caption, of different seeds, in [0, 1]. The second table is image to depth by the image's weight.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from modality_forcing.evaluation.estimators import parse_estimator
from modality_forcing.evaluation.heldout import Evaluator, with_num_examples
from modality_forcing.generator import Generator
from modality_forcing.progress import format_table


def set_weights(generator: Generator, weights: Mapping[str, float]) -> None:
    sample = replace(generator.config.sample, condition_guidance=weights)
    generator.config = replace(generator.config, sample=sample)


def diversity(images: Sequence[np.ndarray]) -> float:
    """Returns the mean over examples and pairs of the RMS difference of images [n h w 3]."""
    pairs = itertools.combinations(images, 2)
    return float(np.mean([np.sqrt(np.mean((a - b) ** 2, axis=(1, 2, 3))) for a, b in pairs]))


def depth_to_image(generator: Generator, evaluators: Sequence[Evaluator], weight: float) -> list:
    set_weights(generator, {"depth": weight})
    made = [evaluator.d2i(generator) for evaluator in evaluators]
    text = [e.text(maps["image"]) for e, (_, maps) in zip(evaluators, made, strict=True)]
    of = {key: [metrics[key] for metrics, _ in made] for key in made[0][0]}
    of["recall"] = [colors["color_recall"] for colors in text]
    mean = {key: float(np.mean(values)) for key, values in of.items()}
    each = [a / b for a, b in zip(of["absrel"], of["absrel_shuffled"], strict=True)]
    return [
        f"{weight:g}",
        f"{mean['absrel']:.4f}",
        f"{mean['absrel_shuffled']:.4f}",
        f"{np.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})",
        f"{mean['delta1']:.3f}",
        f"{diversity([maps['image'] for _, maps in made]):.4f}",
        f"{mean['recall']:.3f}",
    ]


def image_to_depth(generator: Generator, evaluator: Evaluator, weight: float) -> list:
    set_weights(generator, {"image": weight})
    metrics, _ = evaluator.i2d(generator)
    return [f"{weight:g}", f"{metrics['absrel']:.4f}", f"{metrics['delta1']:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 0.5, 1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=3, help="images of each depth, at least 2")
    parser.add_argument("--examples", type=int, default=256, help="held-out records")
    parser.add_argument("--steps", type=int, help="sampler steps, instead of the config's")
    parser.add_argument("--estimator", default="self", help="as of mforce evaluate")
    parser.add_argument("--save-images", type=Path, help="a folder for the images, by weight")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2, to compare images")

    generator = Generator.from_checkpoint(options.checkpoint, sample={"steps": options.steps})
    config = with_num_examples(generator.config, options.examples)
    first = Evaluator(config, parse_estimator(options.estimator))
    rows = []
    for weight in options.weights:
        folder = options.save_images and options.save_images / f"{weight:g}"
        evaluators = [
            Evaluator(
                replace(config, seed=config.seed + i),
                first.estimator,
                folder and folder / f"seed{i}",
                first.data,
            )
            for i in range(options.seeds)
        ]
        rows.append(depth_to_image(generator, evaluators, weight))
        print(f"depth {weight:g}: AbsRel {rows[-1][1]}", flush=True)
    depth_rows = [image_to_depth(generator, first, weight) for weight in options.weights]
    set_weights(generator, {})

    header = ["depth weight", "AbsRel", "shuffled", "following", "delta1", "diversity", "colors"]
    dataset = first.text(first.data.image / np.float32(255))["color_recall_dataset"]
    print(f"\nDepth to image: {options.examples} depths, {options.seeds} seeds each")
    print(format_table(rows, header))
    print(f"colors of the records' own images: {dataset:.3f}\n\nImage to depth")
    print(format_table(depth_rows, ["image weight", "AbsRel", "delta1"]))


if __name__ == "__main__":
    main()
