"""From a config and a workdir to a run that can take its next step, on its devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from modality_forcing import distributed, paths
from modality_forcing.config import Config, to_dict
from modality_forcing.data.augment import Augment
from modality_forcing.data.pipeline import train_batches
from modality_forcing.data.prefetch import PrefetchToDevice
from modality_forcing.data.records import RecordSource
from modality_forcing.modalities import base
from modality_forcing.models.layout import spec
from modality_forcing.train import checkpoint, sharding
from modality_forcing.train.branch import restore_branch_point
from modality_forcing.train.evaluation import Evaluate, MakeEvaluate
from modality_forcing.train.freezing import Teacher
from modality_forcing.train.initial_weights import initial_params, load_teacher
from modality_forcing.train.inputs import Inputs, open_inputs
from modality_forcing.train.metrics import param_summary, param_table
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.sharding import Shardings
from modality_forcing.train.state import TrainState, abstract_model, init_state
from modality_forcing.train.step import Step, make_step
from modality_forcing.train.workdir import check_resumable, check_same_run, write_config


@dataclass(frozen=True)
class Run:
    """All that the loop needs besides the state."""

    step: Step
    start_step: int  # updates already done
    batches: PrefetchToDevice
    checkpoints: Checkpoints
    restore: Callable[[], tuple[TrainState, checkpoint.Metadata]]  # the last checkpoint
    metadata: checkpoint.Metadata  # of the checkpoint that the state is from
    evaluate: Evaluate | None = None


@dataclass(frozen=True)
class Setup:
    """What a run is made of before it looks at the state in its workdir."""

    config: Config
    mesh: Mesh
    modalities: Mapping[str, base.Modality]
    graph: nnx.GraphDef
    abstract: TrainState  # shapes and shardings
    shardings: Shardings
    inputs: Inputs
    batches: PrefetchToDevice
    teacher: Teacher | None
    evaluate: Evaluate | None

    def make_step(self) -> Step:
        """Returns the jitted step."""
        null_text = self.inputs.null_text()
        return make_step(
            self.config,
            self.modalities,
            self.graph,
            null_text,
            teacher=self.teacher,
            mesh=self.mesh,
        )

    def summary(self) -> str:
        """Returns the network's size and the layout in a line."""
        mesh = self.mesh
        layout = f", {mesh.size} devices, {self.config.mesh.preset}" if mesh.size > 1 else ""
        frozen = self.abstract.frozen
        apart = f", of them {param_summary(frozen)} frozen" if frozen else ""
        network = param_summary(self.abstract.all_params())
        return f"{self.config.name}: {network}{apart}{layout}"


def set_up(
    config: Config, records: RecordSource | None = None, make_evaluate: MakeEvaluate | None = None
) -> Setup:
    """Opens what a run needs; writes nothing.

    Raises UserError if the devices, the records, or what is to be evaluated do not fit the config.
    """
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.train, mesh)
    modalities = base.build(config)
    graph, params = abstract_model(config, modalities)
    inputs = open_inputs(config, mesh, records)
    evaluate = make_evaluate(config, inputs, mesh) if make_evaluate else None
    batches = _open_batches(inputs, mesh)
    rules = sharding.PRESETS[config.mesh.preset]
    shardings = partial(sharding.tree_shardings, rules=rules, mesh=mesh)
    abstract = jax.eval_shape(partial(init_state, config), params)
    abstract = sharding.abstract(abstract, shardings(abstract))
    teacher = load_teacher(config, shardings, abstract.frozen) if config.train.distill else None
    return Setup(
        config=config,
        mesh=mesh,
        modalities=modalities,
        graph=graph,
        abstract=abstract,
        shardings=shardings,
        inputs=inputs,
        batches=batches,
        teacher=teacher,
        evaluate=evaluate,
    )


def init_run(
    config: Config,
    workdir: Path,
    records: RecordSource | None = None,
    make_evaluate: MakeEvaluate | None = None,
) -> tuple[Run, TrainState]:
    """Sets up a run and its state; `records` replaces the config's own source.

    Raises UserError, before anything is written, if the workdir holds another run, or if the
    devices, the records, the initial weights or what is to be evaluated do not fit the config.
    """
    resumes = check_resumable(workdir, config)
    setup = set_up(config, records, make_evaluate)
    initial = None
    if not resumes:  # every error shows before anything is written
        setup.inputs.check()
        initial = initial_state(setup)
        write_config(workdir, config)
        if distributed.is_primary():
            table = param_table(setup.abstract.all_params(), setup.abstract.frozen)
            paths.write_file(workdir / "parameters.txt", table)
    if jax.process_count() > 1:  # the first process writes the config before another reads it
        multihost_utils.sync_global_devices("config written")
    c = config.train
    checkpoints = Checkpoints(
        workdir / "checkpoints", c.max_to_keep, c.keep_at_steps, asynchronous=c.async_save
    )
    restored = checkpoints.latest() is not None
    state, metadata = initial or initial_state(setup, checkpoints)
    if restored:
        check_same_run(workdir, to_dict(config), metadata)
    if metadata:
        setup.batches.set_state(metadata["data_state"])
    start_step = int(jax.device_get(state.step))
    if distributed.is_primary():
        if start_step:
            source = workdir if restored else c.branch_from
            print(
                f"{config.name}: resuming from step {start_step} of {c.steps} in {source}",
                flush=True,
            )
        print(setup.summary(), flush=True)
    run = Run(
        step=setup.make_step(),
        start_step=start_step,
        batches=setup.batches,
        checkpoints=checkpoints,
        restore=partial(checkpoints.restore, setup.abstract),
        metadata=metadata,
        evaluate=setup.evaluate,
    )
    return run, state


def initial_state(
    setup: Setup, checkpoints: Checkpoints | None = None
) -> tuple[TrainState, checkpoint.Metadata]:
    """Returns the first state of a run, and the metadata of the checkpoint it is from.

    checkpoints: of the workdir; None for a workdir that is not written yet.
    """
    config, abstract, shardings = setup.config, setup.abstract, setup.shardings
    c = config.train
    # 1. The workdir's own last checkpoint: state, optimizer and data position.
    if checkpoints is not None and checkpoints.latest() is not None:
        return checkpoints.restore(abstract)
    # 2. train.branch_from: the same of a longer run, from before its learning rate decays.
    if c.branch_from:
        return restore_branch_point(config, abstract)
    # 3. train.init_from: the EMA weights of a checkpoint, in step 0 of a new optimizer;
    #    modules of the modalities in train.allow_missing_modalities are new.
    # 4. Fresh weights, a function of the seed.
    params = initial_params(config, abstract, shardings)
    return init_state(config, params, shardings(abstract)), {}


def _open_batches(inputs: Inputs, mesh: Mesh) -> PrefetchToDevice:
    """Returns the batches of a run, encoded and on their devices."""
    config, data = inputs.config, inputs.config.data
    batches = train_batches(
        inputs.source,
        inputs.text_encoder,
        batch=config.train.batch,
        seed=config.seed,
        resolution=data.resolution,
        sparsity=data.sparsity_patterns or None,
        augment=Augment((data.min_crop, 1.0), data.crop_jitter, data.flip_prob),
        workers=data.workers,
        shard=(jax.process_index(), jax.process_count()),
        record_inputs=base.record_inputs(config),
    )
    by_example = NamedSharding(mesh, spec("b"))
    to_global = partial(jax.make_array_from_process_local_data, by_example)
    return PrefetchToDevice(
        batches, lambda batch: inputs.encoders.encode(jax.tree.map(to_global, batch))
    )
