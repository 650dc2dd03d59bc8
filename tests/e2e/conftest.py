"""Fixtures shared by the tests of commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.fakes import Tools

if TYPE_CHECKING:
    from modality_forcing.train.state import TrainState


@pytest.fixture
def sample_dir(tmp_path: Path) -> Path:
    """A folder with a valid and an invalid file of each kind, and space for outputs."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    content = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    depth = rng.uniform(1, 9, (24, 32)).astype(np.float32)
    maps = {
        "depth": depth,
        "with_nan": np.where(depth > 5, np.nan, depth),
        "negative": np.where(depth > 8, -1, depth),
        "all_nan": np.full_like(depth, np.nan),
        "zeros": np.zeros_like(depth),
        "flat": depth.ravel(),
        "words": np.full((24, 32), "far"),
        "edges": np.where(np.arange(32) < 2, depth, 0),
    }
    for name, array in maps.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    counts = (1000 * depth).astype(np.uint16)
    Image.fromarray(counts).save(tmp_path / "depth16.png")
    Image.fromarray((counts // 256).astype(np.uint8)).save(tmp_path / "depth8.png")
    Image.fromarray(np.zeros_like(counts)).save(tmp_path / "zeros16.png")
    (tmp_path / "file").write_text("a file, no folder")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[TrainState, Path]:
    """Six uninterrupted steps."""
    from modality_forcing.train.loop import train  # jax, which the tests of commands do without
    from tests.resumed import T2I

    workdir = tmp_path_factory.mktemp("finished")
    return train(T2I, workdir), workdir
