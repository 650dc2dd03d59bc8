"""`mforce sample`: files and captions in, images and depth files out."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modality_forcing import compilation_cache
from modality_forcing.commands.arguments import (
    CONDITION_GUIDANCE,
    TENSOR,
    add_network,
    finite_float,
    fraction,
    image_size,
    path_option,
    positive_int,
    renamed_option,
    weights,
)
from modality_forcing.errors import UserError
from modality_forcing.progress import print_stderr

if TYPE_CHECKING:
    from modality_forcing.config import SampleConfig
    from modality_forcing.data.files import DepthFormat
    from modality_forcing.generator import Generator
    from modality_forcing.inference.metric import ScaleSource
    from modality_forcing.inference.photos import Item

MANIFEST = "manifest.jsonl"
OF_DEPTH = ("ensemble", "points", "fov", "edge", "scale_from")  # options of image-to-depth alone
MAX_EXAMPLES = 64  # more are refused: memory could run out half way

EXAMPLES = """examples:
  mforce sample --checkpoint runs/mf --mode joint --caption 'a red ball on grass' --out out
  mforce sample --checkpoint runs/mf --mode i2d --image photo.jpg --out out
  mforce sample --checkpoint runs/mf --mode i2d --image photos/ --points ply --out out
  mforce sample --checkpoint runs/mf --mode i2d --image 'photos/*.jpg' --ensemble 5 --out out
  mforce sample --checkpoint runs/normals --mode i2n --image photos/ --out out
  mforce sample --checkpoint runs/mf --mode d2i --depth depth.png --depth-scale 0.001 --out out"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add_network(parser)
    add("--tensor", type=positive_int, default=1, metavar="DEVICES", help=TENSOR)
    add("--mode", required=True, help="joint, i2d, d2i, partial, t2i, i2n or d2n")
    add("--out", type=path_option, required=True, help="output folder")
    add("--caption", action="append", default=[], help="text; repeat it for more examples")
    add("--n", type=positive_int, default=1, help="examples per caption and input (%(default)s)")
    _add_inputs(parser)
    _add_outputs(parser)
    size = "size of the images, as 512 or 768x512 (width x height), instead of the config's"
    add("--size", type=image_size, metavar="SIZE", help=size)
    add("--seed", type=int, default=0)
    add("--steps", type=positive_int, help="sampler steps, at most 10000, instead of the config's")
    add("--solver", choices=("euler", "heun"))
    add("--guidance", type=finite_float, help="guidance scale of the image; depth has none")
    add("--condition-guidance", type=weights, metavar="NAME=WEIGHT", help=CONDITION_GUIDANCE)
    alpha = "joint: > 0 image first, < 0 depth first; partial: looser above 0"
    add("--log2-alpha", type=finite_float, help=alpha)
    refine = "joint: a second image-to-depth pass on the generated image"
    add("--refine", action="store_true", help=refine)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    several = {"type": path_option, "nargs": "+", "action": "extend", "metavar": "PATH"}
    add(
        "--image",
        help="input of i2d and i2n: files, folders and patterns such as 'in/*.jpg'",
        **several,
    )
    depth = (
        "input of d2i, partial and d2n: .npy or .exr of floats, or 16-bit PNG with --depth-scale"
    )
    add("--depth", help=f"{depth}; files, folders and patterns", **several)
    scale = "units per count of a PNG or of integers, e.g. 0.001 for millimeters"
    add("--depth-scale", type=finite_float, help=scale)
    invalid = "a stored number of --depth that means unknown, besides 0, NaN and inf"
    add("--depth-invalid", type=finite_float, help=invalid)
    farthest = "what is farther in --depth is unknown"
    add("--depth-max", type=finite_float, metavar="DEPTH", help=farthest)
    fit = "how an input gets the network's size: all of it with padding, its center, all of it "
    fit += "distorted, or overlapping tiles (stretch for images, letterbox for depth)"
    add("--fit", choices=("letterbox", "crop", "stretch", "tiles"), help=fit)
    renamed_option(parser, "--resize-mode", "--fit")
    add("--batch", type=positive_int, help="inputs that are run together (8)")
    bad = "fraction of the inputs that may be unreadable (1: all but one)"
    add("--max-errors", type=fraction, metavar="FRACTION", help=bad)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    ensemble = (
        "i2d: samples of each image, merged into one map with its uncertainty (1, at most 64)"
    )
    add("--ensemble", type=positive_int, metavar="N", help=ensemble)
    formats = "of npy, png, exr, color, spectral and side, with commas (npy,png,color)"
    add("--formats", help=formats)
    points = "i2d: also write a point cloud and a mesh in colors"
    add("--points", choices=("ply", "glb"), help=points)
    fov = "i2d: degrees across the longer side, for --points (from EXIF, else 65)"
    add("--fov", type=finite_float, metavar="DEGREES", help=fov)
    edge = "i2d: of --points, the difference of depth between neighbors, as a share of it, from "
    edge += "which on points are left out and meshes are cut (0.04)"
    add("--edge", type=finite_float, metavar="SHARE", help=edge)
    scale_from = "i2d: metric depth from measurements: a depth map, a .csv with columns x,y,depth, "
    scale_from += "(with file of several images), or a folder with one of the name of each image"
    add("--scale-from", type=path_option, metavar="PATH", help=scale_from)


