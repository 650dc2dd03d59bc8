"""Frozen encoders over eight devices: sharded or replicated, the same latents and states as on one.

python -m tests.sharded.test_frozen_meshes FOLDER   compares FOLDER's outputs on eight devices
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from modality_forcing.config import MeshConfig
from modality_forcing.encoders import frozen
from modality_forcing.encoders.frozen import BATCH, FrozenEncoders
from modality_forcing.train import sharding
from tests import frozen as small
from tests.runs import ROOT, environment


def test_encoders_agree_on_eight_devices_and_one(tmp_path):
    small.text_folder(tmp_path / "text")
    small.image_folder(tmp_path / "image")
    small.qwen_folder(tmp_path / "qwen")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    call = [sys.executable, "-m", "tests.sharded.test_frozen_meshes", str(tmp_path)]
    done = subprocess.run(
        call, env={**environment(), "XLA_FLAGS": flags}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["data=8", "data=2,fsdp=4"]


def compare(folder: Path) -> None:
    frozen._MIN_SHARDED = 1  # shard small weights too
    named = f"umt5:{folder}/text", f"flux2:{folder}/image"
    alone, rng = FrozenEncoders(*named), np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    rows = [
        alone.tokenizer(9).encode(caption)
        for caption in ("", "a red cube", "un gato negro", "two blue spheres") * 2
    ]
    batch = {"image": image, "text": {k: np.stack([row[k] for row in rows]) for k in rows[0]}}
    want = alone.encode(batch)
    for shape, mesh in (
        ("data=8", MeshConfig(data=8, fsdp=1)),
        ("data=2,fsdp=4", MeshConfig(data=2, fsdp=4)),
    ):
        spread = FrozenEncoders(*named, sharding.make_mesh(mesh))
        got = spread.encode(batch)
        assert got["latent"].sharding.spec == got["text"]["tokens"].sharding.spec == BATCH
        near(got["latent"], want["latent"])
        near(got["text"]["tokens"], want["text"]["tokens"])
        near(spread.decode_images(got["latent"]), alone.decode_images(want["latent"]))
        cut = [
            leaf
            for leaf in jax.tree.leaves(spread._encode_text.args[0])
            if not leaf.sharding.is_fully_replicated
        ]
        assert bool(cut) == ("fsdp" in shape)
        qwen = f"qwen3:{folder}/qwen"
        tokens = np.random.default_rng(0).integers(0, 256, (8, 12), np.int32)
        text = {"tokens": tokens, "mask": np.arange(12) < np.arange(5, 13)[:, None]}
        states = FrozenEncoders(qwen, mesh=spread.mesh).states(text)["tokens"]
        assert states.sharding.spec == BATCH
        near(states, FrozenEncoders(qwen).states(text)["tokens"])
        print(shape)


def near(a: jax.Array, b: jax.Array) -> None:
    x, y = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert np.abs(x - y).max() <= 2**-6 * np.abs(y).max() and np.linalg.norm(
        x - y
    ) <= 2**-7 * np.linalg.norm(y)


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
