"""The checkpoints of one run: saved during training, committed by their last file."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from modality_forcing import distributed, paths
from modality_forcing.config import Config, to_dict
from modality_forcing.errors import StorageFailed, UserError
from modality_forcing.progress import print_stderr
from modality_forcing.text_io import json_checksum
from modality_forcing.train import checkpoint, checksums
from modality_forcing.train.checkpoint import DAMAGED, FORMAT, META, DamagedCheckpoint, Metadata
from modality_forcing.train.state import TrainState

# Files are written where they stay, because a bucket has no renaming.
_IN_PLACE = ocp.path.atomicity.CommitFileTemporaryPath
_DONE = "commit_success.txt"  # Orbax's own mark
_TEMPORARY = ".orbax-checkpoint-tmp"  # in names of earlier versions
_WAY_OUT = "restore it from a backup, or train again in another --workdir"


class Checkpoints:
    """The checkpoints of one run in `folder/<step>/`.

    In a run of several processes all of them call each method.

    Args:
      max_to_keep: how many of the last ones stay, besides those of keep_steps.
      asynchronous: `save` returns once the state is copied to host memory, and the copy is written
        during training. The files are the same either way.
    """

    def __init__(
        self,
        folder: Path,
        max_to_keep: int = 2,
        keep_steps: Collection[int] = (),
        *,
        asynchronous: bool = True,
    ):
        checkpoint.silence_orbax()
        self.folder = paths.resolve(folder)
        self._max_to_keep, self._keep_steps = max_to_keep, frozenset(keep_steps)
        self._asynchronous = asynchronous
        self._remove_unfinished()
        self._steps = _steps(self.folder)
        self._saving: _Save | None = None
        # A thread of our own, because Orbax's check for errors waits for small files.
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._finished: Future[None] | None = None  # of the save in flight
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(temporary_path_class=_IN_PLACE)
            ),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._commit),
            temporary_path_class=_IN_PLACE,
        )
        self._quiet = ExitStack()

    def latest(self) -> int | None:
        """Returns the last complete step, or None. A save in flight is not complete."""
        return self._steps[-1] if self._steps else None

    def save(self, state: TrainState, config: Config, metadata: Metadata) -> None:
        """Saves a state and JSON metadata, the data position among it, under the state's step.

        The state may be donated afterwards. A save that is still in flight is waited for first.

        Raises:
          UserError: the system refused this save, as for a full disk, or the one before, as the
            message says. Earlier checkpoints stay.
        """
        step = int(jax.device_get(state.step))
        self.wait()
        if step == self.latest():
            return
        trees = checkpoint.items(state)
        meta = {"format": FORMAT, "step": step, "config": to_dict(config), **metadata}
        every = [*self._steps, step]
        kept = {*every[-self._max_to_keep :], *self._keep_steps}
        expired = [s for s in every if s not in kept]
        self._saving = _Save(step, meta, checksums.start(trees), expired)
        items = {n: ocp.args.StandardSave(tree) for n, tree in trees.items()}
        self._quiet.enter_context(checkpoint.suppress_secondary_errors())
        try:
            # force: what is there under the name is unfinished or damaged.
            args = ocp.args.Composite(**items)
            self._writer.save(epath.Path(self.folder / str(step)), args=args, force=True)
        except Exception as error:
            self._fail(error)
        self._finished = self._waiter.submit(self._writer.wait_until_finished)
        if not self._asynchronous:
            self.wait()

    def check(self) -> None:
        """Raises UserError if the save in flight has failed; does not wait."""
        if self._finished is not None and self._finished.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the save in flight is complete in all processes.

        Raises UserError if it fails, naming its step.
        """
        if self._saving is None or self._finished is None:
            return
        try:
            self._finished.result()
        except Exception as error:
            self._fail(error)
        self._quiet.close()
        self._steps = [s for s in self._steps if s not in self._saving.expired]
        self._steps.append(self._saving.step)
        self._saving = self._finished = None

    def restore(self, like: TrainState) -> tuple[TrainState, Metadata]:
        """Returns the newest intact state, with the shardings of `like`, and its metadata.

        Damaged ones that are newer are passed over, which is printed, and marked by a file
        `damaged.txt` with the reason; the run writes them anew when it gets there. Raises UserError
        if none is intact or one cannot be read.
        """
        self.wait()
        damaged: list[tuple[Path, DamagedCheckpoint]] = []
        for step in reversed(self._steps):
            folder = self.folder / str(step)
            try:
                restored = checkpoint.read_state(folder, like)
            except DamagedCheckpoint as error:
                damaged.append((folder, error))
                continue
            self._pass_over(damaged, step)
            return restored
        if not damaged:
            raise UserError("holds no checkpoint", where=self.folder)
        others = ", ".join(folder.name for folder, _ in damaged[1:])
        also = f"step {others} cannot be read either; " if others else ""
        raise UserError(str(damaged[0][1]), hint=f"{also}{_WAY_OUT}")

    def close(self) -> None:
        """Waits for the save in flight and releases the threads; raises UserError if it fails."""
        try:
            self.wait()
        finally:
            self._waiter.shutdown()
            self._writer.close()

    def _commit(self) -> None:
        """Completes a save, in the first process, once the arrays of all processes are written."""
        saving = self._saving
        assert saving is not None
        meta = {**saving.meta, "checksums": saving.checksums()}
        meta |= {"checksum": json_checksum(meta)}
        paths.write_file(self.folder / str(saving.step) / META, json.dumps(meta))
        for step in saving.expired:
            self._delete(step)

    def _delete(self, step: int) -> None:
        folder = self.folder / str(step)
        # Without the first file the step is still complete, without both it is unfinished.
        for name in (_DONE, META):
            paths.remove(folder / name)
        paths.remove_tree(folder)

    def _fail(self, error: Exception) -> NoReturn:
        """Raises what went wrong with the save in flight, and deletes what it wrote."""
        step = "a step" if self._saving is None else f"step {self._saving.step}"
        self._saving = self._finished = None
        self._quiet.pop_all()  # never closed: other errors of the same save may still come
        self._remove_unfinished()
        last = self.latest()
        kept = f"the checkpoint of step {last} is intact"
        if last is None:
            kept = "there is no earlier checkpoint"
        kind = UserError
        if paths.cause(error) is None:
            if not paths.is_address(self.folder):
                raise error
            kind = StorageFailed
        raise kind(
            f"{step} could not be saved ({paths.reason(error)}); {kept}",
            where=self.folder,
            hint=f"{paths.hint_for(error)} and run the same command again",
        ) from error

    def _remove_unfinished(self) -> None:
        """Deletes what an interrupted save left: it fills the disk."""
        if not distributed.is_primary() or not paths.is_dir(self.folder):
            return
        for path in paths.list_dir(self.folder):
            # Orbax writes a file of its own once it is done: a step that has it lost its `meta`.
            unfinished = path.name.isdigit() and not (
                checkpoint.is_complete(path) or paths.exists(path / _DONE)
            )
            if unfinished or _TEMPORARY in path.name:
                paths.remove_tree(path)

    def _pass_over(self, damaged: Sequence[tuple[Path, DamagedCheckpoint]], step: int) -> None:
        """Marks and names the damaged checkpoints after the one that a run resumes from."""
        self._steps = [s for s in self._steps if s <= step]
        if distributed.is_primary():
            for folder, error in damaged:
                paths.write_file(folder / DAMAGED, f"{error}\n")
                print_stderr(f"{error}; passed over for step {step}")


@dataclass(frozen=True)
class _Save:
    """A save in flight."""

    step: int
    meta: Metadata  # without the checksums
    checksums: Callable[[], Mapping[str, Mapping[str, str]]]  # waits for them
    expired: Sequence[int]  # steps to delete once this one is complete


def _steps(folder: Path) -> list[int]:
    """Returns the complete steps, as the first process sees them."""
    steps = [int(step.name) for step in checkpoint.step_folders(folder)]
    if jax.process_count() == 1:
        return steps
    count = int(multihost_utils.broadcast_one_to_all(np.array(len(steps))))
    padded = np.resize(np.array([*steps, 0]), count)
    return [int(step) for step in multihost_utils.broadcast_one_to_all(padded)]
