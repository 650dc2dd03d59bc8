"""External estimators: maps of a folder, a user's function, and one error line per problem."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.evaluation import estimators
from modality_forcing.evaluation.estimators import (
    BATCH_SIZE,
    from_callable,
    from_folder,
    parse_estimator,
)
from modality_forcing.paths import write_file
from modality_forcing.viz.images import png_bytes, save_depth

SIDE = 8
NAMES = ["d2i/0000", "d2i/0001"]
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
MAPS = RNG.uniform(0.5, 9, (2, SIDE, SIDE)).astype(np.float32)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two maps, one as .npy and one as the 16-bit PNG of save_depth."""
    write_npy(tmp_path / "d2i" / "0000.npy", MAPS[0])
    save_depth(tmp_path / "d2i" / "0001", MAPS[1])
    (tmp_path / "d2i" / "0001.npy").unlink()
    return tmp_path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Returns a function that writes a module on sys.path and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(body: str) -> str:
        name = f"estimator_{tmp_path.name.replace('-', '_')}_{len(written)}"
        (tmp_path / f"{name}.py").write_text("import numpy as np\n" + body)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def write_npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def refused(message: str, work) -> None:
    with pytest.raises(UserError, match=message) as caught:
        work()
    assert "\n" not in str(caught.value)


def test_maps_are_read_by_name_up_to_scale(folder):
    depth, valid = from_folder(folder)(IMAGES, NAMES)
    assert depth.shape == valid.shape == (2, SIDE, SIDE) and valid.all()
    np.testing.assert_array_equal(depth[0], MAPS[0])
    scale = depth[1] / MAPS[1]  # PNG counts have their own unit, which alignment removes
    assert np.ptp(scale) / scale.mean() < 1e-3
    turned, _ = from_folder(folder)(IMAGES[::-1], NAMES[::-1])
    np.testing.assert_array_equal(turned[1], MAPS[0])


def test_nan_and_zero_are_invalid(folder):
    holes = np.where(np.eye(SIDE, dtype=bool), np.nan, MAPS[0])
    holes[0, 1] = 0
    write_npy(folder / "d2i" / "0000.npy", holes)
    depth, valid = from_folder(folder)(IMAGES, NAMES)
    expected = ~np.eye(SIDE, dtype=bool)
    expected[0, 1] = False
    np.testing.assert_array_equal(valid[0], expected)
    np.testing.assert_array_equal(depth[0], np.where(expected, MAPS[0], 0))


def test_maps_of_other_sizes_are_sampled_and_never_interpolated(folder):
    write_npy(folder / "d2i" / "0000.npy", np.kron(MAPS[0], np.ones((3, 3), np.float32)))
    write_npy(folder / "d2i" / "0001.npy", MAPS[1][::2, ::2])
    depth, valid = from_folder(folder)(IMAGES, NAMES)
    np.testing.assert_array_equal(depth[0], MAPS[0])
    np.testing.assert_array_equal(depth[1], np.kron(MAPS[1][::2, ::2], np.ones((2, 2), np.float32)))
    assert valid.all()


@pytest.mark.parametrize(
    "case, message",
    [
        (
            "missing",
            r"1 of 2 maps are missing, .* d2i/0001.npy \(or .exr, or .png of 16 bits\); write the",
        ),
        ("image", "1 of 2 maps are missing, the first is d2i/0001"),
        (
            "aspect",
            "0000.npy: has 8 x 10 pixels for an image of 8 x 8; give depth of the whole image",
        ),
        ("flat", r"0000.npy: has shape \(8,\), not \[h w\]"),
        ("negative", "0000.npy: depth holds negative values"),
        ("unknown", "0000.npy: holds no valid depth"),
        ("text", "0000.npy: holds <U1, not numbers"),
        ("damaged", "0001.png: cannot be read as a depth map"),
    ],
)
def test_invalid_maps_are_reported_in_one_line(folder, case, message):
    first, second = folder / "d2i" / "0000.npy", folder / "d2i" / "0001.png"
    bad = {
        "aspect": np.ones((8, 10)),
        "flat": np.ones(8),
        "negative": -MAPS[0],
        "unknown": np.full((8, 8), np.nan),
    }
    if case == "missing":
        second.unlink()
    elif case == "image":
        Image.fromarray(IMAGES[1]).save(second)
    elif case == "damaged":
        second.write_bytes(second.read_bytes()[:60])
    else:
        write_npy(first, bad.get(case, np.array([["a"]])))
    refused(message, lambda: from_folder(folder)(IMAGES, NAMES))


def test_maps_of_other_images_are_refused(tmp_path):
    for name, image, depth in zip(NAMES, IMAGES, MAPS, strict=True):
        write_file(tmp_path / f"{name}.png", png_bytes(image))
        write_npy(tmp_path / f"{name}.npy", depth)
    estimator = from_folder(tmp_path)
    rounded = np.clip(IMAGES.astype(int) + RNG.integers(-1, 2, IMAGES.shape), 0, 255).astype(
        np.uint8
    )
    for same in (IMAGES, rounded):
        np.testing.assert_array_equal(estimator(same, NAMES)[0], MAPS)
    message = "0000.png: differs from this checkpoint's image; write the images again"
    refused(message, lambda: estimator(IMAGES[::-1], NAMES))
    refused(message, lambda: estimator(np.zeros((2, 16, 16, 3), np.uint8), NAMES))


