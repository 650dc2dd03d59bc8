"""Published weights: safetensors files, loaded tensor by tensor onto the devices of a module."""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from modality_forcing import distributed
from modality_forcing.encoders import quantized
from modality_forcing.encoders.locate import PATTERNS, find_files, locate
from modality_forcing.errors import UserError
from modality_forcing.paths import exists, is_file
from modality_forcing.text_io import list_some, read_object
from modality_forcing.tree import JsonObject

if TYPE_CHECKING:
    from safetensors import safe_open

_CHUNK = 2**20  # elements
M = TypeVar("M", bound=nnx.Module)
ShardingFn = Callable[[str, tuple[int, ...]], Sharding]  # of an array's dotted path and shape


@dataclass(frozen=True)
class Tensor:
    """The source of a module's array: one tensor of a file, or one per row of its leading axis.

    arrange: the file's axes in the array's order, as in "oihw->hwio"; an axis written 1 is dropped.
    "" keeps them.
    """

    names: tuple[str, ...]
    arrange: str = ""
    stacked: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the array's shape for tensors of a shape; () if they cannot be arranged so."""
        if self.arrange:
            before, after = self.arrange.split("->")
            if len(before) != len(stored):
                return ()
            if any(a == "1" and n != 1 for a, n in zip(before, stored, strict=True)):
                return ()
            stored = tuple(stored[before.index(a)] for a in after)
        return (len(self.names), *stored) if self.stacked else stored


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, in one or more safetensors files; quantized ones with their scales."""

    where: str  # as the user wrote it
    files: tuple[Path, ...]
    revision: str = ""  # of the hub's repository, if from there
    shapes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)
    # Of each tensor as stored, in the words of safetensors: "BF16", "F8_E4M3".
    dtypes: Mapping[str, str] = field(init=False, repr=False, compare=False)
    # The open file of each tensor, and its name there.
    _file: Mapping[str, tuple[safe_open, str]] = field(init=False, repr=False, compare=False)
    _all_shapes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shapes, files, dtypes = {}, {}, {}
        for path in self.files:
            opened = _open(path)
            names = opened.keys()  # not a mapping
            for stored_name in names:
                name = quantized.canonical_name(stored_name)
                if name in files:
                    what = f"holds {name}, and so does another file"
                    raise UserError(what, where=path, hint="name one of the files")
                stored = opened.get_slice(stored_name)
                files[name], shapes[name] = (opened, stored_name), tuple(stored.get_shape())
                dtypes[name] = str(stored.get_dtype())
        set_once = object.__setattr__
        weights = {n: s for n, s in shapes.items() if not quantized.is_beside(n, shapes)}
        set_once(self, "shapes", weights)
        set_once(self, "_file", files)
        set_once(self, "dtypes", dtypes)
        set_once(self, "_all_shapes", shapes)

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.files[0].parent

    @cached_property
    def config(self) -> JsonObject:
        """The `config.json` beside the files; empty without one."""
        path = self.folder / "config.json"
        return read_object(path, hint="download it again", finite=False) if exists(path) else {}

    @cached_property
    def digest(self) -> str:
        """A checksum (SHA-256, 16 digits) of every byte of the files."""
        with ThreadPoolExecutor(8) as pool:
            digests = pool.map(_sha256, self.files)
            return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns a tensor, or only the part in an index of slices; nothing else is read.

        Quantized tensors are returned as weights, in float32. Raises UserError for a part that
        cannot be read or has a NaN or an infinity.
        """
        part = self._weights(name, index)
        if not is_finite(part):
            hint = "download it again: the file is damaged, or was saved from broken weights"
            raise UserError(f"{name} holds NaN or inf", where=self.where, hint=hint)
        return part

    def _weights(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        scale = self.scale(name)
        part = self._read(name, index)
        if scale is not None:
            zeros = self._read(scale.zero, ()) if scale.zero else None
            return scale.apply(part, index, self._read(scale.name, ()), zeros)
        return part.astype(np.float32) if self.dtypes[name] in quantized.FLOAT8 else part

    def scale(self, name: str) -> quantized.Scale | None:
        """Returns the scale of a tensor; raises UserError if its numbers are not weights."""
        if self.dtypes[name] in quantized.FLOATS:
            return None
        try:
            return quantized.find_scale(name, self._contents)
        except ValueError as error:
            hint = "give weights in bfloat16, float16 or float32"
            raise UserError(f"{name} {error}", where=self.where, hint=hint) from error

    def _read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        file, stored_name = self._file[name]
        try:
            if self.dtypes[name] in quantized.RAW:
                path, offset = self._places[stored_name]
                shape, dtype = self._all_shapes[name], quantized.RAW[self.dtypes[name]]
                return np.memmap(path, np.uint8, "r", offset, shape).view(dtype)[index or ...]
            if not index:  # safetensors 0.4.5 takes no Ellipsis
                return np.asarray(file.get_tensor(stored_name))
            return np.asarray(file.get_slice(stored_name)[index])
        except Exception as error:  # safetensors raises several kinds
            what = f"{name} cannot be read ({' '.join(str(error).split())})"
            raise UserError(what, where=self.where, hint="download it again") from error

    @cached_property
    def _contents(self) -> quantized.Contents:
        block, read = quantized.stated_block(self.config), partial(self._read, index=())
        opened = {id(file): file for file, _ in self._file.values()}
        metadata = [quantized.stated_formats(file.metadata()) for file in opened.values()]
        formats = dict(ChainMap(*metadata))
        return quantized.Contents(self.dtypes, self._all_shapes, read, block, formats)

    @cached_property
    def _places(self) -> Mapping[str, tuple[Path, int]]:
        """The file of each tensor, and where in it the numbers begin."""
        starts = {path: quantized.offsets(path) for path in self.files}
        return {name: (path, at) for path, found in starts.items() for name, at in found.items()}


def open_checkpoint(location: str | Path, stem: str = "") -> Checkpoint:
    """Opens a .safetensors file, a folder of them (with or without an index), or a hub id.

    `locate` defines hub ids. stem: of a folder, only `stem.safetensors`, or the files of
    `stem.safetensors.index.json`. Raises UserError if there is no such thing, a file of an index is
    missing, or a file is truncated or no safetensors.
    """
    patterns = [p.replace("*.safetensors", f"{stem}*.safetensors") for p in PATTERNS]
    path, revision = locate(location, patterns)
    files = (path,) if is_file(path) else find_files(path, stem)
    return Checkpoint(str(location), files, revision)


def is_finite(array: np.ndarray) -> bool:
    """Returns whether an array holds no NaN and no infinity; integers never do.

    By bits and in chunks, which is fast for bfloat16 too and takes no memory to speak of.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return True
    bits = np.dtype(f"u{array.dtype.itemsize}")
    unsigned = bits.type(np.iinfo(bits).max >> 1)  # all bits but the sign's
    infinity = np.array(np.inf, array.dtype).view(bits)
    rows = np.atleast_1d(array).view(bits)
    step = max(1, _CHUNK * len(rows) // max(rows.size, 1))
    chunks = (rows[start : start + step] & unsigned for start in range(0, len(rows), step))
    return all((chunk < infinity).all() for chunk in chunks)


def check_module(
    build: Callable[[], nnx.Module],
    tensors: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    unused: Collection[str] = (),
) -> None:
    """Raises the UserError that `load_module` would raise for the names, shapes and types."""
    _, state = nnx.split(nnx.eval_shape(build))
    _check(named_leaves(state)[0], tensors, checkpoint, tuple(unused))


def load_module(
    build: Callable[[], M],
    tensors: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    *,
    sharding: ShardingFn | None = None,
    unused: Collection[str] = (),
) -> M:
    """Returns the module that `build` makes, with every array from a checkpoint, in its own dtype.

    Each device's part is read from the file by itself: the host never holds more than one part.

    Args:
      build: makes the module with any weights; only its shapes are computed.
      tensors: the source of each array, by dotted path.
      sharding: of each array; by default everything is on the first device.
      unused: tensors of the file that nobody reads, by name or prefix.

    Raises:
      UserError: tensors are missing, left over or of another shape, with their names.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    shapes, tree = named_leaves(state)
    _check(shapes, tensors, checkpoint, tuple(unused))
    first_device = jax.sharding.SingleDeviceSharding(distributed.local_devices()[0])
    arrays = []
    for path, like in shapes.items():
        at = first_device if sharding is None else sharding(path, like.shape)

        def read(index: Any, path: str = path, like: jax.ShapeDtypeStruct = like) -> np.ndarray:
            return _read_part(checkpoint, tensors[path], like, index)

        arrays.append(jax.make_array_from_callback(like.shape, at, read))
    return nnx.merge(graph, jax.tree_util.tree_unflatten(tree, arrays))


def named_leaves(state: nnx.State) -> tuple[dict[str, Any], Any]:
    """Returns the arrays or shapes of a network by dotted path, and the tree they are leaves of."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}, tree


def _read_part(
    checkpoint: Checkpoint, tensor: Tensor, like: jax.ShapeDtypeStruct, index: tuple[slice, ...]
) -> np.ndarray:
    """Reads one device's part of an array from the same part of the tensors in the file."""
    if not tensor.stacked:
        return np.asarray(_read_arranged(checkpoint, tensor, tensor.names[0], index), like.dtype)
    rows, inner = tensor.names[index[0]], index[1:]
    sizes = [len(range(*i.indices(n))) for i, n in zip(index, like.shape, strict=True)]
    part = np.empty(sizes, like.dtype)  # filled row by row: never all of it twice
    for row, name in zip(part, rows, strict=True):
        row[...] = _read_arranged(checkpoint, tensor, name, inner)
    return part


def _read_arranged(
    checkpoint: Checkpoint, tensor: Tensor, name: str, index: tuple[slice, ...]
) -> np.ndarray:
    if not tensor.arrange:
        return checkpoint.read(name, index)
    before, after = tensor.arrange.split("->")
    slices = dict(zip(after, index, strict=True))
    stored = checkpoint.read(name, tuple(slices.get(axis, slice(None)) for axis in before))
    kept = stored.reshape([n for axis, n in zip(before, stored.shape, strict=True) if axis != "1"])
    return kept.transpose([before.replace("1", "").index(axis) for axis in after])


def _check(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    tensors: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    unused: tuple[str, ...],
) -> None:
    assert set(shapes) == set(tensors), set(shapes) ^ set(tensors)  # our own two lists
    where = checkpoint.where
    wanted = [name for tensor in tensors.values() for name in tensor.names]
    if missing := [name for name in wanted if name not in checkpoint.shapes]:
        hint = "check that it is this model, and all of it"
        raise UserError(f"lacks {list_some(missing)}", where=where, hint=hint)
    for path, tensor in tensors.items():
        for name in tensor.names:
            checkpoint.scale(name)  # raises for numbers that are not weights
            have, want = checkpoint.shapes[name], tuple(shapes[path].shape)
            if tensor.shape(have) != want:
                row = list(want[1:] if tensor.stacked else want)
                what = f"{name} is {list(have)}, which does not fit {row}"
                hint = "check that config.json goes with the weights"
                raise UserError(what, where=where, hint=hint)
    left = set(checkpoint.shapes) - set(wanted)
    if extra := sorted(name for name in left if not name.startswith(unused or "\0")):
        what = f"has {list_some(extra)} beyond this model"
        raise UserError(what, where=where, hint="check that it is this model")


def _open(path: Path) -> safe_open:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "np")
    except SafetensorError as error:
        what = f"is truncated or no safetensors file ({error})"
        raise UserError(what, where=path, hint="download it again") from error
    except OSError as error:
        what = f"cannot be opened ({error.strerror or error})"
        raise UserError(what, where=path, hint="check the path") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
