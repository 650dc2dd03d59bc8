"""Classifier-free guidance by the text and by given modalities.

A condition is absent where its modality is at t = 1, which is what missing depth and generation
from nothing are in training: guidance by a modality needs no training of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tokens = dict[str, Float[Array, "b _ _"]]  # [b n c], with n and c of each modality
Times = dict[str, Float[Array, " b"]]
Text = Any  # a pytree of arrays with a leading b
Model = Callable[[Tokens, Times, Text], Mapping[str, Array]]
Weights = Mapping[str, float] | Sequence[tuple[str, float]]  # or its items, which can be hashed


@dataclass(frozen=True)
class Guidance:
    """Which evaluations of the network a step takes, and how their outputs are combined.

    With y the output given everything, the guided output of a free modality n is

        y_n + (s_n - 1) (y_n - y_n[no text]) + sum over conditions c of (w_c - 1) (y_n - y_n[no c])

    Each difference takes one condition away and keeps the others, so their order does not matter
    and k guided conditions take k more evaluations. It samples p(x | all) times, for each of them,
    p(condition | x, all others)^(w - 1), as far as a combination of velocities does. One scale and
    no conditions are classifier-free guidance (arXiv 2207.12598); compare the two scales of
    InstructPix2Pix (arXiv 2211.09800), whose differences take conditions away one after the other.

    A weight of 1 adds nothing. One of 0 makes its condition absent in all evaluations.

    Attributes:
      text: scale s of the text on each free modality; empty where all are 1.
      conditions: weight w of the conditions where it is neither 0 nor 1.
      absent: conditions of weight 0.
    """

    text: Mapping[str, float]
    conditions: Mapping[str, float]
    absent: frozenset[str]

    @property
    def evaluations(self) -> int:
        """Evaluations of the network for one velocity."""
        return 1 + bool(self.text) + len(self.conditions)

    def predict(
        self,
        model: Model,
        x_t: Tokens,
        t: Times,
        *,
        noise: Mapping[str, Array],
        text: Text,
        null_text: Text,
    ) -> Mapping[str, Array]:
        """Returns guided outputs, of one batch that holds all evaluations.

        The coefficients sum to 1, so guided x0 and guided velocities agree for t >= t_min.

        noise: what an absent condition is, for each example its own.
        """
        x_t, t = _without(x_t, t, noise, self.absent)
        inputs = [(x_t, t, text)]
        if self.text:
            inputs.append((x_t, t, null_text))
        inputs += [(*_without(x_t, t, noise, {name}), text) for name in self.conditions]
        if len(inputs) == 1:
            return model(*inputs[0])
        b = next(iter(t.values())).shape[0]
        starts = [i * b for i in range(len(inputs))]
        outputs = model(*jax.tree.map(lambda *parts: jnp.concatenate(parts), *inputs))
        return {n: self._combine(n, [y[i : i + b] for i in starts]) for n, y in outputs.items()}

    def _combine(self, name: str, parts: Sequence[Array]) -> Array:
        full, *rest = parts
        y = full
        if self.text:
            no_text, *rest = rest
            y = no_text + self.text.get(name, 1.0) * (full - no_text)
        for weight, without in zip(self.conditions.values(), rest, strict=True):
            y = y + (weight - 1.0) * (full - without)
        return y


def select(
    free: Sequence[str],
    cond: Sequence[str],
    guidance: Weights | None = None,
    condition_guidance: Weights | None = None,
) -> Guidance:
    """Returns the guidance of a task.

    guidance: scale of the text on a free modality's velocity. condition_guidance: weight of a
    condition for the velocities of all free modalities. Both are 1 where absent, and names of other
    modalities have no effect.
    """
    scales = {name: dict(guidance or ()).get(name, 1.0) for name in free}
    weights = {name: dict(condition_guidance or ()).get(name, 1.0) for name in cond}
    return Guidance(
        text=scales if any(scale != 1.0 for scale in scales.values()) else {},
        conditions={name: w for name, w in weights.items() if w not in (0.0, 1.0)},
        absent=frozenset(name for name, w in weights.items() if w == 0.0),
    )


def _without(
    x_t: Tokens, t: Times, noise: Mapping[str, Array], names: frozenset[str] | set[str]
) -> tuple[Tokens, Times]:
    """Returns inputs of the network with these modalities at t = 1."""
    return (
        {n: noise[n] if n in names else x for n, x in x_t.items()},
        {n: jnp.ones_like(level) if n in names else level for n, level in t.items()},
    )
