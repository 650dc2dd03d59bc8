"""Names of the FLUX.2 autoencoder's tensors in two layouts; tests/parity reads complete files."""

from __future__ import annotations

from collections import Counter

import pytest

from modality_forcing.encoders.flux2_names import UNUSED, tensors
from modality_forcing.encoders.flux2_vae import VAEConfig
from modality_forcing.encoders.weights import Tensor
from tests import vae

DIFFUSERS = ["encoder.conv_in.weight", "encoder.mid_block.resnets.0.conv1.weight"]
BFL = ["encoder.mid.block_1.conv1.weight"]
CONV, POINT = "oihw->hwio", "oi11->io"

PLACES = {
    "encoder.conv_in.w": ("encoder.conv_in.weight", "encoder.conv_in.weight", CONV, CONV),
    "encoder.stages.2.blocks.0.shortcut.w": (
        "encoder.down_blocks.2.resnets.0.conv_shortcut.weight",
        "encoder.down.2.block.0.nin_shortcut.weight",
        POINT,
        POINT,
    ),
    "encoder.stages.1.resize.b": (
        "encoder.down_blocks.1.downsamplers.0.conv.bias",
        "encoder.down.1.downsample.conv.bias",
        "",
        "",
    ),
    # The decoder computes its coarsest resolution first, which BFL number last.
    "decoder.stages.0.blocks.2.norm1.scale": (
        "decoder.up_blocks.0.resnets.2.norm1.weight",
        "decoder.up.3.block.2.norm1.weight",
        "",
        "",
    ),
    "decoder.stages.2.resize.w": (
        "decoder.up_blocks.2.upsamplers.0.conv.weight",
        "decoder.up.1.upsample.conv.weight",
        CONV,
        CONV,
    ),
    "decoder.mid.attention.out.w": (
        "decoder.mid_block.attentions.0.to_out.0.weight",
        "decoder.mid.attn_1.proj_out.weight",
        "oi->io",
        POINT,
    ),
    "decoder.mid.after.conv2.b": (
        "decoder.mid_block.resnets.1.conv2.bias",
        "decoder.mid.block_2.conv2.bias",
        "",
        "",
    ),
    "decoder.norm_out.bias": ("decoder.conv_norm_out.bias", "decoder.norm_out.bias", "", ""),
    "encoder.quant.w": ("quant_conv.weight", "encoder.quant_conv.weight", POINT, POINT),
    "decoder.quant.w": ("post_quant_conv.weight", "decoder.post_quant_conv.weight", POINT, POINT),
    "decoder.latent_norm.var": ("bn.running_var", "bn.running_var", "", ""),
}


@pytest.mark.parametrize("path", PLACES)
def test_arrays_have_names_in_both_layouts(path):
    diffusers, bfl, arranged, arranged_bfl = PLACES[path]
    assert vae.tensors(VAEConfig(), DIFFUSERS)[path] == Tensor((diffusers,), arranged)
    assert vae.tensors(VAEConfig(), BFL)[path] == Tensor((bfl,), arranged_bfl)


@pytest.mark.parametrize("names", [DIFFUSERS, BFL])
def test_both_halves_share_only_the_statistics(names):
    read = Counter(
        name for place in vae.tensors(VAEConfig(), names).values() for name in place.names
    )
    assert {name for name, times in read.items() if times > 1} == {
        "bn.running_mean",
        "bn.running_var",
    }
    assert len(read) == 250  # of 251: the file also counts the batches of its training


@pytest.mark.parametrize("names", [DIFFUSERS, BFL])
def test_tensors_that_a_half_does_not_read_are_named(names):
    halves = {half: tensors(VAEConfig(), names, half) for half in ("encoder", "decoder")}
    for half, other in (("encoder", "decoder"), ("decoder", "encoder")):
        read = {name for place in halves[half].values() for name in place.names}
        of_other = {name for place in halves[other].values() for name in place.names}
        assert not any(name.startswith(UNUSED[half]) for name in read)
        assert all(name.startswith(UNUSED[half]) for name in of_other - read)


def test_blocks_follow_the_config():
    config = VAEConfig(widths=(32, 32, 64), decoder_widths=(32, 64, 64), layers=1)
    paths = vae.tensors(config, DIFFUSERS)
    shortcuts = {path.rpartition(".shortcut.")[0] for path in paths if ".shortcut." in path}
    assert shortcuts == {"encoder.stages.2.blocks.0", "decoder.stages.2.blocks.0"}
    assert "encoder.stages.0.blocks.0.conv1.w" in paths
    assert "encoder.stages.0.blocks.1.conv1.w" not in paths
    assert "decoder.stages.0.blocks.1.conv1.w" in paths  # one more than the encoder
