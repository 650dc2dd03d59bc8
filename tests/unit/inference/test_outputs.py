"""Files of results."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.files import DepthFormat, read_depth
from modality_forcing.errors import UserError
from modality_forcing.inference import outputs, points
from modality_forcing.inference.result import Result
from modality_forcing.modalities import base
from tests import tiny

RNG = np.random.default_rng(0)
DEPTH = RNG.uniform(1, 5, (6, 9)).astype(np.float32)
VALID = RNG.random((6, 9)) < 0.8
IMAGE = RNG.integers(0, 256, (6, 9, 3), np.uint8)
RESULT = Result(IMAGE, np.where(VALID, DEPTH, np.float32(0)), VALID, np.full_like(DEPTH, 0.5))


def image(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_every_format(tmp_path):
    pytest.importorskip("OpenEXR")
    files = outputs.depth_files(RESULT, outputs.FORMATS, "metric")
    kinds = ("npy", "png", "json", "exr")
    names = {f"_depth.{kind}" for kind in kinds} | {"_depth_color.png", "_depth_spectral.png"}
    assert set(files) == names | {"_uncertainty.npy", "_uncertainty_color.png", "_side.png"}
    for ending in ("_depth.npy", "_depth.exr", "_depth.png"):
        (tmp_path / f"x{ending}").write_bytes(files[ending])
    with Image.open(tmp_path / "x_depth.png") as opened:
        scale, unit = float(opened.info["scale"]), opened.info["unit"]
    assert unit == "metric"
    for ending, form in (
        ("_depth.npy", DepthFormat()),
        ("_depth.exr", DepthFormat()),
        ("_depth.png", DepthFormat(scale)),
    ):
        depth, valid = read_depth(tmp_path / f"x{ending}", form)
        np.testing.assert_array_equal(valid, VALID)
        np.testing.assert_allclose(depth[valid], DEPTH[VALID], atol=scale)
    np.testing.assert_array_equal(image(files["_depth_color.png"]), RESULT.colored())
    np.testing.assert_array_equal(image(files["_depth_spectral.png"]), RESULT.colored("spectral"))
    side = image(files["_side.png"])
    np.testing.assert_array_equal(side[:, :9], IMAGE)
    np.testing.assert_array_equal(side[:, 9:], RESULT.colored())
    sigma = np.load(io.BytesIO(files["_uncertainty.npy"]))
    np.testing.assert_array_equal(sigma, np.where(VALID, np.float32(0.5), np.nan))


def test_uncertainty_is_never_lost():
    for kind, ending in (("side", ".npy"), ("npy", ".npy"), ("color", "_color.png")):
        files = outputs.depth_files(RESULT, (kind,), "relative")
        assert [name for name in files if "uncertainty" in name] == [f"_uncertainty{ending}"]


def test_images_and_geometry():
    assert set(outputs.image_files(RESULT, ("npy", "color"))) == {"_image.png"}
    assert set(outputs.image_files(RESULT, ("side",))) == {"_image.png", "_side.png"}
    flat = Result(IMAGE, np.ones_like(DEPTH))
    assert set(outputs.geometry_files(flat, "glb", 60)) == {"_points.glb", "_mesh.glb"}
    cloud = points.encode(points.cloud(flat, 60), "ply")
    assert outputs.geometry_files(flat, "ply", 60)["_points.ply"] == cloud
    step = Result(IMAGE, np.where(np.arange(9) < 4, 1, 1.2).astype(np.float32) + 0 * DEPTH)
    cut, whole = (outputs.geometry_files(step, "ply", 60, edge) for edge in (0.1, 0.3))
    assert len(cut["_mesh.ply"]) < len(whole["_mesh.ply"])
    assert outputs.geometry_files(Result(IMAGE, np.zeros_like(DEPTH)), "ply", 60) == {}


def test_large_side_by_side_images_are_shrunk():
    wide = Result(np.zeros((2, 4000, 3), np.uint8), np.ones((2, 4000), np.float32))
    assert image(outputs.side_by_side(wide)).shape == (1, 3200, 3)


def test_formats():
    assert outputs.parse_formats("npy, side,npy") == ("npy", "side")
    for text, message in (("npy,obj", "unknown format 'obj'"), (" ", "no format is given")):
        with pytest.raises(UserError, match=message):
            outputs.parse_formats(text)


def test_normals_are_written_as_vectors_and_in_their_colors(tmp_path: Path):
    normals = np.zeros((16, 16, 3), np.float32)
    normals[..., 2] = -1
    normals[2, 3] = 0  # unknown
    written = outputs.write_example(
        tmp_path / "a", {"normals": normals}, base.build(tiny.normals())
    )
    assert [path.name for path in written] == ["a_normals.png", "a_normals.npy"]
    stored = np.load(written[1])
    assert np.isnan(stored[2, 3]).all()
    np.testing.assert_array_equal(np.nan_to_num(stored), normals)
    color = np.zeros(normals.shape, np.uint8)
    files = outputs.map_files("normals", normals, color, ("npy",))
    assert files["_normals.npy"] == written[1].read_bytes(), "by either way"
    assert np.asarray(Image.open(written[0]))[0, 0].tolist() == [128, 128, 255]
