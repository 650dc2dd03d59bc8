"""Several horizons from one run: a branch starts in a trunk's constant phase."""

from __future__ import annotations

from modality_forcing.config import Config, from_dict
from modality_forcing.errors import UserError
from modality_forcing.paths import as_path, is_file, resolve
from modality_forcing.train import checkpoint
from modality_forcing.train.optim import branch_point
from modality_forcing.train.state import TrainState
from modality_forcing.train.workdir import (
    SCHEDULE_KEYS,
    check_resumable,
    check_same_run,
    read_config,
)


def restore_branch_point(
    config: Config, like: TrainState
) -> tuple[TrainState, checkpoint.Metadata]:
    """Returns the trunk's last state that this run shares bit for bit, and its metadata.

    train.branch_from is the trunk's workdir. Its config may differ in schedule length and in
    NON_IDENTITY_KEYS. Raises UserError if it differs in more, or has no checkpoint from before the
    step at which either of the two runs begins to decay.
    """
    workdir = as_path(config.train.branch_from)
    if not is_file(workdir / "config.json"):
        hint = "give the workdir of the run to branch off"
        raise UserError("train.branch_from is not the workdir of a run", where=workdir, hint=hint)
    try:
        check_resumable(workdir, config, ignore=SCHEDULE_KEYS)
        saved = read_config(workdir)
        trunk = from_dict(saved).train
    except UserError as error:
        what = str(error).removeprefix(f"{workdir}: ").partition(";")[0]
        hint = "a branch has all of its trunk's config but its length"
        raise UserError(what, where=workdir, hint=hint) from error
    try:
        last = branch_point(config.train, trunk)
    except UserError as error:
        raise UserError(str(error), where=workdir) from error
    steps = sorted(int(folder.name) for folder in checkpoint.step_folders(workdir / "checkpoints"))
    usable = [step for step in steps if step <= last]
    if not usable:
        there = ", ".join(map(str, steps)) or "none"
        what = f"no checkpoint up to step {last}, where the decay begins; there is {there}"
        hint = "train the trunk with a train.save_every and train.max_to_keep that leave one"
        raise UserError(what, where=workdir, hint=hint)
    folder = resolve(workdir / "checkpoints" / str(usable[-1]))
    state, metadata = checkpoint.read_state(folder, like, "choose another trunk")
    check_same_run(workdir, saved, metadata)
    # The time between the two runs is not lost by this one.
    return state, {name: value for name, value in metadata.items() if name != "clock"}
