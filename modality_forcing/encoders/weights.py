"""Published weights: safetensors files opened by name, and brought tensor by tensor onto the devices of a module."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from modality_forcing.errors import UserError

M = TypeVar("M", bound=nnx.Module)
Place = Callable[
    [str, tuple[int, ...]], Sharding
]  # where an array goes, by its dotted path and shape

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?P<folder>(/[\w.-]+)*?)(@(?P<revision>[\w./-]+))?")
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "spiece.model", "*.model")
_FEW = 3  # names told of many


@dataclass(frozen=True)
class Tensor:
    """Where an array of a module comes from: one tensor of a file, or one for each row of the array's leading axis.

    arrange: the file's axes in the array's order, as in "oihw->hwio"; an axis written 1 is dropped. "" keeps them.
    """

    names: tuple[str, ...]
    arrange: str = ""
    stacked: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the array's shape, given that of each tensor in the file; () for one that cannot be arranged so."""
        if self.arrange:
            before, after = self.arrange.split("->")
            if len(before) != len(stored) or any(
                a == "1" and n != 1 for a, n in zip(before, stored, strict=True)
            ):
                return ()
            stored = tuple(stored[before.index(a)] for a in after)
        return (len(self.names), *stored) if self.stacked else stored


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, in one or more safetensors files, as they lie on disk."""

    where: str  # as the user wrote it
    files: tuple[Path, ...]
    revision: str = ""  # of the hub's repository, where it came from there
    shapes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)
    _file: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shapes, held = {}, {}
        for path in self.files:
            opened = _open(path)
            for name in opened.keys():  # not a mapping
                if name in held:
                    raise UserError(
                        f"holds {name}, and so does another file",
                        where=path,
                        hint="name one of the files",
                    )
                held[name], shapes[name] = opened, tuple(opened.get_slice(name).get_shape())
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "_file", held)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.files[0].parent

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the `config.json` beside the files says; empty where there is none."""
        path = self.folder / "config.json"
        return _json(path) if path.exists() else {}

    @cached_property
    def digest(self) -> str:
        """A checksum (SHA-256, 16 digits) of every byte of the files."""
        with ThreadPoolExecutor(8) as pool:
            each = pool.map(_sha256, self.files)
            return hashlib.sha256("".join(each).encode()).hexdigest()[:16]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns a tensor, or only the part of it that an index of slices names; nothing else of it is read."""
        from safetensors import SafetensorError

        try:
            return self._file[name].get_slice(name)[index or ...]
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{name} cannot be read ({error})", where=self.where, hint="download it again"
            ) from error


def open_checkpoint(location: str | Path) -> Checkpoint:
    """Opens weights that are a .safetensors file, a folder of them (with or without an index), or a hub id.

    A hub id is owner/name, with a folder of the repository and a revision where needed: owner/name/text_encoder@main. It
    needs the extra `encoders` and a network, or files that were fetched before. Of an index, all files must be there.
    Raises UserError where there is nothing of the kind, or a file is truncated or no safetensors.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return Checkpoint(str(location), (path,))
    if path.is_dir():
        return Checkpoint(str(location), _files_of(path))
    hub = _HUB.fullmatch(str(location))
    if hub is None or path.parent.is_dir():  # a path with a wrong last part is not a hub id
        raise UserError(
            "no such file or folder",
            where=location,
            hint="give a folder of safetensors files, or a hub id",
        )
    folder, revision = _from_hub(hub["repo"], hub["folder"].strip("/"), hub["revision"])
    return Checkpoint(str(location), _files_of(folder), revision)


def load_module(
    build: Callable[[], M],
    tensors: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    *,
    place: Place | None = None,
    unused: Collection[str] = (),
) -> M:
    """Returns the module that `build` makes, with every array from a checkpoint, cast to the array's own type.

    Each device gets its part by itself, read where it lies in the file, so that the host never holds more than one part.

    Args:
      build: makes the module with any weights; only its shapes are computed.
      tensors: of each array, by dotted path, where it comes from.
      place: the sharding of each array; by default everything is on the first device.
      unused: tensors of the file that nobody reads, by name or by prefix.

    Raises:
      UserError: tensors are missing, left over or of another shape, told with their names.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    leaves, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    shapes = {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}
    _check(shapes, tensors, checkpoint, tuple(unused))
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arrays = []
    for path, wanted in shapes.items():
        sharding = alone if place is None else place(path, wanted.shape)
        part = lambda index, path=path, wanted=wanted: _part(
            checkpoint, tensors[path], index, wanted
        )
        arrays.append(jax.make_array_from_callback(wanted.shape, sharding, part))
    return nnx.merge(graph, jax.tree_util.tree_unflatten(tree, arrays))


def _part(
    checkpoint: Checkpoint, tensor: Tensor, index: tuple[slice, ...], wanted: jax.ShapeDtypeStruct
) -> np.ndarray:
    """One device's part of an array, from the same part of the tensors in the file."""
    if not tensor.stacked:
        return np.asarray(_arranged(checkpoint, tensor, tensor.names[0], index), wanted.dtype)
    rows, inner = tensor.names[index[0]], index[1:]
    sizes = [len(range(*i.indices(n))) for i, n in zip(index, wanted.shape, strict=True)]
    part = np.empty(sizes, wanted.dtype)  # filled row by row: never all of it twice
    for row, name in zip(part, rows, strict=True):
        row[...] = _arranged(checkpoint, tensor, name, inner)
    return part


