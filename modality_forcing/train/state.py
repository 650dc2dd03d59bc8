"""What a run carries from step to step, and how it comes into being."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from modality_forcing.config import Config
from modality_forcing.forcing import rng
from modality_forcing.modalities.base import Modality
from modality_forcing.models.dit import DiT
from modality_forcing.train.optim import optimiser

Params = dict[str, Any]  # nested dicts of arrays, by the network's attribute names


class TrainState(NamedTuple):
    """A pytree; nothing random is in it (see forcing/rng.py)."""

    step: Int[Array, ""]  # updates done
    params: Params
    opt_state: Any
    ema: Params


def make_network(config: Config, modalities: Mapping[str, Modality]) -> DiT:
    """Builds the network with fresh weights; call it under `jit` or `eval_shape`, so that nothing is made eagerly."""
    return DiT(config.model, config.text, modalities, rngs=nnx.Rngs(rng.stream(config.seed, "init", 0)))


def abstract_network(config: Config, modalities: Mapping[str, Modality]) -> tuple[nnx.GraphDef, Params]:
    """Returns the network's graph and the shapes of its weights; allocates nothing."""
    graph, weights = nnx.split(nnx.eval_shape(lambda: make_network(config, modalities)), nnx.Param)
    return graph, nnx.to_pure_dict(weights)


def init_params(config: Config, modalities: Mapping[str, Modality]) -> Params:
    """Returns fresh weights, a pure function of the config's seed."""
    return jax.jit(lambda: nnx.to_pure_dict(nnx.split(make_network(config, modalities), nnx.Param)[1]))()


def init_state(config: Config, params: Params) -> TrainState:
    """Returns the state of step 0 around some weights; the EMA starts as a copy of them."""
    optimise = optimiser(config.train)
    return jax.jit(lambda p: TrainState(jnp.zeros((), jnp.int32), p, optimise.init(p), jax.tree.map(jnp.copy, p)))(params)
