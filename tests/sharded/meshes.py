"""Computes what tests/sharded/test_meshes.py compares, on eight simulated devices.

python -m tests.sharded.meshes FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from modality_forcing.config import Config, MeshConfig
from modality_forcing.diffusion import flow
from modality_forcing.modalities import base
from modality_forcing.models.layout import spec
from modality_forcing.train import sharding
from modality_forcing.train import step as step_module
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import abstract_model, init_params, init_state
from modality_forcing.train.step import compute_loss, make_step
from modality_forcing.tree import flatten
from tests import tiny

BATCH, STEPS = 16, 5
# By name: data, fsdp, tensor, preset, micro-batches. The others are compared with the first.
MESHES = {
    "1": (1, 1, 1, "zero2", 1),
    "4x2": (4, 2, 1, "fsdp", 1),
    "8": (1, 8, 1, "zero2", 1),
    "8, replicated": (8, 1, 1, "replicated", 2),
    "2x2, two micro-batches, full remat": (2, 2, 1, "zero2", 2),
    "2x2x2": (2, 2, 2, "fsdp", 1),
}
FRESH = ("1", "8", "2x2x2")  # whose initial weights are made on the mesh; a program of its own


def config(data: int, fsdp: int, tensor: int, preset: str, accumulate: int, remat: str) -> Config:
    c = tiny.forcing(batch=BATCH, steps=STEPS, grad_accum_steps=accumulate)
    mesh = MeshConfig(data=data, fsdp=fsdp, tensor=tensor, preset=preset)  # pyright: ignore[reportArgumentType]
    return replace(c, mesh=mesh, model=replace(c.model, remat=remat))


def samples(c: Config, batch) -> dict[str, jax.Array]:
    """The noise levels, the noise and the text of a step."""
    seen, names = {}, iter(c.modalities)

    def model(x_t, t, text):
        seen.update({f"t_{n}": v for n, v in t.items()} | {"text": text["tokens"]})
        return x_t

    def add_noise(x0, eps, t, observed):
        seen[f"eps_{next(names)}"] = eps
        return flow.add_noise(x0, eps, t, observed)

    with pytest.MonkeyPatch.context() as patch:
        replaced = {**vars(flow), "add_noise": add_noise}
        patch.setattr(step_module, "flow", SimpleNamespace(**replaced))
        compute_loss(
            model, base.build(c), batch, jnp.int32(3), config=c, null_text=tiny.null_text(c)
        )  # pyright: ignore[reportArgumentType]
    return seen


def run(name: str, folder: Path) -> dict[str, object]:
    *axes, preset, accumulate = MESHES[name]
    c = config(*axes, preset, accumulate, "full" if "remat" in name else "elementwise")  # pyright: ignore[reportCallIssue, reportArgumentType]
    mesh = sharding.make_mesh(c.mesh, jax.devices()[: np.prod(axes)])
    modalities = base.build(c)
    graph, shapes = abstract_model(c, modalities)
    rules = sharding.PRESETS[preset]
    placed = sharding.tree_shardings(
        jax.eval_shape(lambda p: init_state(c, p), shapes), rules, mesh
    )
    by_example = NamedSharding(mesh, spec("b"))

    def on_devices(k):
        return jax.device_put(tiny.batch(c, BATCH, seed=k, first=BATCH * k), by_example)

    params = made = jax.device_put(tiny.network(c)[1], placed.params)
    if name in FRESH:
        made = init_params(c, modalities, placed.params)
        np.savez(folder / f"{name}-fresh.npz", **jax.device_get(flatten(made)))
    state = init_state(c, params, placed)
    seen = jax.jit(lambda b: samples(c, b))(on_devices(0))
    np.savez(folder / f"{name}-samples.npz", **jax.device_get(seen))
    step = make_step(c, modalities, graph, tiny.null_text(c), mesh=mesh)
    losses, first = [], {}
    for k in range(STEPS):
        state, metrics = step(state, on_devices(k))
        losses.append({n: float(v) for n, v in metrics.items() if not v.ndim})
        if k == 0:  # after one step the first moment is (1 - b1) x the clipped gradient
            first = flatten(jax.device_get(state.opt_state[1][0].mu))
    np.savez(folder / f"{name}-moment.npz", **first)
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)
    if name == "8":
        checkpoints = Checkpoints(folder / "checkpoints")
        checkpoints.save(state, c, {"data_state": {"batches": 5}})
        np.savez(folder / "saved.npz", **flatten(jax.device_get(state.ema)))
        for devices in (2, 1):
            few = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
            like = sharding.tree_shardings(
                jax.eval_shape(lambda p: init_state(c, p), shapes), rules, few
            )
            abstract = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                jax.eval_shape(lambda p: init_state(c, p), shapes),
                like,
            )
            restored, extra = checkpoints.restore(abstract)
            assert extra["data_state"] == {"batches": 5}
            jax.tree.map(lambda x, s: x.sharding == s or 1 / 0, restored.params, like.params)
            np.savez(folder / f"restored-{devices}.npz", **flatten(jax.device_get(restored.ema)))
        checkpoints.close()
    return {
        "losses": losses,
        "kept": all(x.sharding.is_equivalent_to(s, x.ndim) for x, s in leaves),
        "largest": max(
            x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(made) if x.ndim == 3
        ),
    }


FROZEN = {"1": (1, 1), "2x2": (2, 2), "8": (1, 8)}  # data, fsdp


def partly_frozen() -> Config:
    """FLUX.2 whose double blocks train for depth alone."""
    freeze = ("double/layers/image", "double/layers/text")
    c = tiny.flux2(batch=BATCH, steps=STEPS, freeze=freeze, frozen_dtype="bfloat16")
    return replace(c, model=replace(c.model, double_layers=1, num_layers=1))


def low_rank() -> Config:
    """A network that trains low-rank updates alone."""
    return tiny.t2i(batch=BATCH, steps=STEPS, lora_rank=4, frozen_dtype="bfloat16")


def frozen_weights(c: Config, data: int, fsdp: int) -> dict[str, jax.Array]:
    """All weights after two steps of which some do not train: before, and after."""
    mesh = sharding.make_mesh(MeshConfig(data, fsdp), jax.devices()[: data * fsdp])
    graph, params = tiny.network(c)
    abstract = jax.eval_shape(lambda p: init_state(c, p), params)
    placed = sharding.tree_shardings(abstract, sharding.PRESETS["zero2"], mesh)
    state = init_state(c, params, placed)
    before = flatten(jax.device_get(state.frozen))
    step = make_step(c, base.build(c), graph, tiny.null_text(c), mesh=mesh)
    for k in range(2):
        batch = tiny.batch(c, BATCH, seed=k, first=BATCH * k)
        state, _ = step(state, jax.device_put(batch, NamedSharding(mesh, spec("b"))))
    (gate, *_) = (x for path, x in flatten(state.frozen).items() if path.endswith("/gate"))
    assert gate.addressable_shards[0].data.size * fsdp == gate.size
    after = flatten(jax.device_get(state.all_params()))
    return {path: x.astype(np.float32) for path, x in after.items()} | {
        f"before/{path}": x.astype(np.float32) for path, x in before.items()
    }


def main(folder: Path) -> None:
    assert len(jax.devices()) == 8
    for name, axes in FROZEN.items():
        np.savez(folder / f"frozen-{name}.npz", **frozen_weights(partly_frozen(), *axes))
    for name in ("1", "8"):
        np.savez(folder / f"lora-{name}.npz", **frozen_weights(low_rank(), *FROZEN[name]))
    (folder / "results.json").write_text(json.dumps({name: run(name, folder) for name in MESHES}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
