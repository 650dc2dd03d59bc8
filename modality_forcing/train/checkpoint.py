"""Checkpoints: weights, EMA, optimizer, data position and config in one atomic Orbax save."""

from __future__ import annotations

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

from modality_forcing import distributed
from modality_forcing.config import Config, from_dict, to_dict
from modality_forcing.errors import UserError
from modality_forcing.models.restore import merge_params
from modality_forcing.train.sharding import Shardings
from modality_forcing.train.state import Params, TrainState

FORMAT = 2  # of the folder; other formats are refused
WEIGHTS = "ema"  # the item that evaluation and the next phase read
FULL = ("no space left", "disk quota", "file too large", "resource_exhausted", "enospc", "efbig")
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

        Raises UserError when the disk is full. Earlier checkpoints stay as they are.
        """
        step = int(jax.device_get(state.step))
        if step == self.latest():
            return
        meta = {"format": FORMAT, "config": to_dict(config), **metadata}
        items = {
            "params": ocp.args.StandardSave(state.params),
            "ema": ocp.args.StandardSave(state.ema),
            "optimizer": ocp.args.StandardSave(state.opt_state),
            "meta": ocp.args.JsonSave(meta),
        }
        try:
            with suppress_secondary_errors():
                self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # tensorstore reports a full disk through several types
            remove_unfinished(self.folder)
            if not disk_full(error):
                raise
            last = self.latest()
            kept = f"the checkpoint of step {last} is intact"
            if last is None:
                kept = "there is no earlier checkpoint"
            raise UserError(
                f"the disk is full: step {step} could not be saved; {kept}",
                where=self.folder,
                hint="free some space and run the same command again",
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, Metadata]:
        """Returns the latest state, with the types and shardings of `like`, and its metadata.

        Raises UserError if it cannot be read.
        """
        return read_state(self.folder / str(self.latest()), like)

    def close(self) -> None:
        """Releases the manager's threads, and deletes what a failed save still wrote."""
        self._manager.close()
        remove_unfinished(self.folder)


def disk_full(error: Exception) -> bool:
    """Returns whether an error of a save means a full disk, which comes through several types."""
    return any(word in str(error).lower() for word in FULL)


def remove_unfinished(folder: Path) -> None:
    """Deletes what an interrupted save left: it fills the disk and looks like a checkpoint."""
    for leftover in folder.glob("*.orbax-checkpoint-tmp*") if distributed.is_primary() else ():
        shutil.rmtree(leftover, ignore_errors=True)


def step_folders(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in a run's `checkpoints/`."""
    return [p for p in folder.glob("*") if p.name.isdigit() and (p / "meta").is_dir()]


def resolve_checkpoint(path: Path) -> Path:
    """Returns the folder of one step, from itself, a run's `checkpoints/`, or the run's workdir."""
    if not path.exists():
        raise UserError("no such checkpoint", where=path, hint=_HINT)
    for folder in (path, path / "checkpoints"):
        if (folder / "meta").is_dir():
            return folder
        if steps := step_folders(folder):
            return max(steps, key=lambda p: int(p.name))
    raise UserError("holds no checkpoint", where=path, hint=_HINT)


def load(path: Path, shardings: Shardings | None = None) -> tuple[Config, Params]:
    """Returns a checkpoint's config and EMA weights, whatever devices it was saved from.

    shardings: from the weights' shapes to their shardings; by default they go to the first device.
    Raises UserError if there is none, if it cannot be read, or if it has another format.
    """
    _silence_orbax()
    folder = resolve_checkpoint(path).absolute()
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
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
    config = _checked(meta, folder)["config"]
    try:
        return from_dict(config), params
    except UserError as error:
        raise UserError(f"its config is of another version ({error})", where=folder) from error


def read_state(folder: Path, like: TrainState) -> tuple[TrainState, Metadata]:
    """Returns the state in `folder/`, which is named by its step, and its metadata.

    The state has the types and shardings of `like` (abstract or real). Raises UserError if it
    cannot be read.
    """
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    wanted = {"params": like.params, "ema": like.ema, "optimizer": like.opt_state}
    with _readable(folder):
        meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
        with ocp.StandardCheckpointer() as reader:
            items = {name: reader.restore(folder / name, tree) for name, tree in wanted.items()}
    meta = _checked(meta, folder)
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
def _readable(folder: Path) -> Iterator[None]:
    """Turns an error of reading a checkpoint into a UserError."""
    try:
        with suppress_secondary_errors():
            yield
    except Exception as error:  # Orbax raises bare Exceptions for damaged arrays
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # Orbax wraps the storage's error in pages of its own
        first_line = str(cause).strip().partition("\n")[0]
        what = f"cannot be read ({first_line[:200]})"
        hint = "the checkpoint is damaged or of another run"
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
        if not inspect.iscoroutine(raised.object) and not is_closed:
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


def _checked(meta: object, folder: Path) -> Metadata:
    """Returns a checkpoint's metadata; raises UserError if this version does not read it."""
    if not isinstance(meta, Mapping) or not isinstance(meta.get("config"), Mapping):
        raise UserError("its description is damaged", where=folder)
    if meta.get("format") != FORMAT:
        what = f"is of format {meta.get('format')}, this version reads {FORMAT}"
        raise UserError(what, where=folder, hint="train anew, or use the version that wrote it")
    return dict(meta)
