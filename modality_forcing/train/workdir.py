"""A run's workdir: which config it belongs to, and whether a config may resume in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from modality_forcing import compilation_cache, distributed, locks, paths
from modality_forcing.config import Config, ModalityConfig, from_dict, to_dict
from modality_forcing.encoders.locate import is_hub
from modality_forcing.errors import StorageFailed, UserError
from modality_forcing.paths import check_folder, write_file
from modality_forcing.text_io import list_some, read_object
from modality_forcing.train.checkpoint import (
    DamagedCheckpoint,
    Metadata,
    read_metadata,
    step_folders,
)
from modality_forcing.train.released import is_released
from modality_forcing.tree import JsonObject, flatten

# Prefixes of config keys that change how a run is logged, fed or laid out, but its numbers only by
# rounding. A run may resume with other values, on other devices.
NON_IDENTITY_KEYS = (
    "train.log_every",
    "train.save_every",  # and save_every_minutes
    "train.keep_at_steps",
    "train.compilation_cache",
    "train.max_to_keep",
    "train.async_save",
    "train.on_spike",
    "train.spike_tries",
    "train.grad_accum_steps",
    "data.workers",
    "sample.",
    "eval.",
    "mesh.",
    "model.attention",
    "model.remat",
    "model.unroll",
)
# Keys that may also differ between runs that share a constant phase (train/branch.py).
SCHEDULE_KEYS = (
    "name",
    "train.steps",
    "train.warmup_fraction",
    "train.decay_fraction",
    "train.branch_from",
)
_OTHER_WORKDIR = "choose another --workdir"


def resolve_paths(config: Config) -> Config:
    """Returns the config with its paths resolved: equal for all ways to write them.

    A run keeps such a config, so that what it reads is found from any working directory.
    """
    return _resolve_below("", config)


def _resolve_below(key: str, value: Any) -> Any:
    """Returns a part of a config, which is at a dotted key, with its paths resolved."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **_resolve_below(key, inner))
    if isinstance(value, Mapping):
        return {k: _resolve_below(f"{key}.{k}" if key else k, v) for k, v in value.items()}
    return _resolve_key(key, value)


def _resolve_key(key: str, value: object) -> object:
    """Returns a value of a flat config, resolved if it is a path, whatever version wrote it."""
    resolve = next((_PATHS[name] for name in _PATHS if fnmatchcase(key, name)), None)
    return resolve(value) if resolve and isinstance(value, str) else value


def _resolve_path(path: str) -> str:
    return str(paths.resolve(path)) if path else ""


def _resolve_location(location: str) -> str:
    kind, colon, path = location.partition(":")
    path = os.path.expanduser(path)
    return f"{kind}:{_resolve_path(path)}" if colon and path and paths.exists(path) else location


def _resolve_source(source: str) -> str:
    if is_hub(source):
        return source
    return _resolve_location(source) if is_released(source) else _resolve_path(source)


def _resolve_cache(setting: str) -> str:
    return setting if setting == compilation_cache.AUTO else _resolve_path(setting)


# The keys that hold paths. Those of encoders hold KIND:PATH, where PATH may be an id of the hub.
_PATHS: Mapping[str, Callable[[str], str]] = {
    "data.root": _resolve_path,
    "data.cache": _resolve_path,
    "train.init_from": _resolve_source,
    "train.branch_from": _resolve_path,
    "train.compilation_cache": _resolve_cache,
    "eval.benchmark_root": _resolve_path,
    "text.encoder": _resolve_location,
    "modalities.*.autoencoder": _resolve_location,
}


@contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the lock of a workdir, which the first process of the run takes for all.

    Raises UserError in every process if another run holds it or it cannot be written.
    """
    failure: UserError | None = None
    with ExitStack() as stack:
        if distributed.is_primary():
            try:
                stack.enter_context(locks.hold(workdir, "--workdir"))
            except UserError as error:
                failure = error
        code = distributed.from_first(0 if failure is None else failure.exit_code)
        if code and failure is None:
            kind = UserError if code == UserError.exit_code else StorageFailed
            raise kind("process 0 could not lock it; see its message", where=workdir)
        if failure is not None:
            raise failure
        yield


def write_config(workdir: Path, config: Config) -> None:
    """Writes the config into a new workdir; raises UserError if the workdir holds another run."""
    if not check_resumable(workdir, config) and distributed.is_primary():
        text = json.dumps(to_dict(resolve_paths(config)), indent=1)
        write_file(workdir / "config.json", text)


def check_resumable(
    workdir: Path, config: Config, ignore: tuple[str, ...] = (), *, hint: str = _OTHER_WORKDIR
) -> bool:
    """Returns whether a workdir holds this run already; writes nothing.

    ignore: prefixes of further keys that may differ. hint: what to do about another run.
    Raises UserError if the workdir holds another run, naming the first keys that differ, or cannot
    be a folder.
    """
    check_folder(workdir, "--workdir", utf8=True)
    path = workdir / "config.json"
    if not paths.exists(path):
        if paths.exists(workdir / "checkpoints"):
            what = "holds checkpoints without a config.json"
            raise UserError(what, where=workdir, hint=_OTHER_WORKDIR)
        return False
    saved = read_config(workdir)
    ours, theirs = flatten(to_dict(config), "."), flatten(saved, ".")
    differ: dict[str, str] = {}
    for key in sorted({*ours, *theirs}):
        # A key that an earlier version did not know had what is now its default.
        new, old = ours.get(key), theirs[key] if key in theirs else _default(key)
        new, old = _resolve_key(key, new), _resolve_key(key, old)
        if new != old and not key.startswith((*NON_IDENTITY_KEYS, *ignore)):
            differ[key] = f"{key}={old!r}, not {new!r}"
    if differ:
        _check_version(saved, path)
        for folder in step_folders(workdir / "checkpoints")[-1:]:
            with suppress(DamagedCheckpoint):
                check_same_run(workdir, saved, read_metadata(folder))
        what = f"the workdir holds a run with {list_some(differ.values())}"
        moved = [key for key in differ if key in _PATHS]
        hint += f"; if that was moved, change {moved[0]} in its config.json" if moved else ""
        raise UserError(what, where=workdir, hint=hint)
    return True


def _default(key: str) -> object:
    """Returns the default of a dotted key, None if it has none."""
    section, _, rest = key.partition(".")
    if section == "modalities":
        return flatten(to_dict(ModalityConfig()), ".").get(rest.partition(".")[2])
    return flatten(to_dict(Config()), ".").get(key)


def check_same_run(workdir: Path, config: JsonObject, metadata: Metadata) -> None:
    """Raises UserError if a workdir's config is not the one of its checkpoint's metadata.

    Checkpoints have a checksum; config.json, which may be edited where folders were moved, has
    none. Paths and NON_IDENTITY_KEYS are not compared.
    """
    ours, theirs = flatten(config, "."), flatten(metadata["config"], ".")
    for key in sorted({*ours, *theirs}):
        if key.startswith(NON_IDENTITY_KEYS) or any(fnmatchcase(key, name) for name in _PATHS):
            continue
        new, old = (values[key] if key in values else _default(key) for values in (ours, theirs))
        if new != old:
            what = f"has {key}={new!r}, and the checkpoint in its workdir {old!r}"
            hint = "it was changed or damaged: put the checkpoint's value back"
            raise UserError(what, where=workdir / "config.json", hint=hint)


def read_config(workdir: Path) -> JsonObject:
    """Returns the config of the run in a workdir as it is written; raises UserError if damaged."""
    path, what = workdir / "config.json", "is not the config of a run"
    return read_object(path, what=what, hint=_OTHER_WORKDIR, finite=False)


def _check_version(saved: dict[str, object], path: Path) -> None:
    try:
        from_dict(saved)
    except UserError as error:
        what = f"is the config of another version ({error})"
        raise UserError(what, where=path, hint=_OTHER_WORKDIR) from error
