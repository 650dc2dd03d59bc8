"""Quantized tensors of safetensors files: which ones can be read, and with which scales.

A weight is (number - zero point) * scale. These layouts are read, by the tensors beside `P.weight`:

- float8 alone: a plain cast, the values are the weights (diffusers' layerwise casting);
- float8 with `P.scale_weight` (ComfyUI), `P.weight_scale_inv` (transformers, DeepSeek) or
  `P.weight_scale`, and int8 with `P.weight_scale` and maybe `P.weight_zero_point`
  (compressed-tensors): one number, or one for each row, group of columns or block;
  ComfyUI describes these in `P.comfy_quant` or in the metadata; rotated weights are refused;
- int8 with `P.SCB`, one number for each row: weight * SCB / 127 (bitsandbytes);
- the same under other names (`canonical_name`): `P.weight._data` and `P.weight._scale`
  (optimum-quanto), `P._weight_qdata` and `P._weight_scale` (torchao).

Scales are floats, or powers of two (E8M0, also stored as bytes). Blocks have the size that
`quantization_config` of config.json states, else 128 x 128. Everything else that is not a float of
16 bits or more is refused by name: numbers without their scales are not weights.
Files that these libraries wrote are in tests/parity/data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from modality_forcing.text_io import parse_object
from modality_forcing.tree import JsonObject

FLOATS = ("F64", "F32", "F16", "BF16")
FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
_EXPONENTS = ("F8_E8M0", "U8")
RAW = {**FLOAT8, "F8_E8M0": ml_dtypes.float8_e8m0fnu}  # types that numpy alone does not have
_INT8 = "I8"
_INT8_UNIT = 1 / 127
_EXPONENT_BIAS = 127
_WEIGHT = ".weight"
_SCALE, _ZERO = "weight_scale", "weight_zero_point"
_FLOAT8_SCALES = ("scale_weight", _SCALE, "weight_scale_inv")
_INT8_SCALE, _INT8_LAYOUT = "SCB", "weight_format"  # the layout: 0 for rows in order
_OTHER_SCALES = (
    *("weight_scale_2", "weight_global_scale", "pre_quant_scale", "weight_shift", "weight_g_idx"),
    *("absmax", "quant_map"),
)
_FORMAT, _FORMATS_KEY = "comfy_quant", "_quantization_metadata"  # descriptions by ComfyUI, JSON
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")  # whose names say everything
_IGNORED = ("scale_input", "input_scale", "output_scale", "activation_scale", _FORMAT)
_MARKS = ("scaled_fp8", "spiece_model")  # after any prefix: a flag, and the tokenizer's file
_BESIDE = (*_FLOAT8_SCALES, _ZERO, _INT8_SCALE, _INT8_LAYOUT, *_OTHER_SCALES, *_IGNORED)
_BLOCK = (128, 128)
_QUANTO = {"._data._data": "", "._data": "", "._scale": "_scale", "._shift": "_shift"}
_TORCHAO = re.compile(r"(?P<owner>.*\.|)_weight_(?P<part>qdata|scale|zero_point)")


@dataclass(frozen=True)
class Scale:
    """What makes weights of a tensor: the name of its scales, a factor, and their zero points.

    shape: of the tensor. block: how many rows and columns share a scale; () if all do.
    """

    name: str
    shape: tuple[int, ...]
    block: tuple[int, ...] = ()
    unit: float = 1.0
    zero: str = ""

    def apply(
        self,
        part: np.ndarray,
        index: tuple[slice, ...],
        scales: np.ndarray,
        zeros: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the weights of the part of a tensor in an index, from all scales and zeros."""
        if scales.dtype == np.uint8:
            scales = np.exp2(scales.astype(np.float32) - _EXPONENT_BIAS)
        numbers = part.astype(np.float32)
        if zeros is not None:
            numbers = numbers - self._broadcast(zeros, part.ndim, index)
        return numbers * self._broadcast(scales, part.ndim, index) * self.unit

    def _broadcast(self, values: np.ndarray, ndim: int, index: tuple[slice, ...]) -> np.ndarray:
        """Returns one value, or those of each row, or row and column, of a part."""
        values = values.astype(np.float32)
        if not self.block:
            return values.reshape(())
        at = [
            np.arange(size)[slices] // block
            for size, slices, block in zip(
                self.shape, (*index, *[slice(None)] * ndim), self.block, strict=False
            )
        ]
        values = values.reshape([-1] if len(at) == 1 else list(values.shape))
        return values[np.ix_(*at)].reshape(*map(len, at), *[1] * (ndim - len(at)))


def canonical_name(name: str) -> str:
    """Returns the name that a tensor of optimum-quanto or torchao has in the other layouts."""
    for ending, other in _QUANTO.items():
        if name.endswith(f"{_WEIGHT}{ending}"):
            return name.removesuffix(ending) + other
    if found := _TORCHAO.fullmatch(name):
        part = "weight" if found["part"] == "qdata" else f"weight_{found['part']}"
        return f"{found['owner']}{part}"
    return name


