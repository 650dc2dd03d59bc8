"""The FLUX.2 image autoencoder: 16 x 16 pixels to one latent of 128 channels and back.

Architecture: AutoencoderKLFlux2 of diffusers 0.42. Which tensor of a published file is which array here: flux2_names.py.

There are no tiles. Norms and attention see all of a picture, so that tiles, however they are blended, give another one. What
grows with the square of the pixels, attention's logits, is computed some rows at a time; the rest is a few activations of
full size, as the compilers report in all: to decode 1024 x 1024 pixels 2.0 GiB in bfloat16 for a TPU v5e, 3.0 GiB in float32
for a CPU, to encode them half of it; and 2048 x 2048 pixels four times as much. Convolutions in strips of rows needed no
less. Where it does not fit, split the array over devices, by example or by rows: that changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from modality_forcing.encoders.flux2_layers import Attention, Conv, Doubling, Linear, Norm, Residual
from modality_forcing.errors import UserError

_CLASS = "AutoencoderKLFlux2"
# What a config.json may say otherwise, and nothing here would heed.
_FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}


@dataclass(frozen=True)
class VAEConfig:
    """Sizes; the defaults are those of FLUX.2. Raises UserError for widths that no such network has."""

    widths: tuple[int, ...] = (
        128,
        256,
        512,
        512,
    )  # of the encoder, from full resolution to one eighth
    decoder_widths: tuple[int, ...] = (
        128,
        256,
        512,
        512,
    )  # in the same order; FLUX.2-small-decoder: 96, 192, 384, 384
    layers: int = 2  # residual blocks of one resolution; the decoder has one more
    latent_channels: int = 32
    patch: int = 2  # latents along one side of a packed one
    groups: int = 32  # of a group norm
    stats_eps: float = 1e-4

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.decoder_widths):
            raise UserError(
                f"the VAE's encoder has widths {self.widths}, its decoder {self.decoder_widths}: not as many"
            )
        if any(width % self.groups for width in (*self.widths, *self.decoder_widths)):
            raise UserError(
                f"{self.groups} groups do not divide the VAE's widths {self.widths}, {self.decoder_widths}"
            )

    @property
    def channels(self) -> int:
        """Channels of a packed latent."""
        return self.latent_channels * self.patch**2

    @property
    def scale(self) -> int:
        """Pixels along one side of a packed latent."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> VAEConfig:
        """Reads a diffusers config.json; an empty one, of weights that lie without, means FLUX.2.

        Raises UserError for the config of another network.
        """
        if config and config.get("_class_name") != _CLASS:
            what = f"config.json is of {config.get('_class_name')}, not of {_CLASS}"
            raise UserError(what, hint="name the folder of FLUX.2's VAE")
        for key, value in _FIXED.items():
            if config.get(key, value) != value:
                raise UserError(
                    f"config.json has {key} {config[key]}; of {_CLASS}, only {value} is known here"
                )
        default = VAEConfig()
        widths = tuple(config.get("block_out_channels", default.widths))
        patch = set(config.get("patch_size", (default.patch,)))
        if len(patch) != 1:
            raise UserError(
                f"config.json has patch_size {config['patch_size']}; only square patches are known here"
            )
        return VAEConfig(
            widths,
            tuple(config.get("decoder_block_out_channels") or widths),
            layers=config.get("layers_per_block", default.layers),
            latent_channels=config.get("latent_channels", default.latent_channels),
            patch=patch.pop(),
            groups=config.get("norm_num_groups", default.groups),
            stats_eps=config.get("batch_norm_eps", default.stats_eps),
        )


class VAE(nnx.Module):
    """Both halves: an `Autoencoder` (encoders/pixels.py) between pictures in [-1, 1] and normalised latents."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config, rngs=rngs, dtype=dtype)

    @property
    def channels(self) -> int:
        """Channels of one latent."""
        return self.encoder.config.channels

    def encode(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b y x c"]:
        """As `Encoder`."""
        return self.encoder(image)

    def decode(self, latent: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        """As `Decoder`."""
        return self.decoder(latent)


class Encoder(nnx.Module):
    """Pictures in [-1, 1] to the mean of their latents, each channel normalised; nothing is drawn.

    dtype: of weights and of what they are multiplied with. Statistics, softmax, the sum that goes from block to block and
    latents are float32. Products of a float32 network are float32 on every kind of device, which is slow on those made for
    bfloat16: there, ask for bfloat16.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config, self.dtype = config, jnp.dtype(dtype)
        fine, coarse, moments = config.widths[0], config.widths[-1], 2 * config.latent_channels
        kind: Any = {"rngs": rngs, "dtype": dtype}
        self.conv_in = Conv(3, fine, **kind)
        self.levels = nnx.List(
            Level(
                config, i, o, config.layers, Conv(o, o, stride=2, **kind) if more else None, **kind
            )
            for i, o, more in _steps(config.widths)
        )
        self.middle = Middle(config, coarse, **kind)
        self.norm_out = Norm(coarse, config.groups, dtype=dtype)
        self.conv_out = Conv(coarse, moments, **kind)
        self.quant = Linear(moments, moments, **kind)
        self.stats = Statistics(config)

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b y x c"]:
        """Raises UserError for a picture that whole latents do not cover."""
        if any(side % self.config.scale for side in image.shape[1:3]):
            what = "a picture of {} x {} pixels cannot be encoded".format(*image.shape[1:3])
            raise UserError(what, hint=f"its sides must be multiples of {self.config.scale}")
        with _products(self.dtype):
            x = self.conv_in(image.astype(self.dtype))
            for level in self.levels:
                x = level(x)
            x = self.conv_out(self.norm_out(self.middle(x), jax.nn.silu))
            mean, _ = jnp.split(
                self.quant(x), 2, axis=-1
            )  # the other half is the logarithm of a variance
        return self.stats.normalise(pack(mean, self.config.patch))


