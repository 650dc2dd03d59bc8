"""The weights of step 0: a source's, and new modules that are fresh or copies."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models.flux2_layouts import BFL
from modality_forcing.train.initial_weights import initial_params, load_teacher
from modality_forcing.train.released import open_released
from modality_forcing.train.state import TrainState, abstract_model, init_params, init_state
from modality_forcing.tree import flatten, unflatten
from tests import runs, tiny
from tests.flux2 import Sizes

KLEIN = Sizes(16, 8, 12, 2, 3, image=8)
FREEZE = ("double/layers/text", "double/layers/image")


def on_first(tree: Any) -> Any:
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), tree)


def abstract(config: Config) -> TrainState:
    _, shapes = abstract_model(config, base.build(config))
    return jax.eval_shape(partial(init_state, config), shapes)


def start(config: Config) -> dict[str, Any]:
    return flatten(initial_params(config, abstract(config), on_first))


@pytest.fixture(scope="module")
def klein(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("klein") / "flux-2-klein-base-4b.safetensors"
    save_file(KLEIN.file(BFL), path)
    return f"flux2-klein:{path}"


def post_training(klein: str, **train: Any) -> Config:
    """The network of the file and a depth stream, at 32 px."""
    config = open_released(klein, 32).config
    image = replace(config.modalities["image"], cond_prob=0.2)
    depth = replace(tiny.DEPTH, patch=16)
    known = {"init_from": klein, "allow_missing_modalities": ("depth",), "freeze": FREEZE}
    return replace(
        config,
        model=replace(config.model, level_mixing=True),
        modalities={"image": image, "depth": depth},
        train=replace(config.train, frozen_dtype="bfloat16", **{**known, **train}),
    )


def test_post_training_of_klein_starts_from_its_weights_and_copies_for_depth(klein):
    config = post_training(klein, copy_missing_from="image")
    params, published = start(config), flatten(open_released(klein, 32).load()[1])
    for path, leaf in published.items():
        if not isinstance(leaf, dict):
            np.testing.assert_array_equal(params[path], leaf.astype(params[path].dtype))
    assert params["double/layers/image/q"].dtype == jnp.bfloat16
    assert params["single/layers/q"].dtype == jnp.float32
    copied = [
        *("double/layers/depth/q", "double/layers/depth/down", "double/layers/depth/q_scale"),
        *("modulation/depth/w", "single_modulation/depth/w", "level_embedder/depth/outer/w"),
        "head/depth/modulation/w",
    ]
    for path in copied:
        image = params[path.replace("depth", "image")]
        np.testing.assert_array_equal(params[path], image.astype(jnp.float32), err_msg=path)
        assert params[path].dtype == jnp.float32
    assert not np.any(params["head/depth/linear/w"]) and not np.any(
        params["level_gate_cross/image_from_depth"]
    )
    assert np.any(params["tokenizer/depth/w"]) and np.any(params["head/depth/blocks/layers/q"])


def test_new_modules_are_fresh_without_a_modality_to_copy(klein):
    params = start(post_training(klein))
    q, image = params["double/layers/depth/q"], params["double/layers/image/q"]
    assert np.any(q) and not np.array_equal(q, image.astype(jnp.float32))
    with pytest.raises(
        UserError, match="copy_missing_from names 'rgb', which is not a modality; the"
    ):
        start(post_training(klein, copy_missing_from="rgb"))


def test_teacher_is_klein_and_shares_what_its_student_does_not_train(klein):
    config = post_training(klein, distill=True)
    frozen = {path: leaf for path, leaf in start(config).items() if path.startswith(FREEZE)}
    tree = unflatten(frozen)
    teacher = load_teacher(config, on_first, tree)
    assert set(teacher.shared) == set(frozen)
    published = flatten(open_released(klein, 32).load()[1])
    found = flatten(teacher.all_params(teacher.params, tree))
    assert found.keys() == published.keys()
    for path, leaf in published.items():
        if not isinstance(leaf, dict):
            np.testing.assert_array_equal(found[path], leaf.astype(found[path].dtype))


def test_file_of_another_size_is_refused(klein):
    config = post_training(klein)
    wider = replace(config, model=replace(config.model, width=32, mlp_dim=96))
    message = r"flux2-klein:.*the weights do not fit \(misshaped: .*\(2, 48, 16\)"
    with pytest.raises(UserError, match=message):
        start(wider)
    distilled = replace(wider, train=replace(wider.train, distill=True))
    with pytest.raises(UserError, match=message):
        load_teacher(distilled, on_first, {})


def test_low_rank_updates_are_fresh_and_only_they_are_made_beside_the_source(tmp_path: Path):
    saved = tiny.t2i()
    runs.save(tmp_path / "t2i", saved)
    config = tiny.forcing(lora_rank=2, init_from=str(tmp_path / "t2i"))
    params = start(config)
    everything = flatten(init_params(config, base.build(config)))
    assert params.keys() == everything.keys()
    source = flatten(tiny.network(saved)[1])
    for path, leaf in params.items():
        expected = source.get(path, everything[path])
        np.testing.assert_array_equal(leaf, expected, err_msg=path)
    assert np.any(params["trunk/layers/lora/q/a"]) and not np.any(params["trunk/layers/lora/q/b"])
