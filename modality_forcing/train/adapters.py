"""Adapters: the trained weights of a run alone, on top of the network that it started from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from modality_forcing import paths
from modality_forcing.config import Config, from_dict
from modality_forcing.errors import UserError
from modality_forcing.models import lora
from modality_forcing.text_io import read_object
from modality_forcing.train.checkpoint import without_lora
from modality_forcing.train.freezing import Params, join_params
from modality_forcing.tree import flatten, unflatten

MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
_HINT = "name a folder that mforce export --adapter wrote"
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file by name; its own reader has no bfloat16."""
    from safetensors import deserialize

    return {
        name: np.frombuffer(bytes(tensor["data"]), _DTYPES[tensor["dtype"]]).reshape(
            tensor["shape"]
        )
        for name, tensor in deserialize(paths.read_bytes(path))
    }


def read_adapter(folder: Path) -> tuple[Config, Params]:
    """Returns the config of the run that an adapter is from, and its weights.

    Raises UserError for a folder that is none, or damaged.
    """
    manifest = read_object(folder / MANIFEST, what="is no adapter's manifest", hint=_HINT)
    if manifest.get("adapter") is not True:
        raise UserError("is not an adapter", where=folder, hint=_HINT)
    damaged = UserError("is damaged", where=folder / WEIGHTS, hint="export it again")
    try:
        weights = read_safetensors(folder / WEIGHTS)
        listed = {path: entry["sha256"] for path, entry in manifest["weights"].items()}
        config = from_dict(manifest["config"])
    except UserError:
        raise
    except Exception as error:  # of safetensors, and of odd JSON
        if paths.is_environment_error(error):
            raise paths.os_error(error, folder / WEIGHTS, "read") from error
        raise damaged from error
    if listed != {path: hashlib.sha256(x.tobytes()).hexdigest() for path, x in weights.items()}:
        raise damaged
    return config, unflatten({path: jnp.asarray(x) for path, x in weights.items()})


def apply_adapter(folder: Path, base: Params) -> tuple[Config, Params]:
    """Returns the network of a run from its adapter and the weights that it started from.

    Low-rank updates are merged. Raises UserError as `read_adapter`, and where they do not fit.
    """
    config, weights = read_adapter(folder)
    flat, new = flatten(base), flatten(weights)
    for path in filter(lora.is_update, new):
        owner, name, part = path.rsplit("/", 2)
        matrix = flat.get(f"{owner.removesuffix(f'/{lora.LORA}')}/{name}")
        shape, ours = getattr(matrix, "shape", ()), new[path].shape
        if (shape[:-1] if part == "a" else shape[-1:]) != (ours[:-1] if part == "a" else ours[-1:]):
            what = f"does not fit the network: {path} {tuple(ours)}"
            raise UserError(what, where=folder, hint="give the network that it was trained on")
    joined = join_params(base, weights)
    return without_lora(config), lora.merge(joined, config.train.lora_scale)
