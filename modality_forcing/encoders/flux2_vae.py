"""The FLUX.2 image autoencoder: 16 x 16 pixels to one latent of 128 channels and back.

Architecture: AutoencoderKLFlux2 of diffusers 0.42. flux2_names.py maps the tensors of a published
file to the arrays here.

There are no tiles. Norms and attention see the whole image, so tiles, however blended, give other
values. Attention's logits, the only memory that grows with the square of the pixels, are computed
some rows at a time. The rest is a few activations of full size, in all as the compilers report: to
decode 1024 x 1024 pixels 2.0 GiB in bfloat16 for a TPU v5e, 3.0 GiB in float32 for a CPU; to encode
them half of it; for 2048 x 2048 pixels four times as much. Convolutions in strips of rows needed no
less. Where it does not fit, split the array over devices, by example or by rows: that changes
nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from modality_forcing.encoders.flux2_layers import Attention, Conv, Linear, Norm, Residual, Upsample
from modality_forcing.errors import UserError
from modality_forcing.text_io import shorten
from modality_forcing.tree import Tree

_CLASS = "AutoencoderKLFlux2"
# Values of config.json that are fixed here.
_FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}


class _Init(TypedDict):
    rngs: nnx.Rngs
    dtype: DTypeLike


@dataclass(frozen=True)
class VAEConfig:
    """Sizes; the defaults are FLUX.2's. Raises UserError for widths that no such network has."""

    widths: tuple[int, ...] = (128, 256, 512, 512)  # of the encoder, from full resolution to 1/8
    # In the same order; of FLUX.2-small-decoder: 96, 192, 384, 384.
    decoder_widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2  # residual blocks of one resolution; the decoder has one more
    latent_channels: int = 32
    patch: int = 2  # latents along one side of a packed one
    groups: int = 32  # of a group norm
    stats_eps: float = 1e-4

    def __post_init__(self) -> None:
        encoder, decoder = self.widths, self.decoder_widths
        if len(encoder) != len(decoder):
            what = f"the VAE's encoder has widths {encoder}, its decoder {decoder}: not as many"
            raise UserError(what)
        if any(width % self.groups for width in (*encoder, *decoder)):
            what = f"{self.groups} groups do not divide the VAE's widths {encoder}, {decoder}"
            raise UserError(what)

    @property
    def channels(self) -> int:
        """Channels of a packed latent."""
        return self.latent_channels * self.patch**2

    @property
    def scale(self) -> int:
        """Pixels along one side of a packed latent."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @classmethod
    def from_dict(cls, config: Tree, where: object = "config.json") -> VAEConfig:
        """Reads a diffusers config.json; an empty one, for weights without, means FLUX.2.

        where: its path, for messages. Raises UserError for the config of another network.
        """
        try:
            return cls._from_dict(config)
        except UserError as error:
            raise UserError(str(error), where=where) from None

    @classmethod
    def _from_dict(cls, config: Tree) -> VAEConfig:
        if config and config.get("_class_name") != _CLASS:
            what = f"is of {config.get('_class_name')}, not of {_CLASS}"
            raise UserError(what, hint="name the folder of FLUX.2's VAE")
        for key, value in _FIXED.items():
            if config.get(key, value) != value:
                what = f"has {key} {config[key]}; of {_CLASS}, only {value} is known here"
                raise UserError(what)
        default = VAEConfig()

        def read(key: str, default: Any) -> Any:
            """The value of a key: a positive number, or a list of them if the default is one."""
            value = config.get(key, default)
            numbers = value if isinstance(default, tuple) else [value]
            kinds = int | float if isinstance(default, float) else int
            if not isinstance(numbers, list | tuple) or not all(
                isinstance(x, kinds) and not isinstance(x, bool) and x > 0 for x in numbers
            ):
                what = f"has {key} {shorten(repr(value))}"
                raise UserError(what, hint="download it again")
            return tuple(numbers) if isinstance(default, tuple) else value

        widths = read("block_out_channels", default.widths)
        patch = set(read("patch_size", (default.patch,)))
        if len(patch) != 1:
            what = f"has patch_size {config['patch_size']}"
            raise UserError(f"{what}; only square patches are known here")
        decoder = config.get("decoder_block_out_channels")
        return cls(
            widths,
            read("decoder_block_out_channels", widths) if decoder else widths,
            layers=read("layers_per_block", default.layers),
            latent_channels=read("latent_channels", default.latent_channels),
            patch=patch.pop(),
            groups=read("norm_num_groups", default.groups),
            stats_eps=read("batch_norm_eps", default.stats_eps),
        )


class Encoder(nnx.Module):
    """Images in [-1, 1] to the mean of their latents, each channel normalized; not sampled.

    dtype: of weights and of what they are multiplied with. Statistics, softmax, the residual stream
    and latents are float32. A float32 network multiplies in float32 on every kind of device, which
    is slow on those made for bfloat16: use bfloat16 there.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config, self.dtype = config, jnp.dtype(dtype)
        fine, coarse, moments = config.widths[0], config.widths[-1], 2 * config.latent_channels
        init = _Init(rngs=rngs, dtype=dtype)
        self.conv_in = Conv(3, fine, **init)
        stages = []
        for inputs, outputs, last in _stage_widths(config.widths):
            resize = None if last else Conv(outputs, outputs, stride=2, **init)
            stages.append(Stage(config, inputs, outputs, config.layers, resize=resize, **init))
        self.stages = nnx.List(stages)
        self.mid = MidBlock(config, coarse, **init)
        self.norm_out = Norm(coarse, config.groups, dtype=dtype)
        self.conv_out = Conv(coarse, moments, **init)
        self.quant = Linear(moments, moments, **init)
        self.latent_norm = LatentNorm(config)

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b y x c"]:
        """Raises UserError for an image whose sides are no multiple of a latent's."""
        height, width = image.shape[1:3]
        if height % self.config.scale or width % self.config.scale:
            what = f"an image of {height} x {width} pixels cannot be encoded"
            raise UserError(what, hint=f"its sides must be multiples of {self.config.scale}")
        with _matmul_precision(self.dtype):
            x = self.conv_in(image.astype(self.dtype))
            for stage in self.stages:
                x = stage(x)
            x = self.conv_out(self.norm_out(self.mid(x), jax.nn.silu))
            mean, _log_variance = jnp.split(self.quant(x), 2, axis=-1)
        return self.latent_norm.normalize(pack(mean, self.config.patch))


