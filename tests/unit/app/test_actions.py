"""What the page's buttons do, with a model that returns what it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modality_forcing.app import actions, uploads
from modality_forcing.app.settings import KEEP_ALL, Settings
from modality_forcing.data.files import read_image, read_png16
from modality_forcing.errors import UserError
from modality_forcing.inference.pipeline import Pipeline
from modality_forcing.inference.result import Result

trimesh = pytest.importorskip("trimesh")


class Fake(Pipeline):
    """Remembers how it was called."""

    def __init__(self) -> None:
        self.called: dict[str, Any] = {}

    def image_to_depth(self, images: np.ndarray, **how: Any) -> Result:
        self.called, image = how, images
        depth = np.linspace(1, 2, image[..., 0].size, dtype=np.float32).reshape(image.shape[:2])
        spread = depth / 10 if how["ensemble"] > 1 else None
        return Result(image, depth, np.ones(depth.shape, bool), spread)

    def image_to_normals(self, images: np.ndarray, **how: Any) -> Result:
        self.called = how
        vectors = np.zeros((*images.shape[:2], 3), np.float32)
        vectors[:, 1:, 2] = -1  # faces the camera; unknown in the first column
        return Result(images, maps={"normals": vectors})

    def depth_to_image(self, depths: np.ndarray, captions: str, **how: Any) -> Result:
        self.called = {"captions": captions, **how}
        gray = np.full((*depths.shape, 3), 90, np.uint8)
        return Result(gray, depths, depths > 0)

    def generate(self, captions: str, **how: Any) -> Result:
        self.called = {"captions": captions, **how}
        image = np.full((4, 4, 3), 90, np.uint8)
        if how["log2_alpha"] is None:
            return Result(image)
        return Result(image, np.ones((4, 4), np.float32), np.ones((4, 4), bool))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    colors = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(colors).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "answer"


def names(made: actions.Answer) -> list[str]:
    return [path.name for path in made.files]


def test_photo_gives_depth_and_points_of_each_pixel(photo, folder):
    model = Fake()
    made = actions.image_to_depth(model, photo, folder, Settings(steps=3, seed=5))
    how = {"ensemble": 1, "steps": 3, "seed": 5}
    assert model.called == {**how, "condition_guidance": None}
    assert names(made) == ["depth.npy", "depth.png", "points.ply", "points.glb"]
    assert np.load(made.files[0]).shape == (30, 40)
    assert read_png16(made.files[1]).max() == 65535
    for path in made.files[2:]:
        geometry = trimesh.load(path)
        cloud = next(iter(geometry.geometry.values())) if path.suffix == ".glb" else geometry
        assert len(cloud.vertices) == 1200
    assert made.uncertainty is None and made.image is None
    assert made.scene is not None and made.scene.is_file()
    assert made.depth is not None and max(read_image(made.depth).shape) >= 256


def test_photo_gives_normals_as_vectors_and_as_colors(photo, folder):
    model = Fake()
    made = actions.image_to_normals(model, photo, folder, Settings(steps=3, condition_guidance=2))
    assert model.called == {"steps": 3, "seed": 0, "condition_guidance": 2}
    assert names(made) == ["normals.npy", "normals.png"]
    vectors = np.load(made.files[0])
    assert vectors.shape == (30, 40, 3) and np.isnan(vectors[:, 0]).all()
    np.testing.assert_array_equal(vectors[:, 1:], np.broadcast_to((0, 0, -1), (30, 39, 3)))
    colors = read_image(made.files[1])
    assert (colors[:, 1:] == (128, 128, 255)).all() and (colors[:, 0] == 128).all()
    assert made.normals is not None and max(read_image(made.normals).shape) >= 256
    assert made.depth is None and made.scene is None
    with pytest.raises(UserError, match="no image; upload one"):
        actions.image_to_normals(model, None, folder, Settings())


def test_ensemble_gives_its_uncertainty(photo, folder):
    made = actions.image_to_depth(Fake(), photo, folder, Settings(ensemble=2))
    assert "uncertainty.npy" in names(made) and made.uncertainty is not None
    dark, light = read_image(made.uncertainty)[[0, -1], [0, -1]].astype(int).sum(-1)
    assert dark < light


def test_field_of_view_is_that_of_the_photo_unless_one_is_chosen(photo, folder):
    def width(path: Path, fov: float = 0) -> float:
        chosen = Settings(jump=KEEP_ALL, fov=fov)
        made = actions.image_to_depth(Fake(), path, folder, chosen)
        cloud = trimesh.load(next(file for file in made.files if file.suffix == ".ply"))
        return 2 * np.abs(cloud.vertices[:, 0] / cloud.vertices[:, 2]).max()

    with Image.open(photo) as opened:
        exif = opened.getexif()
        exif[0x8769] = {0xA405: 43}  # millimeters, for 35 mm film of 43.27 in diagonal
        opened.save(photo.with_name("phone.jpg"), exif=exif)
    assert width(photo.with_name("phone.jpg")) == pytest.approx(39 / 50 * 43.27 / 43, rel=1e-3)
    assert width(photo) == pytest.approx(39 / 40 * 2 * np.tan(np.radians(65 / 2)), rel=1e-3)
    assert width(photo, fov=90) == pytest.approx(39 / 40 * 2, rel=1e-3)


def test_measurements_make_meters(photo, folder):
    table = photo.with_name("points.csv")
    truth = 3 * np.linspace(1, 2, 1200).reshape(30, 40) + 0.5
    points = [(x, y, truth[y, x]) for x, y in np.random.default_rng(0).integers(0, 30, (12, 2))]
    table.write_text("x,y,depth\n" + "".join(f"{x},{y},{z}\n" for x, y, z in points))
    made = actions.image_to_depth(Fake(), photo, folder, Settings(), measured=table)
    np.testing.assert_allclose(np.load(made.files[0]), truth, rtol=1e-4)
    with Image.open(made.files[1]) as opened:
        assert opened.text["unit"] == "m"
    assert made.note == "meters = 3 * depth + 0.5, measurements: 12, mean relative error: 0.0%"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n", "points.csv: lacks a column x, y or depth"),
        ("x,y,depth\n99,2,1\n", "points.csv: line 2: .* is outside"),
        ("x,y,depth\n" + "1,2,3\n" * 200_000, "points.csv: has 1200010 bytes; give at most 1 MB"),
    ],
)
def test_wrong_measurements_are_refused(photo, folder, text, message):
    photo.with_name("points.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        measured = photo.with_name("points.csv")
        actions.image_to_depth(Fake(), photo, folder, Settings(), measured=measured)


def test_zero_stands_for_the_number_of_the_config(photo, folder):
    model = Fake()
    actions.image_to_depth(model, photo, folder, Settings())
    assert model.called["steps"] is None


@pytest.mark.parametrize("name", ["depth.npy", "depth.png"])
def test_depth_map_gives_an_image(tmp_path, folder, name):
    depth = np.full((6, 8), 2000, np.uint16)
    depth[0] = 0
    if name.endswith("npy"):
        np.save(tmp_path / name, depth.astype(np.float32) / 1000)
    else:
        Image.fromarray(depth).save(tmp_path / name)
    model = Fake()
    settings = Settings(strength=0.5, guidance=3, condition_guidance=2)
    made = actions.depth_to_image(model, tmp_path / name, " a box ", folder, settings)
    how = {"captions": "a box", "strength": 0.5, "guidance": 3, "steps": None, "seed": 0}
    how["condition_guidance"] = 2
    assert model.called == how
    assert names(made) == ["image.png", "points.ply", "points.glb"] and made.depth is None
    assert len(trimesh.load(made.files[1]).vertices) == 5 * 8
    given = actions.preview(tmp_path / name, folder)
    assert given is not None
    colors = read_image(given)
    assert (colors[0, 0] == 128).all() and not (colors[-1, 0] == 128).all()


def test_caption_gives_image_and_depth_or_the_image_alone(folder):
    model = Fake()
    settings = Settings(log2_alpha=-2, refine=True)
    made = actions.generate(model, "a box", folder, settings, has_depth=True)
    assert (model.called["log2_alpha"], model.called["refine"]) == (-2, True)
    assert names(made)[:3] == ["image.png", "depth.npy", "depth.png"]
    made = actions.generate(model, "a box", folder, settings, has_depth=False)
    assert (model.called["log2_alpha"], model.called["refine"]) == (None, False)
    assert names(made) == ["image.png"] and made.scene is None


def test_uploads_are_checked_first(photo, folder, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_PIXELS", 1000)
    model = Fake()
    with pytest.raises(UserError, match=r"photo.png: has 40 x 30 pixels"):
        actions.image_to_depth(model, photo, folder, Settings())
    assert model.called == {} and not folder.exists()


def test_missing_files_are_asked_for(folder):
    with pytest.raises(UserError, match="no image; upload one"):
        actions.image_to_depth(Fake(), None, folder, Settings())
    with pytest.raises(UserError, match="no depth map; upload one"):
        actions.depth_to_image(Fake(), None, "", folder, Settings())
    assert actions.preview(None, folder) is None


def test_long_captions_are_refused():
    with pytest.raises(UserError, match="the caption has 501 characters; shorten it to at most"):
        actions.check_caption("x" * 501)
    assert actions.check_caption(None) == ""


def test_points_at_jumps_are_left_out(folder):
    depth = np.ones((6, 6), np.float32)
    depth[:, 3:] = 2
    made = Result(np.zeros((6, 6, 3), np.uint8), depth, np.ones((6, 6), bool))
    folder.mkdir()
    scene, files = actions.write_points(made, folder, Settings(jump=40))
    assert len(trimesh.load(files[0]).vertices) == 6 * 4
    shown = next(iter(trimesh.load(scene).geometry.values())).vertices
    assert len(shown) > 30_000 and set(np.abs(np.asarray(shown)[:, 2])) == {1, 2}
    _, files = actions.write_points(made, folder, Settings(jump=KEEP_ALL))
    assert len(trimesh.load(files[0]).vertices) == 36


def test_map_of_jumps_alone_has_no_points(folder):
    depth = np.float32([[1, 2], [2, 1]])
    made = Result(np.zeros((2, 2, 3), np.uint8), depth, np.ones((2, 2), bool))
    assert actions.write_points(made, folder, Settings()) == (None, [])
    assert names(actions.write(made, folder, Settings())) == ["image.png", "depth.npy", "depth.png"]
