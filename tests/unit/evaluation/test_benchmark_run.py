"""A whole run over benchmarks, of a small real network on a small bundle: what is written, and what is refused first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.errors import UserError
from modality_forcing.evaluation import benchmark_run
from modality_forcing.evaluation.benchmark import Setup
from modality_forcing.evaluation.protocols import MOGE, protocol
from modality_forcing.generator import Generator
from tests import tiny
from tests.bundles import write_bundle


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = tiny.forcing()
    return Generator(config, tiny.network(config)[1])


def test_a_run_leaves_json_markdown_a_sheet_and_predictions(tmp_path: Path, generator: Generator):
    opened = benchmark_run.open_all("spring", write_bundle(tmp_path / "data"))
    out, lines = tmp_path / "out", []
    (told,) = benchmark_run.run(generator, "6", opened, MOGE, Setup(samples=2), out, lines.append)
    assert (told["images"], told["skipped"], told["title"]) == (2, 1, "Spring")
    (stored,) = out.glob("spring_moge-affine_*.json")
    assert json.loads(stored.read_text()) == json.loads(json.dumps(told))
    assert stored.with_suffix(".md").read_text().startswith("# Spring: image to depth\n")
    with Image.open(stored.with_suffix(".png")) as sheet:
        assert sheet.size[1] > 2 * 192
    assert len(list((out / "predictions" / told["predictions"]).glob("*.npy"))) == 3

    (again,) = benchmark_run.run(
        generator, "6", opened, protocol("moge", "scale"), Setup(samples=2), out, lines.append
    )
    assert again["predictions"] == told["predictions"] and len(list(out.glob("*.json"))) == 2
    assert "predicted 0" in [line for line in lines if line.startswith("Spring")][-1]


def test_a_frame_scores_alike_in_a_list_of_ones_own(tmp_path: Path, generator: Generator):
    root = write_bundle(tmp_path / "data")
    (tmp_path / "mine.txt").write_text("x/a\n")
    whole = benchmark_run.run(
        generator, "6", benchmark_run.open_all("spring", root), MOGE, Setup(), tmp_path
    )[0]
    opened = benchmark_run.open_all("spring", root, tmp_path / "mine.txt")
    mine = benchmark_run.run(generator, "6", opened, MOGE, Setup(), tmp_path)[0]
    assert (
        not mine["official"] and whole["official"] and mine["predictions"] != whole["predictions"]
    )
    assert mine["rows"][0]["absrel"] == pytest.approx(whole["rows"][0]["absrel"], rel=1e-4)


@pytest.mark.parametrize(
    "names, told",
    [("", "names no set"), ("spring,spring", "one twice"), ("spring,nyuv2", "for a single set")],
)
def test_lists_of_sets(tmp_path: Path, names: str, told: str):
    with pytest.raises(UserError, match=told):
        benchmark_run.open_all(names, tmp_path, tmp_path / "list.txt")


def test_a_set_that_is_not_whole_stops_before_the_first_prediction(tmp_path: Path):
    root = write_bundle(tmp_path)
    (root / "Spring" / "c" / "depth.png").unlink()
    with pytest.raises(UserError, match="files of 1 of 3 images are missing"):
        benchmark_run.open_all("spring", root)
    assert len(official_names("nyuv2")) == 654  # what a whole set is elsewhere
