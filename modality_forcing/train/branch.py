"""Several horizons from one run: a branch takes a trunk's state from its constant phase, and cools down on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modality_forcing.config import Config, from_dict
from modality_forcing.errors import UserError
from modality_forcing.train import checkpoint
from modality_forcing.train.optim import branch_point
from modality_forcing.train.state import TrainState
from modality_forcing.train.workdir import SCHEDULE_KEYS, check_resumable


def restore_branch_point(config: Config, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Returns a trunk's last state (and what was saved with it) that is also one of this run begun at step 0, to the bit.

    train.branch_from: the trunk's workdir; its config may differ in how long it runs and cools down, and in what only watches.
    Raises UserError if it differs in more, or has no checkpoint from before the step at which either begins to cool down.
    """
    c, folder = config.train, Path(config.train.branch_from)
    if not (folder / "config.json").is_file():
        raise UserError(
            "train.branch_from names no run",
            where=folder,
            hint="give the workdir of the run to branch off",
        )
    try:
        check_resumable(folder, config, ignore=SCHEDULE_KEYS)
        trunk = from_dict(json.loads((folder / "config.json").read_text())).train
    except UserError as error:
        told = str(error).removeprefix(f"{folder}: ").partition(";")[0]
        raise UserError(
            told, where=folder, hint="a branch has all of its trunk's config but its length"
        ) from error
    try:
        most = branch_point(c, trunk)
    except UserError as error:
        raise UserError(str(error), where=folder) from error
    steps = sorted(
        int(p.name)
        for p in (folder / "checkpoints").glob("*")
        if p.name.isdigit() and (p / "meta").is_dir()
    )
    if not (fit := [step for step in steps if step <= most]):
        told = f"no checkpoint up to step {most}, where the cooldown begins; there is {', '.join(map(str, steps)) or 'none'}"
        raise UserError(
            told,
            where=folder,
            hint="train the trunk with a train.save_every and train.max_to_keep that leave one",
        )
    return checkpoint.read_state((folder / "checkpoints" / str(fit[-1])).absolute(), like)
