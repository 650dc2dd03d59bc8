"""FLUX.2 transformers from published files onto any sharding, and back into such files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from modality_forcing import distributed, safetensors_io
from modality_forcing.data.names import list_some
from modality_forcing.encoders.quantized import FLOAT8
from modality_forcing.encoders.weights import Checkpoint
from modality_forcing.errors import UserError
from modality_forcing.models import int8
from modality_forcing.models.flux2_layouts import (
    Entry,
    Layout,
    Shape,
    Slot,
    recognize,
    restored,
    stored,
)
from modality_forcing.safetensors_io import copy_blocks
from modality_forcing.tree import Tree, flatten, leaves, unflatten

_HINT = "give a file of this network, or a config with the sizes of the file"
_ALIGNED = 64  # bytes: from such addresses, jax takes arrays of a CPU without a copy


def match_layout(checkpoint: Checkpoint, shapes: Mapping[str, Shape]) -> tuple[Layout, str]:
    """Returns the layout of a network's checkpoint, and the prefix of all its names.

    shapes: of the network's arrays, by path. Raises UserError, listing names, for tensors that are
    missing, beyond the network or of another shape, and for float8 without scales.
    """
    have = checkpoint.shapes
    layout, prefix = recognize(have, checkpoint.where)
    want = {prefix + name: shape for name, shape in layout.shapes(shapes).items()}
    missing = [name for name in want if name not in have]  # in the order of the layout
    extra = sorted(name for name in have if name not in want)
    wrong = [
        f"{name} {list(have[name])} instead of {list(shape)}"
        for name, shape in want.items()
        if name in have and have[name] != shape
    ]
    problems = {"lacks": missing, "has beyond it": extra, "has misshaped": wrong}
    if any(problems.values()):
        listed = [f"{what} {list_some(names)}" for what, names in problems.items() if names]
        what = f"does not fit the network: {'; '.join(listed)}"
        raise UserError(what, where=checkpoint.where, hint=_HINT)
    for name in want:
        kind = checkpoint.dtypes[name]
        if checkpoint.scale(name) is None and kind in FLOAT8:
            what = f"{name} is {kind} without a scale"
            hint = "give a file with its weight_scale tensors, or weights in bfloat16"
            raise UserError(what, where=checkpoint.where, hint=hint)
    return layout, prefix


def array_shapes(tree: Tree) -> dict[str, Shape]:
    """Returns the shape of each array of a tree, by path; empty modules have none."""
    return {path: tuple(leaf.shape) for path, leaf in leaves(tree).items()}


@dataclass(frozen=True)
class Options:
    """How weights are loaded.

    dtype: of the arrays; heads and the gates between modalities are float32. quantize: matrices of
    the blocks become `Int8Weight`; they are quantized on the host, one tensor at a time.
    """

    dtype: DTypeLike = jnp.float32
    quantize: bool = False


def load(
    shapes: Tree,
    checkpoint: Checkpoint,
    options: Options = Options(),
    *,
    shardings: Tree | None = None,
) -> dict[str, PyTree]:
    """Returns the weights of a network from a checkpoint in any published layout.

    shapes: nested dicts of anything with a shape, by the network's attribute names. shardings: of
    each array; by default everything is on the first device.

    Raises UserError as `match_layout` does.
    """
    found = dict(arrays(shapes, checkpoint, options, shardings=shardings))
    return unflatten({path: found.get(path, leaf) for path, leaf in flatten(shapes).items()})


def arrays(
    shapes: Tree,
    checkpoint: Checkpoint,
    options: Options = Options(),
    *,
    shardings: Tree | None = None,
) -> Iterator[tuple[str, PyTree]]:
    """Yields the path and the array of each weight, as `load`, which takes the same.

    Each device's part is read from the file by itself, one array after the other.
    """
    flat = array_shapes(shapes)
    layout, prefix = match_layout(checkpoint, flat)
    at = flatten(shardings) if shardings is not None else {}
    first = jax.sharding.SingleDeviceSharding(distributed.local_devices()[0])
    for path, slot in layout.slots(flat).items():
        reader = _Reader(checkpoint, prefix, slot, flat[path], dtype_of(path, options.dtype))
        is_int8 = options.quantize and int8.is_quantized(path)
        read = reader.quantized if is_int8 else reader.array
        yield path, read(at.get(path, first))


def dtype_of(path: str, dtype: DTypeLike) -> np.dtype:
    """Returns the dtype in which a weight is kept: heads and gates are float32, others as given."""
    is_wide = path.startswith("level_gate_cross/") or (
        path.startswith("head/") and "layers" not in path and "block_modulation" not in path
    )
    return np.dtype(jnp.float32 if is_wide else dtype)


Index = tuple[slice, ...]  # a part of an array


@dataclass(frozen=True)
class _Reader:
    """Reads parts of one array of ours."""

    checkpoint: Checkpoint
    prefix: str
    slot: Slot
    shape: Shape
    dtype: np.dtype

    def array(self, sharding: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(self.shape, sharding, self._part)

    def quantized(self, sharding: jax.sharding.Sharding) -> int8.Int8Weight:
        """Returns the array in int8; the parts of a device are quantized one layer at a time."""
        layers, rows, columns = self.shape
        scales: dict[tuple[int, ...], np.ndarray] = {}  # of a layer's columns

        def read(layer: int, at: slice) -> tuple[np.ndarray, np.ndarray]:
            weight = self._layer(layer, (slice(0, rows), at))
            values, scale = int8.quantize_array(weight)
            scales[layer, at.start, at.stop] = scale
            return values, scale

        def values(index: Any) -> np.ndarray:
            outer, at = slice(*index[0].indices(layers)), slice(*index[2].indices(columns))
            part = _empty((_size(outer), _size(slice(*index[1].indices(rows))), _size(at)), np.int8)
            for row, layer in zip(part, range(outer.start, outer.stop), strict=True):
                row[...] = read(layer, at)[0][index[1]]
            return part

        def scale(index: Any) -> np.ndarray:
            outer, at = slice(*index[0].indices(layers)), slice(*index[2].indices(columns))
            parts = []
            for layer in range(outer.start, outer.stop):
                known = scales.get((layer, at.start, at.stop))
                parts.append(read(layer, at)[1] if known is None else known)
            return np.stack(parts)

        of_values = jax.make_array_from_callback(self.shape, sharding, values)
        of_scale = jax.make_array_from_callback(
            (layers, 1, columns), int8.scale_sharding(sharding), scale
        )
        return int8.Int8Weight(of_values, of_scale)

    def _part(self, index: Any) -> np.ndarray:
        whole = tuple(slice(*i.indices(n)) for i, n in zip(index, self.shape, strict=True))
        part = _empty(tuple(map(_size, whole)), self.dtype)
        if not self.slot.entry.stacked:
            copy_blocks(part, self._layer(0, whole))
            return part
        for row, layer in zip(part, range(whole[0].start, whole[0].stop), strict=True):
            copy_blocks(row, self._layer(layer, whole[1:]))  # never all of it twice
        return part

    def _layer(self, layer: int, index: Index) -> np.ndarray:
        """Returns a part of one layer, in the file's precision."""
        slot = self.slot
        name = self.prefix + slot.entry.name.format(i=layer)
        if not index:
            return self.checkpoint.read(name).reshape(())
        outputs, *inputs = index[::-1]  # the file's order
        inner = self.shape[int(slot.entry.stacked) :]
        step = slot.head_dim or 1
        low, high = outputs.start // step * step, -(-outputs.stop // step) * step  # whole heads
        swap = inner[-1] // 2 if slot.entry.swapped else 0
        at = [slice(low, high), *inputs]
        at[slot.entry.axis] = _shift(at[slot.entry.axis], slot.start)
        if swap:
            found = _read_swapped(
                lambda part: self.checkpoint.read(name, (part, *inputs)), at[0], swap
            )
        else:
            found = self.checkpoint.read(name, tuple(at))
        return restored(found, slot)[..., outputs.start - low : outputs.stop - low]


