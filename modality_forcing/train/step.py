"""The train step, one for every phase: encode, noise, predict, masked loss per modality, gradient, optimiser, EMA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from modality_forcing.config import Config
from modality_forcing.forcing import distillation, flow, losses, noise_levels, rng
from modality_forcing.modalities.base import Batch, Modality
from modality_forcing.models.dit import DiT
from modality_forcing.train.optim import optimiser
from modality_forcing.train.state import Params, TrainState

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def compute_loss(
    model: DiT,
    modalities: Mapping[str, Modality],
    batch: Batch,
    step: Int[Array, ""],
    config: Config,
    null_text: Mapping[str, ArrayLike],
    teacher: DiT | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss of one batch and what to log of it.

    Draws depend on (seed, step, batch["index"]) alone, never on the place of an example in the batch.
    """
    keys = {s: rng.per_example(rng.stream(config.seed, s, step), batch["index"]) for s in ("levels", "noise", "text")}
    t, given = noise_levels.draw(
        keys["levels"], {n: m.levels for n, m in modalities.items()}, {n: m.given for n, m in modalities.items()}
    )
    x0, observed, eps, x_t = {}, {}, {}, {}
    for i, (name, modality) in enumerate(modalities.items()):
        x0[name], observed[name] = modality.encode(batch)
        noise = jax.vmap(lambda k, i=i, s=modality.shape: jax.random.normal(jax.random.fold_in(k, i), s))
        eps[name] = noise(keys["noise"])
        x_t[name] = flow.corrupt(x0[name], eps[name], t[name], observed[name])

    text = drop_text(keys["text"], batch["text"], null_text, config.text.drop)
    prediction = model(x_t, t, text)

    total, metrics = jnp.zeros(()), {}
    for name, m in modalities.items():
        loss = losses.velocity_loss(
            prediction[name],
            x0[name],
            eps[name],
            t[name],
            observed[name],
            given[name],
            m.prediction,
            config.train.t_min,
        )  # [b]
        total += m.weight * jnp.mean(loss)
        # Logged per example that has something to learn, so that the task mix does not scale the curve.
        scored = jnp.any(observed[name], axis=(1, 2)) & ~given[name]
        metrics[f"loss_{name}"] = jnp.sum(loss) / jnp.maximum(jnp.sum(scored), 1)
    if teacher is not None:
        lead = next(iter(modalities))
        distilled = _distill(teacher, modalities, lead, x_t, t, text, prediction, given, config)
        total += distilled
        metrics["loss_distill"] = distilled
    return total, metrics | {"loss": total}


def drop_text(keys: Any, text: Mapping[str, Array], null: Mapping[str, ArrayLike], probability: float) -> dict[str, Array]:
    """Replaces some examples' text by the encoder's own embedding of "", for classifier-free guidance."""
    dropped = jax.vmap(jax.random.uniform)(keys) < probability  # [b]
    return {k: jnp.where(dropped.reshape(-1, *[1] * (v.ndim - 1)), jnp.asarray(null[k], v.dtype), v) for k, v in text.items()}


def _distill(teacher, modalities, lead, x_t, t, text, prediction, given, config) -> Float[Array, ""]:
    """Paper eq. 8: the frozen text-to-image model sees the same noisy lead alone; its velocity is the target."""
    kind, t_min = modalities[lead].prediction, config.train.t_min
    frozen = jax.lax.stop_gradient(teacher({lead: x_t[lead]}, {lead: t[lead]}, text)[lead])
    velocity = lambda y: flow.to_velocity(y.astype(jnp.float32), x_t[lead], t[lead], kind, t_min)  # noqa: E731
    others = jnp.stack([t[name] for name in modalities if name != lead])  # [m-1 b]
    loss = distillation.distillation_loss(
        velocity(prediction[lead]),
        velocity(frozen),
        jnp.mean(others, axis=0),
        given[lead],
        config.train.distill_high,
        config.train.distill_low,
    )
    return jnp.mean(loss)


def make_step(
    config: Config,
    modalities: Mapping[str, Modality],
    graph: nnx.GraphDef,
    null_text: Mapping[str, ArrayLike],
    teacher: tuple[nnx.GraphDef, Params] | None = None,
) -> Step:
    """Returns the jitted step (state, batch) -> (state, metrics); the state given to it is consumed."""
    optimise = optimiser(config.train)
    teacher_graph, frozen = teacher if teacher is not None else (graph, None)

    def step(state: TrainState, batch: Batch, frozen: Params | None) -> tuple[TrainState, Metrics]:
        def loss(params: Params) -> tuple[Float[Array, ""], Metrics]:
            guide = None if frozen is None else nnx.merge(teacher_graph, frozen)
            return compute_loss(nnx.merge(graph, params), modalities, batch, state.step, config, null_text, guide)

        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimise.update(grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        # The EMA follows the updated weights; it is short at first, so that it forgets the initial ones.
        decay = jnp.minimum(config.train.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
        metrics |= {"grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    jitted = jax.jit(step, donate_argnums=0)
    return lambda state, batch: jitted(state, batch, frozen)  # an argument: closed over, it would be compiled in
