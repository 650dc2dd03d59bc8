"""Evaluation against a generator whose answers are known: what is compared with what."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from modality_forcing.config import DataConfig
from modality_forcing.errors import UserError
from modality_forcing.evaluate import held_out as module
from modality_forcing.evaluate.held_out import Evaluator, held_out, with_examples
from tests import tiny


class Known:
    """A generator that answers with arrays of the held-out data: of example i, what `answers` holds at i."""

    def __init__(self, **answers: np.ndarray):
        self.answers, self.calls = answers, []

    def run(self, task, captions, batch, seed, index, options):
        self.calls.append(SimpleNamespace(task=task, captions=captions, batch=batch, index=index, options=options))
        names = {"i2d": ("depth",), "d2i": ("image",), "joint": ("image", "depth")}[task]
        return SimpleNamespace(pictures={name: self.answers[name][index] for name in names})


@pytest.fixture
def evaluator(monkeypatch) -> Evaluator:
    monkeypatch.setattr(module, "ROW_MEAN_SCENES", 16)
    config = tiny.forcing()
    return Evaluator(replace(config, eval=replace(config.eval, examples=7, batch=3)))


def perfect(evaluator: Evaluator) -> Known:
    depth = np.where(evaluator.data.valid, evaluator.data.depth, 1.0)
    return Known(depth=3 * depth + 0.5, image=evaluator.data.image / 255.0)


def test_held_out_records_are_those_of_the_split(evaluator: Evaluator):
    data = evaluator.data
    assert data.image.shape == (7, 16, 16, 3) and data.depth.shape == data.valid.shape == (7, 16, 16)
    assert len(data.captions) == 7 and all(data.captions)
    train = module.setup.source(evaluator.config, "train")
    assert not any(np.array_equal(train[i].image, data.image[i]) for i in range(7))


def test_truth_up_to_scale_and_shift_scores_perfectly(evaluator: Evaluator):
    scored, depth = evaluator.i2d(perfect(evaluator))
    assert scored["absrel"] < 1e-3 and scored["delta1"] > 0.999 and depth.shape == (7, 16, 16)
    d2i, _ = evaluator.d2i(perfect(evaluator))
    assert d2i["absrel"] < 1e-3 < 0.1 < d2i["absrel_unrelated"]
    joint, _ = evaluator.joint(perfect(evaluator), 3.0)
    assert joint["absrel"] < 1e-3 < joint["constant"]


def test_a_model_that_sees_nothing_scores_like_the_constant(evaluator: Evaluator):
    blind = Known(depth=np.ones((7, 16, 16)), image=evaluator.data.image / 255.0)
    assert evaluator.i2d(blind)[0] == pytest.approx(evaluator.references()["constant"], rel=1e-4)


def test_each_example_is_asked_for_under_its_own_index(evaluator: Evaluator):
    known = perfect(evaluator)
    evaluator.i2d(known)
    assert [list(call.index) for call in known.calls] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
    for call in known.calls:
        np.testing.assert_array_equal(call.batch["image"], evaluator.data.image[call.index])
        assert call.captions == [evaluator.data.captions[i] for i in call.index]


def test_d2i_reads_its_depth_back_from_the_picture_it_made(evaluator: Evaluator):
    known = perfect(evaluator)
    evaluator.d2i(known)
    made, again = known.calls[:3], known.calls[3:]
    assert [call.task for call in made + again] == ["d2i"] * 3 + ["i2d"] * 3
    assert set(made[0].batch) == {"depth", "valid"}
    np.testing.assert_array_equal(again[0].batch["image"], evaluator.data.image[:3])


def test_everything_the_demo_reports(evaluator: Evaluator):
    known = perfect(evaluator)
    result = evaluator(known)
    assert set(result.numbers) == {"i2d", "constant", "row_mean", "d2i", "joint", "text"}
    assert set(result.pictures) == {"i2d", "d2i", "joint_image_first", "joint_depth_first"}
    assert [call.options.log2_alpha for call in known.calls if call.task == "joint"] == [5.0] * 3 + [-5.0] * 3
    assert result.numbers["text"]["found"] == result.numbers["text"]["truth"] >= result.numbers["text"]["chance"]


def test_more_examples_than_there_are_is_refused():
    config = tiny.forcing()
    assert with_examples(config, 64).eval.examples == 64
    with pytest.raises(UserError, match="65 held-out examples asked for, there are 64"):
        with_examples(config, 65)


def test_nothing_to_compare_with_is_refused(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    data = DataConfig(source="folder", root=str(tmp_path), resolution=16)
    with pytest.raises(UserError, match="no held-out record has depth"):
        held_out(replace(tiny.forcing(), data=data))
