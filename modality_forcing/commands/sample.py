"""`mforce sample`: files and captions in, images and depth files out."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from modality_forcing import compilation_cache
from modality_forcing.commands.arguments import (
    ADAPTER,
    CHECKPOINT,
    INT8,
    finite_float,
    picture_size,
    positive_int,
    renamed_option,
)
from modality_forcing.errors import UserError
from modality_forcing.paths import as_path
from modality_forcing.progress import print_stderr

if TYPE_CHECKING:
    import numpy as np

    from modality_forcing.data.resize import Size, Window

MAX_EXAMPLES = 64  # more are refused: memory could run out half way

EXAMPLES = """examples:
  mforce sample --checkpoint runs/mf --mode joint --caption 'a red ball on grass' --out out
  mforce sample --checkpoint runs/mf --mode i2d --image photo.jpg --out out
  mforce sample --checkpoint runs/mf --mode d2i --depth depth.png --depth-scale 0.001 --out out"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("--checkpoint", type=as_path, required=True, help=CHECKPOINT)
    add("--int8", action="store_true", help=INT8)
    add("--adapter", type=as_path, help=ADAPTER)
    add("--mode", required=True, help="joint, i2d, d2i, partial or t2i")
    add("--out", type=as_path, required=True, help="output folder")
    add("--caption", action="append", default=[], help="text; repeat it for more examples")
    add("--n", type=positive_int, default=1, help="examples per caption (%(default)s)")
    add("--image", type=as_path, help="input of i2d")
    depth = "input of d2i and partial: .npy or .exr of floats, or 16-bit PNG with --depth-scale"
    add("--depth", type=as_path, help=depth)
    scale = "units per count of a PNG or of integers, e.g. 0.001 for millimeters"
    add("--depth-scale", type=finite_float, help=scale)
    invalid = "a stored number of --depth that means unknown, besides 0, NaN and inf"
    add("--depth-invalid", type=finite_float, help=invalid)
    farthest = "what is farther in --depth is unknown"
    add("--depth-max", type=finite_float, metavar="DEPTH", help=farthest)
    size = "size of the pictures, as 512 or 768x512 (width x height), instead of the config's"
    add("--size", type=picture_size, metavar="SIZE", help=size)
    square = "how an input gets that shape: its center, or all of it (%(default)s)"
    renamed_option(parser, "--fit", "--resize-mode")
    add("--resize-mode", choices=("crop", "stretch"), default="crop", help=square)
    frozen = "frozen encoder, if not where the config says"
    text = f"umt5:PATH or qwen3:PATH, a {frozen}"
    add("--text-encoder", default="", metavar="KIND:PATH", help=text)
    add("--autoencoder", default="", metavar="flux2:PATH", help=frozen)
    add("--seed", type=int, default=0)
    add("--steps", type=positive_int, help="sampler steps, instead of the config's")
    add("--solver", choices=("euler", "heun"))
    add("--guidance", type=finite_float, help="guidance scale of the image; depth has none")
    alpha = "joint: > 0 image first, < 0 depth first; partial: looser above 0"
    add("--log2-alpha", type=finite_float, help=alpha)
    refine = "joint: a second image-to-depth pass on the generated image"
    add("--refine", action="store_true", help=refine)


