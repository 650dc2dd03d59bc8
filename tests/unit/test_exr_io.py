"""OpenEXR: the channel that is depth, floats as stored; any damage is one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing import exr_io
from modality_forcing.data.files import DepthFormat, holds_floats, read_depth
from modality_forcing.data.folder import ImageFolder
from modality_forcing.errors import UserError
from modality_forcing.exr_io import read_depth_channel
from modality_forcing.paths import write_file
from tests import damage, layouts

DEPTH = np.random.default_rng(0).uniform(0.5, 9, (5, 7)).astype(np.float32)
OTHER = DEPTH + 1
HINT = "save it otherwise"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("OpenEXR") is None, reason="needs the extra exr"
)


def write(path: Path, channels: dict[str, np.ndarray], **header: object) -> Path:
    import OpenEXR

    whole = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **header}
    with OpenEXR.File(whole, {name: x.copy() for name, x in channels.items()}) as opened:
        opened.write(str(path))
    return path


@needs_package
@pytest.mark.parametrize(
    "channels",
    [
        {"Y": DEPTH},
        {"anything": DEPTH},
        {"Z": DEPTH, "A": OTHER},
        {"Depth.V": DEPTH},  # Blender's file output
        {"depth": DEPTH, "R": OTHER, "G": OTHER, "B": OTHER},
        {"ViewLayer.Depth.Z": DEPTH, "ViewLayer.Normal.Z": OTHER, "ViewLayer.Mist.Z": OTHER},
        {"R": DEPTH, "G": DEPTH, "B": DEPTH, "A": OTHER},
        {f"WorldDepth.{color}": DEPTH if color != "A" else OTHER for color in "RGBA"},
    ],
    ids=lambda channels: " ".join(channels),
)
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_depth_is_found_by_name_and_read_as_stored(tmp_path: Path, channels, kind):
    path = write(tmp_path / "a.exr", {name: x.astype(kind) for name, x in channels.items()})
    read = read_depth_channel(path, HINT)
    assert read.dtype == kind
    np.testing.assert_array_equal(read, DEPTH.astype(kind))


@needs_package
def test_other_files_are_one_line(tmp_path: Path):
    import OpenEXR

    shifted = {
        "dataWindow": (np.array([2, 0], np.int32), np.array([8, 4], np.int32)),
        "displayWindow": (np.array([0, 0], np.int32), np.array([9, 4], np.int32)),
    }
    cases = [
        ({"R": DEPTH, "G": OTHER, "B": DEPTH}, {}, "has channels B, G, R, none of which is depth"),
        ({"ViewLayer.Normal.Z": DEPTH, "Y": DEPTH}, {}, "none of which is depth; save it other"),
        ({"Z": DEPTH.astype(np.uint32)}, {}, "holds uint32, not floats"),
        ({"Z": DEPTH}, shifted, "another part of the view .* without a crop or overscan"),
    ]
    for channels, header, message in cases:
        path = write(tmp_path / "a.exr", channels, **header)
        with pytest.raises(UserError, match=rf"a\.exr: .*{message}"):
            read_depth_channel(path, HINT)
    headers = [{"type": OpenEXR.scanlineimage, "name": name} for name in ("left", "right")]
    parts = [OpenEXR.Part(header, {"Z": DEPTH.copy()}) for header in headers]
    with OpenEXR.File(parts) as opened:
        opened.write(str(tmp_path / "a.exr"))
    with pytest.raises(UserError, match="has several parts; export depth as one flat layer"):
        read_depth_channel(tmp_path / "a.exr", HINT)
    with pytest.raises(UserError, match="no such file"):
        read_depth_channel(tmp_path / "none.exr", HINT)


@needs_package
def test_more_pixels_than_a_map_should_have_are_not_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(exr_io, "_MAX_PIXELS", 34)
    with pytest.raises(UserError, match="more pixels than a depth map should have"):
        read_depth_channel(write(tmp_path / "a.exr", {"Z": DEPTH}), HINT)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("exr") / "a.exr"
    return write(path, {"ViewLayer.Depth.Z": DEPTH, "R": OTHER}).read_bytes()


@needs_package
@damage.examples(100)
@given(st.data())
def test_any_damage_is_one_line_or_harmless(content: bytes, tmp_path: Path, capsys, data):
    path = tmp_path / "damaged.exr"
    path.write_bytes(data.draw(damage.of(content)))
    try:
        read = read_depth_channel(path, HINT)
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert read.ndim == 2 and read.dtype.kind == "f"
    assert capsys.readouterr().out == ""  # the library prints there


@needs_package
def test_folder_reads_floats_of_a_renderer(tmp_path: Path):
    image = layouts.image(tmp_path / "images/caf\u00e9.png", 5, 7)
    depth = DEPTH.copy()
    depth[0] = 1e10, np.inf, np.nan, 0, 1, 1, 1
    (tmp_path / "depth").mkdir()
    write(tmp_path / "depth/caf\u00e9.exr", {"ViewLayer.Depth.Z": depth})
    assert holds_floats(tmp_path / "depth/caf\u00e9.exr")
    record = ImageFolder(tmp_path, resolution=5, depth_max=100)[0]
    np.testing.assert_array_equal(record.image, image[:, 1:6])
    np.testing.assert_array_equal(record.valid[0], [False, False, False, True, True])
    np.testing.assert_array_equal(record.depth[1:], depth[1:, 1:6])
    with pytest.raises(UserError, match=r"\.exr: holds floats, which are depth already"):
        ImageFolder(tmp_path, resolution=5, depth_scale=0.001)


def test_missing_package_is_reported_with_its_extra(tmp_path: Path, monkeypatch):
    layouts.image(tmp_path / "images/a.png", 5, 7)
    path = layouts.junk(tmp_path / "depth/a.exr")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"a\.exr: needs the package OpenEXR; pip install 'modality_forcing\[exr\]'"
    with pytest.raises(UserError, match=message):
        ImageFolder(tmp_path, resolution=5)
    with pytest.raises(UserError, match=message):
        read_depth(path, DepthFormat())


@needs_package
def test_file_of_a_bucket(gs_path: Path, tmp_path: Path):
    content = write(tmp_path / "depth.exr", {"Z": DEPTH}).read_bytes()
    write_file(gs_path / "depth.exr", content)
    np.testing.assert_array_equal(read_depth_channel(gs_path / "depth.exr", HINT), DEPTH)
    write_file(gs_path / "depth.exr", content[:60])
    with pytest.raises(UserError, match=r"gs://bucket/.*/depth.exr: cannot be read as OpenEXR"):
        read_depth_channel(gs_path / "depth.exr", HINT)
