"""Held-out evaluation with a fake generator."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from modality_forcing.config import Config, DataConfig
from modality_forcing.errors import UserError
from modality_forcing.evaluation import heldout as module
from modality_forcing.evaluation.estimators import from_folder
from modality_forcing.evaluation.heldout import (
    Evaluator,
    joint_set,
    load_held_out,
    with_num_examples,
)
from modality_forcing.generator import Generator
from tests import runs, tiny


class FakeGenerator(Generator):
    """A generator that returns fixed arrays: for example i, `answers` at i."""

    def __init__(self, **answers: np.ndarray):
        self.answers, self.calls = answers, []

    def run(self, task, captions, batch, seed, index, options):
        self.calls.append(
            SimpleNamespace(task=task, captions=captions, batch=batch, index=index, options=options)
        )
        names = {"i2d": ("depth",), "d2i": ("image",), "joint": ("image", "depth")}[task]
        return SimpleNamespace(images={name: self.answers[name][index] for name in names})


class FakeEstimator:
    """An estimator that returns fixed arrays and records its inputs; `missing` has no map."""

    def __init__(self, depth: np.ndarray, valid: np.ndarray | None = None, missing: str = ""):
        self.depth = depth
        self.valid = np.ones_like(depth, bool) if valid is None else valid
        self.missing = missing
        self.name, self.asked = "fake", []

    def fingerprint(self, names):
        if self.missing in names:
            raise UserError(f"{self.missing} is missing")
        return ""

    def __call__(self, images, names):
        self.asked.append((images, names))
        return self.depth, self.valid


def config() -> Config:
    tiny_config = tiny.forcing()
    return replace(tiny_config, eval=replace(tiny_config.eval, examples=7, batch=3))


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(module, "ROW_MEAN_SCENES", 16)


@pytest.fixture
def evaluator() -> Evaluator:
    return Evaluator(config())


def perfect(evaluator: Evaluator) -> FakeGenerator:
    depth = np.where(evaluator.data.valid, evaluator.data.depth, 1.0)
    return FakeGenerator(depth=3 * depth + 0.5, image=evaluator.data.image / 255.0)


def test_records_are_those_of_the_eval_split(evaluator: Evaluator):
    data = evaluator.data
    assert data.image.shape == (7, 16, 16, 3) and data.depth.shape == data.valid.shape == (
        7,
        16,
        16,
    )
    assert len(data.captions) == 7 and all(data.captions)
    train = module.inputs.open_source(evaluator.config, "train")
    assert not any(np.array_equal(train[i].image, data.image[i]) for i in range(7))


def test_target_up_to_scale_and_shift_scores_perfectly(evaluator: Evaluator):
    scored, depth = evaluator.i2d(perfect(evaluator))
    assert scored["absrel"] < 1e-3 and scored["delta1"] > 0.999 and depth.shape == (7, 16, 16)
    d2i, _ = evaluator.d2i(perfect(evaluator))
    assert d2i["absrel"] < 1e-3 < 0.1 < d2i["absrel_shuffled"]
    joint, _ = evaluator.joint(perfect(evaluator), 3.0)
    assert joint["absrel"] < 1e-3 < min(joint["constant_absrel"], joint["absrel_shuffled"])
    assert joint["absrel_stderr"] < 1e-3 and joint["coverage"] == 1


def test_constant_model_scores_like_the_constant_baseline(evaluator: Evaluator):
    constant = FakeGenerator(depth=np.ones((7, 16, 16)), image=evaluator.data.image / 255.0)
    assert evaluator.i2d(constant)[0] == pytest.approx(evaluator.baselines()["constant"], rel=1e-4)


def test_examples_are_generated_with_their_own_index(evaluator: Evaluator):
    generator = perfect(evaluator)
    evaluator.i2d(generator)
    assert [list(call.index) for call in generator.calls] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
    for call in generator.calls:
        np.testing.assert_array_equal(call.batch["image"], evaluator.data.image[call.index])
        assert call.captions == [evaluator.data.captions[i] for i in call.index]


def test_d2i_reestimates_depth_from_its_image(evaluator: Evaluator):
    generator = perfect(evaluator)
    evaluator.d2i(generator)
    made, again = generator.calls[:3], generator.calls[3:]
    assert [call.task for call in made + again] == ["d2i"] * 3 + ["i2d"] * 3
    assert set(made[0].batch) == {"depth", "valid"}
    np.testing.assert_array_equal(again[0].batch["image"], evaluator.data.image[:3])


def test_evaluation_has_all_tasks(evaluator: Evaluator):
    generator = perfect(evaluator)
    result = evaluator(generator)
    assert set(result.metrics) == {"i2d", "constant", "row_mean", "d2i", "joint", "text"}
    assert set(result.images) == {"i2d", "d2i", "joint_image_first", "joint_depth_first"}
    assert [call.options.log2_alpha for call in generator.calls if call.task == "joint"] == [
        5.0
    ] * 3 + [-5.0] * 3
    assert (
        result.metrics["text"]["color_recall"]
        == result.metrics["text"]["color_recall_dataset"]
        >= result.metrics["text"]["color_recall_chance"]
    )


def test_external_estimator_replaces_the_model(evaluator: Evaluator):
    data, generator = evaluator.data, perfect(evaluator)
    evaluator.estimator = estimator = FakeEstimator(7 * generator.answers["depth"] + 2)
    joint, made = evaluator.joint(generator, 3.0)
    d2i, _ = evaluator.d2i(generator)
    assert (
        joint["absrel"] < 1e-3 < joint["constant_absrel"]
        and d2i["absrel"] < 1e-3 < d2i["absrel_shuffled"]
    )
    assert {call.task for call in generator.calls} == {"joint", "d2i"}
    np.testing.assert_array_equal(made["reestimated"], estimator.depth)
    for (images, names), folder in zip(estimator.asked, ("joint_log2alpha+3", "d2i"), strict=True):
        np.testing.assert_array_equal(images, data.image)
        assert names == [f"{folder}/{i:04d}" for i in range(7)]


def test_pixels_without_estimate_are_not_scored(evaluator: Evaluator):
    generator = perfect(evaluator)
    seen = np.ones((7, 16, 16), bool)
    seen[:, :5] = False
    seen[6] = False
    evaluator.estimator = FakeEstimator(np.where(seen, generator.answers["depth"], 0), seen)
    joint, _ = evaluator.joint(generator, 3.0)
    d2i, _ = evaluator.d2i(generator)
    assert joint["absrel"] < 1e-3 and d2i["absrel"] < 1e-3
    assert joint["coverage"] == pytest.approx(seen.mean())


def test_missing_maps_are_reported_before_generation(evaluator: Evaluator):
    generator = perfect(evaluator)
    for missing in ("d2i/0003", "joint_log2alpha-5/0006"):
        evaluator.estimator = FakeEstimator(generator.answers["depth"], missing=missing)
        with pytest.raises(UserError, match="is missing"):
            evaluator(generator)
    assert generator.calls == []


def test_image_sets_have_distinct_names():
    names = [joint_set(x) for x in (5, -5.0, 0.5, 0.0, -0.0, 1e-7, 64)]
    joined = " ".join(name.removeprefix("joint_log2alpha") for name in names)
    assert joined == "+5 -5 +0.5 +0 +0 +1e-07 +64"


def test_saved_images_are_reproduced_and_their_maps_read(tmp_path):
    """The workflow with an external program: write images, add maps, score."""
    generator = Generator(config(), tiny.network(config())[1])
    first = Evaluator(config(), save_images=tmp_path / "a")
    own, _ = first.d2i(generator)
    written = runs.contents(tmp_path / "a")
    assert set(written) == {"d2i", *(f"d2i/{i:04d}.png" for i in range(7))}
    for i in range(7):  # only the report matters here, not the values
        np.save(tmp_path / "a" / "d2i" / f"{i:04d}.npy", 1.0 + np.arange(256).reshape(16, 16))

    second = Evaluator(config(), from_folder(tmp_path / "a"), tmp_path / "b")
    external, _ = second.d2i(generator)
    assert runs.contents(tmp_path / "b") == written
    assert external.keys() == own.keys() and external["absrel"] == pytest.approx(
        external["absrel_shuffled"]
    )  # one map for all

    other = Evaluator(replace(config(), seed=9), from_folder(tmp_path / "a"), tmp_path / "a")
    with pytest.raises(UserError, match="differs from this checkpoint's image"):
        other.d2i(generator)
    assert written.items() <= runs.contents(tmp_path / "a").items()


def test_invalid_image_folder_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; choose another --save-images"):
        Evaluator(config(), save_images=tmp_path / "file")


def test_too_many_examples_are_refused():
    assert with_num_examples(config(), 64).eval.examples == 64
    with pytest.raises(UserError, match="65 held-out examples requested, 64 available"):
        with_num_examples(config(), 65)


def test_records_without_depth_are_refused(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    data = DataConfig(source="folder", root=str(tmp_path), resolution=16)
    with pytest.raises(UserError, match="no held-out record has depth"):
        load_held_out(replace(tiny.forcing(), data=data))


@pytest.mark.parametrize("weight, cause", [
    (3e30, r"the network overflows; its largest weight is 3e\+30 \(trunk/w\)"),
    (np.inf, "these weights are not finite: trunk/w"),
])  # fmt: skip
def test_first_record_with_values_that_are_not_finite_is_named(evaluator, weight, cause):
    depth = np.ones_like(evaluator.data.depth)
    depth[4, 2, 3:5] = np.nan, np.inf
    depth[6] = np.nan
    generator = FakeGenerator(depth=depth)
    generator.params = {"trunk": {"b": np.ones(2, "f4"), "w": np.array([1, -weight], "f4")}}
    record = f"held-out record 4 ({evaluator.data.ids[4]})"
    generated = rf"{re.escape(record)}: mode i2d generates depth with 2 of 256 values that are not"
    with pytest.raises(UserError, match=rf"{generated} finite because {cause}; use an earlier"):
        evaluator.i2d(generator)
    assert [call.index.tolist() for call in generator.calls] == [[0, 1, 2], [3, 4, 5]]
