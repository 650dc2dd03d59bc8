"""The training loop of every phase. Its order never changes.

evaluate(old state), save(old state), next, step, log.

A run that a signal stops ends after a save, before the next batch.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from modality_forcing import compilation_cache, preemption, signals
from modality_forcing.allocator import keep_freed_memory
from modality_forcing.config import Config
from modality_forcing.data.records import RecordSource
from modality_forcing.train.evaluation import MakeEvaluate, is_due
from modality_forcing.train.init import Run, init_run
from modality_forcing.train.logger import TrainLogger
from modality_forcing.train.profile import Profiler, ProfileWindow
from modality_forcing.train.run_clock import RunClock
from modality_forcing.train.spike_guard import SpikeGuard
from modality_forcing.train.spikes import Spike
from modality_forcing.train.state import TrainState
from modality_forcing.train.stopping import SaveClock, Stopping
from modality_forcing.train.workdir import check_resumable, hold, resolve_paths


def train(
    config: Config,
    workdir: Path,
    *,
    records: RecordSource | None = None,
    make_evaluate: MakeEvaluate | None = None,
    wandb: bool = False,
    profile: ProfileWindow | None = None,
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
      wandb: log rows to Weights & Biases too.
      profile: the steps to profile, into `profile/`.
      stop_after: return after this many steps in total without a checkpoint, as if killed (for
        tests).

    Raises:
      UserError: the workdir is in use or holds another config's run, the initial weights do not
        fit, or the disk is full.
      FloatingPointError: a spike, where train.on_spike says to stop.
      StopRequest: a signal asked to stop; the state is saved.
    """
    config = resolve_paths(config)
    resumes = check_resumable(workdir, config)  # before the folder is touched
    clock = RunClock()
    cache = compilation_cache.enabled(config.train.compilation_cache, workdir)
    with ExitStack() as stack:
        stack.enter_context(hold(workdir))
        if resumes:
            stack.enter_context(cache)
        run, state = init_run(config, workdir, records, make_evaluate)
        keep_freed_memory()
        if not resumes:  # after all that could refuse the run: until then nothing is written
            stack.enter_context(cache)
        return _train(
            config,
            workdir,
            run,
            state,
            clock=clock,
            profiler=Profiler(profile, workdir),
            wandb=wandb,
            stop_after=stop_after,
        )


@dataclass(frozen=True)
class _Watch:
    """What the loop reports its steps to, and what stops it."""

    logger: TrainLogger
    guard: SpikeGuard
    stop: Stopping
    profiler: Profiler
    stop_after: int | None


def _train(
    config: Config,
    workdir: Path,
    run: Run,
    state: TrainState,
    *,
    clock: RunClock,
    profiler: Profiler,
    wandb: bool,
    stop_after: int | None,
) -> TrainState:
    guard = SpikeGuard(config.train, workdir, run.batches.records)
    with ExitStack() as stack:
        stack.callback(run.checkpoints.close)
        stack.callback(run.batches.close)
        stack.callback(profiler.close)
        # Not an exception at any moment: it would be lost in callbacks, or break off a save.
        stop = Stopping(stack.enter_context(signals.stop_flag(notify=preemption.notify)))
        while True:
            guard.begin(run.start_step, run.batches.get_state()["batches"])
            logger = TrainLogger(
                config,
                workdir,
                start_step=run.start_step,
                metadata=run.metadata,
                loader_stats=run.batches.pop_stats,
                clock=clock,
                wandb=wandb,
            )
            with closing(logger):
                try:
                    watch = _Watch(logger, guard, stop, profiler, stop_after)
                    state = _run_steps(config, run, state, watch)
                    break
                except Spike as error:
                    spike = error.with_traceback(None)  # which would hold the state
            del state
            clock = RunClock()
            run, state = _roll_back(run, guard, spike)
        stop.finish()
    return state


def _run_steps(config: Config, run: Run, state: TrainState, watch: _Watch) -> TrainState:
    """Returns the state after the last step; raises Spike for a step that must not be kept."""
    c, logger, guard, stop = config.train, watch.logger, watch.guard, watch.stop
    clock, saves = logger.clock, SaveClock(c.save_every_minutes)
    newest: Any = None  # the loss of the last dispatched step
    for k in range(run.start_step, c.steps):
        run.checkpoints.check()
        if k == watch.stop_after:
            return state
        resumed = k == run.start_step  # this step's row and checkpoint are written already
        log_due = not resumed and k % c.log_every == 0
        if not (ends := stop.reached()):
            _evaluate(config, k, run, state, watch)
            ends = stop.reached()  # an evaluation takes a while
        save_due = k % c.save_every == 0 or k in c.keep_at_steps or saves.is_due(k)
        if not resumed and (ends or save_due):
            logger.leave_out(guard.check())  # a state that is not finite must not replace one
            if log_due:  # before the checkpoint, or a resumed run would write the row again
                logger.log(k)
                log_due = False
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
        # Only an idle device counts as waiting. While the last step still runs, loading is free.
        if newest is None or newest.is_ready():
            clock.data_wait_s += time.monotonic() - before
        watch.profiler.before_step(k, logger.pending)
        before = time.monotonic()
        annotation = jax.profiler.StepTraceAnnotation("step", step_num=k)
        with jax.transfer_guard("disallow"), annotation:
            state, metrics = run.step(state, batch)
        if resumed:
            clock.compile_s = time.monotonic() - before
        newest = metrics["loss"]
        logger.pending.append(metrics)
        guard.add(k + 1, metrics)
        if len(logger.pending) > 2:
            jax.block_until_ready(logger.pending[-3])  # bounds the number of steps in flight
        if log_due:  # one step late: fetching the newest metrics would make the device wait
            logger.leave_out(guard.check(skip_last=1))
            logger.log(k, skip_last=1)
    if run.start_step < c.steps:
        logger.leave_out(guard.check())
        logger.log(c.steps)
        _evaluate(config, c.steps, run, state, watch)
        metadata = logger.checkpoint_metadata(run.batches.get_state())
        logger.write_summary(metadata)
        run.checkpoints.save(state, config, metadata)
        run.checkpoints.wait()
    return state


def _roll_back(run: Run, guard: SpikeGuard, spike: Spike) -> tuple[Run, TrainState]:
    """Returns the run at its last checkpoint, with the batches after the one that spiked.

    Raises FloatingPointError where train.on_spike, or the number of tries, says to stop.
    """
    run.checkpoints.wait()
    reason = guard.why_stop(spike, run.checkpoints.latest())
    guard.note(spike, "rollback" if reason is None else "stop")
    if reason is not None:
        raise FloatingPointError(f"{guard.describe(spike)}{reason}")
    state, metadata = run.restore()
    run.batches.set_state({"batches": guard.batch_of(spike.step) + 1})
    return replace(run, start_step=int(jax.device_get(state.step)), metadata=metadata), state


def _evaluate(config: Config, step: int, run: Run, state: TrainState, watch: _Watch) -> None:
    """Evaluates the EMA after `step` updates if it is due, and writes the row before a save."""
    logger = watch.logger
    if run.evaluate is None or not is_due(config, step, logger.evaluated_step):
        return
    logger.leave_out(watch.guard.check())
    with logger.outside_steps():
        before = time.monotonic()
        result = run.evaluate(state.all_ema())
        logger.write_evaluation(step, result, time.monotonic() - before)
