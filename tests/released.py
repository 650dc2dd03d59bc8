"""Released FLUX.2 networks of small sizes, in the files that their owners publish."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from modality_forcing.models.flux2_layouts import DIFFUSERS, FORCING, Layout
from tests import frozen
from tests.flux2 import Sizes

SMALL = Sizes(16, 8, 12, 2, 3, image=8)
SMALL_FORCING = Sizes(16, 8, 12, 2, 3, image=8, depth=256, decoder=2, mixing=True)
SMALL_V1 = Sizes(16, 8, 12, 2, 3, image=8, depth=256, decoder=2)
WHOLE = replace(SMALL_FORCING, text=frozen.QWEN_WIDTH)
GUIDED = Sizes(16, 8, 12, 1, 1, image=8, guidance=True)


def saved(path: Path, sizes: Sizes, layout: Layout, prefix: str = "") -> Path:
    """Writes random weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(sizes.file(layout, prefix), path)
    return path


def release(folder: Path, sizes: Sizes = SMALL_FORCING, variant: str = "flux_rgbd_9b_v2") -> str:
    """Modality Forcing's, without the content of an autoencoder."""
    saved(folder / "model.safetensors", sizes, FORCING, "dit.")
    for half in ("encoder", "decoder"):
        save_file({"conv_in.bias": np.zeros(1)}, folder / f"ae_{half}.safetensors")
    (folder / "config.json").write_text(json.dumps({"variant": variant}))
    return f"mf-flux2:{folder}"


def whole(folder: Path) -> tuple[str, str]:
    """Modality Forcing's, with a small autoencoder; and a text encoder of its width."""
    patches = {"block_out_channels": [8, 8, 8, 8], "latent_channels": 2}  # 16 pixels, 8 channels
    frozen.split_folder(folder / "mf", frozen.VAE | patches)
    # Of matrices so small that depth stays off its limits.
    tensors = WHOLE.file(FORCING, "dit.").items()
    content = {name: x * x.dtype.type(0.25) if x.ndim == 2 else x for name, x in tensors}
    save_file(content, folder / "mf" / "model.safetensors")
    frozen.qwen_folder(folder / "qwen")
    return f"mf-flux2:{folder / 'mf'}", f"qwen3:{folder / 'qwen'}"


def pipeline(folder: Path, index: dict[str, object], sizes: Sizes = SMALL) -> str:
    """Of diffusers, with empty folders of encoders."""
    for part in ("vae", "text_encoder"):
        (folder / part).mkdir(parents=True)
    saved(folder / "transformer" / "diffusion_pytorch_model.safetensors", sizes, DIFFUSERS)
    (folder / "model_index.json").write_text(json.dumps(index))
    return f"flux2-klein:{folder}"
