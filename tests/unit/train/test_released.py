"""Released networks as checkpoints: their configs and weights, from small files of their layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from modality_forcing.config import from_dict, to_dict
from modality_forcing.encoders.weights import Checkpoint
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import presets
from modality_forcing.models.flux2_layouts import BFL, FORCING
from modality_forcing.models.int8 import Int8Weight, dequantize_tree
from modality_forcing.train import released
from modality_forcing.train.released import is_released, open_released
from modality_forcing.train.state import abstract_model
from modality_forcing.tree import flatten
from tests.flux2 import KLEIN_4B, KLEIN_9B
from tests.released import GUIDED, SMALL, SMALL_FORCING, SMALL_V1, pipeline, release, saved

CHANNELS = {"image": 8, "depth": 256}


def test_release_of_modality_forcing(tmp_path):
    opened = open_released(release(tmp_path))
    c = opened.config
    assert (c.model.width, c.model.heads, c.model.head_dim, c.model.mlp_dim) == (16, 2, 8, 48)
    assert (c.model.double_layers, c.model.num_layers, c.model.level_mixing) == (2, 3, True)
    assert (c.data.resolution, c.text.tokens, c.text.channels) == (512, 512, 12)
    image, depth = c.modalities["image"], c.modalities["depth"]
    assert (image.prediction, image.latent_channels, image.position_id) == ("v", 8, 0)
    assert image.autoencoder == f"flux2:{tmp_path}"
    assert (depth.prediction, depth.detokenizer_layers, depth.position_id) == ("x", 2, 1)
    assert (c.sample.steps, c.sample.guidance, c.sample.log2_alpha) == (50, {"image": 4.0}, 5)
    assert c.sample.timestep_shift == 1.1 and c.eval.batch == 4
    params = flatten(opened.load()[1])
    assert sum(x.size for x in params.values()) == SMALL_FORCING.parameters()
    assert params["single/layers/q"].dtype == jnp.bfloat16
    assert params["head/depth/linear/w"].dtype == jnp.float32
    assert from_dict(to_dict(c)) == c  # as exports store it


def test_first_variant_has_no_mixing(tmp_path):
    opened = open_released(release(tmp_path, SMALL_V1, "flux_rgbd_9b_v1"), resolution=256)
    assert not opened.config.model.level_mixing and opened.config.data.resolution == 256
    assert sum(x.size for x in jax.tree.leaves(opened.shapes)) == SMALL_V1.parameters()


def test_network_runs_on_weights_in_int8(tmp_path):
    """Within the error of rounding, of which random weights have more than trained ones."""
    opened = open_released(release(tmp_path), resolution=32)
    config = replace(opened.config, model=replace(opened.config.model, dtype="float32"))
    graph, _ = abstract_model(config, base.build(config))
    exact, rounded = opened.load(dtype="float32")[1], opened.load(dtype="float32", int8=True)[1]
    layers = rounded["double"]["layers"]["depth"]
    assert isinstance(layers["up"], Int8Weight) and not isinstance(layers["q_scale"], Int8Weight)
    rng = np.random.default_rng(0)
    x = {n: jnp.asarray(rng.normal(size=(1, 4, c)), jnp.float32) for n, c in CHANNELS.items()}
    text = {"tokens": jnp.asarray(rng.normal(size=(1, 5, 12)), jnp.float32)}

    @jax.jit
    def run(params):
        return nnx.merge(graph, params)(x, {n: jnp.full(1, 0.5) for n in x}, text)

    one, other, same = run(exact), run(rounded), run(dequantize_tree(rounded, jnp.float32))
    for name, y in one.items():
        np.testing.assert_allclose(other[name], same[name], atol=1e-4 * float(jnp.std(y)))
        error = float(jnp.std(other[name] - y) / jnp.std(y))
        assert 1e-4 < error < 0.1


@pytest.mark.parametrize(
    "dtypes, expected",
    [(["BF16"], "bfloat16"), (["F8_E4M3", "BF16"], "bfloat16"), (["F32"], "float32")],
)
def test_weights_have_the_precision_of_the_file(tmp_path, dtypes, expected):
    opened = open_released(release(tmp_path))
    names = [name for name in opened.checkpoint.shapes if "blocks" in name]
    stored = dict(zip(names, dtypes * len(names), strict=False))
    object.__setattr__(opened.checkpoint, "dtypes", {**opened.checkpoint.dtypes, **stored})
    assert opened.dtype == expected


@pytest.mark.parametrize("index, steps", [({"is_distilled": True}, 4), ({}, 50)])
def test_pipeline_of_diffusers(tmp_path, index, steps):
    c = open_released(pipeline(tmp_path, index)).config
    assert list(c.modalities) == ["image"]
    assert c.modalities["image"].autoencoder == f"flux2:{tmp_path}/vae"
    assert c.text.encoder == f"qwen3:{tmp_path}/text_encoder"
    assert (c.data.resolution, c.sample.steps) == (1024, steps)
    assert c.sample.guidance == ({} if steps == 4 else {"image": 4.0})
    assert c.sample.shift_rule == "flux2"


def test_missing_encoders_are_to_be_named(tmp_path):
    spec = pipeline(tmp_path / "klein", {})
    for part in ("vae", "text_encoder"):
        (tmp_path / "klein" / part).rmdir()
    c = open_released(spec).config
    assert c.text.encoder == c.modalities["image"].autoencoder == ""
    spec = release(tmp_path / "mf")
    (tmp_path / "mf" / "ae_decoder.safetensors").unlink()
    assert open_released(spec).config.modalities["image"].autoencoder == ""


def test_each_release_under_the_name_of_the_other_is_one_line(tmp_path):
    pipeline(tmp_path / "klein", {})
    release(tmp_path / "mf")
    for spec, hint in (
        (f"mf-flux2:{tmp_path}/klein", "name a pipeline of diffusers as flux2-klein:"),
        (f"flux2-klein:{tmp_path}/mf", "name Modality Forcing's network as mf-flux2:"),
    ):
        with pytest.raises(UserError, match=hint):
            open_released(spec)


@pytest.mark.parametrize(
    "name, sizes, steps, guidance",
    [
        ("flux-2-klein-9b.safetensors", SMALL, 4, 0),
        ("flux-2-klein-base-9b.safetensors", SMALL, 50, 0),
        ("flux2-dev.safetensors", GUIDED, 50, 4),
    ],
)
def test_file_of_black_forest_labs(tmp_path, name, sizes, steps, guidance):
    path = saved(tmp_path / name, sizes, BFL, "model.diffusion_model.")
    opened = open_released(f"flux2-klein:{path}")
    c = opened.config
    assert (c.sample.steps, c.model.embedded_guidance) == (steps, guidance)
    assert c.text.encoder == c.modalities["image"].autoencoder == ""
    assert sum(x.size for x in jax.tree.leaves(opened.load()[1])) == sizes.parameters()


@pytest.mark.parametrize("sizes, name", [(KLEIN_4B, "klein-4b"), (KLEIN_9B, "klein-9b")])
def test_sizes_are_those_of_the_presets(sizes, name):
    """From the shapes alone, of which there is no file here."""
    checkpoint = Checkpoint("here", ())
    object.__setattr__(checkpoint, "shapes", BFL.shapes(sizes.shapes()))
    model, channels = released._model(checkpoint)
    preset = presets.size(name, level_mixing=False, remat="none")
    assert model == preset
    encoder = {7680: "Qwen/Qwen3-4B", 12288: "Qwen/Qwen3-8B"}[channels["text"]]
    assert released._text("", channels["text"]).encoder == f"qwen3:{encoder}"


def wrong(folder: Path, name: str) -> tuple[str, str]:
    """A spec and the message about it."""
    if name == "variant":
        spec = release(folder, SMALL_FORCING, "flux_rgbd_9b_v1")
        return spec, "the variant 'flux_rgbd_9b_v1', model.safetensors is flux_rgbd_9b_v2"
    if name == "no-depth":
        return release(folder, SMALL), "has no depth stream; name a network without depth as flux2"
    if name == "depth":
        path = saved(folder / "model.safetensors", SMALL_FORCING, FORCING)
        return f"flux2-klein:{path}", "has a depth stream; name Modality Forcing's network as mf-f"
    if name == "another":
        folder.joinpath("a").mkdir()
        save_file({"a": np.zeros(1)}, folder / "a" / "model.safetensors")
        return f"flux2-klein:{folder}/a", r"is not a FLUX\.2 transformer: it holds a"
    if name == "nowhere":
        return f"mf-flux2:{folder}/nowhere", "no such file or folder"
    return name, "names no released network; give mf-flux2:WHERE or flux2-klein:WHERE"


@pytest.mark.parametrize(
    "name", ["variant", "no-depth", "depth", "another", "nowhere", "mf-flux2:", "runs/a"]
)
def test_wrong_specs_are_one_line(tmp_path, name):
    spec, message = wrong(tmp_path, name)
    with pytest.raises(UserError, match=message) as caught:
        open_released(spec)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_found_before_any_is_read(tmp_path):
    stored = SMALL.file(BFL)
    del stored["single_blocks.1.linear2.weight"]
    save_file(stored, tmp_path / "model.safetensors")
    opened = open_released(f"flux2-klein:{tmp_path}")
    with pytest.raises(UserError, match=r"lacks single_blocks\.1\.linear2\.weight"):
        _ = opened.shapes


@pytest.mark.parametrize(
    "spec, expected",
    [("mf-flux2:a/b", True), ("flux2-klein:/x", True), ("runs/mf-flux2", False), ("gs://b", False)],
)
def test_specs_are_told_from_paths(spec, expected):
    assert is_released(spec) == expected


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_is_distilled_is_true_or_false(tmp_path, value):
    spec = pipeline(tmp_path, {"is_distilled": value})
    with pytest.raises(
        UserError, match=r"model_index\.json: is_distilled is .*; it must be true or"
    ):
        open_released(spec)
