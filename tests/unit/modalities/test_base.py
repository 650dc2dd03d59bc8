"""Modalities are built from the config alone, in its order, by the file of their kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modality_forcing.config import Config, ModalityConfig, NoiseConfig
from modality_forcing.diffusion.noise_levels import LogitNormal, PlateauLogitNormal
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.modalities.depth import Depth
from modality_forcing.modalities.image import Image
from tests import tiny


def test_modalities_keep_the_order_of_the_config():
    config = tiny.forcing()
    assert list(base.build(config)) == ["image", "depth"]
    reordered = replace(config, modalities=dict(reversed(config.modalities.items())))
    assert list(base.build(reordered)) == ["depth", "image"]


def test_every_config_value_reaches_the_modality():
    config = Config(
        modalities={
            "image": ModalityConfig(
                patch=8, cond_prob=0.1, noise=NoiseConfig("logit_normal", 0.7, 0.9)
            ),
            "far": ModalityConfig(
                "depth", 4, "v", NoiseConfig("plateau", 0.3, 1.2), 0.25, 0.3, 5, 2
            ),
        }
    )
    image, far = base.build(config).values()
    assert isinstance(image, Image) and isinstance(far, Depth)
    assert (far.name, far.size, far.patch, far.prediction) == ("far", (32, 32), 4, "v")
    assert (far.loss_weight, far.cond_prob, far.position_id) == (0.25, 0.3, 5)
    assert far.detokenizer_layers == 2
    assert far.noise_distribution == PlateauLogitNormal(
        0.3, 1.2
    ) and image.noise_distribution == LogitNormal(0.7, 0.9)
    assert (far.grid, far.shape, image.grid, image.shape) == ((8, 8), (64, 16), (4, 4), (16, 192))


def test_size_need_not_be_square():
    config = Config(modalities={"image": ModalityConfig(patch=8)})
    image = base.build(config, (16, 40))["image"]
    assert (image.grid, image.inputs["image"][0]) == ((2, 5), (16, 40, 3))
    for size in ((16, 20), (4, 16), (0, 16)):
        with pytest.raises(UserError, match=f"{size[1]} x {size[0]} pixels are not whole patches"):
            base.build(config, size)


def test_unknown_kind_is_refused_with_the_known_ones():
    config = Config(modalities={"image": ModalityConfig(kind="picture", patch=8)})
    with pytest.raises(
        UserError,
        match=r"modalities\.image\.kind is 'picture'; choose one of depth, image, normals",
    ):
        base.build(config)
    with pytest.raises(UserError, match="base"):  # it is a file there, but no modality
        base.build(Config(modalities={"image": ModalityConfig(kind="base", patch=8)}))


def test_abstract_modality_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        base.Modality("image", (16, 16), 8, 0, 0, "x", LogitNormal(), 1.0, 0.0)  # pyright: ignore[reportAbstractUsage]


def with_others(**cond_prob_with: dict[str, float]) -> Config:
    config = tiny.normals()
    changed = {
        name: replace(m, cond_prob_with=cond_prob_with.get(name, {}))
        for name, m in config.modalities.items()
    }
    return replace(config, modalities=changed)


def test_several_modalities_are_given_together():
    config = with_others(image={"normals": 0.1, "depth": 0.05}, depth={"image": 0.15})
    together = base.given_together(base.build(config))
    assert together == {("image", "normals"): 0.1, ("image", "depth"): pytest.approx(0.2)}
    assert base.given_together(base.build(tiny.normals())) == {}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"flow": 0.1}, r"cond_prob_with names 'flow', and there is no 'flow'; the modalities are"),
        (
            {"image": 0.1},
            "names 'image', which gives 1 of 3 modalities; leave at least one modality",
        ),
        (
            {"depth+normals": 0.1},
            r"names 'depth\+normals', which gives 3 of 3 modalities; leave at least one",
        ),
        ({"depth": 0.5}, "sum to 1.1; they must sum to at most 1"),
    ],
)
def test_impossible_conditions_are_refused(others: dict[str, float], message: str):
    with pytest.raises(UserError, match=message):
        base.build(with_others(image=others))
