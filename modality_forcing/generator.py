"""A checkpoint made ready to generate: captions, pictures or depth in, pictures and depth out, for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from modality_forcing.config import Config, SampleConfig
from modality_forcing.diffusion import rng, trajectories
from modality_forcing.diffusion.flow import Prediction
from modality_forcing.diffusion.sampler import sample
from modality_forcing.diffusion.trajectories import Trajectory
from modality_forcing.encoders.frozen import Frozen
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.train import checkpoint, inputs
from modality_forcing.train.state import Params, abstract_model, build_model

# What each task is given; everything else it generates. "partial" follows its given modality loosely.
TASKS: dict[str, tuple[str, ...]] = {
    "t2i": (),
    "joint": (),
    "i2d": ("image",),
    "d2i": ("depth",),
    "partial": ("depth",),
}


@dataclass(frozen=True)
class Output:
    """What a task generated (and what it was given), as tokens and as pictures."""

    tokens: dict[str, jax.Array]  # x0 {name: [b n c]}
    pictures: dict[
        str, np.ndarray
    ]  # image f32 [b h w 3] in [0, 1], depth f32 [b h w] up to scale, ...


class Generator:
    """Runs any task on one set of weights; compiles each (task, batch size, steps) once.

    frozen: the encoders of a network of latents or of text states; by default those that the config names.
    """

    def __init__(self, config: Config, params: Params, frozen: Frozen | None = None):
        self.config, self.params = config, params
        self.modalities = base.build(config)
        self.graph, _ = abstract_model(config, self.modalities)
        self.frozen = inputs.build_encoders(config) if frozen is None else frozen
        self._compiled: dict[Any, Any] = {}

    @classmethod
    def from_checkpoint(
        cls, path: Path, text_encoder: str = "", autoencoder: str = ""
    ) -> Generator:
        """Loads the EMA weights of a checkpoint or workdir, checked against the network its config describes.

        text_encoder, autoencoder: where frozen encoders are, if not where the config says.
        """
        config, params = checkpoint.load(path)
        config = inputs.override_encoders(config, text_encoder, autoencoder)
        modalities = base.build(config)
        fresh = jax.eval_shape(
            lambda: nnx.to_pure_dict(nnx.split(build_model(config, modalities), nnx.Param)[1])
        )
        return cls(config, checkpoint.graft(params, fresh, where=path))

    @cached_property
    def encoder(self) -> TextEncoder:
        """The host side of the text conditioning."""
        return inputs.build_text_encoder(self.config, self.frozen)

    def sampling(self, seed: int | None = None, **changes: Any) -> Generator:
        """Returns a generator of the same weights with another seed and sample options; None leaves what the config has.

        steps, where given, holds for every task. Raises UserError for a value that makes no sense.
        """
        if changes.get("steps") is not None:
            changes["task_steps"] = {}
        options = replace(self.config.sample, **{k: v for k, v in changes.items() if v is not None})
        return Generator(
            replace(self.config, seed=self.config.seed if seed is None else seed, sample=options),
            self.params,
            self.frozen,
        )

    def trajectory(self, task: str, options: SampleConfig) -> tuple[Trajectory, tuple[str, ...]]:
        """Returns a task's noise levels and which modalities it is given; UserError if this model cannot do it."""
        if task not in TASKS:
            raise UserError(f"unknown mode {task!r}", hint=f"choose one of {', '.join(TASKS)}")
        names, lead = tuple(self.modalities), next(iter(self.modalities))
        given = TASKS[task]
        missing = [n for n in given if n not in names]
        if missing or (task != "t2i" and len(names) < 2):
            needs = " and ".join(missing) or "a second modality"
            hint = "use a checkpoint of the forcing phase, or mode t2i"
            raise UserError(
                f"mode {task} needs {needs}, this checkpoint has {', '.join(names)} only", hint=hint
            )
        free = tuple(n for n in names if n not in given)
        steps = steps_of(task, options)
        if task == "t2i":
            return trajectories.joint(lead, (), steps, 1.0, options.mu), ()
        alpha = 2.0**options.log2_alpha
        if task == "joint":
            return trajectories.joint(
                lead, names[1:], steps, alpha, options.mu, options.spacing
            ), ()
        if task == "partial":
            return trajectories.partial(free[0], given[0], steps, alpha, options.mu), given
        return trajectories.conditional(free, given, steps, options.mu), given

    def run(
        self,
        task: str,
        captions: Sequence[str],
        batch: Mapping[str, np.ndarray] | None = None,
        seed: int = 0,
        index: np.ndarray | None = None,
        options: SampleConfig | None = None,
        refine: bool = False,
        draw: int = 0,
    ) -> Output:
        """Generates one example per caption.

        Args:
          task: a key of TASKS.
          captions: one per example; "" for none.
          batch: what the given modalities' `encode` reads (image u8 [b h w 3]; depth f32 and valid bool [b h w]).
          seed, index, draw: the noise of an example is a function of these; index defaults to 0, 1, 2..., and draw counts
            the samples of one example.
          options: steps, solver, guidance and trajectory; the config's by default.
          refine: generate the others anew from the generated lead, given clean (joint only).

        Raises UserError where the network takes frozen encoders and the config names none.
        """
        options = options or self.config.sample
        if any(m.latents for m in self.modalities.values()) and not self.frozen.has_image:
            raise UserError(
                "this network makes latents",
                hint="name their autoencoder with --autoencoder flux2:PATH",
            )
        trajectory, given = self.trajectory(task, options)
        encoded = {n: self._encode(n, batch or {}) for n in given}
        keys = self._keys(len(captions), seed, index, draw)
        tokens = self._sample(trajectory, encoded, captions, keys, options)
        others = tuple(n for n in trajectory.levels if n != next(iter(self.modalities)))
        if refine and task == "joint" and others:
            lead = next(iter(self.modalities))
            again = trajectories.conditional(others, (lead,), steps_of("i2d", options), options.mu)
            fixed = {lead: (tokens[lead], jnp.ones_like(tokens[lead], bool))}
            tokens = self._sample(again, fixed, captions, keys, options)
        return Output(tokens, {n: np.asarray(self._decode(n, x)) for n, x in tokens.items()})

    def _keys(self, count: int, seed: int, index: np.ndarray | None, draw: int) -> jax.Array:
        index = np.arange(count) if index is None else index
        return rng.per_example(rng.stream(seed, "sample", draw), jnp.asarray(index, jnp.int32))

    def _encode(self, name: str, batch: Mapping[str, np.ndarray]) -> tuple[jax.Array, jax.Array]:
        key, modality = ("encode", name), self.modalities[name]
        encode = self._compiled.setdefault(key, jax.jit(modality.encode))
        read = {k: jnp.asarray(v) for k, v in batch.items() if k in ("image", "depth", "valid")}
        return encode({"latent": self.frozen.latents(read["image"])} if modality.latents else read)

    def _decode(self, name: str, x0: jax.Array) -> jax.Array:
        modality = self.modalities[name]
        decoded = self._compiled.setdefault(("decode", name), jax.jit(modality.decode))(x0)
        return self.frozen.pictures(decoded) if modality.latents else decoded

    def _sample(
        self, trajectory, given, captions, keys, options: SampleConfig
    ) -> dict[str, jax.Array]:
        encoded = [self.encoder.encode(caption) for caption in captions]
        text = {k: jnp.asarray(np.stack([e[k] for e in encoded])) for k in encoded[0]}
        null = {
            k: jnp.broadcast_to(jnp.asarray(v), text[k].shape)
            for k, v in self.encoder.null().items()
        }
        if self.frozen.has_text:
            text, null = self.frozen.states(text), self.frozen.states(null)
        levels = {n: jnp.asarray(t) for n, t in trajectory.levels.items()}
        # The order of the levels is data; what is compiled is which modalities there are and how many steps.
        key = (
            tuple(levels),
            tuple(given),
            trajectory.steps,
            len(captions),
            options.solver,
            tuple(sorted(options.guidance.items())),
        )
        if key not in self._compiled:
            self._compiled[key] = jax.jit(self._program(options))
        return self._compiled[key](self.params, levels, given, text, null, keys)

    def _program(self, options: SampleConfig):
        shapes = {n: m.shape for n, m in self.modalities.items()}
        predictions: dict[str, Prediction] = {n: m.prediction for n, m in self.modalities.items()}

        def program(params, levels, given, text, null, keys):
            return sample(
                nnx.merge(self.graph, params),
                levels,
                text,
                keys,
                shapes,
                predictions,
                given,
                options.guidance,
                null,
                options.solver,
                self.config.train.t_min,
            )

        return program


def steps_of(task: str, options: SampleConfig) -> int:
    """Returns the sampler steps of a task."""
    return options.task_steps.get(task, options.steps)
