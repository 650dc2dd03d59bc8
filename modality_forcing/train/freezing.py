"""Which weights of a run do not train (`train.freeze`), and how they are kept.

Frozen weights are a tree of their own beside the trained ones. No gradient of them is computed,
and they have no moments, no weight decay and no EMA copy: their average is themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from modality_forcing.config import TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.tree import flatten, unflatten

Params = dict[str, PyTree]  # nested dicts of arrays, by the network's attribute names


def frozen_paths(params: Params, c: TrainConfig) -> set[str]:
    """Returns the paths of the weights that train.freeze names: modules, weights, or patterns.

    Raises UserError for a name that matches nothing, and if nothing is left to train.
    """
    # A network of one modality has modules without weights.
    paths = {path for path, leaf in flatten(params).items() if not isinstance(leaf, Mapping)}
    frozen: set[str] = set()
    for name in c.freeze:
        module = name.strip("/")
        found = {p for p in paths if fnmatchcase(p, module) or fnmatchcase(p, f"{module}/*")}
        if not found:
            hint = f"the modules are {', '.join(_modules(paths))}"
            raise UserError(f"train.freeze names {name!r}, which is no weight here", hint=hint)
        frozen |= found
    if frozen and len(frozen) == len(paths):
        raise UserError("train.freeze names every weight", hint="leave something to train")
    return frozen


def _modules(paths: Collection[str]) -> list[str]:
    """Returns the modules of a network, of deep ones the outer two or a stack's own."""
    parents = {tuple(path.split("/")[:-1]) for path in paths}
    return sorted({"/".join(names[: 4 if "layers" in names else 2]) for names in parents})


def split_params(params: Params, c: TrainConfig) -> tuple[Params, Params]:
    """Returns the weights that train, and the frozen ones as they are stored."""
    if not c.freeze:
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
