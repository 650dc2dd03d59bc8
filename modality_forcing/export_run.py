"""Depth of images with jax alone: python run.py IMAGES.npy DEPTH.npy [SEED].

A copy of this file is `run.py` in folders of `mforce export --format=stablehlo`. It needs
`pip install jax flatbuffers`; it reads the program and the weights beside it.
"""

import json
import sys
from pathlib import Path

import jax.export
import ml_dtypes  # comes with jax
import numpy as np

FOLDER = Path(__file__).parent
TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file: a length, a header in JSON, and the numbers."""
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    return {
        name: content[start + x["data_offsets"][0] : start + x["data_offsets"][1]]
        .view(TYPES[x["dtype"]])
        .reshape(x["shape"])
        for name, x in header.items()
    }


def load(folder: Path = FOLDER):
    """Returns the function of images u8 [b h w 3] and a seed to depth f32 [b h w], up to scale.

    The size of images is that of the manifest; any number of them goes in at a time. Noise is a
    function of the seed and the position in the batch.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    program = jax.export.deserialize((folder / manifest["program"]["file"]).read_bytes())
    weights = jax.device_put(read_weights(folder / "weights.safetensors"))
    size, call = manifest["program"]["size"], jax.jit(program.call)

    def image_to_depth(images: np.ndarray, seed: int = 0) -> np.ndarray:
        if images.dtype != np.uint8 or images.shape[1:] != (*size, 3):
            raise ValueError(f"images are {images.dtype} {images.shape}, not u8 [b, *{size}, 3]")
        index = np.arange(len(images), dtype=np.int32)
        return np.asarray(call(weights, images, np.int32(seed), index))

    return image_to_depth


if __name__ == "__main__":
    images, out, *seed = sys.argv[1:]
    np.save(out, load()(np.load(images), int(seed[0]) if seed else 0))
