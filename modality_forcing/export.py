"""Export of the EMA weights alone, with a manifest, for use without this package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from modality_forcing import __version__, export_layouts, paths
from modality_forcing.config import Config, to_dict
from modality_forcing.errors import UserError
from modality_forcing.generator import load_weights
from modality_forcing.mirror import staged
from modality_forcing.modalities import base
from modality_forcing.models.restore import merge_params
from modality_forcing.paths import check_folder, write_file
from modality_forcing.train import checkpoint
from modality_forcing.train.adapters import MANIFEST, WEIGHTS, read_safetensors
from modality_forcing.train.state import Params, abstract_model
from modality_forcing.tree import flatten, unflatten

_MARK = "unfinished.txt"  # in a folder of a bucket, until it has its manifest


def export(
    source: Path,
    out: Path,
    kind: str = "orbax",
    *,
    layout: str = "",
    dtype: str = "bfloat16",
    adapter: bool = False,
) -> Path:
    """Writes `out/weights` (Orbax) or `out/weights.safetensors`, and `out/manifest.json`.

    layout: instead, files of a published layout of FLUX.2 (`models.flux2_layouts.LAYOUTS`), of
    tensors of dtype, for the tools that read it.

    The manifest holds the config and the path, shape, dtype and sha256 of every weight. The files
    are read back and compared bit for bit before the folder gets its name, or its manifest where it
    is in a bucket: a folder with a manifest is complete.

    adapter: the weights alone that the run trained, low-rank updates apart.

    Raises UserError if `out` exists, the checkpoint cannot be read, or `out` cannot be written.
    What a killed export left in a bucket is replaced.
    """
    if (paths.exists(out) or out.is_symlink()) and not _is_cut_off(out):
        raise UserError("already exists", where=out, hint="name a folder that does not")
    check_folder(out, "--out", utf8=True)
    config, params = (_trained if adapter else _merged)(source)
    if layout:
        export_layouts.layout_of(config, layout)  # raises before anything is written
    out = out.absolute()
    # In a bucket, which knows no renaming, the manifest comes last and makes the folder complete.
    unfinished = out if paths.is_address(out) else out.with_name(f".{out.name}.unfinished")
    paths.remove_tree(unfinished)
    done = False
    try:
        paths.make_folder(unfinished)
        if unfinished == out:
            write_file(out / _MARK, "The weights in this folder are being written.\n")
        if layout:
            entries = export_layouts.write(unfinished, config, params, layout, np.dtype(dtype))
        else:
            entries = _write(unfinished, params, kind, out)
        manifest = {
            "format": f"modality_forcing {__version__}, {layout or kind}",
            "config": to_dict(config),
            **({"adapter": True} if adapter else {}),
            "weights": dict(sorted(entries.items())),
        }
        write_file(unfinished / MANIFEST, json.dumps(manifest, indent=1))
        if unfinished != out:
            unfinished.rename(out)
        done = True
        paths.remove(out / _MARK)
    except Exception as error:  # a full disk comes through several types of Orbax and safetensors
        if isinstance(error, UserError) or paths.cause(error) is None:
            raise
        raise paths.os_error(error, out, "written") from error
    finally:
        if not done:
            paths.remove_tree(unfinished)
    return out


def _merged(source: Path) -> tuple[Config, Params]:
    """Returns the config and all weights of a checkpoint."""
    config, params = load_weights(source)
    _, shapes = abstract_model(config, base.build(config))
    merge_params(params, shapes, where=source)  # raises where they do not fit
    return config, params


def _trained(source: Path) -> tuple[Config, Params]:
    """Returns the config of a run and the weights that it trained, of which there are others."""
    config, trained, frozen = checkpoint.load_unmerged(source)
    if not frozen:
        hint = "export without --adapter"
        raise UserError("trained all its weights: there is no adapter", where=source, hint=hint)
    return config, trained


def _is_cut_off(out: Path) -> bool:
    """Returns whether a killed export began to write a folder in place."""
    marked = paths.is_address(out) and paths.exists(out / _MARK)
    return marked and not paths.exists(out / MANIFEST)


def _write(folder: Path, params: Params, kind: str, out: Path) -> dict[str, object]:
    """Writes all weights and reads them back; returns the manifest's entries."""
    flat = {
        path: np.asarray(leaf)
        for path, leaf in flatten(params).items()
        if not isinstance(leaf, Mapping)
    }
    write, read = _FORMATS[kind]
    write(folder, flat)
    again = read(folder)
    changed = [p for p, x in flat.items() if p not in again or not np.array_equal(again[p], x)]
    if changed or set(again) != set(flat):
        what = f"what was written does not read back ({changed[:3]})"
        raise UserError(what, where=out, hint="check the disk")
    return {path: _entry(leaf) for path, leaf in flat.items()}


def _entry(leaf: np.ndarray) -> dict[str, object]:
    digest = hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sha256": digest}


def _write_orbax(folder: Path, flat: dict[str, np.ndarray]) -> None:
    with checkpoint.suppress_secondary_errors(), ocp.StandardCheckpointer() as writer:
        writer.save(folder / "weights", unflatten(flat))


def _read_orbax(folder: Path) -> dict[str, np.ndarray]:
    """Reads with Orbax alone, as users without this package do."""
    with ocp.StandardCheckpointer() as reader:
        return {
            path: np.asarray(jax.device_get(leaf))
            for path, leaf in flatten(reader.restore(folder / "weights")).items()
        }


def _write_safetensors(folder: Path, flat: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    # Not ascontiguousarray, which turns a scalar into a vector.
    arrays = {path: np.asarray(leaf, order="C") for path, leaf in flat.items()}
    with staged(folder) as local:
        save_file(arrays, local / WEIGHTS)


def _read_safetensors(folder: Path) -> dict[str, np.ndarray]:
    return read_safetensors(folder / WEIGHTS)


_FORMATS = {
    "orbax": (_write_orbax, _read_orbax),
    "safetensors": (_write_safetensors, _read_safetensors),
}
