"""Scores of a cell: losses at fixed noise, the same records for all, benchmarks by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.evaluation import benchmark, heldout
from modality_forcing.generator import Generator
from modality_forcing.sweeps.score import Scorer, held_out_loss
from modality_forcing.sweeps.spec import Benchmarks, Records, Run, axis, sweep
from tests import tiny
from tests.bundles import write_bundle


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = tiny.forcing()  # less of one, to compile faster
    depth = replace(config.modalities["depth"], detokenizer_layers=0)
    config = replace(
        config,
        model=replace(config.model, num_layers=1),
        modalities={**config.modalities, "depth": depth},
    )
    return Generator(config, tiny.network(config)[1])


@pytest.fixture(scope="module")
def data(generator):
    return heldout.load_held_out(generator.config)


def test_a_loss_is_the_same_in_any_batch(generator, data):
    whole = held_out_loss(generator, data, seed=0, draws=2)
    c = generator.config
    smaller = Generator(replace(c, eval=replace(c.eval, batch=3)), generator.params)
    assert held_out_loss(smaller, data, 0, 2) == pytest.approx(whole, rel=1e-5)
    assert set(whole) == {"loss", "loss_image", "loss_depth"} and all(
        np.isfinite(x) and x > 0 for x in whole.values()
    )


def test_its_noise_is_that_of_the_evaluation_and_captions_are_never_dropped(generator, data):
    whole, c = held_out_loss(generator, data, seed=0, draws=1), generator.config
    other = replace(
        c, seed=99, text=replace(c.text, text_dropout=1.0), train=replace(c.train, distill=True)
    )
    assert held_out_loss(Generator(other, generator.params), data, 0, 1) == whole
    assert held_out_loss(generator, data, 1, 1) != whole


def test_a_cell_is_scored_on_all_its_runs(forcing_run, t2i_run, tmp_path):
    run = Run("forcing", tiny.forcing(), init_from=Run("pretraining", tiny.t2i()))
    (cell,) = sweep("tiny", axis("seed", 0), lambda seed: run, Records(seed=5, draws=1)).cells
    workdirs = {"forcing": forcing_run, "pretraining": t2i_run}
    score = Scorer(tmp_path)(cell, workdirs)
    assert {"i2d_absrel", "i2d_delta1", "constant_absrel", "row_mean_absrel", "loss_depth"} <= set(
        score.metrics
    )
    assert (
        "pretraining_loss_image" in score.metrics and "pretraining_loss_depth" not in score.metrics
    )
    assert (
        score.seeds == "seed 5, 4 records, 1 draws" and score.protocol == "held out: moge, affine"
    )


def test_a_cell_without_depth_has_losses_alone(t2i_run, tmp_path):
    (cell,) = sweep(
        "tiny", axis("seed", 0), lambda seed: Run("t2i", tiny.t2i()), Records(draws=1)
    ).cells
    assert set(Scorer(tmp_path)(cell, {"t2i": t2i_run}).metrics) == {"loss", "loss_image"}


def test_benchmarks_are_told_by_name_and_as_the_mean_over_sets(forcing_run, tmp_path, monkeypatch):
    def run(generator, opened, protocol, options, *, step, out):
        assert (step, opened, str(protocol), options.samples) == (
            "6",
            ["a", "b"],
            "marigold, affine",
            3,
        )
        told = {"images": 2, "skipped": 0, "protocol": {}, "rows": []}
        return [
            told | {"benchmark": n, "absrel": x, "delta1": 0.9} for n, x in (("a", 0.1), ("b", 0.3))
        ]

    monkeypatch.setattr(benchmark, "open_benchmarks", lambda names, root: names.split(","))
    monkeypatch.setattr(benchmark, "run_benchmarks", run)
    how = Benchmarks("a,b", "data", protocol="marigold", samples=3)
    (cell,) = sweep("tiny", axis("seed", 0), lambda seed: Run("forcing", tiny.forcing()), how).cells
    score = Scorer(tmp_path)(cell, {"forcing": forcing_run})
    assert (score.metrics["absrel"], score.metrics["a_absrel"], score.metrics["b_images"]) == (
        pytest.approx(0.2),
        0.1,
        2,
    )
    assert (score.protocol, score.seeds) == ("a,b: marigold, affine", "seed 0, 3 samples")


def test_a_benchmark_on_disk_has_the_same_score_when_it_is_gone_on_with(forcing_run, tmp_path):
    how = Benchmarks("spring", str(write_bundle(tmp_path / "data")), samples=2)
    (cell,) = sweep("tiny", axis("seed", 0), lambda seed: Run("forcing", tiny.forcing()), how).cells
    scorer = Scorer(tmp_path / "sweep")
    score = scorer(cell, {"forcing": forcing_run})
    assert (score.metrics["spring_images"], score.metrics["spring_skipped"]) == (2, 1)
    assert (
        score.metrics["absrel"] == score.metrics["spring_absrel"] > 0
        and 0 <= score.metrics["delta1"] <= 1
    )
    predicted = list((tmp_path / "sweep").rglob("predictions/*/*.npy"))
    assert len(predicted) == 3
    predicted[0].unlink()  # as if it had been killed before that one
    assert scorer(cell, {"forcing": forcing_run}) == score
