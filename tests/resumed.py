"""The smallest run of a loop, and what of it must be equal after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from modality_forcing.train import checkpoint
from modality_forcing.train.logger import MEASURED
from modality_forcing.train.metrics import read_metrics
from modality_forcing.train.state import TrainState
from tests import tiny

TIMES = {"elapsed_s", "clock"}  # in the metadata of checkpoints
LOOP = {"steps": 6, "save_every": 3, "log_every": 2}
T2I = tiny.t2i(**LOOP)


def equal(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rows(workdir: Path) -> list[dict[str, float]]:
    found = [
        {k: v for k, v in row.items() if not k.startswith(MEASURED)}
        for row in read_metrics(workdir)
    ]
    return [row for row in found if set(row) != {"step"}]


def extras(workdir: Path) -> dict[str, Any]:
    """The metadata of the latest checkpoint, with the position of the data stream."""
    meta = checkpoint.resolve_checkpoint(workdir) / "meta"
    (description,) = (p for p in meta.rglob("*") if p.is_file() and p.name == "metadata")
    metadata = json.loads(description.read_text())
    return {k: v for k, v in metadata.items() if k not in TIMES | {"config", "checksum"}}
