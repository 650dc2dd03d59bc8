"""Weights & Biases, offline and with the real package: rows, one run over restarts, refusals."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.train import wandb_log
from modality_forcing.train.wandb_log import WandbLog

pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
BLOCK = 32768


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DISABLE_CODE", "true")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)


def records(path: Path) -> list:
    """The records of a run's file, LevelDB's log format behind a header of 7 bytes."""
    data, at, found, whole = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if not kind:  # padding at the end of a block
            at += BLOCK - at % BLOCK
            continue
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            found.append(pb.Record.FromString(whole))
            whole = b""
    return found


def test_rows_reach_one_run_over_restarts(tmp_path):
    for step in (2, 4):
        log = WandbLog(tmp_path, "forcing", {"train": {"steps": 4}})
        log.write(step, {"loss": step / 8, "loss_depth/t0.0-0.2": 1.5})
        log.write_image(step, "eval/sheet", np.zeros((4, 4, 3), np.uint8))
        log.close()
    importlib.import_module("wandb").teardown()  # its service writes files a little later
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    for file, step in zip(files, (2, 4), strict=True):
        made = records(file)
        (run,) = (r.run for r in made if r.WhichOneof("record_type") == "run")
        assert (run.run_id, run.project, run.display_name) == (
            run_id,
            "modality_forcing",
            "forcing",
        )
        rows = [
            {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
            for r in made
            if r.WhichOneof("record_type") == "history"
        ]
        row = {name: value for each in rows for name, value in each.items()}
        assert (row["_step"], row["loss"]) == (step, step / 8)
        assert row["loss_depth/t0.0-0.2"] == 1.5
        assert any(name.startswith("eval/sheet") for name in row), row


def test_offline_rows_of_a_run_in_a_bucket_are_uploaded(gs_path, bucket, tmp_path):
    for step in (2, 4):
        log = WandbLog(gs_path, "forcing", {})
        log.write(step, {"loss": step / 8})
        log.close()
    run_id = json.loads(paths.read_text(gs_path / "wandb.json"))["id"]
    found = [path for path in bucket.below(gs_path) if path.name == f"run-{run_id}.wandb"]
    assert len(found) == 2
    for path, step in zip(found, (2, 4), strict=True):
        assert str(path).startswith(f"{gs_path}/wandb/offline-run-")
        (tmp_path / "run.wandb").write_bytes(paths.read_bytes(path))
        made = records(tmp_path / "run.wandb")
        rows = [r.history for r in made if r.WhichOneof("record_type") == "history"]
        items = {i.key or "/".join(i.nested_key): i.value_json for r in rows for i in r.item}
        assert json.loads(items["loss"]) == step / 8
        assert any(r.WhichOneof("record_type") == "exit" for r in made)  # nothing is cut off


def test_process_started_in_the_same_second_replaces_no_rows(tmp_path):
    def name():
        return tmp_path / "wandb" / time.strftime("offline-run-%Y%m%d_%H%M%S-ab12cd34")

    name().mkdir(parents=True)
    for folder in (tmp_path / "wandb").iterdir():
        (folder / "run-ab12cd34.wandb").touch()
    wandb_log._await_new_folder(tmp_path, "ab12cd34")
    assert not name().exists()


def test_missing_package_is_one_line_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"needs wandb; pip install .modality_forcing\[wandb\]"):
        WandbLog(tmp_path, "x", {})
    assert not list(tmp_path.iterdir())


def test_damaged_name_of_the_run_is_refused(tmp_path):
    (tmp_path / "wandb.json").write_text('{"id": "../x"}')
    with pytest.raises(UserError, match=r"wandb\.json: names no run of wandb; delete it"):
        WandbLog(tmp_path, "x", {})


def test_run_that_cannot_be_opened_leaves_no_name(tmp_path, monkeypatch):
    def fail(**_):
        raise OSError("no key")

    monkeypatch.setattr(importlib.import_module("wandb"), "init", fail)
    with pytest.raises(UserError, match=r"--log=wandb: the run cannot be opened \(no key\)"):
        WandbLog(tmp_path, "t2i", {})
    assert not (tmp_path / "wandb.json").exists()
