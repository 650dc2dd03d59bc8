"""Export of weights alone, with a manifest: for others' tools, and for this package again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from modality_forcing import __version__, paths
from modality_forcing.config import Config, to_dict
from modality_forcing.errors import UserError
from modality_forcing.export import card, layouts
from modality_forcing.mirror import fetched
from modality_forcing.modalities import base
from modality_forcing.models.restore import merge_params
from modality_forcing.paths import check_folder, write_file
from modality_forcing.train import checkpoint, exported
from modality_forcing.train.exported import MANIFEST, ORBAX, UNFINISHED, Export
from modality_forcing.train.state import Params, abstract_model
from modality_forcing.train.weights import Step, open_weights
from modality_forcing.tree import JsonObject, leaves, unflatten

_REMOVALS, _LATE_WRITES = 5, 0.1  # seconds


@dataclass(frozen=True)
class _Weights:
    """What is exported, and what is known of it."""

    config: Config
    params: Params
    known: JsonObject  # of the manifest: license and training


def export(
    source: str | Path,
    out: Path,
    kind: str = ORBAX,
    *,
    layout: str = "",
    dtype: str = "bfloat16",
    adapter: bool = False,
    license: str = "",
) -> Path:
    """Writes `out/weights` (Orbax) or `out/weights.safetensors`, `out/manifest.json` and a card.

    source: of all kinds of `train.weights.open_weights`. An export of an export is equal to it:
    safetensors to the byte, and Orbax, which writes times and random names, in its arrays.

    layout: instead, files of a published layout of FLUX.2 (`models.flux2_layouts.LAYOUTS`), of
    tensors of dtype, for the tools that read it.

    The manifest (`train.exported`) is also in the header of weights.safetensors. The files are read
    back and compared with it before the folder gets its name, or its manifest where it is in a
    bucket: a folder with a manifest is complete.

    adapter: the weights alone that the run trained, low-rank updates apart.
    license: of the weights, as the hub names it; by default that of an export.

    The card is README.md (`card`); published layouts have none.

    Raises UserError if `out` exists, the weights cannot be read, or `out` cannot be written.
    What a killed export left in a bucket is replaced.
    """
    check_out(out)
    card.check_license(license)
    weights = (_trained if adapter else _merged)(source)
    if license:
        weights.known["license"] = license
    if layout:
        layouts.layout_of(weights.config, layout)  # raises before anything is written

    def write(folder: Path) -> JsonObject:
        if layout:
            entries = layouts.write(folder, weights.config, weights.params, layout, np.dtype(dtype))
            return make_manifest(weights.config, layout, entries, **weights.known)
        manifest = _write(folder, weights, kind, adapter=adapter)
        write_file(folder / card.FILE, card.render(manifest))
        return manifest

    return write_folder(out, write)


def check_out(out: Path) -> None:
    """Raises UserError unless an export can be written to `out`."""
    if (paths.exists(out) or out.is_symlink()) and not _is_cut_off(out):
        raise UserError("already exists", where=out, hint="name a folder that does not")
    check_folder(out, "--out", utf8=True)


def write_folder(out: Path, write: Callable[[Path], JsonObject]) -> Path:
    """Makes the folder of an export: all of it, or nothing.

    write: writes the files into a folder and returns the manifest.
    """
    out = out.absolute()
    # In a bucket, which has no renaming, the manifest comes last and makes the folder complete.
    unfinished = out if paths.is_address(out) else out.with_name(f".{out.name}.unfinished")
    paths.remove_tree(unfinished)
    done = False
    try:
        paths.make_folder(unfinished)
        if unfinished == out:
            write_file(out / UNFINISHED, "The weights in this folder are being written.\n")
        manifest = write(unfinished)
        write_file(unfinished / MANIFEST, json.dumps(manifest, indent=1))
        if unfinished != out:
            unfinished.rename(out)
        done = True
        paths.remove(out / UNFINISHED)
    except Exception as error:  # a full disk comes through several types of Orbax and safetensors
        if isinstance(error, UserError) or paths.cause(error) is None:
            raise
        raise paths.os_error(error, out, "written") from error
    finally:
        if not done:
            _remove_for_good(unfinished)
    return out


def _remove_for_good(folder: Path) -> None:
    """Removes a folder into which Orbax's threads may still write for a moment after an error."""
    for _ in range(_REMOVALS):
        paths.remove_tree(folder)
        time.sleep(_LATE_WRITES)
        if not paths.exists(folder):
            return


def _merged(source: str | Path) -> _Weights:
    """Returns all weights of a checkpoint, an export or a release."""
    found = open_weights(source)
    config, params = found.load()
    _, shapes = abstract_model(config, base.build(config))
    merge_params(params, shapes, where=source)  # raises where they do not fit
    known = {"license": license_of(found), "training": card.facts(found, config, params)}
    return _Weights(config, params, known)


def _trained(source: str | Path) -> _Weights:
    """Returns the config of a run and the weights that it trained, of which there are others."""
    found = open_weights(source)
    if not isinstance(found, Step):
        what = "is no run: --adapter writes what a run trained"
        raise UserError(what, where=source, hint="leave --adapter out")
    config, trained, frozen = checkpoint.load_unmerged(found.where)
    if not frozen:
        hint = "export without --adapter"
        raise UserError("trained all its weights: there is no adapter", where=source, hint=hint)
    return _Weights(
        config, trained, {"license": "", "training": card.facts(found, config, trained)}
    )


def license_of(found: object) -> str:
    """Returns the license that the manifest of an export names; "" of anything else."""
    return str(found.manifest.get("license", "")) if isinstance(found, Export) else ""


def _is_cut_off(out: Path) -> bool:
    """Returns whether a killed export began to write a folder in place."""
    marked = paths.is_address(out) and paths.exists(out / UNFINISHED)
    return marked and not paths.exists(out / MANIFEST)


def make_manifest(
    config: Config, kind: str, entries: Mapping[str, layouts.Entry], **more: object
) -> JsonObject:
    """Returns the manifest of an export of a kind. more: what else it has, unless it is empty."""
    return {
        "format": f"modality_forcing {__version__}, {kind}",
        "version": exported.VERSION,
        "config": to_dict(config),
        **{name: value for name, value in more.items() if value},
        "weights": dict(sorted(entries.items())),
    }


def _write(folder: Path, weights: _Weights, kind: str, *, adapter: bool) -> JsonObject:
    """Writes all weights and reads them back; returns the manifest."""
    flat = {path: np.asarray(leaf) for path, leaf in leaves(weights.params).items()}
    entries = {path: exported.describe(leaf) for path, leaf in flat.items()}
    manifest = make_manifest(weights.config, kind, entries, adapter=adapter, **weights.known)
    path = (_write_orbax if kind == ORBAX else exported.write_safetensors)(folder, flat, manifest)
    try:
        with fetched(path) as local:
            Export(folder, local, manifest, weights.config).verify()
    except UserError as error:
        if paths.cause(error) is not None:
            raise
        what = f"what was written does not read back ({error})"
        raise UserError(what, hint="check the disk") from error
    return manifest


def _write_orbax(folder: Path, flat: Mapping[str, np.ndarray], manifest: JsonObject) -> Path:
    with checkpoint.suppress_secondary_errors(), ocp.StandardCheckpointer() as writer:
        writer.save(folder / exported.FOLDER, unflatten(flat))
    return folder / exported.FOLDER
