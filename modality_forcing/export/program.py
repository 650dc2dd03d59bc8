"""Image to depth as one compiled program: a `jax.export` artefact that runs with jax alone.

The folder has the program (`i2d.jaxexport`: StableHLO for CPUs, NVIDIA GPUs and TPUs, with a free
batch size), `weights.safetensors`, `manifest.json`, and `run.py`, which reads and runs them. The
weights are beside the program and not in it: inside, those of the paper's 370M network would be
1.5 GB of constants that each load parses and each compilation carries along.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from modality_forcing import paths
from modality_forcing.diffusion import rng
from modality_forcing.errors import UserError
from modality_forcing.export import card, run
from modality_forcing.export.job import check_out, license_of, make_manifest, write_folder
from modality_forcing.generator import Generator, num_steps
from modality_forcing.mirror import fetched
from modality_forcing.modalities.depth import Depth
from modality_forcing.train import exported
from modality_forcing.train.exported import NETWORK, Export
from modality_forcing.train.weights import open_weights
from modality_forcing.tree import JsonObject, flatten, unflatten

FILE, RUN = "i2d.jaxexport", "run.py"
PLATFORMS = ("cpu", "cuda", "tpu")
_AUTOENCODER, _TEXT = "autoencoder/", "text/"  # prefixes of weights, beside `NETWORK`
Weights = dict[str, Array | np.ndarray]


def export(
    source: str | Path,
    out: Path,
    *,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    text_encoder: str = "",
    autoencoder: str = "",
    license: str = "",
) -> Path:
    """Writes the program, the weights and what runs them into a new folder.

    Args:
      source: of all kinds of `train.weights.open_weights`.
      steps: of the sampler, by default the config's.
      size: rows and columns of pixels of images and depth, by default the config's square.
      text_encoder, autoencoder: frozen encoders, if not where the config says.
      license: of the weights, as for `job.export`.

    Raises UserError as `job.export`, and as `write`.
    """
    check_available()
    check_out(out)
    card.check_license(license)
    generator = Generator.from_checkpoint(
        source,
        text_encoder=text_encoder,
        autoencoder=autoencoder,
        sample={"steps": steps},
        size=size,
    )
    generator.trajectory("i2d")  # raises where it cannot do that
    found = open_weights(source)
    training = card.facts(found, generator.config, generator.params)
    known = {"license": license or license_of(found), "training": training}
    return write_folder(out, lambda folder: write(folder, generator, known))


def check_available() -> None:
    """Raises UserError unless programs can be written: jax needs flatbuffers for it."""
    if importlib.util.find_spec("flatbuffers") is None:
        hint = "pip install 'modality_forcing[stablehlo]'"
        raise UserError("--format=stablehlo needs the package flatbuffers", hint=hint)


def write(folder: Path, generator: Generator, known: JsonObject) -> JsonObject:
    """Writes the files into a folder, but the manifest, which it returns.

    known: what else the manifest has: the license, and facts of the training.

    The caption is empty; steps, solver and noise levels are those of the generator's config.
    Raises UserError for a network that makes no depth from images, without its encoders, and for
    weights that do not read back.
    """
    program, weights = build(generator)
    flat = {name: np.asarray(leaf) for name, leaf in weights.items()}
    serialized = bytes(program.serialize())
    config = generator.config
    about = {
        "file": FILE,
        "sha256": hashlib.sha256(serialized).hexdigest(),
        "mode": "i2d",
        "caption": "",
        "steps": num_steps("i2d", config.sample),
        "solver": config.sample.solver,
        "size": list(generator.modalities[generator.primary].size),
        "platforms": list(program.platforms),
        "jax": jax.__version__,
        "calling_convention": program.calling_convention_version,
        "inputs": ["weights by name", "images u8 [b h w 3]", "seed i32", "index i32 [b]"],
        "output": "depth f32 [b h w], up to scale",
    }
    entries = {name: exported.describe(leaf) for name, leaf in flat.items()}
    manifest = make_manifest(config, exported.PROGRAM, entries, **known, program=about)
    paths.write_file(folder / FILE, serialized)
    paths.write_file(folder / RUN, paths.read_bytes(Path(run.__file__)))
    file = exported.write_safetensors(folder, flat, manifest)
    with fetched(file) as local:
        Export(folder, local, manifest, config).verify()
    paths.write_file(folder / card.FILE, card.render(manifest))
    return manifest


def build(generator: Generator) -> tuple[jax.export.Exported, Weights]:
    """Returns the program of (weights, images, seed, index) -> depth, and its weights by name."""
    trajectory, (image,) = generator.trajectory("i2d")
    generator.check_autoencoder()
    modalities, options = generator.modalities, generator.config.sample
    (depth,) = (name for name, m in modalities.items() if isinstance(m, Depth))
    # Of the kernels, this one lowers for every kind of device.
    model = replace(generator.config.model, attention="einsum")
    portable = Generator(
        replace(generator.config, model=model),
        generator.params,
        generator.frozen,
        size=modalities[image].size,
    )
    weights, constants = _text(generator)
    flat = flatten(generator.params)
    empty = {name: leaf for name, leaf in flat.items() if isinstance(leaf, Mapping)}
    weights |= {NETWORK + name: leaf for name, leaf in flat.items() if name not in empty}
    latents = None
    if modalities[image].latent_channels:
        latents, encoder = generator.frozen.latent_program()
        weights |= {_AUTOENCODER + name: leaf for name, leaf in encoder.items()}

    def part(weights: Weights, prefix: str) -> Weights:
        return {n.removeprefix(prefix): x for n, x in weights.items() if n.startswith(prefix)}

    def image_to_depth(weights: Weights, images: Array, seed: Array, index: Array) -> Array:
        b = images.shape[0]
        batch = {"image": images}
        if latents is not None:
            batch = {"latent": latents(part(weights, _AUTOENCODER), images)}
        params = unflatten({**empty, **part(weights, NETWORK)})
        text = {
            name: jnp.broadcast_to(x, (b, *x.shape[1:]))
            for name, x in {**constants, **part(weights, _TEXT)}.items()
        }
        tokens = portable.trace_sampler(
            params,
            {name: jnp.asarray(t, jnp.float32) for name, t in trajectory.schedule.items()},
            cond={image: modalities[image].to_tokens(batch)},
            text=text,
            null_text=None,
            keys=rng.per_example(rng.named_key(seed, "sample", 0), index),
            condition_guidance=options.condition_guidance,
            solver=options.solver,
            t_min=options.t_min,
        )
        return modalities[depth].from_tokens(tokens[depth])

    (b,) = jax.export.symbolic_shape("b")
    size = modalities[image].size
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    program = jax.export.export(jax.jit(image_to_depth), platforms=PLATFORMS)(
        shapes,
        jax.ShapeDtypeStruct((b, *size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((b,), jnp.int32),
    )
    return program, weights


def _text(generator: Generator) -> tuple[Weights, Weights]:
    """Returns the empty caption's encoding: states, which are weights, and constants."""
    text, _ = generator.encode_text([""])
    generator.frozen.free_text()
    states = {_TEXT + n: x for n, x in text.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return states, {n: np.asarray(x) for n, x in text.items() if _TEXT + n not in states}
