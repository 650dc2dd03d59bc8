"""Every knob there is, as frozen dataclasses, and the strict path from a config file with overrides to one of them."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modality_forcing.errors import UserError


@dataclass(frozen=True)
class NoiseConfig:
    """A modality's noise levels in training: "logit_normal" or "plateau", shifted by timestep_shift in logit space (paper: 1.1)."""

    distribution: Literal["logit_normal", "plateau"] = "logit_normal"
    timestep_shift: float = 1.1
    sigma: float = 1.0

    def __post_init__(self):
        if not self.sigma > 0:
            raise UserError(f"noise.sigma is {self.sigma:g}", hint="it must be above 0")


@dataclass(frozen=True)
class ModalityConfig:
    """One modality: which file of modalities/ it is, how it becomes tokens, and how it is trained."""

    kind: str = "image"  # modality_forcing/modalities/<kind>.py
    patch: int = 16  # pixels a side of one token
    prediction: Literal["x", "v"] = "x"
    noise: NoiseConfig = NoiseConfig()
    loss_weight: float = 1.0  # of its loss in the sum
    cond_prob: float = 0.0  # probability that training gives it clean, as conditioning (paper: 0.2)
    position_id: int = 0  # first rotary axis: image 0, depth 1
    detokenizer_layers: int = (
        0  # blocks over its own tokens before its head (public code: 4 for depth)
    )
    latent_channels: int = (
        0  # image: channels of a frozen autoencoder's latent per token; 0: pixels
    )
    autoencoder: str = (
        ""  # image: "flux2:PATH" makes the latents, where no cache has them, and pictures of them
    )


@dataclass(frozen=True)
class TextConfig:
    """Text conditioning: words hashed into a table learned in the model (vocabulary > 0), or a frozen encoder's states."""

    tokens: int = 12
    vocab_size: int = 2048  # rows of the learned table; 0: states come with the batch
    channels: int = 64  # of a row, or of a frozen encoder's state (UMT5-XXL: 4096)
    encoder: str = ""  # "umt5:PATH" makes the states, where no cache has them
    text_dropout: float = 0.1  # probability that training replaces the caption by the empty one


@dataclass(frozen=True)
class ModelConfig:
    """The transformer's size and how it is computed."""

    width: int = 1024
    mlp_dim: int = 3072
    num_layers: int = 30
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 128
    rope_theta: float = 2000.0  # as in the public code
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; weights are float32
    attention: Literal["auto", "einsum", "splash", "cudnn"] = (
        "auto"  # auto: splash on TPU, cudnn on GPU, einsum on CPU
    )
    remat: Literal["none", "elementwise", "full"] = "none"  # what the backward pass computes again
    unroll: int = 1  # blocks per iteration of the scan over blocks

    def __post_init__(self):
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise UserError(
                f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}"
            )
        if self.head_dim % 8:
            raise UserError(
                f"model.head_dim {self.head_dim} is not a multiple of 8 (four rotary axes, in pairs)"
            )


@dataclass(frozen=True)
class DataConfig:
    """Where records come from and how much of their depth training sees."""

    source: Literal["scenes", "folder", "prepared"] = "scenes"
    resolution: int = 32
    num_scenes: int = 1_000_000  # scenes: how many there are
    sparsity_patterns: Mapping[str, float] = field(
        default_factory=dict
    )  # weights of sparse patterns; empty: depth as it comes
    workers: int = 1  # loader processes
    cache: str = (
        ""  # prepared: what mforce encode wrote; with a mixture, the folder that holds one for each
    )
    root: str = (
        ""  # folder, prepared: where it is; with a mixture, the folder that holds the prepared ones
    )
    mixture: Mapping[str, float] = field(
        default_factory=dict
    )  # prepared: weights of folders below root; empty: root itself
    split: str = "train"  # prepared: to train on; of a folder that holds a single one, that one
    eval_split: str = "val"  # prepared: to evaluate on, of those folders that have it
    min_crop: float = 1.0  # least side of a random square window, as a part of the shorter side; 1: the centre square
    crop_jitter: float = (
        0.0  # how far a window may stray from the middle, as a part of the room there is
    )
    flip_prob: float = 0.0  # probability of mirroring left and right
    depth_scale: float = (
        0.0  # folder: units per stored number; 16-bit PNGs need one, .npy is 1 without
    )
    depth_unit: Literal["metric", "sfm", "relative"] = "relative"  # folder: of the depth


