"""Searches for the layout of a config on a TPU topology: does it fit, how fast can it be.

Every number comes from compiling the real train step for that topology (compile.py) and reading
the compiled program (roofline.py). `NOT_MODELED` says what this leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
from jaxtyping import PyTree

from modality_forcing.config import Config, MeshConfig
from modality_forcing.modalities import base
from modality_forcing.models import flops
from modality_forcing.planning import roofline
from modality_forcing.planning.analysis import Analysis, analyze
from modality_forcing.planning.collectives import check_collectives
from modality_forcing.planning.compile import (
    Compiled,
    Target,
    abstract_step,
    compile_step,
    device_bytes,
)
from modality_forcing.train import sharding
from modality_forcing.train.freezing import split_params
from modality_forcing.train.state import Params, abstract_model
from modality_forcing.train.throughput import step_flops

# Examples per chip that the search tries.
MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MAX_TOKENS = 20_480  # tokens per chip and micro-batch beyond which nothing is gained
# Layouts (preset, remat, sharded axes) in the order of the search: the first is the fastest, each
# next one takes less memory.
LAYOUTS = (
    ("zero2", "elementwise", "rings"),
    ("fsdp", "elementwise", "rings"),
    ("fsdp", "elementwise", "all"),
    ("zero2", "full", "rings"),
    ("fsdp", "full", "rings"),
    ("fsdp", "full", "all"),
)


@dataclass(frozen=True, kw_only=True)
class Plan(Analysis):
    """One config on one topology, compiled; FLOPs are of a step, from models/flops.py."""

    config: Config
    tokens_per_step: int
    state_bytes: int  # of `bytes`, the state's
    kernels: dict[str, int]
    collective_warnings: list[str]  # collectives that should not be there
    replicated: dict[str, int]

    @property
    def micro_batch(self) -> int:
        """Examples per chip and micro-batch."""
        return self.config.train.batch // self.config.train.grad_accum_steps // self.target.chips

    @property
    def host_bytes_at_save(self) -> int:
        """Memory of a host into which its shards of the state are copied to be written."""
        return self.state_bytes * len(self.target.devices) // self.target.hosts


def plan(config: Config, target: Target) -> Plan:
    """Compiles the step of an unchanged config for a target.

    Raises UserError if its batch or mesh does not divide over the devices.
    """
    return _read(config, target, compile_step(config, target))


def with_batch(config: Config, target: Target, batch: int) -> Config:
    """Returns the config with a batch and, where it names no mesh, all of the target's devices."""
    return replace(
        config,
        mesh=replace(config.mesh, slices=target.slices),
        train=replace(config.train, batch=batch),
    )


def _read(config: Config, target: Target, compiled: Compiled) -> Plan:
    modalities = base.build(config)
    _, shapes = abstract_model(config, modalities)
    _, (state, _, _), mesh = abstract_step(config, target.devices)
    found = roofline.collectives(compiled.text) if compiled.text else []
    return Plan(
        config=with_sizes(config, mesh.shape),
        tokens_per_step=config.train.batch * flops.tokens(config, modalities),
        state_bytes=device_bytes(state),
        kernels=roofline.kernels(compiled.text) if compiled.text else {},
        collective_warnings=check_collectives(found, config.train.batch),
        replicated=sharding.replicated_params(shapes, sharding.PRESETS[config.mesh.preset], mesh),
        **analyze(target, compiled, flops.parameters(shapes).total, step_flops(config)),
    )


def with_sizes(config: Config, axes: Mapping[str, int]) -> Config:
    """Returns the config with what the axes of its mesh that are -1 resolve to.

    axes: devices by axis of a mesh; "data" also runs over slices.
    """
    c, data = config.mesh, axes["data"] // config.mesh.slices
    resolved = replace(c, data=data, fsdp=axes["fsdp"], tensor=axes["tensor"])
    return config if resolved == c else replace(config, mesh=resolved)


def search(config: Config, target: Target, log: Callable[[str], None] = lambda _: None) -> Plan:
    """Returns the plan of the best layout that fits: the largest micro-batch, least recomputation.

    Memory is estimated first, so that few layouts need compiling. The returned plan was compiled at
    full depth. If nothing fits, it is the plan of the smallest layout, with `fits` false.
    """
    best = last = None
    for candidates in _layout_candidates(config, target):
        for tried in candidates:
            last = plan(tried, target)
            fits = "fits" if last.fits else "does not fit"
            log(f"{describe(last)}: {last.chip_gib(last.bytes.total):.1f} GiB a chip, {fits}")
            if last.fits:
                best = max(best or last, last, key=lambda p: p.mfu_bound or 0.0)
                break
        if best and best.micro_batch * _tokens(config) >= min_tokens_per_chip(target):
            break
    assert last is not None  # the last layout always offers its smallest batch
    return best or last


