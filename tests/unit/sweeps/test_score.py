"""Scores of a cell: losses at fixed noise on shared records, and benchmarks."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation import benchmark, heldout, image_quality
from modality_forcing.generator import Generator
from modality_forcing.sweeps import score
from modality_forcing.sweeps.score import Scorer, held_out_loss
from modality_forcing.sweeps.spec import Benchmarks, Cell, Records, Run, axis, sweep
from tests import tiny
from tests.bundles import write_bundle


@pytest.fixture(scope="module")
def generator() -> Generator:
    """The smallest network that has both losses; compilation dominates these tests."""
    config = tiny.forcing()
    depth = replace(config.modalities["depth"], detokenizer_layers=0)
    modalities = {**config.modalities, "depth": depth}
    model = replace(config.model, num_layers=1)
    config = replace(config, model=model, modalities=modalities)
    return Generator(config, tiny.network(config)[1])


@pytest.fixture(scope="module")
def data(generator):
    return heldout.load_held_out(generator.config)


@pytest.fixture(scope="module")
def losses(generator, data) -> dict[str, float]:
    """The losses of four records in two batches."""
    return held_out_loss(generator, data, seed=0, draws=2)


def with_batch(generator: Generator, size: int) -> Generator:
    c = generator.config
    return Generator(replace(c, eval=replace(c.eval, batch=size)), generator.params)


def one_cell(run: Run, evaluation: Records | Benchmarks) -> Cell:
    return sweep("tiny", axis("seed", 0), lambda seed: run, evaluation).cells[0]


def test_loss_does_not_depend_on_the_batch_size(generator, data, losses):
    one_batch = held_out_loss(with_batch(generator, 4), data, 0, 2)
    assert one_batch == pytest.approx(losses, rel=1e-5)
    assert set(losses) == {"loss", "loss_image", "loss_depth"}
    assert all(np.isfinite(x) and x > 0 for x in losses.values())


def test_partial_batch_has_the_weight_of_its_records(generator, data, monkeypatch):
    def compute_loss(model, modalities, batch, draw, *, config, null_text):
        index = batch["index"].astype(np.float32)
        one, count = jnp.ones(()), jnp.float32(len(index))
        return one, {"loss": (index.mean(), one), "loss_depth": (index.sum(), count)}

    monkeypatch.setattr(score, "compute_loss", compute_loss)
    found = held_out_loss(with_batch(generator, 3), data, seed=0, draws=1)
    assert found == {"loss": 1.5, "loss_depth": 1.5}  # the mean of 0 to 3, in batches of 3 and 1


def test_loss_has_the_noise_of_the_evaluation_and_no_text_dropout(generator, data, losses):
    c = generator.config
    text, loop = replace(c.text, text_dropout=1.0), replace(c.train, distill=True)
    other = replace(c, seed=99, text=text, train=loop)
    assert held_out_loss(Generator(other, generator.params), data, 0, 2) == losses
    assert held_out_loss(generator, data, 1, 2) != losses


def test_cell_is_scored_on_all_its_runs(forcing_run, t2i_run, tmp_path):
    run = Run("forcing", tiny.forcing(), init_from=Run("pretraining", tiny.t2i()))
    workdirs = {"forcing": forcing_run, "pretraining": t2i_run}
    found = Scorer(tmp_path)(one_cell(run, Records(seed=5, draws=1)), workdirs)
    names = set(found.metrics)
    assert {"i2d_absrel", "i2d_delta1", "constant_absrel", "row_mean_absrel"} <= names
    assert {"loss_depth", "pretraining_loss_image"} <= names
    assert "pretraining_loss_depth" not in names
    assert found.seeds == "seed 5, 4 records, 1 draws"
    assert found.protocol == "held out: moge, affine"


def test_cell_without_depth_has_only_losses(t2i_run, tmp_path):
    cell = one_cell(Run("t2i", tiny.t2i()), Records(draws=1))
    assert set(Scorer(tmp_path)(cell, {"t2i": t2i_run}).metrics) == {"loss", "loss_image"}


def test_images_are_scored_where_a_sweep_asks(t2i_run, tmp_path, monkeypatch):
    opened = []

    def open_features(kind: str, where: str):
        opened.append((kind, where))
        return lambda images: images[:, :2, :2].reshape(len(images), -1).astype(np.float32)

    monkeypatch.setattr(image_quality, "open_features", open_features)
    options = Records(draws=1, image_metrics="fid", inception="i")
    scorer, cell = Scorer(tmp_path), one_cell(Run("t2i", tiny.t2i()), options)
    scorer.check([cell])
    assert opened == [("inception", "i")]
    opened.clear()
    found, again = (scorer(cell, {"t2i": t2i_run}).metrics for _ in range(2))
    assert set(found) == {"loss", "loss_image", "t2i_fid"}
    assert found == again and found["t2i_fid"] > 0
    assert opened == [("inception", "i")]  # once for all cells


def test_missing_networks_of_image_metrics_are_found_before_training(tmp_path):
    def check(**options) -> None:
        Scorer(tmp_path).check([one_cell(Run("t2i", tiny.t2i()), Records(**options))])

    check()
    with pytest.raises(UserError, match=r"none\.safetensors: no such file; convert weights"):
        check(image_metrics="fid", inception=str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="unknown metric 'fidd'; choose from fid, kid, cmmd, clip"):
        check(image_metrics="fidd")


def test_rows_of_sweeps_without_clip_stay_valid():
    run = Run("t2i", tiny.t2i())
    plain, other = (one_cell(run, Records(clip=where)) for where in ("", "c"))
    assert plain.digest != other.digest


def test_benchmark_scores_are_averaged_over_benchmarks(forcing_run, tmp_path, monkeypatch):
    def run(generator, opened, protocol, options, *, step, out):
        assert (step, opened, options.samples) == ("6", ["a", "b"], 3)
        assert str(protocol) == "marigold, affine"
        result = {"images": 2, "skipped": 0, "protocol": {}, "rows": [], "delta1": 0.9}
        return [result | {"benchmark": n, "absrel": x} for n, x in (("a", 0.1), ("b", 0.3))]

    monkeypatch.setattr(benchmark, "open_benchmarks", lambda names, root: names.split(","))
    monkeypatch.setattr(benchmark, "run_benchmarks", run)
    options = Benchmarks("a,b", "data", protocol="marigold", samples=3)
    cell = one_cell(Run("forcing", tiny.forcing()), options)
    found = Scorer(tmp_path)(cell, {"forcing": forcing_run})
    assert found.metrics["absrel"] == pytest.approx(0.2)
    assert (found.metrics["a_absrel"], found.metrics["b_images"]) == (0.1, 2)
    assert (found.protocol, found.seeds) == ("a,b: marigold, affine", "seed 0, 3 samples")


def test_resumed_benchmark_has_the_same_score(forcing_run, tmp_path):
    options = Benchmarks("spring", str(write_bundle(tmp_path / "data")), samples=2)
    cell = one_cell(Run("forcing", tiny.forcing()), options)
    scorer = Scorer(tmp_path / "sweep")
    found = scorer(cell, {"forcing": forcing_run})
    metrics = found.metrics
    assert (metrics["spring_images"], metrics["spring_skipped"]) == (2, 1)
    assert metrics["absrel"] == metrics["spring_absrel"] > 0
    assert 0 <= metrics["delta1"] <= 1
    predictions = list((tmp_path / "sweep").rglob("predictions/*/*.npy"))
    assert len(predictions) == 3
    predictions[0].unlink()  # as if the evaluation had been killed before this one
    assert scorer(cell, {"forcing": forcing_run}) == found
