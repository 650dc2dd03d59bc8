"""Config keys: unknown ones get a hint, and those of version 0.1 their present name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from modality_forcing.errors import UserError

# Keys of version 0.1 and their present names; `*` is any modality.
RENAMED = {
    "modalities.*.given": "cond_prob",
    "modalities.*.weight": "loss_weight",
    "modalities.*.detokenizer": "detokenizer_layers",
    "modalities.*.latents": "latent_channels",
    "modalities.*.noise.kind": "distribution",
    "modalities.*.noise.mu": "timestep_shift",
    "text.vocabulary": "vocab_size",
    "text.drop": "text_dropout",
    "model.ffn": "mlp_dim",
    "model.blocks": "num_layers",
    "data.count": "num_scenes",
    "data.sparse": "sparsity_patterns",
    "data.crop": "min_crop",
    "data.shift": "crop_jitter",
    "data.flip": "flip_prob",
    "data.unit": "depth_unit",
    "train.accumulate": "grad_accum_steps",
    "train.warmup": "warmup_fraction",
    "train.decay": "decay_fraction",
    "train.clip": "grad_clip_norm",
    "train.ema": "ema_decay",
    "train.init": "init_from",
    "train.branch": "branch_from",
    "train.new": "allow_missing_modalities",
    "train.keep": "max_to_keep",
    "train.save_at": "keep_at_steps",
    "sample.mu": "timestep_shift",
}


def renamed_key(key: str) -> str:
    """Returns "train.init is now train.init_from" for a key of version 0.1; else ""."""
    parts = key.split(".")
    for n in range(2, len(parts) + 1):
        generic = ["modalities", "*", *parts[2:n]] if parts[0] == "modalities" else parts[:n]
        if new := RENAMED.get(".".join(generic)):
            return f"{'.'.join(parts[:n])} is now {'.'.join([*parts[: n - 1], new])}"
    return ""


def unknown_key(key: str, path: str, known: Iterable[str]) -> UserError:
    """Returns the error for a dotted key that is not among the names known below `path`.

    path: "train.", or "". The hint is the key's present name, the nearest name, or all of them.
    """
    names = list(known)
    near = difflib.get_close_matches(key.removeprefix(path).partition(".")[0], names, n=1)
    if renamed := renamed_key(key):
        hint = renamed
    elif near:
        hint = f"did you mean {path}{near[0]}?"
    else:
        hint = f"known here: {', '.join(names) or 'nothing below this'}"
    return UserError(f"unknown config key {key!r}", hint=hint)
