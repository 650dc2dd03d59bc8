"""The training loop, one for every phase. Order, never changed: save(old state) -> next(batch) -> step -> log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax

from modality_forcing.config import Config
from modality_forcing.data.records import RecordSource
from modality_forcing.train.init import init_run
from modality_forcing.train.logger import TrainLogger
from modality_forcing.train.state import TrainState


def train(
    config: Config,
    workdir: Path,
    *,
    records: RecordSource | None = None,
    stop_after: int | None = None,
) -> TrainState:
    """Trains a config in a workdir, or goes on with what is there, and returns the final state.

    Writes `config.json`, `checkpoints/`, `metrics.jsonl` and TensorBoard `events/`. A second call with the same config
    continues from the last checkpoint, bit for bit the run that was never interrupted. In a run of several processes all
    call this; the first one writes and prints.

    Args:
      records: what to read instead of the config's own source, such as the same one kept in memory.
      stop_after: leave after this many steps in all, without a checkpoint: what a kill would do (for tests).

    Raises:
      UserError: the workdir holds another config's run, the initial weights do not fit, the disk is full.
      FloatingPointError: the loss is no longer finite.
    """
    run = init_run(config, workdir, records)
    log = TrainLogger(config, workdir, run.first, run.extra, run.batches.told)
    state = run.state
    run.state = None  # pyright: ignore[reportAttributeAccessIssue]  # donated to the first step
    newest: Any = None  # the loss of the last step dispatched
    try:
        for k in range(run.first, config.train.steps):
            if k == stop_after:
                return state
            due = k > run.first and k % config.train.log_every == 0
            if (k % config.train.save_every == 0 or k in config.train.save_at) and k > run.first:
                if due:  # before the checkpoint, or a run resumed from it would tell it again
                    log.tell(k)
                    due = False
                else:  # a state that is no longer finite must not replace one that is
                    log.check(k)
                run.checkpoints.save(state, config, log.extras(run.batches.get_state()))
            before = time.monotonic()
            batch = next(run.batches)
            # Only a device that has run dry was kept waiting; while the last step still runs, loading is free.
            if newest is None or newest.is_ready():
                log.waited += time.monotonic() - before
            before = time.monotonic()
            with jax.transfer_guard("disallow"):
                state, metrics = run.step(state, batch)
            log.compiling += time.monotonic() - before if k == run.first else 0.0
            newest = metrics["loss"]
            log.pending.append(metrics)
            if len(log.pending) > 2:
                jax.block_until_ready(log.pending[-3])  # bounds the steps in flight
            if due:  # one step late: fetching the newest metrics would stop the device until they are here
                log.tell(k, but=1)
        if run.first < config.train.steps:
            log.tell(config.train.steps)
            final = log.extras(run.batches.get_state())
            log.summarise(final)
            run.checkpoints.save(state, config, final)
    finally:
        run.batches.close()
        log.close()
        run.checkpoints.close()
    return state
