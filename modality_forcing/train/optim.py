"""The optimiser: AdamW with warm-up, clipping, and weight decay on matrices only; EMA of the weights."""

from __future__ import annotations

import jax
import optax

from modality_forcing.config import TrainConfig


def schedule(c: TrainConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    "cosine" falls to a tenth; "wsd" stays, then cools down over the last `decay` share by 1 - sqrt (Hagele et al. 2024).
    """
    warmup = max(int(c.warmup * c.steps), 1)
    if c.schedule == "cosine":
        end = max(c.steps, warmup + 1)  # a run of one step has nowhere to fall
        return optax.warmup_cosine_decay_schedule(0.0, c.learning_rate, warmup, end, 0.1 * c.learning_rate)
    cooldown = max(int(c.decay * c.steps), 1)

    def wsd(step):
        rising = jax.numpy.minimum((step + 1) / warmup, 1.0)
        done = jax.numpy.clip((step - (c.steps - cooldown)) / cooldown, 0.0, 1.0)
        return c.learning_rate * rising * (1.0 - jax.numpy.sqrt(done) * 0.95)

    return wsd


def optimiser(c: TrainConfig) -> optax.GradientTransformation:
    """Returns the gradient transformation of a run."""
    return optax.chain(
        optax.clip_by_global_norm(c.clip),
        optax.adamw(schedule(c), b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mask=decayed),
    )


def decayed(params):
    """True for the leaves that weight decay acts on: matrices, stacked or not; vectors and scalars are left alone.

    A leaf of the scanned stack has a leading axis of layers, so its rank alone would call a stacked vector a matrix.
    """

    def is_matrix(path, leaf) -> bool:
        stacked = any(getattr(key, "key", getattr(key, "name", None)) == "layers" for key in path)
        return leaf.ndim - stacked >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)
