"""A model on a benchmark: against a generator whose answers are known, what is predicted, kept, and compared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modality_forcing.config import SampleConfig
from modality_forcing.errors import UserError
from modality_forcing.evaluation import benchmark
from modality_forcing.evaluation.benchmark import (
    Setup,
    ahead,
    batches,
    evaluate,
    for_benchmark,
    identity,
)
from modality_forcing.evaluation.benchmarks.registry import BENCHMARKS, Frame
from modality_forcing.evaluation.depth_metrics import score
from modality_forcing.evaluation.predictions import Predictions
from modality_forcing.evaluation.protocols import MOGE, Protocol, protocol
from modality_forcing.generator import Generator
from tests import tiny

NYU = BENCHMARKS["nyuv2"]
PLAIN = Setup()
R = 16


class Set:
    """Seven frames of random depth, the third without a valid pixel, of two sizes."""

    benchmark, layout, official = NYU, "bundle", True
    names = tuple(f"scene/{i}" for i in range(7))

    def __init__(self):
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Frame:
        self.read.append(index)
        rng = np.random.default_rng(index)
        size = (24, 24) if index < 5 else (24, 40)
        valid = rng.random(size) < 0.7 if index != 2 else np.zeros(size, bool)
        depth = np.where(valid, rng.uniform(1, 9, size), 0).astype("f4")
        image = np.full((*size, 3), 10 * index, np.uint8)
        return Frame(
            self.names[index],
            image,
            depth,
            valid,
            np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], "f4"),
        )


class Known(Generator):
    """Answers depth that depends on the picture, the example and the draw alone."""

    def __init__(self):
        self.config, self.params, self.calls = tiny.forcing(), {"w": np.ones(3, "f4")}, []
        self.config = replace(self.config, eval=replace(self.config.eval, batch=3))

    def trajectory(self, task, options):
        assert task == "i2d"
        return SimpleNamespace(levels={"image": 0, "depth": 0}), ("image",)

    def run(
        self,
        task,
        captions,
        *,
        batch=None,
        options=None,
        seed=0,
        index=None,
        sample_index=0,
        refine=False,
    ) -> Any:
        assert (
            batch is not None
            and index is not None
            and len(captions) == 3 == len(batch["image"]) == len(index)
        )
        self.calls.append((list(index), sample_index, seed))
        depth = [
            np.random.default_rng([int(i), sample_index, seed]).uniform(1, 2, (R, R)) for i in index
        ]
        return SimpleNamespace(images={"depth": np.array(depth, "f4")})


def evaluated(
    tmp_path: Path, chosen: Protocol = MOGE, setup: Setup = PLAIN, told: list[str] | None = None
):
    generator, frames = Known(), Set()
    kept = Predictions(tmp_path, identity(generator, frames, setup), R)  # pyright: ignore[reportArgumentType]
    tell = (lambda line: None) if told is None else told.append
    return evaluate(generator, frames, chosen, setup, kept, tell), generator, frames, kept  # pyright: ignore[reportArgumentType]


def test_every_frame_is_predicted_once_and_scored_against_its_view(tmp_path: Path):
    told: list[str] = []
    scores, generator, frames, kept = evaluated(tmp_path, told=told)
    assert sorted(frames.read) == list(range(7))
    assert [i for call in generator.calls for i in dict.fromkeys(call[0])] == list(range(7))
    assert (
        scores.predicted == 7
        and scores.cameras == 7
        and np.isnan(scores.each.absrel[2])
        and scores.pixels[2] == 0
    )
    for i in (0, 1, 6):
        seen = benchmark.scored(Set()[i], NYU, "square", R)
        both = kept.get(i)
        assert both is not None and both[1].max() == 0  # a single sample is not uncertain
        expected = score(both[:1], seen.truth[None], seen.valid[None])
        assert float(scores.each.absrel[i]) == pytest.approx(float(expected.absrel[0]), rel=1e-6)
    assert told[-1].startswith("NYUv2  7/7") and "predicted 7" in told[-1]


def test_a_second_protocol_predicts_nothing(tmp_path: Path):
    _, first, *_ = evaluated(tmp_path)
    scores, second, *_ = evaluated(tmp_path, protocol("marigold"))
    assert first.calls and not second.calls and scores.predicted == 0


def test_an_interrupted_run_predicts_only_what_it_lacks(tmp_path: Path):
    whole, _, _, kept = evaluated(tmp_path)
    (kept.folder / "000004.npy").unlink()
    again, generator, *_ = evaluated(tmp_path)
    assert [call[0] for call in generator.calls] == [[4, 4, 4]] and again.predicted == 1
    np.testing.assert_array_equal(again.each.absrel, whole.each.absrel)


def test_another_seed_view_or_ensemble_is_another_prediction(tmp_path: Path):
    digests = set()
    for setup in (
        Setup(),
        Setup(seed=1),
        Setup(view="frame"),
        Setup(samples=3),
        Setup(samples=3, known_up_to="affine"),
    ):
        *_, kept = evaluated(tmp_path, setup=setup)
        digests.add(kept.digest)
    assert len(digests) == 5


def test_samples_are_merged_and_their_spread_is_kept(tmp_path: Path):
    scores, generator, _, kept = evaluated(tmp_path, setup=Setup(samples=4))
    assert [call[1] for call in generator.calls[:4]] == [0, 1, 2, 3]
    both = kept.get(0)
    members = np.stack(
        [np.random.default_rng([0, draw, 0]).uniform(1, 2, (R, R)) for draw in range(4)]
    )
    expected = benchmark.ensemble(members, "scale")
    assert both is not None
    np.testing.assert_allclose(both, np.stack([expected.depth, expected.uncertainty]), rtol=1e-6)
    assert np.all(scores.uncertainty > 0)


def test_disparity_is_scored_as_the_inverse_of_depth(tmp_path: Path):
    scores, _, _, kept = evaluated(tmp_path, protocol("moge", "disparity"))
    seen, both = benchmark.scored(Set()[0], NYU, "square", R), kept.get(0)
    assert both is not None
    expected = score(
        1 / both[:1], seen.truth[None], seen.valid[None], protocol("moge", "disparity")
    )
    assert float(scores.each.absrel[0]) == pytest.approx(float(expected.absrel[0]), rel=1e-6)


def test_a_protocol_takes_from_the_set_what_it_fixes():
    assert for_benchmark(MOGE, NYU) == MOGE
    assert for_benchmark(protocol("marigold"), NYU) == Protocol(
        "marigold", depth_range=(1e-3, 10.0)
    )
    diode, eth3d = BENCHMARKS["diode"], BENCHMARKS["eth3d"]
    assert for_benchmark(protocol("marigold"), diode) == Protocol(
        "marigold", depth_range=(0.6, 350.0), masks_truth=False
    )
    assert for_benchmark(protocol("marigold"), eth3d).fit_side == 1024
    asked = protocol("marigold", depth_range=(1.0, 2.0))
    assert for_benchmark(asked, NYU) == asked
    with pytest.raises(UserError, match="unit of its own"):
        for_benchmark(protocol("metric"), BENCHMARKS["sintel"])


def test_what_the_models_depth_cannot_be_scored_as_is_refused():
    with pytest.raises(UserError, match="no unit"):
        benchmark.check(Known(), Setup(), protocol("metric"))
    with pytest.raises(UserError, match="no zero"):
        benchmark.check(Known(), Setup(samples=2, known_up_to="affine"), protocol("moge", "scale"))
    benchmark.check(Known(), Setup(samples=2, known_up_to="affine"), MOGE)


def test_guidance_of_what_is_given_changes_no_prediction():
    generator = Known()
    plain = benchmark.sampling(generator)
    generator.config = replace(
        generator.config, sample=replace(SampleConfig(steps=4), guidance={"image": 4.0})
    )
    assert benchmark.sampling(generator) == plain
    generator.config = replace(
        generator.config, sample=replace(SampleConfig(steps=4), guidance={"depth": 2.0})
    )
    assert benchmark.sampling(generator) != plain


def test_batches_hold_frames_of_one_size_and_no_more_pixels_than_fit(monkeypatch):
    frames = [(i, benchmark.scored(Set()[i], NYU, "frame", R)) for i in range(7)]
    assert [[i for i, _ in batch] for batch in batches(iter(frames), 3)] == [
        [0, 1, 2],
        [3, 4],
        [5, 6],
    ]
    monkeypatch.setattr(benchmark, "_PIXELS_AT_ONCE", 2 * 24 * 24)
    assert [[i for i, _ in batch] for batch in batches(iter(frames), 3)] == [
        [0, 1],
        [2, 3],
        [4],
        [5],
        [6],
    ]


def test_work_ahead_is_bounded_in_order_and_its_errors_arrive():
    started: list[int] = []

    def call(item: int) -> int:
        started.append(item)
        if item == 5:
            raise UserError("damaged")
        return item

    with ThreadPoolExecutor(1) as pool:
        results = ahead(pool, call, range(100), 3)
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(UserError, match="damaged"):
            next(results)
    assert max(started) <= 8
