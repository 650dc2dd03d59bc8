"""Weights of a checkpoint in a model of more modalities, of which the new ones are listed."""

from __future__ import annotations

from jaxtyping import PyTree

from modality_forcing.errors import UserError
from modality_forcing.text_io import list_some
from modality_forcing.tree import Tree, flatten, leaves, unflatten

# Modules that each modality has; those of models/flux2.py below.
_OWN = (
    *("tokenizer", "level_embedder", "head"),
    *("modulation", "single_modulation", "double/layers"),
)
_CROSS = ("level_embedder_cross", "level_gate_cross")  # modules of a pair, A_from_B


def new_modules(params: Tree, modality: str) -> tuple[str, ...]:
    """Returns the path prefixes of the modules that exist for one modality only.

    These are its tokenizer, its noise level's embedder, its head (with the detokenizer), the cross
    embedders from or to it, and its own part of blocks and of their modulation.
    """
    own = [f"{module}/{modality}/" for module in _OWN]
    pairs = [(module, pair) for module in _CROSS for pair in params.get(module, {})]
    cross = [f"{module}/{pair}/" for module, pair in pairs if modality in pair.split("_from_")]
    return (*own, *cross)


def merge_params(
    source: Tree, target: Tree, new: tuple[str, ...] = (), where: object = None
) -> dict[str, PyTree]:
    """Returns the target's tree with the source's leaves.

    Modules of the `new` modalities keep the target's leaves if the source lacks them. Every other
    leaf must be in both with the same shape: nothing is filled in silently. Files drop mappings
    without leaves; the target's stay.

    Raises UserError naming the paths that are missing, extra or misshaped.
    """
    allowed = tuple(prefix for modality in new for prefix in new_modules(target, modality))
    have, want = leaves(source), leaves(target)
    is_new = {path for path in want if f"{path}/".startswith(allowed)} if allowed else set()
    problems = {
        "missing": sorted(set(want) - set(have) - is_new),
        "extra": sorted(set(have) - set(want)),
        "misshaped": [
            f"{path} {tuple(have[path].shape)} instead of {tuple(want[path].shape)}"
            for path in sorted(set(have) & set(want))
            if have[path].shape != want[path].shape
        ],
    }
    if any(problems.values()):
        what = "; ".join(f"{kind}: {list_some(paths)}" for kind, paths in problems.items() if paths)
        hint = "use a checkpoint of this config, or name the new modalities in "
        hint += "train.allow_missing_modalities"
        if problems["misshaped"]:
            hint = "use a checkpoint of this size, or a config with the sizes of the checkpoint"
        raise UserError(f"the weights do not fit ({what})", where=where, hint=hint)
    return unflatten({path: have.get(path, leaf) for path, leaf in flatten(target).items()})
