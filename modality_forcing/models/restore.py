"""Weight surgery: from a text-to-image checkpoint to a model of more modalities, with an explicit list of what may be new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modality_forcing.errors import UserError
from modality_forcing.tree import flatten, unflatten


def new_modules(params: Mapping[str, Any], modality: str) -> tuple[str, ...]:
    """Returns the path prefixes of the modules that exist for one modality alone: the allow-list of its surgery.

    They are its tokenizer, level embedder, head (with its detokenizer) and the mixers that it speaks or listens through.
    """
    own = tuple(f"{module}/{modality}/" for module in ("tokenizer", "level", "head"))
    mixers = (
        f"{m}/{pair}/"
        for m in ("mixer", "mixing")
        for pair in params.get(m, {})
        if modality in pair.split("_from_")
    )
    return own + tuple(mixers)


def graft(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    new: tuple[str, ...] = (),
    where: object = None,
) -> Any:
    """Returns the target's tree with the source's leaves, keeping the target's own under the modules of `new` modalities.

    Every other leaf must be in both with the same shape. Raises UserError naming the paths that are missing, extra or
    misshaped; nothing is ever filled in silently.
    """
    allowed = tuple(prefix for modality in new for prefix in new_modules(target, modality))
    have, want = flatten(source), flatten(target)
    is_new = {path for path in want if f"{path}/".startswith(allowed)} if allowed else set()
    missing = sorted(set(want) - set(have) - is_new)
    extra = sorted(set(have) - set(want))
    misshaped = [
        f"{path} {tuple(have[path].shape)} instead of {tuple(want[path].shape)}"
        for path in sorted(set(have) & set(want))
        if have[path].shape != want[path].shape
    ]
    problems = {"missing": missing, "extra": extra, "misshaped": misshaped}
    if any(problems.values()):
        told = "; ".join(f"{kind}: {_some(paths)}" for kind, paths in problems.items() if paths)
        hint = "use a checkpoint of this config, or name the new modalities in train.allow_missing_modalities"
        raise UserError(f"the weights do not fit ({told})", where=where, hint=hint)
    return unflatten({path: have.get(path, leaf) for path, leaf in want.items()})


def _some(paths: list[str], most: int = 4) -> str:
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")
