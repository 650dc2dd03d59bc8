"""Scores of generated images by FID, KID, CMMD and CLIP score; a batch in memory at a time.

Real images are the records whose captions and depths the images were generated from, or a folder.
The CLIP score compares images with their own captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from modality_forcing.config import Config, to_dict
from modality_forcing.data.files import IMAGE_SUFFIXES, read_image
from modality_forcing.data.listing import files_below
from modality_forcing.data.resize import (
    center_crop_resize,
    center_square,
    crop_resize_image,
    format_size,
)
from modality_forcing.errors import UserError
from modality_forcing.evaluation import image_distances
from modality_forcing.evaluation.heldout import check_finite
from modality_forcing.evaluation.image_features import (
    CLIP,
    KINDS,
    Extract,
    ExtractTexts,
    Images,
    open_features,
    open_texts,
)
from modality_forcing.generator import Generator, num_steps
from modality_forcing.paths import require_dir
from modality_forcing.progress import ProgressMeter, format_table
from modality_forcing.storage.shards import splits
from modality_forcing.train import inputs
from modality_forcing.tree import JsonObject
from modality_forcing.viz.images import to_u8

MODES = ("t2i", "d2i", "joint")
_DEPTH = ("depth", "valid")  # of a record, for d2i
_KNOWN = " ".join(IMAGE_SUFFIXES)
_BATCH = 32  # images of a folder that are read at a time


@dataclass(frozen=True)
class ImageMetrics:
    """What is computed: metrics, the features they need, and the images of a subset of KID."""

    names: tuple[str, ...]
    features: Mapping[str, Extract]
    locations: Mapping[str, str] = field(default_factory=dict)
    kid_subset: int = image_distances.SUBSET_SIZE
    texts: ExtractTexts | None = None  # of captions, for clip_score

    @property
    def of_real(self) -> tuple[str, ...]:
        """The metrics that compare with real images."""
        return tuple(name for name in self.names if name != "clip_score")

    def check(self, *counts: int) -> None:
        """Raises UserError if a set has too few images, before one is generated."""
        if "kid" in self.names:
            image_distances.check_subset_size(self.kid_subset, min(counts))

    def extract(self, batches: Iterable[Images]) -> dict[str, Float[np.ndarray, "n _"]]:
        """Returns the features of all images by kind."""
        parts: dict[str, list[np.ndarray]] = {kind: [] for kind in self.features}
        for images in batches:
            for kind, extract in self.features.items():
                parts[kind].append(extract(images))
        return {kind: np.concatenate(each) for kind, each in parts.items()}

    def compare(
        self,
        made: Mapping[str, np.ndarray],
        real: Mapping[str, np.ndarray],
        captions: Sequence[str] = (),
    ) -> dict[str, float]:
        """Returns the metrics of features, and the deviation of KID's subsets.

        captions: of the images, for clip_score.
        """
        found = {}
        for name in self.names:
            if name == "clip_score":
                assert self.texts is not None
                texts = self.texts(captions)
                found[name] = image_distances.clip_score(made[KINDS[name]], texts)
                continue
            pair = made[KINDS[name]], real[KINDS[name]]
            if name == "fid":
                found["fid"] = image_distances.frechet_distance(*pair)
            elif name == "kid":
                mean, std = image_distances.kernel_distance(*pair, subset_size=self.kid_subset)
                found |= {"kid": mean, "kid_std": std}
            else:
                found["cmmd"] = image_distances.cmmd(*pair)
        return found


def open_metrics(
    names: str, inception: str | None = None, clip: str | None = None, kid_subset: int | None = None
) -> ImageMetrics:
    """Returns the metrics of "fid,kid,cmmd,clip_score", with their networks loaded.

    Raises UserError for an unknown name, an option without its metric, and as `open_features`.
    """
    parsed = tuple(dict.fromkeys(names.split(",")))
    if unknown := [name for name in parsed if name not in KINDS]:
        hint = f"choose from {', '.join(KINDS)}, with commas"
        raise UserError(f"unknown metric {unknown[0]!r}", hint=hint)
    locations = {"inception": inception or "", "clip": clip or CLIP}
    kinds = {KINDS[name] for name in parsed}
    for kind, where in (("inception", inception), ("clip", clip)):
        if where and kind not in kinds:
            raise UserError(f"no metric of {names} needs --{kind}", hint="leave it out")
    if kid_subset is not None and "kid" not in parsed:
        raise UserError("--kid-subset is for kid", hint="add kid to --metrics, or leave it out")
    features = {kind: open_features(kind, locations[kind]) for kind in sorted(kinds)}
    texts = open_texts(locations["clip"]) if "clip_score" in parsed else None
    used = {kind: where for kind, where in locations.items() if kind in kinds}
    return ImageMetrics(parsed, features, used, kid_subset or image_distances.SUBSET_SIZE, texts)


def compare_folders(pred: Path, target: Path, metrics: ImageMetrics) -> JsonObject:
    """Returns the distances of the images of two folders, as they are; all have one size.

    Raises UserError for a folder without images, an image of another size, and too few images.
    """
    if "clip_score" in metrics.names:
        hint = "leave it out, or give --checkpoint, whose records have captions"
        raise UserError("clip_score needs captions, and folders of images have none", hint=hint)
    folders = [image_files(folder) for folder in (pred, target)]
    metrics.check(*map(len, folders))
    made, real = (metrics.extract(read_folder(files)) for files in folders)
    result = {"generated": str(pred), "images": len(folders[0])}
    result |= {"reference": str(target), "reference_images": len(folders[1])}
    return result | {"metrics": metrics.compare(made, real), "features": dict(metrics.locations)}


def evaluate_checkpoint(
    generator: Generator,
    mode: str,
    metrics: ImageMetrics,
    *,
    config: Config | None = None,
    reference: Path | None = None,
) -> JsonObject:
    """Generates an image of each held-out record, and returns the distances from real images.

    Args:
      mode: t2i, d2i or joint; captions, and in d2i depths, are the records'.
      config: the records, the sampling and the seed; by default the generator's.
      reference: a folder of real images; by default the records' own. Their center squares are
        resized as records are.

    Raises UserError for a mode that the network cannot do, and as `compare_folders`.
    """
    config = config or generator.config
    if mode not in MODES:
        raise UserError(f"mode {mode!r} makes no image to score", hint=f"choose {', '.join(MODES)}")
    generator.trajectory(mode, config.sample)
    count, side = config.eval.examples, config.data.resolution
    files = image_files(reference) if reference is not None else []
    real_count = len(files) if files else count
    metrics.check(count, real_count)
    if files and not metrics.of_real:
        raise UserError("clip_score does not take --reference", hint="leave it out")
    captions: list[str] = []
    made = metrics.extract(generated_images(generator, config, mode, captions))
    real = {}
    if metrics.of_real:
        real = metrics.extract(read_folder(files, side) if files else record_images(config))
    sample = {k: v for k, v in to_dict(config.sample).items() if k not in ("steps", "task_steps")}
    return {
        "mode": mode,
        "seed": config.seed,
        "size": side,
        "sampling": {"steps": num_steps(mode, config.sample), **sample},
        "images": count,
        "reference": _describe_reference(metrics, reference),
        "reference_images": real_count,
        "metrics": metrics.compare(made, real, captions),
        "features": dict(metrics.locations),
    }


def _describe_reference(metrics: ImageMetrics, reference: Path | None) -> str:
    if not metrics.of_real:
        return "the captions"
    return "the records" if reference is None else str(reference)


def generated_images(
    generator: Generator, config: Config, mode: str, captions: list[str]
) -> Iterator[Images]:
    """Yields the image of each held-out record; its noise is a function of seed and index.

    captions: those of the images are added to it.
    """
    source = inputs.open_source(config, "eval")
    count, size = config.eval.examples, min(config.eval.batch, config.eval.examples)
    progress = ProgressMeter(f"{mode} images", count)
    for start in range(0, count, size):
        index = np.arange(start, start + size).clip(max=count - 1)  # the last one is repeated
        records = [center_crop_resize(source[i], config.data.resolution) for i in index.tolist()]
        batch = {}
        if mode == "d2i":
            batch = {name: np.stack([getattr(r, name) for r in records]) for name in _DEPTH}
            if empty := [r.id for r in records if not r.valid.any()]:
                raise UserError(f"record {empty[0]} has no depth", hint="choose another --mode")
        texts = [r.caption for r in records]
        noise = {"seed": config.seed, "index": index}
        made = generator.run(mode, texts, batch=batch, options=config.sample, **noise)
        images = {generator.primary: made.images[generator.primary]}
        names = [f"{i} ({r.id})" for i, r in zip(index, records, strict=True)]
        check_finite(generator, mode, images, names)
        progress.report(min(start + size, count))
        captions += texts[: count - start]
        yield to_u8(images[generator.primary][: count - start])


def record_images(config: Config) -> Iterator[Images]:
    """Yields the images of the held-out records at the network's size."""
    source, side = inputs.open_source(config, "eval"), config.data.resolution
    count, size = config.eval.examples, config.eval.batch
    for start in range(0, count, size):
        rows = range(start, min(start + size, count))
        yield np.stack([center_crop_resize(source[i], side).image for i in rows])


