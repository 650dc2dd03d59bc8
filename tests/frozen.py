"""Small frozen encoders in their published layout, and prepared records to encode."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from modality_forcing.config import Config
from modality_forcing.data.records import Record
from modality_forcing.datasets.folder import DATASET
from modality_forcing.encoders import flux2_names
from modality_forcing.encoders.flux2_vae import VAEConfig
from modality_forcing.encoders.weights import Tensor
from modality_forcing.prepare import work
from modality_forcing.prepare.job import PrepareJob, Settings
from modality_forcing.synthetic.source import Scenes
from tests import tiny, vae
from tests.parity import make_qwen3_goldens as qwen3_goldens
from tests.parity import make_qwen3_token_goldens as qwen3_tokens
from tests.parity import make_umt5_goldens as umt5_goldens
from tests.parity import make_vae_goldens as vae_goldens

WIDTH = 32  # of the text encoder
TOKENS = 9
QWEN_WIDTH = 3 * 16
QWEN_TOKENS = 40  # the template takes 25 of them, as its words are bytes
VAE = {
    "_class_name": "AutoencoderKLFlux2",
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
VAE |= {"latent_channels": 3, "patch_size": [2, 2]}  # 12 channels of 4 pixels
PIXELS = 16


@dataclass(frozen=True)
class Captioned:
    """Scenes whose captions are long, short, repeated and missing."""

    count: int = 11

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        record = Scenes(resolution=PIXELS)[index]
        caption = ("", "a red cube", record.caption, "un gato negro " * 20, "the left sphere")[
            index % 5
        ]
        return replace(record, caption=caption)


def text_folder(folder: Path, seed: str = "") -> Path:
    """A UMT5 of 2 layers with its tokenizer; seed changes its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    umt5_goldens.spiece(folder)
    c = umt5_goldens.config("odd") | {"vocab_size": 512, "d_model": WIDTH, "num_layers": 2}
    stored = umt5_goldens.weights(c)
    if seed:
        stored["shared.weight"] = -stored["shared.weight"]
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(c))
    return folder


def qwen_folder(folder: Path) -> Path:
    """A Qwen3 of 28 layers, with a tokenizer without merges: each byte is a token."""
    folder.mkdir(parents=True, exist_ok=True)
    qwen3_tokens.files(folder, np.arange(256), {})
    c = qwen3_goldens.config("klein") | {"vocab_size": 288, "hidden_size": 16, "head_dim": 8}
    c |= {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    save_file(qwen3_goldens.weights(c), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(c))
    return folder


def image_folder(folder: Path) -> Path:
    """An autoencoder of two resolutions in diffusers' layout."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_vae_weights(VAE), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(VAE))
    return folder


def _vae_weights(described: dict) -> dict[str, np.ndarray]:
    c = VAEConfig.from_dict(described)
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: vae.VAE(c, rngs=nnx.Rngs(0)))))
    shapes = {
        ".".join(str(key.key) for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    stored = {}
    for path, tensor in vae.tensors(c, ()).items():
        before, _, after = tensor.arrange.partition("->")
        size = dict(zip(after, shapes[path], strict=False))
        shape = tuple(size.get(axis, 1) for axis in before) or shapes[path]
        stored[tensor.names[0]] = vae_goldens.weights(tensor.names[0], shape)
    return stored | {"bn.num_batches_tracked": np.zeros((), np.int64)}


def prepared(folder: Path, count: int = 11, shard_size: int = 4) -> Path:
    """Prepared records, as `mforce prepare` writes them."""
    settings = Settings(
        dataset="folder",
        split="train",
        records=count,
        resolution=PIXELS,
        max_side=None,
        image_format="png",
        quality=95,
        shard_size=shard_size,
    )
    work.prepare(PrepareJob(folder, DATASET, settings), Captioned(count))
    return folder


def config(
    records: Path, *, text: Path | None = None, image: Path | None = None, cache: Path | None = None
) -> Config:
    """A forcing run of latents and text states: encoded while training, or read from a cache."""
    c = tiny.forcing()
    image_modality = replace(
        c.modalities["image"],
        patch=4,
        latent_channels=12,
        autoencoder=f"flux2:{image}" if image else "",
    )
    data = replace(
        c.data,
        source="prepared",
        root=str(records),
        eval_split="train",
        resolution=PIXELS,
        flip_prob=0.5,
        workers=0,
    )
    data = replace(data, cache=str(cache or ""))
    return replace(
        c,
        data=data,
        text=replace(
            c.text,
            vocab_size=0,
            channels=WIDTH,
            tokens=TOKENS,
            encoder=f"umt5:{text}" if text else "",
        ),
        modalities={**c.modalities, "image": image_modality},
    )


def split_folder(folder: Path, described: dict = VAE) -> Path:
    """Such an autoencoder as Modality Forcing's release has it, each half in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    c, stored = VAEConfig.from_dict(described), _vae_weights(described)
    for half in flux2_names.HALVES:
        named = flux2_names.tensors(c, ("mid.block_1.conv1.weight",), half)
        content = {"bn.num_batches_tracked": np.zeros((), np.int64)}
        for path, source in flux2_names.tensors(c, (), half).items():
            content[named[path].names[0]] = _rearranged(stored[source.names[0]], named[path])
        save_file(content, folder / f"ae_{half}.safetensors")
    (folder / "config.json").write_text(json.dumps(described | {"variant": "flux_rgbd_9b_v2"}))
    return folder


def _rearranged(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The array in the tensor's shape: attention's matrices are convolutions there."""
    return array[..., None, None] if "11" in tensor.arrange and array.ndim == 2 else array
