"""Adapters: the trained weights of a run alone, on top of the network that it started from."""

from __future__ import annotations

from pathlib import Path

from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.models import lora
from modality_forcing.train.checkpoint import without_lora
from modality_forcing.train.exported import open_export
from modality_forcing.train.freezing import Params, join_params
from modality_forcing.tree import flatten


def apply_adapter(where: str | Path, base: Params) -> tuple[Config, Params]:
    """Returns the network of a run from its adapter and the weights that it started from.

    Low-rank updates are merged. Raises UserError for an export that is no adapter or is damaged
    (`exported.open_export`), and where they do not fit.
    """
    config, weights = open_export(where, adapter=True).load()
    flat, new = flatten(base), flatten(weights)
    for path in filter(lora.is_update, new):
        owner, name, part = path.rsplit("/", 2)
        matrix = flat.get(f"{owner.removesuffix(f'/{lora.LORA}')}/{name}")
        shape, ours = getattr(matrix, "shape", ()), new[path].shape
        if (shape[:-1] if part == "a" else shape[-1:]) != (ours[:-1] if part == "a" else ours[-1:]):
            what = f"does not fit the network: {path} {tuple(ours)}"
            raise UserError(what, where=where, hint="give the network that it was trained on")
    joined = join_params(base, weights)
    return without_lora(config), lora.merge(joined, config.train.lora_scale)