@dataclass(frozen=True)
class MeshConfig:
    """How a run is spread over devices: train/sharding.py says what the axes and presets mean."""

    data: int = 1  # replicas within a slice
    fsdp: int = (
        -1
    )  # shards of the weights, the optimiser and the EMA; -1: all devices that are left
    tensor: int = 1  # shards of heads and FFN; 1 is right for every size of the family
    slices: int = 1  # TPU slices, joined by the data-centre network; each holds a whole copy
    preset: Literal["zero2", "fsdp", "replicated"] = "zero2"


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser and the loop."""

    steps: int = 1000
    batch: int = 32
    grad_accum_steps: int = 1  # micro-batches that a step adds up, in float32
    learning_rate: float = 1e-3
    base_width: int = (
        0  # width that it was found at: train/optim.py scales it to model.width; 0: as it stands
    )
    schedule: Literal["cosine", "wsd"] = "wsd"
    warmup_fraction: float = 0.05  # share of the steps
    decay_fraction: float = 0.2  # share of the steps, at the end (wsd)
    weight_decay: float = 0.01  # on matrices only
    b1: float = 0.9
    b2: float = 0.95
    grad_clip_norm: float = 1.0  # global gradient norm
    ema_decay: float = 0.999
    t_min: float = 0.05  # clamp of t in x-prediction's velocity (public code: 0.05; short runs learn faster with 0.3)
    distill: bool = (
        False  # self-distillation towards the initial text-to-image model (paper, eq. 8)
    )
    distill_high: float = 1.0
    distill_low: float = 0.1
    init_from: str = ""  # a checkpoint folder to start from; those of allow_missing_modalities are initialized instead
    branch_from: str = ""  # a longer run of this config, to go on from (train/branch.py); such runs share its constant phase
    allow_missing_modalities: tuple[
        str, ...
    ] = ()  # modalities whose own modules the initial checkpoint may lack
    log_every: int = 20
    save_every: int = 500
    max_to_keep: int = 1  # checkpoints
    keep_at_steps: tuple[
        int, ...
    ] = ()  # steps whose checkpoints stay, however many are kept: where other runs branch off


@dataclass(frozen=True)
class SampleConfig:
    """Generation."""

    steps: int = 50
    task_steps: Mapping[str, int] = field(
        default_factory=dict
    )  # of single tasks instead, such as {"i2d": 1}
    solver: Literal["euler", "heun"] = "euler"
    guidance: Mapping[str, float] = field(
        default_factory=dict
    )  # per modality, 1 where absent (paper: image 4)
    log2_alpha: float = 5.0  # joint: > 0 image first (better depth), < 0 depth first (paper: 5)
    spacing: Literal["uniform", "arc"] = "uniform"
    timestep_shift: float = 1.1  # shift of the sampling grid


@dataclass(frozen=True)
class EvalConfig:
    """Held-out evaluation."""

    examples: int = 256
    batch: int = 64


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str = "run"
    seed: int = 0
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
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
        _check_numbers(to_dict(self))
        if self.seed >= 2**32:
            raise UserError(
                f"seed is {self.seed}", hint="it must be below 2**32"
            )  # jax reads no more bits of it
        given = {n: m.cond_prob for n, m in self.modalities.items()}
        if len(given) < 2 and any(given.values()):
            raise UserError(
                f"modalities.{next(iter(given))}.cond_prob needs a second modality to be predicted from it"
            )
        if min(given.values()) < 0 or sum(given.values()) > 1:
            raise UserError(
                f"the modalities' cond_prob are {given}", hint="they must sum to at most 1"
            )
        if unknown := sorted(set(self.sample.guidance) - set(given)):
            raise UserError(
                f"sample.guidance names {unknown[0]!r}",
                hint=f"the modalities are {', '.join(given)}",
            )
        self._check_encoders()
        if self.train.distill and len(given) < 2:
            raise UserError("train.distill needs a second modality to hold the first against")
        if len({m.position_id for m in self.modalities.values()}) != len(given):
            raise UserError("two modalities share a position_id")
        if self.train.batch % self.train.grad_accum_steps:
            raise UserError(
                f"train.batch {self.train.batch} is not a multiple of train.grad_accum_steps {self.train.grad_accum_steps}"
            )
        if self.model.kv_heads % self.mesh.tensor:
            raise UserError(
                f"model.kv_heads {self.model.kv_heads} is not a multiple of mesh.tensor {self.mesh.tensor}"
            )
        if self.model.attention == "splash":
            check_splash(self)
        for name, m in self.modalities.items():
            if self.data.resolution % m.patch:
                raise UserError(
                    f"data.resolution {self.data.resolution} is not a multiple of modalities.{name}.patch {m.patch}"
                )

    def _check_encoders(self) -> None:
        if self.text.encoder and self.text.vocab_size:
            raise UserError(
                "text.encoder and text.vocab_size are two ways to read text",
                hint="set text.vocab_size to 0",
            )
        for name, m in self.modalities.items():
            if m.autoencoder and not m.latent_channels:
                raise UserError(
                    f"modalities.{name}.autoencoder needs modalities.{name}.latent_channels, the channels of a latent"
                )
        if self.data.cache and self.data.source != "prepared":
            raise UserError(
                "data.cache goes with data.source=prepared",
                hint="prepare the records first, and encode those",
            )


def tokens(config: Config) -> dict[str, int]:
    """Returns the tokens of one example by stream: the text's, then each modality's."""
    return {"text": config.text.tokens} | {
        n: (config.data.resolution // m.patch) ** 2 for n, m in config.modalities.items()
    }


def check_splash(config: Config) -> None:
    """Raises UserError where the TPU attention kernel does not take this config's shapes: it works in one block."""
    lengths = tokens(config)
    alone = {
        n: lengths[n] for n, m in config.modalities.items() if m.detokenizer_layers
    }  # detokenizers see their own tokens only
    for name, n in {"all streams": sum(lengths.values()), **alone}.items():
        if n % 128 or n > 1024:
            hint = "pad with text.tokens, change data.resolution or patch, or set model.attention=einsum (slow on TPU)"
            raise UserError(
                f"{n} tokens of {name}: the TPU attention kernel takes multiples of 128 up to 1024",
                hint=hint,
            )
    if config.model.head_dim % 128:
        hint = "set model.head_dim to 128 (or 256, for v6e and tpu7x), or model.attention=einsum"
        raise UserError(
            f"model.head_dim is {config.model.head_dim}: the TPU attention kernel takes multiples of 128",
            hint=hint,
        )


