"""What a run does about a spike: a loss far above the last ones, or one that is not finite.

`train.on_spike` is one of

- "stop": the run ends; its last checkpoint is from before the spike.
- "skip": the update is left out, on the devices, and the run continues.
- "rollback": the run continues from its last checkpoint, with the batches after the one that spiked
  (as in PaLM: Chowdhery et al. 2022, arXiv 2204.02311, section 5.1).

What is a spike depends on the losses before it alone, so that it is the same in a resumed run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from modality_forcing import paths
from modality_forcing.config import TrainConfig
from modality_forcing.text_io import parse_object, read_lines

SPIKE = "spike"  # the metric: 1 where a step is one
FILE = "spikes.jsonl"  # in the workdir: a line for each spike
_DECAY = 0.98  # of the running mean and variance of the loss: 50 steps
_FIRST = 50  # steps whose losses are never too high: the mean is not known yet


class SpikeState(NamedTuple):
    """The state of an optimizer that watches the loss."""

    inner: PyTree  # of the optimizer itself
    mean: Float[Array, ""]  # running, of the losses that are no spikes
    variance: Float[Array, ""]
    count: Int[Array, ""]  # of those losses


class Spike(Exception):
    """A step whose loss is a spike.

    Attributes:
      step: the number of updates after it.
      values: the metrics of that step that say so.
    """

    def __init__(self, step: int, values: Mapping[str, float]):
        not_finite = [name for name, value in values.items() if not math.isfinite(value)]
        what = f"{', '.join(not_finite)} not finite"
        if not not_finite:
            what = ", ".join(f"{name} {value:g}" for name, value in values.items())
            what += " far above the last ones"
        super().__init__(what)
        self.step, self.values = step, values


def watches(c: TrainConfig) -> bool:
    """Returns whether the optimizer of a run watches the loss."""
    return c.on_spike == "skip" or c.spike_deviations > 0


def watch(inner: optax.GradientTransformation, c: TrainConfig) -> optax.GradientTransformation:
    """Returns the optimizer, which finds spikes and, with "skip", leaves their updates out.

    A spike is a loss or a gradient norm that is not finite, or a loss more than
    train.spike_deviations standard deviations above the running mean. Only the latter needs a state
    of its own, `SpikeState`.
    """

    def init(params: PyTree) -> PyTree:
        if not c.spike_deviations:
            return inner.init(params)
        zero = jnp.zeros((), jnp.float32)
        return SpikeState(inner.init(params), zero, zero, jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree = None,
        *,
        loss: Float[Array, ""],
        grad_norm: Float[Array, ""],
    ) -> tuple[PyTree, PyTree]:
        spike = is_spike(state, loss, grad_norm, c.spike_deviations)
        before = state.inner if c.spike_deviations else state
        new, after = inner.update(updates, before, params)
        if c.on_spike == "skip":
            new = _where(spike, jax.tree.map(jnp.zeros_like, new), new)
            after = _where(spike, before, after)
        if not c.spike_deviations:
            return new, after
        # The first loss starts the mean; later ones move it.
        weight = jnp.maximum(1.0 - _DECAY, 1.0 / (state.count + 1.0))
        off = loss - state.mean
        variance = (1.0 - weight) * (state.variance + weight * off**2)
        seen = (state.mean + weight * off, variance, state.count + 1)
        return new, SpikeState(after, *_where(spike, tuple(state[1:]), seen))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def _where(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def is_spike(
    state: PyTree, loss: Float[Array, ""], grad_norm: Float[Array, ""], deviations: float
) -> Bool[Array, ""]:
    """Returns whether a step is a spike, given the losses before it, in the optimizer's state."""
    spike = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    if deviations:
        limit = state.mean + deviations * jnp.sqrt(state.variance)
        spike |= (state.count >= _FIRST) & (loss > limit)
    return spike


class SpikeRecord(NamedTuple):
    """A line of `spikes.jsonl`."""

    step: int  # updates after it
    action: str  # train.on_spike
    batch: int  # the number of the batch in the stream
    values: Mapping[str, float | str]  # metrics of the step; numbers that are not finite as text
    records: Mapping[str, Sequence[int]]  # the numbers of the batch's records, by source


def read(workdir: Path) -> list[SpikeRecord]:
    """Returns the spikes of a run so far, without a last line that a kill cut short.

    Raises UserError for any other line that is none.
    """
    path = workdir / FILE
    return read_lines(path, _record, "is not a spike") if paths.exists(path) else []


def _record(line: str) -> SpikeRecord:
    """Returns the spike of a line; raises ValueError if it is none."""
    content = parse_object(line)
    if set(content) != set(SpikeRecord._fields):
        raise ValueError(f"its keys are not {', '.join(SpikeRecord._fields)}")
    spike = SpikeRecord(**content)
    numbers, objects = (spike.step, spike.batch), (spike.values, spike.records)
    if not all(type(n) is int for n in numbers) or not all(isinstance(o, dict) for o in objects):
        raise ValueError("step and batch are whole numbers, values and records objects")
    return spike


def append(workdir: Path, spike: SpikeRecord) -> None:
    """Adds a spike to a run's list, unless it is there already."""
    known = read(workdir)
    if spike[:3] in [s[:3] for s in known]:  # the same step, action and batch
        return
    lines = [json.dumps(s._asdict()) + "\n" for s in (*known, spike)]
    paths.write_file(workdir / FILE, "".join(lines))
