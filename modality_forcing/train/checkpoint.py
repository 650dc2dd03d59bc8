"""Checkpoints on disk or in a bucket: which steps are complete, reading and verifying them.

A step is a folder with one Orbax item each for weights, EMA and optimizer, one for the weights that
do not train if there are any, and `meta`. `meta` holds the config, the data position, and the
checksum of every array and of itself. It is written last: a step without it is unfinished, whatever
else is there. The checksums are verified on reading, so that a checkpoint damaged on disk is
refused, naming what is damaged.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from modality_forcing import distributed, paths
from modality_forcing.config import Config, from_dict
from modality_forcing.errors import UserError
from modality_forcing.models import lora
from modality_forcing.progress import print_stderr
from modality_forcing.text_io import json_checksum, list_some
from modality_forcing.train import checksums
from modality_forcing.train.freezing import join_params
from modality_forcing.train.sharding import Shardings, abstract, on_first_device
from modality_forcing.train.state import Params, TrainState
from modality_forcing.tree import Tree

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

FORMAT = 3  # of the folder; format 2 has no checksums and is read, others are refused
_UNVERIFIED = 2
META = "meta/metadata"  # of a step's folder: JSON, written last
DAMAGED = "damaged.txt"  # in a step's folder that a run found damaged: why
WEIGHTS = "ema"  # the item that evaluation and the next phase read
FROZEN = "frozen"  # and this one, of a run with train.freeze
_BACKUP = "use another checkpoint or a backup"
_HINT = "give a workdir, its checkpoints/ or one step in it, or an export"
Metadata = Tree  # JSON: the config, the data position, metrics not written yet


class DamagedCheckpoint(UserError):
    """A checkpoint is not what was saved; an earlier one may be."""


def step_folders(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in a run's `checkpoints/`, the newest last.

    Those that a run has found damaged are left out.
    """
    if not paths.is_dir(folder):
        return []
    steps = [p for p in paths.list_dir(folder) if p.name.isdigit()]
    complete = [p for p in steps if is_complete(p) and not paths.exists(p / DAMAGED)]
    return sorted(complete, key=lambda p: int(p.name))


def is_complete(step: Path) -> bool:
    """Returns whether the folder of a step was written to its end."""
    return paths.exists(step / META)


def resolve_checkpoint(path: Path) -> Path:
    """Returns the folder of one step, from itself, a run's `checkpoints/`, or the run's workdir."""
    if not paths.exists(path):
        raise UserError("no such checkpoint", where=path, hint=_HINT)
    for folder in (path, path / "checkpoints"):
        if paths.is_dir(folder) and is_complete(folder):
            return folder
        if steps := step_folders(folder):
            return steps[-1]
    if paths.exists(path / WEIGHTS):
        what = "is unfinished: its save was interrupted, or not all of it was copied"
        raise UserError(what, where=path, hint="give an earlier step, or copy it again")
    raise UserError("holds no checkpoint", where=path, hint=_HINT)


def load(path: Path, shardings: Shardings | None = None) -> tuple[Config, Params]:
    """Returns a checkpoint's config and EMA weights, whatever devices it was saved from.

    Weights that did not train are among them, as they are stored. Low-rank updates are merged: the
    config has none. `load_unmerged` keeps them apart. Both raise as follows.

    shardings: from the weights' shapes to their shardings; by default they go to the first device.
    Raises UserError if there is none, if it cannot be read, is damaged or has another format, and
    for weights that are not finite.
    """
    config, trained, frozen = load_unmerged(path, shardings)
    return without_lora(config), lora.merge(join_params(trained, frozen), config.train.lora_scale)


def without_lora(config: Config) -> Config:
    """Returns the config of a run's network after its low-rank updates are merged."""
    return replace(config, train=replace(config.train, lora_rank=0))


def load_unmerged(path: Path, shardings: Shardings | None = None) -> tuple[Config, Params, Params]:
    """Returns a checkpoint's config, the EMA of what it trained, and its frozen weights."""
    silence_orbax()
    folder = paths.resolve(resolve_checkpoint(path))
    at = shardings or on_first_device()  # not below: a missing device is no fault of the checkpoint
    with _readable(folder):
        meta = _read_meta(folder)
        trees = {}
        for name in (WEIGHTS, *[FROZEN] * _has_frozen(meta)):
            shapes = _shapes(folder / name)
            trees[name] = _read_item(folder / name, abstract(shapes, at(shapes)))
    meta = _checked(meta, folder, _BACKUP)
    _verify(meta, trees, folder, _BACKUP)
    for name, tree in trees.items():
        if bad := checksums.not_finite(tree):
            what = f"its weights are not finite: {name}/{list_some(bad)}"
            raise UserError(what, where=folder, hint="use an earlier checkpoint, or train again")
    return parse_config(meta["config"], folder), trees[WEIGHTS], trees.get(FROZEN, {})


def parse_config(config: Tree, where: object) -> Config:
    """Returns the config that is stored beside weights; UserError if its keys are not today's."""
    try:
        return from_dict(config)
    except UserError as error:
        raise UserError(f"its config is of another version ({error})", where=where) from error


def tree_shapes(folder: Path) -> PyTree:
    """Returns the shapes of a tree that Orbax saved in a folder; UserError if it cannot be read."""
    silence_orbax()
    with _readable(folder):
        shapes = _shapes(folder)
    return _plain(getattr(shapes, "tree", shapes))


