"""A run is known by what its paths lead to, not by how they are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.config import Config, to_dict
from modality_forcing.errors import UserError
from modality_forcing.train import loop
from modality_forcing.train.workdir import check_resumable, resolve_paths, write_config
from tests import tiny


def reads(root: str, **train: str | int) -> Config:
    config = tiny.t2i(**train)
    return replace(config, data=replace(config.data, source="folder", root=root))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A working directory with a folder of images and a link to it."""
    (tmp_path / "home" / "images").mkdir(parents=True)
    (tmp_path / "home" / "link").symlink_to("images")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


SPELLINGS = ("images", "images/", "./images", "../home/images", "link", "link/../images")


@pytest.mark.parametrize("stored", ["images", "../home/images/"])
def test_run_resumes_with_every_spelling_of_a_path(home, stored):
    write_config(home / "run", reads(stored, init_from="t2i/"))
    for spelling in (*SPELLINGS, str(home / "images")):
        assert check_resumable(home / "run", reads(spelling, init_from="../home/t2i"))
    with pytest.raises(UserError, match=r"data\.root='.*/images', not '.*/other'; choose another"):
        check_resumable(home / "run", reads("other", init_from="t2i"))


def test_run_of_an_older_version_with_relative_paths_resumes(home, monkeypatch):
    (home / "run").mkdir()
    (home / "run" / "config.json").write_text(json.dumps(to_dict(reads("images"))))
    assert check_resumable(home / "run", reads("../home/images/"))
    monkeypatch.chdir(home / "run")  # from here it is another folder
    with pytest.raises(UserError, match=r"if that was moved, change data\.root in its config"):
        check_resumable(home / "run", reads(str(home / "images")))


def test_stored_paths_do_not_depend_on_the_working_directory(home):
    config = reads("images/", init_from="t2i", branch_from="../home/trunk")
    write_config(home / "run", config)
    stored = json.loads((home / "run" / "config.json").read_text())
    assert stored["data"]["root"] == str(home / "images")
    assert stored["data"]["cache"] == ""
    assert stored["train"]["init_from"] == str(home / "t2i")
    assert stored["train"]["branch_from"] == str(home / "trunk")
    assert stored == to_dict(resolve_paths(resolve_paths(config)))


def test_training_and_its_checkpoints_have_resolved_paths(home, monkeypatch):
    seen = []

    def init_run(config: Config, *_) -> None:
        seen.append(config.data.root)
        raise InterruptedError

    monkeypatch.setattr(loop, "init_run", init_run)
    with pytest.raises(InterruptedError):
        loop.train(reads("images/"), home / "run")
    assert seen == [str(home / "images")]


def test_location_of_an_encoder_is_resolved_where_it_is_a_path(home):
    text = replace(tiny.TEXT, vocab_size=0, encoder="umt5:images/")
    assert resolve_paths(replace(tiny.t2i(), text=text)).text.encoder == f"umt5:{home / 'images'}"
    hub = replace(tiny.t2i(), text=replace(text, encoder="umt5:google/umt5-xxl"))
    assert resolve_paths(hub) == hub
    write_config(home / "run", replace(tiny.t2i(), text=text))
    linked = replace(text, encoder="umt5:./link")
    assert check_resumable(home / "run", replace(tiny.t2i(), text=linked))


def test_config_of_a_workdir_may_have_a_byte_order_mark_but_no_key_twice(tmp_path):
    path = tmp_path / "config.json"
    write_config(tmp_path, tiny.t2i())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert check_resumable(tmp_path, tiny.t2i())
    path.write_text('{"seed": 1, ' + path.read_text(encoding="utf-8-sig").lstrip(" {\n"))
    with pytest.raises(UserError, match=r"is not the config of a run .*'seed' is there 2 times"):
        check_resumable(tmp_path, tiny.t2i())


def test_run_of_a_version_without_a_key_has_its_default(tmp_path):
    write_config(tmp_path, tiny.forcing())
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    del saved["train"]["freeze"], saved["modalities"]["depth"]["loss_weight"]
    path.write_text(json.dumps(saved))
    assert check_resumable(tmp_path, tiny.forcing())
    with pytest.raises(UserError, match=r"train\.freeze=\[\], not \['trunk'\]"):
        check_resumable(tmp_path, tiny.forcing(freeze=("trunk",)))


def test_keys_in_which_a_run_differs_are_named(tmp_path):
    write_config(tmp_path, tiny.t2i(learning_rate=4e-4, lora_rank=16))
    changed = r"train.learning_rate=0.0004, not 0.001, train.lora_rank=16, not 0; choose another"
    with pytest.raises(UserError, match=rf"the workdir holds a run with {changed}"):
        check_resumable(tmp_path, tiny.t2i(learning_rate=1e-3))
    many = {"steps": 1, "batch": 1, "b1": 0.5}
    with pytest.raises(UserError, match=r"train.batch=4, not 1, .* and 2 more; choose"):
        check_resumable(tmp_path, tiny.t2i(learning_rate=1e-3, **many))
