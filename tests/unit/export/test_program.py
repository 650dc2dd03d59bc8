"""Image to depth as a program: it needs jax alone and gives what this package does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.config import SampleConfig
from modality_forcing.encoders.frozen import FrozenEncoders
from modality_forcing.errors import UserError
from modality_forcing.export.program import _text, build, export
from modality_forcing.export.run import read_weights
from modality_forcing.generator import Generator
from modality_forcing.modalities.depth import contract
from modality_forcing.train.exported import open_export
from tests import frozen, tiny
from tests.runs import Command, contents, environment, refused

pytest.importorskip("flatbuffers")

# What a machine with jax alone lacks, and what jax itself imports.
ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"modality_forcing", "flax", "orbax", "optax", "safetensors",
                                      "grain", "etils", "jaxtyping", "ml_collections", "PIL"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def program(tmp_path_factory, forcing_run: Path) -> Path:
    out = tmp_path_factory.mktemp("export") / "program"
    return export(forcing_run, out, steps=3)


def test_jax_alone_gives_what_the_checkpoint_gives(
    program: Path, forcing_run: Path, tmp_path: Path
):
    np.save(tmp_path / "images.npy", IMAGES)
    environ = environment()
    del environ["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, program / "run.py", "images.npy", "depth.npy", "5"],
        cwd=tmp_path,
        env=environ | {"PYTHONPATH": str(Path(sys.modules["flatbuffers"].__path__[0]).parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    generator = Generator.from_checkpoint(forcing_run, sample={"steps": 3})
    expected = generator.run("i2d", [""] * 3, batch={"image": IMAGES}, seed=5).images["depth"]
    found = np.load(tmp_path / "depth.npy")
    assert found.shape == (3, 16, 16) and np.std(expected) > 0.01
    # As the network gives it: far from the camera, depth changes by its square.
    found, expected = contract(jnp.asarray(found)), contract(jnp.asarray(expected))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_folder_says_what_the_program_does(program: Path, forcing_run: Path):
    assert set(contents(program)) == {
        *("README.md", "i2d.jaxexport", "manifest.json", "run.py", "weights.safetensors")
    }
    manifest = json.loads((program / "manifest.json").read_text())
    described = manifest["program"]
    assert (described["mode"], described["steps"], described["size"]) == ("i2d", 3, [16, 16])
    card = (program / "README.md").read_text()
    assert "python run.py images.npy depth.npy 0" in card and "of 16 x 16 pixels" in card
    assert "after 3 steps" in card and "Pipeline" not in card
    assert described["platforms"] == ["cpu", "cuda", "tpu"]
    loaded = jax.export.deserialize(bytearray((program / "i2d.jaxexport").read_bytes()))
    assert loaded.platforms == ("cpu", "cuda", "tpu") and loaded.nr_devices == 1
    shapes = {str(aval.shape) for aval in loaded.in_avals} & {"(b, 16, 16, 3)", "(b,)", "()"}
    assert len(shapes) == 3 and str(loaded.out_avals[0].shape) == "(b, 16, 16)"
    weights = read_weights(program / "weights.safetensors")
    assert weights.keys() == manifest["weights"].keys()
    expected = Generator.from_checkpoint(forcing_run).params["tokenizer"]["depth"]["w"]
    np.testing.assert_array_equal(weights["network/tokenizer/depth/w"], expected)
    with pytest.raises(UserError, match=r"program: is a compiled program, .* with its run\.py"):
        open_export(program)


def test_autoencoder_is_a_part_of_the_program(tmp_path: Path):
    config = tiny.forcing()
    autoencoder = f"flux2:{frozen.image_folder(tmp_path / 'image')}"
    image = replace(
        config.modalities["image"], patch=4, latent_channels=12, autoencoder=autoencoder
    )
    modalities = {"image": image, "depth": config.modalities["depth"]}
    # The guidance of the image is not depth's: nothing is guided.
    sample = SampleConfig(steps=1, guidance={"image": 2.0})
    config = replace(config, modalities=modalities, sample=sample)
    generator = Generator(config, tiny.network(config)[1])
    without = Generator(config, generator.params, FrozenEncoders())
    with pytest.raises(UserError, match="makes latents; name their autoencoder with --autoenc"):
        build(without)
    program, weights = build(generator)
    assert str(program.out_avals[0].shape) == "(b, 16, 16)"
    names = {name for name in weights if name.startswith("autoencoder/")}
    assert len(names) == len(generator.frozen.latent_program()[1])
    assert "autoencoder/stages.0.resize.w" in names


def test_program_of_a_network_with_normals_gives_its_depth():
    config = replace(tiny.normals(), sample=SampleConfig(steps=2, task_steps={}))
    generator = Generator(config, tiny.network(config)[1])
    program, weights = build(generator)
    index = np.arange(2, dtype=np.int32)
    found = program.call(weights, IMAGES[:2], np.int32(5), index)
    made = generator.run("i2d", [""] * 2, batch={"image": IMAGES[:2]}, seed=5, index=index)
    expected = contract(jnp.asarray(made.images["depth"]))
    np.testing.assert_allclose(contract(found), expected, atol=1e-5)


def test_states_of_the_empty_caption_are_weights(unchecked):
    """And token ids, which are few, constants."""
    asked, freed = [], []

    def encode_text(captions):
        asked.append(captions)
        states = jnp.ones((1, 5, 8), jnp.bfloat16)
        return {"tokens": states, "mask": np.ones((1, 5), bool)}, None

    encoders = SimpleNamespace(free_text=lambda: freed.append(True))
    generator = cast(Generator, SimpleNamespace(encode_text=encode_text, frozen=encoders))
    weights, constants = _text(generator)
    assert asked == [[""]] and freed == [True]
    assert weights["text/tokens"].shape == (1, 5, 8) and constants.keys() == {"mask"}


def test_what_makes_no_program_is_one_line(
    t2i_run: Path, forcing_run: Path, tmp_path: Path, mforce: Command, monkeypatch
):
    out = ("export", f"--out={tmp_path / 'out'}", f"--checkpoint={forcing_run}")
    refused(mforce(*out, "--format=stablehlo", "--license=MIT X"), "--license is .MIT X.; give")
    no_depth = (*out[:2], f"--checkpoint={t2i_run}", "--format=stablehlo")
    refused(mforce(*no_depth), "mode i2d needs a second modality, .* of the forcing phase")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(mforce(*out, "--format=stablehlo"), r"needs the package flatbuffers; pip install")
    assert contents(tmp_path) == {}
