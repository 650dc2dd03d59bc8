"""Compiles the real train step of a config from shapes, for TPUs that are not attached."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from modality_forcing.chips import Chip
from modality_forcing.config import Config
from modality_forcing.modalities import base
from modality_forcing.planning import hardware
from modality_forcing.train import sharding
from modality_forcing.train.batch_shapes import abstract_batch, abstract_text
from modality_forcing.train.freezing import make_teacher, to_frozen_dtype
from modality_forcing.train.state import (
    Params,
    TrainState,
    abstract_model,
    init_state,
    with_attention_kernel,
)
from modality_forcing.train.step import make_step

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Target:
    """Devices to compile for."""

    topology: str  # of one slice, such as "v5p:4x4x4"
    slices: int
    chip: Chip
    shape: tuple[int, ...]  # chips along each axis of a slice
    devices: tuple[Any, ...]

    @property
    def chips(self) -> int:
        """How many there are in all slices."""
        return len(self.devices) // self.chip.devices

    @property
    def hosts(self) -> int:
        """How many machines they are in."""
        return len({d.process_index for d in self.devices}) or 1

    def mfu(self, flops: int, seconds: float) -> float:
        """Returns the share of all chips' peak that so many FLOPs in so many seconds take."""
        return flops / (seconds * self.chips * self.chip.bf16_flops)


def get_target(topology: str, slices: int = 1) -> Target:
    """Returns a compile target; raises UserError for an unknown topology, with the known ones."""
    chip, shape = hardware.parse(topology)
    return Target(topology, slices, chip, shape, tuple(hardware.topology(topology, slices)))


@dataclass(frozen=True)
class Bytes:
    """Memory of one device; `total` counts donated buffers (`alias`) once."""

    arguments: int
    temporaries: int
    output: int
    alias: int
    code: int = 0

    @property
    def total(self) -> int:
        """Arguments, temporaries, code, and outputs that do not reuse arguments."""
        return self.arguments + self.temporaries + self.output - self.alias + self.code


@dataclass(frozen=True)
class Compiled:
    """A compiled program. One that does not fit has no `text`; its `bytes` are what it needs."""

    bytes: Bytes
    fits: bool
    seconds: float
    text: str


def abstract_step(
    config: Config, devices: tuple[Any, ...]
) -> tuple[Any, tuple[TrainState, PyTree, Params | None], Mesh]:
    """Returns the jitted step for these devices, its sharded abstract arguments, and the mesh.

    Raises UserError if the config does not fit the devices or their attention kernel.
    """
    config = with_attention_kernel(config, devices[0].platform)
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch(config.train, mesh)
    rules = sharding.PRESETS[config.mesh.preset]
    modalities = base.build(config)
    graph, shapes = abstract_model(config, modalities)

    state = jax.eval_shape(lambda p: init_state(config, p), shapes)
    state = sharding.abstract(state, sharding.tree_shardings(state, rules, mesh))
    batch = abstract_batch(config, modalities)
    batch = sharding.abstract(batch, sharding.batch_shardings(batch, mesh))
    null = jax.tree.map(lambda s: np.zeros(s.shape[1:], s.dtype), abstract_text(config.text, 1))
    teacher = None
    if config.train.distill:  # the text-to-image network: the primary modality alone
        primary = next(iter(config.modalities))
        alone = {primary: replace(config.modalities[primary], cond_prob=0.0, cond_prob_with={})}
        t2i = replace(config, modalities=alone, train=replace(config.train, distill=False))
        teacher_graph, weights = abstract_model(t2i, base.build(t2i))
        weights = jax.eval_shape(partial(to_frozen_dtype, c=config.train), weights)
        teacher = make_teacher(teacher_graph, weights, state.frozen)
        weights = sharding.tree_shardings(teacher.params, rules, mesh)
        teacher = teacher._replace(params=sharding.abstract(teacher.params, weights))
    step = make_step(config, modalities, graph, null, teacher=teacher, mesh=mesh)
    return step.func, (state, batch, step.keywords["teacher_params"]), mesh


def compile_step(config: Config, target: Target) -> Compiled:
    """Compiles the step for a target; raises UserError as `abstract_step`."""
    function, (state, batch, teacher), _ = abstract_step(config, target.devices)

    def lower():
        return function.lower(state, batch, teacher_params=teacher)

    arguments = device_bytes((state, batch, teacher))
    return compile_lowered(lower, target, arguments, device_bytes(state))


def compile_lowered(
    lower: Callable[[], Any], target: Target, arguments: int, kept: int = 0
) -> Compiled:
    """Compiles what `lower` returns for a target.

    arguments, kept: bytes per device of all inputs, and of those that are updated in place.
    """
    started = time.monotonic()
    try:
        done = lower().compile(compiler_options=hardware.plan_options(target.chip))
    except jax.errors.JaxRuntimeError as error:
        used = _used(str(error))
        if used is None:
            raise
        short = Bytes(arguments, used - arguments if used > arguments else used, kept, kept)
        return Compiled(short, False, time.monotonic() - started, "")
    m = done.memory_analysis()
    used = Bytes(
        m.argument_size_in_bytes,
        m.temp_size_in_bytes,
        m.output_size_in_bytes,
        m.alias_size_in_bytes,
        m.generated_code_size_in_bytes,
    )
    return Compiled(
        used, used.total <= target.chip.usable_bytes, time.monotonic() - started, done.as_text()
    )


def device_bytes(tree: PyTree) -> int:
    """Returns the bytes of sharded abstract arrays on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _used(message: str) -> int | None:
    """Returns the bytes that a program needs, from an out-of-memory error; None for another."""
    number, unit = r"([\d.]+)([KMGT]?)", r"[\d.]+[KMGT]?"
    for pattern in (
        rf"Used {number} of {unit} hbm",
        rf"temporaries \({number}\) exceeds available HBM",
    ):
        if found := re.search(pattern, message):
            return int(float(found[1]) * UNITS[found[2]])
    return None
