"""Held-out evaluation of a checkpoint on all its tasks, against baselines that ignore the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from modality_forcing.config import Config, SampleConfig
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.errors import UserError
from modality_forcing.evaluation import conversions
from modality_forcing.evaluation.colors import color_recall
from modality_forcing.evaluation.depth_metrics import (
    DepthScores,
    constant_scores,
    relative_means,
    row_mean_prediction,
    score,
)
from modality_forcing.evaluation.estimators import DepthMap, Estimator
from modality_forcing.generator import Generator
from modality_forcing.modalities import base
from modality_forcing.paths import check_folder, write_file
from modality_forcing.text_io import list_some
from modality_forcing.train import checksums, inputs
from modality_forcing.train.state import Params
from modality_forcing.tree import flatten
from modality_forcing.viz.images import png_bytes, to_u8

ROW_MEAN_SCENES = 1024  # training records of the row-mean baseline
EXAMPLES = 12  # whose images are kept: the first ones, not selected

Arrays = dict[str, np.ndarray]


@dataclass
class HeldOutData:
    """Evaluation examples: image u8 [n h w 3], depth f32 and valid bool [n h w], and texts."""

    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray
    captions: list[str]
    ids: list[str]  # of the records
    intrinsics: np.ndarray | None = None  # f32 [n 3 3], in pixels or NaN
    more: Arrays = field(default_factory=dict)  # `record_inputs` of the modalities

    def inputs(self, index: slice | np.ndarray = slice(None)) -> Arrays:
        """Returns what modalities read of some examples, by its name in a batch."""
        arrays = {"image": self.image, "depth": self.depth, "valid": self.valid, **self.more}
        return {name: values[index] for name, values in arrays.items()}


@dataclass
class Evaluation:
    """Metrics by task, and the images and maps of the first examples."""

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    images: dict[str, Arrays] = field(default_factory=dict)


def load_held_out(config: Config) -> HeldOutData:
    """Returns the evaluation split at the model's resolution, with its full depth.

    Raises UserError if no record has depth.
    """
    data = load_records(config, "eval", config.eval.examples)
    if not data.valid.any():
        raise UserError(
            "no held-out record has depth to compare with", where=config.data.root or None
        )
    return data


def row_mean_baseline(config: Config) -> np.ndarray:
    """Returns the mean relative depth of each image row over training records, f32 [h w]."""
    data = load_records(config, "train", ROW_MEAN_SCENES)
    return row_mean_prediction(data.depth, data.valid)


def load_records(config: Config, split: str, count: int) -> HeldOutData:
    """Returns the first records of "train" or "eval" at the model's resolution, if they are there.

    Raises UserError if there are none.
    """
    source = inputs.open_source(config, split)
    resolution = config.data.resolution
    records = [center_crop_resize(source[i], resolution) for i in range(min(count, len(source)))]
    return HeldOutData(
        np.stack([r.image for r in records]),
        np.stack([r.depth for r in records]),
        np.stack([r.valid for r in records]),
        [r.caption for r in records],
        [r.id for r in records],
        np.stack([r.intrinsics for r in records]),
        {k: np.stack([read(r) for r in records]) for k, read in base.record_inputs(config).items()},
    )


def with_num_examples(config: Config, count: int) -> Config:
    """Returns the config with `count` held-out records; raises UserError if there are fewer."""
    available = len(inputs.open_source(config, "eval"))
    if count > available:
        raise UserError(
            f"{count} held-out examples requested, {available} available",
            hint=f"ask for at most {available}",
        )
    return replace(config, eval=replace(config.eval, examples=count))


def joint_set(log2_alpha: float) -> str:
    """Returns the name of the images of one trajectory's joint generation: joint_log2alpha+5."""
    return f"joint_log2alpha{log2_alpha + 0.0:+.12g}"  # + 0.0: no -0