@compilation_cache.enabled()
def main(options: argparse.Namespace) -> None:
    """Generates, then writes the files and prints their paths.

    Raises UserError for a mode that the checkpoint cannot do, and for an input that is missing,
    unreadable or unused.
    """
    from modality_forcing.generator import Generator
    from modality_forcing.tasks import SAMPLED
    from modality_forcing.train import sharding

    check_options(options)
    items = find_inputs(options) if SAMPLED[options.mode] else []  # before the checkpoint is loaded
    check_measurements(options, items)
    generator = Generator.from_checkpoint(
        options.checkpoint,
        text_encoder=options.text_encoder,
        autoencoder=options.autoencoder,
        seed=options.seed,
        adapter=options.adapter,
        int8=options.int8,
        size=options.size,
        mesh=sharding.local_mesh(options.tensor),
    )
    if items:
        sample_files(options, generator, items)
    else:
        sample_captions(options, generator)


def sample_captions(options: argparse.Namespace, generator: Generator) -> None:
    """Generates examples of captions alone, and prints the paths of their files."""
    from modality_forcing.inference import batches, outputs

    captions = [c for c in (options.caption or [""]) for _ in range(options.n)]
    made = batches.generate(
        generator,
        options.mode,
        captions,
        sampling=batches.Sampling(_sampling(options, generator), options.seed),
        batch=len(captions),
        refine=options.refine,
        free_text=True,
        where=options.checkpoint,
    )
    for i, example in enumerate(made):
        stem = options.out / f"{options.mode}_{i:03d}"
        for path in outputs.write_example(stem, example, generator.modalities):
            print(path)


def sample_files(options: argparse.Namespace, generator: Generator, items: Sequence[Item]) -> None:
    """Works on files: prints the paths of the results of one, or of the manifest of several."""
    from modality_forcing.inference import outputs
    from modality_forcing.inference.batches import Sampling
    from modality_forcing.inference.fit import DEPTH_FIT, IMAGE_FIT, parse_fit
    from modality_forcing.inference.folder import run_job
    from modality_forcing.inference.job import Job
    from modality_forcing.inference.pipeline import Pipeline
    from modality_forcing.inference.points import EDGE

    formats = options.formats
    job = Job(
        mode=options.mode,
        out=options.out,
        sampling=Sampling(_sampling(options, generator), options.seed),
        fit=parse_fit(options.fit or (IMAGE_FIT if options.mode == "i2d" else DEPTH_FIT)),
        captions=tuple(options.caption) or ("",),
        repetitions=options.n,
        ensemble=options.ensemble or 1,
        formats=outputs.DEFAULT_FORMATS if formats is None else outputs.parse_formats(formats),
        geometry=options.points or "",
        fov=options.fov,
        edge=EDGE if options.edge is None else options.edge,
        depth_form=_depth_form(options),
        scale=_scale_source(options),
        max_errors=1.0 if options.max_errors is None else options.max_errors,
    )
    done = run_job(Pipeline(generator, fit=job.fit, batch=options.batch or 8), items, job)
    for path in done.outputs if len(items) == 1 else ():
        print(path)
    print(options.out / MANIFEST)
    if len(items) > 1 or done.before:
        counts = f"{done.done} of {len(items)} files, {done.before} of them before"
        print_stderr(f"{options.out}: {counts}, {len(done.failed)} skipped")


