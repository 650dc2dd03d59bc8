"""The FLUX.2 autoencoder with small random weights; tests/parity compares with the reference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.encoders.flux2_vae import (
    Decoder,
    Encoder,
    LatentNorm,
    VAEConfig,
    pack,
    unpack,
)
from modality_forcing.encoders.pixels import Autoencoder
from modality_forcing.errors import UserError
from tests.vae import VAE

ROOT = Path(__file__).parents[3]
SMALL = VAEConfig(widths=(8, 16), decoder_widths=(4, 8), layers=1, latent_channels=3, groups=4)

JSON = {
    "_class_name": "AutoencoderKLFlux2",
    "_diffusers_version": "0.32.0.dev0",
    "act_fn": "silu",
    "batch_norm_eps": 1e-3,
    "block_out_channels": [64, 128],
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "patch_size": [4, 4],
    "use_quant_conv": True,
}


def make(kind: Any = VAE) -> Any:
    """A small network of random weights, without compiling the initializers (seconds)."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: kind(SMALL, rngs=nnx.Rngs(0))))

    def draw(leaf):
        few = leaf.ndim == 1  # biases, scales and statistics; the others are kernels
        values = (
            rng.uniform(0.5, 1.5, leaf.shape)
            if few
            else rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        )
        return jnp.asarray(values, leaf.dtype)

    return nnx.merge(graph, jax.tree.map(draw, state))


@pytest.fixture(scope="module")
def vae() -> VAE:
    return make()


encode: Any = nnx.jit(VAE.encode)
decode: Any = nnx.jit(VAE.decode)
call: Any = nnx.jit(lambda half, x: half(x))


def example_images(count=3, rows=8, columns=12):
    return jax.random.uniform(jax.random.key(0), (count, rows, columns, 3), minval=-1.0)


def test_released_network_has_its_published_size():
    vae = nnx.eval_shape(lambda: VAE(VAEConfig(), rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    sizes = {
        kind: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(vae, kind)))
        for kind in (nnx.Param, nnx.BatchStat)
    }
    # Both halves hold the statistics.
    assert sizes == {nnx.Param: 84_046_372 - 2 * 128 - 1, nnx.BatchStat: 2 * 2 * 128}
    assert (VAEConfig().channels, VAEConfig().scale) == (128, 16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(vae, nnx.Param))} == {
        jnp.dtype("bfloat16")
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(vae, nnx.BatchStat))} == {
        jnp.dtype("float32")
    }


def test_config_is_read():
    read = VAEConfig.from_dict(JSON)
    assert read == VAEConfig(
        (64, 128), (64, 128), layers=1, latent_channels=16, patch=4, groups=8, stats_eps=1e-3
    )
    assert (read.channels, read.scale) == (256, 8)


def test_config_of_the_small_decoder():
    small = VAEConfig.from_dict(JSON | {"decoder_block_out_channels": [48, 96]})
    assert (small.widths, small.decoder_widths) == ((64, 128), (48, 96))
    assert VAEConfig.from_dict(JSON | {"decoder_block_out_channels": None}) == VAEConfig.from_dict(
        JSON
    )


def test_weights_without_a_config_are_flux2():
    assert VAEConfig.from_dict({}) == VAEConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "AutoencoderKL"},
            "config.json: is of AutoencoderKL, not of AutoencoderKLFlux2",
        ),
        ({"act_fn": "gelu"}, "act_fn gelu"),
        ({"use_quant_conv": False}, "use_quant_conv False"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention False"),
        ({"patch_size": [1, 2]}, r"patch_size \[1, 2\]"),
        ({"norm_num_groups": 48}, "48 groups do not divide"),
        ({"decoder_block_out_channels": [64]}, "not as many"),
        ({"block_out_channels": 64}, "config.json: has block_out_channels 64; download it again"),
        ({"layers_per_block": True}, "layers_per_block True"),
        ({"batch_norm_eps": "small"}, "batch_norm_eps 'small'"),
    ],
)
def test_config_of_another_network_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        VAEConfig.from_dict(JSON | changes)


@pytest.mark.parametrize("sides", [(8, 10), (6, 8)])
def test_image_of_partial_latents_is_refused(vae, sides):
    with pytest.raises(UserError, match="{} x {} pixels.*multiples of 4".format(*sides)):
        vae.encode(example_images(1, *sides))


def test_vae_is_an_autoencoder(vae):
    autoencoder: Autoencoder = vae
    latent = encode(autoencoder, example_images())
    assert latent.shape == (3, 2, 3, autoencoder.channels)
    back = decode(autoencoder, latent)
    assert back.shape == example_images().shape
    assert np.isfinite(back).all()