class Evaluator:
    """Scores checkpoints of one config on its held-out records, or on `data`, loaded once.

    Args:
      estimator: judges generated images in d2i and joint; by default the model's own i2d.
      save_images: a folder for the images that d2i and joint generate, as <set>/<index>.png, for an
        external estimator. Equal weights, config and index give the same image, up to the rounding
        of the device.
    """

    def __init__(
        self,
        config: Config,
        estimator: Estimator | None = None,
        save_images: Path | None = None,
        data: HeldOutData | None = None,
    ):
        if save_images is not None:
            check_folder(save_images, "--save-images")
        self.config, self.estimator, self.save_images = config, estimator, save_images
        self.data = load_held_out(config) if data is None else data

    @cached_property
    def row_mean(self) -> np.ndarray:
        """The `row_mean_baseline` of the training records."""
        return row_mean_baseline(self.config)

    def image_names(self, image_set: str) -> list[str]:
        """Returns the names of a set's images ("d2i" or a `joint_set`): `d2i/0000` and so on."""
        return [f"{image_set}/{i:04d}" for i in range(len(self.data.captions))]

    def fingerprint(self, *image_sets: str) -> str:
        """Returns the state of the estimator for these images; UserError if it lacks a map."""
        if self.estimator is None:
            return ""
        return self.estimator.fingerprint([n for s in image_sets for n in self.image_names(s)])

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores the predictors that ignore the image: best constant and best row profile."""
        target, valid = self.data.depth, self.data.valid
        profile = np.broadcast_to(self.row_mean, target.shape)
        return {
            "constant": relative_means(constant_scores(target, valid)),
            "row_mean": relative_means(score(profile, target, valid)),
        }

    def i2d(self, generator: Generator) -> tuple[dict[str, float], np.ndarray]:
        """Scores image to depth against the target; returns metrics and depth [n h w]."""
        depth = self.generate(generator, "i2d", {"image": self.data.image})["depth"]
        return relative_means(score(depth, self.data.depth, self.data.valid)), depth

    def d2i(self, generator: Generator) -> tuple[dict[str, float], Arrays]:
        """Scores depth to image: the input depth against that estimated from the generated image.

        `absrel_shuffled` uses another example's image instead.
        """
        data = self.data
        self.fingerprint("d2i")
        batch = {"depth": data.depth, "valid": data.valid}
        image = self.generate(generator, "d2i", batch)["image"]
        estimate = self._estimate(generator, image, "d2i")
        means = relative_means(_score_estimate(estimate, data.depth, data.valid))
        metrics = {
            "absrel": means["absrel"],
            "delta1": means["delta1"],
            "absrel_shuffled": _shuffled_absrel(estimate, data.depth, data.valid),
        }
        return metrics, {"image": image, "depth": data.depth, "reestimated": estimate[0]}

    def joint(self, generator: Generator, log2_alpha: float) -> tuple[dict[str, float], Arrays]:
        """Scores joint generation: the generated depth against that of the generated image.

        Flat depth is easy to agree with: `constant_absrel` is the score of the best constant.
        `absrel_shuffled` uses another example's image, `absrel_stderr` is the standard error of
        `absrel` over examples, `coverage` the share of pixels with an estimate.
        """
        image_set = joint_set(log2_alpha)
        options = replace(self.config.sample, log2_alpha=log2_alpha)
        self.fingerprint(image_set)
        generated = self.generate(generator, "joint", {}, options)
        depth = generated["depth"]
        estimate = self._estimate(generator, generated["image"], image_set)
        valid = estimate[1]
        scores = score(estimate[0], depth, valid)
        means, each = relative_means(scores), scores.absrel[~np.isnan(scores.absrel)]
        stderr = float("nan")
        if len(each) > 1:
            stderr = float(np.std(each, ddof=1) / np.sqrt(len(each)))
        metrics = {
            "absrel": means["absrel"],
            "delta1": means["delta1"],
            "constant_absrel": relative_means(constant_scores(depth, valid))["absrel"],
            "absrel_shuffled": _shuffled_absrel(estimate, depth, np.ones_like(valid)),
            "absrel_stderr": stderr,
            "coverage": float(valid.mean()),
        }
        return metrics, {"image": generated["image"], "depth": depth, "reestimated": estimate[0]}

    def text(self, images: np.ndarray) -> dict[str, float]:
        """Returns the color recall of generated images [n h w 3], by chance and of the dataset."""
        generated = color_recall(to_u8(images), self.data.captions)
        dataset = color_recall(self.data.image, self.data.captions)
        return {
            "color_recall": generated["color_recall"],
            "color_recall_chance": generated["chance"],
            "color_recall_dataset": dataset["color_recall"],
        }

    def conversions(self, generator: Generator) -> dict[str, dict[str, float]]:
        """Scores what networks of three or more modalities can do besides."""
        generate = partial(self.generate, generator)
        train = partial(load_records, self.config, "train", ROW_MEAN_SCENES)
        return conversions.evaluate(base.build(self.config), self.data, generate, train)

    def __call__(self, generator: Generator) -> Evaluation:
        """Runs all tasks of the demo's report."""
        log2_alpha = abs(self.config.sample.log2_alpha)
        # Report missing maps before anything is generated.
        self.fingerprint("d2i", joint_set(log2_alpha), joint_set(-log2_alpha))
        i2d, depth = self.i2d(generator)
        d2i, d2i_images = self.d2i(generator)
        image_first, image_first_images = self.joint(generator, log2_alpha)
        depth_first, depth_first_images = self.joint(generator, -log2_alpha)
        metrics = {
            "i2d": i2d,
            **self.baselines(),
            "d2i": d2i,
            "joint": {
                "image_first_absrel": image_first["absrel"],
                "depth_first_absrel": depth_first["absrel"],
                "image_first_constant_absrel": image_first["constant_absrel"],
                "depth_first_constant_absrel": depth_first["constant_absrel"],
                "log2_alpha": log2_alpha,
            },
            "text": self.text(image_first_images["image"]),
            **self.conversions(generator),
        }
        data = self.data
        target = {"image": data.image, "depth": depth, "target": data.depth, "valid": data.valid}
        images = {
            "i2d": target,
            "d2i": d2i_images | {"valid": data.valid},
            "joint_image_first": image_first_images,
            "joint_depth_first": depth_first_images,
        }
        first = {k: {name: x[:EXAMPLES] for name, x in maps.items()} for k, maps in images.items()}
        return Evaluation(metrics, first)

    def _estimate(self, generator: Generator, images: np.ndarray, image_set: str) -> DepthMap:
        """Estimates the depth of generated images f32 [n h w 3], and saves these if configured."""
        pixels, names = to_u8(images), self.image_names(image_set)
        if self.estimator is None:
            depth = self.generate(generator, "i2d", {"image": pixels})["depth"]
            estimate = depth, np.ones_like(self.data.valid)
        else:
            estimate = self.estimator(pixels, names)
        # After the estimate: a folder's images of other weights are detected, not overwritten.
        if self.save_images is not None:
            write_images(self.save_images, pixels, names)
        return estimate

    def generate(
        self,
        generator: Generator,
        task: str,
        batch: Mapping[str, np.ndarray],
        options: SampleConfig | None = None,
    ) -> Arrays:
        """Runs a task for every example in batches of one size; noise depends on the index.

        Raises UserError for the first record with a value that is not finite.
        """
        captions, seed = self.data.captions, self.config.seed
        n = len(captions)
        size = min(self.config.eval.batch, n)
        parts = []
        for start in range(0, n, size):
            # The last batch repeats the last example.
            index = np.minimum(np.arange(start, start + size), n - 1)
            rows = {k: v[index] for k, v in batch.items()}
            texts = [captions[i] for i in index]
            noise = {"seed": seed, "index": index}
            output = generator.run(task, texts, batch=rows, options=options, **noise)
            made = {name: x for name, x in output.images.items() if name not in batch}
            names = [f"{i} ({self.data.ids[i]})" for i in index]
            check_finite(generator, task, made, names)
            parts.append(output.images)
        return {k: np.concatenate([part[k] for part in parts])[:n] for k in parts[0]}


