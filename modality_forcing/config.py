"""Every setting, as frozen dataclasses, and strict conversion from and to nested dicts."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modality_forcing.config_keys import unknown_key
from modality_forcing.config_ranges import check_numbers
from modality_forcing.errors import UserError


def _check_multiple(key: str, value: int, divisor_key: str, divisor: int) -> None:
    if divisor < 1 or value % divisor:
        raise UserError(f"{key} {value} is not a multiple of {divisor_key} {divisor}")


MATRICES = ("q", "k", "v", "out", "gate", "up", "down")  # of each block


@dataclass(frozen=True)
class NoiseConfig:
    """Distribution of a modality's noise levels in training (paper: shift 1.1 for latents)."""

    # plateau: logit-normal below its mode, constant density above it (for depth).
    distribution: Literal["logit_normal", "plateau"] = "logit_normal"
    timestep_shift: float = 1.1  # in logit space
    sigma: float = 1.0  # in logit space


@dataclass(frozen=True)
class ModalityConfig:
    """One modality: its kind, its tokens, and how it is trained."""

    kind: str = "image"  # modality_forcing/modalities/<kind>.py
    patch: int = 16  # pixels per side of a token
    prediction: Literal["x", "v"] = "x"  # the network predicts clean tokens or the velocity
    noise: NoiseConfig = NoiseConfig()  # noise levels in training
    loss_weight: float = 1.0  # weight of its loss in the sum
    cond_prob: float = 0.0  # probability of being clean, as conditioning (paper: 0.2)
    position_id: int = 0  # first rotary axis: image 0, depth 1
    detokenizer_layers: int = 0  # on its own tokens, before its head (public code: 4 for depth)
    latent_channels: int = 0  # image: of a frozen autoencoder's latents; 0: pixels
    autoencoder: str = ""  # image: "flux2:PATH"; encodes where there is no cache, and decodes
    cond_prob_with: Mapping[str, float] = field(default_factory=dict)  # and others, as {"a+b": 0.1}


@dataclass(frozen=True)
class TextConfig:
    """Text conditioning: hashed words in a learned table, or states of a frozen encoder."""

    tokens: int = 12  # tokens per caption; longer captions are cut
    vocab_size: int = 2048  # rows of the learned table; 0: a frozen encoder's states
    channels: int = 64  # of a row or a state (UMT5-XXL: 4096, Qwen3-4B: 7680, Qwen3-8B: 12288)
    encoder: str = ""  # "umt5:PATH" or "qwen3:PATH"; encodes where there is no cache
    text_dropout: float = 0.1  # probability of the empty caption in training


@dataclass(frozen=True)
class ModelConfig:
    """The transformer's size and how it is computed."""

    family: Literal["forcing", "flux2"] = "forcing"  # models/dit.py or models/flux2.py
    width: int = 1024  # features per token
    mlp_dim: int = 3072  # hidden features of the gated MLP
    num_layers: int = 30  # transformer blocks; flux2: those that all streams share
    double_layers: int = 0  # flux2: blocks before them, with weights of its own for each stream
    heads: int = 8  # query heads of attention
    kv_heads: int = 2  # key and value heads (grouped-query attention)
    head_dim: int = 128  # features per head
    rope_theta: float = 2000.0  # as in the public code
    level_mixing: bool = True  # condition each modality on the noise levels of the others too
    embedded_guidance: float = 0.0  # flux2: guidance given to the network (dev: 4); 0: none
    level_dtype: Literal["float32", "bfloat16"] = "float32"  # flux2: of noise levels
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; weights are float32
    # auto: splash on TPU, cudnn on GPU, einsum on CPU.
    attention: Literal["auto", "einsum", "splash", "cudnn"] = "auto"
    remat: Literal["none", "elementwise", "full"] = "none"  # what the backward pass recomputes
    unroll: int = 1  # layers per iteration of the scan over layers

    def __post_init__(self):
        _check_multiple("model.heads", self.heads, "model.kv_heads", self.kv_heads)
        if self.double_layers and self.family != "flux2":
            hint = "set it to 0, or model.family=flux2"
            raise UserError(f"model.double_layers is {self.double_layers}", hint=hint)
        if self.head_dim % 8:
            hint = "there are four rotary axes, in pairs"
            raise UserError(f"model.head_dim {self.head_dim} is not a multiple of 8", hint=hint)