def is_beside(name: str, names: Mapping[str, object]) -> bool:
    """Returns whether a tensor belongs to the quantization of another one of the file."""
    owner, _, kind = name.rpartition(".")
    of_weight, below, _ = name.partition(f"{_WEIGHT}.")  # bitsandbytes, of 4 bits
    return (
        kind in _MARKS
        or (kind in _BESIDE and owner + _WEIGHT in names)
        or (below != "" and of_weight + _WEIGHT in names)
    )


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint, and what its files say about them.

    read: returns a tensor as stored. block: rows and columns that share a scale, () if not stated.
    formats: ComfyUI's descriptions in the metadata, by the owner of the weight.
    """

    dtypes: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    block: tuple[int, ...] = ()
    formats: Mapping[str, JsonObject] = field(default_factory=dict)

    def format_of(self, owner: str) -> JsonObject:
        """Returns ComfyUI's description of a weight, {} without one; ValueError if damaged."""
        name = f"{owner}.{_FORMAT}"
        if name not in self.dtypes:
            return self.formats.get(owner, {})
        try:
            return parse_object(self.read(name).tobytes().decode(), finite=False)
        except ValueError as error:
            raise ValueError(f"has a {_FORMAT} that cannot be read") from error


def find_scale(name: str, contents: Contents) -> Scale | None:
    """Returns the scale of a tensor, None if it needs none.

    Raises ValueError, with what is wrong as its message, for a layout that is not known.
    """
    dtypes, shapes = contents.dtypes, contents.shapes
    kind, owner = dtypes[name], name.removesuffix(_WEIGHT)
    if kind in FLOATS:
        return None
    beside = {part: f"{owner}.{part}" for part in _BESIDE if f"{owner}.{part}" in dtypes}
    if other := [part for part in _OTHER_SCALES if part in beside] or _unknown(owner, dtypes):
        raise ValueError(f"is {kind} with {other[0]}, a layout that is not known")
    _check_format(kind, contents.format_of(owner))
    if _INT8_LAYOUT in beside and contents.read(beside[_INT8_LAYOUT]).any():
        raise ValueError("is int8 in an order of rows that is not known")
    unit, known = 1.0, _FLOAT8_SCALES if kind in FLOAT8 else (_SCALE,) if kind == _INT8 else ()
    if kind == _INT8 and _INT8_SCALE in beside:
        unit, known = _INT8_UNIT, (_INT8_SCALE,)
    scales = [beside[part] for part in known if part in beside]
    if not scales and kind in FLOAT8 and not _any_scale(dtypes):
        return None
    if not scales:
        what = "its scale, beside others that have one"
        raise ValueError(f"is {kind} without {what if kind in FLOAT8 else 'a scale that is known'}")
    scale, zero = scales[0], beside.get(_ZERO, "")
    if dtypes[scale] not in FLOATS and (kind == _INT8 or dtypes[scale] not in _EXPONENTS):
        raise ValueError(f"is {kind} with scales of {dtypes[scale]}")
    shared = _block(shapes[name], shapes[scale], contents.block or _BLOCK)
    if shared is None or (zero and shapes[zero] != shapes[scale]):
        listed = [list(shapes[part]) for part in (scale, zero) if part]
        raise ValueError(f"is {kind} with scales {listed[0]}, not one for each row or block")
    return Scale(scale, shapes[name], shared, unit, zero)


def _check_format(kind: str, described: JsonObject) -> None:
    """Raises ValueError for a weight that ComfyUI stores in another way than its names say."""
    if described and described.get("format") not in _FORMATS:
        raise ValueError(f"is {kind} in the format {described.get('format')!r}, which is not known")
    if described.get("convrot"):
        raise ValueError(f"is {kind} with rotated columns (convrot), a layout that is not known")


def _block(
    shape: tuple[int, ...], scales: tuple[int, ...], block: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Returns how many rows, or rows and columns, share one of the scales; None if unknown."""
    if set(scales) <= {1}:
        return ()
    if scales[0] == shape[0] and set(scales[1:]) <= {1}:
        return (1,)
    if len(shape) != 2 or len(scales) != 2:
        return None
    if scales[0] == shape[0] and shape[1] % scales[1] == 0:
        return (1, shape[1] // scales[1])  # groups of columns
    if len(block) == 2 and scales == tuple(-(-n // m) for n, m in zip(shape, block, strict=True)):
        return block
    return None


def stated_formats(metadata: Mapping[str, str] | None) -> dict[str, JsonObject]:
    """Returns ComfyUI's descriptions of weights in the metadata of a file, by their owners."""
    try:
        stated = parse_object((metadata or {}).get(_FORMATS_KEY, "{}"), finite=False)
    except ValueError:
        return {}
    layers = stated.get("layers")
    found = layers.items() if isinstance(layers, dict) else ()
    return {owner: layer for owner, layer in found if isinstance(layer, dict)}


def stated_block(config: Mapping[str, object]) -> tuple[int, ...]:
    """Returns the rows and columns of a block by a config.json, () if it states none."""
    stated = config.get("quantization_config")
    size = stated.get("weight_block_size") if isinstance(stated, Mapping) else None
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int for n in size):
        return tuple(max(n, 1) for n in size)
    return ()


def offsets(path: Path) -> dict[str, int]:
    """Returns where the numbers of each tensor begin in a safetensors file that was opened."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_object(file.read(length).decode())
    header.pop("__metadata__", None)
    return {name: 8 + length + stored["data_offsets"][0] for name, stored in header.items()}


def _unknown(owner: str, names: Iterable[str]) -> list[str]:
    """Returns what follows a weight's name, or its owner's, in tensors that look like scales."""
    known = {f"{owner}.{part}" for part in _BESIDE}
    below = (name for name in names if name.startswith((f"{owner}.", f"{owner}{_WEIGHT}.")))
    found = (name.removeprefix(f"{owner}.") for name in below if name not in known)
    return sorted(part for part in found if re.search("scale|absmax|quant_map|zero", part))


def _any_scale(names: Iterable[str]) -> bool:
    return any(name.rpartition(".")[2] in _FLOAT8_SCALES for name in names)
