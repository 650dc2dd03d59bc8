"""Held-out evaluation of one set of weights on every task it can do, against predictors that have not seen the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from modality_forcing.atomic_io import check_folder, write_file
from modality_forcing.config import Config, SampleConfig
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.errors import UserError
from modality_forcing.evaluation import depth_metrics as scores
from modality_forcing.evaluation.colors import colour_word_score
from modality_forcing.evaluation.estimators import Estimator
from modality_forcing.generator import Generator
from modality_forcing.train import inputs
from modality_forcing.viz.images import png_bytes, to_u8

ROW_MEAN_SCENES = 1024  # training records behind the row-mean predictor
SHOWN = 12  # examples kept for pictures: the first ones, unpicked


@dataclass
class HeldOut:
    """The evaluation examples, whole: image u8 [n h w 3], dense depth f32 and valid bool [n h w], captions."""

    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray
    captions: list[str]


@dataclass
class Evaluation:
    """Numbers, and the pictures of the first examples behind them."""

    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def held_out(config: Config) -> HeldOut:
    """Returns the records of the evaluation split at the model's resolution, with all the depth they have.

    Raises UserError if none of them has any.
    """
    source = inputs.open_source(config, "eval")
    records = [
        center_crop_resize(source[i], config.data.resolution)
        for i in range(min(config.eval.examples, len(source)))
    ]
    if not any(r.valid.any() for r in records):
        raise UserError(
            "no held-out record has depth to compare with", where=config.data.root or None
        )
    return HeldOut(
        np.stack([r.image for r in records]),
        np.stack([r.depth for r in records]),
        np.stack([r.valid for r in records]),
        [r.caption for r in records],
    )


def row_mean(config: Config) -> np.ndarray:
    """Returns the mean relative depth of each row over training records: the predictor to beat by looking."""
    source = inputs.open_source(config, "train")
    records = [
        center_crop_resize(source[i], config.data.resolution)
        for i in range(min(ROW_MEAN_SCENES, len(source)))
    ]
    return scores.row_mean_prediction(
        np.stack([r.depth for r in records]), np.stack([r.valid for r in records])
    )


def with_examples(config: Config, count: int) -> Config:
    """Returns the config with so many held-out records; raises UserError if there are fewer."""
    available = len(inputs.open_source(config, "eval"))
    if count > available:
        raise UserError(
            f"{count} held-out examples asked for, there are {available}",
            hint=f"ask for at most {available}",
        )
    return replace(config, eval=replace(config.eval, examples=count))


def joint_set(log2_alpha: float) -> str:
    """Returns what the pictures of joint generation under one trajectory are called, `joint_log2alpha+5`."""
    return f"joint_log2alpha{log2_alpha + 0.0:+.12g}"  # + 0.0: no -0


class Evaluator:
    """Scores weights on held-out records; built once, used for any number of checkpoints of one config.

    estimator: judges generated pictures in d2i and joint; by default the model's own i2d does.
    pictures: a folder into which each picture that d2i and joint generate is written, as <set>/<index>.png, for an
    estimator of another program. The same weights, config and index make the same picture again, up to a device's rounding.
    """

    def __init__(
        self, config: Config, estimator: Estimator | None = None, pictures: Path | None = None
    ):
        if pictures is not None:
            check_folder(pictures, "--pictures")
        self.config, self.estimator, self.pictures = config, estimator, pictures
        self.data = held_out(config)
        self.row_mean = row_mean(config)

    def names(self, of: str) -> list[str]:
        """Returns the name of each example's picture in a set, "d2i" or a `joint_set`: `d2i/0000` and so on."""
        return [f"{of}/{i:04d}" for i in range(len(self.data.captions))]

    def version(self, *sets: str) -> str:
        """Returns what the estimator's depth of these sets of pictures depends on, besides them; UserError if it has none."""
        return (
            ""
            if self.estimator is None
            else self.estimator.version([name for of in sets for name in self.names(of)])
        )

    def references(self) -> dict[str, dict[str, float]]:
        """Scores the predictors that see nothing of the picture: the best constant, and the best row profile."""
        truth, valid = self.data.depth, self.data.valid
        profile = np.broadcast_to(self.row_mean, truth.shape)
        return {
            "constant": _means(scores.constant_scores(truth, valid)),
            "row_mean": _means(scores.score(profile, truth, valid)),
        }

    def i2d(self, generator: Generator) -> tuple[dict[str, float], np.ndarray]:
        """Image to depth against the truth; returns scores and depth [n h w]."""
        depth = self._run(generator, "i2d", {"image": self.data.image})["depth"]
        return _means(scores.score(depth, self.data.depth, self.data.valid)), depth

    def d2i(self, generator: Generator) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Depth to image: the depth given against that estimated from the picture made of it, and of another's picture."""
        data = self.data
        self.version("d2i")
        image = self._run(generator, "d2i", {"depth": data.depth, "valid": data.valid})["image"]
        again, known = self._estimate(generator, image, "d2i")
        own = _means(scores.score(again, data.depth, data.valid & known))
        other = _unrelated(again, known, data.depth, data.valid)
        pictures = {"image": image, "depth": data.depth, "again": again}
        return {
            "absrel": own["absrel"],
            "delta1": own["delta1"],
            "absrel_unrelated": other,
        }, pictures

    def joint(
        self, generator: Generator, log2_alpha: float
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Joint generation: the generated depth against that estimated from the generated picture, and from another's.

        Depth that says little is easy to agree with: `constant` is what the best constant scores. `absrel_se` is the
        standard error of AbsRel's mean over the examples, `known` the share of pixels that the estimator knew.
        """
        options = replace(self.config.sample, log2_alpha=log2_alpha)
        self.version(joint_set(log2_alpha))
        made = self._run(generator, "joint", {}, options)
        again, known = self._estimate(generator, made["image"], joint_set(log2_alpha))
        scored = scores.score(again, made["depth"], known)
        own, each = _means(scored), scored.absrel[~np.isnan(scored.absrel)]
        constant = _means(scores.constant_scores(made["depth"], known))
        numbers = {"absrel": own["absrel"], "delta1": own["delta1"], "constant": constant["absrel"]}
        numbers["absrel_unrelated"] = _unrelated(again, known, made["depth"], np.ones_like(known))
        numbers["absrel_se"] = (
            float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan")
        )
        numbers["known"] = float(known.mean())
        return numbers, {"image": made["image"], "depth": made["depth"], "again": again}

    def text(self, images: np.ndarray) -> dict[str, float]:
        """Colour words of the captions found in generated pictures [n h w 3], against chance and the true pictures."""
        made = colour_word_score(to_u8(images), self.data.captions)
        truth = colour_word_score(self.data.image, self.data.captions)
        return {"found": made["found"], "chance": made["chance"], "truth": truth["found"]}

    def __call__(self, generator: Generator) -> Evaluation:
        """Runs everything the demo reports."""
        first = abs(self.config.sample.log2_alpha)
        self.version(
            "d2i", joint_set(first), joint_set(-first)
        )  # tells what is missing before anything is generated
        i2d, depth = self.i2d(generator)
        d2i, d2i_pictures = self.d2i(generator)
        image_first, joint_pictures = self.joint(generator, first)
        depth_first, depth_first_pictures = self.joint(generator, -first)
        numbers = {"i2d": i2d, **self.references(), "d2i": d2i}
        numbers["joint"] = {
            "image_first": image_first["absrel"],
            "depth_first": depth_first["absrel"],
            "image_first_constant": image_first["constant"],
            "depth_first_constant": depth_first["constant"],
            "log2_alpha": first,
        }
        numbers["text"] = self.text(joint_pictures["image"])
        data = self.data
        pictures = {
            "i2d": {"image": data.image, "depth": depth, "truth": data.depth, "valid": data.valid},
            "d2i": d2i_pictures | {"valid": data.valid},
            "joint_image_first": joint_pictures,
            "joint_depth_first": depth_first_pictures,
        }
        shown = {k: {n: x[:SHOWN] for n, x in p.items()} for k, p in pictures.items()}
        return Evaluation(numbers, shown)

    def _estimate(
        self, generator: Generator, images: np.ndarray, of: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Depth f32 and known bool [n h w] of generated pictures f32 [n h w 3], which are also written if they should be."""
        pictures, names = to_u8(images), self.names(of)
        if self.estimator is None:
            depth = self._run(generator, "i2d", {"image": pictures})["depth"]
            known = np.ones_like(self.data.valid)
        else:
            depth, known = self.estimator(pictures, names)
        # After the estimate: pictures of other weights beside a folder's maps are found out, not written over.
        if self.pictures is not None:
            write_pictures(self.pictures, pictures, names)
        return depth, known

    def _run(
        self,
        generator: Generator,
        task: str,
        batch: dict[str, np.ndarray],
        options: SampleConfig | None = None,
    ) -> dict[str, np.ndarray]:
        """Generates for every held-out example, in batches of one size; examples keep their noise whatever the batch."""
        n, size = len(self.data.captions), min(self.config.eval.batch, len(self.data.captions))
        parts = []
        for start in range(0, n, size):
            at = np.minimum(
                np.arange(start, start + size), n - 1
            )  # the last batch repeats its last example
            rows = {k: v[at] for k, v in batch.items()}
            captions = [self.data.captions[i] for i in at]
            parts.append(
                generator.run(
                    task, captions, batch=rows, seed=self.config.seed, index=at, options=options
                ).images
            )
        return {k: np.concatenate([p[k] for p in parts])[:n] for k in parts[0]}


def write_pictures(folder: Path, pictures: np.ndarray, names: Sequence[str]) -> None:
    """Writes pictures u8 [n h w 3] as folder/<name>.png; raises UserError if one cannot be written."""
    for picture, name in zip(pictures, names, strict=True):
        write_file(folder / f"{name}.png", png_bytes(picture))


def _unrelated(again: np.ndarray, known: np.ndarray, depth: np.ndarray, valid: np.ndarray) -> float:
    """AbsRel of the depth estimated from another example's picture: what knowing the kind of scene is worth."""
    scored = scores.score(np.roll(again, 1, axis=0), depth, valid & np.roll(known, 1, axis=0))
    return _means(scored)["absrel"]


def _means(scored: scores.DepthScores) -> dict[str, float]:
    """What is told of relative depth: errors in a unit would mean nothing."""
    numbers = scores.mean_scores(scored)
    return {name: numbers[name] for name in ("absrel", "delta1", "images", "skipped")}
