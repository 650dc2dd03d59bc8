"""Images and captions of any data set prepared by tensorflow-datasets, such as coco_captions.

The root is the folder of one version, as coco_captions/2014/1.1.0, prepared for random access:

    tfds.builder("coco_captions").download_and_prepare(file_format="array_record")

The image is the first Image feature, and the caption the first Text feature, in the order of their
names, where names with "caption" or "text" come first; several captions of an image are kept.
Options of mforce prepare name others: `--option image=photo --option caption=captions/text`.
There is no depth. Needs tensorflow-datasets, but not TensorFlow.
Source: tensorflow/datasets, docs on as_data_source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.lazy import image_record, require_dir
from modality_forcing.datasets.registry import Dataset, check_split
from modality_forcing.errors import UserError
from modality_forcing.paths import is_file

_TITLE = "a data set of tensorflow-datasets"
_PREFERRED = ("caption", "text")


@dataclass(frozen=True)
class TfdsSource:
    """One split of a prepared data set. Each process opens it when it first reads."""

    folder: Path
    split: str
    image: str  # paths of features, parts joined by /
    caption: str
    count: int
    _opened: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not self._opened:
            self._opened.append(_builder(self.folder).as_data_source(self.split))
        try:
            example = self._opened[0][index]
        except (RuntimeError, ValueError, OSError) as error:
            what = f"example {index} of {self.split} cannot be read"
            raise UserError(what, where=self.folder, hint="prepare the data set again") from error
        image = np.asarray(_at(example, self.image))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            what = f"example {index} of {self.split} has {image.dtype} {image.shape} for an image"
            hint = "choose another feature with --option image=NAME"
            raise UserError(what, where=self.folder, hint=hint)
        image = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
        texts = _texts(_at(example, self.caption)) if self.caption else []
        return image_record(image, texts, source=DATASET.name, id=f"{self.split}/{index}")

    def __reduce__(self) -> tuple[type[TfdsSource], tuple[object, ...]]:
        return TfdsSource, (self.folder, self.split, self.image, self.caption, self.count)


@dataclass(frozen=True, kw_only=True)
class TfdsDataset(Dataset):
    """The data set of a folder. image, caption: names of features, "" for the default."""

    image: str = ""
    caption: str = ""

    def with_options(self, options: Mapping[str, str]) -> Dataset:
        """Returns the data set with other features. Raises UserError for an unknown option."""
        super().with_options(options)
        return replace(self, **options)

    def open(self, root: Path, split: str) -> TfdsSource:
        """Returns the records of a split, see `Dataset.open`."""
        check_split(self, split)
        folder = require_dir(root, self.title)
        builder = _builder(folder)
        splits = builder.info.splits
        if split not in splits:
            hint = f"choose one of {', '.join(sorted(splits))}"
            raise UserError(f"has no split {split!r}", where=folder, hint=hint)
        images, texts = _features(builder)
        caption = ""
        if self.caption or texts:
            caption = _choose("caption", self.caption, texts, folder)
        return TfdsSource(
            folder=folder,
            split=split,
            image=_choose("image", self.image, images, folder),
            caption=caption,
            count=splits[split].num_examples,
        )


def _tfds() -> ModuleType:
    try:
        import tensorflow_datasets  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        what = f"{_TITLE} needs the package {error.name}"
        raise UserError(what, hint="pip install 'modality_forcing[tfds]'") from error
    return tensorflow_datasets


def _builder(folder: Path) -> Any:
    """Returns the builder of a folder, which must be stored for random access."""
    tfds = _tfds()
    if not is_file(folder / "dataset_info.json"):
        hint = "give the folder of a version, e.g. coco_captions/2014/1.1.0"
        raise UserError("has no dataset_info.json", where=folder, hint=hint)
    try:
        builder = tfds.builder_from_directory(folder)
        kind = builder.info.file_format.value
    except Exception as error:  # tensorflow-datasets raises many kinds for damaged files
        what = "is not prepared as this version reads it"
        raise UserError(what, where=folder, hint="prepare the data set again") from error
    if kind != "array_record":
        hint = 'prepare it with download_and_prepare(file_format="array_record")'
        raise UserError(f"is stored as {kind}, which has no random access", where=folder, hint=hint)
    return builder


def _features(builder: Any) -> tuple[list[str], list[str]]:
    """Returns the paths of the image and of the text features, the preferred ones first."""
    features, images, texts = _tfds().features, [], []
    for path, feature in _leaves(builder.info.features, features):
        if isinstance(feature, features.Image):
            images.append(path)
        elif isinstance(feature, features.Text):
            texts.append(path)
    return images, sorted(texts, key=lambda path: not any(word in path for word in _PREFERRED))


def _leaves(feature: Any, features: ModuleType, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(feature, features.FeaturesDict):
        for name in sorted(feature.keys()):
            yield from _leaves(feature[name], features, f"{path}/{name}" if path else name)
    elif isinstance(feature, features.Sequence):
        yield from _leaves(feature.feature, features, path)
    else:
        yield path, feature


def _choose(option: str, name: str, features: list[str], folder: Path) -> str:
    if not features or (name and name not in features):
        what = f"has no {option} feature" + (f" {name!r}" if name else "")
        hint = f"choose one of {', '.join(features)}" if features else "choose another data set"
        raise UserError(what, where=folder, hint=hint)
    return name or features[0]


def _at(example: Any, path: str) -> Any:
    for name in path.split("/"):
        example = example[name]
    return example


def _texts(value: Any) -> list[str]:
    """Returns the distinct texts of a text or of a list, in their order, without empty ones."""
    if not isinstance(value, str | bytes):
        return list(dict.fromkeys(text for one in value for text in _texts(one)))
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return [text] if (text := " ".join(text.split())) else []


DATASET = TfdsDataset(
    name="tfds_images",
    title=_TITLE,
    unit="relative",
    splits=("train", "validation", "test", "val"),
    options=("image", "caption"),
    license="that of the data set",
)
