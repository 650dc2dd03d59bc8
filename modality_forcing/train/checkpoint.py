"""Checkpoints: weights, EMA, optimiser and the data's place in one atomic Orbax save, with the config that made them."""

from __future__ import annotations

import inspect
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN

from modality_forcing import distributed
from modality_forcing.config import Config, from_dict, to_dict
from modality_forcing.errors import UserError
from modality_forcing.models.restore import graft
from modality_forcing.train.state import Params, TrainState

FORMAT = 2  # of the folder; readers refuse what they do not know
WEIGHTS = "ema"  # the item that evaluation and the next phase read
FULL = ("no space left", "disk quota", "file too large", "resource_exhausted", "enospc", "efbig")


class Checkpoints:
    """The checkpoints of one run, in `folder/<step>/`: the last `keep` and those of `also`, each visible once it is complete."""

    def __init__(self, folder: Path, keep: int = 1, also: Collection[int] = ()):
        _quiet()
        self.folder = folder.absolute()
        remove_unfinished(self.folder)
        # Synchronous: an error belongs to the step that caused it, and the state may be donated right after.
        kept = AnyPreservationPolicy([LatestN(keep), CustomSteps(sorted(also))])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=kept, enable_async_checkpointing=False, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Returns the last complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: Config, extra: Mapping[str, Any]) -> None:
        """Saves a state and JSON-able extras (the data iterator's place among them) under its step.

        Raises UserError when the disk is full; the checkpoints before it are untouched.
        """
        step = int(jax.device_get(state.step))
        if step == self.latest():
            return
        meta = {"format": FORMAT, "config": to_dict(config), **extra}
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
            kept = (
                "there is no earlier checkpoint"
                if last is None
                else f"the checkpoint of step {last} is intact"
            )
            raise UserError(
                f"the disk is full: step {step} could not be saved; {kept}",
                where=self.folder,
                hint="free some space and run the same command again",
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the latest state, placed and typed like `like` (abstract or real), and the extras saved with it.

        Raises UserError if it cannot be read.
        """
        step = self.latest()
        assert step is not None
        return read_state(self.folder / str(step), like)

    def close(self) -> None:
        """Releases the manager's threads, and deletes what those of a failed save still wrote."""
        self._manager.close()
        remove_unfinished(self.folder)


def disk_full(error: Exception) -> bool:
    """Says whether an error of a save is that of a full disk, which comes through several types."""
    return any(word in str(error).lower() for word in FULL)


def remove_unfinished(folder: Path) -> None:
    """Deletes what an interrupted save left behind, so that it neither fills the disk nor looks like a checkpoint."""
    for leftover in folder.glob("*.orbax-checkpoint-tmp*") if distributed.is_primary() else ():
        shutil.rmtree(leftover, ignore_errors=True)


def resolve_checkpoint(path: Path) -> Path:
    """Returns the folder of one step from itself, from a run's `checkpoints/`, or from the run's workdir."""
    if not path.exists():
        raise UserError(
            "no such checkpoint",
            where=path,
            hint="give a workdir, its checkpoints/ or one step in it",
        )
    for folder in (path, path / "checkpoints"):
        if (folder / "meta").is_dir():
            return folder
        steps = [p for p in folder.glob("*") if p.name.isdigit() and (p / "meta").is_dir()]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    raise UserError(
        "holds no checkpoint", where=path, hint="give a workdir, its checkpoints/ or one step in it"
    )


def load(path: Path, place: Callable[[Any], Any] | None = None) -> tuple[Config, Params]:
    """Returns a checkpoint's config and its EMA weights, on whatever devices it was saved from.

    place: from the shapes of the weights to their shardings; without it they go to the first device.
    Raises UserError if there is none, if it cannot be read, or if it was written in another format.
    """
    _quiet()
    folder = resolve_checkpoint(path).absolute()
    try:
        meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
        with suppress_secondary_errors(), ocp.StandardCheckpointer() as reader:
            tree = reader.metadata(folder / WEIGHTS)
            shapes = getattr(tree, "item_metadata", tree)
            shapes = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), _plain(shapes))
            first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = jax.tree.map(lambda _: first, shapes) if place is None else place(shapes)
            abstract = jax.tree.map(
                lambda m, s: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=s), shapes, shardings
            )
            params = reader.restore(folder / WEIGHTS, abstract)
    except Exception as error:  # Orbax raises bare Exceptions for damaged arrays
        raise _unreadable(folder, error) from error
    config = _checked(meta, folder)["config"]
    try:
        return from_dict(config), params
    except UserError as error:
        raise UserError(f"its config is of another version ({error})", where=folder) from error


def read_state(folder: Path, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state in `folder/`, named by its step, placed and typed like `like`, and the extras saved with it.

    Raises UserError if it cannot be read.
    """
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    wanted = {"params": like.params, "ema": like.ema, "optimizer": like.opt_state}
    try:
        meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
        with suppress_secondary_errors(), ocp.StandardCheckpointer() as reader:
            items = {name: reader.restore(folder / name, tree) for name, tree in wanted.items()}
    except Exception as error:  # Orbax raises bare Exceptions for damaged arrays
        raise _unreadable(folder, error) from error
    step = jax.numpy.asarray(int(folder.name), like.step.dtype)
    return TrainState(step, items["params"], items["optimizer"], items["ema"]), _checked(
        meta, folder
    )


def init_from_checkpoint(
    path: Path, fresh: Params, new: tuple[str, ...], place: Callable[[Any], Any] | None = None
) -> Params:
    """Returns a checkpoint's weights in the place of fresh ones, all but the modules of the modalities in `new`."""
    _, params = load(path, place)
    return graft(params, fresh, new, where=path)


def _quiet() -> None:
    logging.getLogger("absl").setLevel(
        logging.CRITICAL
    )  # Orbax warns of files that are absent by design


@contextmanager
def suppress_secondary_errors() -> Iterator[None]:
    """Leaves it at the first error of Orbax's many parallel reads or writes.

    Those of the others arrive when nobody waits for them, some after this has returned; each would print a traceback.
    """
    before, log = sys.unraisablehook, logging.getLogger("asyncio")

    def hook(raised: Any) -> None:
        if (
            not inspect.iscoroutine(raised.object)
            and str(raised.exc_value) != "Event loop is closed"
        ):
            before(raised)

    def retrieved(record: logging.LogRecord) -> bool:
        return "never retrieved" not in record.getMessage()

    sys.unraisablehook = hook
    log.addFilter(retrieved)
    try:
        yield
    except Exception:  # where an error passes, all this stays
        warnings.filterwarnings(
            "ignore", message="coroutine .* was never awaited", category=RuntimeWarning
        )
        raise
    sys.unraisablehook = before
    log.removeFilter(retrieved)


def _plain(tree: Any) -> Any:
    return {k: _plain(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _checked(meta: Any, folder: Path) -> dict[str, Any]:
    """Returns a checkpoint's description if it is one that this version reads."""
    if not isinstance(meta, Mapping) or not isinstance(meta.get("config"), Mapping):
        raise UserError("its description is damaged", where=folder)
    if meta.get("format") != FORMAT:
        raise UserError(
            f"is of format {meta.get('format')}, this version reads {FORMAT}", where=folder
        )
    return dict(meta)


def _unreadable(folder: Path, error: Exception) -> UserError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__  # Orbax wraps what the storage said in pages of its own
    first = str(cause).strip().split("\n")[0][:200]
    return UserError(
        f"cannot be read ({first})",
        where=folder,
        hint="the checkpoint is damaged or of another run",
    )
