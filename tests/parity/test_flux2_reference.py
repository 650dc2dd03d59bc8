"""Parity with diffusers' FLUX.2: the same weights through real files, the same outputs and latents.

data/flux2_*.npz holds its outputs; tests/parity/make_flux2_goldens.py made them and documents how.
For the depth stream, which diffusers lacks, the oracle is tests/parity/flux2_numpy.py.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from modality_forcing.config import ModelConfig, TextConfig
from modality_forcing.diffusion import trajectories
from modality_forcing.diffusion.sampler import sample
from modality_forcing.encoders.weights import open_checkpoint
from modality_forcing.models import flux2_weights
from modality_forcing.models.flux2 import Flux2, Reference
from modality_forcing.models.flux2_layouts import FORCING, Layout
from tests.flux2 import Sizes
from tests.parity import flux2_numpy
from tests.parity import make_flux2_goldens as goldens

DEPTH = Sizes(
    width=96, head_dim=32, text=20, double=2, single=3, image=8, depth=6, decoder=2, mixing=True
)


def golden(file: str, key: str) -> np.ndarray:
    with np.load(goldens.FOLDER / f"flux2_{file}.npz", allow_pickle=False) as stored:
        return stored[key]


def network(sizes: Sizes, grids: dict[str, tuple[int, int]], **model) -> tuple:
    """Returns the graph, and the shapes of the weights, for images of these grids."""
    channels = {"image": sizes.image, "depth": sizes.depth}
    streams = {
        name: SimpleNamespace(
            position_id=i,
            grid=grids.get(name, (1, 1)),
            channels=channels[name],
            detokenizer_layers=sizes.decoder if name == "depth" else 0,
        )
        for i, name in enumerate(("image", "depth"))
        if channels[name]
    }
    h = sizes.width // sizes.head_dim
    c = ModelConfig(
        family="flux2",
        width=sizes.width,
        mlp_dim=3 * sizes.width,
        heads=h,
        kv_heads=h,
        head_dim=sizes.head_dim,
        num_layers=sizes.single,
        double_layers=sizes.double,
        level_mixing=sizes.mixing,
        attention="einsum",
    )
    text = TextConfig(tokens=goldens.TOKENS, vocab_size=0, channels=sizes.text)
    build = nnx.eval_shape(lambda: Flux2(replace(c, **model), text, streams, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(build, nnx.Param)
    return graph, nnx.to_pure_dict(shapes)


def loaded(folder, stored: dict[str, np.ndarray], shapes) -> dict:
    save_file(stored, folder / "model.safetensors")
    return flux2_weights.load(shapes, open_checkpoint(folder))


def file(layout: Layout, sizes: Sizes) -> dict[str, np.ndarray]:
    """Tensors of a layout, with logits and outputs near 1."""
    return {
        name: (
            (0.3 if len(shape) == 1 else shape[-1] ** -0.5) * goldens.uniform(name, shape)
            + (len(shape) == 1)
        ).astype(np.float32)
        for name, shape in layout.shapes(sizes.shapes()).items()
    }


def error(ours, theirs) -> float:
    """The largest difference relative to the root mean square."""
    theirs = np.asarray(theirs, np.float64)
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max() / np.sqrt((theirs**2).mean()))


def predict(name: str, folder, **model) -> np.ndarray:
    """Our velocity of a case in diffusers' sign, noise - data."""
    case, given = goldens.CASES[name], goldens.inputs(name)
    guided = {"embedded_guidance": case.guidance} if case.guidance else {}
    graph, shapes = network(case.sizes, {"image": case.grid}, **guided, **model)
    params = loaded(folder, goldens.weights(case.sizes), shapes)
    references = [
        Reference(jnp.asarray(x), grid)
        for x, grid in zip(given["references"], case.references, strict=True)
    ]
    text = {"tokens": jnp.asarray(given["text"])}

    @jax.jit
    def run(params, x, t):
        return nnx.merge(graph, params)({"image": x}, {"image": t}, text, references)["image"]

    return -np.asarray(run(params, given["x"], given["t"]))


