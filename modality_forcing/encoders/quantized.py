"""Quantized tensors of safetensors files: which ones can be read, and with which scales.

Read are, by the names of the tensors beside `P.weight`:

- float8 alone: a plain cast, the values are the weights;
- float8 with `P.scale_weight` or `P.weight_scale`, one number or one for each row: weight * scale
  (ComfyUI; `P.scale_input` and `P.input_scale` are of activations and ignored);
- int8 with `P.SCB`, one number for each row: weight * SCB / 127 (bitsandbytes).

Everything else that is not a float of 16 bits or more is refused by name: numbers without their
scales are not weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from modality_forcing.text_io import parse_object

FLOATS = ("F64", "F32", "F16", "BF16")
FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
_INT8 = "I8"
_INT8_UNIT = 1 / 127
_WEIGHT = ".weight"
_FLOAT8_SCALES = ("scale_weight", "weight_scale")
_INT8_SCALE, _INT8_LAYOUT = "SCB", "weight_format"  # the layout: 0 for rows in order
_OTHER_SCALES = ("weight_scale_2", "pre_quant_scale", "absmax", "quant_map", "weight_zero_point")
_IGNORED = ("scale_input", "input_scale", "comfy_quant")
_MARKS = ("scaled_fp8", "spiece_model")  # whole names: a flag, and the tokenizer's file
_BESIDE = (*_FLOAT8_SCALES, _INT8_SCALE, _INT8_LAYOUT, *_OTHER_SCALES, *_IGNORED)


@dataclass(frozen=True)
class Scale:
    """What a tensor is multiplied with: another tensor of the file, and a number."""

    name: str
    unit: float = 1.0

    def apply(self, part: np.ndarray, scale: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the weights of a part of a tensor; scale: of one number, or of all rows."""
        scale = scale.astype(np.float32).reshape(-1)
        if scale.size > 1:
            rows = scale[index[0]] if index else scale
            scale = rows.reshape(-1, *[1] * (part.ndim - 1))
        return part.astype(np.float32) * scale * self.unit


def is_beside(name: str, names: Mapping[str, object]) -> bool:
    """Returns whether a tensor belongs to the quantization of another one of the file."""
    owner, _, kind = name.rpartition(".")
    return name in _MARKS or (kind in _BESIDE and owner + _WEIGHT in names)


def find_scale(
    name: str, dtypes: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> Scale | None:
    """Returns the scale of a tensor, None if it needs none.

    Raises ValueError, with what is wrong as its message, for a layout that is not known.
    """
    kind, owner = dtypes[name], name.removesuffix(_WEIGHT)
    beside = {part: f"{owner}.{part}" for part in _BESIDE if f"{owner}.{part}" in dtypes}
    if kind in FLOATS:
        return None
    if other := [part for part in _OTHER_SCALES if part in beside]:
        raise ValueError(f"is {kind} with {other[0]}, a layout that is not known")
    if kind in FLOAT8:
        scales = [beside[part] for part in _FLOAT8_SCALES if part in beside]
        if not scales and _any_scale(dtypes):
            raise ValueError(f"is {kind} without its scale, beside others that have one")
        found = Scale(scales[0]) if scales else None
    elif kind == _INT8 and _INT8_SCALE in beside:
        found = Scale(beside[_INT8_SCALE], _INT8_UNIT)
    else:
        raise ValueError(f"is {kind} without a scale that is known")
    rows = shapes[name][:1]
    if found is not None and shapes[found.name] not in ((), (1,), rows, (*rows, 1)):
        raise ValueError(f"is {kind} with scales {list(shapes[found.name])}, not one for each row")
    return found


def layout_of(name: str) -> str:
    """Returns the name of the tensor that says in which order an int8 tensor is, if it exists."""
    return f"{name.removesuffix(_WEIGHT)}.{_INT8_LAYOUT}"


def offsets(path: Path) -> dict[str, int]:
    """Returns where the numbers of each tensor begin in a safetensors file that was opened."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_object(file.read(length).decode())
    header.pop("__metadata__", None)
    return {name: 8 + length + stored["data_offsets"][0] for name, stored in header.items()}


def _any_scale(names: Iterable[str]) -> bool:
    return any(name.rpartition(".")[2] in _FLOAT8_SCALES for name in names)