def _arranged(
    checkpoint: Checkpoint, tensor: Tensor, name: str, index: tuple[slice, ...]
) -> np.ndarray:
    if not tensor.arrange:
        return checkpoint.read(name, index)
    before, after = tensor.arrange.split("->")
    of = dict(zip(after, index, strict=True))
    stored = checkpoint.read(name, tuple(of.get(axis, slice(None)) for axis in before))
    kept = stored.reshape([n for axis, n in zip(before, stored.shape, strict=True) if axis != "1"])
    return kept.transpose([before.replace("1", "").index(axis) for axis in after])


def _check(
    shapes: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    unused: tuple[str, ...],
) -> None:
    assert set(shapes) == set(tensors), set(shapes) ^ set(tensors)  # our own two lists
    wanted = [name for tensor in tensors.values() for name in tensor.names]
    if missing := [name for name in wanted if name not in checkpoint.shapes]:
        raise UserError(
            f"lacks {_told(missing)}",
            where=checkpoint.where,
            hint="check that it is this model, and all of it",
        )
    for path, tensor in tensors.items():
        for name in tensor.names:
            have, want = checkpoint.shapes[name], tuple(shapes[path].shape)
            if tensor.shape(have) != want:
                what = f"{name} is {list(have)}, which does not fit {list(want[1:] if tensor.stacked else want)}"
                raise UserError(
                    what,
                    where=checkpoint.where,
                    hint="check that config.json goes with the weights",
                )
    left = set(checkpoint.shapes) - set(wanted)
    if extra := sorted(name for name in left if not name.startswith(unused or "\0")):
        raise UserError(
            f"has {_told(extra)} beyond this model",
            where=checkpoint.where,
            hint="check that it is this model",
        )


def _told(names: list[str]) -> str:
    some = ", ".join(names[:_FEW])
    return some if len(names) <= _FEW else f"{some} and {len(names) - _FEW} more tensors"


def _files_of(folder: Path) -> tuple[Path, ...]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise UserError(
            "holds several indices of safetensors files",
            where=folder,
            hint="name one file, or keep one index",
        )
    if not indices:
        files = tuple(sorted(folder.glob("*.safetensors")))
        if not files:
            raise UserError(
                "holds no .safetensors file",
                where=folder,
                hint="give the folder of the weights themselves",
            )
        return files
    listed = _json(indices[0]).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError("lists no files", where=indices[0], hint="download it again")
    files = tuple(folder / name for name in sorted(set(listed.values())))
    if missing := [path.name for path in files if not path.is_file()]:
        raise UserError(f"lacks {_told(missing)}", where=folder, hint="download the rest")
    return files


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "np")
    except SafetensorError as error:
        raise UserError(
            f"is truncated or no safetensors file ({error})", where=path, hint="download it again"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot be opened ({error.strerror or error})", where=path, hint="check the path"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"is no JSON ({error})", where=path, hint="download it again") from error
    if not isinstance(found, dict):
        raise UserError("is no JSON object", where=path, hint="download it again")
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _from_hub(repo: str, folder: str, revision: str | None) -> tuple[Path, str]:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        hint = "give a folder that is there, or pip install 'modality_forcing[encoders]' to fetch from the hub"
        raise UserError(
            "no such file or folder", where=f"{repo}/{folder}".strip("/"), hint=hint
        ) from error
    patterns = [f"{folder}/{name}" if folder else name for name in _HUB_FILES]
    try:
        fetched = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:  # a dozen kinds: no network, no such repository, no access
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"cannot be fetched ({reason})", where=repo, hint="give a folder that is there"
        ) from error
    return fetched / folder, fetched.name  # the folder of a snapshot is named by its commit
