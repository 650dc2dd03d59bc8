"""Maps tensors of a published file to arrays of the FLUX.2 autoencoder.

There are two layouts: that of diffusers (FLUX.2's vae folder) and that of Black Forest Labs
(ae.safetensors). The latter counts the decoder's resolutions from the finest, keeps the 1 x 1
convolutions inside the halves and stores attention's linear maps as convolutions. Modality
Forcing's release has its halves in two files, whose names lack the half, each with the statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from modality_forcing.encoders.flux2_vae import VAEConfig
from modality_forcing.encoders.locate import locate
from modality_forcing.encoders.weights import Checkpoint, Tensor, open_checkpoint
from modality_forcing.paths import is_file

Half = Literal["encoder", "decoder"]
Arrays = dict[str, tuple[str, str]]  # our array -> last part of the tensor's name, its axes

HALVES: tuple[Half, Half] = ("encoder", "decoder")
# Tensors of a complete file that one half does not read.
UNUSED = {
    "encoder": ("bn.num_batches_tracked", "decoder.", "post_quant_conv."),
    "decoder": ("bn.num_batches_tracked", "encoder.", "quant_conv."),
}

_NORM: Arrays = {"scale": ("weight", ""), "bias": ("bias", "")}
_CONV: Arrays = {"w": ("weight", "oihw->hwio"), "b": ("bias", "")}
_POINT: Arrays = {"w": ("weight", "oi11->io"), "b": ("bias", "")}
_LINEAR: Arrays = {"w": ("weight", "oi->io"), "b": ("bias", "")}
_STATS: Arrays = {"mean": ("running_mean", ""), "var": ("running_var", "")}


@dataclass(frozen=True)
class _Layout:
    """Names of modules. {half} is encoder or decoder, {way} down or up, {quant} (post_)quant_conv.

    {i} counts resolutions in order of computation, {fine} from the finest; {j} counts blocks.
    """

    block: str
    resize: str
    before: str
    attention: str
    after: str
    quant: str
    shortcut: str
    norm_out: str
    inner: dict[str, str]  # modules of attention, by our names
    linear: Arrays  # of attention's q, k, v and out


_DIFFUSERS = _Layout(
    block="{half}.{way}_blocks.{i}.resnets.{j}",
    resize="{half}.{way}_blocks.{i}.{way}samplers.0.conv",
    before="{half}.mid_block.resnets.0",
    attention="{half}.mid_block.attentions.0",
    after="{half}.mid_block.resnets.1",
    quant="{quant}",
    shortcut="conv_shortcut",
    norm_out="{half}.conv_norm_out",
    inner={"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    linear=_LINEAR,
)
_BFL = _Layout(
    block="{half}.{way}.{fine}.block.{j}",
    resize="{half}.{way}.{fine}.{way}sample.conv",
    before="{half}.mid.block_1",
    attention="{half}.mid.attn_1",
    after="{half}.mid.block_2",
    quant="{half}.{quant}",
    shortcut="nin_shortcut",
    norm_out="{half}.norm_out",
    inner={"norm": "norm", "q": "q", "k": "k", "v": "v", "out": "proj_out"},
    linear=_POINT,
)


def tensors(config: VAEConfig, names: Collection[str], half: Half) -> dict[str, Tensor]:
    """Returns the tensor of each array of `Encoder` or `Decoder`, by dotted path.

    names: of the tensors in the file, which decide the layout.
    """
    layout = _BFL if any(".mid." in f".{name}" for name in names) else _DIFFUSERS
    is_whole = any(name.startswith(("encoder.", "decoder.")) for name in names)
    prefix = "" if layout is _DIFFUSERS or is_whole else f"{half}."
    return {
        f"{path}.{array}": Tensor((f"{name}.{last}".removeprefix(prefix),), arrange)
        for path, name, arrays in _modules(config, layout, half)
        for array, (last, arrange) in arrays.items()
    }


def open_halves(location: str) -> dict[Half, Checkpoint]:
    """Returns the checkpoint of each half: one of both, or those of `ae_encoder`, `ae_decoder`.

    Raises UserError as `open_checkpoint`.
    """
    stems: dict[Half, str] = {half: f"ae_{half}" for half in HALVES}
    patterns = [f"{stem}.safetensors" for stem in stems.values()]
    folder = locate(location, [*patterns, "config.json"]).path
    if not all(is_file(folder / name) for name in patterns):
        return dict.fromkeys(HALVES, open_checkpoint(location))
    return {half: open_checkpoint(location, stem) for half, stem in stems.items()}


def _modules(config: VAEConfig, layout: _Layout, half: Half) -> Iterator[tuple[str, str, Arrays]]:
    """Yields the path, the name in the file and the arrays of each module that has arrays."""
    is_encoder = half == "encoder"
    words = {"half": half, "way": "down", "quant": "quant_conv"}
    if not is_encoder:
        words |= {"way": "up", "quant": "post_quant_conv"}
    widths = config.widths if is_encoder else config.decoder_widths[::-1]
    last = len(widths) - 1
    yield "conv_in", f"{half}.conv_in", _CONV
    for i, width in enumerate(widths):
        words |= {"i": str(i), "fine": str(i if is_encoder else last - i)}
        for j in range(config.layers + (not is_encoder)):
            widens = j == 0 and width != widths[max(i - 1, 0)]
            name = layout.block.format(j=j, **words)
            yield from _residual(layout, f"stages.{i}.blocks.{j}", name, widens)
        if i < last:
            yield f"stages.{i}.resize", layout.resize.format(**words), _CONV
    yield from _residual(layout, "mid.before", layout.before.format(**words))
    attention = layout.attention.format(**words)
    for ours, theirs in layout.inner.items():
        arrays = _NORM if ours == "norm" else layout.linear
        yield f"mid.attention.{ours}", f"{attention}.{theirs}", arrays
    yield from _residual(layout, "mid.after", layout.after.format(**words))
    yield "norm_out", layout.norm_out.format(**words), _NORM
    yield "conv_out", f"{half}.conv_out", _CONV
    yield "quant", layout.quant.format(**words), _POINT
    yield "latent_norm", "bn", _STATS


def _residual(
    layout: _Layout, path: str, name: str, widens: bool = False
) -> Iterator[tuple[str, str, Arrays]]:
    for i in "12":
        yield f"{path}.norm{i}", f"{name}.norm{i}", _NORM
        yield f"{path}.conv{i}", f"{name}.conv{i}", _CONV
    if widens:
        yield f"{path}.shortcut", f"{name}.{layout.shortcut}", _POINT
