"""A job's place: settings claimed once, shards done or not, and what a complete one writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.datasets.folder import DATASET
from modality_forcing.errors import UserError
from modality_forcing.prepare.job import Done, Place, Settings
from modality_forcing.storage import manifest
from modality_forcing.storage.manifest import ShardFile
from modality_forcing.storage.stats import DatasetStats

SETTINGS = Settings("folder", "train", 20, 64, None, "jpeg", 95, 8)


def place(folder: Path, **changes) -> Place:
    return Place(folder, DATASET, replace(SETTINGS, **changes))


def finish(
    at: Place, index: int, *, bad: tuple[tuple[int, str], ...] = (), version: str = "1"
) -> Done:
    at.shard(index).write_bytes(b"x" * (index + 5))
    tally = DatasetStats(records=len(at.settings.indices(index)) - len(bad))
    file = ShardFile(at.shard(index).name, tally.records, len(bad), index + 5, "abc")
    done = Done(at.settings.digest(), file, bad, tally, {"pillow": version})
    at.mark(index, done)
    return done


def test_records_are_dealt_to_shards_by_their_index():
    assert SETTINGS.shards == 3
    assert [list(SETTINGS.indices(shard)) for shard in range(3)] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]
    assert replace(SETTINGS, records=16).shards == 2


def test_sizes():
    assert SETTINGS.size((128, 256)) == (64, 128)
    assert replace(SETTINGS, resolution=None, max_side=64).size((128, 256)) == (32, 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"records": 19},
        {"resolution": 65},
        {"image_format": "png"},
        {"quality": 90},
        {"shard_size": 9},
        {"options": {"unit": "sfm"}},
    ],
)
def test_a_folder_belongs_to_the_settings_it_was_begun_with(tmp_path: Path, changes: dict):
    place(tmp_path).claim()
    place(tmp_path).claim()
    name, value = next(iter(changes.items()))
    value = next(iter(value.values())) if isinstance(value, dict) else value
    with pytest.raises(
        UserError,
        match=f"was begun with other settings \\({name}(.unit)? .*, now .*\\); choose another --out",
    ) as caught:
        place(tmp_path, **changes).claim()
    assert str(value) in str(caught.value)
    place(tmp_path, split="other", **changes).claim()  # another split has settings of its own


def test_a_shard_is_done_when_it_and_its_mark_are_there(tmp_path: Path):
    at = place(tmp_path)
    assert at.done(1) is None
    left = tmp_path / f".{at.shard(1).name}.0123abcd"
    half = tmp_path / "done-train/.00001.json.x0123"
    half.parent.mkdir()
    half.touch()
    other = tmp_path / f".{at.shard(0).name}.0123abcd"
    left.touch()
    other.touch()
    done = finish(at, 1, bad=((9, "a.png: cannot be read"),))
    assert at.done(1) == done
    assert not left.exists() and not half.exists() and other.exists()
    assert place(tmp_path, quality=3).done(1) is None
    at.shard(1).write_bytes(b"x")
    assert at.done(1) is None
    at.shard(1).unlink()
    assert at.done(1) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"settings": "x", "file": {}}'])
def test_a_damaged_mark_is_told(tmp_path: Path, content: str):
    at = place(tmp_path)
    finish(at, 1)
    (tmp_path / "done-train/00001.json").write_text(content)
    with pytest.raises(
        UserError,
        match=r"done-train/00001\.json: .*; delete it and run the same mforce prepare again",
    ):
        at.done(1)


def test_the_manifest_sums_up(tmp_path: Path):
    at = place(tmp_path)
    finished = [
        finish(at, 0, bad=((3, "third\nis torn"),)),
        finish(at, 1, version="2"),
        finish(at, 2, bad=((17, "b"), (16, "a"))),
    ]
    written = at.complete(finished, alone=True)
    assert written == manifest.read(tmp_path, "train")
    told = json.loads(written.path.read_text())
    assert (
        told["records"] == 17 and told["failed"] == 3 and told["shards"] == 3 and told["bytes"] == 18
    )
    assert told["name"] == "folder" and told["versions"] == {"pillow": "1, 2"}
    assert told["settings"]["resolution"] == 64 and told["settings"]["format"] == manifest.FORMAT
    assert (tmp_path / "bad-train.txt").read_text() == "3\tthird is torn\n16\ta\n17\tb\n"


def test_what_killed_runs_left_goes_when_nobody_else_can_be_writing(tmp_path: Path):
    at = place(tmp_path, records=8)
    finished = [finish(at, 0)]
    left = [
        tmp_path / f".{name}.x"
        for name in ("manifest-train.json", "prepare-train.json", "bad-train.txt", "features.json")
    ]
    for path in left:
        path.touch()
    at.complete(finished, alone=False)
    assert all(path.exists() for path in left)
    at.complete(finished, alone=True)
    assert not any(path.exists() for path in left)


def test_all_complete_splits_are_there_for_tensorflow_datasets(tmp_path: Path):
    for split in ("val", "train", "all"):
        at = place(tmp_path, split=split, records=8)
        at.complete([finish(at, 0)], alone=True)
    place(tmp_path, split="test").claim()
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["train", "val"] and (
        tmp_path / "features.json"
    ).is_file()
