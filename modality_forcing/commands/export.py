"""`mforce export`: writes a checkpoint's EMA weights for others."""

from __future__ import annotations

import argparse

from modality_forcing.paths import as_path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    checkpoint = "a workdir, its checkpoints/ or one step of it"
    add("--checkpoint", type=as_path, required=True, help=checkpoint)
    add("--out", type=as_path, required=True, help="a folder that does not exist yet")
    add("--format", choices=("orbax", "safetensors"), default="orbax")


def main(options: argparse.Namespace) -> None:
    """Exports and prints the folder."""
    from modality_forcing import export

    print(export.export(options.checkpoint, options.out, options.format))
