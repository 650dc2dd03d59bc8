"""Writes data/flux2_vae_<case>.npz: outputs of diffusers' AutoencoderKLFlux2.

    python -m tests.parity.make_vae_goldens [--check]

Needs torch and diffusers (the extra `parity`). Only outputs are stored: weights and inputs follow
from names and a seed, and test_flux2_vae_reference.py makes the same. With --check it writes
nothing, and fails where an output differs from the stored one.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DATA = Path(__file__).parent / "data"
AGREE = 1e-5  # relative to the largest value: the order of float32 sums differs between machines


class Case(NamedTuple):
    """A network, described by its config.json, and the shape of its images."""

    config: dict[str, Any]
    image: tuple[int, int, int]  # count, height and width

    @property
    def latent(self) -> tuple[int, int, int]:
        levels, patch = len(self.config["block_out_channels"]), self.config["patch_size"][0]
        scale = patch * 2 ** (levels - 1)
        return self.image[0], self.image[1] // scale, self.image[2] // scale


def network(**changes: Any) -> dict[str, Any]:
    """The config.json of a small network."""
    config = {
        "_class_name": "AutoencoderKLFlux2",
        "block_out_channels": [32, 64, 64, 96],
        "layers_per_block": 1,
        "latent_channels": 8,
        "norm_num_groups": 16,
        "batch_norm_eps": 1e-4,
        "patch_size": [2, 2],
    } | changes
    levels = len(config["block_out_channels"])
    return config | {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


CASES = {
    "uneven": Case(network(), (2, 32, 48)),
    "deep": Case(
        network(layers_per_block=2, norm_num_groups=32, latent_channels=4, batch_norm_eps=1e-2),
        (1, 48, 32),
    ),
    "small_decoder": Case(
        network(block_out_channels=[32, 64, 96, 96], decoder_block_out_channels=[16, 48, 48, 64]),
        (1, 32, 32),
    ),
    "shallow": Case(
        network(block_out_channels=[16, 32, 32], norm_num_groups=8, latent_channels=3), (1, 24, 40)
    ),
}


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns standard normal float32 values seeded by a name and a shape."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {shape}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor of a checkpoint: no zeros or ones, activations near 1."""
    values = noise(name, shape)
    if name.endswith("running_var"):
        return np.exp(values)
    if len(shape) > 1:
        return values * np.float32(1.2 / np.sqrt(np.prod(shape[1:])))
    return np.float32("norm" in name and name.endswith("weight")) + np.float32(0.3) * values


def images(case: Case) -> np.ndarray:
    """Returns f32 [b h w 3] in [-1, 1]."""
    return np.tanh(noise("pictures", (*case.image, 3)))


def latents(case: Case) -> np.ndarray:
    """Returns f32 [b y x c], normalized and packed."""
    return noise(
        "latents",
        (*case.latent, case.config["latent_channels"] * case.config["patch_size"][0] ** 2),
    )


def described(model: Any) -> np.ndarray:
    """Returns the tensors of a state dict as lines of a name and a shape."""
    return np.array(
        [" ".join([name, *map(str, tensor.shape)]) for name, tensor in model.state_dict().items()]
    )


def reference(case: Case) -> dict[str, np.ndarray]:
    """Returns latents [b y x c], decoded images [b h w 3] and the tensors of the checkpoint."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

    torch.set_grad_enabled(False)
    model: Any = AutoencoderKLFlux2.from_config(case.config)
    model.eval()
    ours = {
        name: torch.from_numpy(weights(name, tuple(t.shape)))
        for name, t in model.state_dict().items()
        if t.ndim
    }
    model.load_state_dict(ours)
    patch = case.config["patch_size"][0]
    mean, deviation = model.bn.running_mean, torch.sqrt(model.bn.running_var + model.bn.eps)

    z = model.encode(torch.from_numpy(images(case)).permute(0, 3, 1, 2)).latent_dist.mode()
    latent = (torch.nn.functional.pixel_unshuffle(z, patch).permute(0, 2, 3, 1) - mean) / deviation
    z = (torch.from_numpy(latents(case)) * deviation + mean).permute(0, 3, 1, 2)
    image = model.decode(torch.nn.functional.pixel_shuffle(z, patch)).sample.permute(0, 2, 3, 1)
    return {"latent": latent.numpy(), "image": image.numpy(), "tensors": described(model)}


def released() -> np.ndarray:
    """Returns the tensors of FLUX.2's own VAE, the defaults of diffusers."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

    with torch.device("meta"):
        return described(AutoencoderKLFlux2())


def main() -> int:
    """Writes or checks every archive; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the stored archives, write nothing"
    )
    check = parser.parse_args().check
    made = {name: reference(case) for name, case in CASES.items()} | {
        "released": {"tensors": released()}
    }
    wrong = False
    for name, arrays in made.items():
        path = DATA / f"flux2_vae_{name}.npz"
        if not check:
            np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
            print(f"{path.name}: {path.stat().st_size} bytes")
            continue
        stored = np.load(path)
        same = np.array_equal(arrays.pop("tensors"), stored["tensors"])
        differ = max(
            (
                float(np.abs(a - stored[key]).max() / np.abs(stored[key]).max())
                for key, a in arrays.items()
            ),
            default=0.0,
        )
        print(
            f"{path.name}: tensors {'the same' if same else 'differ'}, outputs {differ:.1e} apart"
        )
        wrong |= not same or differ > AGREE
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
