"""Plans of sampling: a task's whole program, all steps of it, compiled for TPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import PyTree

from modality_forcing.config import Config
from modality_forcing.diffusion.guidance import select
from modality_forcing.encoders.frozen import FrozenEncoders
from modality_forcing.errors import UserError
from modality_forcing.generator import Generator, num_steps
from modality_forcing.modalities import base
from modality_forcing.models import flops
from modality_forcing.models.flux2_weights import dtype_of
from modality_forcing.models.int8 import quantize_tree
from modality_forcing.planning.analysis import NOT_MODELED, Analysis, analyze
from modality_forcing.planning.compile import Target, compile_lowered, device_bytes
from modality_forcing.train import sharding
from modality_forcing.train.batch_shapes import abstract_batch
from modality_forcing.train.state import Params, abstract_model, with_attention_kernel
from modality_forcing.tree import JsonObject, flatten, unflatten


@dataclass(frozen=True)
class Request:
    """What to sample with: a config, and how its weights are kept.

    mode: a key of `generator.TASKS`; by default image-to-depth, or t2i for a network of one
    modality. size: rows and columns of pixels, by default the config's square. dtype: of the
    weights, where heads are float32. batch: examples over all devices, by default one for each part
    of the mesh.
    """

    config: Config
    mode: str = ""
    size: tuple[int, int] | None = None
    dtype: DTypeLike = "bfloat16"
    int8: bool = False
    batch: int | None = None

    @property
    def task(self) -> str:
        """The mode, or its default."""
        return self.mode or ("i2d" if "depth" in self.config.modalities else "t2i")


@dataclass(frozen=True, kw_only=True)
class SamplePlan(Analysis):
    """A sampling program on a target. Text encoder and autoencoder are programs of their own."""

    request: Request
    mesh: Mapping[str, int]
    pixels: tuple[int, int]  # rows, columns
    batch: int  # examples over all devices
    evaluations: int  # of the network for an example, guidance included
    weight_bytes: int  # of `bytes`, the weights'

    @property
    def rate(self) -> float | None:
        """Upper bound of examples a second, over all devices."""
        return self.batch / self.bound.seconds if self.bound else None


def plan(request: Request, target: Target) -> SamplePlan:
    """Compiles the sampling program of a request for a target.

    Raises UserError for a mode that the network cannot do, a size that it does not take, and a
    mesh or batch that does not divide.
    """
    config = with_attention_kernel(request.config, target.devices[0].platform)
    config = replace(config, mesh=replace(config.mesh, slices=target.slices))
    mesh = sharding.make_mesh(config.mesh, target.devices)
    parts = sharding.batch_devices(mesh)
    batch = request.batch or parts
    if batch % parts:
        what = f"a batch of {batch} does not divide among {parts} devices"
        hint = f"give a multiple of {parts}, or split heads with --config.mesh.tensor"
        raise UserError(what, hint=hint)
    modalities = base.build(config, request.size)
    shapes = abstract_weights(request)
    placed = sharding.tree_shardings(shapes, sharding.PRESETS[config.mesh.preset], mesh)
    params = sharding.abstract(shapes, placed)
    generator = Generator(config, params, FrozenEncoders(), mesh, request.size)
    trajectory, names = generator.trajectory(request.task)
    inputs = _by_example(abstract_batch(config, modalities, batch), mesh)
    cond = {
        name: _by_example(jax.eval_shape(modalities[name].to_tokens, inputs), mesh)
        for name in names
    }
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    text, keys = inputs["text"], _by_example(keys, mesh)
    done = compile_lowered(
        lambda: generator.lower(request.task, cond, (text, text), keys),
        target,
        device_bytes((params, cond, text, text)),
    )
    free = [name for name in trajectory.schedule if name not in names]
    count = evaluations(config, request.task, free, names)
    each = flops.forward_flops(config, modalities, only=trajectory.schedule).total
    total = flops.parameters(abstract_model(config, modalities)[1]).total
    return SamplePlan(
        request=request,
        mesh=dict(mesh.shape),
        pixels=modalities[generator.primary].size,
        batch=batch,
        evaluations=count,
        weight_bytes=device_bytes(params),
        **analyze(target, done, total, each * count * batch),
    )


def published_dtype(config: Config) -> str:
    """Returns the dtype of weights: FLUX.2 is published in bfloat16, runs keep float32."""
    return "bfloat16" if config.model.family == "flux2" else "float32"


def abstract_weights(request: Request) -> Params:
    """Returns the shapes and dtypes of the weights that a request keeps in memory."""
    _, shapes = abstract_model(request.config, base.build(request.config, request.size))
    kept = unflatten(
        {
            path: jax.ShapeDtypeStruct(x.shape, dtype_of(path, request.dtype))
            for path, x in flatten(shapes).items()
        }
    )
    return jax.eval_shape(quantize_tree, kept) if request.int8 else kept


def evaluations(config: Config, task: str, free: Sequence[str], cond: Sequence[str]) -> int:
    """Returns how often the network is applied to an example."""
    c, steps = config.sample, num_steps(task, config.sample)
    each = select(free, cond, c.guidance, c.condition_guidance).evaluations
    return each * (2 * steps - 1 if c.solver == "heun" else steps)


def _by_example(tree: PyTree, mesh: Mesh) -> PyTree:
    return sharding.abstract(tree, sharding.batch_shardings(tree, mesh))


def to_json(p: SamplePlan) -> JsonObject:
    """Returns plain data; bytes are per chip, seconds and FLOPs of one batch of all chips."""
    m = p.target.chip.devices
    return {
        "config": p.request.config.name,
        "mode": p.request.task,
        "size": {"width": p.pixels[1], "height": p.pixels[0]},
        "topology": p.target.topology,
        "slices": p.target.slices,
        "chips": p.target.chips,
        "mesh": dict(p.mesh),
        "weights": _kept(p),
        "params": p.params,
        "batch": p.batch,
        "evaluations": p.evaluations,
        "flops": p.flops,
        "bytes_per_chip": p.bytes.total * m,
        "weight_bytes_per_chip": p.weight_bytes * m,
        "hbm_bytes": int(p.target.chip.usable_bytes * m),
        "fits": p.fits,
        "collectives": {kind: dict(counts) for kind, counts in p.collectives.items()},
        **p.bound_json(),
        "images_per_second": p.rate,
        "mfu_bound": p.mfu_bound,
        "compile_seconds": round(p.compile_seconds, 1),
        "not_modeled": NOT_MODELED,
    }


def to_text(p: SamplePlan) -> str:
    """Returns the plan as text."""
    fits, usable = "fits" if p.fits else "does not fit", p.target.chip.usable_bytes

    def gib(size: float) -> str:
        return f"{p.chip_gib(size):.2f}"

    mesh = ", ".join(f"{axis} {size}" for axis, size in p.mesh.items())
    what = f"{p.request.config.name}, {p.request.task} at {p.pixels[1]} x {p.pixels[0]}"
    lines = [
        f"{what} on {p.target.topology}, {p.target.chips} chips: {fits}",
        f"  parameters      {p.params / 1e9:.3f} B, {_kept(p)}; mesh {mesh}",
        f"  batch           {p.batch}, {p.evaluations} evaluations of each,"
        f" {p.flops / 1e12:,.1f} TFLOP",
        f"  GiB a chip      {gib(p.bytes.total)} of {gib(usable)}:"
        f" weights {gib(p.weight_bytes)}, temporaries {gib(p.bytes.temporaries)}",
        f"  compile         {p.compile_seconds:.0f} s",
    ]
    if p.bound is None:
        hint = "take more chips (mesh.fsdp), --int8, or a smaller batch or size"
        return "\n".join([*lines, f"  too large: {hint}"])
    lines, bound = lines + p.collective_lines("batch"), p.bound
    return "\n".join(
        [
            *lines,
            f"  roofline        {bound.seconds:.2f} s a batch at least:"
            f" instructions {bound.serial_seconds:.2f},"
            f" all memory traffic {bound.hbm_seconds:.2f},"
            f" collectives {bound.ici_seconds:.2f}"
            f" (without overlap they add {bound.exposed_seconds:.2f})",
            f"  rate            {p.rate:.3g} images a second at most, MFU {p.mfu_bound:.1%}",
            *bound.warnings,
            "  text encoder and autoencoder are not included: mforce plan --encode",
            f"  {NOT_MODELED}",
        ]
    )


def _kept(p: SamplePlan) -> str:
    name = np.dtype(p.request.dtype).name
    return f"int8 and {name}" if p.request.int8 else name
