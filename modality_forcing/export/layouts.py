"""Exports in the layouts that others' tools read: Black Forest Labs', diffusers', the authors'."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jax.typing import DTypeLike

from modality_forcing.config import Config
from modality_forcing.encoders.weights import open_checkpoint
from modality_forcing.errors import UserError
from modality_forcing.mirror import staged
from modality_forcing.models import flux2_weights
from modality_forcing.models.flux2_layouts import DIFFUSERS, FORCING, LAYOUTS, Layout
from modality_forcing.paths import write_file
from modality_forcing.train import exported
from modality_forcing.train.state import Params
from modality_forcing.tree import JsonObject

Entry = Mapping[str, object]


def write(
    folder: Path, config: Config, params: Params, name: str, dtype: DTypeLike
) -> dict[str, Entry]:
    """Writes the weights and the config.json of a layout into a folder, and reads them back.

    Returns the shape, dtype and sha256 of each tensor. Raises UserError for a network that the
    layout cannot hold, and if what is read is not what was written.
    """
    layout = layout_of(config, name)
    entries: dict[str, Entry] = {}
    with staged(folder) as local:
        flux2_weights.save(params, local, layout, dtype)
        again = open_checkpoint(local)
        for tensor, _, content in flux2_weights.tensors(params, layout):
            array = np.ascontiguousarray(content().astype(dtype))
            read = again.read(tensor)
            if read.dtype != array.dtype or read.tobytes() != array.tobytes():
                what = f"what was written does not read back ({tensor})"
                raise UserError(what, where=folder, hint="check the disk")
            entries[tensor] = exported.describe(array)
        if described := describe(config, layout):
            write_file(local / "config.json", json.dumps(described, indent=2))
    return entries


def layout_of(config: Config, name: str) -> Layout:
    """Returns the layout of a name; UserError for one that has no tensors for such networks."""
    if config.model.family != "flux2":
        what = f"model.family is {config.model.family}: no published layout holds this network"
        raise UserError(what, hint="export it with --format")
    layout, has_depth = LAYOUTS[name], "depth" in config.modalities
    if (layout is FORCING) != has_depth:
        fits = FORCING.name if has_depth else "bfl or diffusers"
        with_depth = "has" if has_depth else "has no"
        what = f"the layout {name} does not hold a network that {with_depth} depth"
        raise UserError(what, hint=f"take --layout={fits}")
    return layout


def describe(config: Config, layout: Layout) -> JsonObject:
    """Returns the config.json that the layout's own code reads; {} if it reads none."""
    c = config.model
    if layout is FORCING:
        return {"variant": "flux_rgbd_9b_v2" if c.level_mixing else "flux_rgbd_9b_v1"}
    if layout is not DIFFUSERS:
        return {}
    (image,) = config.modalities.values()
    return {
        "_class_name": "Flux2Transformer2DModel",
        "patch_size": 1,
        "in_channels": image.latent_channels,
        "num_layers": c.double_layers,
        "num_single_layers": c.num_layers,
        "attention_head_dim": c.head_dim,
        "num_attention_heads": c.heads,
        "joint_attention_dim": config.text.channels,
        "timestep_guidance_channels": 256,
        "mlp_ratio": c.mlp_dim / c.width,
        "axes_dims_rope": [c.head_dim // 4] * 4,
        "rope_theta": int(c.rope_theta),
        "eps": 1e-6,
        "guidance_embeds": bool(c.embedded_guidance),
    }
