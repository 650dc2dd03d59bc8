"""`mforce export`: writes a checkpoint's EMA weights for others."""

from __future__ import annotations

import argparse

from modality_forcing.commands.arguments import CHECKPOINT, image_size, path_option, positive_int
from modality_forcing.errors import UserError

_PROGRAM = ("steps", "size", "text_encoder", "autoencoder")  # options of --format=stablehlo
LAYOUTS = ("bfl", "diffusers", "modality-forcing")  # of models/flux2_layouts.py


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("--checkpoint", type=path_option, required=True, help=CHECKPOINT)
    add("--out", type=path_option, required=True, help="a folder that does not exist yet")
    kind = "of the weights (orbax); stablehlo: a program of i2d, with weights, that needs jax alone"
    add("--format", choices=("orbax", "safetensors", "stablehlo"), help=kind)
    layout = "published layout of FLUX.2 networks, as others' tools read it, instead of a format"
    add("--layout", choices=LAYOUTS, help=layout)
    tensors = "of the tensors in a layout (bfloat16, as published)"
    add("--dtype", choices=("bfloat16", "float32"), help=tensors)
    adapter = (
        "only the weights that a run with train.freeze or train.lora_rank trained, as safetensors"
    )
    add("--adapter", action="store_true", help=adapter)
    license_ = "of the weights in the model card, as the hub names it: apache-2.0, cc-by-nc-4.0"
    add("--license", default="", metavar="ID", help=license_)
    push = "repository of the hub that the files are sent to as well; made if it is new"
    add("--push-to-hub", default="", metavar="OWNER/NAME", help=push)
    add("--private", action="store_true", help="--push-to-hub: a new repository is private")
    branch = "--push-to-hub: the branch, made if it is new (main)"
    add("--revision", default="", metavar="BRANCH", help=branch)
    steps = "stablehlo: sampler steps, which are a part of the program, instead of the config's"
    add("--steps", type=positive_int, help=steps)
    size = (
        "stablehlo: size of the images, as 512 or 768x512 (width x height), instead of the config's"
    )
    add("--size", type=image_size, metavar="SIZE", help=size)
    frozen = "a frozen encoder, if not where the config says"
    add("--text-encoder", default="", metavar="KIND:PATH", help=f"stablehlo: {frozen}")
    add("--autoencoder", default="", metavar="flux2:PATH", help=f"stablehlo: {frozen}")


def main(options: argparse.Namespace) -> None:
    """Exports and prints the folder, and the address of the repository that it was sent to."""
    from modality_forcing.export import job, program
    from modality_forcing.export.hub import Repository

    _check(options)
    repository = Repository(options.push_to_hub, options.private, options.revision)
    if options.push_to_hub:
        repository.check(options.out)
    if options.format == "stablehlo":
        of_program = {name: getattr(options, name) for name in _PROGRAM}
        out = program.export(options.checkpoint, options.out, license=options.license, **of_program)
    else:
        out = job.export(
            options.checkpoint,
            options.out,
            "safetensors" if options.adapter else options.format or "orbax",
            layout=options.layout or "",
            dtype=options.dtype or "bfloat16",
            adapter=options.adapter,
            license=options.license,
        )
    print(out)
    if options.push_to_hub:
        print(repository.push(out))


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    if not options.push_to_hub and (options.private or options.revision):
        name = "--private" if options.private else "--revision"
        raise UserError(f"{name} is for --push-to-hub", hint="name the repository")
    if options.layout and options.format:
        raise UserError("--layout and --format are two kinds of files", hint="give one of them")
    if options.dtype and not options.layout:
        hint = "leave it out: weights are exported as they are"
        raise UserError("--dtype needs --layout", hint=hint)
    if options.adapter and options.layout:
        raise UserError("--adapter has no --layout", hint="leave one of them out")
    if options.adapter and options.format == "orbax":
        raise UserError("--adapter is written as safetensors", hint="leave --format out")
    if options.format == "stablehlo":
        if options.adapter:
            hint = "leave --adapter or --format out"
            raise UserError("--adapter cannot be exported as stablehlo", hint=hint)
        return
    for name in _PROGRAM:
        if getattr(options, name):
            hint = "leave it out; mforce sample has it"
            raise UserError(f"--{name.replace('_', '-')} is for --format=stablehlo", hint=hint)
