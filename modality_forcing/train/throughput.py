"""Rates of training, from what a step costs and how long it takes, and the memory in use."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from modality_forcing import chips
from modality_forcing.chips import GIB
from modality_forcing.config import Config
from modality_forcing.modalities import base
from modality_forcing.models import flops, lora
from modality_forcing.train.freezing import has_frozen, split_params
from modality_forcing.train.state import abstract_model

_PROCESSES = Path("/proc")


@dataclass(frozen=True)
class StepCost:
    """What a step of a run costs, on all its devices.

    peak_flops: of all devices per second, in bfloat16; None if that of the chip is unknown.
    """

    examples: int
    tokens: int  # text included
    flops: int
    peak_flops: float | None

    def rates(self, step_s: float) -> dict[str, float]:
        """Returns the rates of steps that take `step_s` seconds each, without an unknown MFU."""
        row = {
            "perf/step_s": step_s,
            "perf/examples_per_s": self.examples / step_s,
            "perf/tokens_per_s": self.tokens / step_s,
        }
        if self.peak_flops is not None:
            row["perf/mfu"] = self.flops / (step_s * self.peak_flops)
        return row


def step_cost(config: Config) -> StepCost:
    """Returns what a step of a config costs on the devices of this run."""
    modalities, batch = base.build(config), config.train.batch
    kinds = {device.device_kind for device in jax.devices()}
    chip = chips.by_device_kind(kinds.pop()) if len(kinds) == 1 else None
    return StepCost(
        examples=batch,
        tokens=batch * flops.tokens(config, modalities),
        flops=step_flops(config),
        peak_flops=chip and jax.device_count() * chip.per_device(chip.bf16_flops),
    )


def step_flops(config: Config) -> int:
    """Returns the FLOPs of a train step of a config; raises UserError as `split_params`."""
    modalities = base.build(config)
    if not has_frozen(config.train):
        return flops.step_flops(config, modalities).total
    _, shapes = abstract_model(config, modalities)
    _, frozen = jax.eval_shape(partial(split_params, c=config.train), shapes)
    _, updates = lora.split(shapes)
    each = flops.weight_flops(config, modalities, updates).total * 3
    step = flops.step_flops(config, modalities, frozen=frozen).total
    return step + each * config.train.batch


def memory() -> dict[str, float]:
    """Returns the memory in use, in GiB; what the platform does not report is left out.

    Of devices: that of the fullest one of this process, now and at most so far. Of the host: what
    is resident of this process and its loader processes; pages that they share count in each.
    """
    row: dict[str, float] = {}
    stats = [s for device in jax.local_devices() if (s := device.memory_stats())]
    for name, key in (("device", "bytes_in_use"), ("device_peak", "peak_bytes_in_use")):
        if used := [s[key] for s in stats if key in s]:
            row[f"memory/{name}_gib"] = max(used) / GIB
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    if resident := sum(_resident_bytes(pid) for pid in pids if pid is not None):
        row["memory/host_gib"] = resident / GIB
    return row


def _resident_bytes(pid: int) -> int:
    """The resident memory of a process; 0 if it is gone or the system has no /proc."""
    try:
        pages = int((_PROCESSES / str(pid) / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
