"""Looks at the metrics of every step before they are logged or their state is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from modality_forcing import distributed
from modality_forcing.config import TrainConfig
from modality_forcing.progress import print_stderr
from modality_forcing.text_io import list_some
from modality_forcing.train import spikes
from modality_forcing.train.spikes import SPIKE, Spike, SpikeRecord

_SHOWN = 8  # records in a message; the file has all
Metrics = Mapping[str, jax.Array | float]  # of one step; those with axes are not looked at


class SpikeGuard:
    """Finds the spikes of a run, lists them in its workdir, and says when it must stop.

    records: from the number of a batch to the numbers of its records, by source.
    """

    def __init__(
        self, c: TrainConfig, workdir: Path, records: Callable[[int], Mapping[str, Sequence[int]]]
    ):
        self._c, self._workdir, self._records = c, workdir, records
        listed = [spike for spike in spikes.read(workdir) if spike.action == "rollback"]
        self._known = {(spike.step, spike.batch) for spike in listed}  # that the run went back for
        self._ahead = 0  # batches taken before the updates began, less those updates
        self._new: list[tuple[int, Metrics]] = []  # steps that nobody has looked at
        self._in_a_row = 0  # updates left out

    def begin(self, step: int, batches: int) -> None:
        """Starts, or starts again, after `step` updates and so many batches."""
        self._ahead, self._new, self._in_a_row = batches - step, [], 0

    def batch_of(self, step: int) -> int:
        """Returns the number of the batch of the update after which there are `step` updates."""
        return self._ahead + step - 1

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the metrics of the update after which there are `step` updates."""
        self._new.append((step, metrics))

    def check(self, skip_last: int = 0) -> list[Metrics]:
        """Looks at the metrics added since the last call, without the last `skip_last`.

        Returns those of the updates that were left out. Raises Spike for a step that is not left
        out, and FloatingPointError for more than train.spike_tries left out in a row.
        """
        end = len(self._new) - skip_last
        looked_at, self._new = self._new[:end], self._new[end:]
        left_out = []
        fetched = jax.device_get([metrics for _, metrics in looked_at])  # all in one transfer
        for (step, metrics), host in zip(looked_at, fetched, strict=True):
            values = {n: float(v) for n, v in host.items() if not np.ndim(v)}
            bad = {n: v for n, v in values.items() if not math.isfinite(v)}
            if not bad and not values.get(SPIKE, 0):
                self._in_a_row = 0
                continue
            spike = Spike(step, bad or {"loss": values["loss"]})
            if self._c.on_spike != "skip" or not values.get(SPIKE, 0):
                raise spike
            self.note(spike, "skip")
            left_out.append(metrics)
            self._in_a_row += 1
            if self._in_a_row > self._c.spike_tries:
                what = f"{self._in_a_row} updates in a row were left out, the last for {spike}"
                raise FloatingPointError(f"{what} at step {step}")
        return left_out

    def note(self, spike: Spike, action: str) -> None:
        """Lists a spike with its data in the workdir, and prints it, in the first process.

        action: what is done about it: "stop", "skip" or "rollback".
        """
        batch = self.batch_of(spike.step)
        if not distributed.is_primary():
            return
        values = {n: v if math.isfinite(v) else str(v) for n, v in spike.values.items()}
        records = {name: list(found) for name, found in self._records(batch).items()}
        spikes.append(self._workdir, SpikeRecord(spike.step, action, batch, values, records))
        if action != "stop":
            print_stderr(f"{self.describe(spike)}: {action}")

    def describe(self, spike: Spike) -> str:
        """Returns what spiked, at which step, and the records of its batch."""
        batch = self.batch_of(spike.step)
        found = self._records(batch)
        named = "; ".join(_shown(name, numbers) for name, numbers in found.items())
        return f"{spike} at step {spike.step}, batch {batch} ({named})"

    def why_stop(self, spike: Spike, saved: int | None) -> str | None:
        """Returns why a run does not go back for a spike, for a message; None if it does.

        A spike that it went back for may come again: after an interruption before the next
        checkpoint. That is no further try. saved: the step of the last checkpoint, if any.
        """
        if self._c.on_spike != "rollback":
            return ""
        if saved is None:
            return ", and there is no checkpoint to go back to"
        self._known.add((spike.step, self.batch_of(spike.step)))
        if len(self._known) > self._c.spike_tries:
            return f", after {self._c.spike_tries} rollbacks (train.spike_tries)"
        return None


def _shown(name: str, numbers: Sequence[int]) -> str:
    of = f" of {name}" if name else ""
    return f"records {list_some(numbers, _SHOWN)}{of}"
