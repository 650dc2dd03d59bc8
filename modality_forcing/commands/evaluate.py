"""`mforce evaluate`: scores arrays, benchmarks, trajectories, held-out records, or images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modality_forcing import compilation_cache
from modality_forcing.commands.arguments import (
    CONDITION_GUIDANCE,
    TENSOR,
    add_network,
    path_option,
    positive_int,
    renamed_option,
    weights,
)
from modality_forcing.errors import UserError
from modality_forcing.progress import print_stderr
from modality_forcing.tree import JsonObject

if TYPE_CHECKING:
    from modality_forcing.evaluation.heldout import Evaluator
    from modality_forcing.evaluation.protocols import Protocol
    from modality_forcing.generator import Generator

EXAMPLES = """examples:
  mforce evaluate --checkpoint runs/demo/forcing
  mforce evaluate --checkpoint runs/demo/forcing --benchmark nyuv2 --root data/eval --ensemble 10
  mforce evaluate --checkpoint runs/demo/forcing --trajectory-sweep log2_alpha:-5..5
  mforce evaluate --checkpoint runs/mf --metrics fid,kid --inception inception.safetensors
  mforce evaluate --pred pred.npz --target target.npz --protocol moge --json
  mforce evaluate --pred made/ --target real/ --metrics fid --inception inception.safetensors
