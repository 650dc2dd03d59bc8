"""`mforce inspect`: table, JSON, checksums, and a sheet on which sparse depth is visible."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.commands import inspect
from modality_forcing.data.records import Record
from modality_forcing.datasets.folder import DATASET
from modality_forcing.errors import UserError
from modality_forcing.prepare import work
from modality_forcing.prepare.job import PrepareJob, Settings
from modality_forcing.synthetic.source import Scenes
from modality_forcing.viz.images import INVALID_COLOR


def prepared(folder: Path, count: int = 5) -> Path:
    settings = Settings(
        dataset="folder",
        split="train",
        records=count,
        resolution=24,
        max_side=None,
        image_format="jpeg",
        quality=95,
        shard_size=2,
    )
    work.prepare(PrepareJob(folder, DATASET, settings), Scenes(count=count, resolution=32))
    return folder


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    inspect.add_options(parser)
    inspect.main(parser.parse_args(arguments))


def test_table_describes_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(str(prepared(tmp_path)), "--verify")
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    table = {name: value.strip() for name, value in rows.items()}
    assert table["data set"] == "a folder of your own (folder), split train"
    assert table["records"] == "5"
    assert table["shards"] == "3, 0.4 MiB, checksums verified" and table["frames"] == "5 of 24 x 24"
    assert table["captions"] == table["intrinsics"] == table["with depth"] == "all"
    assert table["depth"].startswith("relative, ") and "50% " in table["quantiles"]
    assert "resolution 24" in table["settings"] and "max_side" not in table["settings"]
    assert "pillow" in table["versions"]


def test_json_is_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(str(prepared(tmp_path)), "--json")
    assert json.loads(capsys.readouterr().out) == json.loads(
        (tmp_path / "manifest-train.json").read_text()
    )


def test_damaged_shard_is_named(tmp_path: Path):
    path = prepared(tmp_path) / "folder-train.array_record-00001-of-00003"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="00001-of-00003: is not what was written"):
        run(str(tmp_path), "--verify")


def test_incomplete_folder_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="holds no shards"):
        run(str(tmp_path))
    prepared(tmp_path)
    (tmp_path / "manifest-train.json").unlink()
    with pytest.raises(
        UserError, match="has shards of train and no manifest; run the same mforce prepare again"
    ):
        run(str(tmp_path))
    (tmp_path / "folder-train.array_record-00001-of-00003").unlink()
    with pytest.raises(UserError, match="lacks 1 of 3 shards"):
        run(str(tmp_path))


def test_sheet_has_one_row_per_record(tmp_path: Path):
    run(str(prepared(tmp_path / "out")), f"--sheet={tmp_path / 'sheet.png'}", "--records=3")
    with Image.open(tmp_path / "sheet.png") as opened:
        assert opened.size == (3 * (inspect.CELL[1] + 4) + 4, 3 * (inspect.CELL[0] + 4) + 4 + 22)
    assert (
        inspect.sheet(Scenes(count=2, resolution=16), 6).shape[0]
        == 2 * (inspect.CELL[0] + 4) + 4 + 22
    )


def record_of(size: tuple[int, int], points: dict[tuple[int, int], float]) -> Record:
    record = Scenes(resolution=8)[0]
    depth = np.zeros(size, np.float32)
    for index, z in points.items():
        depth[index] = z
    return replace(record, image=np.full((*size, 3), 200, np.uint8), depth=depth, valid=depth > 0)


@pytest.mark.parametrize("over", [True, False])
def test_single_point_is_drawn_at_its_position(over: bool):
    """In a frame larger than the cell, a point is still drawn several pixels wide."""
    cell = inspect.overlay(record_of((480, 640), {(120, 400): 2.0, (300, 8): 5.0}), over)
    ground = np.array([90, 90, 90] if over else INVALID_COLOR)
    drawn = np.any(cell != ground, axis=2)
    assert drawn.sum() == 2 * 9
    assert drawn[59:62, 199:202].all() and drawn[149:152, 3:6].all()
    colors = {tuple(color) for color in cell[drawn].tolist()}
    assert len(colors) == 2


def test_near_points_cover_far_ones():
    near_last = inspect.overlay(record_of((240, 320), {(100, 100): 2.0, (100, 101): 5.0}), False)
    near_first = inspect.overlay(record_of((240, 320), {(100, 100): 5.0, (100, 101): 2.0}), False)
    assert (
        near_last[100, 99].tolist() == near_last[100, 101].tolist() != near_last[100, 102].tolist()
    )
    assert (
        near_first[100, 100].tolist()
        == near_first[100, 102].tolist()
        != near_first[100, 99].tolist()
    )


def test_dense_depth_fills_exactly_the_frame():
    record = record_of((48, 48), {})
    record = replace(record, depth=np.ones((48, 48), np.float32), valid=np.ones((48, 48), np.bool_))
    drawn = np.any(inspect.overlay(record, False) != INVALID_COLOR, axis=2)
    assert drawn[:, 40:280].all() and not drawn[:, :40].any() and not drawn[:, 280:].any()


def test_without_depth_only_the_image_is_shown():
    cell = inspect.overlay(record_of((24, 32), {}), True)
    assert np.all(cell == 90)


def test_image_is_padded_not_cropped():
    cell = inspect.framed(np.full((10, 40, 3), 200, np.uint8))
    assert cell.shape == (*inspect.CELL, 3)
    assert np.all(cell[80:160] == 200) and np.all(cell[:80] == 24) and np.all(cell[160:] == 24)
