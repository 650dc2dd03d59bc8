"""The weights that a run starts from: fresh ones, a checkpoint's, or a released network's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp

from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import lora
from modality_forcing.models.restore import merge_params, new_modules
from modality_forcing.train import freezing
from modality_forcing.train.freezing import Params, Teacher, join_params
from modality_forcing.train.released import Released
from modality_forcing.train.sharding import Shardings
from modality_forcing.train.state import TrainState, abstract_model, init_params
from modality_forcing.train.weights import open_weights
from modality_forcing.tree import flatten, unflatten


def initial_params(config: Config, abstract: TrainState, shardings: Shardings) -> Params:
    """Returns the weights of a run's step 0, with the types and shapes of its abstract state.

    With train.init_from they are that network's. Modules of train.allow_missing_modalities that it
    lacks, and low-rank updates, start fresh or as train.copy_missing_from says. Fresh weights are a
    function of the seed. Raises UserError for weights that do not fit.
    """
    c, modalities, network = config.train, base.build(config), abstract.all_params()
    if not c.init_from:
        return init_params(config, modalities, shardings(network))
    open_weights(c.init_from, config.data.resolution)  # raises before the slow part
    flat, only = flatten(network), None
    if abstract.frozen:  # the others would only take memory
        new = freezing.new_prefixes(network, c)
        only = {path for path in flat if lora.is_update(path) or f"{path}/".startswith(new)}
    made = {path: leaf for path, leaf in flat.items() if only is None or path in only}
    fresh = init_params(config, modalities, shardings(unflatten(made)), only)
    base_like, updates = lora.split(unflatten({**flat, **flatten(fresh)}))
    _, source = load_source(config, shardings)
    missing = flatten(base_like).keys() - flatten(source).keys()
    merged = merge_params(source, base_like, c.allow_missing_modalities, where=c.init_from)
    merged = join_params(_copy_missing(merged, missing, config), updates)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), merged, network)


def load_source(config: Config, shardings: Shardings) -> tuple[Config, Params]:
    """Returns the network of train.init_from: its config and weights.

    A released one is read in train.frozen_dtype. Its config is the run's, of its modalities alone.
    """
    found = open_weights(config.train.init_from, config.data.resolution)
    loaded, params = found.load(shardings, dtype=config.train.frozen_dtype)
    if not isinstance(found, Released):
        return loaded, params
    known = {
        name: replace(m, cond_prob_with={})
        for name, m in config.modalities.items()
        if name in loaded.modalities
    }
    first, *others = known
    if not others:
        known = {first: replace(known[first], cond_prob=0.0)}
    train = replace(config.train, distill=False, lora_rank=0, freeze=())
    return replace(config, modalities=known, train=train), params


def load_teacher(config: Config, shardings: Shardings, frozen: Params) -> Teacher:
    """Returns the network of train.init_from, to distill from.

    frozen: weights of the student that do not train. They are of the same checkpoint, and shared.
    """
    if not config.train.init_from:
        raise UserError("train.distill needs train.init_from, the checkpoint to stay near")
    teacher, params = load_source(config, shardings)
    graph, shapes = abstract_model(teacher, base.build(teacher))
    params = merge_params(params, shapes, where=config.train.init_from)  # raises if they do not fit
    return freezing.make_teacher(graph, freezing.to_frozen_dtype(params, config.train), frozen)


def _copy_missing(params: Params, missing: set[str], config: Config) -> Params:
    """Returns the weights with the missing ones copied from the modality train.copy_missing_from.

    A missing weight without a counterpart of its shape stays as it is.
    """
    original = config.train.copy_missing_from
    if not original:
        return params
    flat = flatten(params)
    for name in config.train.allow_missing_modalities:
        own = zip(new_modules({}, name), new_modules({}, original), strict=True)
        for ours, theirs in own:
            for path in sorted(path for path in missing if path.startswith(ours)):
                like = flat.get(f"{theirs}{path.removeprefix(ours)}")
                if not isinstance(like, Mapping | None) and like.shape == flat[path].shape:
                    flat[path] = jnp.array(like, flat[path].dtype, copy=True)
    return unflatten(flat)