def min_tokens_per_chip(target: Target) -> float:
    """Returns C / W of ICI: with more tokens per chip, gathering weights is faster than compute."""
    return target.chip.bf16_flops / target.chip.ici_bandwidth


def describe(p: Plan) -> str:
    """Returns the layout of a plan in a few words."""
    mesh, remat = p.config.mesh, p.config.model.remat
    where = f"{mesh.preset} over {mesh.fsdp} devices"
    return f"{where}, remat {remat}, {p.micro_batch} examples a chip"


def _tokens(config: Config) -> int:
    return flops.tokens(config, base.build(config))


def _layout_candidates(config: Config, target: Target) -> Iterator[list[Config]]:
    """Yields the configs to compile per layout: those estimated to fit, largest batch first."""
    _, weights = abstract_model(config, base.build(config))
    sizes = [
        m
        for m in MICRO_BATCHES
        if m % target.chip.devices == 0
        and m * _tokens(config) <= max(MAX_TOKENS, min_tokens_per_chip(target))
    ]
    for layout in LAYOUTS:
        tried = [_with_layout(config, target, *layout, m) for m in sizes]
        likely = [c for c in tried if estimate(c, target, weights) < target.chip.usable_bytes]
        if likely or layout == LAYOUTS[-1]:
            yield (likely or tried[:1])[::-1]


def _with_layout(
    config: Config, target: Target, preset: str, remat: str, along: str, micro: int
) -> Config:
    """Returns the config with a layout; a mesh set in the config is kept.

    "rings": weights are sharded along one axis of a 2D slice, two of a 3D one, and repeated along
    the rest. Across all axes at once XLA does not gather but adds up buffers full of zeros, at
    twice the traffic.
    """
    mesh = replace(config.mesh, slices=target.slices)
    if mesh == MeshConfig(slices=target.slices):
        each = len(target.devices) // target.slices
        rings = math.prod(target.shape[1:]) if along == "rings" else each
        mesh = replace(mesh, data=each // rings, fsdp=rings)
    return replace(
        config,
        mesh=replace(mesh, preset=preset),
        model=replace(config.model, remat=remat),
        train=replace(config.train, batch=micro * target.chips, grad_accum_steps=1),
    )


def estimate(config: Config, target: Target, weights: Params) -> float:
    """Returns about how many bytes a device needs, to some 10%, so that less has to be compiled.

    The state is exact: weights, two moments, EMA, and frozen weights. For the backward pass each
    block keeps, in 2 bytes per token, x, q, k, v, attention's result, gate, up and their sum
    ("elementwise"), or x alone ("full"); one block at a time keeps all of its own. weights: their
    shapes.
    """
    mesh = sharding.make_mesh(config.mesh, target.devices)
    rules = sharding.PRESETS[config.mesh.preset]

    def shard_bytes(tree: PyTree) -> int:
        leaves, placed = map(jax.tree.leaves, (tree, sharding.tree_shardings(tree, rules, mesh)))
        each = zip(leaves, placed, strict=True)
        return sum(math.prod(s.shard_shape(w.shape)) * w.dtype.itemsize for w, s in each)

    trained, frozen = jax.eval_shape(partial(split_params, c=config.train), weights)
    state = 4 * shard_bytes(trained) + shard_bytes(frozen)
    count = sum(w.size for w in jax.tree.leaves(weights))
    c, tokens = config.model, _tokens(config)
    d, heads, kv = c.width, c.heads * c.head_dim, c.kv_heads * c.head_dim
    shards_of_batch = mesh.shape["data"] * mesh.shape["fsdp"]
    micro = config.train.batch // config.train.grad_accum_steps // shards_of_batch
    kept = {
        "none": 5 * d + 6 * heads + 6 * c.mlp_dim,
        "elementwise": 2 * d + 2 * heads + 2 * kv + 2 * c.mlp_dim,
        "full": d,
    }
    at_once = 6 * (2 * d + 2 * heads + 2 * kv + 3 * c.mlp_dim)
    activations = 2 * max(micro, 1) * tokens * (c.num_layers * kept[c.remat] + at_once)
    gathered = 2 * count if rules.keep_gathered else 8 * count / c.num_layers
    return state + activations + gathered + shard_bytes(trained)  # the last: gradients