class Decoder(nnx.Module):
    """Normalised latents to pictures, mostly in [-1, 1], in float32; dtype as of `Encoder`."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config, self.dtype = config, jnp.dtype(dtype)
        fine, coarse, channels = (
            config.decoder_widths[0],
            config.decoder_widths[-1],
            config.latent_channels,
        )
        kind: Any = {"rngs": rngs, "dtype": dtype}
        self.stats = Statistics(config)
        self.quant = Linear(channels, channels, **kind)
        self.conv_in = Conv(channels, coarse, **kind)
        self.middle = Middle(config, coarse, **kind)
        self.levels = nnx.List(
            Level(config, i, o, config.layers + 1, Doubling(o, **kind) if more else None, **kind)
            for i, o, more in _steps(config.decoder_widths[::-1])
        )
        self.norm_out = Norm(fine, config.groups, dtype=dtype)
        self.conv_out = Conv(fine, 3, **kind)

    def __call__(self, latent: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        z = unpack(self.stats.restore(latent), self.config.patch).astype(self.dtype)
        with _products(self.dtype):
            x = self.middle(self.conv_in(self.quant(z)))
            for level in self.levels:
                x = level(x)
            return self.conv_out(self.norm_out(x, jax.nn.silu)).astype(jnp.float32)


class Level(nnx.Module):
    """Residual blocks of one resolution, then what leads to the next one where there is one."""

    def __init__(
        self,
        config: VAEConfig,
        inputs: int,
        outputs: int,
        layers: int,
        resize: Conv | Doubling | None,
        **kind: Any,
    ):
        widths = (inputs, *[outputs] * layers)
        self.blocks = nnx.List(Residual(i, outputs, config.groups, **kind) for i in widths[:-1])
        self.resize = resize

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        for block in self.blocks:
            x = block(x)
        return x if self.resize is None else self.resize(x)


class Middle(nnx.Module):
    """The coarsest resolution: attention between two residual blocks."""

    def __init__(self, config: VAEConfig, width: int, **kind: Any):
        self.before = Residual(width, width, config.groups, **kind)
        self.attention = Attention(width, config.groups, **kind)
        self.after = Residual(width, width, config.groups, **kind)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.after(self.attention(self.before(x)))


class Statistics(nnx.Module):
    """Mean and variance of each channel of packed latents, measured when the network was trained."""

    def __init__(self, config: VAEConfig):
        self.eps = config.stats_eps
        self.mean = nnx.BatchStat(jnp.zeros(config.channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(config.channels, jnp.float32))

    def normalise(self, z: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """In float32."""
        return (z.astype(jnp.float32) - self.mean) / jnp.sqrt(self.var + self.eps)

    def restore(self, z: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """Inverts `normalise`."""
        return z.astype(jnp.float32) * jnp.sqrt(self.var + self.eps) + self.mean


def pack(z: Float[Array, "b h w c"], patch: int) -> Float[Array, "b y x e"]:
    """Cuts latents into squares, the values of each ordered (channel, row, column), as FLUX.2's statistics are."""
    b, h, w, c = z.shape
    z = z.reshape(b, h // patch, patch, w // patch, patch, c)
    return jnp.transpose(z, (0, 1, 3, 5, 2, 4)).reshape(b, h // patch, w // patch, c * patch**2)


def unpack(z: Float[Array, "b y x e"], patch: int) -> Float[Array, "b h w c"]:
    """Inverts `pack`."""
    b, rows, columns, e = z.shape
    z = z.reshape(b, rows, columns, e // patch**2, patch, patch)
    return jnp.transpose(z, (0, 1, 4, 2, 5, 3)).reshape(b, rows * patch, columns * patch, -1)


def _steps(widths: tuple[int, ...]) -> Iterator[tuple[int, int, bool]]:
    """Of each resolution in turn: channels in, channels out, and whether another one follows."""
    return zip(widths[:1] + widths[:-1], widths, [True] * (len(widths) - 1) + [False], strict=True)


def _products(dtype: Any) -> Any:
    # By default a TPU multiplies float32 in bfloat16 and a GPU in TF32: whoever asks for float32 wants more than that.
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else None)