# All other integers count something of which there must be one.
_MAY_BE_ZERO = (
    "seed",
    "vocab_size",
    "workers",
    "position_id",
    "detokenizer_layers",
    "latent_channels",
    "base_width",
)
_REST = ("data", "fsdp")  # of the mesh: -1 takes the devices that are left

# Where numbers of other keys make sense: least, most, whether these are allowed themselves, and how to say it.
_RANGES: dict[str, tuple[float, float, bool, bool, str]] = {
    **dict.fromkeys(
        ("learning_rate", "grad_clip_norm", "rope_theta"), (0, math.inf, False, False, "above 0")
    ),
    **dict.fromkeys(
        ("loss_weight", "weight_decay", "distill_high", "distill_low"),
        (0, math.inf, True, False, "at least 0"),
    ),
    **dict.fromkeys(("depth_scale",), (0, math.inf, True, False, "at least 0")),
    **dict.fromkeys(
        (
            "cond_prob",
            "text_dropout",
            "warmup_fraction",
            "decay_fraction",
            "crop_jitter",
            "flip_prob",
        ),
        (0, 1, True, True, "from 0 to 1"),
    ),
    **dict.fromkeys(("b1", "b2", "ema_decay"), (0, 1, True, False, "at least 0 and below 1")),
    **dict.fromkeys(("t_min", "min_crop"), (0, 1, False, True, "above 0 and at most 1")),
    "timestep_shift": (-16, 16, True, True, "from -16 to 16"),
    "log2_alpha": (-64, 64, True, True, "from -64 to 64"),
}


def _check_numbers(tree: Mapping[str, Any], path: str = "") -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _check_numbers(value, f"{path}{key}.")
        elif key in _RANGES:
            least, most, closed, closed_above, told = _RANGES[key]
            if not (
                least < value < most
                or (closed and value == least)
                or (closed_above and value == most)
            ):  # NaN fails all
                raise UserError(f"{path}{key} is {value}", hint=f"it must be {told}")
        elif key in _REST and value == -1:
            continue
        elif type(value) is int and value < (least := int(key not in _MAY_BE_ZERO)):
            raise UserError(f"{path}{key} is {value}", hint=f"it must be at least {least}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}{key} is {value}", hint="it must be a finite number")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass as nested plain dicts, lists and scalars: what is saved beside a checkpoint."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def from_dict(tree: Mapping[str, Any], kind: type = Config, path: str = "") -> Any:
    """Builds a dataclass from nested dicts; raises UserError for an unknown key or a value of the wrong type."""
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
        raise UserError(
            f"{path} is {value!r}", hint=f"choose one of {', '.join(map(str, arguments))}"
        )
    elif origin in (Mapping, types.MappingProxyType) or origin is dict or hint is Mapping:
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


def unknown_key(key: str, path: str, known: Iterable[str]) -> UserError:
    """Returns the error for a dotted key of which no key below `path` ("train.", or "") goes on, with the nearest that does."""
    names = list(known)
    near = difflib.get_close_matches(key.removeprefix(path).partition(".")[0], names, n=1)
    told = (
        f"did you mean {path}{near[0]}?"
        if near
        else f"known here: {', '.join(names) or 'nothing below this'}"
    )
    return UserError(f"unknown config key {key!r}", hint=told)