def _read_swapped(read: Callable[[slice], np.ndarray], rows: slice, half: int) -> np.ndarray:
    """Returns rows of a tensor whose halves are stored in the other order."""
    first = slice(min(rows.start, half), min(rows.stop, half))
    second = slice(max(rows.start, half), max(rows.stop, half))
    parts = [_shift(first, half), _shift(second, -half)]
    return np.concatenate([read(part) for part in parts if _size(part)])


def _shift(part: slice, start: int) -> slice:
    return slice(part.start + start, part.stop + start)


def _size(part: slice) -> int:
    return part.stop - part.start


def _empty(shape: Shape, dtype: DTypeLike) -> np.ndarray:
    """Returns an array that begins at a multiple of 64 bytes."""
    dtype = np.dtype(dtype)
    count = math.prod(shape) * dtype.itemsize
    memory = np.empty(count + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + count].view(dtype).reshape(shape)


def tensors(params: Tree, layout: Layout) -> Iterator[tuple[str, Shape, Callable[[], np.ndarray]]]:
    """Yields the name, the shape and the content of each tensor of a layout.

    params: nested dicts of arrays, all of whose parts this process holds; an `Int8Weight` is
    written as the float32 matrix that it stands for. Raises UserError for weights that the layout
    cannot hold.
    """
    flat, shapes = flatten(params), array_shapes(params)
    slots = layout.slots(shapes)
    for name, entry, i in layout.tensors(shapes):

        def content(entry: Entry = entry, i: int = i) -> np.ndarray:
            whole = _joined(
                [_stored_part(flat[path], slots[path], i) for path in entry.parts], entry
            )
            return np.roll(whole, len(whole) // 2, axis=0) if entry.swapped else whole

        yield name, entry.shape(shapes), content


def _joined(parts: Sequence[np.ndarray], entry: Entry) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[entry.axis] = sum(part.shape[entry.axis] for part in parts)
    whole, start = np.empty(shape, np.result_type(*parts)), 0
    for part in parts:
        end = start + part.shape[entry.axis]
        at = (slice(None),) * entry.axis + (slice(start, end),)
        copy_blocks(whole[at], part)
        start = end
    return whole


def _stored_part(
    leaf: jax.Array | np.ndarray | int8.Int8Weight, slot: Slot, layer: int
) -> np.ndarray:
    if slot.entry.stacked:
        leaf = jax.tree.map(lambda x: x[layer], leaf)
    if isinstance(leaf, int8.Int8Weight):
        leaf = leaf.dequantize(jnp.float32)
    array = np.asarray(leaf)
    return stored(array, slot) if array.ndim else array.reshape(1)


def save(
    params: Tree,
    folder: Path,
    layout: Layout,
    dtype: DTypeLike = jnp.bfloat16,
    dtypes: Mapping[str, DTypeLike] | None = None,
) -> list[Path]:
    """Writes the weights of a network as safetensors files of a layout, one tensor at a time.

    Args:
      params: as `tensors` takes them.
      dtype: of the tensors in the files; published ones are bfloat16.
      dtypes: of single tensors, by name.

    Returns the files, with an index where there are several.
    """
    named = dtypes or {}
    listed = [
        safetensors_io.Tensor(name, np.dtype(named.get(name, dtype)), shape, content)
        for name, shape, content in tensors(params, layout)
    ]
    return safetensors_io.write(folder, layout.file, listed, layout.max_bytes)
