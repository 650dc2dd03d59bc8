"""Which weights of a run do not train (`train.freeze`), and how they are kept.

Frozen weights are a tree of their own beside the trained ones. No gradient of them is computed,
and they have no moments, no weight decay and no EMA copy: their average is themselves.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from modality_forcing.config import TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.models import lora
from modality_forcing.models.restore import new_modules
from modality_forcing.tree import flatten, leaves, unflatten

Params = dict[str, PyTree]  # nested dicts of arrays, by the network's attribute names


def frozen_paths(params: Params, c: TrainConfig) -> set[str]:
    """Returns the paths of the weights that do not train.

    These are those that train.freeze names: modules, weights, or patterns. With train.lora_rank,
    also all but low-rank updates and the modules of train.allow_missing_modalities.

    Raises UserError for a name that matches nothing, and if nothing is left to train.
    """
    # A network of one modality has modules without weights.
    paths = set(leaves(params))
    frozen: set[str] = set()
    if c.lora_rank:
        new = new_prefixes(params, c)
        frozen = {p for p in paths if not lora.is_update(p) and not f"{p}/".startswith(new)}
    for name in c.freeze:
        module = name.strip("/")
        found = {p for p in paths if fnmatchcase(p, module) or fnmatchcase(p, f"{module}/*")}
        if not found:
            hint = f"the modules are {', '.join(_modules(paths))}"
            raise UserError(f"train.freeze: no weight matches {name!r}", hint=hint)
        frozen |= found
    if frozen and len(frozen) == len(paths):
        raise UserError("train.freeze names every weight", hint="leave something to train")
    return frozen


def has_frozen(c: TrainConfig) -> bool:
    """Returns whether some weights of a run do not train."""
    return bool(c.freeze or c.lora_rank)


def new_prefixes(params: Params, c: TrainConfig) -> tuple[str, ...]:
    """Returns the prefixes of the weights of the modalities in train.allow_missing_modalities."""
    return tuple(p for name in c.allow_missing_modalities for p in new_modules(params, name))


def _modules(paths: Collection[str]) -> list[str]:
    """Returns the modules of a network, of deep ones the outer two or a stack's own."""
    parents = {tuple(path.split("/")[:-1] or [path]) for path in paths}
    return sorted({"/".join(names[: 4 if "layers" in names else 2]) for names in parents})


def split_params(params: Params, c: TrainConfig) -> tuple[Params, Params]:
    """Returns the weights that train, and the frozen ones as they are stored."""
    if not has_frozen(c):
        return params, {}
    frozen, flat = frozen_paths(params, c), flatten(params)
    kept = {path: leaf for path, leaf in flat.items() if path in frozen}
    rest = {path: leaf for path, leaf in flat.items() if path not in frozen}
    return unflatten(rest), to_frozen_dtype(unflatten(kept), c)


def to_frozen_dtype(params: Params, c: TrainConfig) -> Params:
    """Returns weights with matrices in train.frozen_dtype; vectors stay as they are.

    The network casts matrices when it uses them. A vector it may multiply by a constant first.
    """
    dtype = jnp.dtype(c.frozen_dtype)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(dtype) if is_matrix(path, x) else x, params
    )


def is_matrix(path: PyTree, leaf: PyTree) -> bool:
    """Returns whether a weight is a matrix; a stack of layers has one more axis."""
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    return leaf.ndim - ("layers" in names) >= 2


def join_params(trained: Params, frozen: Params) -> Params:
    """Returns all weights of a network; inverts `split_params`."""
    return unflatten({**flatten(trained), **flatten(frozen)}) if frozen else trained


class Teacher(NamedTuple):
    """The network that a run distills from."""

    graph: nnx.GraphDef
    params: Params  # its own
    shared: tuple[str, ...] = ()  # paths of the others: frozen weights of the student

    def all_params(self, params: Params, frozen: Params) -> Params:
        """Returns all its weights, from its own and the student's frozen ones."""
        flat = flatten(frozen)
        return join_params(params, unflatten({path: flat[path] for path in self.shared}))


def make_teacher(graph: nnx.GraphDef, params: Params, frozen: Params) -> Teacher:
    """Returns the teacher of a run whose frozen weights come from the same checkpoint."""
    shared = tuple(sorted(flatten(params).keys() & flatten(frozen).keys()))
    own = {path: leaf for path, leaf in flatten(params).items() if path not in shared}
    return Teacher(graph, unflatten(own), shared)
