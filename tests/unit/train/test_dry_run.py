"""A dry run finds what the run would find, says where it starts, and writes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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


def test_run_that_would_resume_is_read_and_not_changed(tmp_path, monkeypatch):
    train(T2I, tmp_path, stop_after=3)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    said = dry_run(T2I, tmp_path)
    assert f"start     step 2 of 4, from {tmp_path}/checkpoints/2" in said
    monkeypatch.chdir(tmp_path.parent)  # most people name it relative to where they are
    said = dry_run(T2I, Path(tmp_path.name))
    assert f"start     step 2 of 4, from {tmp_path.name}/checkpoints/2" in said
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_config_that_was_edited_with_its_file_is_refused(tmp_path):
    train(T2I, tmp_path, stop_after=3)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"seed": 3', '"seed": 1'))
    edited = replace(T2I, seed=1)
    for start in (dry_run, train):
        with pytest.raises(UserError, match="has seed=1, and the checkpoint in its workdir 3"):
            start(edited, tmp_path)


def test_errors_are_those_of_the_run(tmp_path):
    train_from = replace(T2I.train, init_from=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere: no such checkpoint"):
        dry_run(replace(T2I, train=train_from), tmp_path / "run")
    folder = replace(T2I.data, source="folder", root=str(tmp_path / "none"))
    with pytest.raises(UserError, match="none"):
        dry_run(replace(T2I, data=folder), tmp_path / "run")
    assert not list(tmp_path.iterdir())
