"""The optimiser: AdamW with warm-up, clipping, weight decay on matrices only and rates by width; EMA of the weights."""

from __future__ import annotations

import jax
import optax

from modality_forcing.config import TrainConfig
from modality_forcing.errors import UserError

EPS = 1e-8  # Adam's, at the width that the learning rate belongs to (Kingma & Ba 2015)
SCALED = ("hidden", "output")  # groups whose learning rate falls with the width


def schedule(c: TrainConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    "cosine" falls to a tenth; "wsd" stays, then cools down over the last `decay` share by 1 - sqrt (Hagele et al. 2024).
    """
    warmup = warmup_steps(c)
    if c.schedule == "cosine":
        end = max(c.steps, warmup + 1)  # a run of one step has nowhere to fall
        return optax.warmup_cosine_decay_schedule(
            0.0, c.learning_rate, warmup, end, 0.1 * c.learning_rate
        )
    cooling = decay_start_step(c)

    def wsd(step):
        rising = jax.numpy.minimum((step + 1) / warmup, 1.0)
        done = jax.numpy.clip((step - cooling) / (c.steps - cooling), 0.0, 1.0)
        return c.learning_rate * rising * (1.0 - jax.numpy.sqrt(done) * 0.95)

    return wsd


def warmup_steps(c: TrainConfig) -> int:
    """Returns the steps over which the learning rate rises."""
    return max(int(c.warmup_fraction * c.steps), 1)


def decay_start_step(c: TrainConfig) -> int:
    """Returns the first step at which "wsd" may be below its constant rate."""
    return c.steps - max(int(c.decay_fraction * c.steps), 1)


def branch_point(c: TrainConfig, trunk: TrainConfig) -> int:
    """Returns the last step up to which two runs that differ in length alone are one run; raises UserError if there is none."""
    if c.schedule != "wsd" or c.schedule != trunk.schedule:
        raise UserError(
            "a cosine has no constant phase to branch off",
            hint="set train.schedule=wsd in the trunk too",
        )
    if warmup_steps(c) != warmup_steps(trunk):
        told = f"the trunk warms up for {warmup_steps(trunk)} steps, this run for {warmup_steps(c)}"
        raise UserError(
            told,
            hint="set train.warmup_fraction so that they agree (train/width_scaling.py: horizon)",
        )
    return min(decay_start_step(c), decay_start_step(trunk))


def make_optimizer(c: TrainConfig, width: int) -> optax.GradientTransformation:
    """Returns the gradient transformation of a run of a network of this width.

    With c.base_width, a learning rate found at that width serves this one (muP for Adam: Yang et al. 2022, table 8; for
    diffusion transformers: Zheng et al. 2025, arXiv 2505.15270). At m = width / base_width:

    - Matrices that sum over the width learn at 1/m of the rate: their updates agree with what they multiply, so that a
      step moves the sum by the width times the rate. Heads too: zero at first, they need no multiplier on the output.
    - Weight decay acts by the unscaled rate, as if it were m times as strong where the rate is 1/m: rate times decay, the
      share a step takes off, is what should not change with the width (Wang & Aitchison 2024, arXiv 2405.13698).
    - Adam's epsilon falls by 1/m, as gradients do behind a head whose weights do, or it would swallow them (Everett et
      al. 2024, arXiv 2407.05872). The head's own do not fall; a smaller epsilon does not hurt them.
    """
    m = width / c.base_width if c.base_width else 1.0
    return optax.chain(
        optax.clip_by_global_norm(c.grad_clip_norm),
        optax.chain(  # optax.adamw with one more part, which has no state
            optax.scale_by_adam(b1=c.b1, b2=c.b2, eps=EPS / m),
            *([_scale_by_group(1.0 / m)] if c.base_width else []),
            optax.add_decayed_weights(c.weight_decay, weight_decay_mask),
            optax.scale_by_learning_rate(schedule(c)),
        ),
    )


def _scale_by_group(factor: float) -> optax.GradientTransformation:
    def update(updates, params=None):
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * factor if param_group(_names(path)) in SCALED else u, updates
        )

    return optax.stateless(update)


def param_group(path: tuple[str, ...]) -> str:
    """Returns what growing the width does to a parameter, from its path in the network.

    "input": a matrix from something of fixed size; "hidden": one that sums over channels of the width, of the FFN or of all
    heads; "output": the same, to something of fixed size; "vector": a gain, offset or scalar.
    Raises ValueError for a parameter that this table does not know: a new module must be given its place.
    """
    match path:
        case (
            ("tokenizer", _, "w")
            | ("text", "table")
            | ("text", "linear", "w")
            | ("level" | "mixer", _, "inner", "w")
        ):
            return "input"
        case ("head", _, "linear", "w"):
            return "output"
        case (*_, "layers", "q" | "k" | "v" | "gate" | "up" | "out" | "down") | (
            "level" | "mixer",
            _,
            "outer",
            "w",
        ):
            return "hidden"
        case ("modulation", "w") | ("head", _, "modulation" | "block_modulation", "w"):
            return "hidden"
        case (*_, "layers", "q_scale" | "k_scale" | "offset") | ("text", "padding") | ("mixing", _):
            return "vector"
    raise ValueError(f"no group for the parameter {'/'.join(path)}")


def weight_decay_mask(params):
    """True for the leaves that weight decay acts on: matrices, stacked or not; vectors and scalars are left alone.

    A leaf of the scanned stack has a leading axis of layers, so its rank alone would call a stacked vector a matrix.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim - ("layers" in _names(path)) >= 2, params
    )


def _names(path) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
