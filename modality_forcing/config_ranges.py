"""Ranges of a config's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from modality_forcing.errors import UserError
from modality_forcing.tree import Tree, flatten

# Ranges of numbers, by keys, their last parts or the mapping they are in. NaN is in none. All other
# floats are finite, and all other integers count something of which there must be at least one.
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("above 0", lambda x: 0 < x < math.inf, "learning_rate grad_clip_norm rope_theta sigma"),
    (
        "at least 0",
        lambda x: 0 <= x < math.inf,
        "loss_weight weight_decay distill_high distill_low spike_deviations depth_scale depth_max "
        "seed workers base_width vocab_size position_id detokenizer_layers latent_channels "
        "eval.every save_every_minutes lora_rank lora_alpha double_layers embedded_guidance",
    ),
    ("from 0 to 100", lambda x: 0 <= x <= 100, "condition_guidance"),
    (
        "from 0 to 1",
        lambda x: 0 <= x <= 1,
        "cond_prob cond_prob_with text_dropout warmup_fraction decay_fraction crop_jitter "
        "flip_prob",
    ),
    ("at least 0 and below 1", lambda x: 0 <= x < 1, "b1 b2 ema_decay"),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, "t_min min_crop"),
    ("above 0 and at most 0.05", lambda x: 0 < x <= 0.05, "sample.t_min"),
    ("from -16 to 16", lambda x: -16 <= x <= 16, "timestep_shift"),
    ("from -64 to 64", lambda x: -64 <= x <= 64, "log2_alpha"),
    ("from 1 to 10000", lambda x: 1 <= x <= 10_000, "sample.steps task_steps"),
)
_RANGE_OF = {key: (text, holds) for text, holds, keys in _RANGES for key in keys.split()}
_MAY_BE_REST = ("mesh.data", "mesh.fsdp")  # -1 takes the devices that are left


def check_numbers(tree: Tree) -> None:
    """Raises UserError for a number of a nested config that is out of its range."""
    for path, value in flatten(tree, ".").items():
        if isinstance(value, Mapping):
            continue  # an empty one
        *parents, key = path.split(".")
        if limits := [_RANGE_OF[k] for k in (path, key, *parents[-1:]) if k in _RANGE_OF]:
            text, holds = limits[0]
            if not holds(value):
                raise UserError(f"{path} is {value}", hint=f"it must be {text}")
        elif type(value) is int and value < 1 and not (path in _MAY_BE_REST and value == -1):
            raise UserError(f"{path} is {value}", hint="it must be at least 1")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path} is {value}", hint="it must be a finite number")