def check_finite(
    generator: Generator, task: str, made: Mapping[str, np.ndarray], records: Sequence[str]
) -> None:
    """Raises UserError for the first of these records of which a value [b ...] is not finite."""
    for name, values in made.items():
        bad = ~np.isfinite(values).reshape(len(values), -1)
        if bad.any():
            row = int(bad.any(axis=1).argmax())
            share = f"{bad[row].sum()} of {bad[row].size} values"
            what = f"held-out record {records[row]}: mode {task} generates {name}"
            what += f" with {share} that are not finite because {_cause(generator.params)}"
            raise UserError(what, hint="use an earlier checkpoint, or other --steps or --solver")


def _cause(params: Params) -> str:
    """Returns why a network generates values that are not finite."""
    if bad := checksums.not_finite(params):
        return f"these weights are not finite: {list_some(bad)}"
    largest, path = max((float(jnp.abs(x).max()), path) for path, x in flatten(params).items())
    return f"the network overflows; its largest weight is {largest:.3g} ({path})"


def write_images(folder: Path, images: np.ndarray, names: Sequence[str]) -> None:
    """Writes images u8 [n h w 3] as folder/<name>.png; raises UserError on failure."""
    for image, name in zip(images, names, strict=True):
        write_file(folder / f"{name}.png", png_bytes(image))


def _score_estimate(estimate: DepthMap, depth: np.ndarray, valid: np.ndarray) -> DepthScores:
    return score(estimate[0], depth, valid & estimate[1])


def _shuffled_absrel(estimate: DepthMap, depth: np.ndarray, valid: np.ndarray) -> float:
    """Returns the AbsRel of another example's estimate: the value of knowing the kind of scene."""
    shifted = np.roll(estimate[0], 1, axis=0), np.roll(estimate[1], 1, axis=0)
    return relative_means(_score_estimate(shifted, depth, valid))["absrel"]
