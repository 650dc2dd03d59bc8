"""What a run evaluates, with a fake network: the network itself is tested in tests/sharded."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.evaluation import while_training
from modality_forcing.evaluation.heldout import load_records
from modality_forcing.evaluation.while_training import make_evaluate
from modality_forcing.generator import Generator, num_steps
from modality_forcing.train import sharding
from modality_forcing.train.evaluation import EvalResult
from modality_forcing.train.inputs import open_inputs
from tests import tiny
from tests.bundles import write_bundle

WEIGHTS = {"w": np.ones(3)}


class FakeGenerator(Generator):
    """Generates the same arrays for every example; remembers its calls."""

    made: ClassVar[list[FakeGenerator]] = []

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.calls = []
        self.made.append(self)

    def run(self, task, captions, **options):
        self.trajectory(task)  # raises where the network cannot do it
        self.calls.append(SimpleNamespace(task=task, captions=captions, params=self.params))
        r, b = self.config.data.resolution, len(captions)
        ramp = np.broadcast_to(np.linspace(1, 2, r, dtype=np.float32), (b, r, r))
        made = {"image": np.full((b, r, r, 3), 0.5, np.float32), "depth": ramp}
        made["normals"] = np.broadcast_to(np.float32((0, 0, -1)), (b, r, r, 3))
        return SimpleNamespace(images={n: made[n] for n in self.modalities})


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(FakeGenerator, "made", [])
    monkeypatch.setattr(while_training, "Generator", FakeGenerator)

    def count(self, params):
        return {"loss_image": float(len(self._data.captions))}

    monkeypatch.setattr(while_training.FixedLevelLoss, "__call__", count)


def configured(config: Config | None = None, **evaluation: Any) -> Config:
    config = config or tiny.forcing()
    values = {"every": 2, "while_training_examples": 5, **evaluation}
    return replace(config, eval=replace(config.eval, **values))


def evaluate(config: Config) -> EvalResult:
    found = make(config)
    assert found is not None
    return found(WEIGHTS)


def make(config: Config):
    mesh = sharding.make_mesh(config.mesh)
    return make_evaluate(config, open_inputs(config, mesh), mesh)


def test_nothing_is_evaluated_by_default():
    assert make(tiny.forcing()) is None and not FakeGenerator.made


def test_losses_depth_and_a_sheet_are_made_of_the_given_weights():
    result = evaluate(configured())
    assert result.scalars["loss_image"] == 5  # records
    assert set(result.scalars) == {"loss_image", "absrel", "delta1"}
    assert 0 < result.scalars["absrel"] < 1
    # Five rows of six cells: caption, image, depth, estimate, and both that captions make.
    assert (
        result.sheet.shape == (22 + 4 + 5 * 132, 4 + 6 * 132, 3) and result.sheet.dtype == np.uint8
    )
    (generator,) = FakeGenerator.made
    assert {call.task for call in generator.calls} == {"i2d", "joint"}
    assert all(call.params is WEIGHTS for call in generator.calls)
    assert generator.params == {}, "the next step donates the weights"


def test_a_text_to_image_run_has_a_loss_and_generated_images():
    result = evaluate(configured(tiny.t2i()))
    assert set(result.scalars) == {"loss_image"}
    assert result.sheet.shape[1] == 4 + 3 * 132
    assert {call.task for call in FakeGenerator.made[0].calls} == {"t2i"}


def test_normals_are_scored_by_the_run_that_makes_depth():
    config = configured(tiny.normals())
    scalars = evaluate(config).scalars
    (generator,) = FakeGenerator.made
    target = load_records(config, "eval", 5).more["normals"]
    angles = np.degrees(np.arccos(np.clip(-target[np.any(target != 0, axis=-1)][:, 2], -1, 1)))
    assert scalars["normals_mean_deg"] == pytest.approx(angles.mean(), rel=1e-4)
    assert set(scalars) == {"loss_image", "absrel", "delta1", "normals_mean_deg"}
    assert {call.task for call in generator.calls} == {"i2d", "joint"}


def test_sampler_steps_are_few():
    config = configured(while_training_steps=3)
    config = replace(
        config, sample=replace(config.sample, steps=50, task_steps={"i2d": 1, "d2i": 9})
    )
    make(config)
    options = FakeGenerator.made[0].config.sample
    assert [num_steps(task, options) for task in ("joint", "i2d", "d2i")] == [3, 1, 3]


def test_a_benchmark_is_scored_on_few_frames(tmp_path):
    root = str(write_bundle(tmp_path))
    config = configured(benchmark="spring", benchmark_root=root, benchmark_frames=2)
    found = evaluate(config).scalars
    assert {"spring/absrel", "spring/delta1"} < set(found)
    assert 0 < found["spring/absrel"] < 1
    predicted = [call for call in FakeGenerator.made[0].calls if set(call.captions) == {""}]
    assert len(predicted) == 1 and not (tmp_path / "predictions").exists()


def test_frames_of_a_benchmark_are_evenly_spaced(tmp_path):
    opened = while_training.benchmark.open_benchmarks("spring", write_bundle(tmp_path))[0]
    few = while_training._few_frames(opened, 2)
    assert few.names == ("x/a", "x/b") and not few.official_list
    assert while_training._few_frames(opened, 3) is opened
    assert while_training._few_frames(opened, 1).names == ("x/a",)


@pytest.mark.parametrize(
    ("values", "message"),
    (
        ({"benchmark": "spring"}, "eval.benchmark_root is empty"),
        ({"benchmark": "nyuv3", "benchmark_root": "x"}, "nyuv3"),
        ({"benchmark": "nyuv2", "benchmark_root": "x"}, "no such folder"),
    ),
)
def test_a_wrong_benchmark_is_refused_at_the_start(values, message):
    with pytest.raises(UserError, match=message):
        make(configured(**values))


def test_a_benchmark_of_depth_needs_a_network_of_depth(tmp_path):
    config = configured(tiny.t2i(), benchmark="spring", benchmark_root=str(write_bundle(tmp_path)))
    with pytest.raises(UserError, match="mode i2d needs a second modality"):
        make(config)


def test_training_records_are_shown_but_not_scored(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(while_training, "_same_records", lambda config: True)
    result = evaluate(configured())
    assert result.scalars == {} and result.sheet.size
    assert "forcing: there are no held-out records: eval/ has the image sheet alone" in (
        capsys.readouterr().err
    )


def test_which_sources_have_no_held_out_records():
    config = tiny.forcing()

    def same(**data: Any) -> bool:
        return while_training._same_records(replace(config, data=replace(config.data, **data)))

    assert not same() and same(source="folder", root="x")
    assert not same(source="prepared", root="x")
    assert same(source="prepared", root="x", eval_split="train", split="train")


def test_captions_that_no_encoder_reads_are_refused(monkeypatch):
    class Cached:
        def encode(self, caption: str):
            raise UserError("no cache has the caption")

    monkeypatch.setattr(FakeGenerator, "encoder", Cached())
    with pytest.raises(UserError, match="needs a text encoder: no cache has the caption"):
        make(configured())
