"""What a run carries from step to step, and how it comes into being."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from modality_forcing.config import Config
from modality_forcing.diffusion import rng
from modality_forcing.modalities.base import Modality
from modality_forcing.models.attention import KERNELS
from modality_forcing.models.dit import DiT
from modality_forcing.train.optim import make_optimizer
from modality_forcing.train.sharding import PRESETS

Params = dict[str, Any]  # nested dicts of arrays, by the network's attribute names


class TrainState(NamedTuple):
    """A pytree; nothing random is in it (see diffusion/rng.py)."""

    step: Int[Array, ""]  # updates done
    params: Params
    opt_state: Any
    ema: Params


def build_model(config: Config, modalities: Mapping[str, Modality]) -> DiT:
    """Builds the network with fresh weights; call it under `jit` or `eval_shape`, so that nothing is made eagerly.

    Raises UserError if the device's attention kernel does not take the config's shapes.
    """
    c = with_attention_kernel(config, jax.default_backend())
    keep = PRESETS[c.mesh.preset].keep_gathered
    return DiT(
        c.model,
        c.text,
        modalities,
        rngs=nnx.Rngs(rng.stream(c.seed, "init", 0)),
        keep_gathered=keep,
    )


def with_attention_kernel(config: Config, platform: str) -> Config:
    """Returns the config with the attention kernel of a platform ("tpu", "gpu", "cpu") in the place of "auto".

    Raises UserError if that kernel does not take the config's shapes.
    """
    if config.model.attention != "auto":
        return config
    return replace(config, model=replace(config.model, attention=KERNELS.get(platform, "einsum")))


def abstract_model(
    config: Config, modalities: Mapping[str, Modality]
) -> tuple[nnx.GraphDef, Params]:
    """Returns the network's graph and the shapes of its weights; allocates nothing."""
    graph, weights = nnx.split(nnx.eval_shape(lambda: build_model(config, modalities)), nnx.Param)
    return graph, nnx.to_pure_dict(weights)


def init_params(
    config: Config, modalities: Mapping[str, Modality], shardings: Any = None
) -> Params:
    """Returns fresh weights, a pure function of the config's seed; with shardings, no device ever holds them whole."""
    make = lambda: nnx.to_pure_dict(nnx.split(build_model(config, modalities), nnx.Param)[1])
    return jax.jit(make, out_shardings=shardings)()


def init_state(config: Config, params: Params, shardings: Any = None) -> TrainState:
    """Returns the state of step 0 around some weights; the EMA starts as a copy of them."""
    optimise = make_optimizer(config.train, config.model.width)

    def make(p: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), p, optimise.init(p), jax.tree.map(jnp.copy, p))

    return jax.jit(make, out_shardings=shardings)(params)


def params_hash(params: Params) -> str:
    """Returns a digest of weights: of every path, shape, type and bit, whatever devices they lie on.

    Sums of integers modulo 2^32, each bit pattern times its place, are the same in any order, so each device adds up what
    it holds and no weight travels.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = jax.device_get(_sums([leaf for _, leaf in leaves]))
    told = [
        (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), int(s))
        for (path, leaf), s in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
    def one(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(
            jnp.uint32
        )
        places = sum(
            jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            * jnp.uint32(2654435761 * 3**axis % 2**32)
            for axis in range(x.ndim)
        )
        return jnp.sum(bits * (2 * jnp.asarray(places, jnp.uint32) + 1), dtype=jnp.uint32)

    return [one(x) for x in leaves]
