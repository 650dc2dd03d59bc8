"""Parity with transformers' UMT5EncoderModel: the same weights through real files, the same states.

data/umt5_*.npz holds its outputs; tests/parity/make_umt5_goldens.py made them and documents how.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from modality_forcing.encoders.umt5 import UMT5, UNUSED, UMT5Config, tensors
from modality_forcing.encoders.weights import load_module, open_checkpoint
from tests.parity import make_umt5_goldens as goldens


def loaded(folder: Path, case: str, dtype: str, table: str = "shared.weight") -> UMT5:
    """The case's network, with weights read from a file in transformers' format."""
    stored = goldens.weights(goldens.config(case), table)
    save_file(
        {name: value.astype(dtype) for name, value in stored.items()}, folder / "model.safetensors"
    )
    checkpoint = open_checkpoint(folder)
    c = UMT5Config.from_dict(goldens.config(case))

    def build() -> UMT5:
        return UMT5(c, rngs=nnx.Rngs(0), dtype=dtype)

    return load_module(build, tensors(c, checkpoint.shapes), checkpoint, unused=UNUSED)


def golden(case: str, dtype: str) -> np.ndarray:
    with np.load(goldens.FOLDER / f"umt5_{case}.npz", allow_pickle=False) as stored:
        return (
            stored[dtype].view(ml_dtypes.bfloat16).astype(np.float32)
            if dtype == "bfloat16"
            else stored[dtype]
        )


def errors(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The largest difference relative to the largest value, and the same by norm."""
    off = ours - theirs
    return float(np.abs(off).max() / np.abs(theirs).max()), float(
        np.linalg.norm(off) / np.linalg.norm(theirs)
    )


encode = nnx.jit(lambda network, ids, mask: network(ids, mask))


@pytest.mark.parametrize("dtype, allowed", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("case", goldens.CASES)
def test_states_equal_transformers(tmp_path, case, dtype, allowed):
    ids, mask = goldens.inputs(case)
    states = encode(loaded(tmp_path, case, dtype), ids, mask)
    assert states.dtype == dtype and not np.any(np.asarray(states)[~mask])
    assert max(errors(np.asarray(states, np.float32)[mask], golden(case, dtype))) < allowed


@pytest.mark.parametrize("case", goldens.CASES)
def test_bfloat16_error_is_below_that_of_transformers(tmp_path, case):
    """Sums and states between blocks in float32 reduce the error."""
    ids, mask = goldens.inputs(case)
    ours = np.asarray(encode(loaded(tmp_path, case, "bfloat16"), ids, mask), np.float32)[mask]
    expected = golden(case, "float32")
    assert errors(ours, expected)[1] < errors(golden(case, "bfloat16"), expected)[1]
