"""Metrics of the train step: how they are computed in it, and how those of many steps become a row.

The step computes sums and counts, so that examples have equal weight in a row: a mean of means
would not give them that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from modality_forcing.models.layout import constrain

BUCKETS = 5  # of noise levels: 0 to 0.2 and so on; t = 0 is clean, t = 1 is noise
BY_LEVEL = "_by_level"  # suffix of the metrics that are a [2, BUCKETS] array of sums and counts
Sums = dict[str, tuple[Float[Array, "..."], Float[Array, "..."]]]  # a metric's sum and its divisor
Metrics = dict[str, Float[Array, "..."]]
Values = Mapping[str, float | list[list[float]]]  # metrics of one step as JSON


def sum_by_level(
    loss: Float[Array, " b"], t: Float[Array, " b"], counted: Bool[Array, " b"]
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Returns the sum of losses in each bucket of noise levels, and the number of its examples."""
    bucket = jnp.clip((t * BUCKETS).astype(jnp.int32), 0, BUCKETS - 1)  # t = 1 is in the last
    chosen = (bucket[:, None] == jnp.arange(BUCKETS)) & counted[:, None]  # [b k]
    sums = jnp.sum(jnp.where(chosen, loss[:, None], 0.0), axis=0)
    return sums, jnp.sum(chosen, axis=0, dtype=jnp.float32)


def normalize_metrics(sums: Sums) -> Metrics:
    """Returns each metric's sum divided by its count, 0 where the count is 0.

    Arrays by noise level stay sums and counts: [2 k].
    """

    def normalize(name: str, total: Array, count: Array) -> Array:
        if name.endswith(BY_LEVEL):
            return constrain(jnp.stack([total, count]), "mk")  # every process reads all of it
        return total / jnp.maximum(count, 1.0)

    return {name: normalize(name, *pair) for name, pair in sums.items()}


def norms(name: str, tree: PyTree) -> Metrics:
    """Returns the L2 norm of gradients or updates, of all weights and of each group."""
    groups: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        groups.setdefault(norm_group(tuple(key.key for key in path)), []).append(leaf)
    # The squares of a leaf are the same expression in both norms, so that they are computed once.
    of_groups = {f"{name}/{group}": optax.tree.norm(leaves) for group, leaves in groups.items()}
    return {name: optax.tree.norm(tree), **of_groups}


def norm_group(path: tuple[str, ...]) -> str:
    """Returns the group of a weight, by its path in the network.

    "blocks": the trunk's blocks. "head_<modality>": a modality's detokenizer and head. "embed": the
    rest: tokenizers, text, noise levels, modulation of the trunk.
    """
    match path:
        case ("trunk", *_):
            return "blocks"
        case ("head", modality, *_):
            return f"head_{modality}"
    return "embed"


def to_values(metrics: Sequence[Metrics | Values]) -> list[Values]:
    """Returns the metrics of steps, on devices or JSON already, as JSON."""
    rows = jax.device_get(list(metrics))
    return [{name: np.asarray(v, np.float64).tolist() for name, v in row.items()} for row in rows]


def summarize(rows: Sequence[Values]) -> dict[str, float]:
    """Returns one row for the metrics of several steps.

    A loss of a modality, also in a bucket of noise levels, is the mean over all examples of these
    steps that have a target there; a bucket without any is left out. Everything else is the mean
    over the steps. Steps that an earlier version logged may lack some metrics.
    """
    row: dict[str, float] = {}
    for name in dict.fromkeys(name for values in rows for name in values):
        found = [values[name] for values in rows if name in values]
        if not name.endswith(BY_LEVEL):
            row[name] = float(np.mean(found))
            continue
        loss = name.removesuffix(BY_LEVEL)
        sums, counts = np.sum(found, axis=0)  # [k] each
        if len(found) == len(rows):
            row[loss] = float(np.sum(sums) / max(np.sum(counts), 1.0))
        for i in np.flatnonzero(counts):
            row[f"{loss}/t{i / BUCKETS:.1f}-{(i + 1) / BUCKETS:.1f}"] = float(sums[i] / counts[i])
    return row