@dataclass(frozen=True)
class DataConfig:
    """Where records come from, and what training sees of them."""

    source: Literal["scenes", "folder", "prepared"] = "scenes"  # scenes: the procedural world
    resolution: int = 32  # pixels per side of the square the model works at
    num_scenes: int = 1_000_000  # scenes: how many there are
    world: Literal["varied", "plain"] = "varied"  # scenes: plain has few, large, bare objects
    sparsity_patterns: Mapping[str, float] = field(default_factory=dict)  # weights; empty: all
    workers: int = 1  # loader processes
    cache: str = ""  # prepared: written by mforce encode; with a mixture, the folder of the caches
    root: str = ""  # folder, prepared: where it is; with a mixture, the folder of the prepared ones
    mixture: Mapping[str, float] = field(default_factory=dict)  # weights of folders below root
    split: str = "train"  # prepared: split to train on; if a set has only one, that one
    eval_split: str = "val"  # prepared: split to evaluate on, of the sets that have it
    min_crop: float = 1.0  # least side of a random square, of the shorter side; 1: center square
    crop_jitter: float = 0.0  # how far a square may be off center, of the room there is
    flip_prob: float = 0.0  # probability of a horizontal flip
    depth_scale: float = 0.0  # folder: units per count of a 16-bit PNG; .npy of floats need none
    depth_invalid: float = 0.0  # folder: a stored number that means unknown, besides 0, as 65535
    depth_max: float = 0.0  # folder: what is farther, in units, is unknown; 0: no maximum
    depth_orientation: Literal["", "upright", "stored"] = ""  # folder: where EXIF tags differ
    depth_unit: Literal["metric", "sfm", "relative"] = "relative"  # folder: what depth means


@dataclass(frozen=True)
class MeshConfig:
    """How a run is spread over devices; train/sharding.py defines the axes and presets."""

    data: int = 1  # replicas within a slice
    fsdp: int = -1  # shards of weights, optimizer state and EMA; -1: all devices that are left
    tensor: int = 1  # shards of heads and MLP; 1 is right for every size of the family
    slices: int = 1  # TPU slices, joined by the data-center network; each holds a full copy
    preset: Literal["zero2", "fsdp", "replicated"] = "zero2"  # what is sharded along fsdp, and when


@dataclass(frozen=True)
class TrainConfig:
    """The optimizer and the loop."""

    steps: int = 1000  # optimizer updates
    batch: int = 32  # examples per step, over all devices
    grad_accum_steps: int = 1  # micro-batches per step, added in float32
    learning_rate: float = 1e-3  # peak of the schedule
    base_width: int = 0  # width at which learning_rate was tuned, to scale it by width; 0: off
    schedule: Literal["cosine", "wsd"] = "wsd"  # wsd: warm-up, constant, decay
    warmup_fraction: float = 0.05  # of the steps
    decay_fraction: float = 0.2  # of the steps, at the end (wsd)
    weight_decay: float = 0.01  # of matrices only
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.95  # decay of the second moment
    grad_clip_norm: float = 1.0  # global
    ema_decay: float = 0.999  # of the averaged weights, which are evaluated and exported
    t_min: float = 0.05  # least t in the loss' velocity (public code: 0.05; short runs: 0.3)
    distill: bool = False  # self-distillation to the initial text-to-image model (paper, eq. 8)
    distill_high: float = 1.0  # weight of that loss where the other modality is pure noise
    distill_low: float = 0.1  # weight of that loss where the other modality is clean
    init_from: str = ""  # a checkpoint or export, hf:ORG/NAME, flux2-klein:PATH, mf-flux2:PATH
    branch_from: str = ""  # a longer run of this config, whose constant phase this one shares
    allow_missing_modalities: tuple[str, ...] = ()  # those init_from may lack; they start fresh
    copy_missing_from: str = ""  # a modality whose weights those copy, where shapes agree
    freeze: tuple[str, ...] = ()  # modules or weights that do not train; * is any part of a path
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # of freeze and the distill teacher
    lora_rank: int = 0  # of trained updates of block matrices, which are frozen; 0: off
    lora_alpha: float = 0.0  # the updates are scaled by lora_alpha / lora_rank; 0: by 1
    lora_targets: tuple[str, ...] = MATRICES  # the matrices that get one
    log_every: int = 20  # steps between rows of metrics
    save_every: int = 500  # steps between checkpoints
    save_every_minutes: float = 0.0  # also after so much time without one; 0: off
    max_to_keep: int = 2  # checkpoints; the last but one is for a damaged last one
    on_spike: Literal["stop", "skip", "rollback"] = "stop"  # train/spikes.py
    spike_deviations: float = 0.0  # a loss so far above its running mean is a spike; 0: only NaN
    spike_tries: int = 3  # updates left out in a row, or rollbacks in a run, before it stops
    async_save: bool = True  # write checkpoints during training, from a copy in host memory
    keep_at_steps: tuple[int, ...] = ()  # also keep these, for other runs to branch from
    # Compiled programs on disk: a folder or address; auto: compiled/ in the workdir; empty: none.
    compilation_cache: str = "auto"

    @property
    def lora_scale(self) -> float:
        """The factor of low-rank updates."""
        return self.lora_alpha / self.lora_rank if self.lora_alpha and self.lora_rank else 1.0


