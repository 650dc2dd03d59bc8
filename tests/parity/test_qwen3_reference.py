"""Parity with transformers' Qwen3Model: the same weights through real files, the same states.

data/qwen3_*.npz holds its outputs; tests/parity/make_qwen3_goldens.py made them and documents how.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from modality_forcing.encoders.qwen3 import Qwen3, Qwen3Config, tensors, unused
from modality_forcing.encoders.weights import load_module, open_checkpoint
from tests.parity import make_qwen3_goldens as goldens


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A function from a case and a type to our states at the stored positions, f32 [b p d]."""

    @cache
    def made(case: str, dtype: str) -> np.ndarray:
        network = loaded(tmp_path_factory.mktemp(case), case, dtype)
        found = nnx.jit(lambda n, ids, mask: n(ids, mask))(network, *goldens.inputs(case))
        assert found.dtype == dtype
        return np.asarray(found, np.float32)[:, :: goldens.EVERY[case]]

    return made


def loaded(folder: Path, case: str, dtype: str) -> Qwen3:
    """The case's network, with weights read from a file in transformers' format."""
    stored = goldens.weights(goldens.config(case))
    save_file({name: x.astype(dtype) for name, x in stored.items()}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    c = Qwen3Config.from_dict(goldens.config(case), taps=goldens.TAPS[case])

    def build() -> Qwen3:
        return Qwen3(c, rngs=nnx.Rngs(0), dtype=dtype)

    return load_module(build, tensors(c, checkpoint.shapes), checkpoint, unused=unused(c))


def golden(case: str, kind: str) -> np.ndarray:
    with np.load(goldens.FOLDER / f"qwen3_{case}.npz", allow_pickle=False) as stored:
        found = stored[kind]
    return found.view(ml_dtypes.bfloat16).astype(np.float32) if kind == "bfloat16" else found


def taps(case: str, states: np.ndarray) -> list[np.ndarray]:
    return np.split(states, len(goldens.TAPS[case]), axis=-1)


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize("case", goldens.CASES)
def test_states_equal_transformers(states, case, kind):
    """Of each tap, at padding positions too, of a full row and (klein) a row of one token."""
    for a, b in zip(
        taps(case, states(case, "float32")), taps(case, golden(case, kind)), strict=True
    ):
        assert a.shape == b.shape and goldens.error(a, b) <= 1e-5


@pytest.mark.parametrize("case", goldens.CASES)
def test_bfloat16_error_is_at_most_that_of_transformers(states, case):
    """Norms, rotations and states between blocks in float32 reduce the error."""
    half = zip(
        taps(case, states(case, "bfloat16")),
        taps(case, golden(case, "bfloat16")),
        taps(case, golden(case, "eager")),
        strict=True,
    )
    for ours, theirs, exact in half:
        assert np.linalg.norm(ours - exact) <= np.linalg.norm(theirs - exact)
