"""Primitives and embeddings: einsum with a weight, linear map, RMS norm, noise levels and text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from modality_forcing.config import TextConfig
from modality_forcing.models.layout import constrain, is_sharded

fan_in = nnx.initializers.lecun_normal()
zeros = nnx.initializers.zeros_init()

GATHERED = "gathered"  # remat policies know weights gathered from their shards by this name
LONG = 1024  # tokens of an example; demos have fewer and keep their bits


class Adapted(NamedTuple):
    """A weight with a low-rank update: it acts as w + scale * a @ b (models/lora.py)."""

    w: Array
    a: Array  # the inputs of w, then the rank
    b: Array  # the rank, then the outputs of w
    scale: float


def sharded_einsum(equation: str, x: Array, w: Array | Adapted) -> Array:
    """Einsum of activations and a weight in x's dtype: sharded_einsum("bnd,df->bnf", x, w).

    Weights that train are float32. Frozen ones may be bfloat16 (train.frozen_dtype).

    The weight is cast on its shard and only then gathered. Its gradient leaves the einsum in
    float32, so that sums over devices and micro-batches are float32 too: XLA would round the
    gradient to x's dtype before it adds up the devices.
    """
    if isinstance(w, Adapted):
        inner, outer = _low_rank(equation)
        low = sharded_einsum(inner, x, w.a)
        return sharded_einsum(equation, x, w.w) + w.scale * sharded_einsum(outer, low, w.b)
    # Of float32 here, so that the gradient is; XLA drops the detour of a bfloat16 weight.
    return cast(Array, _sharded_einsum(equation, x, w.astype(jnp.float32)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sharded_einsum(equation: str, x: Array, w: Array) -> Array:
    return _forward(equation, x, w)[0]


def _forward(equation: str, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    _, w_axes, y_axes = _axes(equation)
    w = checkpoint_name(constrain(w.astype(x.dtype), w_axes), GATHERED)
    return constrain(_multiply(equation, x, w), y_axes), (x, w)


def _backward(equation: str, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x_axes, w_axes, y_axes = _axes(equation)
    x, w = residuals
    dx = _multiply(f"{y_axes},{w_axes}->{x_axes}", dy, w)
    dw = _multiply(f"{x_axes},{y_axes}->{w_axes}", x, dy, jnp.float32)
    return constrain(dx, x_axes), dw


_sharded_einsum.defvjp(_forward, _backward)


def _multiply(equation: str, a: Array, b: Array, dtype: DTypeLike | None = None) -> Array:
    """Einsum of two operands; of long sequences on a single CPU, as a product of matrices.

    XLA on CPUs transposes operands of three or four axes in scalar loops. With 1536 tokens of
    width 512, a matrix with its gradients takes 13% to 30% less time in this way.
    """
    einsum = partial(jnp.einsum, equation, preferred_element_type=dtype)
    sizes = _sizes(equation, a, b)
    is_static = all(isinstance(size, int) for size in sizes.values())
    is_long = is_static and sizes.get("n", 0) >= LONG
    if not is_long or jax.default_backend() != "cpu" or is_sharded():
        return cast(Array, einsum(a, b))
    matrices = partial(_multiply_matrices, equation, dtype=dtype)
    # A process without a TPU may compile for one.
    return jax.lax.platform_dependent(a, b, cpu=matrices, default=einsum)


def _multiply_matrices(equation: str, a: Array, b: Array, *, dtype: DTypeLike | None) -> Array:
    """Computes "bnd,dhk->bhnk" as the product of [b n, d] and [d, h k], then moves h."""
    operands, sizes = _axes(equation), _sizes(equation, a, b)
    groups = [_group(axes, operands) for axes in operands]  # ["bn", "d"], ["d", "hk"], ["bn", "hk"]

    def matrix(x: Array, axes: str, group: list[str]) -> Array:
        shape = [math.prod(sizes[axis] for axis in side) for side in group]
        return jnp.einsum(f"{axes}->{''.join(group)}", x).reshape(shape)

    first = ["".join(side[0] for side in group) for group in groups]
    product = jnp.einsum(
        f"{first[0]},{first[1]}->{first[2]}",
        matrix(a, operands[0], groups[0]),
        matrix(b, operands[1], groups[1]),
        preferred_element_type=dtype,
    )
    axes = "".join(groups[2])
    return jnp.einsum(f"{axes}->{operands[2]}", product.reshape([sizes[axis] for axis in axes]))


def _group(axes: str, operands: list[str]) -> list[str]:
    """Groups axes by the operands that have them: "bhnk" -> ["bn", "hk"] of "bnd,dhk->bhnk"."""
    groups: dict[tuple[bool, ...], str] = {}
    for axis in axes:
        shared = tuple(axis in other for other in operands)
        groups[shared] = groups.get(shared, "") + axis
    return list(groups.values())


def _sizes(equation: str, a: Array, b: Array) -> dict[str, Any]:
    """Returns the size of each axis; that of a program for any batch is symbolic."""
    a_axes, b_axes, _ = _axes(equation)
    return dict(zip(a_axes + b_axes, a.shape + b.shape, strict=True))


def _low_rank(equation: str) -> tuple[str, str]:
    """Splits "bnd,dhk->bnhk" into the two products of an update: "bnd,dr->bnr", "bnr,rhk->bnhk"."""
    x, w, y = _axes(equation)
    inputs, outputs = (
        "".join(axis for axis in w if (axis in y) is of_result) for of_result in (False, True)
    )
    low = "".join(axis for axis in x if axis not in inputs) + "r"
    return f"{x},{inputs}r->{low}", f"{low},r{outputs}->{y}"


def _axes(equation: str) -> list[str]:
    """Splits "bnd,df->bnf" into the axes of both operands and of the result."""
    return equation.replace("->", ",").split(",")


def rms_norm(
    x: Float[Array, "*s d"], scale: Float[Array, " d"] | None = None, eps: float = 1e-6
) -> Float[Array, "*s d"]:
    """X / rms(x) over the last axis in float32, times a learned scale if any; returns x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y if scale is None else y * scale).astype(x.dtype)


