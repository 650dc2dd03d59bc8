"""Unknown config keys, and the keys of version 0.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modality_forcing import config_keys
from modality_forcing.config import Config, from_dict, to_dict
from modality_forcing.config_file import load
from modality_forcing.config_keys import renamed_key
from modality_forcing.errors import UserError
from modality_forcing.tree import flatten
from tests import tiny


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trian": {}}, r"unknown config key 'trian'; did you mean train\?"),
        (
            {"train": {"stpes": 5}},
            r"unknown config key 'train\.stpes'; did you mean train\.steps\?",
        ),
        (
            {"modalities": {"image": {"pach": 8}}},
            r"'modalities\.image\.pach'; did you mean modalities\.image\.patch\?",
        ),
        (
            {"modalities": {"image": {"noise": {"xyzzy": 8}}}},
            r"known here: distribution, timestep_shift, sigma",
        ),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_one(tree, message):
    with pytest.raises(UserError, match=message):
        from_dict(tree)


@pytest.mark.parametrize("old", config_keys.RENAMED)
def test_renamed_keys_lead_to_present_keys(old: str):
    present = flatten(to_dict(Config()), ".")
    old = old.replace("*", "image")
    words = renamed_key(old).split(" is now ")
    assert words[0] == old and words[1] in present and old not in present
    for key, value in ((old, "1"), (f"{old}.lidar", "0.5")):
        with pytest.raises(UserError, match=f"unknown config key .*; {old} is now {words[1]}"):
            load("demo:phase=t2i", {key: value})


def test_present_keys_are_not_renamed():
    assert not any(renamed_key(key) for key in flatten(to_dict(tiny.forcing()), "."))
    assert renamed_key("nonsense") == renamed_key("train") == ""


def test_renamed_key_in_a_config_file_is_one_line(tmp_path: Path):
    text = "from modality_forcing.config import *\n\nget_config = lambda _: TrainConfig(init='x')"
    (tmp_path / "old.py").write_text(text)
    with pytest.raises(UserError, match=r"old\.py:3: TypeError: .*; init is now init_from"):
        load(str(tmp_path / "old.py"))


def test_run_of_an_older_version_is_refused(tmp_path: Path, mforce):
    old = {"train": {"init": "", "steps": 5}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    done = mforce("train", "--config", "demo:phase=t2i", "--workdir", tmp_path)
    assert "train.init is now train.init_from" in done.err
    assert done.code == 2 and "another version" in done.err and done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