def test_pack_orders_channels_like_flux2():
    z = np.zeros((1, 4, 6, 5), np.float32)
    z[0, 3, 4, 2] = 1.0  # packed latent (1, 2): channel 2, row 1, column 0
    packed = np.asarray(pack(jnp.asarray(z), 2))
    assert np.argwhere(packed).tolist() == [[0, 1, 2, 2 * 4 + 1 * 2 + 0]]
    np.testing.assert_array_equal(unpack(jnp.asarray(packed), 2), z)


def test_latents_are_normalized_means():
    encoder = make(Encoder)
    moments = jnp.array([1.0, 2.0, 3.0, 70.0, 80.0, 90.0])  # means, then unused log variances
    encoder.conv_out.w[...] = 0 * encoder.conv_out.w[...]
    encoder.conv_out.b[...] = moments
    encoder.quant.w[...] = jnp.eye(6)
    encoder.quant.b[...] = jnp.zeros(6)
    mean, var = jnp.arange(12.0), 0.5 + jnp.arange(12.0)
    encoder.latent_norm.mean[...] = mean
    encoder.latent_norm.var[...] = var
    theirs = (np.repeat([1.0, 2.0, 3.0], 4) - mean) / np.sqrt(var + 1e-4)
    np.testing.assert_allclose(
        call(encoder, example_images()), np.broadcast_to(theirs, (3, 2, 3, 12)), rtol=1e-6
    )


def test_latents_are_denormalized_before_decoding():
    decoder, latent = make(Decoder), jax.random.normal(jax.random.key(1), (1, 2, 3, 12))
    mean, var = np.asarray(decoder.latent_norm.mean), np.asarray(decoder.latent_norm.var)
    decoded = call(decoder, latent)
    decoder.latent_norm.mean[...] = jnp.zeros(12)
    decoder.latent_norm.var[...] = jnp.ones(12)
    plain = latent * np.sqrt(var + 1e-4) + mean
    np.testing.assert_allclose(call(decoder, plain / np.sqrt(1 + 1e-4)), decoded, atol=1e-5)
    assert np.abs(call(decoder, latent) - decoded).max() > 0.1


def test_constant_channels_are_normalized_by_eps():
    stats = LatentNorm(replace(SMALL, stats_eps=1e-2))
    stats.var[...] = jnp.zeros(12)
    z = jnp.arange(12.0)
    np.testing.assert_allclose(stats.normalize(z), 10 * z, rtol=1e-6)
    np.testing.assert_allclose(stats.denormalize(stats.normalize(z)), z, rtol=1e-6)


def test_images_do_not_depend_on_their_batch_or_on_jit(vae):
    together = encode(vae, example_images())
    back = decode(vae, together)
    np.testing.assert_allclose(vae.encode(example_images()[1:2]), together[1:2], atol=1e-5)
    np.testing.assert_allclose(vae.decode(together[1:2]), back[1:2], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "HIGHEST"), ("bfloat16", "None")])
def test_float32_network_multiplies_in_float32(dtype, precision):
    vae = nnx.eval_shape(lambda: VAE(SMALL, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype)))
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    graph, state = nnx.split(vae)
    there_and_back = jax.make_jaxpr(
        lambda s, x: nnx.merge(graph, s).decode(nnx.merge(graph, s).encode(x))
    )(state, image)
    said = re.findall(r"precision=(.*)", str(there_and_back))
    assert len(said) > 20
    assert {precision in word for word in said} == {True}
    assert [out.dtype for out in there_and_back.out_avals] == [jnp.float32]


SHARDED = """
import jax, numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.unit.encoders.test_flux2_vae import decode, encode, make, example_images

vae, images = make(), example_images(2, 32, 12)
latent = encode(vae, images)
image = decode(vae, latent)
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("b", "h"))  # by example and by rows
everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("b", "h")))
graph, state = nnx.split(vae)
spread = nnx.merge(graph, jax.device_put(state, everywhere))
for function, x, one in ((encode, images, latent), (decode, latent, image)):
    many = function(spread, jax.device_put(x, split))
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-5 * np.abs(one).max())
    print(many.sharding.shard_shape(many.shape))
"""


def test_several_devices_agree_up_to_rounding():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Results are sharded like the inputs: no device computed a complete image.
    assert done.stdout.splitlines() == ["(1, 2, 3, 12)", "(1, 8, 12, 3)"]