class Decoder(nnx.Module):
    """Normalized latents to images, mostly in [-1, 1], in float32; dtype as of `Encoder`."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config, self.dtype = config, jnp.dtype(dtype)
        fine, coarse = config.decoder_widths[0], config.decoder_widths[-1]
        channels = config.latent_channels
        init = _Init(rngs=rngs, dtype=dtype)
        self.latent_norm = LatentNorm(config)
        self.quant = Linear(channels, channels, **init)
        self.conv_in = Conv(channels, coarse, **init)
        self.mid = MidBlock(config, coarse, **init)
        stages = []
        for inputs, outputs, last in _stage_widths(config.decoder_widths[::-1]):
            resize = None if last else Upsample(outputs, **init)
            stages.append(Stage(config, inputs, outputs, config.layers + 1, resize=resize, **init))
        self.stages = nnx.List(stages)
        self.norm_out = Norm(fine, config.groups, dtype=dtype)
        self.conv_out = Conv(fine, 3, **init)

    def __call__(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        z = unpack(self.latent_norm.denormalize(latents), self.config.patch).astype(self.dtype)
        with _matmul_precision(self.dtype):
            x = self.mid(self.conv_in(self.quant(z)))
            for stage in self.stages:
                x = stage(x)
            return self.conv_out(self.norm_out(x, jax.nn.silu)).astype(jnp.float32)


class Stage(nnx.Module):
    """Residual blocks of one resolution, then the resampling to the next one, if any."""

    def __init__(
        self,
        config: VAEConfig,
        inputs: int,
        outputs: int,
        layers: int,
        *,
        resize: Conv | Upsample | None,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        widths, init = [inputs] + [outputs] * (layers - 1), _Init(rngs=rngs, dtype=dtype)
        self.blocks = nnx.List(Residual(i, outputs, config.groups, **init) for i in widths)
        self.resize = resize

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        for block in self.blocks:
            x = block(x)
        return x if self.resize is None else self.resize(x)


class MidBlock(nnx.Module):
    """The coarsest resolution: attention between two residual blocks."""

    def __init__(self, config: VAEConfig, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        init = _Init(rngs=rngs, dtype=dtype)
        self.before = Residual(width, width, config.groups, **init)
        self.attention = Attention(width, config.groups, **init)
        self.after = Residual(width, width, config.groups, **init)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.after(self.attention(self.before(x)))


class LatentNorm(nnx.Module):
    """Mean and variance of each channel of packed latents, measured during training."""

    def __init__(self, config: VAEConfig):
        self.eps = config.stats_eps
        self.mean = nnx.BatchStat(jnp.zeros(config.channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(config.channels, jnp.float32))

    def normalize(self, z: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """Returns float32 latents of mean 0 and variance 1."""
        return (z.astype(jnp.float32) - self.mean) / jnp.sqrt(self.var + self.eps)

    def denormalize(self, z: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """Inverts `normalize`."""
        return z.astype(jnp.float32) * jnp.sqrt(self.var + self.eps) + self.mean


def pack(z: Float[Array, "b h w c"], patch: int) -> Float[Array, "b y x e"]:
    """Cuts latents into squares, each ordered (channel, row, column) like FLUX.2's statistics."""
    b, h, w, c = z.shape
    z = z.reshape(b, h // patch, patch, w // patch, patch, c)
    return jnp.transpose(z, (0, 1, 3, 5, 2, 4)).reshape(b, h // patch, w // patch, c * patch**2)


def unpack(z: Float[Array, "b y x e"], patch: int) -> Float[Array, "b h w c"]:
    """Inverts `pack`."""
    b, rows, columns, e = z.shape
    z = z.reshape(b, rows, columns, e // patch**2, patch, patch)
    return jnp.transpose(z, (0, 1, 4, 2, 5, 3)).reshape(b, rows * patch, columns * patch, -1)


def _stage_widths(widths: tuple[int, ...]) -> Iterator[tuple[int, int, bool]]:
    """Yields the input and output channels of each stage, and whether it is the last."""
    for i, width in enumerate(widths):
        yield widths[max(i - 1, 0)], width, i == len(widths) - 1


def _matmul_precision(dtype: DTypeLike) -> AbstractContextManager[None]:
    # By default a TPU multiplies float32 in bfloat16 and a GPU in TF32; float32 asks for more.
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else None)
