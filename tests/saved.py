"""Checkpoints of the smallest run: what is saved in them, and the files to damage."""

from __future__ import annotations

from pathlib import Path

from modality_forcing.train import checkpoint
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import TrainState
from tests import tiny

CONFIG = tiny.t2i()
EXTRA = {"data_state": {"batches": 12}, "elapsed_s": 1.5, "pending_metrics": [{"loss": 0.1}]}


def restore(workdir: Path, like: TrainState) -> tuple[TrainState, checkpoint.Metadata]:
    """Resumes from the newest intact checkpoint of a workdir."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


def biggest(folder: Path) -> Path:
    """Returns the largest file below a folder, which holds arrays."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def description(workdir: Path, step: int = 3) -> Path:
    """Returns the JSON of a checkpoint."""
    return workdir / "checkpoints" / str(step) / checkpoint.META