def layer_norm(x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """(x - mean) / standard deviation over the last axis, in float32; returns x's dtype."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
    return (y * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)


class Linear(nnx.Module):
    """x @ w without a bias, computed in x's dtype; the weight is stored in float32."""

    def __init__(
        self, inputs: int, outputs: int, *, rngs: nnx.Rngs, init: Callable[..., Array] = fan_in
    ):
        self.w = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
        equation = "bi,io->bo" if x.ndim == 2 else "bni,io->bno"
        return sharded_einsum(equation, x, self.w[...])


SINUSOID = 256  # channels


def sinusoid(t: Float[Array, " b"]) -> Float[Array, "b c"]:
    """Embeds 1000 t as [cos | sin], in float32: bfloat16 does not separate 0.99 from 0.991."""
    half = SINUSOID // 2
    frequency = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = 1000.0 * t.astype(jnp.float32)[:, None] * frequency  # [b c/2]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimestepEmbedder(nnx.Module):
    """Noise level [b] -> vector [b d] of the model's width: sinusoid, two-layer MLP, in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.inner = Linear(SINUSOID, width, rngs=rngs)
        self.outer = Linear(width, width, rngs=rngs)

    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b d"]:
        return self.outer(jax.nn.silu(self.inner(sinusoid(t))))


class TextEmbedder(nnx.Module):
    """Text -> tokens: RMS norm, linear map; padding is one learned vector, so shapes are static.

    Reads the states [b l e] of a frozen encoder, or word ids [b l] into a table learned here.
    """

    def __init__(self, config: TextConfig, width: int, *, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(1.0)
        if config.vocab_size:
            self.table = nnx.Param(normal(rngs.params(), (config.vocab_size, config.channels)))
        self.linear = Linear(config.channels, width, rngs=rngs)
        self.padding = nnx.Param(normal(rngs.params(), (width,)) * 0.02)

    def __call__(self, text: Mapping[str, Array], dtype: DTypeLike) -> Float[Array, "b l d"]:
        states = text["tokens"]
        if self.config.vocab_size:
            states = self.table[...][states]  # [b l e]
        states = self.linear(rms_norm(states.astype(jnp.float32)).astype(dtype))  # [b l d]
        return jnp.where(text["mask"][:, :, None], states, self.padding[...].astype(dtype))
