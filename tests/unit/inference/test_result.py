"""Results of single samples and of ensembles, and their colors."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.inference import fit as fits
from modality_forcing.inference.result import Result, restore

IMAGE = np.zeros((8, 16, 3), np.uint8)
FITTED = fits.fit_image(IMAGE, (16, 16), "letterbox")
FITTED_TILE = fits.fit_image(np.zeros((16, 16, 3), np.uint8), (16, 16), "stretch")


def test_members_up_to_scale_agree():
    ramp = np.tile(np.linspace(1, 2, 16, dtype=np.float32), (16, 1))
    members = []
    for scale in (1.0, 2.0, 3.0):
        values = scale * ramp
        values[:4] = 100 * scale**2  # in the padding
        members.append([{"depth": values}])
    result = restore(IMAGE, FITTED, members)
    assert result.depth is not None and result.uncertainty is not None
    assert result.depth.shape == result.uncertainty.shape == (8, 16)
    np.testing.assert_allclose(result.depth / result.depth[:, :1], ramp[:8], rtol=1e-5)
    assert result.uncertainty.max() < 1e-5
    assert 1 < result.depth.mean() < 4.5, "in the unit of the members"


def test_uncertainty_is_where_members_differ():
    rng = np.random.default_rng(0)
    members = []
    for _ in range(5):
        values = np.full((16, 16), 2.0, np.float32)
        values[:, 8:] += rng.normal(0, 0.2, (16, 8))
        members.append([{"depth": values}])
    result = restore(IMAGE, FITTED, members)
    assert result.uncertainty is not None
    # Also where they are equal a little, since the scales of the members are estimated.
    assert result.uncertainty[:, 9:].mean() > 5 * result.uncertainty[:, :7].mean()
    assert restore(IMAGE, FITTED, members[:1]).uncertainty is None


def test_uncertainty_of_tiles_has_the_unit_of_their_depth():
    image = np.zeros((16, 32, 3), np.uint8)
    tiles = fits.fit_image(image, (16, 16), "tiles")
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (4, 16, 16)).astype(np.float32)
    # Tiles of other scales, the last with a fifth of the relative noise.
    scales, shares = (1.0, 3.0, 0.5), (1.0, 1.0, 0.2)
    members = [
        [
            {"depth": (scale * (2 + share * x)).astype(np.float32)}
            for scale, share in zip(scales, shares, strict=True)
        ]
        for x in noise
    ]
    result = restore(image, tiles, members)
    assert result.depth is not None and result.uncertainty is not None
    relative = result.uncertainty / result.depth
    left, right = relative[:, :4].mean(), relative[:, -4:].mean()
    alone = [restore(image[:, :16], FITTED_TILE, [[m[i]] for m in members]) for i in (0, 2)]
    sides = [x.uncertainty / x.depth for x in alone]
    np.testing.assert_allclose(left, sides[0][:, :4].mean(), rtol=0.05)
    np.testing.assert_allclose(right, sides[1][:, -4:].mean(), rtol=0.05)


def test_colors(unchecked):
    depth = np.linspace(1, 5, 32, dtype=np.float32).reshape(4, 8)
    valid = np.ones_like(depth, bool)
    valid[0, 0] = False
    result = Result(depth=depth, valid=valid)
    near, far = result.colored("Spectral")[0, 1], result.colored("spectral")[-1, -1]
    assert near[0] > near[2] and far[2] > far[0], "near is red, far is blue"
    assert (result.colored()[0, 0] == 128).all() and result.colored().shape == (4, 8, 3)
    with pytest.raises(UserError, match="no color map is named 'bright'; choose plasma"):
        result.colored("bright")
    with pytest.raises(UserError, match="no color map is named 3; choose plasma"):
        result.colored(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="this result has no depth"):
        Result().colored()
