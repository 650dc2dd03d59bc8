"""`mforce export`: writes a checkpoint's EMA weights for others."""

from __future__ import annotations

import argparse

from modality_forcing.commands.arguments import CHECKPOINT
from modality_forcing.errors import UserError
from modality_forcing.paths import as_path

LAYOUTS = ("bfl", "diffusers", "modality-forcing")  # of models/flux2_layouts.py


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("--checkpoint", type=as_path, required=True, help=CHECKPOINT)
    add("--out", type=as_path, required=True, help="a folder that does not exist yet")
    add("--format", choices=("orbax", "safetensors"), help="of the weights (orbax)")
    layout = "published layout of FLUX.2 networks, as others' tools read it, instead of a format"
    add("--layout", choices=LAYOUTS, help=layout)
    tensors = "of the tensors in a layout (bfloat16, as published)"
    add("--dtype", choices=("bfloat16", "float32"), help=tensors)
    adapter = (
        "only the weights that a run with train.freeze or train.lora_rank trained, as safetensors"
    )
    add("--adapter", action="store_true", help=adapter)


def main(options: argparse.Namespace) -> None:
    """Exports and prints the folder."""
    from modality_forcing import export

    if options.layout and options.format:
        raise UserError("--layout and --format are two kinds of files", hint="give one of them")
    if options.dtype and not options.layout:
        raise UserError(
            "--dtype is of --layout", hint="leave it out: weights are exported as they are"
        )
    if options.adapter and options.layout:
        raise UserError("--adapter has no --layout", hint="leave one of them out")
    kind = "safetensors" if options.adapter else options.format or "orbax"
    out = export.export(
        options.checkpoint,
        options.out,
        kind,
        layout=options.layout or "",
        dtype=options.dtype or "bfloat16",
        adapter=options.adapter,
    )
    print(out)
