"""Lists of any length as batches of one size, and what is not finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.generator import Generator, Output
from modality_forcing.inference import batches
from modality_forcing.inference.batches import Sampling
from modality_forcing.inference.fit import fit_image


@pytest.fixture
def generator(forcing_run: Path) -> Generator:
    return Generator.from_checkpoint(forcing_run)


@pytest.fixture
def runs(generator: Generator, monkeypatch) -> list[dict]:
    """What the network is asked for; it answers with the place of each example in the batch."""
    asked = []

    def run(_, task, captions, **more):
        asked.append({"captions": captions, **more})
        depth = np.arange(len(captions), dtype=np.float32)[:, None, None]
        return Output({}, {"depth": np.broadcast_to(depth, (len(captions), 16, 16))})

    monkeypatch.setattr(Generator, "run", run)
    return asked


def test_last_batch_is_filled_up(generator: Generator, runs: list[dict]):
    sampling = Sampling(generator.config.sample, seed=7)
    made = [*batches.generate(generator, "joint", ["a", "b", "c"], sampling=sampling, batch=2)]
    assert [one["depth"][0, 0] for one in made] == [0, 1, 0]
    assert [one["captions"] for one in runs] == [["a", "b"], ["c", "c"]]
    np.testing.assert_array_equal([one["index"] for one in runs], [[0, 1], [2, 3]])
    runs.clear()
    wide = fit_image(np.zeros((16, 40, 3), np.uint8), (16, 16), "tiles")
    one = fit_image(np.zeros((16, 16, 3), np.uint8), (16, 16), "stretch")
    sampling, captions = Sampling(generator.config.sample, 7, repetition=3), ["a", "b"]
    maps = batches.predict(
        generator, "i2d", [wide, one], captions, sampling=sampling, member=5, batch=3
    )
    assert [len(parts) for parts in maps] == [len(wide.inputs), 1] == [4, 1]
    assert [one["captions"] for one in runs] == [["a"] * 3, ["a", "b", "b"]]
    assert all((one["index"] == 3).all() and one["sample_index"] == 5 for one in runs)
    assert all(one["batch"]["image"].shape == (3, 16, 16, 3) for one in runs)


def test_what_is_not_finite_is_one_line():
    made = {"depth": np.array([[1, np.nan]], np.float32), "image": np.ones((1, 2, 3))}
    with pytest.raises(UserError, match="runs/mf: generated depth with values that are not finite"):
        batches.check_finite(made, "runs/mf")
    assert batches.check_finite({"image": made["image"]}).keys() == {"image"}