arrays: `depth` [n h w] in both files and `valid` bool [n h w] in the target;
  with --align disparity, `disparity` in the prediction"""

_OUT = Path("runs/evaluation")
_SAMPLE = ("steps", "solver", "condition_guidance")
_MODEL = (
    *("checkpoint", "adapter", "int8", "tensor", "text_encoder", "autoencoder", "seed"),
    *_SAMPLE,
)
_PROTOCOL = ("protocol", "align", "depth_range", "strict")
_BENCHMARK = ("benchmark", "root", "frame_list", "view", "ensemble", "ensemble_mode")
_RECORDS = ("examples", "estimator", "save_images")
_IMAGES = ("metrics", "inception", "clip", "kid_subset")
_MADE = ("mode", "records", "reference", "examples")
_RENAMED = {
    "--truth": "--target",
    "--sweep": "--trajectory-sweep",
    "--list": "--frame-list",
    "--pictures": "--save-images",
}


class Mode(NamedTuple):
    """What is evaluated: its name in messages, its options besides --out and --json, its main."""

    name: str
    options: tuple[str, ...]
    main: Callable[[argparse.Namespace], None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add_network(parser, optional=True)
    add("--tensor", type=positive_int, metavar="DEVICES", help=TENSOR)
    for old, new in _RENAMED.items():
        renamed_option(parser, old, new)
    add("--examples", type=positive_int, help="held-out records, instead of the config's")
    help = "depth of generated images: self (default), a folder of maps, package.module:function"
    add("--estimator", help=help)
    help = "write the generated images to this folder, for an external estimator"
    add("--save-images", type=path_option, help=help)
    help = "joint generation along trajectories, e.g. log2_alpha:-5..5"
    add("--trajectory-sweep", metavar="log2_alpha:FROM..TO", help=help)
    help = "nyuv2, kitti, eth3d, scannet, diode, ibims1, sintel, ddad...; several with commas"
    add("--benchmark", help=help)
    add("--root", type=path_option, help="the folder with the unpacked benchmark")
    help = "frames to score, one name a line, instead of the official list"
    add("--frame-list", type=path_option, help=help)
    help = "square (default, the model's own), moge (as published) or frame (as stored)"
    add("--view", help=help)
    add("--ensemble", type=positive_int, help="samples of each frame, merged into one map (1)")
    help = "what may differ between samples (scale)"
    add("--ensemble-mode", choices=("scale", "affine"), help=help)
    add("--seed", type=int, help="of the samples (benchmarks: 0; others: the config's)")
    add("--steps", type=positive_int, help="sampler steps, instead of the config's")
    add("--solver", choices=("euler", "heun"))
    add("--condition-guidance", type=weights, metavar="NAME=WEIGHT", help=CONDITION_GUIDANCE)
    add("--pred", type=path_option, help="predicted depth, .npz; with --metrics a folder of images")
    help = "ground-truth depth and its valid mask, .npz; with --metrics a folder of real images"
    add("--target", type=path_option, help=help)
    _add_images(parser)
    add("--protocol", help="moge (default), marigold or metric")
    add("--align", help="what is unknown of the prediction: affine, scale, disparity or none")
    add("--depth-range", metavar="MIN:MAX", help="range of scored depth, e.g. 0.001:10")
    help = "an aligned depth of 0 or less never counts as an inlier"
    add("--strict", action="store_true", default=None, help=help)
    add("--json", action="store_true", help="print JSON with a row per image, not a table")
    help = f"arrays, records, images: also write the JSON to this file; others: a folder ({_OUT})"
    add("--out", type=path_option, help=help)


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help = "scores of generated images: of fid, kid and cmmd, distances from real ones, and "
    help += "clip_score, how well they fit their captions; with commas"
    add("--metrics", help=help)
    add("--mode", choices=("t2i", "d2i", "joint"), help="of --metrics: what makes the images (d2i)")
    help = "of --metrics: records to score on, a prepared data set or a folder of images with "
    help += "captions and depth, instead of the checkpoint's held-out ones"
    add("--records", type=path_option, metavar="FOLDER", help=help)
    help = "of --metrics: a folder of real images, instead of the records' own"
    add("--reference", type=path_option, metavar="FOLDER", help=help)
    help = "of fid and kid: the weights of FID's Inception network, a .safetensors file"
    add("--inception", metavar="FILE", help=help)
    help = "of cmmd and clip_score: a CLIP network with safetensors, a hub id or a folder (CMMD's)"
    add("--clip", metavar="WHERE", help=help)
    add("--kid-subset", type=positive_int, metavar="N", help="images of a subset of KID (1000)")


@compilation_cache.enabled()
def main(options: argparse.Namespace) -> None:
    """Scores and prints the result; raises UserError first for options that do not combine."""
    mode = parse_mode(options)
    unused = sorted({name for other in MODES for name in other.options} - set(mode.options))
    for name in unused:
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is not for {mode.name}",
                hint="leave it out; see mforce evaluate --help",
            )
    mode.main(options)


def parse_mode(options: argparse.Namespace) -> Mode:
    """Returns the mode that the options select; raises UserError for none or for two."""
    arrays = options.pred is not None or options.target is not None
    if arrays == (options.checkpoint is not None):
        raise UserError(
            "nothing to score, or two things",
            hint="give either --checkpoint, or --pred and --target",
        )
    if options.benchmark is not None and options.trajectory_sweep is not None:
        what = "--benchmark cannot be combined with --trajectory-sweep"
        raise UserError(what, hint="give one of them")
    if options.metrics is not None:
        if options.benchmark is not None or options.trajectory_sweep is not None:
            other = "--benchmark" if options.benchmark is not None else "--trajectory-sweep"
            what = f"--metrics cannot be combined with {other}"
            raise UserError(what, hint="leave one of them out")
        return IMAGE_FOLDERS if arrays else IMAGES
    if arrays:
        return ARRAYS
    if options.benchmark is not None:
        return BENCHMARK
    return RECORDS if options.trajectory_sweep is None else TRAJECTORY_SWEEP


def _parse_protocol(options: argparse.Namespace) -> Protocol:
    from modality_forcing.evaluation import arrays
    from modality_forcing.evaluation.protocols import get_protocol

    depth_range = options.depth_range and arrays.parse_depth_range(options.depth_range)
    return get_protocol(
        options.protocol or "moge",
        options.align,
        strict=bool(options.strict),
        depth_range=depth_range,
    )


def _evaluate_arrays(options: argparse.Namespace) -> None:
    from modality_forcing.evaluation import arrays

    _check_out_file(options.out)
    result = arrays.evaluate_arrays(options.pred, options.target, _parse_protocol(options))
    _print_result(options, result, arrays.to_text(result))


def _evaluate_records(options: argparse.Namespace) -> None:
    _check_out_file(options.out)
    generator, evaluator = _load_evaluator(options, "i2d")
    metrics: dict[str, object] = {**evaluator(generator).metrics}
    if evaluator.estimator is not None:
        metrics["estimator"] = evaluator.estimator.name
    _print_result(options, metrics, json.dumps(metrics, indent=1))


def _evaluate_trajectories(options: argparse.Namespace) -> None:
    from modality_forcing.evaluation import trajectory_sweep
    from modality_forcing.paths import check_folder
    from modality_forcing.train.weights import open_weights

    _check_guided_by_image(options)
    values, out = trajectory_sweep.parse_values(options.trajectory_sweep), options.out or _OUT
    check_folder(out, "--out")
    generator, evaluator = _load_evaluator(options, "joint")
    checkpoint = open_weights(options.checkpoint).where
    result = trajectory_sweep.run(generator, evaluator, values, out=out, checkpoint=checkpoint)
    text = json.dumps(result, indent=1) if options.json else trajectory_sweep.to_markdown(result)
    print(text)


def _load_evaluator(options: argparse.Namespace, task: str) -> tuple[Generator, Evaluator]:
    """Returns a generator and the evaluator of its config; checks options before loading data."""
    from modality_forcing.evaluation.estimators import parse_estimator
    from modality_forcing.evaluation.heldout import Evaluator, with_num_examples
    from modality_forcing.paths import check_folder

    if options.save_images is not None:
        check_folder(options.save_images, "--save-images")
    estimator = parse_estimator(options.estimator or "self")
    generator = _load_generator(options, options.seed)
    config = generator.config
    if options.examples:
        config = with_num_examples(config, options.examples)
    generator.trajectory(task, config.sample)
    return generator, Evaluator(config, estimator, options.save_images)


def _evaluate_benchmarks(options: argparse.Namespace) -> None:
    from modality_forcing.evaluation.benchmark import (
        InferenceOptions,
        open_benchmarks,
        run_benchmarks,
    )
    from modality_forcing.evaluation.report import to_markdown
    from modality_forcing.evaluation.views import parse_view
    from modality_forcing.paths import check_folder
    from modality_forcing.train.weights import open_weights

    _check_guided_by_image(options)
    if options.root is None:
        raise UserError("--root is missing", hint="name the folder with the unpacked benchmark")
    if options.ensemble_mode is not None and (options.ensemble or 1) == 1:
        raise UserError("--ensemble-mode is for several samples", hint="give --ensemble 10 as well")
    protocol, out = _parse_protocol(options), options.out or _OUT
    check_folder(out, "--out")
    inference = InferenceOptions(
        parse_view(options.view or "square"),
        options.ensemble or 1,
        options.ensemble_mode or "scale",
        options.seed or 0,
    )
    opened = open_benchmarks(options.benchmark, options.root, options.frame_list)
    generator = _load_generator(options, inference.seed)
    step = open_weights(options.checkpoint).name
    results = run_benchmarks(
        generator, opened, protocol, inference, step=step, out=out, log=print_stderr
    )
    if options.json:
        print(json.dumps(results if len(results) > 1 else results[0], indent=1))
    else:
        print(to_markdown(results))


def _evaluate_images(options: argparse.Namespace) -> None:
    from modality_forcing.evaluation import image_quality
    from modality_forcing.evaluation.heldout import with_num_examples

    _check_out_file(options.out)
    metrics = image_quality.open_metrics(*(getattr(options, name) for name in _IMAGES))
    generator = _load_generator(options, options.seed)
    config = generator.config
    if options.records is not None:
        config = image_quality.with_records(config, options.records)
    if options.examples:
        config = with_num_examples(config, options.examples)
    result = image_quality.evaluate_checkpoint(
        generator, options.mode or "d2i", metrics, config=config, reference=options.reference
    )
    _print_result(options, result, image_quality.to_text(result))


def _evaluate_image_folders(options: argparse.Namespace) -> None:
    from modality_forcing.evaluation import image_quality

    _check_out_file(options.out)
    if options.pred is None or options.target is None:
        raise UserError("two folders are compared", hint="give --pred and --target")
    metrics = image_quality.open_metrics(*(getattr(options, name) for name in _IMAGES))
    result = image_quality.compare_folders(options.pred, options.target, metrics)
    _print_result(options, result, image_quality.to_text(result))


def _check_guided_by_image(options: argparse.Namespace) -> None:
    """Raises UserError for a weight of a modality that is not given in image-to-depth."""
    for name in sorted(set(options.condition_guidance or ()) - {"image"}):
        what = f"--condition-guidance names {name!r}, which is never given here"
        raise UserError(what, hint="name image, which image-to-depth is given")


def _load_generator(options: argparse.Namespace, seed: int | None) -> Generator:
    from modality_forcing.generator import Generator
    from modality_forcing.train import sharding

    return Generator.from_checkpoint(
        options.checkpoint,
        text_encoder=options.text_encoder or "",
        autoencoder=options.autoencoder or "",
        seed=seed,
        sample={name: getattr(options, name) for name in _SAMPLE},
        adapter=options.adapter,
        int8=bool(options.int8),
        mesh=sharding.local_mesh(options.tensor or 1),
    )


def _check_out_file(out: Path | None) -> None:
    from modality_forcing.paths import check_file

    if out is not None:
        check_file(out, "--out")


def _print_result(options: argparse.Namespace, result: JsonObject, text: str) -> None:
    from modality_forcing.paths import write_file

    json_text = json.dumps(result, indent=1)
    if options.out:
        write_file(options.out, json_text)
    print(json_text if options.json else text)


ARRAYS = Mode("arrays (--pred, --target)", ("pred", "target", *_PROTOCOL), _evaluate_arrays)
BENCHMARK = Mode(
    "a benchmark (--benchmark)", (*_MODEL, *_BENCHMARK, *_PROTOCOL), _evaluate_benchmarks
)
TRAJECTORY_SWEEP = Mode(
    "a trajectory sweep (--trajectory-sweep)",
    (*_MODEL, "trajectory_sweep", *_RECORDS),
    _evaluate_trajectories,
)
RECORDS = Mode(
    "a checkpoint's own records (--checkpoint alone)", (*_MODEL, *_RECORDS), _evaluate_records
)
IMAGES = Mode("generated images", (*_MODEL, *_IMAGES, *_MADE), _evaluate_images)
IMAGE_FOLDERS = Mode("folders of images", ("pred", "target", *_IMAGES), _evaluate_image_folders)
MODES = (ARRAYS, BENCHMARK, TRAJECTORY_SWEEP, RECORDS, IMAGES, IMAGE_FOLDERS)
