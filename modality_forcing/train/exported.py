"""Exports as weights: what `mforce export` wrote, read from a folder, a bucket, a file or the hub.

An export has a manifest: its version, the config, what is known of the training, and the shape,
dtype and sha256 of every weight. It is `manifest.json` beside the weights, and in the header of
`weights.safetensors`, so that this file is enough.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import PyTree

from modality_forcing import paths, safetensors_io
from modality_forcing.config import Config
from modality_forcing.encoders import locate
from modality_forcing.errors import UserError
from modality_forcing.mirror import on_disk
from modality_forcing.models.int8 import quantize_tree
from modality_forcing.text_io import list_some, parse_object, read_object
from modality_forcing.train import checkpoint
from modality_forcing.train.sharding import Shardings, on_first_device
from modality_forcing.train.state import Params
from modality_forcing.tree import JsonObject, flatten, unflatten

MANIFEST, FILE, FOLDER = "manifest.json", "weights.safetensors", "weights"
VERSION = 1  # of the manifest
METADATA = "modality_forcing"  # the key of the manifest in a file's header
UNFINISHED = "unfinished.txt"  # in a folder of a bucket, until it has its manifest
ORBAX, SAFETENSORS, PROGRAM = "orbax", "safetensors", "stablehlo"
NETWORK = "network/"  # the prefix of a program's weights that are the network's
_DTYPES = ("float32", "bfloat16", "float16")
_RELEASED = {"bfl": "flux2-klein", "diffusers": "flux2-klein", "modality-forcing": "mf-flux2"}
_PATTERNS = (MANIFEST, FILE, f"{FOLDER}/*")  # of the hub, where * goes into folders
_AGAIN = "export it again, or copy it again"
_HINT = "name a folder or file that mforce export wrote"


@dataclass(frozen=True)
class Export:
    """An export that was opened: its manifest and config, and its weights on request.

    where: as the user wrote it. path: the safetensors file on a disk, or the folder of Orbax.
    """

    where: str | Path
    path: Path
    manifest: JsonObject
    config: Config

    @property
    def training(self) -> JsonObject:
        """What the manifest has of the run: its step and its last metrics; {} if nothing."""
        return self.manifest.get("training") or {}

    @property
    def name(self) -> str:
        """The name of the weights in results: the step of the run, if it is known."""
        return str(self.training.get("step", "export"))

    @functools.cached_property
    def _shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(tuple(entry["shape"]), np.dtype(entry["dtype"]))
            for name, entry in self.manifest["weights"].items()
        }

    def check(self) -> None:
        """Raises UserError unless the files have the manifest's names, shapes and dtypes.

        Only headers are read.
        """
        if paths.is_dir(self.path):
            stored = flatten(checkpoint.tree_shapes(self.path))
        else:
            stored = dict(safetensors_io.open_file(self.path).tensors)
        found = {name: (tuple(x.shape), np.dtype(x.dtype)) for name, x in stored.items()}
        wanted = {name: (x.shape, np.dtype(x.dtype)) for name, x in self._shapes.items()}
        odd = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
        if odd:
            what = f"does not have the weights of its manifest ({list_some(odd)})"
            raise UserError(what, where=self.path, hint=_AGAIN)

    def verify(self) -> None:
        """Raises UserError as `load`; of a file, one tensor at a time is in memory."""
        if paths.is_dir(self.path):
            self.load()
            return
        self.check()
        file = safetensors_io.open_file(self.path)
        self._compare({name: sha256(file.read(name)) for name in self._shapes})

    def load(
        self, shardings: Shardings | None = None, *, dtype: str = "", int8: bool = False
    ) -> tuple[Config, Params]:
        """Returns the config and the weights, as they were exported.

        shardings: from the weights' shapes to their shardings; by default they go to the first
        device. dtype: for released networks alone. int8: as in `weights.Source`.

        Raises UserError for weights that are not those of the manifest. Their sha256 is compared
        where this process reads all of a weight: always for safetensors, and for Orbax unless the
        devices are of several processes.
        """
        self.check()
        shapes = unflatten(self._shapes)
        placed = (shardings or on_first_device())(shapes)
        is_folder = paths.is_dir(self.path)
        read = self._read_orbax(shapes, placed) if is_folder else self._read_file(flatten(placed))
        weights, digests = {}, {}
        for name, leaf, digest in read:
            weights[name], digests[name] = leaf, digest
        self._compare(digests)
        params = unflatten(weights)
        return self.config, quantize_tree(params) if int8 else params

    def _compare(self, digests: Mapping[str, str]) -> None:
        """Raises UserError for digests that are not the manifest's; "" is none."""
        entries = self.manifest["weights"]
        if bad := sorted(n for n, x in digests.items() if x and x != entries[n]["sha256"]):
            what = f"is damaged: {list_some(bad)} changed after the export"
            raise UserError(what, where=self.path, hint=_AGAIN)

    def _read_file(self, placed: Mapping[str, Sharding]) -> Iterator[tuple[str, jax.Array, str]]:
        file = safetensors_io.open_file(self.path)
        for name in self._shapes:
            array = file.read(name)
            # Each device takes its part; one tensor at a time is on the host.
            leaf = jax.make_array_from_callback(array.shape, placed[name], array.__getitem__)
            yield name, leaf, sha256(array)

    def _read_orbax(self, shapes: PyTree, placed: PyTree) -> Iterator[tuple[str, jax.Array, str]]:
        for name, leaf in flatten(checkpoint.read_tree(self.path, shapes, placed)).items():
            yield name, leaf, sha256(np.asarray(leaf)) if leaf.is_fully_addressable else ""


def sha256(array: np.ndarray) -> str:
    """Returns the digest of an array's numbers, in the order of its axes."""
    numbers = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(numbers.view(np.uint8).data).hexdigest()


