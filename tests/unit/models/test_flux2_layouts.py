"""Published layouts of FLUX.2: counts of tensors and parameters, and the change of conventions."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.errors import UserError
from modality_forcing.models.flux2_layouts import (
    BFL,
    DIFFUSERS,
    FORCING,
    LAYOUTS,
    Layout,
    recognize,
    restored,
    stored,
)
from tests.flux2 import DEV, FORCING_V1, FORCING_V2, KLEIN_4B, KLEIN_9B, TINY, TINY_FORCING, Sizes

NETWORKS = {
    "klein-4b": (KLEIN_4B, 3_875_544_576, {BFL: 149, DIFFUSERS: 169, FORCING: 149}),
    "klein-9b": (KLEIN_9B, 9_078_581_248, {BFL: 201, DIFFUSERS: 233, FORCING: 201}),
    "dev": (DEV, 32_223_281_152, {BFL: 299}),
    "forcing-v1": (FORCING_V1, 11_950_633_984, {FORCING: 273}),
    "forcing-v2": (FORCING_V2, 11_986_285_570, {FORCING: 279}),
}


@pytest.mark.parametrize("sizes, parameters, counts", NETWORKS.values(), ids=NETWORKS)
def test_networks_have_the_published_tensors_and_parameters(sizes: Sizes, parameters, counts):
    assert sizes.parameters() == parameters
    for layout, count in counts.items():
        tensors = layout.shapes(sizes.shapes())
        assert len(tensors) == count
        assert sum(math.prod(shape) for shape in tensors.values()) == parameters


def test_shapes_of_published_tensors():
    """As the files list them, [out, in]."""
    bfl, diffusers = (layout.shapes(KLEIN_9B.shapes()) for layout in (BFL, DIFFUSERS))
    assert bfl["double_blocks.7.img_attn.qkv.weight"] == (12288, 4096)
    assert bfl["double_blocks.0.txt_mlp.0.weight"] == (24576, 4096)
    assert bfl["single_blocks.23.linear1.weight"] == (36864, 4096)
    assert bfl["single_blocks.23.linear2.weight"] == (4096, 16384)
    assert bfl["single_blocks.0.norm.key_norm.scale"] == (128,)
    assert bfl["final_layer.adaLN_modulation.1.weight"] == (8192, 4096)
    assert diffusers["transformer_blocks.7.attn.add_v_proj.weight"] == (4096, 4096)
    assert diffusers["norm_out.linear.weight"] == (8192, 4096)
    assert FORCING.shapes(FORCING_V2.shapes())["cross_alpha_img"] == (1,)


def test_every_array_is_in_every_layout_once():
    for layout, sizes in ((BFL, TINY), (DIFFUSERS, TINY), (FORCING, TINY_FORCING)):
        parts = [path for entry in layout.select(sizes.shapes()) for path in entry.parts]
        assert sorted(parts) == sorted(sizes.shapes())


def test_arrays_without_a_place_are_named():
    with pytest.raises(UserError, match="layout bfl has no tensor for offset; choose one of bfl"):
        BFL.select({**TINY.shapes(), "offset": (3,)})


def test_layouts_are_recognized_by_exact_names():
    assert recognize(["img_in.weight", "time_in_depth.in_layer.weight"]) == (FORCING, "")
    prefix = "model.diffusion_model."
    assert recognize([f"{prefix}img_in.weight", "vae.a"]) == (FORCING, prefix)
    assert recognize(["dit.img_in.weight"]) == (FORCING, "dit.")
    assert recognize(["x_embedder.weight"]) == (DIFFUSERS, "")
    for names in ([], ["img_in.weight.scale"], ["net.x_embedder.weight"], ["img_in.bias"]):
        with pytest.raises(UserError, match=r"is not a FLUX\.2 transformer: it holds"):
            recognize(names, "here")


@given(
    st.sampled_from(["single/layers/q", "single/layers/k_scale", "head/image/linear/w"]),
    st.integers(0, 2**32 - 1),
)
def test_conventions_are_undone_to_the_bit(path, seed):
    """Any bits, NaN and negative zero among them."""
    shapes = TINY.shapes()
    slot = BFL.slots(shapes)[path]
    shape = shapes[path][int(slot.entry.stacked) :][::-1]
    bits = np.random.default_rng(seed).integers(0, 2**16, shape, np.uint16)
    array = bits.view(ml_dtypes.bfloat16)
    ours = restored(array, slot)
    assert ours.shape == shape[::-1]
    np.testing.assert_array_equal(stored(ours, slot).view(np.uint16), bits)


def test_names_of_layouts():
    assert list(LAYOUTS) == ["bfl", "diffusers", "modality-forcing"]
    assert all(isinstance(layout, Layout) for layout in LAYOUTS.values())
