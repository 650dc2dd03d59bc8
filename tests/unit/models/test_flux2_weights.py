"""FLUX.2 transformers in published layouts: every tensor is where it belongs, both ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from modality_forcing.config import TextConfig
from modality_forcing.encoders.weights import Checkpoint, open_checkpoint
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import flux2_weights, int8
from modality_forcing.models.flux2_layouts import BFL, DIFFUSERS, FORCING
from modality_forcing.models.flux2_weights import Options, load, save
from modality_forcing.train.state import abstract_model
from modality_forcing.tree import flatten
from tests import tiny
from tests.flux2 import TINY, TINY_FORCING, TINY_FORCING_V1, TINY_GUIDED, Sizes

PAIRS = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # of a head of 8 channels: ours from a file's


def saved(folder: Path, stored: dict[str, np.ndarray]) -> Checkpoint:
    folder.mkdir(exist_ok=True, parents=True)
    save_file(stored, folder / "model.safetensors")
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def forcing(tmp_path_factory) -> tuple[dict[str, np.ndarray], Checkpoint]:
    stored = TINY_FORCING.file(FORCING)
    return stored, saved(tmp_path_factory.mktemp("forcing"), stored)


def permuted(rows: np.ndarray) -> np.ndarray:
    """Rows of all heads, written by hand: within each head the even ones, then the odd ones."""
    return np.concatenate([rows[i : i + 8][PAIRS] for i in range(0, len(rows), 8)])


def test_tensors_of_bfl_are_where_they_belong(forcing):
    stored, checkpoint = forcing
    f32 = {name: tensor.astype(np.float32) for name, tensor in stored.items()}
    ours = {p: np.asarray(x) for p, x in flatten(load(TINY_FORCING.tree(), checkpoint)).items()}

    def same(path: str, expected: np.ndarray, layer: int | None = None) -> None:
        found = ours[path] if layer is None else ours[path][layer]
        np.testing.assert_array_equal(found, expected, err_msg=path)

    same("text_in/w", f32["txt_in.weight"].T)
    same("tokenizer/depth/w", f32["depth_in.weight"].T)
    same("level_embedder/image/inner/w", f32["time_in.in_layer.weight"].T)
    same("level_embedder/depth/outer/w", f32["time_in_depth.out_layer.weight"].T)
    cross = "level_embedder_cross/image_from_depth/inner/w"
    same(cross, f32["time_in_depth_to_img.in_layer.weight"].T)
    same("level_gate_cross/depth_from_image", f32["cross_alpha_depth"][0])
    same("modulation/text/w", f32["double_stream_modulation_txt.lin.weight"].T)
    same("single_modulation/depth/w", f32["single_stream_modulation_depth.lin.weight"].T)
    qkv = f32["double_blocks.1.txt_attn.qkv.weight"]
    same("double/layers/text/q", permuted(qkv[:16]).T, 1)
    same("double/layers/text/k", permuted(qkv[16:32]).T, 1)
    same("double/layers/text/v", qkv[32:].T, 1)
    scale = f32["double_blocks.0.depth_attn.norm.key_norm.scale"]
    same("double/layers/depth/k_scale", scale[PAIRS], 0)
    same("double/layers/image/out", f32["double_blocks.1.img_attn.proj.weight"].T, 1)
    gated = f32["double_blocks.0.depth_mlp.0.weight"]
    same("double/layers/depth/gate", gated[:48].T, 0)
    same("double/layers/depth/up", gated[48:].T, 0)
    same("double/layers/image/down", f32["double_blocks.0.img_mlp.2.weight"].T, 0)
    inner, outer = (f32[f"single_blocks.2.linear{i}.weight"] for i in (1, 2))
    same("single/layers/q", permuted(inner[:16]).T, 2)
    same("single/layers/v", inner[32:48].T, 2)
    same("single/layers/gate", inner[48:96].T, 2)
    same("single/layers/up", inner[96:].T, 2)
    same("single/layers/out", outer[:, :16].T, 2)
    same("single/layers/down", outer[:, 16:].T, 2)
    same("single/layers/q_scale", f32["single_blocks.2.norm.query_norm.scale"][PAIRS], 2)
    same("head/image/linear/w", -f32["final_layer.linear.weight"].T)
    same("head/depth/linear/w", f32["depth_final_layer.linear.weight"].T)
    same("head/image/modulation/w", f32["final_layer.adaLN_modulation.1.weight"].T)
    decoder = f32["depth_decoder_blocks.1.linear2.weight"]
    same("head/depth/blocks/layers/down", decoder[:, 16:].T, 1)
    same("head/depth/block_modulation/w", f32["depth_decoder_modulation.lin.weight"].T)


def test_diffusers_hold_the_same_network(tmp_path):
    """Split from the other layout by hand."""
    bfl = TINY.file(BFL)
    split = {
        "x_embedder.weight": bfl["img_in.weight"],
        "context_embedder.weight": bfl["txt_in.weight"],
        "single_stream_modulation.linear.weight": bfl["single_stream_modulation.lin.weight"],
        "proj_out.weight": bfl["final_layer.linear.weight"],
    }
    shift, scale = np.split(bfl["final_layer.adaLN_modulation.1.weight"], 2)
    split["norm_out.linear.weight"] = np.concatenate([scale, shift])
    embedder = "time_guidance_embed.timestep_embedder"
    split[f"{embedder}.linear_1.weight"] = bfl["time_in.in_layer.weight"]
    split[f"{embedder}.linear_2.weight"] = bfl["time_in.out_layer.weight"]
    for stream, names in {
        "img": ("to_q", "to_k", "to_v", "norm_q", "norm_k", "to_out.0", "ff"),
        "txt": (
            *("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"),
            *("to_add_out", "ff_context"),
        ),
    }.items():
        name = f"double_stream_modulation_{stream}"
        split[f"{name}.linear.weight"] = bfl[f"{name}.lin.weight"]
        *qkv, query, key, out, mlp = names
        for i in range(2):
            ours, theirs = f"double_blocks.{i}.{stream}", f"transformer_blocks.{i}"
            thirds = np.split(bfl[f"{ours}_attn.qkv.weight"], 3)
            for third, name in zip(thirds, qkv, strict=True):
                split[f"{theirs}.attn.{name}.weight"] = third
            split[f"{theirs}.attn.{query}.weight"] = bfl[f"{ours}_attn.norm.query_norm.scale"]
            split[f"{theirs}.attn.{key}.weight"] = bfl[f"{ours}_attn.norm.key_norm.scale"]
            split[f"{theirs}.attn.{out}.weight"] = bfl[f"{ours}_attn.proj.weight"]
            split[f"{theirs}.{mlp}.linear_in.weight"] = bfl[f"{ours}_mlp.0.weight"]
            split[f"{theirs}.{mlp}.linear_out.weight"] = bfl[f"{ours}_mlp.2.weight"]
    for i in range(3):
        ours, theirs = f"single_blocks.{i}", f"single_transformer_blocks.{i}.attn"
        split[f"{theirs}.to_qkv_mlp_proj.weight"] = bfl[f"{ours}.linear1.weight"]
        split[f"{theirs}.to_out.weight"] = bfl[f"{ours}.linear2.weight"]
        split[f"{theirs}.norm_q.weight"] = bfl[f"{ours}.norm.query_norm.scale"]
        split[f"{theirs}.norm_k.weight"] = bfl[f"{ours}.norm.key_norm.scale"]
    one = flatten(load(TINY.tree(), saved(tmp_path / "bfl", bfl)))
    other = flatten(load(TINY.tree(), saved(tmp_path / "diffusers", split)))
    assert one.keys() == other.keys() == TINY.shapes().keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


CASES = {
    "bfl": (TINY, BFL, ""),
    "bfl-guided": (TINY_GUIDED, BFL, "model.diffusion_model."),
    "diffusers": (TINY, DIFFUSERS, ""),
    "diffusers-guided": (TINY_GUIDED, DIFFUSERS, ""),
    "forcing-v2": (TINY_FORCING, FORCING, "dit."),
    "forcing-v1": (TINY_FORCING_V1, FORCING, ""),
}


@pytest.mark.parametrize("sizes, layout, prefix", CASES.values(), ids=CASES)
def test_files_are_written_as_they_were_read(tmp_path, sizes: Sizes, layout, prefix):
    stored = sizes.file(layout, prefix)
    wide = [name for name in stored if "cross_alpha" in name]
    stored |= {name: np.array([0.1], np.float32) for name in wide}  # not in bfloat16
    checkpoint = saved(tmp_path / "read", stored)
    params = load(sizes.tree(), checkpoint, Options(jnp.bfloat16))
    dtypes = {name.removeprefix(prefix): np.float32 for name in wide}
    files = save(params, tmp_path / "written", layout, dtypes=dtypes)
    again = load_file(files[0])
    assert files == [tmp_path / "written" / f"{layout.file}.safetensors"]
    assert {prefix + name for name in again} == set(stored)
    for name, tensor in again.items():
        assert tensor.dtype == stored[prefix + name].dtype
        assert tensor.tobytes() == stored[prefix + name].tobytes(), name


@pytest.mark.parametrize("modalities", [("image",), ("image", "depth")])
def test_the_network_has_the_arrays_of_the_layouts(tmp_path, modalities):
    """Empty modules, which networks of one modality have, stay empty."""
    config = tiny.flux2()
    kinds = {"image": tiny.IMAGE, "depth": config.modalities["depth"]}
    config = replace(config, modalities={name: kinds[name] for name in modalities})
    _, shapes = abstract_model(replace(config, text=TextConfig(5, 0, 12)), base.build(config))
    flat = flux2_weights.array_shapes(shapes)
    params = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape), shapes)
    layout = FORCING if "depth" in modalities else DIFFUSERS
    save(params, tmp_path, layout, dtype=np.float32)
    again = load(shapes, open_checkpoint(tmp_path))
    assert jax.tree.structure(again) == jax.tree.structure(shapes)
    for path, leaf in flatten(again).items():
        if path in flat:
            np.testing.assert_array_equal(leaf, np.float32(flatten(params)[path]), err_msg=path)


def test_dtypes_of_arrays(forcing):
    params = flatten(load(TINY_FORCING.tree(), forcing[1], Options(jnp.bfloat16)))
    wide = {path for path, leaf in params.items() if leaf.dtype == jnp.float32}
    heads = {f"head/{m}/{part}/w" for m in ("image", "depth") for part in ("linear", "modulation")}
    gates = {f"level_gate_cross/{pair}" for pair in ("image_from_depth", "depth_from_image")}
    assert wide == heads | gates
    assert {leaf.dtype for path, leaf in params.items() if path not in wide} == {
        jnp.dtype(jnp.bfloat16)
    }


def parts(length: int) -> st.SearchStrategy[slice]:
    ends = st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)
    return ends.map(lambda ends: slice(*sorted(ends)))


@settings(max_examples=50)
@given(data=st.data())
def test_any_part_of_an_array_is_that_part(forcing, data):
    """Shards cut heads, halves and layers anywhere."""
    flat = TINY_FORCING.shapes()
    path = data.draw(st.sampled_from(sorted(path for path, shape in flat.items() if shape)))
    ends = [
        data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))
        for n in flat[path]
    ]
    index = tuple(slice(*sorted(pair)) for pair in ends)
    slot = FORCING.slots(flat)[path]
    reader = flux2_weights._Reader(forcing[1], "", slot, flat[path], np.dtype(np.float32))
    whole = reader._part((slice(None),) * len(flat[path]))
    np.testing.assert_array_equal(reader._part(index), whole[index])


def test_float8_files_are_scaled(tmp_path):
    stored = TINY.file(BFL)
    expected = dict(stored)
    for name in [name for name in stored if "blocks" in name and name.endswith("weight")]:
        quantized = (stored[name].astype(np.float32) / 4).astype(ml_dtypes.float8_e4m3fn)
        scale = np.full((), 3, np.float32)
        expected[name] = quantized.astype(np.float32) * scale
        del stored[name]
        stored[name] = quantized
        stored[name.removesuffix("weight") + "weight_scale"] = scale
        stored[name.removesuffix("weight") + "input_scale"] = np.full((), 7, np.float32)
    prefix = "model.diffusion_model."
    named = {prefix + name: tensor for name, tensor in stored.items()}
    named[f"{prefix}scaled_fp8"] = np.zeros(2, ml_dtypes.float8_e4m3fn)  # ComfyUI's flag
    one = load(TINY.tree(), saved(tmp_path / "float8", named))
    other = load(TINY.tree(), saved(tmp_path / "float32", expected))
    for (path, a), b in zip(flatten(one).items(), flatten(other).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)
    bare = {name: tensor for name, tensor in stored.items() if not name.endswith("_scale")}
    with pytest.raises(UserError, match=r"qkv.weight is F8_E4M3 without a scale; give a file"):
        load(TINY.tree(), saved(tmp_path / "bare", bare))


def wrong(name: str) -> tuple[Sizes, dict[str, np.ndarray], str]:
    """A network, a file that is not of it, and the message."""
    small, v2 = TINY.file(BFL), TINY_FORCING.file(FORCING)
    if name == "smaller":
        larger = Sizes(32, 8, 24, 3, 4, image=8)
        return (
            larger,
            small,
            r"lacks double_blocks\.2.*has misshaped txt_in.weight \[16, 12\] instead of \[32, 24\]",
        )
    if name == "v2-as-v1":
        alphas = "network: has beyond it cross_alpha_depth, cross_alpha_img, time_in_depth_to_img"
        return TINY_FORCING_V1, v2, alphas
    if name == "v1-as-v2":
        return TINY_FORCING, TINY_FORCING_V1.file(FORCING), "lacks time_in_depth_to_img.in_layer"
    if name == "without-depth":
        return TINY_FORCING, small, "lacks depth_in.weight, time_in_depth.in"
    if name == "one-less":
        return TINY, {k: v for k, v in small.items() if k != "time_in.in_layer.weight"}, "time_in"
    if name == "one-more":
        return TINY, small | {"time_in.in_layer.bias": np.zeros(3)}, "has beyond it time_in"
    other = {"double_blocks.0.img_mod.lin.weight": np.zeros(3), "a": np.zeros(1)}
    return TINY, other, "is not a FLUX.2 transformer: it holds a, double_blocks"


@pytest.mark.parametrize(
    "name", ["smaller", "v2-as-v1", "v1-as-v2", "without-depth", "one-less", "one-more", "another"]
)
def test_files_of_other_networks_are_one_line(tmp_path, name):
    sizes, stored, message = wrong(name)
    checkpoint = saved(tmp_path, stored)
    with pytest.raises(UserError, match=message) as caught:
        load(sizes.tree(), checkpoint)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", [BFL, DIFFUSERS])
def test_layouts_without_depth_refuse_it(layout):
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), TINY_FORCING.tree())
    with pytest.raises(UserError, match=f"layout {layout.name} has no tensor for double/layers/d"):
        list(flux2_weights.tensors(params, layout))


def test_one_matrix_at_a_time_is_quantized(forcing, monkeypatch):
    """On the host, of one layer each, to what `quantize_tree` gives."""
    seen = []
    original = int8.quantize_array

    def watched(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(weight.ndim)
        return original(weight)

    monkeypatch.setattr(int8, "quantize_array", watched)
    loaded = load(TINY_FORCING.tree(), forcing[1], Options(jnp.bfloat16, True))
    matrices = [path for path in TINY_FORCING.shapes() if int8.is_quantized(path)]
    layers = sum(TINY_FORCING.shapes()[path][0] for path in matrices)
    assert seen == [2] * layers  # each once
    expected = int8.quantize_tree(load(TINY_FORCING.tree(), forcing[1], Options(jnp.bfloat16)))
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_large_networks_are_written_in_parts(tmp_path, forcing):
    params = load(TINY_FORCING.tree(), forcing[1], Options(jnp.bfloat16))
    layout = replace(FORCING, max_bytes=30_000)
    *files, index = save(params, tmp_path, layout)
    assert len(files) > 2 and all(path.stat().st_size < 60_000 for path in files)
    assert index.name == "model.safetensors.index.json"
    assert json.loads(index.read_text())["metadata"]["total_size"] == 2 * TINY_FORCING.parameters()
    again = load(TINY_FORCING.tree(), open_checkpoint(tmp_path), Options(jnp.bfloat16))
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
