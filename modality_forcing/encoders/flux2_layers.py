"""Layers of the FLUX.2 autoencoder, all NHWC: convolution, group norm, residual, attention."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

fan_in = nnx.initializers.lecun_normal()

EPS = 1e-6  # of every group norm
LOGITS = 2**26  # of attention at a time: 256 MiB. Any number gives the same values.


class Residual(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); x passes a linear map where widths differ."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.norm1 = Norm(inputs, groups, dtype=dtype)
        self.conv1 = Conv(inputs, outputs, rngs=rngs, dtype=dtype)
        self.norm2 = Norm(outputs, groups, dtype=dtype)
        self.conv2 = Conv(outputs, outputs, rngs=rngs, dtype=dtype)
        same = inputs == outputs
        self.shortcut = None if same else Linear(inputs, outputs, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        y = self.conv1(self.norm1(x, jax.nn.silu))
        y = self.conv2(self.norm2(y, jax.nn.silu))
        # The residual stream is float32: rounded, it would lose what later blocks add.
        return (x if self.shortcut is None else self.shortcut(x)) + y.astype(jnp.float32)


class Attention(nnx.Module):
    """x + attention over all positions, with one head as wide as x and the softmax in float32."""

    def __init__(self, width: int, groups: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.norm = Norm(width, groups, dtype=dtype)
        maps = [Linear(width, width, rngs=rngs, dtype=dtype) for _ in range(4)]
        self.q, self.k, self.v, self.out = maps

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = self.norm(x)
        k, v = self.k(y), self.v(y)

        def attend(row: Float[Array, "b w c"]) -> Float[Array, "b w c"]:
            q = self.q(row)
            logits = jnp.einsum("bwc,byxc->bwyx", q, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(logits * c**-0.5, axis=(-2, -1)).astype(v.dtype)
            return self.out(jnp.einsum("bwyx,byxc->bwc", weights, v))

        images = b if isinstance(b, int) else 1  # exported for any batch
        rows_at_a_time = min(max(LOGITS // (images * w * h * w), 1), h)
        rows = jax.lax.map(attend, jnp.moveaxis(y, 1, 0), batch_size=rows_at_a_time)
        return x + jnp.moveaxis(rows, 0, 1).astype(jnp.float32)


class Norm(nnx.Module):
    """Group norm in float32, with statistics over the whole image."""

    def __init__(self, width: int, groups: int, *, dtype: DTypeLike):
        self.groups = groups
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))

    def __call__(
        self, x: Float[Array, "b h w c"], activation: Callable[[Array], Array] = lambda y: y
    ) -> Float[Array, "b h w c"]:
        """Returns activation(norm(x)), rounded to the weights' dtype once."""
        x = x.astype(jnp.float32)
        centered = x - self._mean(x)
        y = centered * jax.lax.rsqrt(self._mean(jnp.square(centered)) + EPS)
        return activation(y * self.scale + self.bias).astype(self.scale.dtype)

    def _mean(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
        # Over positions first: on a CPU three times as fast as positions and channels at once.
        b, _, _, c = x.shape
        mean = jnp.mean(jnp.mean(x, axis=(1, 2)).reshape(b, self.groups, -1), axis=-1)
        return jnp.repeat(mean, c // self.groups, axis=-1)[:, None, None]


class Linear(nnx.Module):
    """x @ w + b at every position: a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.w = nnx.Param(fan_in(rngs.params(), (inputs, outputs), dtype))
        self.b = nnx.Param(jnp.zeros(outputs, dtype))

    def __call__(self, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
        w = self.w[...]
        return x.astype(w.dtype) @ w + self.b


class Conv(nnx.Module):
    """A 3 x 3 convolution with zero padding; with a stride of 2, below and right only."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        self.w = nnx.Param(fan_in(rngs.params(), (3, 3, inputs, outputs), dtype))
        self.b = nnx.Param(jnp.zeros(outputs, dtype))
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
        padding = {1: (1, 1), 2: (0, 1)}[self.stride]
        return _convolve(x, self.w[...], (padding, padding), self.stride) + self.b


class Upsample(nnx.Module):
    """Doubles the resolution by repeating pixels, then a 3 x 3 convolution.

    3 x 3 repeated pixels are 2 x 2 original ones. So each of the four pixels made of one is a
    2 x 2 convolution, whose weights are sums of those that meet the same pixel: 16 products
    instead of 36, twice as fast on a CPU, exact but for rounding, and the repeated input is never
    made.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.w = nnx.Param(fan_in(rngs.params(), (3, 3, width, width), dtype))
        self.b = nnx.Param(jnp.zeros(width, dtype))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
        b, h, w, c = x.shape
        rows = []
        for i, half in enumerate(_halves(self.w[...], 0)):
            pair = []
            for j, kernel in enumerate(_halves(half, 1)):
                pair.append(_convolve(x, kernel, ((1 - i, i), (1 - j, j))))
            rows.append(jnp.stack(pair, axis=3))  # [b h w 2 c]
        return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c) + self.b


def _convolve(
    x: Array, kernel: Array, padding: tuple[tuple[int, int], tuple[int, int]], stride: int = 1
) -> Array:
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x.astype(kernel.dtype), kernel, (stride, stride), padding, dimension_numbers=axes
    )


def _halves(kernel: Array, axis: int) -> tuple[Array, Array]:
    """Returns two kernels of length 2 for one of length 3, for the first and second equal pixel."""
    before, here, after = jnp.split(kernel, 3, axis)
    first = jnp.concatenate([before, here + after], axis)
    second = jnp.concatenate([before + here, after], axis)
    return first, second
