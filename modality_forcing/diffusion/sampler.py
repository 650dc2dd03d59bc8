"""The sampler: one model along a schedule of noise levels per modality, for any task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from modality_forcing.diffusion.flow import Prediction, add_noise, to_velocity, to_x0
from modality_forcing.diffusion.guidance import Model, Text, Tokens, Weights, select

Cond = Mapping[str, tuple[Float[Array, "b _ _"], Bool[Array, "b _ _"]]]  # x0 and its mask
Solver = Literal["euler", "heun"]

# Clamp of t in the velocity: it guards the division at t = 0 and nothing else. Below a larger one,
# as losses use, x falls behind the flow, and more steps add to the error.
T_MIN = 0.001


def sample(
    model: Model,
    schedule: Mapping[str, Float[Array, " s"]],
    keys: Key[Array, " b"],
    *,
    shapes: Mapping[str, tuple[int, int]],
    prediction_types: Mapping[str, Prediction],
    text: Text,
    null_text: Text = None,
    cond: Cond | None = None,
    guidance: Weights | None = None,
    condition_guidance: Weights | None = None,
    solver: Solver = "euler",
    t_min: float = T_MIN,
) -> Tokens:
    """Generates every modality of the schedule that is not a condition.

    Args:
      model: (x_t {name: [b n c]}, t {name: [b]}, text) -> prediction {name: [b n c]}.
      schedule: noise levels of each modality from the first step to t = 0 (see trajectories.py),
        all of one length; the model is run with these modalities.
      keys: one per example; an example depends on its own key only, not on its neighbors.
      shapes: (n, c) of each modality.
      prediction_types: "x" or "v" of each modality.
      text, null_text: conditioning; null_text is needed where any guidance is not 1.
      cond: clean tokens and which of them are observed; noised to the schedule's level at every
        step (not at all at t = 0).
      guidance: classifier-free guidance scale on a modality's velocity, 1 where absent. The
        image's scale must never reach the depth: guided depth is sharper than the truth.
      condition_guidance: weight of a condition for the velocities of all that is generated, 1 where
        absent; above 1 the condition is followed more closely (`guidance.Guidance`).
      solver: "euler", or "heun" (second order). The last step, to t = 0, is always Euler's, which
        returns x0_hat itself.
      t_min: least t in an x-prediction's velocity.

    Returns:
      clean tokens {name: [b n c]} in float32; conditions unchanged.
    """
    cond, names = dict(cond or {}), tuple(schedule)
    free = [name for name in names if name not in cond]
    guide = select(free, tuple(cond), guidance, condition_guidance)
    if guide.text and null_text is None:
        raise ValueError("guidance needs null_text")
    if unknown := set(cond) - set(names):
        raise ValueError(f"conditions {sorted(unknown)} are not in the schedule")
    b = keys.shape[0]

    def gaussian(name: str) -> Float[Array, "b n c"]:
        # By position in sorted names, not in the schedule: another task must not change the noise.
        stream = sorted(shapes).index(name)

        def normal(key: Key[Array, ""]) -> Float[Array, "n c"]:
            return jax.random.normal(jax.random.fold_in(key, stream), shapes[name])

        return jax.vmap(normal)(keys)

    noise = {name: gaussian(name) for name in names}

    def evaluate(x: Tokens, i: int | Int[Array, ""]) -> tuple[Tokens, Tokens]:
        """Returns the velocity and the clean estimate of every free modality at level i."""
        t = {name: jnp.full((b,), schedule[name][i]) for name in names}
        fixed = {n: add_noise(x0, noise[n], t[n], mask) for n, (x0, mask) in cond.items()}
        x_t = {name: fixed[name] if name in cond else x[name] for name in names}
        y = guide.predict(model, x_t, t, noise=noise, text=text, null_text=null_text)
        out = {name: values.astype(jnp.float32) for name, values in y.items()}
        v, x0 = {}, {}
        for n in free:
            kind = prediction_types[n]
            v[n] = to_velocity(out[n], x_t[n], t[n], kind, t_min=t_min)
            x0[n] = to_x0(out[n], x_t[n], t[n], kind)
        return v, x0

    def step(x: Tokens, v: Tokens, x0: Tokens, i: int | Int[Array, ""]) -> Tokens:
        """Moves every free modality from level i to level i + 1."""
        moved = {}
        for n in free:
            t, t_next = schedule[n][i], schedule[n][i + 1]
            # v = x_0 - eps points at the data, so falling t moves x along +v. The step to t = 0
            # takes x0_hat itself: stepping by t / max(t, t_min) stops short of it for t < t_min.
            # What has arrived does not move.
            y = jnp.where(t_next == 0.0, x0[n], x[n] + (t - t_next) * v[n])
            moved[n] = jnp.where(t == 0.0, x[n], y)
        return moved

    def euler_step(i: int | Int[Array, ""], x: Tokens) -> Tokens:
        return step(x, *evaluate(x, i), i)

    def heun_step(i: int | Int[Array, ""], x: Tokens) -> Tokens:
        v, x0 = evaluate(x, i)
        v_next, _ = evaluate(step(x, v, x0, i), i + 1)
        return step(x, {n: 0.5 * (v[n] + v_next[n]) for n in free}, x0, i)

    last = len(next(iter(schedule.values()))) - 2  # always Euler's: there is no slope at t = 0
    solver_step = heun_step if solver == "heun" else euler_step
    x = jax.lax.fori_loop(0, last, solver_step, {n: noise[n] for n in free})
    return euler_step(last, x) | {n: jnp.asarray(x0, jnp.float32) for n, (x0, _) in cond.items()}
