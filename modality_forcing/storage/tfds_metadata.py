"""features.json and dataset_info.json, with which tensorflow-datasets opens a prepared folder.

`tfds.builder_from_directory(folder).as_data_source(split)` gives the features of an example
(`storage.codec`) with decoded images, without `other_captions`, which not every example has; depth
and mask stay compressed. Tested with tensorflow-datasets 4.9.10.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from modality_forcing.storage.manifest import Manifest

NO_SPLIT = "all"  # not a valid split name: in tensorflow-datasets it means all splits
_FEATURES = "tensorflow_datasets.core.features"
_VERSION = "1.0.0"  # of the format of examples

_Json = dict[str, object]


def features_json(image_format: str) -> str:
    """Returns features.json for jpeg, png or webp images; tfds cannot decode webp."""
    image = _scalar("string")
    if image_format in ("jpeg", "png"):
        shape = {"dimensions": ["-1", "-1", "3"]}
        encoding = {"dtype": "uint8", "encodingFormat": image_format, "shape": shape}
        image = {"image": encoding, "pythonClassName": f"{_FEATURES}.image_feature.Image"}
    text: _Json = {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}
    features = {
        "image": image,
        "size": _vector("int64", 2),
        "valid": _scalar("string"),
        "depth": _scalar("string"),
        "nearest": _scalar("float32"),
        "intrinsics": _vector("float32", 9),
        **dict.fromkeys(("coding", "caption", "unit", "source", "id"), text),
    }
    content = {
        "featuresDict": {"features": features},
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def info_json(manifests: Sequence[Manifest]) -> str:
    """Returns dataset_info.json for the splits of one folder, in this order."""
    splits = [
        {
            "name": manifest.split,
            "shardLengths": [str(file.records) for file in manifest.files],
            "numBytes": str(sum(file.bytes for file in manifest.files)),
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for manifest in manifests
    ]
    content = {
        "name": manifests[0].name,
        "version": _VERSION,
        "description": manifests[0].title,
        "fileFormat": "array_record",
        "splits": splits,
    }
    return json.dumps(content, indent=1) + "\n"


def _vector(dtype: str, length: int) -> _Json:
    shape = {"dimensions": [str(length)]}
    tensor = {"dtype": dtype, "encoding": "none", "shape": shape}
    return {"pythonClassName": f"{_FEATURES}.tensor_feature.Tensor", "tensor": tensor}


def _scalar(dtype: str) -> _Json:
    tensor = {"dtype": dtype, "encoding": "none", "shape": {}}
    return {"pythonClassName": f"{_FEATURES}.scalar.Scalar", "tensor": tensor}
