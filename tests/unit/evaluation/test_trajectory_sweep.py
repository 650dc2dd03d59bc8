"""Trajectory sweeps with a fake generator: rows, files and reuse by a second run."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.evaluation import heldout as module
from modality_forcing.evaluation import trajectory_sweep
from modality_forcing.evaluation.heldout import Evaluator
from modality_forcing.evaluation.trajectory_sweep import parse_values
from modality_forcing.generator import Generator
from tests import damage, tiny

VALUES = (-1.0, 0.0, 0.5)


class FakeGenerator(Generator):
    """A generator whose depth error rises with log2 alpha; it can be stopped at a value."""

    def __init__(self, evaluator: Evaluator, stop_at: float | None = None):
        self.data, self.stop_at, self.asked = evaluator.data, stop_at, []
        self.config = evaluator.config
        self.params = {"w": np.arange(3, dtype=np.float32)}

    def run(self, task, captions, batch, seed, index, options):
        target = np.where(self.data.valid, self.data.depth, 1.0)[index]
        if task == "i2d":
            return SimpleNamespace(images={"depth": target})
        assert task == "joint"
        if options.log2_alpha == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(options.log2_alpha)
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, target.shape) * (1 + options.log2_alpha)
        return SimpleNamespace(
            images={"image": self.data.image[index] / 255.0, "depth": target + noise}
        )


class FakeEstimator:
    """An estimator of depth whose state can change."""

    def __init__(self, answer: np.ndarray):
        self.answer, self.name, self.state = answer, "fake", "1"

    def fingerprint(self, names):
        return self.state

    def __call__(self, images, names):
        return self.answer, np.broadcast_to(np.arange(16) < 12, self.answer.shape)


@pytest.fixture(scope="module")
def built() -> Evaluator:
    config = tiny.forcing()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROW_MEAN_SCENES", 16)
        return Evaluator(replace(config, eval=replace(config.eval, examples=6, batch=6)))


@pytest.fixture
def evaluator(built: Evaluator) -> Evaluator:
    """A copy that tests may change; the records are shared."""
    copy = object.__new__(Evaluator)
    vars(copy).update(vars(built))
    return copy


def run(evaluator, out, values=VALUES, generator=None):
    """Returns the result, which values were generated, and the lines logged."""
    generator, lines = generator or FakeGenerator(evaluator), []
    result = trajectory_sweep.run(
        generator, evaluator, values, out=out, checkpoint="runs/x", log=lines.append
    )
    return result, generator.asked, lines


@pytest.mark.parametrize(
    "text, values",
    [
        ("log2_alpha:-2..2", (-2, -1, 0, 1, 2)),
        ("log2_alpha:-0.3..0.3:0.1", (-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3)),
        ("log2_alpha:-5..5:3", (-5, -2, 1, 4)),
        ("log2_alpha:1..1", (1,)),
        ("log2_alpha:3,-3,0,-0,3", (-3, 0, 3)),
        ("log2_alpha:-64..64:8", tuple(range(-64, 65, 8))),
        ("log2_alpha:1e-3", (0.001,)),
    ],
)
def test_values_are_parsed_in_rising_order(text, values):
    assert parse_values(text) == values
    assert str(parse_values(text)[len(values) // 2]) != "-0.0"


@pytest.mark.parametrize(
    "text, message",
    [
        ("alpha:1..2", "cannot sweep 'alpha'; give log2_alpha:-5..5"),
        ("log2_alpha", "cannot sweep 'log2_alpha'"),
        ("", "cannot sweep ''"),
        *(
            (f"log2_alpha:{rest}", "is not a rising range or a list of numbers; give")
            for rest in ("", "5..-5", "1..", "..1", "a..b", "1,,2", "1..2:0")
        ),
        *(
            (f"log2_alpha:{rest}", "is not a rising range or a list of numbers")
            for rest in ("1..2:-1", "1..2:nan", "nan..1", "-inf..1", "1...2", "1:2")
        ),
        ("log2_alpha:-65..5", "log2_alpha is -65; it must be from -64 to 64"),
        ("log2_alpha:nan,1", "log2_alpha is nan"),
        ("log2_alpha:1,64.5", "log2_alpha is 64.5"),
        ("log2_alpha:0..1:1e-300", "has 66 values; ask for at most 65"),
    ],
)
def test_invalid_values_are_refused_in_one_line(text, message):
    with pytest.raises(UserError) as caught:
        parse_values(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rows_measure_agreement_of_depth_and_image(evaluator, tmp_path):
    result, asked, lines = run(evaluator, tmp_path)
    rows = result["rows"]
    assert asked == [row["log2_alpha"] for row in rows] == list(VALUES)
    assert (
        rows[0]["absrel"]
        < 1e-4
        < rows[1]["absrel"]
        < rows[2]["absrel"]
        < rows[2]["constant_absrel"]
    )
    assert rows[0]["delta1"] > 0.999 and rows[0]["coverage"] == 1
    for row in rows:
        assert row["absrel_over_constant"] == pytest.approx(row["absrel"] / row["constant_absrel"])
        assert row["absrel"] < row["absrel_shuffled"]
        assert (
            row["color_recall"] == row["color_recall_dataset"]
            and 0 <= row["absrel_stderr"] < row["constant_absrel"]
        )
    assert result["config"]["checkpoint"] == "runs/x" and result["config"]["estimator"] == "self"
    assert result["config"] | {"seed": 3, "steps": 4, "examples": 6} == result["config"]
    assert len(lines) == 3 and "ETA" in lines[-1]
    assert (
        lines[0].startswith("trajectory sweep  1/3  ")
        and "log2_alpha -1  absrel 0.0000" in lines[0]
        and lines[2].endswith("delta1 " + f"{rows[2]['delta1']:.4f}")
    )


def test_output_files(evaluator, tmp_path):
    result, _, _ = run(evaluator, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "trajectory_sweep.json",
        "trajectory_sweep.md",
        "trajectory_sweep.png",
        "trajectory_sweep.svg",
        "samples.png",
        "rows",
    }
    text = (tmp_path / "trajectory_sweep.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == result
    text = (tmp_path / "trajectory_sweep.md").read_text()
    assert (
        text == trajectory_sweep.to_markdown(result)
        and text.count("\n| ") == 4
        and "the model's own image-to-depth" in text
    )
    texts = [
        node.text
        for node in ElementTree.parse(tmp_path / "trajectory_sweep.svg").iter()
        if node.tag.endswith("}text")
    ]
    assert {"AbsRel", "AbsRel / constant", "color recall"} <= set(texts)
    with Image.open(
        tmp_path / "samples.png"
    ) as opened:  # a column of text and three of 96 px; four captions with three rows each
        assert opened.size == (4 + 4 * 100, 22 + 4 + 12 * 100)


def test_second_run_reuses_rows(evaluator, tmp_path):
    first, _, _ = run(evaluator, tmp_path)
    files = {
        name: (tmp_path / name).read_bytes()
        for name in (
            "trajectory_sweep.json",
            "trajectory_sweep.md",
            "trajectory_sweep.png",
            "trajectory_sweep.svg",
            "samples.png",
        )
    }
    again, asked, lines = run(evaluator, tmp_path)
    assert again == first and asked == [] and lines == ["trajectory sweep  3/3 already done"]
    assert files == {name: (tmp_path / name).read_bytes() for name in files}
    more, asked, _ = run(evaluator, tmp_path, (-1.0, 0.25))
    assert (
        asked == [0.25]
        and [row["log2_alpha"] for row in more["rows"]] == [-1, 0.25]
        and more["rows"][0] == first["rows"][0]
    )


def test_interrupted_run_keeps_finished_rows(evaluator, tmp_path):
    stopped = FakeGenerator(evaluator, stop_at=0.5)
    with pytest.raises(KeyboardInterrupt):
        run(evaluator, tmp_path, generator=stopped)
    assert stopped.asked == [-1, 0] and [path.name for path in tmp_path.iterdir()] == ["rows"]
    result, asked, _ = run(evaluator, tmp_path)
    assert asked == [0.5] and len(result["rows"]) == 3


def test_damaged_row_is_generated_again(evaluator, tmp_path):
    run(evaluator, tmp_path)
    rows = sorted((tmp_path / "rows").glob("*/*.json"))
    rows[0].write_text("{")
    rows[1].with_name(rows[1].stem + ".png").unlink()
    damaged = [float(path.stem.partition("alpha")[2]) for path in rows[:2]]
    assert run(evaluator, tmp_path)[1] == sorted(damaged)


def test_other_settings_have_other_rows(evaluator, tmp_path):
    values, config = (0.0,), evaluator.config
    run(evaluator, tmp_path, values)
    other_weights = FakeGenerator(evaluator)
    other_weights.params = {"w": np.arange(3, dtype=np.float32) + 1}
    assert run(evaluator, tmp_path, values, other_weights)[1] == [0]
    encoder = FakeGenerator(evaluator)
    for name in ("umt5:one", "umt5:another"):
        encoder.config = replace(config, text=replace(config.text, vocab_size=0, encoder=name))
        assert run(evaluator, tmp_path, values, encoder)[1] == [0], name
        encoder.asked.clear()
    weights = {"condition_guidance": {"image": 2.0}}
    changes = ({"steps": 3}, {"guidance": {"image": 2.0}}, {"task_steps": {"i2d": 1}}, weights)
    for change in changes:
        evaluator.config = replace(config, sample=replace(config.sample, **change))
        assert run(evaluator, tmp_path, values)[1] == [0], change
    evaluator.config = replace(config, seed=4)
    assert run(evaluator, tmp_path, values)[1] == [0]
    evaluator.config = config
    evaluator.data = replace(evaluator.data, captions=["another", *evaluator.data.captions[1:]])
    assert run(evaluator, tmp_path, values)[1] == [0]


def test_other_estimator_or_state_has_other_rows(evaluator, tmp_path):
    run(evaluator, tmp_path, (0.0,))
    evaluator.estimator = estimator = FakeEstimator(
        np.where(evaluator.data.valid, evaluator.data.depth, 1.0)
    )
    result, asked, _ = run(evaluator, tmp_path, (0.0,))
    assert asked == [0] and result["config"]["estimator"] == "fake"
    assert "by fake" in trajectory_sweep.to_markdown(
        result
    ) and "on valid pixels (at least 75%)" in trajectory_sweep.to_markdown(result)
    assert run(evaluator, tmp_path, (0.0,))[1] == []
    estimator.state = "2"
    assert run(evaluator, tmp_path, (0.0,))[1] == [0]


def test_save_images_generates_finished_rows_again(evaluator, tmp_path):
    run(evaluator, tmp_path)
    evaluator.save_images = tmp_path / "images"
    assert run(evaluator, tmp_path)[1] == list(VALUES)
    written = {
        str(path.relative_to(evaluator.save_images))
        for path in evaluator.save_images.rglob("*.png")
    }
    assert written == {
        f"joint_log2alpha{x}/{i:04d}.png" for x in ("-1", "+0", "+0.5") for i in range(6)
    }


def test_missing_maps_are_reported_before_generation(evaluator, tmp_path):
    class Missing(FakeEstimator):
        def fingerprint(self, names):
            if names[0].startswith("joint_log2alpha+0.5"):
                raise UserError("1 of 6 maps are missing")
            return ""

    evaluator.estimator, generator = Missing(evaluator.data.depth), FakeGenerator(evaluator)
    with pytest.raises(UserError, match="maps are missing"):
        run(evaluator, tmp_path / "out", generator=generator)
    assert generator.asked == [] and not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; choose another --out"):
        run(evaluator, tmp_path / "file")


def test_captions_without_colors_have_no_color_panel(evaluator, tmp_path):
    evaluator.data = replace(evaluator.data, captions=["a room"] * 6)
    result, _, _ = run(evaluator, tmp_path, (1.0,))
    assert (
        result["rows"][0]["color_recall"] is None
        and result["rows"][0]["color_recall_dataset"] is None
    )
    assert "| - | - | - |" in trajectory_sweep.to_markdown(result)
    assert "color recall" not in (tmp_path / "trajectory_sweep.svg").read_text()


def test_long_captions_and_large_images_fit_the_sheet():
    cells = np.zeros((2, 3, 128, 128, 3), np.uint8)
    sheet = trajectory_sweep.sample_sheet(["word " * 200, "w" * 500], {0.0: cells, 1.0: cells})
    assert sheet.shape == (22 + 4 + 6 * 132, 4 + 3 * 132, 3)
    assert (sheet[:130, :132] > 200).any() and not (sheet[26:, 132 + 4 :][:128, :128]).any()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The files of a row, which every example of the fuzz test damages and repairs, and the row."""
    stem = tmp_path_factory.mktemp("rows") / "joint"
    row = dict.fromkeys(trajectory_sweep._COLUMNS)
    row |= {"log2_alpha": 0.5, "coverage": 1.0, "absrel": 0.125, "absrel_stderr": None}
    cells = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)
    trajectory_sweep._write_row(stem, "1", row, cells)
    return stem, row, cells


@given(st.data())
@damage.examples(60)
def test_damaged_row_counts_as_missing_or_is_the_same(stored, data):
    stem, row, cells = stored
    path = data.draw(st.sampled_from(sorted(stem.parent.iterdir())))
    before = path.read_bytes()
    edited = path.suffix == ".json" and data.draw(st.booleans())
    path.write_bytes(data.draw((damage.of_json if edited else damage.of)(before)))
    found = trajectory_sweep._read_row(stem, "1")
    path.write_bytes(before)
    if found is not None:
        assert edited or found[0] == row
        np.testing.assert_array_equal(found[1], cells)
        config = {"guidance": {}, "estimator": "self", "estimator_steps": 1, "examples": 2}
        config |= {"resolution": 4, "steps": 1, "solver": "euler", "timestep_shift": 1.0}
        config |= {"seed": 0, "checkpoint": "3"}
        trajectory_sweep.to_markdown({"config": config, "rows": [found[0]]})
