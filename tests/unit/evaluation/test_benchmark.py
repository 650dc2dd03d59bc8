"""Benchmarks with a fake generator: predictions, storage, comparison; and a real run."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modality_forcing.config import SampleConfig
from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.errors import UserError
from modality_forcing.evaluation import benchmark
from modality_forcing.evaluation.benchmark import (
    InferenceOptions,
    batch_frames,
    evaluate_benchmark,
    open_benchmarks,
    prediction_identity,
    prefetch_map,
    resolve_protocol,
    run_benchmarks,
)
from modality_forcing.evaluation.benchmarks.open import OpenedBenchmark
from modality_forcing.evaluation.benchmarks.registry import BENCHMARKS, Frame
from modality_forcing.evaluation.depth_metrics import score
from modality_forcing.evaluation.predictions import PredictionStore
from modality_forcing.evaluation.protocols import MOGE, Protocol, get_protocol
from modality_forcing.evaluation.views import make_eval_frame
from modality_forcing.generator import Generator
from tests import tiny
from tests.bundles import write_bundle

NYU = BENCHMARKS["nyuv2"]
PLAIN = InferenceOptions()
R = 16


class FakeLayout:
    """Seven frames of random depth in two sizes, the third without a valid pixel."""

    kind, num_expected = "bundle", None

    def __init__(self):
        self.reads: list[int] = []

    def names(self) -> tuple[str, ...]:
        return tuple(f"scene/{i}" for i in range(7))

    def files(self, name: str) -> dict[str, Path]:
        return {}

    def read(self, name: str) -> Frame:
        index = int(name.removeprefix("scene/"))
        self.reads.append(index)
        rng = np.random.default_rng(index)
        size = (24, 24) if index < 5 else (24, 40)
        valid = rng.random(size) < 0.7 if index != 2 else np.zeros(size, bool)
        depth = np.where(valid, rng.uniform(1, 9, size), 0).astype("f4")
        image = np.full((*size, 3), 10 * index, np.uint8)
        intrinsics = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], "f4")
        return Frame(name, image, depth, valid, intrinsics)


def opened_benchmark() -> Any:
    layout: Any = FakeLayout()
    return OpenedBenchmark(NYU, layout.names(), True, layout)


class FakeGenerator(Generator):
    """Returns depth that depends only on the image, the example and the sample."""

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
    tmp_path: Path,
    chosen: Protocol = MOGE,
    setup: InferenceOptions = PLAIN,
    lines: list[str] | None = None,
):
    generator, frames = FakeGenerator(), opened_benchmark()
    kept = PredictionStore(tmp_path, prediction_identity(generator, frames, setup), R)
    log = ([] if lines is None else lines).append
    scores = evaluate_benchmark(generator, frames, chosen, setup, store=kept, log=log)
    return scores, generator, frames, kept


def test_every_frame_is_predicted_once_and_scored_in_its_view(tmp_path: Path):
    lines: list[str] = []
    scores, generator, frames, kept = evaluated(tmp_path, lines=lines)
    assert sorted(frames._layout.reads) == list(range(7))
    assert [i for call in generator.calls for i in dict.fromkeys(call[0])] == list(range(7))
    assert (
        scores.num_predicted == 7
        and scores.num_with_intrinsics == 7
        and np.isnan(scores.per_image.absrel[2])
        and scores.pixels[2] == 0
    )
    for i in (0, 1, 6):
        seen = make_eval_frame(opened_benchmark()[i], NYU, "square", R)
        both = kept.get(i)
        assert both is not None and both[1].max() == 0  # one sample has no uncertainty
        expected = score(both[:1], seen.target[None], seen.valid[None])
        assert float(scores.per_image.absrel[i]) == pytest.approx(
            float(expected.absrel[0]), rel=1e-6
        )
    assert lines[-1].startswith("NYUv2  7/7") and "predicted 7" in lines[-1]


def test_second_protocol_reuses_predictions(tmp_path: Path):
    _, first, *_ = evaluated(tmp_path)
    scores, second, *_ = evaluated(tmp_path, get_protocol("marigold"))
    assert first.calls and not second.calls and scores.num_predicted == 0


def test_resumed_run_predicts_only_missing_frames(tmp_path: Path):
    complete, _, _, kept = evaluated(tmp_path)
    (kept.folder / "000004.npy").unlink()
    again, generator, *_ = evaluated(tmp_path)
    assert [call[0] for call in generator.calls] == [[4, 4, 4]] and again.num_predicted == 1
    np.testing.assert_array_equal(again.per_image.absrel, complete.per_image.absrel)


def test_other_options_have_other_predictions(tmp_path: Path):
    digests = set()
    for setup in (
        InferenceOptions(),
        InferenceOptions(seed=1),
        InferenceOptions(view="frame"),
        InferenceOptions(samples=3),
        InferenceOptions(samples=3, ensemble_mode="affine"),
    ):
        *_, kept = evaluated(tmp_path, setup=setup)
        digests.add(kept.digest)
    assert len(digests) == 5


def test_samples_are_ensembled_with_uncertainty(tmp_path: Path):
    scores, generator, _, kept = evaluated(tmp_path, setup=InferenceOptions(samples=4))
    assert [call[1] for call in generator.calls[:4]] == [0, 1, 2, 3]
    both = kept.get(0)
    members = np.stack(
        [np.random.default_rng([0, sample, 0]).uniform(1, 2, (R, R)) for sample in range(4)]
    )
    expected = benchmark.ensemble(members, "scale")
    assert both is not None
    np.testing.assert_allclose(both, np.stack([expected.depth, expected.uncertainty]), rtol=1e-6)
    assert np.all(scores.uncertainty > 0)


def test_disparity_is_scored_as_the_inverse_of_depth(tmp_path: Path):
    scores, _, _, kept = evaluated(tmp_path, get_protocol("moge", "disparity"))
    seen, both = make_eval_frame(opened_benchmark()[0], NYU, "square", R), kept.get(0)
    assert both is not None
    expected = score(
        1 / both[:1], seen.target[None], seen.valid[None], get_protocol("moge", "disparity")
    )
    assert float(scores.per_image.absrel[0]) == pytest.approx(float(expected.absrel[0]), rel=1e-6)


def test_protocol_takes_depth_range_from_the_benchmark():
    assert resolve_protocol(MOGE, NYU) == MOGE
    assert resolve_protocol(get_protocol("marigold"), NYU) == Protocol(
        "marigold", depth_range=(1e-3, 10.0)
    )
    diode, eth3d = BENCHMARKS["diode"], BENCHMARKS["eth3d"]
    assert resolve_protocol(get_protocol("marigold"), diode) == Protocol(
        "marigold", depth_range=(0.6, 350.0), masks_target=False
    )
    assert resolve_protocol(get_protocol("marigold"), eth3d).align_max_side == 1024
    asked = get_protocol("marigold", depth_range=(1.0, 2.0))
    assert resolve_protocol(asked, NYU) == asked
    with pytest.raises(UserError, match="unit of its own"):
        resolve_protocol(get_protocol("metric"), BENCHMARKS["sintel"])


def test_unsupported_protocols_are_refused():
    with pytest.raises(UserError, match="no unit"):
        benchmark.check_supported(FakeGenerator(), InferenceOptions(), get_protocol("metric"))
    with pytest.raises(UserError, match="no zero"):
        benchmark.check_supported(
            FakeGenerator(),
            InferenceOptions(samples=2, ensemble_mode="affine"),
            get_protocol("moge", "scale"),
        )
    benchmark.check_supported(
        FakeGenerator(), InferenceOptions(samples=2, ensemble_mode="affine"), MOGE
    )


def test_guidance_of_the_condition_changes_no_prediction():
    generator = FakeGenerator()
    plain = benchmark.sampling_options(generator)
    generator.config = replace(
        generator.config, sample=replace(SampleConfig(steps=4), guidance={"image": 4.0})
    )
    assert benchmark.sampling_options(generator) == plain
    generator.config = replace(
        generator.config, sample=replace(SampleConfig(steps=4), guidance={"depth": 2.0})
    )
    assert benchmark.sampling_options(generator) != plain
    for weights, is_plain in (({"image": 2.0}, False), ({"image": 1.0, "depth": 2.0}, True)):
        sample = SampleConfig(steps=4, condition_guidance=weights)
        generator.config = replace(generator.config, sample=sample)
        assert (benchmark.sampling_options(generator) == plain) == is_plain


def test_batches_have_one_shape_and_limited_pixels(monkeypatch):
    frames = [(i, make_eval_frame(opened_benchmark()[i], NYU, "frame", R)) for i in range(7)]
    assert [[i for i, _ in batch] for batch in batch_frames(iter(frames), 3)] == [
        [0, 1, 2],
        [3, 4],
        [5, 6],
    ]
    monkeypatch.setattr(benchmark, "_PIXELS_PER_BATCH", 2 * 24 * 24)
    assert [[i for i, _ in batch] for batch in batch_frames(iter(frames), 3)] == [
        [0, 1],
        [2, 3],
        [4],
        [5],
        [6],
    ]


def test_prefetch_is_bounded_ordered_and_raises():
    started: list[int] = []

    def call(item: int) -> int:
        started.append(item)
        if item == 5:
            raise UserError("damaged")
        return item

    with ThreadPoolExecutor(1) as pool:
        results = prefetch_map(pool, call, range(100), 3)
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(UserError, match="damaged"):
            next(results)
    assert max(started) <= 8


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = tiny.forcing()
    return Generator(config, tiny.network(config)[1])


def test_run_writes_json_markdown_sheet_and_predictions(tmp_path: Path, generator: Generator):
    opened = open_benchmarks("spring", write_bundle(tmp_path / "data"))
    out, lines = tmp_path / "out", []
    options = InferenceOptions(samples=2)
    run = partial(run_benchmarks, generator, opened, step="6", out=out, log=lines.append)
    (result,) = run(MOGE, options)
    assert (result["images"], result["skipped"], result["title"]) == (2, 1, "Spring")
    (stored,) = out.glob("spring_moge-affine_*.json")
    assert json.loads(stored.read_text()) == json.loads(json.dumps(result))
    assert stored.with_suffix(".md").read_text().startswith("# Spring: image to depth\n")
    with Image.open(stored.with_suffix(".png")) as sheet:
        assert sheet.size[1] > 2 * 192
    assert len(list((out / "predictions" / result["predictions_digest"]).glob("*.npy"))) == 3

    (again,) = run(get_protocol("moge", "scale"), options)
    assert (
        again["predictions_digest"] == result["predictions_digest"]
        and len(list(out.glob("*.json"))) == 2
    )
    assert "predicted 0" in [line for line in lines if line.startswith("Spring")][-1]


def test_frame_scores_alike_in_a_user_list(tmp_path: Path, generator: Generator):
    root = write_bundle(tmp_path / "data")
    (tmp_path / "mine.txt").write_text("x/a\n")
    complete = open_benchmarks("spring", root)
    opened = open_benchmarks("spring", root, tmp_path / "mine.txt")
    complete, mine = (
        run_benchmarks(generator, x, MOGE, InferenceOptions(), step="6", out=tmp_path)[0]
        for x in (complete, opened)
    )
    assert (
        not mine["official_list"]
        and complete["official_list"]
        and mine["predictions_digest"] != complete["predictions_digest"]
    )
    assert mine["rows"][0]["absrel"] == pytest.approx(complete["rows"][0]["absrel"], rel=1e-4)


@pytest.mark.parametrize(
    "names, message",
    [("", "names no set"), ("spring,spring", "one twice"), ("spring,nyuv2", "for a single set")],
)
def test_invalid_benchmark_lists_are_refused(tmp_path: Path, names: str, message: str):
    with pytest.raises(UserError, match=message):
        open_benchmarks(names, tmp_path, tmp_path / "list.txt")


def test_incomplete_benchmark_is_refused(tmp_path: Path):
    root = write_bundle(tmp_path)
    (root / "Spring" / "c" / "depth.png").unlink()
    with pytest.raises(UserError, match="files of 1 of 3 images are missing"):
        open_benchmarks("spring", root)
    assert len(official_names("nyuv2")) == 654  # the size of the complete set
