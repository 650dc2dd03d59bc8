"""FLUX.2 weights read onto eight devices: each one's part, the same numbers and samples as on one.

python -m tests.sharded.test_flux2_weights FOLDER   compares on eight devices
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import save_file

from modality_forcing.config import MATRICES, MeshConfig, ModelConfig
from modality_forcing.encoders.weights import open_checkpoint
from modality_forcing.errors import UserError
from modality_forcing.generator import Generator
from modality_forcing.models import int8
from modality_forcing.models.flux2_layouts import FORCING
from modality_forcing.models.flux2_weights import Options, load
from modality_forcing.train import released
from modality_forcing.train.sharding import (
    PRESETS,
    check_heads,
    local_mesh,
    make_mesh,
    tree_shardings,
)
from modality_forcing.tree import flatten
from tests.flux2 import TINY_FORCING
from tests.released import WHOLE, whole
from tests.runs import ROOT, environment


def test_parts_of_eight_devices_are_those_of_one(tmp_path):
    save_file(TINY_FORCING.file(FORCING), tmp_path / "model.safetensors")
    whole(tmp_path)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    call = [sys.executable, "-m", "tests.sharded.test_flux2_weights", str(tmp_path)]
    done = subprocess.run(
        call, env={**environment(), "XLA_FLAGS": flags}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fsdp=8", "fsdp=2,tensor=4", "sampled"]


def compare(folder: Path) -> None:
    checkpoint, tree = open_checkpoint(folder), TINY_FORCING.tree()
    for name, mesh in (
        ("fsdp=8", MeshConfig(data=1, fsdp=8)),
        ("fsdp=2,tensor=4", MeshConfig(data=1, fsdp=2, tensor=4)),  # of q, 4 channels: half a head
    ):
        shardings = tree_shardings(tree, PRESETS["zero2"], make_mesh(mesh))
        for quantize in (False, True):
            sharded = load(tree, checkpoint, Options(quantize=quantize), shardings=shardings)
            alone = load(tree, checkpoint, Options(quantize=quantize))
            for one, other in zip(jax.tree.leaves(sharded), jax.tree.leaves(alone), strict=True):
                np.testing.assert_array_equal(one, other)
        gate = sharded["single"]["layers"]["gate"]  # pyright: ignore[reportPossiblyUnboundVariable]
        assert isinstance(gate, int8.Int8Weight)
        assert gate.values.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
        assert gate.scale.sharding.spec == PartitionSpec(None, None, "tensor")
        print(name)


def sample(folder: Path) -> None:
    """A release of which no device holds all makes the same on eight devices as on one.

    Encoders on meshes are the subject of test_frozen_meshes.
    """
    released._FORCING_SIDE, read = 32, released._model

    def in_float32(checkpoint):  # so that a difference is no rounding
        model, channels = read(checkpoint)
        return replace(model, dtype="float32"), channels

    released._model = in_float32
    rng, made = np.random.default_rng(0), []
    text = {"tokens": rng.normal(size=(3, 40, WHOLE.text)).astype(np.float32)}
    with pytest.raises(UserError, match="4 devices cannot share 2 heads"):
        check_heads(ModelConfig(heads=2, kv_heads=2), make_mesh(MeshConfig(tensor=4)))
    for mesh in (None, local_mesh(2)):
        spec = Path(f"mf-flux2:{folder / 'mf'}")
        generator = Generator.from_checkpoint(spec, mesh=mesh, sample={"steps": 1})
        states = generator._put({n: x[generator._rows(3)] for n, x in text.items()})
        generator.encode_text = lambda captions, states=states: (states, states)
        generator._decode = lambda name, x0: x0
        made.append(generator.run("joint", ["", "", ""]).images)
        for path, weight in flatten(generator.params).items():
            if path.split("/")[-1] in MATRICES:
                parts = {part.data.size for part in weight.addressable_shards}
                assert parts == {weight.size // (8 if mesh else 1)}, path
    for name, one in made[0].items():
        error = np.linalg.norm(made[1][name] - one) / np.linalg.norm(one)
        assert error < 1e-5, (name, error)
    print("sampled")


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
    sample(Path(sys.argv[1]))
