"""A prepare job on disk: its settings, its finished shards, and what a complete one writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.datasets.folder import DATASET
from modality_forcing.errors import UserError
from modality_forcing.prepare.job import Failures, PrepareJob, Settings, ShardRecord
from modality_forcing.storage import manifest
from modality_forcing.storage.manifest import ShardFile
from modality_forcing.storage.stats import DatasetStats

SETTINGS = Settings(
    dataset="folder",
    split="train",
    records=20,
    resolution=64,
    max_side=None,
    image_format="jpeg",
    quality=95,
    shard_size=8,
)


def job_in(folder: Path, **changes) -> PrepareJob:
    return PrepareJob(folder, DATASET, replace(SETTINGS, **changes))


def finish(
    job: PrepareJob, index: int, *, failed: Failures = (), version: str = "1"
) -> ShardRecord:
    path, records = job.shards.path(index), len(job.shards.items(index)) - len(failed)
    path.write_bytes(b"x" * (index + 5))
    record = ShardRecord(
        settings=job.settings.digest(),
        file=ShardFile(path.name, records, len(failed), index + 5, "abc"),
        failed=failed,
        stats=DatasetStats(records=records),
        versions={"pillow": version},
    )
    job.finish(index, record)
    return record


def test_sizes():
    assert SETTINGS.choose_size((128, 256)) == (64, 128)
    assert replace(SETTINGS, resolution=None, max_side=64).choose_size((128, 256)) == (32, 64)


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
def test_other_settings_are_refused(tmp_path: Path, changes: dict):
    job_in(tmp_path).check_or_write_settings()
    job_in(tmp_path).check_or_write_settings()
    name, value = next(iter(changes.items()))
    value = next(iter(value.values())) if isinstance(value, dict) else value
    with pytest.raises(
        UserError,
        match=f"started with other settings \\({name}(.unit)? .*, now .*\\); choose another --out",
    ) as caught:
        job_in(tmp_path, **changes).check_or_write_settings()
    assert str(value) in str(caught.value)
    job_in(
        tmp_path, split="other", **changes
    ).check_or_write_settings()  # another split has settings of its own


def test_shard_is_finished_if_file_and_record_exist(tmp_path: Path):
    job = job_in(tmp_path)
    assert job.finished(1) is None
    left = tmp_path / f".{job.shards.path(1).name}.0123abcd"
    half = tmp_path / "done-train/.00001.json.x0123"
    half.parent.mkdir()
    half.touch()
    other = tmp_path / f".{job.shards.path(0).name}.0123abcd"
    left.touch()
    other.touch()
    record = finish(job, 1, failed=((9, "a.png: cannot be read"),))
    assert job.finished(1) == record
    assert not left.exists() and not half.exists() and other.exists()
    assert job_in(tmp_path, quality=3).finished(1) is None
    job.shards.path(1).write_bytes(b"x")
    assert job.finished(1) is None
    job.shards.path(1).unlink()
    assert job.finished(1) is None


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"settings": "x", "file": {}}', '{"settings": 1}']
)
def test_damaged_record_is_refused(tmp_path: Path, content: str):
    job = job_in(tmp_path)
    finish(job, 1)
    (tmp_path / "done-train/00001.json").write_text(content)
    with pytest.raises(
        UserError,
        match=r"done-train/00001\.json: .*; delete it and run the same mforce prepare again",
    ):
        job.finished(1)


@pytest.mark.parametrize("name", ["prepare-train.json", "done-train/00001.json"])
def test_changed_digit_is_refused(tmp_path: Path, name: str):
    job = job_in(tmp_path)
    job.check_or_write_settings()
    finish(job, 1)
    path = tmp_path / name
    digit = next(i for i, byte in enumerate(path.read_bytes()) if byte in b"123456789")
    content = bytearray(path.read_bytes())
    content[digit] ^= 1  # another digit
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: is damaged \(its checksum differs\)"):
        job.check_or_write_settings()
        job.finished(1)


@pytest.mark.parametrize(
    "changes",
    [
        {"depth_bins": {}, "min_depth": 1.0, "max_depth": 2.0},
        {"depth_bins": {"99999": 1}, "min_depth": 1.0, "max_depth": 2.0},
        {"records": True},
        {"valid": -1},
        {"sizes": 3},
    ],
)
def test_statistics_that_cannot_be_are_refused(tmp_path: Path, changes: dict):
    job = job_in(tmp_path)
    finish(job, 1)
    path = tmp_path / "done-train/00001.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    damaged = r"done-train/00001\.json: is damaged; delete it and run"
    for key, value in (("stats", content["stats"] | changes), ("versions", {"pillow": None})):
        path.write_text(json.dumps({**content, key: value}))
        with pytest.raises(UserError, match=damaged):
            job.finished(1)


def test_manifest_sums_up_the_shards(tmp_path: Path):
    job = job_in(tmp_path)
    finished = [
        finish(job, 0, failed=((3, "third\nis torn"),)),
        finish(job, 1, version="2"),
        finish(job, 2, failed=((17, "b"), (16, "a"))),
    ]
    written = job.complete(finished, alone=True)
    assert written == manifest.read(tmp_path, "train")
    content = json.loads(written.path.read_text())
    assert (
        content["records"] == 17
        and content["failed"] == 3
        and content["shards"] == 3
        and content["bytes"] == 18
    )
    assert content["name"] == "folder" and content["versions"] == {"pillow": "1, 2"}
    assert (
        content["settings"]["resolution"] == 64 and content["settings"]["format"] == manifest.FORMAT
    )
    assert (tmp_path / "failed-train.txt").read_text() == "3\tthird is torn\n16\ta\n17\tb\n"


def test_temp_files_of_killed_runs_are_removed_by_a_job_that_runs_alone(tmp_path: Path):
    job = job_in(tmp_path, records=8)
    finished = [finish(job, 0)]
    left = [
        tmp_path / f".{name}.x"
        for name in (
            "manifest-train.json",
            "prepare-train.json",
            "failed-train.txt",
            "features.json",
        )
    ]
    for path in left:
        path.touch()
    job.complete(finished, alone=False)
    assert all(path.exists() for path in left)
    job.complete(finished, alone=True)
    assert not any(path.exists() for path in left)


def test_tfds_metadata_lists_all_complete_splits(tmp_path: Path):
    for split in ("val", "train", "all"):
        job = job_in(tmp_path, split=split, records=8)
        job.complete([finish(job, 0)], alone=True)
    job_in(tmp_path, split="test").check_or_write_settings()
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["train", "val"] and (
        tmp_path / "features.json"
    ).is_file()
