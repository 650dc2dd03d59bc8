"""The loss of held-out records at fixed noise levels and noise: a curve that can be compared.

The training loss of a diffusion model is a mean over random noise levels, which vary more than
networks do. Here records, levels and noise are the same at every step and in every network.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Key

from modality_forcing.diffusion import flow, losses, rng
from modality_forcing.diffusion.flow import NoisyTokens
from modality_forcing.evaluation.heldout import HeldOutData
from modality_forcing.generator import Generator
from modality_forcing.modalities.base import Batch, Modality, given_together
from modality_forcing.train import sharding
from modality_forcing.train.state import Params

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
# Losses f32 [levels b] by name, and which examples have a target, bool [b].
Losses = dict[str, tuple[Float[Array | np.ndarray, "t b"], Bool[Array | np.ndarray, " b"]]]


class FixedLevelLoss:
    """Computes the loss of held-out records at LEVELS, in one compiled program.

    All modalities of an example have the same level (`loss_<modality>`). Where the config trains a
    modality as a condition, the others are also scored with that one clean
    (`loss_<modality>_given_<condition>`). Noise depends on (seed, record) alone. Captions are never
    dropped and depth is not sparsified. The loss is in velocity at the config's t_min: losses of
    networks trained with another t_min are not comparable.

    generator: the network, its encoders and its mesh; its weights are not used.
    """

    def __init__(self, generator: Generator, data: HeldOutData):
        self._generator, self._data = generator, data
        mesh = generator.mesh
        on_every_device = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        # Every device gets all losses, which are few, and the mean over examples is the host's: it
        # does not depend on how they are split.
        compute = sharding.traced_on(self._compute, mesh)
        self._compiled = jax.jit(compute, out_shardings=on_every_device)

    def __call__(self, params: Params) -> dict[str, float]:
        """Returns the mean loss by name, and at each level as `<name>/t0.3`."""
        count, size = len(self._data.captions), self._batch_size()
        sums: dict[str, np.ndarray] = {}  # [levels + 1]: of losses at each level, and of examples
        for start in range(0, count, size):
            # The last batch repeats the last record, which does not count again.
            index = np.minimum(np.arange(start, start + size), count - 1)
            fresh = np.arange(start, start + size) < count
            for name, (loss, has_target) in self._losses(params, index).items():
                counts = np.asarray(has_target) & fresh
                totals = np.sum(np.asarray(loss, np.float64), axis=1, where=counts)
                part = np.append(totals, counts.sum())
                sums[name] = sums.get(name, np.zeros_like(part)) + part
        found: dict[str, float] = {}
        for name, (*totals, number) in sums.items():
            if number:
                found[name] = float(np.mean(totals) / number)
                levels = zip(LEVELS, totals, strict=True)
                found |= {f"{name}/t{t:g}": float(total / number) for t, total in levels}
        return found

    def _batch_size(self) -> int:
        g = self._generator
        parts = 1 if g.mesh is None else sharding.batch_devices(g.mesh)
        size = min(g.config.eval.batch, len(self._data.captions))
        return -(-size // parts) * parts

    def _losses(self, params: Params, index: np.ndarray) -> Losses:
        g, data = self._generator, self._data
        tokens = [g.encoder.encode(data.captions[i]) for i in index]
        batch = {
            **data.inputs(index),
            "index": index.astype(np.int32),
            "text": {key: np.stack([t[key] for t in tokens]) for key in tokens[0]},
        }
        placed = jax.tree.map(jnp.asarray, batch)
        if g.mesh is not None:
            placed = sharding.put_batch(batch, g.mesh)
        return jax.device_get(self._compiled(params, g.frozen.encode(placed)))

    def _compute(self, params: Params, batch: Batch) -> Losses:
        g, c = self._generator, self._generator.config
        model, modalities = nnx.merge(g.graph, params), g.modalities
        clean = {name: m.to_tokens(batch) for name, m in modalities.items()}
        keys = rng.per_example(rng.named_key(c.seed, "fixed levels", 0), batch["index"])
        noise = {
            name: jax.vmap(partial(_normal, i, m))(keys)
            for i, (name, m) in enumerate(modalities.items())
        }
        alone = [(name,) for name, m in modalities.items() if m.cond_prob > 0]
        conditions = [(), *alone, *given_together(modalities)]

        def at(level: Float[Array, ""]) -> dict[str, Float[Array, " b"]]:
            found = {}
            for condition in conditions:
                tokens = {
                    name: _add_noise(clean[name], noise[name], level * (name not in condition))
                    for name in modalities
                }
                x_t = {name: x.x_t for name, x in tokens.items()}
                t = {name: x.t for name, x in tokens.items()}
                prediction = model(x_t, t, batch["text"])
                for name, m in modalities.items():
                    if name not in condition:
                        suffix = f"_given_{'+'.join(condition)}" if condition else ""
                        found[f"loss_{name}{suffix}"] = losses.velocity_loss(
                            prediction[name], tokens[name], m.prediction, t_min=c.train.t_min
                        )
            return found

        by_level = jax.lax.map(at, jnp.array(LEVELS, jnp.float32))
        has_target = {n: jnp.any(mask, axis=(1, 2)) for n, (_, mask) in clean.items()}
        return {
            name: (loss, has_target[name.removeprefix("loss_").split("_given_")[0]])
            for name, loss in by_level.items()
        }


def _normal(stream: int, m: Modality, key: Key[Array, ""]) -> Float[Array, "n c"]:
    return jax.random.normal(jax.random.fold_in(key, stream), m.shape)


def _add_noise(
    clean: tuple[Array, Array], noise: Float[Array, "b n c"], level: Float[Array, ""]
) -> NoisyTokens:
    x0, mask = clean
    t = jnp.full(len(x0), level)
    is_cond = jnp.zeros(len(x0), bool)  # a condition has no loss here
    return NoisyTokens(x0, mask, noise, t, flow.add_noise(x0, noise, t, mask), is_cond)