@pytest.mark.parametrize(
    "name, allowed",
    [
        ("square", 1e-5),
        ("wide", 1e-5),
        ("references", 1e-5),
        ("guided", 1e-5),
        # Angles of 4000, where the last bit of torch's exp shows: its error, not ours.
        ("guided_4", 5e-5),
    ],
)
def test_velocity_equals_diffusers(tmp_path, name, allowed):
    assert error(predict(name, tmp_path), golden(name, "float32")) < allowed


@pytest.mark.parametrize("name", ["square", "references"])
def test_bfloat16_error_is_below_that_of_diffusers(tmp_path, name):
    """Levels, modulation and norms in float32 reduce the error."""
    exact = golden(name, "float32")
    ours = predict(name, tmp_path, dtype="bfloat16")
    rms = [np.sqrt(np.mean((x - exact) ** 2)) for x in (ours, golden(name, "bfloat16"))]
    assert 1e-4 < rms[0] < rms[1]


def test_depth_stream_with_the_weights_of_the_image_is_more_image(tmp_path):
    """Both outputs together are diffusers' on the tokens of both, at positions 0 and 1."""
    name = "depth_as_image"
    case, given = goldens.CASES[name], goldens.inputs(name)
    sizes = replace(DEPTH, depth=case.sizes.image, decoder=0, mixing=False)
    grids = {"image": case.grid, "depth": case.grid}
    graph, shapes = network(sizes, grids)
    _, alone = network(case.sizes, grids)
    params = loaded(tmp_path, goldens.weights(case.sizes), alone)
    for module in ("tokenizer", "level_embedder", "modulation", "single_modulation", "head"):
        params[module]["depth"] = params[module]["image"]
    params["double"]["layers"]["depth"] = params["double"]["layers"]["image"]
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    out = nnx.merge(graph, params)(
        {"image": jnp.asarray(given["x"]), "depth": jnp.asarray(given["second"])},
        dict.fromkeys(grids, jnp.asarray(given["t"])),
        {"tokens": jnp.asarray(given["text"])},
    )
    both = -np.concatenate([out["image"], out["depth"]], axis=1)
    assert error(both, golden(name, "float32")) < 1e-5


def test_numpy_oracle_equals_diffusers():
    given, case = goldens.inputs("wide"), goldens.CASES["wide"]
    sizes = replace(DEPTH, depth=0, decoder=0, mixing=False)
    stored = goldens.weights(case.sizes)
    params = {**file(FORCING, sizes), **in_bfl_names(stored)}
    out = flux2_numpy.forward(
        params,
        {"image": given["x"]},
        {"image": given["t"]},
        given["text"],
        grids={"image": case.grid},
        heads=3,
    )["image"]
    assert error(out, golden("wide", "float32")) < 1e-5


