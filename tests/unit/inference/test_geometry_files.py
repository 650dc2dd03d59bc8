"""Files of point clouds and meshes, as an independent library reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.inference import geometry_files, points
from modality_forcing.inference.points import Cloud, Mesh

trimesh = pytest.importorskip("trimesh")

RNG = np.random.default_rng(0)
XYZ = RNG.uniform(-2, 3, (5, 3)).astype(np.float32)
RGB = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [10, 128, 200], [1, 2, 3]], np.uint8)
FACES = np.array([[0, 1, 2], [1, 2, 3]], np.int32)


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
@pytest.mark.parametrize("geometry", [Cloud(XYZ, RGB), Mesh(XYZ, RGB, FACES)])
def test_trimesh_reads_what_is_written(tmp_path: Path, suffix: str, geometry: Cloud | Mesh):
    path = points.write(geometry, tmp_path / f"points{suffix}")
    scene = trimesh.load_scene(path, process=False)
    (read,) = scene.geometry.values()
    axes = [1, -1, -1] if suffix == ".glb" else [1, 1, 1]
    np.testing.assert_array_equal(np.asarray(read.vertices, np.float32), XYZ * axes)
    if isinstance(geometry, Mesh):
        np.testing.assert_array_equal(read.faces, FACES)
    if suffix == ".ply":
        colors = read.visual.vertex_colors if isinstance(geometry, Mesh) else read.colors
        np.testing.assert_array_equal(colors[:, :3], RGB)
    elif isinstance(geometry, Mesh):  # beside a material, trimesh keeps colors as an attribute
        colors = read.visual.vertex_attributes["color"]
        assert colors.shape == (5, 4) and (np.argsort(colors[:, 1]) == np.argsort(RGB[:, 1])).all()


def test_colors_of_glb_are_linear():
    content = geometry_files.glb(XYZ, RGB)
    stored = np.frombuffer(content[-5 * 8 :], "<u2").reshape(5, 4) / 65535
    np.testing.assert_allclose(stored[:3], [[0, 0, 0, 1], [1, 1, 1, 1], [1, 0, 0, 1]])
    # sRGB 128 of 255 is 21.6% of the light (IEC 61966-2-1).
    assert stored[3, 1] == pytest.approx(0.2159, abs=1e-4)
    assert len(content) % 4 == 0 and content[:4] == b"glTF"
