"""`mforce plan`: checks its options and runs the one plan they select."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

from modality_forcing.commands.arguments import (
    CHECKPOINT,
    INT8,
    image_size,
    path_option,
    positive_int,
)
from modality_forcing.errors import UserError
from modality_forcing.progress import print_stderr

EXAMPLES = """examples:
  mforce plan --config=forcing:size=3b3 --topology=v5p:4x4x4  # does it fit, how fast can it be?
  mforce plan --config=flux2:size=klein-9b --mode=i2d --topology=v5e:2x4  # sampling instead
  mforce plan --checkpoint=mf-flux2:weights/mf --int8 --topology=v6e:1x1  # of released weights
  mforce plan --encode=text --topology=v5e:2x2                # UMT5-XXL on one host
  mforce plan --sweep=sweep_paper --chip v5p v6e              # FLOPs and chip-hours of a study
  mforce plan --coord-check --out=check                       # do activations keep their scale?
The real train step, or sampling with --mode or --checkpoint, is compiled for TPUs that need not
be attached (by libtpu). Of a checkpoint, no weights are read.
Without --batch, the best micro-batch, remat policy and sharding preset that fit are searched.
A 3.3B step compiles in one to five minutes. Exit code 1: does not fit, or is not flat."""

_KINDS = ("config", "checkpoint", "encode", "sweep", "coord_check")
_SAMPLING = ("mode", "size", "steps", "int8")
_ALLOWED = {  # the other options that each kind accepts
    "config": ("topology", "slices", "batch", *_SAMPLING, "json"),
    "checkpoint": ("topology", "slices", "batch", *_SAMPLING, "json"),
    "encode": ("topology", "slices", "batch", "json"),
    "sweep": ("chip", "mfu", "json"),
    "coord_check": ("config", "out"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("--config", metavar="FILE[:ARG]", help="plan a run, e.g. configs/forcing.py:size=3b3")
    add("--checkpoint", type=path_option, help=f"plan sampling with a checkpoint: {CHECKPOINT}")
    mode = "plan sampling in this mode of mforce sample, not training (with --checkpoint: i2d)"
    add("--mode", help=mode)
    add("--size", type=image_size, help="of sampled images, as 512 or 768x512")
    add("--steps", type=positive_int, help="sampler steps, instead of the config's")
    add("--int8", action="store_true", help=INT8)
    encode = "plan a frozen encoder: UMT5-XXL (text), Qwen3, or a half of FLUX.2's autoencoder"
    parts = ("text", "qwen3-4b", "qwen3-8b", "encoder", "decoder")
    add("--encode", choices=parts, help=encode)
    add("--sweep", metavar="FILE[:ARG]", help="price a study, e.g. configs/sweep_paper.py")
    coord_check_help = "take real steps at widths 128 to 1024, of --config if it is given"
    add("--coord-check", action="store_true", help=coord_check_help)
    add("--topology", help="chips of one slice, e.g. v5p:4x4x4, v6e:8x8")
    add("--slices", type=positive_int, help="slices joined by the data-center network (1)")
    batch = "examples of a step; a config's own layout is planned as it is"
    add("--batch", type=positive_int, help=batch)
    add("--chip", nargs="+", help="kinds of chips to price a study on")
    add(
        "--mfu", type=float, help="utilization that a price assumes (the published one of the chip)"
    )
    add("--out", type=path_option, help="a folder for the figure of --coord-check")
    add("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Returns 1 if something does not fit or is not flat; UserError for conflicting options."""
    # The devices planned for are described, not used.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    overrides = options.overrides
    given = [kind for kind in _KINDS if getattr(options, kind)]
    kind = "coord_check" if "coord_check" in given else given[0] if len(given) == 1 else ""
    if not kind or set(given) - {kind, *_ALLOWED[kind]}:
        raise UserError(
            "give exactly one of --config, --checkpoint, --encode, --sweep and --coord-check"
        )
    for name in ("topology", "slices", "batch", *_SAMPLING, "chip", "mfu", "out", "json"):
        if getattr(options, name) and name not in _ALLOWED[kind]:
            raise UserError(
                f"--{kind.replace('_', '-')} does not take --{name}", hint="leave it out"
            )
    unused = [name for name in _SAMPLING if getattr(options, name)]
    if kind == "config" and unused and not options.mode:
        what = f"--{unused[0]} is for a plan of sampling"
        raise UserError(what, hint="name a mode of mforce sample, such as --mode=i2d")
    if overrides and not (options.config or options.checkpoint):
        raise UserError(
            f"--config.{next(iter(overrides))} changes a config, and there is none",
            hint="give --config",
        )
    plans = {"config": _run, "checkpoint": _sampling, "encode": _encoder, "sweep": _sweep}
    plans |= {"coord_check": _coordinates}
    return plans["checkpoint" if options.mode else kind](options, overrides)


