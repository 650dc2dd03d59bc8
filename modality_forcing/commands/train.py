"""`mforce train`: trains a config, or resumes the run in the workdir."""

from __future__ import annotations

import argparse

from modality_forcing import distributed
from modality_forcing.commands.arguments import path_option

EXAMPLES = """examples:
  mforce train --config=demo:phase=t2i --workdir=runs/t2i
  mforce train --config=my_config.py --workdir=runs/mine --config.train.steps=50
  mforce train --config=t2i:size=3b3 --workdir=gs://bucket/run --dry-run

Any value of the config can be set with --config.KEY=VALUE."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    config = "a file, or the name of one in configs/"
    add("--config", required=True, metavar="FILE[:ARG]", help=config)
    workdir = "for checkpoints, metrics and TensorBoard events"
    add("--workdir", type=path_option, required=True, help=workdir)
    wandb = "log rows of metrics to Weights & Biases too (extra wandb; WANDB_PROJECT, WANDB_MODE)"
    add("--log", choices=("wandb",), help=wandb)
    profile = "profile COUNT steps after FROM updates into the workdir; :all for all processes"
    add("--profile", metavar="FROM:COUNT[:all]", help=profile)
    dry_run = "check all that the run needs and compile its step; train nothing, write nothing"
    add("--dry-run", action="store_true", help=dry_run)


def main(options: argparse.Namespace) -> None:
    """Trains."""
    distributed.initialize()  # before anything asks for devices
    from modality_forcing import config_file
    from modality_forcing.evaluation.while_training import make_evaluate
    from modality_forcing.train.dry_run import dry_run
    from modality_forcing.train.loop import train
    from modality_forcing.train.profile import parse_window

    config = config_file.load(options.config, options.overrides)
    profile = parse_window(options.profile) if options.profile else None
    if options.dry_run:
        said = dry_run(config, options.workdir, make_evaluate)
        if distributed.is_primary():
            print(said)
        return
    train(
        config,
        options.workdir,
        make_evaluate=make_evaluate,
        wandb=options.log == "wandb",
        profile=profile,
    )