def _sampling(options: argparse.Namespace, generator: Generator) -> SampleConfig:
    from modality_forcing.generator import override_sampling

    guidance = options.guidance
    sampling = override_sampling(
        generator.config,
        steps=options.steps,
        solver=options.solver,
        log2_alpha=options.log2_alpha,
        guidance=None if guidance is None else {generator.primary: guidance},
        condition_guidance=options.condition_guidance,
    )
    generator.trajectory(options.mode, sampling)  # raises where the checkpoint cannot do the mode
    return sampling


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError if the mode is unknown, lacks its input, or has one it would ignore."""
    from modality_forcing.inference.inputs import as_whole
    from modality_forcing.inference.outputs import check_map_formats, parse_formats
    from modality_forcing.inference.pipeline import MAX_ENSEMBLE
    from modality_forcing.inference.points import camera, check_edge
    from modality_forcing.paths import check_folder, exists
    from modality_forcing.tasks import SAMPLED, TO_NORMALS

    mode = options.mode
    if mode not in SAMPLED:
        raise UserError(f"unknown mode {mode!r}", hint=f"choose one of {', '.join(SAMPLED)}")
    for name in ("image", "depth"):
        if name in SAMPLED[mode] and getattr(options, name) is None:
            hint = f"name it with --{name} FILE, or a folder of files"
            raise UserError(f"mode {mode} needs an input", hint=hint)
    measured = options.depth is not None or options.scale_from is not None
    with_files = ("fit", "batch", "max_errors", "formats")
    unused = {
        "--image": options.image is not None and "image" not in SAMPLED[mode],
        "--depth": options.depth is not None and "depth" not in SAMPLED[mode],
        "--refine": options.refine and mode != "joint",
        "--guidance": options.guidance is not None and mode in ("i2d", "i2n"),
        "--log2-alpha": options.log2_alpha is not None and mode not in ("joint", "partial"),
        **{
            f"--depth-{name}": not measured and vars(options)[f"depth_{name}"] is not None
            for name in ("scale", "invalid", "max")
        },
        **{_flag(name): not SAMPLED[mode] and _is_given(options, name) for name in with_files},
        **{_flag(name): mode != "i2d" and _is_given(options, name) for name in OF_DEPTH},
    }
    for name, is_unused in unused.items():
        if is_unused:
            hint = "leave it out, or choose another mode"
            raise UserError(f"mode {mode} does not take {name}", hint=hint)
    cond = SAMPLED[mode] or ("image",) * options.refine  # the second pass has a condition
    for name in sorted(set(options.condition_guidance or ()) - set(cond)):
        hint = f"its condition is {' and '.join(cond)}" if cond else "leave it out"
        raise UserError(f"mode {mode} has no condition {name!r} to guide by", hint=hint)
    for name in ("fov", "edge"):
        if _is_given(options, name) and options.points is None:
            hint = "add --points=ply or glb, or leave it out"
            raise UserError(f"--{name} is for --points", hint=hint)
    if (count := options.n * max(len(options.caption), 1)) > MAX_EXAMPLES:
        raise UserError(f"{count} examples asked for", hint=f"ask for at most {MAX_EXAMPLES}")
    if options.ensemble is not None:
        as_whole("--ensemble", options.ensemble, 1, MAX_ENSEMBLE)
    check_folder(options.out, "--out")
    if options.formats is not None:
        formats = parse_formats(options.formats)
        if mode in TO_NORMALS:
            check_map_formats(formats)
    if options.fov is not None:
        camera((1, 1), options.fov)
    if options.edge is not None:
        check_edge(options.edge)
    if options.scale_from is not None and not exists(options.scale_from):
        raise UserError("no such file", where=options.scale_from, hint="check --scale-from")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_given(options: argparse.Namespace, name: str) -> bool:
    return getattr(options, name) is not None


def find_inputs(options: argparse.Namespace) -> list[Item]:
    """Returns the files that --image or --depth names; raises UserError if there are none."""
    from modality_forcing.data.files import DEPTH_SUFFIXES
    from modality_forcing.inference.photos import PHOTO_SUFFIXES, find_items

    if options.image is not None:
        return find_items(options.image, PHOTO_SUFFIXES, "--image", options.out)
    return find_items(options.depth, DEPTH_SUFFIXES, "--depth", options.out)


def check_measurements(options: argparse.Namespace, items: Sequence[Item]) -> None:
    """Raises UserError for measurements that cannot be of all images, or a scale of no depth."""
    from modality_forcing.data.files import holds_floats

    if (source := _scale_source(options)) is not None:
        source.check(len(items))
    elif items and options.depth_scale is not None and all(holds_floats(x.path) for x in items):
        # With other files the scale has a use, and floats are read without it.
        what = "holds floats, which --depth-scale does not apply to"
        what += f", as do all {len(items)} files" if len(items) > 1 else ""
        raise UserError(what, where=items[0].path, hint="leave it out")


def _depth_form(options: argparse.Namespace) -> DepthFormat:
    from modality_forcing.data.files import DepthFormat

    farthest = math.inf if options.depth_max is None else options.depth_max
    return DepthFormat(options.depth_scale, options.depth_invalid or 0.0, farthest)


def _scale_source(options: argparse.Namespace) -> ScaleSource | None:
    from modality_forcing.inference.metric import ScaleSource

    path = options.scale_from
    return None if path is None else ScaleSource(path, _depth_form(options))
