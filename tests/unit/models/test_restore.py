"""Weights of a checkpoint in a larger model: only listed modules may be new, misfits are named."""

from __future__ import annotations

import copy

import jax
import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.models.restore import merge_params, new_modules
from modality_forcing.tree import flatten, unflatten
from tests import tiny


@pytest.fixture(scope="module")
def trees() -> tuple[dict, dict]:
    """Weights of a text-to-image network and of one with depth, all different."""
    return tiny.network(tiny.t2i(), seed=1)[1], tiny.network(tiny.forcing(), seed=2)[1]


@pytest.fixture
def source(trees) -> dict:
    return copy.deepcopy(trees[0])


def test_shared_weights_come_from_the_checkpoint_and_new_ones_stay(trees):
    source, target = trees
    out = flatten(merge_params(source, target, ("depth",)))
    have = flatten(source)
    want = flatten(target)
    assert out.keys() == want.keys()
    new = {path for path in out if path not in have}
    assert {"/".join(path.split("/")[:2]) for path in new} == {
        "tokenizer/depth",
        "level_embedder/depth",
        "head/depth",
        "level_embedder_cross/image_from_depth",
        "level_embedder_cross/depth_from_image",
        "level_gate_cross/image_from_depth",
        "level_gate_cross/depth_from_image",
    }
    for path, leaf in out.items():
        np.testing.assert_array_equal(leaf, want[path] if path in new else have[path])


def test_equal_trees_need_no_list(trees):
    source, _ = trees
    jax.tree.map(
        np.testing.assert_array_equal,
        merge_params(source, tiny.network(tiny.t2i(), seed=9)[1]),
        source,
    )


def test_checkpoint_with_the_new_modality_replaces_it_too(trees):
    _, target = trees
    other = tiny.network(tiny.forcing(), seed=7)[1]
    jax.tree.map(np.testing.assert_array_equal, merge_params(other, target, ("depth",)), other)


def test_unlisted_new_modules_are_missing(trees):
    source, target = trees
    with pytest.raises(
        UserError,
        match=r"missing: head/depth/\S+, .* and \d+ more.*train\.allow_missing_modalities",
    ):
        merge_params(source, target)
    with pytest.raises(UserError, match="missing: head/depth/"):
        merge_params(source, target, ("normals",))


def test_missing_shared_weight_is_named(trees, source):
    del source["trunk"]["layers"]["k_scale"]
    with pytest.raises(UserError, match=r"where: .*missing: trunk/layers/k_scale\)"):
        merge_params(source, trees[1], ("depth",), where="where")


def test_extra_weight_is_named(trees, source):
    source["head"]["image"]["bias"] = np.zeros(3)
    with pytest.raises(UserError, match=r"extra: head/image/bias\)"):
        merge_params(source, trees[1], ("depth",))


def test_modality_absent_from_the_target_is_extra(trees):
    with pytest.raises(UserError, match="extra: head/depth/"):
        merge_params(trees[1], trees[0])


def test_misshaped_weight_is_named_with_both_shapes(trees, source):
    source["tokenizer"]["image"]["w"] = np.zeros((7, 32), np.float32)
    with pytest.raises(
        UserError, match=r"misshaped: tokenizer/image/w \(7, 32\) instead of \(192, 32\)"
    ):
        merge_params(source, trees[1], ("depth",))


def test_new_module_of_another_shape_is_misshaped(trees):
    other = copy.deepcopy(trees[1])
    other["level_embedder"]["depth"]["inner"]["w"] = np.zeros((3, 3), np.float32)
    with pytest.raises(UserError, match=r"misshaped: level_embedder/depth/inner/w"):
        merge_params(other, trees[1], ("depth",))


def test_weight_in_place_of_a_module_is_refused(trees, source):
    source["trunk"] = np.zeros(3)
    with pytest.raises(UserError, match=r"missing: trunk/layers/.*extra: trunk"):
        merge_params(source, trees[1], ("depth",))


def test_all_problems_are_in_one_message(trees, source):
    del source["modulation"]
    source["stray"] = np.zeros(1)
    source["text_embedder"]["table"] = np.zeros((1, 8), np.float32)
    with pytest.raises(
        UserError,
        match=r"missing: modulation/w; extra: stray; misshaped: text_embedder/table.*of this size",
    ):
        merge_params(source, trees[1], ("depth",))


def test_new_modality_does_not_match_names_that_only_start_alike():
    pairs = {
        "image_from_depth": 0,
        "image_from_depth2": 0,
        "depth2_from_image": 0,
        "depth_from_depth2": 0,
    }
    target = {
        "level_gate_cross": {pair: np.zeros(()) for pair in pairs},
        "level_embedder_cross": {pair: {"w": np.zeros(1)} for pair in pairs},
        "level_embedder": {"depth": {"w": np.zeros(1)}, "depth2": {"w": np.zeros(1)}},
    }
    source = flatten(target)
    source = {path: x for path, x in source.items() if "image_from_depth2" not in path}
    missing = "level_embedder_cross/image_from_depth2/w, level_gate_cross/image_from_depth2"
    with pytest.raises(UserError, match=rf"missing: {missing}\)"):
        merge_params(unflatten(source), target, ("depth",))
    cross = ("level_embedder_cross", "level_gate_cross")
    own = {"tokenizer/depth/", "level_embedder/depth/", "head/depth/"}
    own |= {"modulation/depth/", "single_modulation/depth/", "double/layers/depth/"}
    pairs = ("image_from_depth", "depth_from_depth2")
    assert set(new_modules(target, "depth")) == own | {f"{m}/{p}/" for m in cross for p in pairs}