def _run(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    from modality_forcing import config_file
    from modality_forcing.planning import report
    from modality_forcing.planning.search import plan, search, with_batch

    config, target = config_file.load(options.config, dict(overrides)), _target(options)
    if options.batch:
        found = plan(with_batch(config, target, options.batch), target)
    else:
        found = search(config, target, print_stderr)
    _print(report, found, options)
    if not found.fits and options.batch:
        print_stderr("searching for a layout that fits")
        print_stderr(f"would fit: {report.to_text(search(config, target, print_stderr))}")
    return 0 if found.fits else 1


def _sampling(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    from dataclasses import replace

    from modality_forcing import config_file
    from modality_forcing.generator import override_sampling
    from modality_forcing.modalities import base
    from modality_forcing.models.flux2_weights import array_shapes
    from modality_forcing.planning import inference
    from modality_forcing.train import weights
    from modality_forcing.train.state import abstract_model

    target = _target(options)
    if options.checkpoint:
        saved, dtype = weights.describe(options.checkpoint)
        config = config_file.override(saved, overrides)
        ours, theirs = (array_shapes(abstract_model(c, base.build(c))[1]) for c in (config, saved))
        if ours != theirs:
            what = "these --config options make another network than the checkpoint's"
            raise UserError(what, hint="plan them with --config instead of --checkpoint")
    else:
        config = config_file.load(options.config, dict(overrides))
        dtype = inference.published_dtype(config)
    config = replace(config, sample=override_sampling(config, steps=options.steps))
    request = inference.Request(
        config,
        options.mode or "",
        size=options.size,
        dtype=dtype,
        int8=options.int8,
        batch=options.batch,
    )
    found = inference.plan(request, target)
    _print(inference, found, options)
    return 0 if found.fits else 1


def _encoder(options: argparse.Namespace, _: Mapping[str, str]) -> int:
    from modality_forcing.planning import encoders

    part, target, batch = options.encode, _target(options), options.batch
    count = len(target.devices)
    if batch and batch % count:
        what = f"--batch {batch} is not a multiple of {count} devices"
        raise UserError(what, hint="give one that is")
    found = (
        encoders.plan(part, target, batch // count)
        if batch
        else encoders.search(part, target, print_stderr)
    )
    _print(encoders, found, options)
    return 0 if found.fits else 1


def _sweep(options: argparse.Namespace, _: Mapping[str, str]) -> int:
    from modality_forcing.sweeps import price
    from modality_forcing.sweeps.spec import load

    chips = options.chip or price.DEFAULT_CHIPS
    _print(price, price.price(load(options.sweep), chips, options.mfu), options)
    return 0


def _coordinates(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    from modality_forcing import config_file
    from modality_forcing.paths import check_folder
    from modality_forcing.train import coord_check

    if options.out is not None:
        check_folder(options.out, "--out")
    chosen = (
        config_file.load(options.config, dict(overrides)) if options.config else coord_check.DEFAULT
    )
    return 0 if coord_check.check(chosen, options.out) else 1


def _print(kind: Any, found: object, options: argparse.Namespace) -> None:
    """Prints a plan. kind: the module of its `to_json` and `to_text`."""
    print(json.dumps(kind.to_json(found), indent=1) if options.json else kind.to_text(found))


def _target(options: argparse.Namespace):
    from modality_forcing.planning.compile import get_target

    if not options.topology:
        raise UserError(
            "--topology is missing", hint="name the chips of one slice, e.g. --topology=v5p:4x4x4"
        )
    return get_target(options.topology, options.slices or 1)
