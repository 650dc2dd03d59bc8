"""`mforce sample` on a checkpoint of random weights: the files of every mode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    assert set(files) == {"manifest.jsonl", *(f"photo{kind}" for kind in DEPTH)}
    whole = depth_of(tmp_path / "out", "photo_depth")
    assert whole.shape == (24, 40) and np.isfinite(whole).all()
    crop = ["--image", photo, "--fit", "crop"]
    make(mforce, forcing_run, tmp_path / "cropped", "i2d", *crop)
    cropped = depth_of(tmp_path / "cropped", "photo_depth")
    assert np.isfinite(cropped[:, 8:32]).all() and np.isnan(cropped[:, :8]).all()


def test_depth_to_image(mforce, forcing_run: Path, sparse: Path, tmp_path: Path):
    options = ["--depth", sparse, "--n", 2, "--depth-scale"]
    files = make(mforce, forcing_run, tmp_path / "out", "d2i", *options, 0.001)
    assert set(files) == {"manifest.jsonl", "sparse_000_image.png", "sparse_001_image.png"}
    assert files["sparse_000_image.png"] != files["sparse_001_image.png"]
    with Image.open(tmp_path / "out/sparse_000_image.png") as opened:
        assert (opened.mode, opened.size) == ("RGB", (40, 24))
    # Depth is relative: the unit of the file does not matter.
    meters = make(mforce, forcing_run, tmp_path / "meters", "d2i", *options, 1)
    assert meters["sparse_000_image.png"] == files["sparse_000_image.png"]


def test_partial(mforce, forcing_run: Path, sparse: Path, tmp_path: Path):
    options = ["--depth", sparse, "--depth-scale", 0.001, "--solver", "heun", "--steps", 2]
    close = make(mforce, forcing_run, tmp_path / "close", "partial", *options, "--log2-alpha", -8)
    loose = make(mforce, forcing_run, tmp_path / "loose", "partial", *options, "--log2-alpha", 8)
    assert set(close) == set(loose) == {"manifest.jsonl", "sparse_image.png"}
    assert close["sparse_image.png"] != loose["sparse_image.png"]


@pytest.mark.parametrize(
    ("mode", "files", "more", "message"),
    [
        ("i2d", "a.png b.png", ["--scale-from", "one.csv"], "one.csv: measures one photo, 2 are"),
        ("i2d", "a.png", ["--scale-from", "one.csv"], None),
        ("d2i", "f.npy", [], "f.npy: holds floats, which --depth-scale does not apply to"),
        ("d2i", "f.npy g.npy", [], "does not apply to, as do all 2 files; leave it out"),
        ("d2i", "f.npy mm.npy", [], None),
    ],
)
def test_files_are_compared_before_the_checkpoint_is_read(
    mforce, photo: Path, tmp_path: Path, mode: str, files: str, more, message: str | None
):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    for name, kind in {"f": np.float32, "g": np.float32, "mm": np.uint16}.items():
        np.save(tmp_path / f"{name}.npy", np.ones((2, 2), kind))
    (tmp_path / "one.csv").write_text("x,y,depth\n1,2,3\n")
    more = [*more[:-1], tmp_path / more[-1]] if more else ["--depth-scale", 0.001]
    given = ["--image" if mode == "i2d" else "--depth", *(tmp_path / x for x in files.split())]
    where = ["--checkpoint", tmp_path / "none", "--out", tmp_path / "out"]
    done = mforce("sample", "--mode", mode, *where, *given, *more)
    refused(done, message or f"{tmp_path / 'none'}: ")
    assert not (tmp_path / "out").exists()


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


def test_size_of_the_images(mforce, forcing_run: Path, tmp_path: Path):
    size = ["--size", "32x16", "--steps", 1]
    make(mforce, forcing_run, tmp_path / "out", "joint", *size)
    assert np.load(tmp_path / "out/joint_000_depth.npy").shape == (16, 32)
    with Image.open(tmp_path / "out/joint_000_image.png") as image:
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["joint", "--fit", "crop"], "mode joint does not take --fit"),
        (["joint", "--formats", "npy"], "mode joint does not take --formats"),
        (["d2i", "--depth", "{photo}", "--ensemble", 2], "mode d2i does not take --ensemble"),
        (["joint", "--condition-guidance", "image=2"], "mode joint has no condition 'image' to"),
        (
            ["d2i", "--depth", "{photo}", "--condition-guidance", "image=2,depth=2"],
            "mode d2i has no condition 'image' to guide by; its condition is depth",
        ),
        (["i2d", "--image", "{photo}", "--fov", 60], "--fov is for --points; add --points"),
        (["i2d", "--image", "{photo}", "--points", "ply", "--fov", 200], "field of view is 200"),
        (["i2d", "--image", "{photo}", "--edge", 0.1], "--edge is for --points; add --points"),
        (["i2d", "--image", "{photo}", "--points", "ply", "--edge", 0], "tolerance of edges is 0"),
        (["i2d", "--image", "{photo}", "--ensemble", 65], "--ensemble is 65; give a whole number"),
        (["i2d", "--image", "{photo}", "--guidance", 3], "mode i2d does not take --guidance"),
        (["i2n", "--image", "{photo}", "--guidance", 3], "mode i2n does not take --guidance"),
        (["i2n", "--image", "{photo}", "--ensemble", 3], "mode i2n does not take --ensemble"),
        (["i2n", "--image", "{photo}", "--formats", "exr"], "exr is of depth alone; choose from"),
        (["d2n"], "mode d2n needs an input; name it with --depth FILE"),
        (["i2d", "--image", ""], "argument --image: is empty: name a path"),
        (["i2d", "--image", "{photo}", "--formats", "npy,jpg"], "unknown format 'jpg'; choose"),
        (["i2d", "--image", "{photo}", "--scale-from", "none.csv"], "none.csv: no such file"),
        (["i2d", "--image", "{photo}", "--depth-scale", 1], "mode i2d does not take --depth-scale"),
        (["i2d", "--image", "{photo}", "--max-errors", 2], "'2' is not a fraction from 0 to 1"),
    ],
)
def test_wrong_requests_are_one_line(mforce, photo: Path, tmp_path: Path, options, message: str):
    mode, *rest = (str(x).format(photo=photo) for x in options)
    out = tmp_path / "out"
    done = mforce("sample", "--checkpoint", tmp_path, "--out", out, "--mode", mode, *rest)
    refused(done, message)
    assert not out.exists()


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
