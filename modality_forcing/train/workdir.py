"""A run's workdir: which config it belongs to, and whether a config may resume in it."""

from __future__ import annotations

import json
from pathlib import Path

from modality_forcing import distributed
from modality_forcing.config import Config, from_dict, to_dict
from modality_forcing.errors import UserError
from modality_forcing.paths import check_folder, write_file
from modality_forcing.tree import flatten

# Prefixes of config keys that change how a run is logged, fed or laid out, but its numbers only by
# rounding. A run may resume with other values, on other devices.
NON_IDENTITY_KEYS = (
    "train.log_every",
    "train.save_every",
    "train.keep_at_steps",
    "train.max_to_keep",
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


def write_config(workdir: Path, config: Config) -> None:
    """Writes the config into a new workdir; raises UserError if the workdir holds another run."""
    if not check_resumable(workdir, config) and distributed.is_primary():
        write_file(workdir / "config.json", json.dumps(to_dict(config), indent=1))


def check_resumable(workdir: Path, config: Config, ignore: tuple[str, ...] = ()) -> bool:
    """Returns whether a workdir holds this run already; writes nothing.

    ignore: prefixes of further keys that may differ. Raises UserError if the workdir holds another
    run, naming the first key that differs, or cannot be a folder.
    """
    check_folder(workdir, "--workdir")
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "checkpoints").exists():
            what = "holds checkpoints without a config.json"
            raise UserError(what, where=workdir, hint=_OTHER_WORKDIR)
        return False
    try:
        saved = dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise UserError("is not the config of a run", where=path, hint=_OTHER_WORKDIR) from error
    ours, theirs = flatten(to_dict(config), "."), flatten(saved, ".")
    for key in sorted({*ours, *theirs}):
        new, old = ours.get(key), theirs.get(key)
        if new != old and not key.startswith((*NON_IDENTITY_KEYS, *ignore)):
            _check_version(saved, path)
            what = f"the workdir holds a run with {key}={old!r}, not {new!r}"
            raise UserError(what, where=workdir, hint=_OTHER_WORKDIR)
    return True


def _check_version(saved: dict[str, object], path: Path) -> None:
    try:
        from_dict(saved)
    except UserError as error:
        what = f"is the config of another version ({error})"
        raise UserError(what, where=path, hint=_OTHER_WORKDIR) from error
