"""All that a training run does before its first update, without writing anything."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import jax

from modality_forcing import distributed
from modality_forcing.config import Config, to_dict
from modality_forcing.progress import print_stderr
from modality_forcing.train import checkpoint
from modality_forcing.train.evaluation import MakeEvaluate
from modality_forcing.train.init import Setup, initial_state, set_up
from modality_forcing.train.state import TrainState
from modality_forcing.train.workdir import check_resumable, check_same_run, resolve_paths

_GIB = 2**30
_EARLIER = "the run will go back to an earlier one, if there is one"


def dry_run(config: Config, workdir: Path, make_evaluate: MakeEvaluate | None = None) -> str:
    """Checks a run and returns what would happen, in a few lines.

    It reads the records, the first batch and the initial weights, or the checkpoint that the run
    would resume from, and compiles the step for the devices that are there. In a run of several
    processes all call this. Raises UserError as the run itself would.
    """
    config = resolve_paths(config)
    resumes = check_resumable(workdir, config)
    setup = set_up(config, make_evaluate=make_evaluate)
    try:
        setup.inputs.check()
        state, source = _first_state(setup, workdir if resumes else None)
        batch = next(setup.batches)
    finally:
        setup.batches.close()
    if distributed.is_primary():
        print_stderr(f"{config.name}: compiling the step")
    step, start = setup.make_step(), time.monotonic()
    assert isinstance(step, partial)  # of a jitted function
    compiled = step.func.lower(state, batch, **step.keywords).compile()
    seconds, memory = time.monotonic() - start, compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    size += memory.output_size_in_bytes - memory.alias_size_in_bytes
    device, processes = jax.devices()[0], jax.process_count()
    of = f"{processes} process{'es' * (processes > 1)}"
    lines = [
        setup.summary(),
        f"devices   {jax.device_count()} {device.device_kind} in {of}",
        f"start     step {int(jax.device_get(state.step))} of {config.train.steps}, {source}",
        f"batch     {config.train.batch} examples",
        f"step      compiled in {seconds:.1f} s, {size / _GIB:.2f} GiB a device",
        f"workdir   {workdir}: nothing was written",
    ]
    return "\n".join(lines)


def _first_state(setup: Setup, workdir: Path | None) -> tuple[TrainState, str]:
    """Returns the state that a run would start from, and where it is from."""
    if workdir and (folders := checkpoint.step_folders(workdir / "checkpoints")):
        state, metadata = checkpoint.read_state(folders[-1], setup.abstract, _EARLIER)
        check_same_run(workdir, to_dict(setup.config), metadata)
        setup.batches.set_state(metadata["data_state"])
        return state, f"from {folders[-1]}"
    state, metadata = initial_state(setup)
    if metadata:
        setup.batches.set_state(metadata["data_state"])
    c = setup.config.train
    return state, f"from {c.branch_from or c.init_from}" if c.branch_from or c.init_from else "new"
