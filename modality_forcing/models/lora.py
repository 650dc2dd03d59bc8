"""Low-rank updates of block matrices (LoRA: Hu et al. 2021, arXiv 2106.09685).

A matrix w of a stack of blocks acts as w + scale * a @ b, with a [in, rank] and b [rank, out]. They
stay apart while they train, as weights `.../lora/q/a` and `.../lora/q/b` beside `.../q`, so that no
gradient of w is needed; `merge` adds them up. b starts at zero: the first step sees w alone.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from modality_forcing.errors import UserError
from modality_forcing.models.layers import Adapted
from modality_forcing.tree import Tree, flatten, unflatten

LORA = "lora"  # the module of a block that holds the updates of its matrices


class LowRank(nnx.Module):
    """The update of one matrix in each layer of a stack."""

    def __init__(self, shape: tuple[int, ...], rank: int, scale: float, *, rngs: nnx.Rngs):
        *layers, inputs, outputs = shape
        if rank > min(inputs, outputs):
            what = f"train.lora_rank {rank} is above the {min(inputs, outputs)} of a matrix"
            raise UserError(what, hint="take a smaller one: 4 to 64 are usual")
        a = jax.random.normal(rngs.params(), (*layers, inputs, rank), jnp.float32)
        self.a = nnx.Param(a * inputs**-0.5)
        self.b = nnx.Param(jnp.zeros((*layers, rank, outputs), jnp.float32))
        self.scale = scale


def attach(
    model: nnx.Module,
    rank: int,
    scale: float,
    targets: Collection[str],
    *,
    rngs: nnx.Rngs,
    without: tuple[str, ...] = (),
) -> None:
    """Gives the stacked matrices of these names a low-rank update.

    without: prefixes of paths of weights that get none.
    """
    # Sorted, so that the initial weights do not depend on the order in which a network is built.
    found = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    for path, owner in sorted(found.items()):
        if "layers" not in path.split("/") or f"{path}/".startswith(without):
            continue
        names = [name for name in targets if isinstance(getattr(owner, name, None), nnx.Param)]
        updates = {
            name: LowRank(getattr(owner, name)[...].shape, rank, scale, rngs=rngs)
            for name in sorted(names)
        }
        if updates:
            owner.lora = nnx.Dict(updates)  # pyright: ignore[reportAttributeAccessIssue]


def weight(owner: nnx.Module, name: str, *shape: int) -> Array | Adapted:
    """Returns a matrix of a block, with its update if it has one, for `sharded_einsum`.

    shape: splits the inputs of the matrix in two, or its outputs.
    """
    w = getattr(owner, name)[...]
    shape = shape or w.shape
    updates = getattr(owner, LORA, None)
    if updates is None or name not in updates:
        return w.reshape(shape)
    update, rank = updates[name], updates[name].a[...].shape[-1]
    a, b = update.a[...], update.b[...]
    if shape[0] == w.shape[0]:
        return Adapted(w.reshape(shape), a, b.reshape(rank, *shape[1:]), update.scale)
    return Adapted(w.reshape(shape), a.reshape(*shape[:-1], rank), b, update.scale)


def is_update(path: str) -> bool:
    """Returns whether a path is that of a low-rank update's weights."""
    return LORA in path.split("/")[:-2]


def split(params: Tree) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """Returns a network's weights without low-rank updates, and those updates."""
    flat = flatten(params)
    updates = {path: leaf for path, leaf in flat.items() if is_update(path)}
    base = {path: leaf for path, leaf in flat.items() if path not in updates}
    return unflatten(base), unflatten(updates)


def merge(params: Tree, scale: float) -> dict[str, PyTree]:
    """Returns a network's weights with their low-rank updates added, in float32.

    Each matrix keeps its sharding.
    """
    base, updates = map(flatten, split(params))
    for path in updates:
        owner, name, last = path.rsplit("/", 2)
        if last == "a":
            matrix = f"{owner.removesuffix(f'/{LORA}')}/{name}"
            w, b = base[matrix], updates[f"{owner}/{name}/b"]
            sharding = getattr(w, "sharding", None)
            add = jax.jit(partial(_add, scale=scale), out_shardings=sharding)
            base[matrix] = add(w, updates[path], b)
    return unflatten(base)


def _add(
    w: Float[Array, "*layers i o"],
    a: Float[Array, "*layers i r"],
    b: Float[Array, "*layers r o"],
    *,
    scale: float,
) -> Float[Array, "*layers i o"]:
    update = jnp.matmul(a, b, precision="highest", preferred_element_type=jnp.float32)
    return w.astype(jnp.float32) + scale * update
