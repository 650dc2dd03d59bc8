"""Checkpoints: weights, EMA, optimiser and the data's place in one atomic Orbax save, with the config that made them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from modality_forcing.config import Config, from_dict, to_dict
from modality_forcing.errors import UserError
from modality_forcing.models.surgery import graft
from modality_forcing.train.state import Params, TrainState

FORMAT = 1  # of the folder; readers refuse what they do not know
WEIGHTS = "ema"  # the item that evaluation and the next phase read
FULL = ("no space left", "disk quota", "file too large", "resource_exhausted", "enospc", "efbig")


class Checkpoints:
    """The checkpoints of one run, in `folder/<step>/`; a step is visible only once it is complete."""

    def __init__(self, folder: Path, keep: int = 1):
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = folder.absolute()
        remove_unfinished(self.folder)
        # Synchronous: an error belongs to the step that caused it, and the state may be donated right after.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=True)
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
            "optimiser": ocp.args.StandardSave(state.opt_state),
            "meta": ocp.args.JsonSave(meta),
        }
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # tensorstore reports a full disk through several types
            remove_unfinished(self.folder)
            if not any(word in str(error).lower() for word in FULL):
                raise
            last = self.latest()
            kept = "there is no earlier checkpoint" if last is None else f"the checkpoint of step {last} is intact"
            raise UserError(
                f"the disk is full: step {step} could not be saved; {kept}",
                where=self.folder,
                mend="free some space and run the same command again",
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the latest state, placed and typed like `like` (abstract or real), and the extras saved with it."""
        step = self.latest()
        assert step is not None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = {
            "params": ocp.args.StandardRestore(abstract.params),
            "ema": ocp.args.StandardRestore(abstract.ema),
            "optimiser": ocp.args.StandardRestore(abstract.opt_state),
            "meta": ocp.args.JsonRestore(),
        }
        try:
            items = self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise _unreadable(self.folder / str(step), error) from error
        counter = jax.numpy.asarray(step, like.step.dtype)
        return TrainState(counter, items["params"], items["optimiser"], items["ema"]), dict(items["meta"])

    def close(self) -> None:
        """Releases the manager's threads."""
        self._manager.close()


def remove_unfinished(folder: Path) -> None:
    """Deletes what an interrupted save left behind, so that it neither fills the disk nor looks like a checkpoint."""
    for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)


def find(path: Path) -> Path:
    """Returns the folder of one step from itself, from a run's `checkpoints/`, or from the run's workdir."""
    if not path.exists():
        raise UserError("no such checkpoint", where=path, mend="give a workdir, its checkpoints/ or one step in it")
    for folder in (path, path / "checkpoints"):
        if (folder / "meta").is_dir():
            return folder
        steps = [p for p in folder.glob("*") if p.name.isdigit() and (p / "meta").is_dir()]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    raise UserError("holds no checkpoint", where=path, mend="give a workdir, its checkpoints/ or one step in it")


def load(path: Path) -> tuple[Config, Params]:
    """Returns a checkpoint's config and its EMA weights.

    Raises UserError if there is none, if it cannot be read, or if it was written in another format.
    """
    folder = find(path).absolute()
    try:
        meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
        with ocp.StandardCheckpointer() as reader:
            tree = reader.metadata(folder / WEIGHTS)
            shapes = getattr(tree, "item_metadata", tree)
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), _plain(shapes))
            params = reader.restore(folder / WEIGHTS, abstract)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise _unreadable(folder, error) from error
    if meta.get("format") != FORMAT:
        raise UserError(f"is of format {meta.get('format')}, this version reads {FORMAT}", where=folder)
    return from_dict(meta["config"]), params


def initial(path: Path, fresh: Params, new: tuple[str, ...]) -> Params:
    """Returns a checkpoint's weights in the place of fresh ones, all but the modules of the modalities in `new`."""
    _, params = load(path)
    return graft(params, fresh, new, where=path)


def _plain(tree: Any) -> Any:
    return {k: _plain(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _unreadable(folder: Path, error: Exception) -> UserError:
    first = str(error).strip().split("\n")[0][:200]
    return UserError(f"cannot be read ({first})", where=folder, mend="the checkpoint is damaged or of another run")
