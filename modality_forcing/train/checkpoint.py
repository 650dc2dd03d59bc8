"""Checkpoints: weights, EMA, optimizer, data position and config in one atomic Orbax save.

`meta` holds the checksum of every array and of itself. They are verified on reading, so that a
checkpoint damaged on disk is refused, naming what is damaged.
"""

from __future__ import annotations

import functools
import inspect
import logging
import shutil
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN

from modality_forcing import distributed, paths
from modality_forcing.config import Config, from_dict, to_dict
from modality_forcing.errors import UserError
from modality_forcing.models.restore import merge_params
from modality_forcing.paths import is_dir
from modality_forcing.progress import print_stderr
from modality_forcing.text_io import json_checksum
from modality_forcing.train import checksums
from modality_forcing.train.sharding import Shardings
from modality_forcing.train.state import Params, TrainState

FORMAT = 3  # of the folder; format 2 has no checksums and is read, others are refused
_UNVERIFIED = 2
WEIGHTS = "ema"  # the item that evaluation and the next phase read
_HINT = "give a workdir, its checkpoints/ or one step in it"
Metadata = Mapping[str, Any]  # JSON: the config, the data position, metrics not written yet


class Checkpoints:
    """The checkpoints of one run in `folder/<step>/`. Each is visible once it is complete.

    max_to_keep: how many of the last ones stay, besides those of keep_steps.
    """

    def __init__(self, folder: Path, max_to_keep: int = 1, keep_steps: Collection[int] = ()):
        _silence_orbax()
        self.folder = folder.absolute()
        remove_unfinished(self.folder)
        kept = AnyPreservationPolicy([LatestN(max_to_keep), CustomSteps(sorted(keep_steps))])
        # Synchronous: an error belongs to the step that caused it, and the state may be donated.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=kept, enable_async_checkpointing=False, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Returns the last complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: Config, metadata: Metadata) -> None:
        """Saves a state and JSON metadata, the data position among it, under the state's step.

        Raises UserError when the system refuses it, as for a full disk. Earlier checkpoints stay.
        """
        step = int(jax.device_get(state.step))
        if step == self.latest():
            return
        trees = {"params": state.params, "ema": state.ema, "optimizer": state.opt_state}
        meta = {
            "format": FORMAT,
            "step": step,
            "config": to_dict(config),
            **metadata,
            "checksums": {name: checksums.checksums(tree) for name, tree in trees.items()},
        }
        meta = ocp.args.JsonSave(meta | {"checksum": json_checksum(meta)})
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        try:
            with suppress_secondary_errors():
                args = ocp.args.Composite(**items, meta=meta)
                self._manager.save(step, args=args, force=True)
        except Exception as error:  # tensorstore reports a full disk through several types
            remove_unfinished(self.folder)
            if paths.cause(error) is None:
                raise
            last = self.latest()
            kept = f"the checkpoint of step {last} is intact"
            if last is None:
                kept = "there is no earlier checkpoint"
            raise UserError(
                f"step {step} could not be saved ({paths.reason(error)}); {kept}",
                where=self.folder,
                hint=f"{paths.hint_for(error)} and run the same command again",
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, Metadata]:
        """Returns the latest state, with the types and shardings of `like`, and its metadata.

        Raises UserError if it is damaged or cannot be read, with the way out.
        """
        earlier = sorted(int(path.name) for path in step_folders(self.folder))[:-1]
        way_out = "restore it from a backup, or train again in another --workdir"
        if earlier:
            way_out = f"delete this folder to resume from step {earlier[-1]}"
        return read_state(self.folder / str(self.latest()), like, way_out)

    def close(self) -> None:
        """Releases the manager's threads, and deletes what a failed save still wrote."""
        self._manager.close()
        remove_unfinished(self.folder)


def remove_unfinished(folder: Path) -> None:
    """Deletes what an interrupted save left: it fills the disk and looks like a checkpoint."""
    for leftover in folder.glob("*.orbax-checkpoint-tmp*") if distributed.is_primary() else ():
        shutil.rmtree(leftover, ignore_errors=True)


def step_folders(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in a run's `checkpoints/`."""
    return [p for p in folder.glob("*") if p.name.isdigit() and is_dir(p / "meta")]


def resolve_checkpoint(path: Path) -> Path:
    """Returns the folder of one step, from itself, a run's `checkpoints/`, or the run's workdir."""
    if not paths.exists(path):
        raise UserError("no such checkpoint", where=path, hint=_HINT)
    for folder in (path, path / "checkpoints"):
        if paths.is_dir(folder / "meta"):
            return folder
        if steps := step_folders(folder):
            return max(steps, key=lambda p: int(p.name))
    raise UserError("holds no checkpoint", where=path, hint=_HINT)


def load(path: Path, shardings: Shardings | None = None) -> tuple[Config, Params]:
    """Returns a checkpoint's config and EMA weights, whatever devices it was saved from.

    shardings: from the weights' shapes to their shardings; by default they go to the first device.
    Raises UserError if there is none, if it cannot be read, is damaged or has another format, and
    for weights that are not finite.
    """
    _silence_orbax()
    folder = resolve_checkpoint(path).absolute()
    first = jax.sharding.SingleDeviceSharding(distributed.local_devices()[0])
    with _readable(folder):
        meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
        with ocp.StandardCheckpointer() as reader:
            tree = reader.metadata(folder / WEIGHTS)
            tree = _plain(getattr(tree, "item_metadata", tree))
            shapes = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), tree)
            placed = (
                jax.tree.map(lambda _: first, shapes) if shardings is None else shardings(shapes)
            )
            abstract = jax.tree.map(
                lambda m, s: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=s), shapes, placed
            )
            params = reader.restore(folder / WEIGHTS, abstract)
    meta = _checked(meta, folder)
    _verify(meta, {WEIGHTS: params}, folder)
    if bad := checksums.not_finite(params):
        what = f"its weights are not finite: {WEIGHTS}/{checksums.some(bad)}"
        raise UserError(what, where=folder, hint="use an earlier checkpoint, or train again")
    config = meta["config"]
    try:
        return from_dict(config), params
    except UserError as error:
        raise UserError(f"its config is of another version ({error})", where=folder) from error