def in_bfl_names(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Diffusers' tensors by Black Forest Labs' names, written by hand."""
    block, one = "transformer_blocks.{}.", "single_transformer_blocks.{}.attn."
    names = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "final_layer.linear": "proj_out",
    }
    out = {f"{ours}.weight": stored[f"{theirs}.weight"] for ours, theirs in names.items()}
    scale, shift = np.split(stored["norm_out.linear.weight"], 2)
    out["final_layer.adaLN_modulation.1.weight"] = np.concatenate([shift, scale])

    def copy(ours: str, theirs: list[str], i: int) -> None:
        kind = "" if ours.endswith("scale") else ".weight"
        parts = [stored[f"{name.format(i)}.weight"] for name in theirs]
        out[f"{ours.format(i)}{kind}"] = np.concatenate(parts)

    attention = {
        "img": (("to_q", "to_k", "to_v"), "norm_q", "norm_k", "to_out.0", "ff"),
        "txt": (
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            *("norm_added_q", "norm_added_k", "to_add_out", "ff_context"),
        ),
    }
    for i in range(goldens.SIZES.double):
        for s, (qkv, q, k, proj, mlp) in attention.items():
            ours = f"double_blocks.{{}}.{s}"
            copy(f"{ours}_attn.qkv", [f"{block}attn.{name}" for name in qkv], i)
            copy(f"{ours}_attn.norm.query_norm.scale", [f"{block}attn.{q}"], i)
            copy(f"{ours}_attn.norm.key_norm.scale", [f"{block}attn.{k}"], i)
            copy(f"{ours}_attn.proj", [f"{block}attn.{proj}"], i)
            copy(f"{ours}_mlp.0", [f"{block}{mlp}.linear_in"], i)
            copy(f"{ours}_mlp.2", [f"{block}{mlp}.linear_out"], i)
    for i in range(goldens.SIZES.single):
        copy("single_blocks.{}.linear1", [f"{one}to_qkv_mlp_proj"], i)
        copy("single_blocks.{}.linear2", [f"{one}to_out"], i)
        copy("single_blocks.{}.norm.query_norm.scale", [f"{one}norm_q"], i)
        copy("single_blocks.{}.norm.key_norm.scale", [f"{one}norm_k"], i)
    return out


@pytest.mark.parametrize("mixing", [True, False])
def test_depth_stream_equals_the_oracle(tmp_path, mixing):
    """Three streams with weights of their own, two levels, the mixing of levels, the decoder."""
    sizes, grids = replace(DEPTH, mixing=mixing), {"image": (3, 4), "depth": (3, 4)}
    stored = file(FORCING, sizes)
    graph, shapes = network(sizes, grids)
    params = loaded(tmp_path, stored, shapes)
    x = {"image": (2, 12, 8), "depth": (2, 12, 6)}
    x = {n: goldens.uniform(f"noisy {n}", shape).astype(np.float32) for n, shape in x.items()}
    t = {"image": np.array([0.9, 0.2], np.float32), "depth": np.array([0.4, 0.99], np.float32)}
    text = goldens.uniform("text", (2, goldens.TOKENS, 20)).astype(np.float32)
    expected = flux2_numpy.forward(stored, x, t, text, grids=grids, heads=3)
    model = jax.jit(lambda p, *args: nnx.merge(graph, p)(*args))
    out = model(params, x, t, {"tokens": text})
    assert error(-out["image"], expected["image"]) < 1e-5
    assert error(out["depth"], expected["depth"]) < 1e-5


@pytest.mark.parametrize("name, steps", goldens.PIPELINES.items())
def test_latents_equal_those_of_the_klein_pipeline(tmp_path, monkeypatch, name, steps):
    given = goldens.pipeline_inputs(name)
    rows, columns = goldens.PIPELINE_GRID
    graph, shapes = network(goldens.SIZES, {"image": (rows, columns)})
    params = loaded(tmp_path, goldens.weights(goldens.SIZES), shapes)
    noise = jnp.asarray(given["noise"].reshape(2, goldens.SIZES.image, -1).transpose(0, 2, 1))
    # The pipeline is given its noise; the sampler draws it by key.
    monkeypatch.setattr(jax.random, "fold_in", lambda key, _: key)
    monkeypatch.setattr(jax.random, "normal", lambda key, _: noise[jax.random.key_data(key)[1]])
    keys = jax.random.wrap_key_data(jnp.array([[0, 0], [0, 1]], jnp.uint32))
    mu = trajectories.resolution_shift(rows * columns, steps)
    levels = trajectories.joint("image", (), steps, mu=mu).schedule["image"]
    out = sample(
        nnx.merge(graph, params),
        {"image": jnp.asarray(levels)},
        keys,
        shapes={"image": (rows * columns, goldens.SIZES.image)},
        prediction_types={"image": "v"},
        text={"tokens": jnp.asarray(given["text"])},
        null_text={"tokens": jnp.asarray(given["null"])},
        guidance={} if name == "distilled" else {"image": goldens.GUIDANCE},
    )
    assert error(out["image"], golden("pipeline", name)) < 1e-5
