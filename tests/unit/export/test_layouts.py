"""Exports in published layouts: what was loaded, bit for bit, and descriptions of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from modality_forcing import cli
from modality_forcing.config import to_dict
from modality_forcing.errors import UserError
from modality_forcing.export import job, layouts
from modality_forcing.models import flux2_weights
from modality_forcing.train.released import open_released
from tests import tiny
from tests.released import pipeline, release
from tests.runs import contents


def test_release_is_exported_as_it_was(tmp_path):
    spec = release(tmp_path / "in")
    out = job.export(Path(spec), tmp_path / "out", layout="modality-forcing")
    before = load_file(tmp_path / "in" / "model.safetensors")
    after = load_file(out / "model.safetensors")
    assert {f"dit.{name}" for name in after} == before.keys()
    for name, tensor in after.items():
        assert tensor.tobytes() == before[f"dit.{name}"].tobytes(), name
    assert json.loads((out / "config.json").read_text()) == {"variant": "flux_rgbd_9b_v2"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"] == to_dict(open_released(spec).config)
    digest = hashlib.sha256(before["dit.cross_alpha_img"].tobytes()).hexdigest()
    entry = {"shape": [1], "dtype": "bfloat16", "sha256": digest}
    assert manifest["weights"]["cross_alpha_img"] == entry
    assert len(manifest["weights"]) == len(before)
    again = open_released(f"mf-flux2:{out}")  # without an autoencoder, which is not ours to copy
    assert again.config.model == open_released(spec).config.model


def test_klein_is_converted_between_layouts(tmp_path, capsys):
    spec = pipeline(tmp_path / "in", {})
    call = ["export", "--layout=bfl", f"--checkpoint={spec}", f"--out={tmp_path}/bfl"]
    assert cli.main(call) == 0 and capsys.readouterr().out == f"{tmp_path}/bfl\n"
    assert contents(tmp_path / "bfl").keys() == {"flux2.safetensors", "manifest.json"}
    back = Path(f"flux2-klein:{tmp_path}/bfl/flux2.safetensors")
    out = job.export(back, tmp_path / "out", layout="diffusers", dtype="float32")
    name = "diffusion_pytorch_model.safetensors"
    before, after = load_file(tmp_path / "in" / "transformer" / name), load_file(out / name)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name].astype(np.float32))
    described = json.loads((out / "config.json").read_text())
    assert described["_class_name"] == "Flux2Transformer2DModel"
    sizes = {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2}
    sizes |= {"attention_head_dim": 8, "in_channels": 8, "joint_attention_dim": 12}
    sizes |= {"axes_dims_rope": [2, 2, 2, 2], "mlp_ratio": 3.0, "guidance_embeds": False}
    assert {key: described[key] for key in sizes} == sizes


@pytest.mark.parametrize(
    "config, layout, message",
    [
        (tiny.flux2(), "bfl", "does not hold a network that has depth; take --layout=mod"),
        (tiny.t2i(), "bfl", "model.family is forcing: no published layout holds this network"),
    ],
)
def test_layouts_of_other_networks_are_refused(config, layout, message):
    with pytest.raises(UserError, match=message):
        layouts.layout_of(config, layout)


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    spec = Path(pipeline(tmp_path / "in", {}))
    with pytest.raises(UserError, match="does not hold a network that has no depth; take --layout"):
        job.export(spec, tmp_path / "out", layout="modality-forcing")
    right = flux2_weights.save

    def damaged(params, folder, layout, dtype):
        (path,) = right(params, folder, layout, dtype)
        path.write_bytes(path.read_bytes()[:-2] + b"ab")
        return [path]

    monkeypatch.setattr(flux2_weights, "save", damaged)
    with pytest.raises(UserError, match="does not read back"):
        job.export(spec, tmp_path / "out", layout="diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
