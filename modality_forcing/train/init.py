"""From a config and a workdir to a run that can take its next step: mesh, network, data and state, each on its devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from modality_forcing import distributed
from modality_forcing.config import Config
from modality_forcing.data.augment import Augment
from modality_forcing.data.pipeline import train_batches
from modality_forcing.data.prefetch import Ahead
from modality_forcing.data.records import RecordSource
from modality_forcing.encoders.frozen import Frozen
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models.layout import spec
from modality_forcing.train import checkpoint, inputs, sharding
from modality_forcing.train.branch import restore_branch_point
from modality_forcing.train.metrics import param_summary
from modality_forcing.train.state import TrainState, abstract_model, init_params, init_state
from modality_forcing.train.step import Step, make_step
from modality_forcing.train.workdir import check_resumable, write_config


@dataclass
class Run:
    """All that the loop needs."""

    mesh: Mesh
    step: Step
    state: TrainState
    first: int  # updates already done
    batches: Ahead
    checkpoints: checkpoint.Checkpoints
    extra: dict[str, Any]  # what the checkpoint that it goes on from says besides the state


def init_run(config: Config, workdir: Path, records: RecordSource | None = None) -> Run:
    """Sets a run up, from its last checkpoint, else from train.branch or train.init, else from fresh weights.

    Raises UserError, before anything is written, if the workdir holds another config's run, the devices do not fit the
    mesh, the records or the initial weights do not fit the config.
    """
    claimed = check_resumable(workdir, config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.train, mesh)
    modalities = base.build(config)
    graph, shapes = abstract_model(config, modalities)
    frozen = inputs.online(config, mesh)
    encoder = inputs.text_encoder(config, frozen)
    source, data = inputs.training(config, records), config.data
    batches = train_batches(
        source,
        encoder,
        batch=config.train.batch,
        seed=config.seed,
        resolution=data.resolution,
        sparse=data.sparse or None,
        augment=Augment((data.crop, 1.0), data.shift, data.flip),
        workers=data.workers,
        part=(jax.process_index(), jax.process_count()),
    )
    batches = Ahead(batches, lambda batch: frozen.encode(_on_devices(mesh, batch)))

    rules = sharding.PRESETS[config.mesh.preset]
    place = lambda tree: sharding.tree_shardings(tree, rules, mesh)
    abstract = jax.eval_shape(lambda p: init_state(config, p), shapes)
    placed = place(abstract)
    teacher = _teacher(config, place) if config.train.distill else None
    like = jax.tree.map(_shaped, abstract, placed)
    begin = lambda: (
        restore_branch_point(config, like)
        if config.train.branch
        else (_fresh(config, modalities, place, placed), {})
    )
    begun = None
    if not claimed:  # whatever may be wrong shows before anything is written
        inputs.check_records(config, source)
        inputs.check_caches(config)
        begun = begin()
        write_config(workdir, config)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(
            "claimed"
        )  # by the first process, before another looks into it
    checkpoints = checkpoint.Checkpoints(
        workdir / "checkpoints", config.train.keep, config.train.save_at
    )
    last = checkpoints.latest()
    state, extra = (begun or begin()) if last is None else checkpoints.restore(like)
    if extra:
        batches.set_state(extra["data"])
    first = int(jax.device_get(state.step))
    null_text = _null_text(encoder, frozen)
    step = make_step(config, modalities, graph, null_text, teacher, mesh)
    if distributed.is_primary():
        if first:
            place_of = config.train.branch if last is None else workdir
            print(
                f"{config.name}: going on from step {first} of {config.train.steps} in {place_of}",
                flush=True,
            )
        laid_out = f", over {mesh.size} devices by {config.mesh.preset}" if mesh.size > 1 else ""
        print(f"{config.name}: {param_summary(shapes)}{laid_out}", flush=True)
    return Run(mesh, step, state, first, batches, checkpoints, extra)


def _on_devices(mesh: Mesh, batch: Any) -> Any:
    """Returns this process's part of a batch as its part of the global one."""
    whole = NamedSharding(mesh, spec("b"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole, x), batch)


def _null_text(encoder: TextEncoder, frozen: Frozen) -> dict[str, np.ndarray]:
    """Returns the text of no caption as the network reads it."""
    null = encoder.null()
    if frozen.has_text:
        # As many as there are devices, since the encoder splits a batch over them; all are the same.
        states = frozen.states(jax.tree.map(lambda x: np.stack([x] * jax.device_count()), null))[
            "tokens"
        ]
        null = {**null, "tokens": multihost_utils.process_allgather(states, tiled=True)[0]}
    return {k: np.asarray(v) for k, v in null.items()}


def _shaped(leaf: Any, placed: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)


def _fresh(
    config: Config,
    modalities: Mapping[str, base.Modality],
    place: Callable[[Any], Any],
    placed: TrainState,
) -> TrainState:
    """Returns the state of step 0, with the weights of the initial checkpoint where one is named."""
    if config.train.init:
        checkpoint.resolve_checkpoint(Path(config.train.init))  # before what takes long
    params = init_params(config, modalities, placed.params)
    if config.train.init:
        params = checkpoint.init_from_checkpoint(
            Path(config.train.init), params, config.train.new, place
        )
    return init_state(config, params, placed)


def _teacher(config: Config, place: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Returns the frozen text-to-image network that self-distillation compares with: the initial checkpoint."""
    if not config.train.init:
        raise UserError("train.distill needs train.init, the checkpoint to stay near")
    theirs, params = checkpoint.load(Path(config.train.init), place)
    graph, _ = abstract_model(theirs, base.build(theirs))
    return graph, params
