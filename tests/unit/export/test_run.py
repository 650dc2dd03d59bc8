"""`run.py` of an exported program, on a folder made by hand; it names what is wrong in one line."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from modality_forcing.export import run
from modality_forcing.export.run import Mistake

pytest.importorskip("flatbuffers")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A program whose depth is a function of all that it gets, as its export describes it."""
    folder = tmp_path_factory.mktemp("program")

    def depth(weights, images, seed, index):
        gray = images.astype(jnp.float32).mean(-1) * weights["scale"][0]
        return gray + weights["offset"].astype(jnp.float32) + 1000 * seed + index[:, None, None]

    weights = {"scale": np.array([2], np.float32), "offset": np.ones((), jnp.bfloat16)}
    (b,) = jax.export.symbolic_shape("b")
    program = jax.export.export(jax.jit(depth))(
        weights,
        jax.ShapeDtypeStruct((b, 4, 5, 3), jnp.uint8),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((b,), jnp.int32),
    )
    content = bytes(program.serialize())
    described = {"file": "i2d.jaxexport", "size": [4, 5], "jax": jax.__version__}
    described["sha256"] = hashlib.sha256(content).hexdigest()
    manifest = {"program": described, "weights": {n: run.describe(x) for n, x in weights.items()}}
    (folder / "i2d.jaxexport").write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    save_file(weights, folder / "weights.safetensors", {"about": "not a weight"})
    shutil.copy(run.__file__, folder / "run.py")
    return folder


def test_weights_are_read_as_others_write_them(made: Path):
    weights = run.read_weights(made / "weights.safetensors")
    assert weights.keys() == {"scale", "offset"}
    assert (weights["scale"].dtype, weights["scale"].tolist()) == (np.float32, [2.0])
    assert (weights["offset"].dtype, weights["offset"].shape) == (jnp.bfloat16, ())
    assert weights["offset"] == 1


def test_depth_is_that_of_the_program(made: Path):
    estimate, gray = run.load(made), 2 * IMAGES.mean(-1) + 1
    np.testing.assert_allclose(estimate(IMAGES), gray + np.arange(3)[:, None, None], rtol=1e-6)
    np.testing.assert_allclose(estimate(IMAGES[:1], seed=3), gray[:1] + 3000, rtol=1e-6)
    with pytest.raises(Mistake, match="images: not u8 "):
        estimate(IMAGES[0])
    with pytest.raises(ValueError, match="seed: is -1; give a whole number"):
        estimate(IMAGES, seed=-1)


