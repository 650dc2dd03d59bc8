"""Depth of images with jax alone: python run.py IMAGES.npy DEPTH.npy [SEED].

A copy of this file is `run.py` in folders of `mforce export --format=stablehlo`. It needs
`pip install jax flatbuffers`; it reads the program and the weights beside it. Errors are one line
with exit code 2; `load()` raises `Mistake`.
"""

import hashlib
import json
import sys
from pathlib import Path

try:
    import jax.export
    import ml_dtypes  # comes with jax
    import numpy as np
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    print(f"the package {error.name} is missing; pip install jax flatbuffers", file=sys.stderr)
    sys.exit(2)

FOLDER = Path(__file__).parent
TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
USAGE = "usage: python run.py IMAGES.npy DEPTH.npy [SEED]"
AGAIN = "copy the folder of the export again"


class Mistake(ValueError):
    """What is wrong, where, and how to fix it, in one line."""

    def __init__(self, where: object, what: str, hint: str):
        super().__init__(" ".join(f"{where}: {what}; {hint}".split()))


def reason(error: Exception) -> str:
    """Returns the first line of an error, without its path."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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


def describe(x: np.ndarray) -> dict[str, object]:
    """Returns what the manifest has of a weight."""
    digest = hashlib.sha256(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data).hexdigest()
    return {"shape": list(x.shape), "dtype": str(x.dtype), "sha256": digest}


def verified_weights(path: Path, expected: dict[str, dict]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file; raises Mistake unless they are exactly the manifest's."""
    try:
        weights = read_weights(path)
    except Exception as error:  # of many kinds where the header is damaged
        raise Mistake(path, f"cannot be read ({reason(error)})", AGAIN) from error
    names = sorted(weights.keys() | expected.keys())
    bad = [n for n in names if n not in weights or describe(weights[n]) != expected.get(n)]
    if bad:
        what = f"{len(bad)} weights are not those of the manifest, such as {bad[0]}"
        raise Mistake(path, what, AGAIN)
    return weights


def read_manifest(folder: Path) -> tuple[dict, dict]:
    """Returns what the manifest has of the program, and of the weights by name."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        return manifest["program"], manifest["weights"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Mistake(path, f"cannot be read ({reason(error)})", AGAIN) from error


def read_program(path: Path, described: dict) -> jax.export.Exported:
    """Returns the program; raises Mistake if it is damaged or of another jax."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Mistake(path, f"cannot be read ({reason(error)})", AGAIN) from error
    if hashlib.sha256(content).hexdigest() != described["sha256"]:
        raise Mistake(path, "is not the manifest's: cut or changed", AGAIN)
    try:
        return jax.export.deserialize(bytearray(content))
    except Exception as error:  # jax names no kind for programs that are too old or too new
        what = f"jax {jax.__version__} cannot read it ({reason(error)})"
        hint = f"pip install flatbuffers jax=={described['jax']}"
        raise Mistake(path, what, hint) from error


def read_images(path: Path) -> np.ndarray:
    """Returns the array of a .npy; raises Mistake if it is none."""
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise Mistake(path, reason(error), "check the path") from error
    except Exception as error:  # of many kinds where the header is damaged
        what = f"is no .npy of numbers ({reason(error)})"
        raise Mistake(path, what, "write it with np.save") from error


def check_images(images: np.ndarray, size: list[int], where: object = "images") -> None:
    """Raises Mistake unless images are u8 [b h w 3] of a size."""
    height, width = size
    if images.ndim == 3:
        hint = "add the axis of the batch: images[None]"
    elif images.shape[1:] == (3, *size) and images.shape[3] != 3:
        hint = "channels come last"
    elif images.shape[1:] != (*size, 3):
        hint = f"resize them to {height} rows and {width} columns of RGB"
    elif images.dtype != np.uint8:
        hint = "scale colors to 0 to 255 and convert them to np.uint8"
    elif not len(images):
        hint = "give at least one"
    else:
        return
    kind = "u8" if images.dtype == np.uint8 else images.dtype
    found = f"{kind} [{' '.join(map(str, images.shape))}]"
    raise Mistake(where, f"not u8 [b {height} {width} 3] but {found}", hint)


def check_seed(seed: object) -> int:
    """Returns a seed as an integer; raises Mistake if it is none from 0 to 2^31 - 1."""
    text = str(seed)
    if text.isdecimal() and len(text) < 11 and int(text) < 2**31:
        return int(text)
    raise Mistake("seed", f"is {text}", "give a whole number from 0 to 2147483647")


def load(folder: Path = FOLDER):
    """Returns the function of images u8 [b h w 3] and a seed to depth f32 [b h w], up to scale.

    The size of images is that of the manifest; any number of them goes in at a time. Noise is a
    function of the seed and the position in the batch. The SHA-256 of the program and of every
    weight is compared with the manifest. Raises Mistake, a ValueError, as the function does.
    """
    described, expected = read_manifest(folder)
    program = read_program(folder / described["file"], described)
    weights = jax.device_put(verified_weights(folder / "weights.safetensors", expected))
    call = jax.jit(program.call)

    def image_to_depth(images: np.ndarray, seed: int = 0) -> np.ndarray:
        images = np.asarray(images)
        check_images(images, described["size"])
        index = np.arange(len(images), dtype=np.int32)
        return np.asarray(call(weights, images, np.int32(check_seed(seed)), index))

    return image_to_depth


def main(source: str, out: str, seed: str = "0") -> None:
    """Writes the depth of images; raises Mistake before anything is loaded, where it can."""
    number, images, target = check_seed(seed), read_images(Path(source)), Path(out)
    check_images(images, read_manifest(FOLDER)[0]["size"], source)
    if target.is_dir() or not target.parent.is_dir():
        raise Mistake(out, "cannot be written", "name a file in a folder that exists")
    depth, partial = load()(images, number), target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.save(file, depth)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise Mistake(
            out, f"cannot be written ({reason(error)})", "choose another place"
        ) from error


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    try:
        main(*sys.argv[1:])
    except Mistake as error:
        print(error, file=sys.stderr)
        sys.exit(2)
