"""Released FLUX.2 networks as checkpoints: their config and weights, from the published files.

`mf-flux2:WHERE` is Modality Forcing's release: a folder or hub id with model.safetensors,
ae_encoder.safetensors, ae_decoder.safetensors and a config.json that names its variant.
`flux2-klein:WHERE` is Black Forest Labs' network: a file in their layout or diffusers', a folder of
such files, or a pipeline of diffusers (a folder or hub id with transformer/ and vae/). Sizes are
read from the tensors, what a file does not say from the released code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from modality_forcing.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModalityConfig,
    ModelConfig,
    NoiseConfig,
    SampleConfig,
    TextConfig,
)
from modality_forcing.encoders.locate import PATTERNS, below, locate
from modality_forcing.encoders.weights import Checkpoint, open_checkpoint
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import flux2_weights
from modality_forcing.models.flux2_layouts import DIFFUSERS, recognize
from modality_forcing.paths import as_path, exists, is_dir, is_file
from modality_forcing.text_io import read_object
from modality_forcing.train.sharding import Shardings
from modality_forcing.train.state import Params, abstract_model

FORCING, KLEIN = "mf-flux2", "flux2-klein"
_KINDS = (FORCING, KLEIN)
_VARIANTS = ("flux_rgbd_9b_v1", "flux_rgbd_9b_v2")  # without and with mixing of noise levels
_MIXING = {"flux_rgbd_9b_v1": False, "flux_rgbd_9b_v2": True}
_TEXT = {7680: "Qwen/Qwen3-4B", 12288: "Qwen/Qwen3-8B"}  # text encoders by the channels of a state
_TEXT_TOKENS = 512
_DEV_GUIDANCE = 4.0
_GUIDANCE = 4.0  # of the base models and of Modality Forcing's command line
_DISTILLED_STEPS = 4
_FORCING_SIDE, _KLEIN_SIDE = 512, 1024  # pixels
_EVAL_BATCH = 4  # examples of 2560 tokens in 12 B parameters
_PATCH = 16
_HALVES = ("ae_encoder.safetensors", "ae_decoder.safetensors")  # of the autoencoder
_INDEX = "model_index.json"  # of a pipeline of diffusers


@dataclass(frozen=True)
class Released:
    """A released network: its config, and its weights on request."""

    spec: str
    config: Config
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        """The kind, which stands for the step in results."""
        return kind_of(self.spec)

    @property
    def where(self) -> str:
        """The spec."""
        return self.spec

    def load(
        self, shardings: Shardings | None = None, *, dtype: str = "", int8: bool = False
    ) -> tuple[Config, Params]:
        """Returns the config and the weights.

        shardings: from their shapes to their shardings; by default they go to the first device.
        dtype: of weights; by default float32 where the file has that, else bfloat16. Heads are
        float32. int8: matrices of the blocks become `Int8Weight`.
        Raises UserError for files that do not fit the config.
        """
        shapes = self.shapes
        placed = None if shardings is None else shardings(shapes)
        options = flux2_weights.Options(dtype or self.dtype, int8)
        return self.config, flux2_weights.load(shapes, self.checkpoint, options, shardings=placed)

    @property
    def dtype(self) -> str:
        """In which the weights are kept: float32 where the file has that, else bfloat16."""
        names = (name for name in self.checkpoint.shapes if "blocks" in name)  # gates may be wider
        stored = {self.checkpoint.dtypes[name] for name in names}
        return "float32" if stored <= {"F16", "F32", "F64"} else "bfloat16"

    @cached_property
    def shapes(self) -> Params:
        """The shapes of the weights; UserError if the files do not fit, before any is read."""
        _, shapes = abstract_model(self.config, base.build(self.config))
        flux2_weights.match_layout(self.checkpoint, flux2_weights.array_shapes(shapes))
        return shapes


def is_released(spec: str | Path) -> bool:
    """Returns whether a checkpoint is named as `mf-flux2:WHERE` or `flux2-klein:WHERE`."""
    return kind_of(spec) in _KINDS and ":" in str(spec)


def kind_of(spec: str | Path) -> str:
    """Returns "mf-flux2" or "flux2-klein" of a spec of one."""
    return str(spec).partition(":")[0]


def open_released(spec: str | Path, resolution: int | None = None) -> Released:
    """Opens a released network; only headers of its files are read.

    resolution: pixels per side, by default 512 for Modality Forcing and 1024 for klein.

    Raises UserError if the files are missing, or of another network or variant.
    """
    kind, _, where = str(spec).partition(":")
    where = re.sub(r"^(gs|s3):/(?=[^/])", r"\1://", where)  # a Path drops a slash
    if kind not in _KINDS or not where:
        hint = f"give {FORCING}:WHERE or {KLEIN}:WHERE, a path or hub id"
        raise UserError(f"{spec} names no released network", hint=hint)
    if kind == FORCING:
        return _forcing(str(spec), where, resolution or _FORCING_SIDE)
    return _klein(str(spec), where, resolution or _KLEIN_SIDE)


def _forcing(spec: str, where: str, resolution: int) -> Released:
    folder = where
    if is_dir(as_path(where).expanduser() / "transformer"):
        hint = f"name a pipeline of diffusers as {KLEIN}:{where}"
        raise UserError("is not Modality Forcing's release", where=where, hint=hint)
    if where.endswith(".safetensors"):
        checkpoint, folder = open_checkpoint(where), str(as_path(where).parent)
    else:
        checkpoint = open_checkpoint(where, "model")
    model, channels = _model(checkpoint)
    if "depth" not in channels:
        hint = f"name a network without depth as {KLEIN}:{where}"
        raise UserError("has no depth stream", where=where, hint=hint)
    variant = checkpoint.config.get("variant")
    if variant is not None and _MIXING.get(variant) != model.level_mixing:
        found = _VARIANTS[model.level_mixing]
        what = f"config.json names the variant {variant!r}, model.safetensors is {found}"
        raise UserError(what, where=where, hint="download both files again, of one revision")
    root = as_path(folder).expanduser()
    lacks_half = is_dir(root) and not all(is_file(root / name) for name in _HALVES)
    image = _image(channels, "" if lacks_half else f"flux2:{folder}")
    is_beside = is_dir(as_path(folder).expanduser() / "text_encoder")
    depth = ModalityConfig(
        kind="depth",
        patch=_PATCH,
        prediction="x",
        noise=NoiseConfig("plateau", timestep_shift=1.1),
        cond_prob=0.2,
        position_id=1,
        detokenizer_layers=_count(checkpoint, "depth_decoder_blocks"),
    )
    if depth.patch**2 != channels["depth"]:
        what = f"depth_in.weight takes {channels['depth']} channels, not {depth.patch**2}"
        raise UserError(what, where=where, hint="only patches of 16 x 16 pixels are known")
    sample = SampleConfig(steps=50, guidance={"image": _GUIDANCE}, log2_alpha=5, timestep_shift=1.1)
    config = Config(
        name="mf-flux2",
        data=DataConfig(resolution=resolution),
        text=_text(below(folder, "text_encoder") if is_beside else "", channels["text"]),
        modalities={"image": replace(image, cond_prob=0.2), "depth": depth},
        model=model,
        sample=sample,
        eval=EvalConfig(batch=_EVAL_BATCH),
    )
    return Released(spec, config, checkpoint)


def _klein(spec: str, where: str, resolution: int) -> Released:
    root = as_path(where).expanduser()
    if not exists(root):  # a hub id
        root = locate(where, [_INDEX, *(f"transformer/{name}" for name in PATTERNS)]).path
    is_pipeline, is_local = is_dir(root / "transformer"), exists(as_path(where).expanduser())
    if is_local and is_file(root / _HALVES[0]):
        hint = f"name Modality Forcing's network as {FORCING}:{where}"
        raise UserError("has a depth stream", where=where, hint=hint)

    def part(name: str) -> str:
        """Returns where a part of a pipeline is; "" if it is not there."""
        return below(where, name) if is_pipeline and (is_dir(root / name) or not is_local) else ""

    checkpoint = open_checkpoint(below(where, "transformer") if is_pipeline else where)
    model, channels = _model(checkpoint)
    if "depth" in channels:
        hint = f"name Modality Forcing's network as {FORCING}:{where}"
        raise UserError("has a depth stream", where=where, hint=hint)
    autoencoder = f"flux2:{part('vae')}" if part("vae") else ""
    # dev has another text encoder, which is unknown here.
    encoder = "" if model.embedded_guidance else part("text_encoder")
    if model.embedded_guidance:
        sample = SampleConfig(steps=50)
    elif _is_distilled(root, where):
        sample = SampleConfig(steps=_DISTILLED_STEPS)
    else:
        sample = SampleConfig(steps=50, guidance={"image": _GUIDANCE})
    config = Config(
        name="flux2-klein",
        data=DataConfig(resolution=resolution),
        text=_text(encoder, channels["text"]),
        modalities={"image": _image(channels, autoencoder)},
        model=model,
        sample=replace(sample, shift_rule="flux2"),
        eval=EvalConfig(batch=_EVAL_BATCH),
    )
    return Released(spec, config, checkpoint)


def _is_distilled(folder: Path, where: str) -> bool:
    """Returns what model_index.json says; without it, False if the name says "base"."""
    if is_file(index := folder / _INDEX):
        found = read_object(index, hint="download it again").get("is_distilled", False)
        if not isinstance(found, bool):
            what = f"is_distilled is {found!r}"
            raise UserError(what, where=index, hint="it must be true or false: download it again")
        return found
    return "base" not in where.rstrip("/").rpartition("/")[2]


def _image(channels: Mapping[str, int], autoencoder: str) -> ModalityConfig:
    return ModalityConfig(
        kind="image",
        patch=_PATCH,
        prediction="v",
        latent_channels=channels["image"],
        autoencoder=autoencoder,
    )


def _text(folder: str, channels: int) -> TextConfig:
    """Returns the text config, with the encoder of a folder or the one known for its width."""
    encoder = folder or _TEXT.get(channels, "")
    spec = f"qwen3:{encoder}" if encoder else ""
    return TextConfig(_TEXT_TOKENS, vocab_size=0, channels=channels, encoder=spec)


def _model(checkpoint: Checkpoint) -> tuple[ModelConfig, dict[str, int]]:
    """Returns a network's config from its tensors, and the channels of text and modalities."""
    layout, prefix = recognize(checkpoint.shapes, checkpoint.where)
    is_bfl = layout is not DIFFUSERS
    shapes = {name.removeprefix(prefix): shape for name, shape in checkpoint.shapes.items()}
    rows = {path: entry for entry in layout.entries for path in entry.parts}

    def size(path: str, axis: int) -> int:
        """Returns the size of a tensor with an array of ours, along an axis of the file."""
        name = rows[path].name.format(i=0)
        if name not in shapes or axis >= len(shapes[name]):
            raise UserError(f"lacks {name}", where=checkpoint.where, hint="download it again")
        return shapes[name][axis]

    width = size("tokenizer/image/w", 0)
    head_dim = size("single/layers/q_scale", 0)
    heads = width // max(head_dim, 1)
    channels = {"text": size("text_in/w", 1), "image": size("tokenizer/image/w", 1)}
    if is_bfl and "depth_in.weight" in shapes:
        channels["depth"] = shapes["depth_in.weight"][1]
    guided = rows["guidance_embedder/inner/w"].name in shapes
    model = ModelConfig(
        family="flux2",
        width=width,
        mlp_dim=size("double/layers/image/gate", 0) // 2,
        num_layers=_count(checkpoint, "single_blocks" if is_bfl else "single_transformer_blocks"),
        double_layers=_count(checkpoint, "double_blocks" if is_bfl else "transformer_blocks"),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        level_mixing="cross_alpha_img" in shapes,
        embedded_guidance=_DEV_GUIDANCE if guided else 0.0,
        dtype="bfloat16",
    )
    return model, channels


def _count(checkpoint: Checkpoint, blocks: str) -> int:
    """Returns the number of blocks of a kind: one more than the largest index."""
    found = (re.search(rf"(?:^|\.){blocks}\.(\d+)\.", name) for name in checkpoint.shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)
