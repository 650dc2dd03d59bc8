"""A run's folder: which config it belongs to, and whether another may go on in it."""

from __future__ import annotations

import json
from pathlib import Path

from modality_forcing import distributed
from modality_forcing.atomic_io import check_folder, write_file
from modality_forcing.config import Config, to_dict
from modality_forcing.errors import UserError
from modality_forcing.tree import flatten

# Prefixes of config keys that change how a run is watched, fed or laid out, but what it computes in rounding only: a run
# may go on with others, on other devices.
NON_IDENTITY_KEYS = (
    *(
        "train.log_every",
        "train.save_every",
        "train.keep_at_steps",
        "train.max_to_keep",
        "train.grad_accum_steps",
        "data.workers",
    ),
    *("sample.", "eval.", "mesh.", "model.attention", "model.remat", "model.unroll"),
)
# What may differ besides in a run that shares another's constant phase (train/branch.py).
SCHEDULE_KEYS = (
    "name",
    "train.steps",
    "train.warmup_fraction",
    "train.decay_fraction",
    "train.branch_from",
)


def write_config(workdir: Path, config: Config) -> None:
    """Writes the config into a fresh workdir, or checks that the one there is the same run.

    Raises UserError naming the first key that differs.
    """
    if not check_resumable(workdir, config) and distributed.is_primary():
        write_file(workdir / "config.json", json.dumps(to_dict(config), indent=1))


def check_resumable(workdir: Path, config: Config, ignore: tuple[str, ...] = ()) -> bool:
    """Says whether a workdir already holds this run; writes nothing.

    Raises UserError if it holds another (naming the first key that differs, except those in `ignore`) or cannot be a folder.
    """
    check_folder(workdir, "--workdir")
    path = workdir / "config.json"
    mine = to_dict(config)
    if path.exists():
        try:
            theirs = dict(json.loads(path.read_text()))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(
                "is not the config of a run", where=path, hint="choose another --workdir"
            ) from error
        mine, theirs = flatten(mine, "."), flatten(theirs, ".")
        for key in sorted({*mine, *theirs}):
            ours, other = mine.get(key), theirs.get(key)
            if ours != other and not key.startswith((*NON_IDENTITY_KEYS, *ignore)):
                raise UserError(
                    f"the workdir holds a run with {key}={other!r}, not {ours!r}",
                    where=workdir,
                    hint="choose another --workdir",
                )
        return True
    if (workdir / "checkpoints").exists():
        raise UserError(
            "holds checkpoints without a config.json",
            where=workdir,
            hint="choose another --workdir",
        )
    return False