@dataclass(frozen=True)
class SampleConfig:
    """Generation."""

    steps: int = 50  # sampler steps of tasks that task_steps does not name
    task_steps: Mapping[str, int] = field(default_factory=dict)  # of single tasks, as {"i2d": 1}
    solver: Literal["euler", "heun"] = "euler"  # heun: second order, two evaluations a step
    guidance: Mapping[str, float] = field(default_factory=dict)  # by text; 1 (paper: image 4)
    # Weight of what is given, by modality; default 1; above 1 it is followed more closely.
    condition_guidance: Mapping[str, float] = field(default_factory=dict)
    log2_alpha: float = 5.0  # joint: > 0 image first (better depth), < 0 depth first (paper: 5)
    timestep_shift: float = 1.1  # of the sampling grid
    shift_rule: Literal["constant", "flux2"] = "constant"  # flux2: from image tokens and steps
    t_min: float = 0.001  # least t in x-prediction's velocity (public code: 0.05)


@dataclass(frozen=True)
class EvalConfig:
    """Held-out evaluation, of checkpoints and while training."""

    examples: int = 256  # held-out records of a checkpoint that are scored
    batch: int = 64  # records scored at a time
    every: int = 0  # steps between evaluations while training; 0: none
    while_training_examples: int = 64  # held-out records of each of those
    while_training_steps: int = 10  # sampler steps of those, at most
    benchmark: str = ""  # real sets scored while training, as "nyuv2,diode"
    benchmark_root: str = ""  # the folder that they are unpacked in
    benchmark_frames: int = 32  # of each set while training, evenly spaced


