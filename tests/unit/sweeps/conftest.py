"""A tiny sweep of four cells, and a stub of training and scoring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.errors import UserError
from modality_forcing.paths import write_file
from modality_forcing.sweeps import run as sweep_run
from modality_forcing.sweeps.run import Failure, work
from modality_forcing.sweeps.score import Score
from modality_forcing.sweeps.spec import Records, Run, axis, product, sweep
from modality_forcing.sweeps.workdir import SweepDir
from modality_forcing.train.checkpoint import META
from modality_forcing.train.workdir import write_config
from tests import tiny


def cell(pretrained: bool, seed: int) -> Run:
    init_from = Run("pretraining", tiny.t2i()) if pretrained else None
    return Run("forcing", replace(tiny.forcing(), seed=seed), init_from=init_from)


SWEEP = sweep("tiny", product(axis("pretrained", False, True), axis("seed", 0, 1)), cell, Records())
NAMES = [c.name for c in SWEEP.cells]


def run_cells(folder: SweepDir, cells=SWEEP.cells) -> tuple[dict[str, Failure], list[str]]:
    """Returns the failures and the logged lines."""
    log: list[str] = []
    return work(folder, cells, log.append), log


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Replaces training by a stub that writes the same files; the names of the trained workdirs."""
    names: list[str] = []

    def train(config, workdir: Path, records, **_):
        names.append(workdir.name)
        assert records is not None and not config.data.workers
        if source := config.train.init_from:
            assert (Path(source) / "checkpoints").is_dir(), "init_from has no checkpoint"
        write_config(workdir, config)
        write_file(workdir / "checkpoints" / str(config.train.steps) / META, "{}")
        metrics = '{"step": 6, "loss": 0.5}\n{"step": 6, "elapsed_s": 2.0}\n'
        (workdir / "metrics.jsonl").write_text(metrics)

    class StubScorer:
        def __init__(self, folder: Path):
            pass

        def check(self, cells):
            if "no inception" in names:
                raise UserError("no such file", where="inception")

        def __call__(self, cell, workdirs):
            assert set(workdirs) == {run.phase for run in cell.runs()}
            metrics = {"i2d_absrel": 0.25, "joint_absrel": float("nan")}
            return Score(metrics, "moge, affine", "seed 0")

    monkeypatch.setattr(sweep_run, "train", train)
    monkeypatch.setattr(sweep_run, "Scorer", StubScorer)
    return names
