"""Which tensor of a published file is which array of the FLUX.2 autoencoder.

Two layouts are about: that of diffusers (FLUX.2's vae folder) and that of Black Forest Labs (ae.safetensors), which counts the
decoder's resolutions from the finest, keeps the 1 x 1 convolutions in the halves and attention's maps as convolutions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from modality_forcing.encoders.flux2_vae import VAEConfig
from modality_forcing.encoders.weights import Tensor

Half = Literal["encoder", "decoder"]
Kind = dict[
    str, tuple[str, str]
]  # our array -> the tensor's last name, and how its axes are arranged

HALVES: tuple[Half, Half] = ("encoder", "decoder")
# What a whole file holds and nobody reads who wants one half of it, or both.
UNUSED = {
    "encoder": ("bn.num_batches_tracked", "decoder.", "post_quant_conv."),
    "decoder": ("bn.num_batches_tracked", "encoder.", "quant_conv."),
    "vae": ("bn.num_batches_tracked",),
}

_NORM: Kind = {"scale": ("weight", ""), "bias": ("bias", "")}
_CONV: Kind = {"w": ("weight", "oihw->hwio"), "b": ("bias", "")}
_POINT: Kind = {"w": ("weight", "oi11->io"), "b": ("bias", "")}
_LINEAR: Kind = {"w": ("weight", "oi->io"), "b": ("bias", "")}
_STATS: Kind = {"mean": ("running_mean", ""), "var": ("running_var", "")}


@dataclass(frozen=True)
class _Layout:
    """Names of modules. {half} is encoder or decoder, {way} down or up, {quant} quant_conv or post_quant_conv.

    {i} counts resolutions as they are computed, {fine} from the finest; {j} counts blocks.
    """

    block: str
    resize: str
    before: str
    attention: str
    after: str
    quant: str
    shortcut: str
    norm_out: str
    inner: dict[str, str]  # of attention, by ours
    map: Kind  # how attention's q, k, v and out are stored


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
    map=_LINEAR,
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
    map=_POINT,
)


def tensors(
    config: VAEConfig, names: Collection[str], part: Literal["encoder", "decoder", "vae"] = "vae"
) -> dict[str, Tensor]:
    """Returns, for each array of `Encoder`, `Decoder` or `VAE` by dotted path, where it is in the file with these names."""
    layout = _BFL if any(".mid." in name for name in names) else _DIFFUSERS
    if part == "vae":
        return {
            f"{half}.{path}": tensor
            for half in HALVES
            for path, tensor in _half(config, layout, half).items()
        }
    return _half(config, layout, part)


def _half(config: VAEConfig, layout: _Layout, half: Half) -> dict[str, Tensor]:
    return {
        f"{path}.{array}": Tensor((f"{name}.{last}",), arrange)
        for path, name, kind in _modules(config, layout, half)
        for array, (last, arrange) in kind.items()
    }


def _modules(config: VAEConfig, layout: _Layout, half: Half) -> Iterator[tuple[str, str, Kind]]:
    """Yields the path, the name in the file and the kind of each module that holds arrays."""
    encodes = half == "encoder"
    words = {
        "half": half,
        "way": "down" if encodes else "up",
        "quant": "quant_conv" if encodes else "post_quant_conv",
    }
    widths = config.widths if encodes else config.decoder_widths[::-1]
    last = len(widths) - 1
    yield "conv_in", f"{half}.conv_in", _CONV
    for i, width in enumerate(widths):
        words |= {"i": str(i), "fine": str(i if encodes else last - i)}
        for j in range(config.layers + (not encodes)):
            widens = j == 0 and width != widths[max(i - 1, 0)]
            yield from _residual(
                layout, f"levels.{i}.blocks.{j}", layout.block.format(j=j, **words), widens
            )
        if i < last:
            yield f"levels.{i}.resize", layout.resize.format(**words), _CONV
    yield from _residual(layout, "middle.before", layout.before.format(**words))
    attention = layout.attention.format(**words)
    for ours, theirs in layout.inner.items():
        yield (
            f"middle.attention.{ours}",
            f"{attention}.{theirs}",
            _NORM if ours == "norm" else layout.map,
        )
    yield from _residual(layout, "middle.after", layout.after.format(**words))
    yield "norm_out", layout.norm_out.format(**words), _NORM
    yield "conv_out", f"{half}.conv_out", _CONV
    yield "quant", layout.quant.format(**words), _POINT
    yield "stats", "bn", _STATS


def _residual(
    layout: _Layout, path: str, name: str, widens: bool = False
) -> Iterator[tuple[str, str, Kind]]:
    for i in "12":
        yield f"{path}.norm{i}", f"{name}.norm{i}", _NORM
        yield f"{path}.conv{i}", f"{name}.conv{i}", _CONV
    if widens:
        yield f"{path}.shortcut", f"{name}.{layout.shortcut}", _POINT
