"""`mforce sample` on a checkpoint of random weights: the files of every mode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing import cli
from modality_forcing.commands import sample
from modality_forcing.data.resize import Window
from modality_forcing.generator import Generator, Output
from tests.runs import refused


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A depth map in millimeters, about 10% of it valid."""
    rng = np.random.default_rng(1)
    depth = np.where(rng.random((24, 40)) < 0.1, rng.uniform(1000, 9000, (24, 40)), 0)
    Image.fromarray(depth.astype(np.uint16)).save(tmp_path / "sparse.png")
    return tmp_path / "sparse.png"


def make(mforce, checkpoint: Path, out: Path, mode: str, *more: object) -> dict[str, bytes]:
    """Samples and returns the files by name; checks them against the paths printed."""
    done = mforce("sample", "--checkpoint", checkpoint, "--mode", mode, "--out", out, *more)
    assert (done.code, done.err) == (0, ""), done.err
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(done.out.split()) == sorted(str(path) for path in out.iterdir())
    return files


DEPTH = ("_depth.npy", "_depth.png", "_depth.json", "_depth_color.png")


def names(mode: str, n: int, *kinds: str) -> set[str]:
    return {f"{mode}_{i:03d}{kind}" for i in range(n) for kind in kinds}


def depth_of(out: Path, stem: str) -> np.ndarray:
    """Returns an example's .npy, compared with the 16-bit PNG and its scale."""
    depth = np.load(out / f"{stem}.npy", allow_pickle=False)
    sidecar = json.loads((out / f"{stem}.json").read_text())
    with Image.open(out / f"{stem}.png") as opened:
        codes, scale = np.asarray(opened), float(opened.info["scale"])
        assert opened.mode.startswith("I")
    assert sidecar == {"scale": scale, "unit": "relative", "invalid": 0}
    np.testing.assert_array_equal(codes > 0, np.isfinite(depth))
    assert np.abs(codes * scale - depth)[codes > 0].max() <= scale
    with Image.open(out / f"{stem}_color.png") as opened:
        assert (opened.mode, opened.size) == ("RGB", depth.shape[::-1])
    return depth


def test_joint(mforce, forcing_run: Path, tmp_path: Path):
    captions = ["--caption", "a red ball", "--caption", "two boxes", "--n", 2, "--steps", 2]
    files = make(mforce, forcing_run, tmp_path / "out", "joint", *captions)
    assert set(files) == names("joint", 4, "_image.png", *DEPTH)
    depths = [depth_of(tmp_path / "out", f"joint_{i:03d}_depth") for i in range(4)]
    for depth in depths:
        assert depth.shape == (16, 16) and depth.dtype == np.float32 and (depth > 0).all()
    images = {files[f"joint_{i:03d}_image.png"] for i in range(4)}
    assert len(images) == 4, "examples of one caption differ"

    again = make(mforce, forcing_run, tmp_path / "again", "joint", *captions)
    assert again == files
    other = make(mforce, forcing_run, tmp_path / "other", "joint", *captions, "--seed", 1)
    generated = [name for name in files if name.endswith((".npy", "image.png"))]
    assert not any(other[name] == files[name] for name in generated)

    refined = make(mforce, forcing_run, tmp_path / "refined", "joint", *captions, "--refine")
    assert refined["joint_000_image.png"] == files["joint_000_image.png"]
    assert refined["joint_000_depth.npy"] != files["joint_000_depth.npy"]

    # The first example alone differs only by the rounding of another batch size.
    make(mforce, forcing_run, tmp_path / "one", "joint", "--caption", "a red ball", "--steps", 2)
    np.testing.assert_allclose(depth_of(tmp_path / "one", "joint_000_depth"), depths[0], rtol=1e-3)


def test_image_to_depth(mforce, forcing_run: Path, photo: Path, tmp_path: Path):
    files = make(mforce, forcing_run, tmp_path / "out", "i2d", "--image", photo)
    assert set(files) == names("i2d", 1, "_image.png", *DEPTH)
    cropped = depth_of(tmp_path / "out", "i2d_000_depth")
    stretch = ["--image", photo, "--resize-mode", "stretch"]
    make(mforce, forcing_run, tmp_path / "stretched", "i2d", *stretch)
    assert not np.array_equal(depth_of(tmp_path / "stretched", "i2d_000_depth"), cropped)
    assert cropped.shape == (16, 16) and np.isfinite(cropped).all()


def test_depth_to_image(mforce, forcing_run: Path, sparse: Path, tmp_path: Path):
    options = ["--depth", sparse, "--n", 2, "--depth-scale"]
    files = make(mforce, forcing_run, tmp_path / "out", "d2i", *options, 0.001)
    assert set(files) == names("d2i", 2, "_image.png", *DEPTH)
    depth = depth_of(tmp_path / "out", "d2i_000_depth")
    assert 0 < np.isfinite(depth).mean() < 1, "unknown pixels stay unknown"
    np.testing.assert_array_equal(depth, depth_of(tmp_path / "out", "d2i_001_depth"))
    assert files["d2i_000_image.png"] != files["d2i_001_image.png"]
    # Depth is relative: the unit of the file does not matter.
    meters = make(mforce, forcing_run, tmp_path / "meters", "d2i", *options, 1)
    assert meters["d2i_000_image.png"] == files["d2i_000_image.png"]


