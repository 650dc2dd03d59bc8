"""What makes a prepared folder one that tensorflow-datasets opens: features.json and dataset_info.json.

`tfds.builder_from_directory(folder).as_data_source(split)` then gives the features of an example (`data.codec`) with the
picture decoded; depth and mask stay the compressed bytes they are. Their form was held against tensorflow-datasets 4.9.10.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modality_forcing.storage.manifest import Manifest

_FEATURES = "tensorflow_datasets.core.features"
NO_SPLIT = "all"  # what no split may be called: there, it means all of them
_VERSION = "1.0.0"  # of the format of examples


def features_json(image_format: str) -> str:
    """Returns features.json for examples whose pictures are jpeg, png or webp; webp stays encoded, as it is not known there."""
    image = _scalar("string")
    if image_format in ("jpeg", "png"):
        coded = {"dtype": "uint8", "encodingFormat": image_format, "shape": _shape((-1, -1, 3))}
        image = {"image": coded, "pythonClassName": f"{_FEATURES}.image_feature.Image"}
    features = {
        "image": image,
        "size": _tensor("int64", (2,)),
        **{name: _scalar("string") for name in ("valid", "depth")},
        "nearest": _scalar("float32"),
        "intrinsics": _tensor("float32", (9,)),
        **{name: _text() for name in ("coding", "caption", "unit", "source", "id")},
    }
    whole = {
        "featuresDict": {"features": features},
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
    }
    return json.dumps(whole, indent=1, sort_keys=True) + "\n"


def info_json(manifests: Sequence[Manifest]) -> str:
    """Returns dataset_info.json for the splits of one folder, in the order given."""
    name = manifests[0].name
    splits: list[Mapping[str, Any]] = [
        {
            "name": found.split,
            "shardLengths": [str(file.records) for file in found.files],
            "numBytes": str(sum(file.bytes for file in found.files)),
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for found in manifests
    ]
    whole = {
        "name": name,
        "version": _VERSION,
        "description": manifests[0].title,
        "fileFormat": "array_record",
        "splits": splits,
    }
    return json.dumps(whole, indent=1) + "\n"


def _shape(size: tuple[int, ...]) -> dict[str, Any]:
    return {"dimensions": [str(n) for n in size]} if size else {}


def _tensor(kind: str, size: tuple[int, ...]) -> dict[str, Any]:
    tensor = {"dtype": kind, "encoding": "none", "shape": _shape(size)}
    return {"pythonClassName": f"{_FEATURES}.tensor_feature.Tensor", "tensor": tensor}


def _scalar(kind: str) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_FEATURES}.scalar.Scalar",
        "tensor": {"dtype": kind, "encoding": "none", "shape": {}},
    }


def _text() -> dict[str, Any]:
    return {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}