def with_records(config: Config, where: Path) -> Config:
    """Returns a config whose held-out records are a prepared data set, or a folder of images.

    Of several splits, data.eval_split is taken. Raises UserError if there is no such folder or
    split.
    """
    require_dir(where, "check --records")
    found, split = splits(where), config.data.eval_split
    if len(found) > 1 and split not in found:
        what = f"has the splits {', '.join(found)}, not {split!r}"
        raise UserError(what, where=where, hint="name a folder of one split")
    data = replace(config.data, source="folder", root=str(where), mixture={}, cache="")
    if found:
        split = split if split in found else found[0]
        data = replace(data, source="prepared", eval_split=split)
    return replace(config, data=data)


def image_files(folder: Path) -> list[Path]:
    """Returns the images in a folder and below, sorted; raises UserError if there are none."""
    found = sorted(path for path, _ in files_below(folder, IMAGE_SUFFIXES))
    if not found:
        raise UserError("no images", where=folder, hint=f"known kinds are {_KNOWN}")
    return found


def read_folder(files: Sequence[Path], side: int | None = None) -> Iterator[Images]:
    """Yields images by batches, as they are or their center squares at side x side pixels.

    Raises UserError for an image of another size than the first one's, and an unreadable one.
    """
    shape: tuple[int, ...] | None = None
    for start in range(0, len(files), _BATCH):
        batch = []
        for path in files[start : start + _BATCH]:
            image = read_image(path)
            if side is not None:
                image = crop_resize_image(image, center_square(image.shape[:2]), side)
            shape = shape or image.shape
            if image.shape != shape:
                what = f"has {format_size(image.shape)} pixels, {files[0]} {format_size(shape)}"
                raise UserError(what, where=path, hint="give images of one size")
            batch.append(image)
        yield np.stack(batch)


def to_text(result: JsonObject) -> str:
    """Returns a table of the metrics, with what they depend on."""
    found = result["metrics"]
    rows = [[name, f"{value:.6g}"] for name, value in found.items() if name != "kid_std"]
    if "kid_std" in found:
        rows = [[n, f"{v} ± {found['kid_std']:.3g}" if n == "kid" else v] for n, v in rows]
    if "mode" in result:
        steps = result["sampling"]["steps"]
        made = f"{result['mode']}, {result['size']} px, {steps} steps, seed {result['seed']}"
    else:
        made = result["generated"]
    head = f"{result['images']} images ({made}) against {result['reference_images']}"
    head += f" ({result['reference']})"
    note = "FID falls with the number of images: compare equal numbers of them."
    return "\n".join([head, format_table(rows), *([note] if "fid" in found else [])])
