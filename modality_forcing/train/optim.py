"""AdamW with warm-up, clipping, weight decay on matrices, and learning rates scaled by width."""

from __future__ import annotations

import jax
import optax
from jaxtyping import PyTree

from modality_forcing.config import TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.train import spikes
from modality_forcing.train.freezing import is_matrix

EPS = 1e-8  # Adam's, at the base width (Kingma & Ba 2015)
WIDTH_SCALED = ("hidden", "output")  # groups whose learning rate falls with the width


def schedule(c: TrainConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    "cosine" decays to a tenth. "wsd" is constant, then decays over the last share of the steps
    (train.decay_fraction) by 1 - sqrt (Hagele et al. 2024, arXiv 2405.18392).
    """
    warmup = warmup_steps(c)
    if c.schedule == "cosine":
        end = max(c.steps, warmup + 1)  # a run of one step has no room to decay
        return optax.warmup_cosine_decay_schedule(
            0.0, c.learning_rate, warmup, end, 0.1 * c.learning_rate
        )
    decay_start = decay_start_step(c)

    def wsd(step):
        rising = jax.numpy.minimum((step + 1) / warmup, 1.0)
        done = jax.numpy.clip((step - decay_start) / (c.steps - decay_start), 0.0, 1.0)
        return c.learning_rate * rising * (1.0 - jax.numpy.sqrt(done) * 0.95)

    return wsd


def warmup_steps(c: TrainConfig) -> int:
    """Returns the number of steps over which the learning rate rises."""
    return max(int(c.warmup_fraction * c.steps), 1)


def decay_start_step(c: TrainConfig) -> int:
    """Returns the first step at which "wsd" may be below its constant learning rate."""
    return c.steps - max(int(c.decay_fraction * c.steps), 1)


def branch_point(c: TrainConfig, trunk: TrainConfig) -> int:
    """Returns the last step that two runs share which differ in length alone.

    Raises UserError if they share no step.
    """
    if c.schedule != "wsd" or c.schedule != trunk.schedule:
        hint = "set train.schedule=wsd in the trunk too"
        raise UserError("a cosine has no constant phase to branch off", hint=hint)
    ours, theirs = warmup_steps(c), warmup_steps(trunk)
    if ours != theirs:
        what = f"the trunk warms up for {theirs} steps, this run for {ours}"
        hint = "set train.warmup_fraction so that they agree (train/width_scaling.py: with_horizon)"
        raise UserError(what, hint=hint)
    return min(decay_start_step(c), decay_start_step(trunk))


def make_optimizer(c: TrainConfig, width: int) -> optax.GradientTransformation:
    """Returns the gradient transformation for a network of this width.

    With c.base_width, a learning rate tuned at that width holds at this one (muP for Adam: Yang et
    al. 2022, table 8; for diffusion transformers: Zheng et al. 2025, arXiv 2505.15270). With
    m = width / base_width:

    - Matrices that sum over the width learn at 1/m of the rate. Their updates are correlated with
      their inputs, so that a step changes the sum by the width times the rate. Heads too: they
      start at zero and need no multiplier on the output.
    - Weight decay uses the unscaled rate, as if it were m times as strong where the rate is 1/m.
      The product of rate and decay, the share that a step removes, should not change with the
      width (Wang & Aitchison 2024, arXiv 2405.13698).
    - Adam's epsilon falls by 1/m, as gradients do behind a head whose weights fall so; otherwise it
      would dominate them (Everett et al. 2024, arXiv 2407.05872). The head's own gradients do not
      fall; a smaller epsilon does not hurt them.

    Where train.on_spike needs it, `update` also takes the loss and the gradient norm.
    """
    m = width / c.base_width if c.base_width else 1.0
    optimizer = optax.chain(
        optax.clip_by_global_norm(c.grad_clip_norm),
        optax.chain(  # optax.adamw with one more part, which has no state
            optax.scale_by_adam(b1=c.b1, b2=c.b2, eps=EPS / m),
            *([_scale_by_group(1.0 / m)] if c.base_width else []),
            optax.add_decayed_weights(c.weight_decay, weight_decay_mask),
            optax.scale_by_learning_rate(schedule(c)),
        ),
    )
    return spikes.watch(optimizer, c) if spikes.watches(c) else optimizer


def _scale_by_group(factor: float) -> optax.GradientTransformation:
    def update(updates, params=None):
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * factor if param_group(_names(path)) in WIDTH_SCALED else u, updates
        )

    return optax.stateless(update)


def param_group(path: tuple[str, ...]) -> str:
    """Returns how a parameter depends on the width, from its path in the network.

    "input": a matrix from something of fixed size. "hidden": a matrix that sums over the width, the
    MLP or all heads. "output": the same, to something of fixed size. "vector": a gain, offset or
    scalar. Raises ValueError for an unknown parameter: add a new module to this table.
    """
    match path:
        case (
            ("tokenizer", _, "w")
            | ("text_in", "w")
            | ("table",)
            | ("text_embedder", "table")
            | ("text_embedder", "linear", "w")
            | ("level_embedder" | "level_embedder_cross", _, "inner", "w")
            | ("guidance_embedder", "inner", "w")
            | (*_, "lora", _, "b")
        ):
            return "input"
        case ("head", _, "linear", "w"):
            return "output"
        case (
            (*_, "layers", "q" | "k" | "v" | "gate" | "up" | "out" | "down")
            | (*_, "lora", _, "a")
            | ("double", "layers", _, "q" | "k" | "v" | "gate" | "up" | "out" | "down")
            | ("level_embedder" | "level_embedder_cross", _, "outer", "w")
            | ("guidance_embedder", "outer", "w")
        ):
            return "hidden"
        case (
            ("modulation", "w")
            | ("modulation" | "single_modulation", _, "w")
            | ("head", _, "modulation" | "block_modulation", "w")
        ):
            return "hidden"
        case (
            (*_, "layers", "q_scale" | "k_scale" | "offset")
            | ("double", "layers", _, "q_scale" | "k_scale")
            | ("text_embedder", "padding")
            | ("level_gate_cross", _)
        ):
            return "vector"
    raise ValueError(f"no group for the parameter {'/'.join(path)}")


def weight_decay_mask(params: PyTree) -> PyTree:
    """Returns True for matrices, stacked or not, and False for vectors and scalars.

    Leaves of the scanned stack have a leading axis of layers, so that their rank alone would make
    a stacked vector a matrix.
    """
    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _names(path) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
