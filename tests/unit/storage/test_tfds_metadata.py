"""Metadata of tensorflow-datasets: complete, and read by it where it is installed."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.storage import codec, tf_example
from modality_forcing.storage.manifest import Manifest, ShardFile
from modality_forcing.storage.shards import ShardWriter, shard_name
from modality_forcing.storage.tfds_metadata import features_json, info_json
from modality_forcing.synthetic.source import Scenes

SCENES = Scenes(count=9, resolution=24)


def manifest(split: str, sizes: tuple[int, ...]) -> Manifest:
    files = tuple(
        ShardFile(shard_name("scenes", split, index, len(sizes)), size, 0, 100, "")
        for index, size in enumerate(sizes)
    )
    return Manifest(Path(), "scenes", "Scenes", split, "metric", "free", files, {}, {}, {})


def test_every_feature_is_described():
    stored = tf_example.decode(codec.encode(SCENES[0]))
    described = json.loads(features_json("jpeg"))["featuresDict"]["features"]
    assert described.keys() == stored.keys()
    for name, feature in described.items():
        kind = {
            "Tensor": feature.get("tensor", {}).get("dtype"),
            "Scalar": feature.get("tensor", {}).get("dtype"),
        }.get(feature["pythonClassName"].rpartition(".")[2], "string")
        assert isinstance(
            stored[name][0], {"string": bytes, "int64": int, "float32": float}[kind]
        ), name
        for n in feature.get("tensor", {}).get("shape", {}).get("dimensions", []):
            assert len(stored[name]) == int(n)


def test_splits_list_their_shards():
    info = json.loads(info_json([manifest("train", (3, 0)), manifest("val", (2,))]))
    assert info["name"] == "scenes" and info["fileFormat"] == "array_record"
    assert [(split["name"], split["shardLengths"]) for split in info["splits"]] == [
        ("train", ["3", "0"]),
        ("val", ["2"]),
    ]


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_tensorflow_datasets_reads_them(tmp_path: Path, image_format: codec.ImageFormat):
    tfds = pytest.importorskip("tensorflow_datasets")
    found = [manifest("train", (3, 4)), manifest("val", (2,))]
    number = 0
    for one in found:
        for file in one.files:
            with ShardWriter(tmp_path / file.name) as writer:
                for _ in range(file.records):
                    writer.write(codec.encode(SCENES[number], image_format))
                    number += 1
    (tmp_path / "features.json").write_text(features_json(image_format))
    (tmp_path / "dataset_info.json").write_text(info_json(found))
    builder = tfds.builder_from_directory(tmp_path)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 7,
        "val": 2,
    }
    for index, got in enumerate((*builder.as_data_source("train"), *builder.as_data_source("val"))):
        record = SCENES[index]
        assert got["id"].decode() == record.id and got["caption"].decode() == record.caption
        np.testing.assert_array_equal(got["intrinsics"].reshape(3, 3), record.intrinsics)
        assert zlib.decompress(got["valid"]) == np.packbits(record.valid).tobytes()
        assert got["size"].tolist() == [24, 24]
        if image_format == "png":
            np.testing.assert_array_equal(got["image"], record.image)
        elif image_format == "jpeg":
            assert got["image"].shape == (24, 24, 3)
        else:
            assert got["image"][:4] == b"RIFF"