@dataclass(frozen=True)
class Config:
    """One run. Raises UserError for values that are out of range or do not go together."""

    name: str = "run"  # prefix of log lines
    seed: int = 0  # of initial weights, noise and the order of records
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    # By name, in the order of the token sequence. Text is modulated by the first one's noise level.
    modalities: Mapping[str, ModalityConfig] = field(
        default_factory=lambda: {"image": ModalityConfig()}
    )
    model: ModelConfig = ModelConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    eval: EvalConfig = EvalConfig()

    def __post_init__(self):
        if not self.modalities:
            raise UserError("modalities is empty", hint="name at least one")
        check_numbers(to_dict(self))
        if self.seed >= 2**32:  # jax reads no more bits of it
            raise UserError(f"seed is {self.seed}", hint="it must be below 2**32")
        self._check_modalities()
        self._check_encoders()
        self._check_lora()
        batch, accum_steps = self.train.batch, self.train.grad_accum_steps
        _check_multiple("train.batch", batch, "train.grad_accum_steps", accum_steps)
        _check_multiple("model.kv_heads", self.model.kv_heads, "mesh.tensor", self.mesh.tensor)
        if self.model.attention == "splash":
            check_splash(self)

    def _check_lora(self) -> None:
        targets = self.train.lora_targets
        if unknown := sorted(set(targets) - set(MATRICES)):
            hint = f"the matrices of a block are {', '.join(MATRICES)}"
            what = f"train.lora_targets names {unknown[0]!r}, which is not a matrix of a block"
            raise UserError(what, hint=hint)
        if self.train.lora_rank and not targets:
            raise UserError("train.lora_targets is empty", hint="name at least one matrix")

    def _check_modalities(self) -> None:
        names = list(self.modalities)
        cond_prob = {name: m.cond_prob for name, m in self.modalities.items()}
        if len(names) < 2 and any(cond_prob.values()):
            key = f"modalities.{names[0]}.cond_prob"
            raise UserError(f"{key} needs a second modality to be predicted from it")
        if sum(cond_prob.values()) > 1:
            hint = "they must sum to at most 1"
            raise UserError(f"the modalities' cond_prob are {cond_prob}", hint=hint)
        if (original := self.train.copy_missing_from) and original not in names:
            hint = f"the modalities are {', '.join(names)}"
            what = f"train.copy_missing_from names {original!r}, which is not a modality"
            raise UserError(what, hint=hint)
        for key in ("guidance", "condition_guidance"):
            if unknown := sorted(set(getattr(self.sample, key)) - set(names)):
                hint = f"the modalities are {', '.join(names)}"
                what = f"sample.{key} names {unknown[0]!r}, which is not a modality"
                raise UserError(what, hint=hint)
        if self.train.distill and len(names) < 2:
            raise UserError("train.distill needs a second modality to hold the first against")
        if len({m.position_id for m in self.modalities.values()}) != len(names):
            raise UserError("two modalities share a position_id")
        for name, m in self.modalities.items():
            patch = f"modalities.{name}.patch"
            _check_multiple("data.resolution", self.data.resolution, patch, m.patch)

    def _check_encoders(self) -> None:
        if self.text.encoder and self.text.vocab_size:
            what = "text.encoder and text.vocab_size are two ways to read text"
            raise UserError(what, hint="set text.vocab_size to 0")
        for name, m in self.modalities.items():
            if m.autoencoder and not m.latent_channels:
                what = f"modalities.{name}.autoencoder needs modalities.{name}.latent_channels"
                raise UserError(what, hint="set it to the channels of a latent")
        if self.data.cache and self.data.source != "prepared":
            hint = "prepare the records first, and encode those"
            raise UserError("data.cache goes with data.source=prepared", hint=hint)


def check_splash(config: Config) -> None:
    """Raises UserError where the TPU attention kernel does not fit."""
    if (head_dim := config.model.head_dim) % 128:
        raise UserError(
            f"model.head_dim is {head_dim}: the TPU attention kernel takes multiples of 128",
            hint="set model.head_dim to 128 (or 256, for v6e and tpu7x), or model.attention=einsum",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass as nested plain dicts, lists and scalars, as saved with a checkpoint."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def from_dict(tree: Mapping[str, Any], kind: type = Config, path: str = "") -> Any:
    """Builds a dataclass from nested dicts.

    Raises UserError for an unknown key and a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise unknown_key(f"{path}{key}", path, hints)
    return kind(**{key: _typed(value, hints[key], f"{path}{key}") for key, value in tree.items()})


def _typed(value: Any, hint: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_dict(value, typing.cast(type, hint), f"{path}.")
    elif origin is Literal:
        if value in arguments:
            return value
        known = ", ".join(map(str, arguments))
        raise UserError(f"{path} is {value!r}", hint=f"choose one of {known}")
    elif origin is collections.abc.Mapping:
        if isinstance(value, Mapping):
            return {k: _typed(v, arguments[1], f"{path}.{k}") for k, v in value.items()}
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_typed(v, arguments[0], path) for v in value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is not float and type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise UserError(f"{path} is {value!r}", hint=f"it must be of type {wanted}")
