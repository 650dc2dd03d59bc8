"""Where weights are: files of a folder by their stem, folders of hub ids; see also test_weights."""

from __future__ import annotations

import json
import sys
import types

import pytest

from modality_forcing.encoders.locate import PATTERNS, Found, below, find_files, locate
from modality_forcing.errors import UserError


def test_files_of_a_stem_are_those_of_its_index_or_its_own(tmp_path):
    for name in ("ae_encoder", "ae_decoder", "model-00001-of-00002", "model-00002-of-00002"):
        (tmp_path / f"{name}.safetensors").touch()
    assert find_files(tmp_path, "ae_encoder") == (tmp_path / "ae_encoder.safetensors",)
    with pytest.raises(UserError, match=r"holds no model\.safetensors file"):
        find_files(tmp_path, "model")
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": parts[1], "b": parts[0], "c": parts[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_files(tmp_path, "model") == tuple(tmp_path / name for name in parts)
    assert find_files(tmp_path, "ae_decoder") == (tmp_path / "ae_decoder.safetensors",)


def test_paths_are_themselves(tmp_path):
    (file := tmp_path / "a.safetensors").touch()
    assert locate(file) == Found(file) and locate(str(tmp_path)) == Found(tmp_path)
    with pytest.raises(UserError, match="no such file or folder; give a folder of safetensors"):
        locate(tmp_path / "b.safetensors")


def test_hub_files_are_those_of_the_patterns(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "0123abc")

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = Found(tmp_path / "0123abc" / "vae", "0123abc")
    assert locate("owner/name/vae@v2", ["config.json"]) == found
    assert locate("owner/name").revision == "0123abc"
    assert asked == [
        ("owner/name", "v2", ["vae/config.json"]),
        ("owner/name", None, list(PATTERNS)),
    ]


@pytest.mark.parametrize(
    "location, expected",
    [
        ("owner/name", "owner/name/vae"),
        ("owner/name@main", "owner/name/vae@main"),
        ("owner/name/sub@refs/pr/1", "owner/name/sub/vae@refs/pr/1"),
        ("/weights/klein/", "/weights/klein/vae"),
        ("/weights/klein@home", "/weights/klein@home/vae"),
        ("gs://bucket/a@b", "gs://bucket/a@b/vae"),
    ],
)
def test_folders_of_locations(location, expected):
    assert below(location, "vae") == expected


def test_folders_of_folders_with_an_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b@c").mkdir(parents=True)
    assert below("a/b@c", "vae") == "a/b@c/vae"
