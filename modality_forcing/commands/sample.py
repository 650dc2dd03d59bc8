"""`mforce sample`: files and captions in, pictures and depth files out."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from modality_forcing.atomic_io import check_folder, write_file
from modality_forcing.data.files import read_depth, read_image
from modality_forcing.data.resize import Window, centre_square, place_depth, place_image
from modality_forcing.errors import UserError
from modality_forcing.generator import TASKS, Generator, override_sampling
from modality_forcing.viz import images
from modality_forcing.viz.images import to_u8

MOST_AT_ONCE = 64  # examples; more are refused rather than run out of memory half way


def run(options: argparse.Namespace) -> list[Path]:
    """Generates what the options ask for and returns the files written; nothing is written before all is generated.

    Raises UserError for a mode that the checkpoint cannot do, an input that is missing, unreadable, or of no use to
    the mode.
    """
    check_inputs(options)
    generator = Generator.from_checkpoint(
        options.checkpoint,
        text_encoder=options.text_encoder,
        autoencoder=options.autoencoder,
        seed=options.seed,
    )
    config, guidance = generator.config, options.guidance
    sampling = override_sampling(
        config,
        steps=options.steps,
        solver=options.solver,
        log2_alpha=options.log2_alpha,
        guidance=None if guidance is None else {generator.primary: guidance},
    )
    generator.trajectory(options.mode, sampling)  # raises where the checkpoint cannot do the mode
    captions = [c for c in (options.caption or [""]) for _ in range(options.n)]
    given = read_inputs(options, config.data.resolution)
    batch = {k: np.repeat(v[None], len(captions), axis=0) for k, v in given.items()}
    made = generator.run(
        options.mode,
        captions,
        batch=batch,
        options=sampling,
        seed=config.seed,
        refine=options.refine,
    ).images
    written = []
    for i in range(len(captions)):
        written += write_example(
            options.out / f"{options.mode}_{i:03d}", {n: x[i] for n, x in made.items()}, batch
        )
    for path in written:
        print(path)
    return written


def check_inputs(options: argparse.Namespace) -> None:
    """Raises UserError if the mode is unknown, lacks its input, or has one it would ignore."""
    if options.mode not in TASKS:
        raise UserError(f"unknown mode {options.mode!r}", hint=f"choose one of {', '.join(TASKS)}")
    for name in ("image", "depth"):
        needed, have = name in TASKS[options.mode], getattr(options, name) is not None
        if needed and not have:
            raise UserError(
                f"mode {options.mode} starts from a file", hint=f"name it with --{name} FILE"
            )
        if have and not needed:
            raise UserError(
                f"mode {options.mode} has no use for --{name}",
                hint="leave it out, or choose another mode",
            )
    idle = {
        "--refine": options.refine and options.mode != "joint",
        "--log2-alpha": options.log2_alpha is not None and options.mode not in ("joint", "partial"),
        "--depth-scale": options.depth_scale is not None and options.depth is None,
    }
    for name, set_in_vain in idle.items():
        if set_in_vain:
            raise UserError(
                f"mode {options.mode} has no use for {name}",
                hint="leave it out, or choose another mode",
            )
    if (count := options.n * max(len(options.caption), 1)) > MOST_AT_ONCE:
        raise UserError(
            f"{count} examples asked for", hint=f"ask for at most {MOST_AT_ONCE} at a time"
        )
    check_folder(options.out, "--out")


def read_inputs(options: argparse.Namespace, resolution: int) -> dict[str, np.ndarray]:
    """Returns image u8 [h w 3], or depth f32 and valid bool [h w], at the model's resolution."""
    inputs = {}
    if options.image is not None:
        image = read_image(options.image)
        inputs["image"] = place_image(image, window(image, options.fit), resolution)
    if options.depth is not None:
        depth, valid = read_depth(options.depth, options.depth_scale)
        depth, valid = place_depth(depth, valid, window(depth, options.fit), resolution)
        if not valid.any():
            raise UserError(
                "its centre square holds no valid depth",
                where=options.depth,
                hint="use --fit stretch",
            )
        inputs |= {"depth": depth, "valid": valid}
    return inputs


def window(array: np.ndarray, fit: str) -> Window:
    """Returns the part of an array [h w ...] that becomes the square input: its centre, or all of it."""
    height, width = array.shape[:2]
    return centre_square((height, width)) if fit == "crop" else Window(0, 0, height, width)


def write_example(
    stem: Path, made: dict[str, np.ndarray], given: dict[str, np.ndarray]
) -> list[Path]:
    """Writes one example: pictures as PNG, maps as .npy, 16-bit PNG with its scale, and a colour picture."""
    written = []
    for name, x in made.items():
        path = stem.with_name(f"{stem.name}_{name}")
        if x.ndim == 3:
            # Bytes as they were given, not as they came back through tokens.
            x = given["image"][0] if name == "image" and "image" in given else to_u8(x)
            write_file(path.with_suffix(".png"), images.png_bytes(x))
            written.append(path.with_suffix(".png"))
        else:
            known = given["valid"][0] if name in given else None
            written += images.save_depth(path, x, known)
    return written
