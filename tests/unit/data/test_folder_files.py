"""Which files of a folder are used, and which are counted as not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modality_forcing.data.folder_files import find_files
from modality_forcing.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_depth_of_another_kind_and_links_to_nothing_are_listed(tmp_path: Path):
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg", "depth/a.png", "depth/b.tif")
    (tmp_path / "depth/c.png").symlink_to("nowhere")
    (tmp_path / "images/d.jpg").symlink_to("nowhere")
    found = find_files(tmp_path)
    depths = {key: pair.depth and pair.depth.name for key, pair in found.pairs.items()}
    assert depths == {"a": "a.png", "b": "b.tif", "c": "c.png", "d": None}


def test_files_that_are_not_used_are_named(tmp_path: Path):
    touch(tmp_path, "images/a.jpg", "images/b.heic", "images/old/x.jpg", "images/.hidden.jpg")
    touch(tmp_path, "depth/a.npy", "depth/a.tif", "captions/z.txt", "captions/a.txt", "notes.md")
    os.mkfifo(tmp_path / "images/pipe.png")
    assert find_files(tmp_path).notes(tmp_path) == [
        f"{tmp_path}/captions: 1 not used (z.txt)",
        f"{tmp_path}/depth: 1 not used (a.tif)",
        f"{tmp_path}/images: 3 not used (b.heic, old, pipe.png)",
    ]


def test_known_names_of_a_flat_folder_are_used(tmp_path: Path):
    touch(
        tmp_path, "a.jpg", "a.txt", "a.depth.png", "captions.txt", "intrinsics.json", "b.depth.h5"
    )
    found = find_files(touch(tmp_path, "b.jpg"))
    assert found.notes(tmp_path) == [] and set(found.texts) == {"a"}
    assert found.pairs["b"].depth == tmp_path / "b.depth.h5"


def test_names_are_compared_in_one_form(tmp_path: Path):
    touch(tmp_path, "images/cafe\u0301.jpg", "depth/caf\u00e9.png", "captions/caf\u00e9.txt")
    found = find_files(tmp_path)
    assert found.names == {"caf\u00e9": "cafe\u0301"} and set(found.texts) == {"caf\u00e9"}
    assert found.pairs["caf\u00e9"].depth == tmp_path / "depth/caf\u00e9.png"
    touch(tmp_path, "images/caf\u00e9.jpg")
    with pytest.raises(UserError, match="two images named"):
        find_files(tmp_path)