@compilation_cache.enabled()
def main(options: argparse.Namespace) -> None:
    """Generates, then writes the files and prints their paths.

    Raises UserError for a mode that the checkpoint cannot do, and for an input that is missing,
    unreadable or unused.
    """
    import numpy as np

    from modality_forcing.generator import Generator, override_sampling
    from modality_forcing.train import sharding

    check_inputs(options)
    generator = Generator.from_checkpoint(
        options.checkpoint,
        text_encoder=options.text_encoder,
        autoencoder=options.autoencoder,
        seed=options.seed,
        adapter=options.adapter,
        int8=options.int8,
        size=options.size,
        mesh=sharding.local_mesh(),
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
    inputs = read_inputs(options, generator.modalities[generator.primary].size)
    batch = {k: np.repeat(v[None], len(captions), axis=0) for k, v in inputs.items()}
    how = {"options": sampling, "seed": config.seed, "refine": options.refine, "free_text": True}
    made = generator.run(options.mode, captions, batch=batch, **how).images
    if bad := [name for name, x in made.items() if name not in inputs and not _is_finite(x)]:
        what = f"generated {' and '.join(bad)} with values that are not finite"
        hint = "check the weights of its encoders, or change --guidance, --steps or --solver"
        raise UserError(what, where=options.checkpoint, hint=hint)
    for i in range(len(captions)):
        stem = options.out / f"{options.mode}_{i:03d}"
        for path in write_example(stem, {n: x[i] for n, x in made.items()}, inputs):
            print(path)


def _is_finite(x: np.ndarray) -> bool:
    import numpy as np

    return bool(np.isfinite(x).all())


def check_inputs(options: argparse.Namespace) -> None:
    """Raises UserError if the mode is unknown, lacks its input, or has one it would ignore."""
    from modality_forcing.generator import TASKS
    from modality_forcing.paths import check_folder, require_file

    mode = options.mode
    if mode not in TASKS:
        raise UserError(f"unknown mode {mode!r}", hint=f"choose one of {', '.join(TASKS)}")
    for name in ("image", "depth"):
        if name in TASKS[mode] and getattr(options, name) is None:
            raise UserError(f"mode {mode} needs an input", hint=f"name it with --{name} FILE")
    unused = {
        "--image": options.image is not None and "image" not in TASKS[mode],
        "--depth": options.depth is not None and "depth" not in TASKS[mode],
        "--refine": options.refine and mode != "joint",
        "--log2-alpha": options.log2_alpha is not None and mode not in ("joint", "partial"),
        **{
            f"--depth-{name}": options.depth is None and vars(options)[f"depth_{name}"] is not None
            for name in ("scale", "invalid", "max")
        },
    }
    for name, is_unused in unused.items():
        if is_unused:
            hint = "leave it out, or choose another mode"
            raise UserError(f"mode {mode} has no use for {name}", hint=hint)
    if (count := options.n * max(len(options.caption), 1)) > MAX_EXAMPLES:
        raise UserError(f"{count} examples asked for", hint=f"ask for at most {MAX_EXAMPLES}")
    check_folder(options.out, "--out")
    for name in ("image", "depth"):  # before the checkpoint is loaded
        if (path := getattr(options, name)) is not None:
            require_file(path, f"check --{name}")


def read_inputs(options: argparse.Namespace, size: Size) -> dict[str, np.ndarray]:
    """Returns image u8 [h w 3], or depth f32 and valid bool [h w], at a size in rows, columns."""
    from modality_forcing.data.files import DepthFormat, holds_floats, read_depth, read_image
    from modality_forcing.data.pairs import repeated_values
    from modality_forcing.data.resize import crop_resize_depth, crop_resize_image

    inputs = {}
    if options.image is not None:
        image = read_image(options.image)
        part = window(image, size, options.resize_mode)
        inputs["image"] = crop_resize_image(image, part, size)
    if options.depth is not None:
        if options.depth_scale is not None and holds_floats(options.depth):
            what = "holds floats, which --depth-scale does not apply to"
            raise UserError(what, where=options.depth, hint="leave it out")
        farthest = math.inf if options.depth_max is None else options.depth_max
        form = DepthFormat(options.depth_scale, options.depth_invalid or 0.0, farthest)
        depth, valid = read_depth(options.depth, form)
        count, _, value, fraction = repeated_values([("", lambda: (depth, valid))])
        if count:
            hint = "set --depth-invalid to the stored number, or --depth-max"
            what = f"{value:g} fills {fraction:.0%} of it; if it marks missing depth, {hint}"
            print_stderr(f"{options.depth}: {what}")
        part = window(depth, size, options.resize_mode)
        depth, valid = crop_resize_depth(depth, valid, part, size)
        if not valid.any():
            what, hint = "its center holds no valid depth", "use --resize-mode stretch"
            raise UserError(what, where=options.depth, hint=hint)
        inputs |= {"depth": depth, "valid": valid}
    return inputs


def window(array: np.ndarray, size: Size, resize_mode: str) -> Window:
    """Returns the part of an array [h w ...] that becomes the input: its center, or all of it."""
    from modality_forcing.data.resize import Window, center_window

    height, width = array.shape[:2]
    whole = Window(0, 0, height, width)
    return center_window((height, width), size) if resize_mode == "crop" else whole


def write_example(
    stem: Path, made: dict[str, np.ndarray], inputs: dict[str, np.ndarray]
) -> list[Path]:
    """Writes one example and returns the paths.

    Images are PNG. Maps are .npy, 16-bit PNG with its scale, and a PNG in colors.
    """
    from modality_forcing.paths import write_file
    from modality_forcing.viz import images

    written = []
    for name, x in made.items():
        path = stem.with_name(f"{stem.name}_{name}")
        if x.ndim == 3:
            # An input's own bytes, not those that came back through tokens.
            x = inputs["image"] if name == "image" and "image" in inputs else images.to_u8(x)
            path = path.with_suffix(".png")
            write_file(path, images.png_bytes(x))
            written.append(path)
        else:
            written += images.save_depth(path, x, inputs["valid"] if name in inputs else None)
    return written
