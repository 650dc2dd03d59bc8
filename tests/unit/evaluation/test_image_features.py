"""Features of images: what is missing is one line. tests/parity compares the networks."""

from __future__ import annotations

import importlib.util

import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation.image_features import CLIP, open_features


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="--inception is missing; name the weights; convert"):
        open_features("inception", "")
    with pytest.raises(UserError, match=r"none\.safetensors: no such file; convert"):
        open_features("inception", str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("missing", ["torch", "torch_fidelity", "transformers"])
def test_missing_packages_are_named_with_their_extra(tmp_path, monkeypatch, missing):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    found = {"torch": "yes", "torch_fidelity": "yes", "transformers": "yes", missing: None}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    kind = "clip" if missing == "transformers" else "inception"
    message = rf"needs the package {missing}; pip install 'modality_forcing\[fid\]'"
    with pytest.raises(UserError, match=message):
        open_features(kind, CLIP if kind == "clip" else str(tmp_path / "weights.safetensors"))