def test_fingerprint_depends_on_the_named_maps_only(folder):
    estimator = from_folder(folder)
    before = estimator.fingerprint(NAMES), estimator.fingerprint(NAMES[1:])
    assert before == (estimator.fingerprint(NAMES), estimator.fingerprint(NAMES[1:]))
    write_npy(folder / "d2i" / "0000.npy", MAPS[0] + 1)
    os.utime(folder / "d2i" / "0000.npy", ns=(1, 1))  # however coarse the clock of the file system
    assert (
        estimator.fingerprint(NAMES) != before[0] and estimator.fingerprint(NAMES[1:]) == before[1]
    )


def test_function_is_called_in_batches(module):
    name = module(
        "sizes = []\ndef near(x):\n    sizes.append(x.shape)\n    x[:, 0] = 0\n"
        "    return x[..., 0] + 1.0\n"
    )
    estimator = from_callable(f"{name}:near")
    many = np.broadcast_to(IMAGES[:1], (BATCH_SIZE + 3, SIDE, SIDE, 3))
    depth, valid = estimator(many, [""] * len(many))
    assert sys.modules[name].sizes == [(BATCH_SIZE, SIDE, SIDE, 3), (3, SIDE, SIDE, 3)]
    expected = IMAGES[0, ..., 0] + 1.0
    expected[0] = 1
    assert depth.dtype == np.float32 and valid.all()
    np.testing.assert_array_equal(depth, np.broadcast_to(expected, depth.shape).astype(np.float32))
    assert estimator.name == f"{name}:near"


def test_maps_of_a_function_are_read_like_files(module):
    body = (
        "def larger(x):\n    z = np.full((len(x), 24, 24), 2.0)\n"
        "    z[:, :3] = np.inf\n    z[:, :, :3] = 0\n    return z\n"
        "class Model:\n    @staticmethod\n"
        "    def predict(x):\n        return np.ones(x.shape[:3], int)\n"
    )
    name = module(body)
    depth, valid = from_callable(f"{name}:larger")(IMAGES, NAMES)
    expected = np.ones((2, SIDE, SIDE), bool)
    expected[:, 0] = expected[:, :, 0] = False
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(depth, 2.0 * expected)
    assert from_callable(f"{name}:Model.predict")(IMAGES, NAMES)[0].dtype == np.float32


@pytest.mark.parametrize(
    "answer, message",
    [
        ("x[..., 0]", "a map has no valid depth"),
        ("-np.ones(x.shape[:3])", r"depth has negative values \(down to -1\)"),
        (
            "np.ones((1, 8, 8))",
            r"returned float64 \(1, 8, 8\) for images \(2, 8, 8, 3\), not depth",
        ),
        ("np.ones((2, 8, 8, 1))", r"returned float64 \(2, 8, 8, 1\)"),
        ("np.ones((2, 8, 9))", "has 8 x 9 pixels for an image of 8 x 8"),
        ("None", r"returned object \(\) for images"),
        ("[['a'] * 8] * 2", "returned <U1"),
        ("[[1], [1, 2]]", "failed .ValueError"),
        ("1 // 0", r"failed \(ZeroDivisionError: .*, estimator_.*\.py:3\); fix it"),
        ("open('/nowhere\\n/at all')", "failed .FileNotFoundError"),
    ],
)
def test_failing_function_is_reported_in_one_line(module, answer, message):
    name = module(f"def depth(x):\n    return {answer}\n")
    black = IMAGES * 0 if answer == "x[..., 0]" else IMAGES
    refused(f"^{name}:depth: .*{message}", lambda: from_callable(f"{name}:depth")(black, NAMES))


def test_missing_function_is_reported_in_one_line(module):
    refused(
        "^no_such_module_here: cannot be imported .ModuleNotFoundError",
        lambda: from_callable("no_such_module_here:f"),
    )
    broken = module("this is no python\n")
    refused(f"^{broken}: cannot be imported .SyntaxError", lambda: from_callable(f"{broken}:f"))
    needs = module("raise RuntimeError('no GPU\\nat all')\n")
    refused(
        f"^{needs}: cannot be imported .RuntimeError: no GPU at all",
        lambda: from_callable(f"{needs}:f"),
    )
    name = module("depth = 3\n")
    for path in ("f", "depth", "depth.real.f"):
        refused(
            f"^{name}: has no function {path}", lambda path=path: from_callable(f"{name}:{path}")
        )


def test_function_is_found_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found_in_the_current_folder.py").write_text(
        "def depth(x):\n    return x[..., 0] + 1\n"
    )
    estimator = from_callable("found_in_the_current_folder:depth")
    version = estimator.fingerprint(NAMES)
    assert version and version == estimator.fingerprint([])
    (tmp_path / "found_in_the_current_folder.py").write_text(
        "def depth(x):\n    return x[..., 1] + 1\n"
    )
    assert estimator.fingerprint(NAMES) != version
    assert from_callable("math:sqrt").fingerprint(NAMES) == from_callable("math:sqrt").fingerprint(
        NAMES
    )


def test_estimator_argument_is_parsed(folder, module):
    assert parse_estimator("self") is None
    assert isinstance(parse_estimator(str(folder)), estimators._FolderEstimator)
    name = module("def f(x):\n    return x\n")
    function = parse_estimator(f"{name}:f")
    assert function is not None and function.name == f"{name}:f"
    for text in ("", "maps", str(folder / "no"), "module:", ":f", "a b:f", "C:\\maps"):
        refused(
            "is neither a folder nor a function; give self, a folder",
            lambda text=text: parse_estimator(text),
        )
    refused("no such folder", lambda: from_folder(folder / "no"))