@pytest.fixture
def script(made: Path, monkeypatch, tmp_path: Path, capsys):
    """Runs run.py in this process, as a command, and returns the only line that it writes."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: object, at: Path = made) -> str:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(at / "run.py"), run_name="__main__")
        out, err = capsys.readouterr()
        assert stopped.value.code == 2 and err.count("\n") == 1 and not out, err
        return err

    return called


def test_script_says_what_is_wrong_with_arguments(script):
    for arguments in ((), ("images.npy",), ("a", "b", "1", "2")):
        assert script(*arguments) == "usage: python run.py IMAGES.npy DEPTH.npy [SEED]\n"
    np.save("images.npy", IMAGES)
    Path("text.npy").write_text("no array")
    Path("cut.npy").write_bytes(Path("images.npy").read_bytes()[:-9])
    np.save("objects.npy", np.array([None, "a"]), allow_pickle=True)
    for seed in ("five", "-1", "2147483648", "1.5"):
        found = script("images.npy", "depth.npy", seed)
        assert found == f"seed: is {seed}; give a whole number from 0 to 2147483647\n"
    assert script("none.npy", "out.npy") == "none.npy: No such file or directory; check the path\n"
    for name in ("text.npy", "cut.npy", "objects.npy"):
        assert re.match(
            rf"{name}: is no \.npy of numbers \(.+\); write it", script(name, "out.npy")
        )
    for images, expected in (
        (IMAGES[0], r"u8 \[4 5 3\]; add the axis of the batch: images\[None\]"),
        (IMAGES / np.float32(255), r"float32 \[3 4 5 3\]; scale colors to 0 to 255"),
        (IMAGES[:, 1:], r"u8 \[3 3 5 3\]; resize them to 4 rows and 5 columns"),
        (IMAGES.transpose(0, 3, 1, 2), r"u8 \[3 3 4 5\]; channels come last"),
        (IMAGES[:0], r"u8 \[0 4 5 3\]; give at least one"),
    ):
        np.save("wrong.npy", images)
        message = r"wrong\.npy: not u8 \[b 4 5 3\] but " + expected
        assert re.match(message, script("wrong.npy", "out.npy"))
    for out in ("nowhere/out.npy", "."):
        assert f"{out}: cannot be written; name a file" in script("images.npy", out)


def test_script_writes_all_of_the_depth_or_nothing(script, made: Path, tmp_path, monkeypatch):
    np.save("images.npy", IMAGES)
    monkeypatch.setattr(sys, "argv", ["run.py", "images.npy", "depth.npy", "5"])
    runpy.run_path(str(made / "run.py"), run_name="__main__")
    np.testing.assert_array_equal(np.load("depth.npy"), run.load(made)(IMAGES, 5))

    def full(file, array) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    expected = "depth.npy: cannot be written (No space left on device); choose another place\n"
    assert script("images.npy", "depth.npy") == expected
    assert {path.name for path in tmp_path.iterdir()} == {"images.npy", "depth.npy"}
    assert np.load("depth.npy").shape == (3, 4, 5)  # the one before


def test_script_names_the_package_that_is_missing(script, monkeypatch):
    for package in ("ml_dtypes", "jax"):
        monkeypatch.setitem(sys.modules, package, None)
        expected = f"the package {package} is missing; pip install jax flatbuffers\n"
        assert script("images.npy", "depth.npy") == expected


def test_script_refuses_a_damaged_folder(script, made: Path, tmp_path: Path):
    np.save("images.npy", IMAGES)
    at = tmp_path / "copy"
    for name, damage, expected in (
        ("weights.safetensors", lambda x: x[:-1] + bytes([x[-1] ^ 1]), "1 weights are not those"),
        ("weights.safetensors", lambda x: x[:-1], r"cannot be read \("),
        ("weights.safetensors", None, r"cannot be read \(No such file"),
        ("i2d.jaxexport", lambda x: x[:-9], "is not the manifest's: cut or changed"),
        ("i2d.jaxexport", None, r"cannot be read \(No such file"),
        ("manifest.json", lambda x: x[:99], r"cannot be read \("),
        ("manifest.json", lambda _: b"[]", r"cannot be read \("),
    ):
        shutil.rmtree(at, ignore_errors=True)
        shutil.copytree(made, at)
        content = (at / name).read_bytes()
        (at / name).unlink()
        if damage:
            (at / name).write_bytes(damage(content))
        found = script("images.npy", "out.npy", at=at)
        assert re.search(f"{re.escape(name)}: {expected}.*; copy the folder of the export", found)
    assert not list(tmp_path.glob("out.npy*"))


def test_weight_that_is_missing_is_named(script, made: Path, tmp_path: Path):
    np.save("images.npy", IMAGES)
    at = Path(shutil.copytree(made, tmp_path / "copy"))
    manifest = json.loads((at / "manifest.json").read_text())
    manifest["weights"]["bias"] = manifest["weights"]["offset"]
    (at / "manifest.json").write_text(json.dumps(manifest))
    expected = "weights.safetensors: 1 weights are not those of the manifest, such as bias; copy"
    assert expected in script("images.npy", "out.npy", at=at)


def test_a_program_of_another_jax_is_named(tmp_path: Path):
    (tmp_path / "program").write_bytes(b"new")
    described = {"sha256": hashlib.sha256(b"new").hexdigest(), "jax": "9.9.9"}
    with pytest.raises(Mistake, match=r"cannot read it \(.*; pip install flatbuffers jax==9\.9\.9"):
        run.read_program(tmp_path / "program", described)
