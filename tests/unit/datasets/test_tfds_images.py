"""Data sets prepared by tensorflow-datasets; without the package, a one-line error."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.records import check
from modality_forcing.datasets.tfds_images import DATASET
from modality_forcing.errors import UserError
from modality_forcing.storage import tf_example
from modality_forcing.storage.manifest import Manifest, ShardFile
from modality_forcing.storage.shards import ShardWriter, shard_name
from modality_forcing.storage.tfds_metadata import info_json
from modality_forcing.viz.images import png_bytes


def image(index: int) -> np.ndarray:
    return np.full((5 + index, 7, 3), 40 * index, np.uint8)


def prepared(folder: Path) -> Path:
    """Like coco_captions: a list of captions per image, and other features."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
        }
    )
    features.save_config(folder)
    name = shard_name("coco", "train", 0, 1)
    with ShardWriter(folder / name) as writer:
        for index in range(3):
            texts = [f"the\n {word} of {index}".encode() for word in ("first", "second")][
                : 2 if index else 0
            ]
            example = {
                "image": [png_bytes(image(index))],
                "image/filename": [b"x.png"],
                "captions/id": list(range(len(texts))) or [],
                "captions/text": texts,
            }
            writer.write(tf_example.encode(example))
    file = ShardFile(name, 3, 0, 1, "")
    about = Manifest(Path(), "coco", "Coco", "train", "relative", "", (file,), {}, {}, {})
    (folder / "dataset_info.json").write_text(info_json([about]))
    return folder


def test_images_keep_their_captions(tmp_path: Path):
    source = DATASET.open(prepared(tmp_path), "train")
    assert len(source) == 3
    records = [check(pickle.loads(pickle.dumps(source))[index]) for index in range(3)]  # noqa: S301
    for index, record in enumerate(records):
        np.testing.assert_array_equal(record.image, image(index))
        assert not record.valid.any() and record.id == f"train/{index}"
    assert [record.caption for record in records] == ["", "the first of 1", "the first of 2"]
    others = [record.other_captions for record in records]
    assert others == [(), ("the second of 1",), ("the second of 2",)]


def test_features_can_be_selected(tmp_path: Path):
    folder = prepared(tmp_path)
    assert (
        DATASET.with_options({"caption": "image/filename"}).open(folder, "train").caption
        == "image/filename"
    )  # pyright: ignore
    with pytest.raises(
        UserError,
        match="has no caption feature 'title'; choose one of captions/text, image/filename",
    ):
        DATASET.with_options({"caption": "title"}).open(folder, "train")
    with pytest.raises(UserError, match="has no image feature 'photo'; choose one of image"):
        DATASET.with_options({"image": "photo"}).open(folder, "train")


def test_missing_data_is_reported(tmp_path: Path):
    folder = prepared(tmp_path)
    with pytest.raises(UserError, match="has no split 'validation'; choose one of train"):
        DATASET.open(folder, "validation")
    (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match="is not prepared as this version reads it"):
        DATASET.open(folder, "train")
    (folder / "dataset_info.json").unlink()
    with pytest.raises(UserError, match=r"has no dataset_info\.json; give the folder of a version"):
        DATASET.open(folder, "train")


def test_another_format_is_reported(tmp_path: Path):
    folder = prepared(tmp_path)
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        UserError, match="is stored as tfrecord, which has no random access; prepare it with"
    ):
        DATASET.open(folder, "train")


def test_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        UserError,
        match=r"needs the package tensorflow_datasets; pip install 'modality_forcing\[tfds\]'",
    ):
        DATASET.open(tmp_path, "train")


def test_other_options_are_refused():
    with pytest.raises(UserError, match="has no option 'x'; known are image, caption"):
        DATASET.with_options({"x": "y"})
