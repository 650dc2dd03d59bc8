"""A dry run finds what the run would find, says where it starts, and writes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modality_forcing.errors import UserError
from modality_forcing.train.dry_run import dry_run
from modality_forcing.train.loop import train
from tests import tiny

T2I = tiny.t2i(steps=4, save_every=2)


def test_new_run_is_compiled_and_nothing_is_written(tmp_path):
    said = dry_run(T2I, tmp_path / "run")
    assert "t2i: 0.04 M parameters in 19 arrays" in said
    assert "start     step 0 of 4, new" in said and " GiB a device" in said
    assert not list(tmp_path.iterdir())


def test_run_that_would_resume_is_read_and_not_changed(tmp_path):
    train(T2I, tmp_path, stop_after=3)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    said = dry_run(T2I, tmp_path)
    assert f"start     step 2 of 4, from {tmp_path}/checkpoints/2" in said
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_errors_are_those_of_the_run(tmp_path):
    train_from = replace(T2I.train, init_from=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere: no such checkpoint"):
        dry_run(replace(T2I, train=train_from), tmp_path / "run")
    folder = replace(T2I.data, source="folder", root=str(tmp_path / "none"))
    with pytest.raises(UserError, match="none"):
        dry_run(replace(T2I, data=folder), tmp_path / "run")
    assert not list(tmp_path.iterdir())