def read_tree(folder: Path, shapes: PyTree, placed: PyTree) -> PyTree:
    """Returns such a tree on devices; UserError if it cannot be read or has other shapes.

    placed: the sharding of each array.
    """
    silence_orbax()
    with _readable(folder):
        return _read_item(folder, abstract(shapes, placed))


def items(state: TrainState) -> dict[str, PyTree]:
    """Returns the trees of a state by the names of their folders in a checkpoint."""
    trees = {"params": state.params, "ema": state.ema, "optimizer": state.opt_state}
    return {**trees, FROZEN: state.frozen} if state.frozen else trees


def read_state(folder: Path, like: TrainState, way_out: str = "") -> tuple[TrainState, Metadata]:
    """Returns the state in `folder/`, which is named by its step, and its metadata.

    The state has the types and shardings of `like` (abstract or real). Raises UserError with the
    way out if it is damaged or cannot be read.
    """
    silence_orbax()
    wanted = items(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
    with _on_all_processes(folder, way_out), _readable(folder, way_out):
        meta = _read_meta(folder)
        read = {name: _read_item(folder / name, tree) for name, tree in wanted.items()}
    meta = _checked(meta, folder, way_out)
    if (saved_as := meta.get("step", int(folder.name))) != int(folder.name):
        what = f"is the checkpoint of step {saved_as} under another name"
        raise DamagedCheckpoint(what, where=folder, hint="give it its own name back")
    _verify(meta, read, folder, way_out)
    step = jax.numpy.asarray(int(folder.name), like.step.dtype)
    state = TrainState(step, read["params"], read["optimizer"], read["ema"], read.get(FROZEN, {}))
    return state, meta


def read_metadata(folder: Path) -> Metadata:
    """Returns the metadata of the checkpoint in `folder/`; raises UserError if it is damaged."""
    with _readable(folder):
        meta = _read_meta(folder)
    return _checked(meta, folder, _BACKUP)


def silence_orbax() -> None:
    """Turns off the warnings of Orbax, which are of files that are absent by design."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


# The handlers without a Checkpointer around them: in a run of several processes that one waits for
# the others, which would hang where one of them meets a damaged file.


def _read_item(folder: Path, like: PyTree) -> PyTree:
    handler = ocp.StandardCheckpointHandler()
    path = epath.Path(paths.resolve(folder))  # Orbax refuses relative ones
    return handler.restore(path, args=ocp.args.StandardRestore(like))


def _shapes(folder: Path) -> PyTree:
    tree = ocp.StandardCheckpointHandler().metadata(epath.Path(folder))
    tree = _plain(getattr(tree, "item_metadata", tree))
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), tree)


def _read_meta(folder: Path) -> object:
    return json.loads(paths.read_text(folder / META))


def _has_frozen(meta: object) -> bool:
    """Returns whether a step has weights that do not train; False if its metadata is damaged."""
    sums = meta.get("checksums") if isinstance(meta, Mapping) else None
    return isinstance(sums, Mapping) and FROZEN in sums


@contextmanager
def _on_all_processes(folder: Path, way_out: str) -> Iterator[None]:
    """Raises an error in every process of a run if one of them raises one."""
    failure: UserError | None = None
    try:
        yield
    except UserError as error:
        failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(failure is not None))
        if failure is None and failed.any():
            what = f"process {int(np.argmax(failed))} cannot read it"
            failure = DamagedCheckpoint(what, where=folder, hint=way_out)
    if failure is not None:
        raise failure


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
        raise DamagedCheckpoint(what, where=folder, hint=hint) from error


@contextmanager
def suppress_secondary_errors() -> Iterator[None]:
    """Silences all but the first error of Orbax's parallel reads or writes.

    The other errors arrive when nobody waits for them, some after this context has ended; each
    would print a traceback.
    """
    before, log = sys.unraisablehook, logging.getLogger("asyncio")

    def hook(raised: UnraisableHookArgs) -> None:
        is_closed = str(raised.exc_value) == "Event loop is closed"
        # An event loop that found no descriptor for itself cannot be closed either.
        is_loop = getattr(raised.object, "__qualname__", "") == "BaseEventLoop.__del__"
        if not inspect.iscoroutine(raised.object) and not is_closed and not is_loop:
            before(raised)

    def retrieved(record: logging.LogRecord) -> bool:
        return "never retrieved" not in record.getMessage()

    sys.unraisablehook = hook
    log.addFilter(retrieved)
    message = "coroutine .* was never awaited"
    warnings.filterwarnings("ignore", message=message, category=RuntimeWarning)
    ignored = warnings.filters[0]
    yield
    # After an error all of this stays in place.
    sys.unraisablehook = before
    log.removeFilter(retrieved)
    if ignored in warnings.filters:
        cast("list[object]", warnings.filters).remove(ignored)


def _plain(tree: PyTree) -> PyTree:
    return {k: _plain(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _checked(meta: object, folder: Path, way_out: str = "") -> Metadata:
    """Returns a checkpoint's metadata; raises UserError if damaged or not read by this version."""
    damaged = DamagedCheckpoint("its description is damaged", where=folder, hint=way_out)
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
        what = f"is damaged: {list_some(bad)} changed after saving"
        raise DamagedCheckpoint(what, where=folder, hint=way_out)