def describe(array: np.ndarray) -> JsonObject:
    """Returns the entry of a weight in a manifest."""
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": sha256(array)}


def write_safetensors(
    folder: Path, flat: Mapping[str, np.ndarray], manifest: Mapping[str, object]
) -> Path:
    """Writes weights and their manifest as the file of an export, and returns its path."""
    tensors = [
        safetensors_io.Tensor(path, leaf.dtype, leaf.shape, lambda leaf=leaf: leaf)
        for path, leaf in flat.items()
    ]
    metadata = {METADATA: json.dumps(manifest)}
    stem = FILE.removesuffix(".safetensors")
    (path,) = safetensors_io.write(folder, stem, tensors, metadata=metadata)
    return path


def is_export(path: Path) -> bool:
    """Returns whether a path looks like an export: a safetensors file, or a folder with its files.

    A workdir or a step of one never does.
    """
    if path.suffix == ".safetensors":
        return paths.is_file(path)
    return any(paths.exists(path / name) for name in (MANIFEST, FILE, UNFINISHED))


def open_export(where: str | Path, *, adapter: bool = False) -> Export:
    """Opens a folder or file of `mforce export`, or hf:OWNER/NAME[@REVISION] with such files.

    adapter: whether it must be an adapter; otherwise it must be whole. Only headers are read.
    Raises UserError for everything else, for what another version wrote, and for damage.
    """
    found = locate.fetch(where, _PATTERNS).path if locate.is_hub(where) else paths.as_path(where)
    if not paths.is_file(found):
        found, manifest = _read_manifest(where, found)
    else:
        found, manifest = _read_header(where, found)
    _check_kind(where, manifest, adapter)
    if not _is_sound(manifest):
        raise UserError("its manifest is damaged", where=where, hint=_AGAIN)
    config = checkpoint.parse_config(manifest["config"], where)
    require = paths.require_file if kind_of(manifest) == SAFETENSORS else paths.require_dir
    path = require(found, _AGAIN)
    # Orbax takes absolute paths only, and reads buckets by itself.
    path = paths.resolve(path) if paths.is_dir(path) else on_disk(path, [])
    return Export(where, path, manifest, config)


def _is_sound(manifest: JsonObject) -> bool:
    """Returns whether a manifest has what is read of it, in the types in which it is written."""
    config, weights = manifest.get("config"), manifest.get("weights")
    if not (isinstance(config, dict) and isinstance(weights, dict) and weights):
        return False
    if not isinstance(manifest.get("training", {}), dict):
        return False
    return all(
        isinstance(entry, dict)
        and isinstance(shape := entry.get("shape"), list)
        and all(type(size) is int and size >= 0 for size in shape)
        and entry.get("dtype") in _DTYPES
        and isinstance(entry.get("sha256"), str)
        for entry in weights.values()
    )


def _read_manifest(where: str | Path, folder: Path) -> tuple[Path, JsonObject]:
    """Returns where the weights of a folder should be, and their manifest."""
    if not paths.exists(folder):
        raise UserError("no such export", where=where, hint=_HINT)
    if not paths.exists(folder / MANIFEST):
        if paths.exists(folder / FILE):  # it is enough
            return _read_header(where, folder / FILE)
        if paths.exists(folder / UNFINISHED):
            raise UserError("is unfinished: its export was cut off", where=where, hint=_AGAIN)
        hint = f"{_HINT}, or a released FLUX.2 network as mf-flux2:WHERE or flux2-klein:WHERE"
        raise UserError("holds no export", where=where, hint=hint)
    manifest = read_object(folder / MANIFEST, what="is not an export's manifest", hint=_HINT)
    return folder / (FILE if kind_of(manifest) == SAFETENSORS else FOLDER), manifest


def _read_header(where: str | Path, file: Path) -> tuple[Path, JsonObject]:
    text = safetensors_io.open_file(on_disk(file, [])).metadata.get(METADATA)
    if text is None:
        hint = f"{_HINT}, or a FLUX.2 network as flux2-klein:{where} or mf-flux2:{where}"
        raise UserError("was not written by mforce export", where=where, hint=hint)
    try:
        return file, parse_object(text)
    except ValueError as error:
        raise UserError(f"its header is damaged ({error})", where=where, hint=_AGAIN) from error


def kind_of(manifest: Mapping[str, object]) -> str:
    """Returns the format or layout of an export: orbax, safetensors, stablehlo, bfl..."""
    return str(manifest.get("format", "")).rpartition(", ")[2]


def _check_kind(where: str | Path, manifest: JsonObject, adapter: bool) -> None:
    """Raises UserError for an export that is read in another way, saying in which."""
    kind, version = kind_of(manifest), manifest.get("version", VERSION)
    if kind in _RELEASED:
        hint = f"name it as {_RELEASED[kind]}:{where}"
        raise UserError(f"is an export in the layout {kind}", where=where, hint=hint)
    if kind == PROGRAM:
        hint = "run it with its run.py, or export with --format=safetensors"
        raise UserError("is a compiled program, not weights", where=where, hint=hint)
    if kind not in (ORBAX, SAFETENSORS):
        raise UserError("is not an export of mforce", where=where, hint=_HINT)
    if version != VERSION:
        what = f"is an export of version {version}, this package reads {VERSION}"
        raise UserError(what, where=where, hint="use the version that wrote it")
    if adapter and manifest.get("adapter") is not True:
        hint = "name a folder that mforce export --adapter wrote"
        raise UserError("is not an adapter", where=where, hint=hint)
    if not adapter and manifest.get("adapter") is True:
        hint = "give the network that it was trained on, and this with --adapter"
        raise UserError("is an adapter, only a part of the weights", where=where, hint=hint)
