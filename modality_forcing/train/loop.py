"""The training loop of every phase. Its order never changes.

evaluate(old state), save(old state), next, step, log.

A run that a signal stops ends after a save, before the next batch.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from modality_forcing import compilation_cache, distributed, locks
from modality_forcing.config import Config
from modality_forcing.data.records import RecordSource
from modality_forcing.train.evaluation import MakeEvaluate, is_due
from modality_forcing.train.init import Run, init_run
from modality_forcing.train.logger import TrainLogger
from modality_forcing.train.run_clock import RunClock
from modality_forcing.train.state import TrainState
from modality_forcing.train.stopping import SaveClock, Stopping
from modality_forcing.train.workdir import check_resumable, resolve_paths


def train(
    config: Config,
    workdir: Path,
    *,
    records: RecordSource | None = None,
    make_evaluate: MakeEvaluate | None = None,
    stop_after: int | None = None,
) -> TrainState:
    """Trains a config in a workdir and returns the final state.

    Writes `config.json`, `checkpoints/`, `metrics.jsonl` and TensorBoard `events/`. A second call
    with the same config resumes from the last checkpoint; the result equals an uninterrupted run
    bit for bit. In a run of several processes all call this function, and the first one writes and
    prints.

    Args:
      records: replaces the config's own source, for example by the same records in memory.
      make_evaluate: makes what is evaluated every eval.every steps; None: nothing, whatever the
        config says. It changes no weights.
      stop_after: return after this many steps in total without a checkpoint, as if killed (for
        tests).

    Raises:
      UserError: the workdir is in use or holds another config's run, the initial weights do not
        fit, or the disk is full.
      FloatingPointError: a metric is no longer finite.
      StopRequest: a signal asked to stop; the state is saved.
    """
    config = resolve_paths(config)
    resumes = check_resumable(workdir, config)  # before the folder is touched
    clock = RunClock()
    cache = compilation_cache.enabled(config.train.compilation_cache, workdir)
    with ExitStack() as stack:
        stack.enter_context(locks.hold(workdir, "--workdir", primary=distributed.is_primary()))
        if resumes:
            stack.enter_context(cache)
        run, state = init_run(config, workdir, records, make_evaluate)
        if not resumes:  # after all that could refuse the run: until then nothing is written
            stack.enter_context(cache)
        logger = TrainLogger(
            config,
            workdir,
            start_step=run.start_step,
            metadata=run.metadata,
            loader_stats=run.batches.pop_stats,
            clock=clock,
        )
        return _train(config, run, state, logger, stop_after)


def _train(
    config: Config, run: Run, state: TrainState, logger: TrainLogger, stop_after: int | None
) -> TrainState:
    c, clock = config.train, logger.clock
    saves = SaveClock(c.save_every_minutes)
    newest: Any = None  # the loss of the last dispatched step
    with ExitStack() as stack:
        stack.callback(run.checkpoints.close)
        stack.callback(logger.close)
        stack.callback(run.batches.close)
        # Not an exception at any moment: it would be lost in callbacks, or break off a save.
        stop = stack.enter_context(Stopping())
        for k in range(run.start_step, c.steps):
            run.checkpoints.check()
            if k == stop_after:
                return state
            resumed = k == run.start_step  # this step's row and checkpoint are written already
            log_due = not resumed and k % c.log_every == 0
            if not (ends := stop.reached()):
                _evaluate(config, k, run, state, logger)
                ends = stop.reached()  # an evaluation takes a while
            save_due = k % c.save_every == 0 or k in c.keep_at_steps or saves.is_due(k)
            if not resumed and (ends or save_due):
                if log_due:  # before the checkpoint, or a resumed run would write the row again
                    logger.log(k)
                    log_due = False
                else:  # a state that is not finite must not replace one that is
                    logger.check_finite(k)
                metadata = logger.checkpoint_metadata(run.batches.get_state())
                with logger.outside_steps():
                    run.checkpoints.save(state, config, metadata)
                saves.restart()
                ends = ends or stop.reached()  # or the next step would be saved as well
            if ends:
                run.checkpoints.wait()
                stop.end(k, saved=k > 0)
            before = time.monotonic()
            batch = next(run.batches)
            # Only an idle device counts as waiting. While the last step still runs, loading is
            # free.
            if newest is None or newest.is_ready():
                clock.data_wait_s += time.monotonic() - before
            before = time.monotonic()
            with jax.transfer_guard("disallow"):
                state, metrics = run.step(state, batch)
            if resumed:
                clock.compile_s = time.monotonic() - before
            newest = metrics["loss"]
            logger.pending.append(metrics)
            if len(logger.pending) > 2:
                jax.block_until_ready(logger.pending[-3])  # bounds the number of steps in flight
            if log_due:  # one step late: fetching the newest metrics would make the device wait
                logger.log(k, skip_last=1)
        if run.start_step < c.steps:
            logger.log(c.steps)
            _evaluate(config, c.steps, run, state, logger)
            metadata = logger.checkpoint_metadata(run.batches.get_state())
            logger.write_summary(metadata)
            run.checkpoints.save(state, config, metadata)
            run.checkpoints.wait()
        stop.finish()
    return state


def _evaluate(config: Config, step: int, run: Run, state: TrainState, logger: TrainLogger) -> None:
    """Evaluates the EMA after `step` updates if it is due, and writes the row before a save."""
    if run.evaluate is None or not is_due(config, step, logger.evaluated_step):
        return
    logger.check_finite(step)
    with logger.outside_steps():
        before = time.monotonic()
        result = run.evaluate(state.ema)
        logger.write_evaluation(step, result, time.monotonic() - before)
