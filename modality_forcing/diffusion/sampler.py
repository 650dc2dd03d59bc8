"""The sampler: follows noise levels per modality with one model; knows no task by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from modality_forcing.diffusion.flow import T_MIN, Prediction, corrupt, to_velocity, to_x0

Tokens = dict[str, Float[Array, "b n c"]]
Model = Callable[[Tokens, dict[str, Float[Array, " b"]], Any], Tokens]
Solver = Literal["euler", "heun"]


def sample(
    model: Model,
    levels: Mapping[str, Float[Array, " s"]],
    text: Any,
    keys: Key[Array, " b"],
    shapes: Mapping[str, tuple[int, int]],
    predictions: Mapping[str, Prediction],
    given: Mapping[str, tuple[Float[Array, "b n c"], Bool[Array, "b n c"]]] | None = None,
    guidance: Mapping[str, float] | None = None,
    null_text: Any = None,
    solver: Solver = "euler",
    t_min: float = T_MIN,
) -> Tokens:
    """Generates every modality that is not given.

    Args:
      model: (noisy {name: [b n c]}, t {name: [b]}, text) -> prediction {name: [b n c]}.
      levels: noise levels of each modality from the first step to t = 0 (see trajectories.py), all of one length; its
        modalities are those the model is run with.
      text, null_text: conditioning pytrees with a leading b; null_text is needed where any guidance is not 1.
      keys: one per example; a picture depends on its own key only, not on its neighbours.
      shapes: (n, c) of each modality.
      predictions: "x" or "v" of each modality.
      given: clean tokens and where they are observed; re-noised to the trajectory's level at every step (none at t = 0).
      guidance: classifier-free guidance scale on a modality's velocity, 1 where absent. The image's scale must never
        reach the depth: guided depth is sharper than the truth.
      solver: "euler", or "heun" (second order; the last step, to t = 0, is always Euler's, which returns x0_hat itself).

    Returns:
      clean tokens {name: [b n c]} in float32; the given ones as they were given.
    """
    given, guidance = dict(given or {}), dict(guidance or {})
    names = tuple(levels)
    free = [name for name in names if name not in given]
    guided = any(guidance.get(name, 1.0) != 1.0 for name in free)
    if guided and null_text is None:
        raise ValueError("guidance needs null_text")
    if unknown := set(given) - set(names):
        raise ValueError(f"given {sorted(unknown)} not among the levels")
    b = keys.shape[0]

    def gaussian(name: str) -> Array:
        position = sorted(shapes).index(
            name
        )  # not the trajectory's order: a mode change must not change the noise
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, position), shapes[name])
        return jax.vmap(draw)(keys)

    noise = {name: gaussian(name) for name in names}

    def inputs(x: Tokens, step) -> tuple[Tokens, dict[str, Array]]:
        t = {name: jnp.full((b,), levels[name][step]) for name in names}
        fixed = {
            name: corrupt(x0, noise[name], t[name], observed)
            for name, (x0, observed) in given.items()
        }
        return {name: fixed[name] if name in given else x[name] for name in names}, t

    def predict(noisy: Tokens, t: dict[str, Array]) -> Tokens:
        """Returns the network's guided outputs; linear in the output, so guiding x0 or v is the same at t >= t_min."""
        if not guided:
            return model(noisy, t, text)
        twice = lambda a, z: jnp.concatenate([a, z])
        both = model(
            jax.tree.map(twice, noisy, noisy),
            jax.tree.map(twice, t, t),
            jax.tree.map(twice, text, null_text),
        )
        scale = {name: guidance.get(name, 1.0) for name in names}
        return {name: y[b:] + scale[name] * (y[:b] - y[b:]) for name, y in both.items()}

    def evaluate(x: Tokens, step) -> tuple[Tokens, Tokens]:
        """Returns the velocity and the clean estimate of every free modality."""
        noisy, t = inputs(x, step)
        out = {name: y.astype(jnp.float32) for name, y in predict(noisy, t).items()}
        v = {n: to_velocity(out[n], noisy[n], t[n], predictions[n], t_min) for n in free}
        return v, {n: to_x0(out[n], noisy[n], t[n], predictions[n]) for n in free}

    def advance(x: Tokens, v: Tokens, x0: Tokens, step) -> Tokens:
        def one(name: str) -> Array:
            now, then = levels[name][step], levels[name][step + 1]
            # v = x_0 - eps points at the data, so falling t moves x along +v. The step that reaches t = 0 takes x0_hat
            # itself, since stepping by t / max(t, t_min) stops short of it for t < t_min; what has arrived stays put.
            moved = jnp.where(then == 0.0, x0[name], x[name] + (now - then) * v[name])
            return jnp.where(now == 0.0, x[name], moved)

        return {name: one(name) for name in free}

    def euler_step(step, x: Tokens) -> Tokens:
        return advance(x, *evaluate(x, step), step)

    def heun_step(step, x: Tokens) -> Tokens:
        v, x0 = evaluate(x, step)
        ahead, _ = evaluate(advance(x, v, x0, step), step + 1)
        return advance(x, {n: 0.5 * (v[n] + ahead[n]) for n in free}, x0, step)

    last = (
        len(next(iter(levels.values()))) - 2
    )  # always Euler's: there is no second slope to take at t = 0
    x = jax.lax.fori_loop(
        0, last, heun_step if solver == "heun" else euler_step, {n: noise[n] for n in free}
    )
    return euler_step(last, x) | {n: jnp.asarray(x0, jnp.float32) for n, (x0, _) in given.items()}