def read_state(
    folder: Path, like: TrainState, way_out: str = "choose another checkpoint"
) -> tuple[TrainState, Metadata]:
    """Returns the state in `folder/`, which is named by its step, and its metadata.

    The state has the types and shardings of `like` (abstract or real). Raises UserError with the
    way out if it is damaged or cannot be read.
    """
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    wanted = {"params": like.params, "ema": like.ema, "optimizer": like.opt_state}
    with _readable(folder, way_out):
        meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
        with ocp.StandardCheckpointer() as reader:
            items = {name: reader.restore(folder / name, tree) for name, tree in wanted.items()}
    meta = _checked(meta, folder, way_out)
    if (saved_as := meta.get("step", int(folder.name))) != int(folder.name):
        what = f"is the checkpoint of step {saved_as} under another name"
        raise UserError(what, where=folder, hint="give it its own name back")
    _verify(meta, items, folder, way_out)
    step = jax.numpy.asarray(int(folder.name), like.step.dtype)
    return TrainState(step, items["params"], items["optimizer"], items["ema"]), meta


def init_from_checkpoint(
    path: Path, fresh: Params, allow_missing: tuple[str, ...], shardings: Shardings | None = None
) -> Params:
    """Returns a checkpoint's weights; modules of the modalities in `allow_missing` stay `fresh`."""
    _, params = load(path, shardings)
    return merge_params(params, fresh, allow_missing, where=path)


def _silence_orbax() -> None:
    # Orbax warns of files that are absent by design.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


@contextmanager
def _readable(folder: Path, way_out: str = "") -> Iterator[None]:
    """Turns an error of reading a checkpoint into a UserError."""
    try:
        with suppress_secondary_errors():
            yield
    except Exception as error:  # Orbax raises bare Exceptions for damaged arrays
        if paths.is_environment_error(error):
            raise paths.os_error(error, folder, "read") from error
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # Orbax wraps the storage's error in pages of its own
        first_line = str(cause).strip().partition("\n")[0]
        what = f"cannot be read ({first_line[:200]})"
        hint = "; ".join(filter(None, ("the checkpoint is damaged or of another run", way_out)))
        raise UserError(what, where=folder, hint=hint) from error


@contextmanager
def suppress_secondary_errors() -> Iterator[None]:
    """Silences all but the first error of Orbax's parallel reads or writes.

    The other errors arrive when nobody waits for them, some after this context has ended; each
    would print a traceback.
    """
    before, log = sys.unraisablehook, logging.getLogger("asyncio")

    def hook(raised: Any) -> None:  # sys.UnraisableHookArgs, a name for type checkers only
        is_closed = str(raised.exc_value) == "Event loop is closed"
        # An event loop that found no descriptor for itself cannot be closed either.
        is_loop = getattr(raised.object, "__qualname__", "") == "BaseEventLoop.__del__"
        if not inspect.iscoroutine(raised.object) and not is_closed and not is_loop:
            before(raised)

    def retrieved(record: logging.LogRecord) -> bool:
        return "never retrieved" not in record.getMessage()

    sys.unraisablehook = hook
    log.addFilter(retrieved)
    try:
        yield
    except Exception:  # after an error all of this stays in place
        message = "coroutine .* was never awaited"
        warnings.filterwarnings("ignore", message=message, category=RuntimeWarning)
        raise
    sys.unraisablehook = before
    log.removeFilter(retrieved)


def _plain(tree: PyTree) -> PyTree:
    return {k: _plain(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _checked(meta: object, folder: Path, way_out: str = "") -> Metadata:
    """Returns a checkpoint's metadata; raises UserError if damaged or not read by this version."""
    damaged = UserError("its description is damaged", where=folder, hint=way_out)
    if not isinstance(meta, Mapping) or not isinstance(meta.get("config"), Mapping):
        raise damaged
    # First, since another format may have other checksums.
    if meta.get("format") not in (FORMAT, _UNVERIFIED):
        what = f"is of format {meta.get('format')}, this version reads {FORMAT}"
        raise UserError(what, where=folder, hint="train anew, or use the version that wrote it")
    meta = dict(meta)
    stored = meta.pop("checksum", None)
    has_checksum = stored is not None or meta["format"] == FORMAT
    if has_checksum and stored != json_checksum(meta):
        raise damaged
    if meta["format"] == _UNVERIFIED and distributed.is_primary():
        _note_unverified(folder)
    return meta


@functools.cache
def _note_unverified(folder: Path) -> None:
    print_stderr(f"{folder}: is of an earlier version, without checksums: damage may go unnoticed")


def _verify(meta: Metadata, items: Mapping[str, PyTree], folder: Path, way_out: str = "") -> None:
    """Raises UserError if an item is not what was saved, naming the first arrays that differ."""
    if "checksums" not in meta:
        return
    bad = [
        f"{name}/{path}"
        for name, tree in items.items()
        for path in checksums.changed(tree, meta["checksums"][name])
    ]
    if bad:
        what = f"is damaged: {checksums.some(bad)} changed after saving"
        raise UserError(what, where=folder, hint=way_out or "use another checkpoint or a backup")
