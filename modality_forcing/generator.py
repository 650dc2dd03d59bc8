"""Generation with a checkpoint: captions and any of its modalities in, the others out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from modality_forcing import tasks
from modality_forcing.allocator import keep_freed_memory
from modality_forcing.config import Config, SampleConfig
from modality_forcing.diffusion import rng, trajectories
from modality_forcing.diffusion.sampler import Cond, sample
from modality_forcing.diffusion.trajectories import Trajectory
from modality_forcing.encoders.frozen import FrozenEncoders
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models.int8 import quantize_tree
from modality_forcing.models.restore import merge_params
from modality_forcing.train import adapters, inputs, sharding
from modality_forcing.train.state import Params, abstract_model
from modality_forcing.train.weights import open_weights

Loaded = tuple[Config, Params]
Text = Mapping[str, jax.Array | np.ndarray]  # of a batch: "tokens" and "mask"

KEPT_TEXTS = 8  # lists of captions whose encoding a generator keeps
STATIC = ("guidance", "condition_guidance", "solver", "t_min")  # compiled into a program


@dataclass(frozen=True)
class Output:
    """What a task generated, and its condition, by modality."""

    tokens: dict[str, jax.Array]  # x0 [b n c]; on a mesh, the last example may be repeated
    images: dict[str, np.ndarray]  # image f32 [b h w 3] in [0, 1]; depth f32 [b h w] up to scale


class Generator:
    """Runs any task on one set of weights, and compiles each (task, batch size, steps) once.

    Args:
      frozen: the encoders of a network of latents or of text states; by default the config's.
      size: rows and columns of pixels; by default the config's square.
      mesh: devices on which the weights are sharded. Every process then runs the same tasks with
        the same arguments, examples are split over the devices, and all get all outputs. Without a
        mesh, this process's first device does everything.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        frozen: FrozenEncoders | None = None,
        mesh: Mesh | None = None,
        size: tuple[int, int] | None = None,
    ):
        keep_freed_memory()
        self.config, self.params, self.mesh = config, params, mesh
        self.modalities = base.build(config, size)
        self.primary = next(iter(self.modalities))
        self.graph, self._param_shapes = abstract_model(config, self.modalities)
        self.frozen = inputs.build_encoders(config, mesh) if frozen is None else frozen
        self._kept_texts = lru_cache(KEPT_TEXTS)(self._encode_text)
        self._to_tokens = {name: jax.jit(m.to_tokens) for name, m in self.modalities.items()}
        self._to_images = {name: jax.jit(m.from_tokens) for name, m in self.modalities.items()}
        trace = sharding.traced_on(self.trace_sampler, mesh)
        self._sample = jax.jit(trace, static_argnames=STATIC)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        text_encoder: str = "",
        autoencoder: str = "",
        seed: int | None = None,
        sample: Mapping[str, object] | None = None,
        int8: bool = False,
        adapter: str | Path | None = None,
        size: tuple[int, int] | None = None,
        mesh: Mesh | None = None,
    ) -> Generator:
        """Loads the EMA weights of a checkpoint or workdir and checks them against its config.

        Args:
          path: a workdir, its `checkpoints/` or one step; an export, as its folder, its
            safetensors file or `hf:OWNER/NAME[@REVISION]`; or a released network, as
            `mf-flux2:WHERE` (`train.weights.open_weights`).
          text_encoder, autoencoder: locations of frozen encoders; by default the config's.
          seed: replaces the config's.
          sample: values that replace those of config.sample (see `override_sampling`).
          int8: keep the matrices of blocks as integers of 8 bits (`models.int8`).
          adapter: an export with `--adapter` in one of these places; its config and weights go on
            top.
          size: rows and columns of pixels; by default the config's square.
          mesh: devices on which weights and encoders are sharded, each reading its own part.
        """
        if adapter is None:
            config, params = load_weights(path, int8=int8, mesh=mesh)
        else:
            base_config, params = load_weights(path, mesh=mesh)
            config, params = adapters.apply_adapter(adapter, params)
            params = quantize_tree(params) if int8 else params
            # A run that read a cache names no encoders.
            ours, theirs = map(inputs.encoder_locations, (config, base_config))
            text_encoder = text_encoder or ours[0] or theirs[0]
            autoencoder = autoencoder or ours[1] or theirs[1]
        config = inputs.override_encoders(config, text_encoder, autoencoder)
        options = override_sampling(config, **(sample or {}))
        seed = config.seed if seed is None else seed
        config = replace(config, seed=seed, sample=options)
        if mesh is not None:
            sharding.check_heads(config.model, mesh)
        generator = cls(config, params, mesh=mesh, size=size)
        shapes = generator._param_shapes
        generator.params = merge_params(params, shapes, where=path)  # raises if they do not fit
        return generator

    @cached_property
    def encoder(self) -> TextEncoder:
        """The host side of the text conditioning."""
        return inputs.build_text_encoder(self.config, self.frozen)

    def trajectory(
        self, task: str, options: SampleConfig | None = None
    ) -> tuple[Trajectory, tuple[str, ...]]:
        """Returns a task's noise levels and its condition; UserError if the model cannot do it."""
        c = options or self.config.sample
        names = tuple(self.modalities)
        cond = tasks.parse(task, names).given
        free = tuple(n for n in names if n not in cond)
        steps, alpha, mu = num_steps(task, c), 2.0**c.log2_alpha, self.shift(task, c)
        if task == "t2i":
            return trajectories.joint(self.primary, (), steps, mu=mu), cond
        if task == "joint":
            least = {name: self.modalities[name].least_level for name in free}
            path = trajectories.joint(
                self.primary, free[1:], steps, alpha=alpha, mu=mu, least=least
            )
            return path, cond
        if task == "partial":
            least = self.modalities[cond[0]].least_level
            path = trajectories.partial(free, cond[0], steps, alpha, mu=mu, least=least)
            return path, cond
        return trajectories.conditional(free, cond, steps, mu), cond

    def run(
        self,
        task: str,
        captions: Sequence[str],
        *,
        batch: Mapping[str, np.ndarray] | None = None,
        options: SampleConfig | None = None,
        seed: int = 0,
        index: np.ndarray | None = None,
        sample_index: int = 0,
        refine: bool = False,
        free_text: bool = False,
    ) -> Output:
        """Generates one example per caption.

        Args:
          task: a name that `tasks.parse` accepts.
          captions: one per example; "" for none.
          batch: the condition (image u8 [b h w 3]; depth f32 and valid bool [b h w]...).
          options: steps, solver, guidance and trajectory; the config's by default.
          seed, index, sample_index: an example's noise is a function of these. index defaults to
            0, 1, 2...; sample_index counts the samples of one example.
          refine: generate the other modalities again, from the clean primary one (joint only).
          free_text: free the text encoder's weights before sampling. A later run loads them again.

        Raises UserError for a batch that lacks the condition, or has it in another shape, and where
        the network needs frozen encoders and the config names none.
        """
        c = options or self.config.sample
        self.check_autoencoder()
        trajectory, names = self.trajectory(task, c)
        index, count = np.arange(len(captions)) if index is None else index, len(captions)
        base.check_given({name: self.modalities[name] for name in names}, batch or {}, count)
        if self.mesh is not None:
            rows = self._rows(count)
            index = index[rows]
            batch = {name: value[rows] for name, value in (batch or {}).items()}
        cond = {name: self._encode(name, batch or {}) for name in names}
        stream = rng.named_key(seed, "sample", sample_index)
        keys = self._put_keys(rng.per_example(stream, jnp.asarray(index, jnp.int32)))
        text = self.encode_text(captions)
        if free_text:
            self.frozen.free_text()
        tokens = self._run_sampler(trajectory, cond, text, keys, options=c)
        others = tuple(n for n in trajectory.schedule if n != self.primary)
        if refine and task == "joint" and others:
            again = trajectories.conditional(
                others, (self.primary,), num_steps("i2d", c), self.shift("i2d", c)
            )
            primary = tokens[self.primary]
            cond = {self.primary: (primary, jnp.ones_like(primary, bool))}
            tokens = self._run_sampler(again, cond, text, keys, options=c)
        images = {n: self._fetch(self._decode(n, x))[:count] for n, x in tokens.items()}
        return Output(tokens, images)

    def check_autoencoder(self) -> None:
        """Raises UserError where the network needs an autoencoder and the config names none."""
        if any(m.latent_channels for m in self.modalities.values()) and not self.frozen.has_image:
            hint = "name their autoencoder with --autoencoder flux2:PATH"
            raise UserError("this network makes latents", hint=hint)

    def shift(self, task: str, options: SampleConfig) -> float:
        """Returns the shift of a task's grid of noise levels."""
        if options.shift_rule == "constant":
            return options.timestep_shift
        tokens, _ = self.modalities[self.primary].shape
        return trajectories.resolution_shift(tokens, num_steps(task, options))

    def encode_text(self, captions: Sequence[str]) -> tuple[Text, Text]:
        """Returns what the network reads of captions, and of no caption in their place.

        The last few are kept, so that a folder of images needs the text encoder once.
        """
        return self._kept_texts(tuple(map(str, captions)))

    def _encode_text(self, captions: Sequence[str]) -> tuple[Text, Text]:
        if self.mesh is not None:
            captions = [str(captions[i]) for i in self._rows(len(captions))]
        encoded = [self.encoder.encode(caption) for caption in captions]
        text = {k: np.stack([e[k] for e in encoded]) for k in encoded[0]}
        null = {k: np.broadcast_to(v, text[k].shape) for k, v in self.encoder.null().items()}
        text, null = self._put(text), self._put(null)
        if self.frozen.has_text:
            return self.frozen.states(text), self.frozen.states(null)
        return text, null

    def _rows(self, count: int) -> np.ndarray:
        """Returns the examples of a batch: the last one is repeated until they divide."""
        return np.arange(-(-count // self._parts) * self._parts).clip(max=count - 1)

    def _encode(self, name: str, batch: Mapping[str, np.ndarray]) -> tuple[jax.Array, jax.Array]:
        m = self.modalities[name]
        read = self._put({k: batch[k] for k in m.given_inputs})
        if m.latent_channels:
            read = {"latent": self.frozen.latents(read["image"])}
        return self._to_tokens[name](read)

    def _decode(self, name: str, x0: jax.Array) -> jax.Array:
        decoded = self._to_images[name](x0)
        is_latent = self.modalities[name].latent_channels > 0
        return self.frozen.decode_images(decoded) if is_latent else decoded

    def _run_sampler(
        self,
        trajectory: Trajectory,
        cond: Cond,
        text: tuple[Text, Text],
        keys: Key[Array, " b"],
        *,
        options: SampleConfig,
    ) -> dict[str, jax.Array]:
        schedule, static = sampler_options(trajectory, cond, options)
        return self._sample(self.params, schedule, cond, *text, keys, **static)

    def lower(self, task: str, cond: PyTree, text: PyTree, keys: PyTree) -> jax.stages.Lowered:
        """Returns a task's sampling program for the shapes of what `_run_sampler` takes."""
        schedule, static = sampler_options(self.trajectory(task)[0], cond, self.config.sample)
        return self._sample.lower(self.params, schedule, cond, *text, keys, **static)

    @cached_property
    def _parts(self) -> int:
        return 1 if self.mesh is None else sharding.batch_devices(self.mesh)

    def _put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        if self.mesh is None:
            return {name: jnp.asarray(value) for name, value in batch.items()}
        return sharding.put_batch(dict(batch), self.mesh)

    def _put_keys(self, keys: Key[Array, " b"]) -> Key[Array, " b"]:
        if self.mesh is None:
            return keys
        bits = np.asarray(jax.random.key_data(keys))
        return jax.random.wrap_key_data(sharding.put_batch(bits, self.mesh))

    def _fetch(self, x: jax.Array) -> np.ndarray:
        if x.is_fully_addressable:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    def trace_sampler(
        self, params, schedule, cond, text, null_text, keys, **static: Any
    ) -> dict[str, jax.Array]:
        """Samples inside a program; the arguments are those of `sampler.sample`."""
        return sample(
            nnx.merge(self.graph, params),
            schedule,
            keys,
            shapes={name: m.shape for name, m in self.modalities.items()},
            prediction_types={name: m.prediction for name, m in self.modalities.items()},
            text=text,
            null_text=null_text,
            cond=cond,
            **static,
        )


def sampler_options(
    trajectory: Trajectory, cond: Iterable[str], options: SampleConfig
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the noise levels, and what is compiled in besides their names and their number."""
    static = {name: getattr(options, name) for name in STATIC}
    static["condition_guidance"] = {n: static["condition_guidance"].get(n, 1.0) for n in cond}
    static |= {n: tuple(sorted(x.items())) for n, x in static.items() if isinstance(x, Mapping)}
    return {n: np.asarray(t, np.float32) for n, t in trajectory.schedule.items()}, static


def load_weights(where: str | Path, *, int8: bool = False, mesh: Mesh | None = None) -> Loaded:
    """Returns the config and the weights of a location: the one door to weights.

    The arguments are those of `Generator.from_checkpoint`; see `train.weights.open_weights`.
    """
    return open_weights(where).load(mesh and sharding.sharded_over(mesh), int8=int8)


def num_steps(task: str, options: SampleConfig) -> int:
    """Returns the sampler steps of a task."""
    return options.task_steps.get(task, options.steps)


def override_sampling(config: Config, **changes: object) -> SampleConfig:
    """Returns config.sample with other values; None keeps one, and `steps` holds for every task.

    Raises UserError for a value out of its range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if "steps" in given:
        given.setdefault("task_steps", {})
    return replace(config, sample=replace(config.sample, **given)).sample