def test_partial(mforce, forcing_run: Path, sparse: Path, tmp_path: Path):
    options = ["--depth", sparse, "--depth-scale", 0.001, "--solver", "heun", "--steps", 2]
    close = make(mforce, forcing_run, tmp_path / "close", "partial", *options, "--log2-alpha", -8)
    loose = make(mforce, forcing_run, tmp_path / "loose", "partial", *options, "--log2-alpha", 8)
    assert set(close) == set(loose) == names("partial", 1, "_image.png", *DEPTH)
    assert close["partial_000_image.png"] != loose["partial_000_image.png"]


@pytest.mark.parametrize("run", ["t2i_run", "forcing_run"])
def test_text_to_image(mforce, request, run: str, tmp_path: Path):
    options = ["--caption", "a red ball", "--guidance", 3]
    files = make(mforce, request.getfixturevalue(run), tmp_path / "out", "t2i", *options)
    assert set(files) == names("t2i", 1, "_image.png")
    with Image.open(tmp_path / "out/t2i_000_image.png") as opened:
        assert (opened.mode, opened.size) == ("RGB", (16, 16))


def test_checkpoint_is_a_workdir_its_checkpoints_or_a_step(mforce, t2i_run: Path, tmp_path: Path):
    paths = (t2i_run, t2i_run / "checkpoints", t2i_run / "checkpoints/0")
    made = [make(mforce, path, tmp_path / str(i), "t2i") for i, path in enumerate(paths)]
    assert made[0] == made[1] == made[2]


def test_resize_modes():
    wide = np.zeros((24, 40, 3))
    assert sample.window(wide, (16, 16), "stretch") == Window(0, 0, 24, 40)
    assert sample.window(wide, (16, 16), "crop") == Window(0, 8, 24, 24)
    assert sample.window(wide, (16, 32), "crop") == Window(2, 0, 20, 40)


def test_size_of_the_pictures(mforce, forcing_run: Path, photo: Path, sparse: Path, tmp_path: Path):
    for mode, given in (("i2d", ["--image", photo]), ("d2i", ["--depth", sparse])):
        scale = ["--depth-scale", 0.001] if mode == "d2i" else []
        size = ["--size", "32x16"]
        make(mforce, forcing_run, tmp_path / mode, mode, *given, *scale, *size)
        assert np.load(tmp_path / mode / f"{mode}_000_depth.npy").shape == (16, 32)
        with Image.open(tmp_path / mode / f"{mode}_000_image.png") as image:
            assert image.size == (32, 16)


def test_wrong_sizes_are_one_line(mforce, forcing_run: Path, tmp_path: Path):
    base = ["sample", "--checkpoint", forcing_run, "--mode", "joint", "--out", tmp_path / "o"]
    for size, message in (
        ("20x16", "20 x 16 pixels are not whole"),
        ("0", "'0' is no size"),
        ("40000", "'40000' is above 8192 pixels a side"),
    ):
        done = mforce(*base, "--size", size)
        assert done.code == 2 and message in done.err and not (tmp_path / "o").exists()


def test_inputs_have_the_resolution_of_the_model(photo: Path, sparse: Path):
    options = cli.build_parser().parse_args(
        ["sample", "--checkpoint", "c", "--mode", "i2d", "--out", "o", "--image", str(photo)]
    )
    assert sample.read_inputs(options, (16, 16))["image"].shape == (16, 16, 3)
    options.image, options.depth, options.depth_scale = None, sparse, 0.001
    inputs = sample.read_inputs(options, (16, 16))
    assert inputs["depth"].shape == inputs["valid"].shape == (16, 16)
    values = inputs["depth"][inputs["valid"]]
    assert len(values) and values.min() >= 1 and values.max() <= 9


def test_mark_of_missing_depth_is_noticed_and_excluded(tmp_path: Path, capsys):
    counts = np.arange(1000, 1000 + 32 * 32, dtype=np.uint16).reshape(32, 32)
    counts[:4] = 65535
    path = tmp_path / "depth.png"
    Image.fromarray(counts).save(path)
    options = cli.build_parser().parse_args(
        [
            "sample",
            "--checkpoint=c",
            "--mode=d2i",
            "--out=o",
            f"--depth={path}",
            "--depth-scale=0.001",
        ]
    )
    assert sample.read_inputs(options, (32, 32))["depth"].max() == np.float32(65.535)
    note = f"{path}: 65.535 fills 12% of it; if it marks missing depth, set --depth-invalid"
    assert capsys.readouterr().err.startswith(note)
    for name, value in (("depth_invalid", 65535.0), ("depth_max", 60.0)):
        vars(options).update(depth_invalid=None, depth_max=None)
        vars(options)[name] = value
        inputs = sample.read_inputs(options, (32, 32))
        assert inputs["depth"].max() < 2.1 and not inputs["valid"][:4].any()
        assert inputs["valid"][4:].all() and capsys.readouterr().err == ""


def test_images_that_are_not_finite_are_never_written(mforce, t2i_run, tmp_path, monkeypatch):
    run = Generator.run

    def broken(*arguments, **options):
        made = run(*arguments, **options)
        return Output(made.tokens, {name: x * np.nan for name, x in made.images.items()})

    monkeypatch.setattr(Generator, "run", broken)
    out = tmp_path / "out"
    done = mforce("sample", "--checkpoint", t2i_run, "--mode", "t2i", "--out", out)
    refused(done, "run: generated image with values that are not finite; check the weights")
    assert not out.exists()
