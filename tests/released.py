"""Released FLUX.2 networks of small sizes, in the files that their owners publish."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from modality_forcing.models.flux2_layouts import DIFFUSERS, FORCING, Layout
from tests.flux2 import Sizes

SMALL = Sizes(16, 8, 12, 2, 3, image=8)
SMALL_FORCING = Sizes(16, 8, 12, 2, 3, image=8, depth=256, decoder=2, mixing=True)
SMALL_V1 = Sizes(16, 8, 12, 2, 3, image=8, depth=256, decoder=2)
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


def pipeline(folder: Path, index: dict[str, object], sizes: Sizes = SMALL) -> str:
    """Of diffusers, with empty folders of encoders."""
    for part in ("vae", "text_encoder"):
        (folder / part).mkdir(parents=True)
    saved(folder / "transformer" / "diffusion_pytorch_model.safetensors", sizes, DIFFUSERS)
    (folder / "model_index.json").write_text(json.dumps(index))
    return f"flux2-klein:{folder}"
