"""Configs: conversion to and from dicts, types, and values that make no sense."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest

from modality_forcing.config import (
    Config,
    DataConfig,
    ModalityConfig,
    ModelConfig,
    NoiseConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from modality_forcing.errors import UserError
from tests import tiny


@pytest.mark.parametrize(
    "config", [Config(), tiny.t2i(), tiny.forcing(distill=True, init_from="runs/t2i")]
)
def test_config_survives_json(config):
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert list(again.modalities) == list(config.modalities)
    assert type(again.train.allow_missing_modalities) is tuple
    assert type(again.modalities["image"]) is ModalityConfig


def test_missing_keys_take_their_defaults():
    assert from_dict({}) == Config()
    assert from_dict({"train": {"steps": 7}}).train == replace(TrainConfig(), steps=7)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"steps": "many"}}, r"train\.steps is 'many'; it must be of type int"),
        ({"train": {"steps": 5.0}}, r"train\.steps is 5\.0; it must be of type int"),
        ({"train": {"steps": True}}, r"train\.steps is True"),
        ({"train": {"distill": 1}}, r"train\.distill is 1; it must be of type bool"),
        ({"train": {"learning_rate": True}}, r"train\.learning_rate is True"),
        (
            {"train": {"learning_rate": "fast"}},
            r"train\.learning_rate is 'fast'; it must be of type float",
        ),
        ({"name": 3}, r"name is 3; it must be of type str"),
        ({"train": 5}, r"train is 5; it must be of type TrainConfig"),
        (
            {"train": {"allow_missing_modalities": "depth"}},
            r"train\.allow_missing_modalities is 'depth'",
        ),
        ({"train": {"allow_missing_modalities": [1]}}, r"train\.allow_missing_modalities is 1"),
        ({"modalities": ["image"]}, r"modalities is \['image'\]"),
        (
            {"data": {"sparsity_patterns": {"lidar": "much"}}},
            r"data\.sparsity_patterns\.lidar is 'much'",
        ),
        (
            {"train": {"schedule": "linear"}},
            r"train\.schedule is 'linear'; choose one of cosine, wsd",
        ),
        (
            {"modalities": {"image": {"noise": {"distribution": "uniform"}}}},
            r"noise\.distribution is 'uniform'; .*logit_normal, plateau",
        ),
    ],
)
def test_value_of_the_wrong_type_is_refused(tree, message):
    with pytest.raises(UserError, match=message):
        from_dict(tree)


def test_float_accepts_an_integer():
    rate = from_dict({"train": {"learning_rate": 1}}).train.learning_rate
    assert rate == 1.0 and type(rate) is float


IMAGE, DEPTH = ModalityConfig(patch=8), ModalityConfig(kind="depth", patch=8, position_id=1)


def both(image: float, depth: float) -> dict[str, ModalityConfig]:
    return {"image": replace(IMAGE, cond_prob=image), "depth": replace(DEPTH, cond_prob=depth)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(heads=6, kv_heads=4), "heads 6 is not a multiple of model.kv_heads 4"),
        (lambda: ModelConfig(kv_heads=0), "kv_heads 0"),
        (lambda: ModelConfig(head_dim=20), "head_dim 20 is not a multiple of 8"),
        (
            lambda: Config(modalities={"image": replace(IMAGE, noise=NoiseConfig(sigma=0.0))}),
            "image.noise.sigma is 0.0; it must be above 0",
        ),
        (lambda: Config(modalities={}), "modalities is empty"),
        (
            lambda: Config(modalities={"image": replace(IMAGE, cond_prob=0.2)}),
            "image.cond_prob needs a second modality",
        ),
        (lambda: Config(modalities=both(0.6, 0.6)), "at most 1"),
        (lambda: Config(modalities=both(-0.1, 0.6)), "-0.1"),
        (
            lambda: Config(modalities={"image": IMAGE, "depth": replace(DEPTH, position_id=0)}),
            "share a position_id",
        ),
        (
            lambda: Config(modalities={"image": IMAGE}, data=DataConfig(resolution=36)),
            "36 is not a multiple of .*patch 8",
        ),
        (
            lambda: Config(modalities={"image": replace(IMAGE, patch=0)}),
            "modalities.image.patch is 0; .*at least 1",
        ),
        (
            lambda: Config(train=TrainConfig(distill=True, init_from="x")),
            "train.distill needs a second modality",
        ),
        (
            lambda: Config(train=TrainConfig(log_every=0)),
            "train.log_every is 0; it must be at least 1",
        ),
        (lambda: Config(train=TrainConfig(save_every=0)), "train.save_every is 0"),
        (lambda: Config(train=TrainConfig(steps=-1)), "train.steps is -1"),
        (lambda: Config(seed=-1), "seed is -1; it must be at least 0"),
        (
            lambda: Config(train=TrainConfig(learning_rate=float("nan"))),
            "train.learning_rate is nan",
        ),
    ],
)
def test_invalid_values_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
