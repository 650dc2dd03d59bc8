"""Parity with diffusers' AutoencoderKLFlux2: small seeded networks, files of both layouts.

data/flux2_vae_*.npz, written by make_vae_goldens.py, has diffusers' outputs and, in released,
FLUX.2's own tensors.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from modality_forcing.encoders.flux2_names import HALVES, UNUSED, tensors
from modality_forcing.encoders.flux2_vae import Decoder, Encoder, VAEConfig
from modality_forcing.encoders.weights import load_module, open_checkpoint
from tests import vae as whole
from tests.parity.make_vae_goldens import CASES, DATA, images, latents, weights
from tests.vae import VAE

CONFIG = VAEConfig.from_dict(CASES["uneven"].config)
LAYOUTS = ("diffusers", "bfl")
PARTS = {"vae": VAE, "encoder": Encoder, "decoder": Decoder}


def stored(name) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"flux2_vae_{name}.npz"))


def shapes(name) -> dict[str, tuple[int, ...]]:
    """The tensors of a diffusers checkpoint."""
    lines = (line.split() for line in stored(name)["tensors"])
    return {name: tuple(map(int, shape)) for name, *shape in lines}


def bfl(name: str, levels: int) -> str:
    """The name in Black Forest Labs' checkpoints of a tensor of diffusers."""

    def reversed_level(found: re.Match) -> str:
        return f"decoder.up.{levels - 1 - int(found[1])}."

    for pattern, theirs in [
        (r"^quant_conv", "encoder.quant_conv"),
        (r"^post_quant_conv", "decoder.post_quant_conv"),
        (r"down_blocks\.(\d+)\.", r"down.\1."),
        (r"decoder\.up_blocks\.(\d+)\.", reversed_level),
        (r"(down|up)samplers\.0\.conv", r"\1sample.conv"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"resnets\.", "block."),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ]:
        name = re.sub(pattern, theirs, name)
    return name


def as_bfl(name: str, levels: int, values: np.ndarray) -> tuple[str, np.ndarray]:
    theirs = bfl(name, levels)
    return theirs, values[..., None, None] if ".attn_1." in theirs and values.ndim == 2 else values


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints by case and layout."""
    folder = tmp_path_factory.mktemp("vae")
    for case, (config, _) in CASES.items():
        held = {
            name: weights(name, shape) if shape else np.array(7)
            for name, shape in shapes(case).items()
        }
        save_file(held, folder / f"{case}-diffusers.safetensors")
        levels = len(config["block_out_channels"])
        save_file(
            dict(as_bfl(name, levels, values) for name, values in held.items()),
            folder / f"{case}-bfl.safetensors",
        )
    return folder


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def load(files, case, layout, part: Any = "vae", dtype: Any = jnp.float32) -> Any:
    checkpoint = open_checkpoint(files / f"{case}-{layout}.safetensors")
    config = VAEConfig.from_dict(CASES[case].config)

    def build() -> Any:
        return PARTS[part](config, rngs=nnx.Rngs(0), dtype=dtype)

    if part == "vae":
        found, unused = whole.tensors(config, checkpoint.shapes), whole.UNUSED
    else:
        found, unused = tensors(config, checkpoint.shapes, part), UNUSED[part]
    return load_module(build, found, checkpoint, unused=unused)


def assert_near(ours, theirs, largest, norm):
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < largest * np.abs(theirs).max()
    assert np.linalg.norm(ours - theirs) < norm * np.linalg.norm(theirs)


@pytest.mark.parametrize("case", CASES)
def test_vae_equals_diffusers(files, case):
    vae, golden = load(files, case, "diffusers"), stored(case)
    assert_near(
        nnx.jit(VAE.encode)(vae, jnp.array(images(CASES[case]))), golden["latent"], 1e-5, 1e-5
    )
    assert_near(
        nnx.jit(VAE.decode)(vae, jnp.array(latents(CASES[case]))), golden["image"], 1e-5, 1e-5
    )


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_vae_equals_diffusers_up_to_rounding(files, case):
    # diffusers' bfloat16 deviates as much from its float32: in "deep" 0.015 by norm, 0.017 at most.
    vae, golden = load(files, case, "diffusers", dtype=jnp.bfloat16), stored(case)
    assert_near(
        nnx.jit(VAE.encode)(vae, jnp.array(images(CASES[case]))), golden["latent"], 2e-2, 2e-2
    )
    assert_near(
        nnx.jit(VAE.decode)(vae, jnp.array(latents(CASES[case]))), golden["image"], 2e-2, 2e-2
    )


@pytest.mark.parametrize("case", CASES)
def test_both_layouts_and_each_half_alone_give_the_same_arrays(files, case):
    both = nnx.to_pure_dict(nnx.state(load(files, case, "diffusers")))
    assert_same(nnx.to_pure_dict(nnx.state(load(files, case, "bfl"))), both)
    for layout in LAYOUTS:
        halves = {
            half: nnx.to_pure_dict(nnx.state(load(files, case, layout, half))) for half in HALVES
        }
        assert_same(halves, both)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("half", HALVES)
def test_encoder_and_decoder_load_from_separate_files(files, tmp_path, layout, half):
    checkpoint = open_checkpoint(files / f"uneven-{layout}.safetensors")
    ours = tensors(CONFIG, checkpoint.shapes, half)
    save_file(
        {name: checkpoint.read(name) for place in ours.values() for name in place.names},
        tmp_path / "uneven-half.safetensors",
    )
    alone = nnx.to_pure_dict(nnx.state(load(tmp_path, "uneven", "half", half)))
    assert_same(alone, nnx.to_pure_dict(nnx.state(load(files, "uneven", layout, half))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_released_tensor_is_loaded(layout):
    held = shapes("released")
    assert len(held) == 251
    assert sum(math.prod(shape) for shape in held.values()) == 84_046_372
    if layout == "bfl":
        renamed = (as_bfl(name, 4, np.broadcast_to(0.0, shape)) for name, shape in held.items())
        held = {name: values.shape for name, values in renamed}
    places = whole.tensors(VAEConfig(), held)
    assert {name for place in places.values() for name in place.names} == set(held) - {
        "bn.num_batches_tracked"
    }
    state = nnx.state(nnx.eval_shape(lambda: VAE(VAEConfig(), rngs=nnx.Rngs(0))))
    ours = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    assert {path: place.shape(held[place.names[0]]) for path, place in places.items()} == ours
