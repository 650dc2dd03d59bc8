"""tf.train.Example, the record format of TensorFlow's tools, without TensorFlow.

An Example maps names to lists of bytes, of 32-bit floats or of 64-bit integers. Source: tensorflow,
core/example/example.proto and feature.proto. A map field is serialized as a repeated message of key
and value (protobuf.dev, Encoding), and is declared as one here: entries are then in a fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from modality_forcing.storage.proto_schema import define_messages, parse

Feature = list[bytes] | list[float] | list[int]

_MESSAGES = define_messages("""
message BytesList { repeated bytes value = 1; }
message FloatList { repeated float value = 1 [packed = true]; }
message Int64List { repeated int64 value = 1 [packed = true]; }
message Feature {
  optional BytesList bytes_list = 1;
  optional FloatList float_list = 2;
  optional Int64List int64_list = 3;
}
message FeatureEntry {
  optional string key = 1;
  optional Feature value = 2;
}
message Features { repeated FeatureEntry feature = 1; }
message Example { optional Features features = 1; }
""")
_Example = _MESSAGES["Example"]


def encode(features: Mapping[str, Sequence[object]]) -> bytes:
    """Returns a serialized Example: the same bytes for the same features in any order.

    The first element of a list decides its kind; an empty list is a list of bytes. Raises
    ValueError for other kinds and for integers of more than 64 bits.
    """
    example = _Example()
    example.features.SetInParent()
    for name in sorted(features):
        values = features[name]
        entry = example.features.feature.add(key=name)
        first = values[0] if len(values) else b""
        if isinstance(first, bytes):
            entry.value.bytes_list.SetInParent()
            entry.value.bytes_list.value.extend(values)
        elif isinstance(first, float):
            entry.value.float_list.value.extend(np.asarray(values, np.float32).tolist())
        elif isinstance(first, int) and not isinstance(first, bool):
            entry.value.int64_list.value.extend(values)
        else:
            raise ValueError(f"a feature holds {type(first).__name__}, not bytes, float or int")
    return example.SerializeToString()


def decode(content: bytes) -> dict[str, Feature]:
    """Returns the features of a serialized Example; the last one wins where a name repeats.

    Raises ValueError for bytes that are not a complete Example.
    """
    features: dict[str, Feature] = {}
    for entry in parse(_Example, content).features.feature:
        kinds = entry.value.ListFields()  # one, or none where the feature is empty
        features[entry.key] = list(kinds[-1][1].value) if kinds else []
    return features
