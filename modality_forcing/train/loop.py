"""The training loop, one for every phase. Order, never changed: save(old state) -> next(batch) -> step -> log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from modality_forcing.config import Config, to_dict
from modality_forcing.data.pipeline import train_batches
from modality_forcing.data.records import RecordSource
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.train import checkpoint, setup
from modality_forcing.train.metrics import MetricWriter, Progress, describe
from modality_forcing.train.state import TrainState, abstract_network, init_params, init_state
from modality_forcing.train.step import make_step
from modality_forcing.writing import check_folder, write_file

# Config keys that change how a run is watched or fed but not what it computes: a run may go on with others.
FREE = ("train.log_every", "train.save_every", "train.keep", "data.workers", "sample.", "eval.")  # prefixes


def train(config: Config, workdir: Path, *, records: RecordSource | None = None, stop_after: int | None = None) -> TrainState:
    """Trains a config in a workdir, or goes on with what is there, and returns the final state.

    Writes `config.json`, `checkpoints/`, `metrics.jsonl` and TensorBoard `events/`. A second call with the same config
    continues from the last checkpoint, bit for bit the run that was never interrupted.

    Args:
      records: what to read instead of the config's own source, such as the same one kept in memory.
      stop_after: leave after this many steps in all, without a checkpoint: what a kill would do (for tests).

    Raises:
      UserError: the workdir holds another config's run, the initial weights do not fit, the disk is full.
      FloatingPointError: the loss is no longer finite.
    """
    # ---- Configuration
    claimed = is_claimed(workdir, config)
    modalities = base.build(config)
    graph, shapes = abstract_network(config, modalities)
    encoder = setup.text_encoder(config)
    null_text = {k: np.asarray(v) for k, v in encoder.null().items()}

    # ---- State: own checkpoint > train.init > fresh
    source = setup.source(config) if records is None else records
    batches = train_batches(
        source,
        encoder,
        batch=config.train.batch,
        seed=config.seed,
        resolution=config.data.resolution,
        sparse=config.data.sparse or None,
        workers=config.data.workers,
    )
    teacher = _teacher(config) if config.train.distill else None
    state = None
    if not claimed:  # whatever may be wrong shows before anything is written
        setup.check_records(config, source)
        state = _fresh(config, modalities)
        claim(workdir, config)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=config.train.keep)
    first = checkpoints.latest()
    if first is None:
        state, extra = state or _fresh(config, modalities), {"data": batches.get_state(), "seconds": 0.0}
    else:
        abstract = jax.eval_shape(lambda p: init_state(config, p), shapes)
        state, extra = checkpoints.restore(abstract)
        batches.set_state(extra["data"])
        print(f"{config.name}: going on from step {first} of {config.train.steps} in {workdir}", flush=True)
    step = make_step(config, modalities, graph, null_text, teacher)
    print(f"{config.name}: {describe(shapes)}", flush=True)

    # ---- Loop
    first = first or 0
    writer = MetricWriter(workdir, first)
    progress = Progress(config.name, config.train.steps, first)
    started, waited, compiling = time.monotonic(), 0.0, 0.0
    mark, marked_wait = started, 0.0
    newest: Any = None  # the loss of the last step dispatched
    pending = list(extra.get("pending", []))  # metrics of the steps that no row has told of yet

    def extras() -> dict[str, Any]:
        seconds = extra["seconds"] + time.monotonic() - started
        return {"data": batches.get_state(), "seconds": seconds, "pending": _numbers(pending)}

    def log(done: int, rows: list[dict[str, Any]]) -> None:
        nonlocal mark, marked_wait
        values, now = _mean(_numbers(rows)), time.monotonic()
        values["data_wait"] = (waited - marked_wait) / (now - mark)
        mark, marked_wait = now, waited
        _check_finite(values, done, config.train.log_every)
        writer.write(done, values)
        shown = {n: v for n, v in values.items() if n.startswith("loss")}
        progress.show(done, **shown, wait=f"{values['data_wait']:.1%}")

    try:
        for k in range(first, config.train.steps):
            if k == stop_after:
                return state
            due = k > first and k % config.train.log_every == 0
            if k % config.train.save_every == 0 and k > first:
                if due:  # before the checkpoint, or a run resumed from it would tell it again
                    log(k, pending)
                    due, pending = False, []
                else:  # a state that is no longer finite must not replace one that is
                    _check_finite(_mean(_numbers(pending)), k, config.train.log_every)
                checkpoints.save(state, config, extras())
            before = time.monotonic()
            batch = next(batches)
            # Only a device that has run dry was kept waiting; while the last step still runs, loading is free.
            if newest is None or newest.is_ready():
                waited += time.monotonic() - before
            before = time.monotonic()
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, jax.device_put(batch))
            compiling += time.monotonic() - before if k == first else 0.0
            newest = metrics["loss"]
            pending.append(metrics)
            if len(pending) > 2:
                jax.block_until_ready(pending[-3])  # bounds the steps in flight
            if due:  # one step late: fetching the newest metrics would stop the device until they are here
                log(k, pending[:-1])
                pending = pending[-1:]
        if first < config.train.steps:
            log(config.train.steps, pending)
            pending = []
            final, ran = extras(), time.monotonic() - started
            timing = {"seconds": final["seconds"], "compile": compiling, "data_wait_total": waited / ran}
            writer.write(config.train.steps, timing)
            checkpoints.save(state, config, final)
    finally:
        batches.close()
        writer.close()
        progress.close()
        checkpoints.close()
    return state


def claim(workdir: Path, config: Config) -> None:
    """Writes the config into a fresh workdir, or checks that the one there is the same run.

    Raises UserError naming the first key that differs.
    """
    if not is_claimed(workdir, config):
        write_file(workdir / "config.json", json.dumps(to_dict(config), indent=1))


def is_claimed(workdir: Path, config: Config, but: tuple[str, ...] = ()) -> bool:
    """Says whether a workdir already holds this run; writes nothing.

    Raises UserError if it holds another (naming the first key that differs, those in `but` aside) or cannot be a folder.
    """
    check_folder(workdir, "--workdir")
    path = workdir / "config.json"
    mine = to_dict(config)
    if path.exists():
        try:
            theirs = dict(json.loads(path.read_text()))
        except (OSError, TypeError, ValueError) as error:
            raise UserError("is not the config of a run", where=path, mend="choose another --workdir") from error
        for key in sorted(set(_flat(mine)) | set(_flat(theirs))):
            ours, other = _flat(mine).get(key), _flat(theirs).get(key)
            if ours != other and not key.startswith((*FREE, *but)):
                raise UserError(
                    f"the workdir holds a run with {key}={other!r}, not {ours!r}",
                    where=workdir,
                    mend="choose another --workdir",
                )
        return True
    if (workdir / "checkpoints").exists():
        raise UserError("holds checkpoints without a config.json", where=workdir, mend="choose another --workdir")
    return False


def _fresh(config: Config, modalities: Mapping[str, base.Modality]) -> TrainState:
    """Returns the state of step 0, with the weights of the initial checkpoint where one is named."""
    if config.train.init:
        checkpoint.find(Path(config.train.init))  # before what takes long
    params = init_params(config, modalities)
    if config.train.init:
        params = checkpoint.initial(Path(config.train.init), params, config.train.new)
    return init_state(config, params)


def _teacher(config: Config) -> tuple[Any, Any]:
    """Returns the frozen text-to-image network that self-distillation compares with: the initial checkpoint."""
    if not config.train.init:
        raise UserError("train.distill needs train.init, the checkpoint to stay near")
    theirs, params = checkpoint.load(Path(config.train.init))
    graph, _ = abstract_network(theirs, base.build(theirs))
    return graph, params


def _numbers(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items()} for row in jax.device_get(rows)]


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _check_finite(values: dict[str, float], step: int, every: int) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(f"{', '.join(bad)} not finite between steps {step - every} and {step}")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
