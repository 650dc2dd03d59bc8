"""The train state and its initialization."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, PyTree

from modality_forcing import distributed
from modality_forcing.config import Config
from modality_forcing.diffusion import rng
from modality_forcing.modalities.base import Modality
from modality_forcing.models import lora
from modality_forcing.models.attention import KERNELS
from modality_forcing.models.dit import DiT
from modality_forcing.models.flux2 import Flux2
from modality_forcing.train.checksums import checksums
from modality_forcing.train.freezing import Params, join_params, new_prefixes, split_params
from modality_forcing.train.optim import make_optimizer
from modality_forcing.train.sharding import PRESETS
from modality_forcing.tree import flatten, unflatten


class TrainState(NamedTuple):
    """What a run carries from step to step; no random key (see diffusion/rng.py)."""

    step: Int[Array, ""]  # updates done
    params: Params  # those that train
    opt_state: PyTree
    ema: Params  # of those
    frozen: Params = {}  # noqa: RUF012  # train.freeze; params and ema lack them

    def all_params(self) -> Params:
        """Returns the weights of the whole network."""
        return join_params(self.params, self.frozen)

    def all_ema(self) -> Params:
        """Returns the weights of the whole network that are evaluated and exported."""
        return join_params(self.ema, self.frozen)


FAMILIES = {"forcing": DiT, "flux2": Flux2}  # networks by model.family


def build_model(config: Config, modalities: Mapping[str, Modality]) -> DiT | Flux2:
    """Builds the network with fresh weights; to be called under `jit` or `eval_shape`.

    Raises UserError if the device's attention kernel does not take the config's shapes.
    """
    c = with_attention_kernel(config, distributed.backend())
    keep = PRESETS[c.mesh.preset].keep_gathered
    model = FAMILIES[c.model.family](
        c.model,
        c.text,
        modalities,
        rngs=nnx.Rngs(rng.named_key(c.seed, "init", 0)),
        keep_gathered=keep,
    )
    if (t := c.train).lora_rank:
        new = new_prefixes({}, t)
        keys = nnx.Rngs(rng.named_key(c.seed, "lora", 0))
        lora.attach(model, t.lora_rank, t.lora_scale, t.lora_targets, without=new, rngs=keys)
    return model


def with_attention_kernel(config: Config, platform: str) -> Config:
    """Returns the config with model.attention "auto" resolved for a platform: "tpu", "gpu", "cpu".

    Raises UserError if that kernel does not take the config's shapes.
    """
    if config.model.attention != "auto":
        return config
    return replace(config, model=replace(config.model, attention=KERNELS.get(platform, "einsum")))


def abstract_model(
    config: Config, modalities: Mapping[str, Modality]
) -> tuple[nnx.GraphDef, Params]:
    """Returns the network's graph and the shapes of its weights, without allocating them."""
    graph, weights = nnx.split(nnx.eval_shape(lambda: build_model(config, modalities)), nnx.Param)
    return graph, nnx.to_pure_dict(weights)


def init_params(
    config: Config,
    modalities: Mapping[str, Modality],
    shardings: PyTree = None,
    only: Collection[str] | None = None,
) -> Params:
    """Returns fresh weights, a pure function of the seed; they are created in their shards.

    only: the paths of those to create and return, by default all; shardings are of those.
    """

    def init() -> Params:
        params = nnx.to_pure_dict(nnx.split(build_model(config, modalities), nnx.Param)[1])
        if only is None:
            return params
        return unflatten({path: leaf for path, leaf in flatten(params).items() if path in only})

    return jax.jit(init, out_shardings=shardings)()


def init_state(config: Config, params: Params, shardings: PyTree = None) -> TrainState:
    """Returns the state of step 0 for some weights; the EMA starts as a copy of them.

    Raises UserError if train.freeze does not fit the network.
    """
    optimizer = make_optimizer(config.train, config.model.width)

    def init(p: Params) -> TrainState:
        trained, frozen = split_params(p, config.train)
        ema = jax.tree.map(jnp.copy, trained)
        return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), ema, frozen)

    return jax.jit(init, out_shardings=shardings)(params)


def params_hash(params: Params) -> str:
    """Returns a hash of the path, shape, dtype and `checksums` of every weight, on any devices."""
    leaves = zip(jax.tree.leaves(params), checksums(params).items(), strict=True)
    entries = [(path, leaf.shape, str(leaf.dtype), found) for leaf, (path, found) in leaves]
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:12]
