"""`mforce prepare`: converts a data set to shards, or lists the known data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from modality_forcing.commands.arguments import (
    add_runner,
    check_runner,
    fraction,
    path_option,
    positive_int,
    renamed_option,
    shard_of,
)
from modality_forcing.errors import UserError
from modality_forcing.progress import print_stderr

EXAMPLES = """examples:
  mforce prepare --list-datasets
  mforce prepare --dataset=tum --root=data/tum --out=prepared/tum --workers=8
  mforce prepare --dataset=folder --option depth_scale=0.001 --option unit=metric \\
      --root=photos --out=prepared/photos
  mforce prepare --dataset=scannet --root=data/scannet --out=prepared/scannet \\
      --shard=$SLURM_ARRAY_TASK_ID/64
  mforce prepare --dataset=tum --root=data/tum --out=prepared/tum --runner=beam \\
      --beam-options='--direct_num_workers=4 --direct_running_mode=multi_processing'
An interrupted command resumes with the missing shards and produces the same bytes. Training and
mforce inspect read the folder once all shards exist."""

RESOLUTION = 256  # of the shorter side, without --resolution and --max-side
SHARD_SIZE = 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    list_datasets = "print the known data sets with unit, splits and license"
    add("--list-datasets", action="store_true", help=list_datasets)
    add("--dataset", help="one of those, or folder")
    add("--root", type=path_option, help="the folder it was unpacked into")
    add("--out", type=path_option, help="folder of the shards; splits may share it")
    add("--split", default="", help="the data set's first one by default")
    option_help = "of the data set, e.g. depth_scale=0.001"
    add("--option", action="append", default=[], metavar="NAME=VALUE", help=option_help)
    resolution = f"pixels of the shorter side ({RESOLUTION}); more allows closer crops in training"
    add("--resolution", type=positive_int, help=resolution)
    add("--max-side", type=positive_int, help="pixels of the longer side, instead of --resolution")
    image_format = "png is lossless (%(default)s)"
    add("--image-format", choices=("jpeg", "webp", "png"), default="jpeg", help=image_format)
    add("--quality", type=positive_int, default=95, help="of JPEG and WebP (%(default)s)")
    shard_size = "records per shard (%(default)s)"
    add("--shard-size", type=positive_int, default=SHARD_SIZE, help=shard_size)
    add("--limit", type=positive_int, help="use at most the first so many records")
    add("--workers", type=_workers, default=0, help="processes; 0 uses this one (%(default)s)")
    shard = "write every N-th shard from I on, I from 0: one of N jobs"
    add("--shard", type=shard_of, metavar="I/N", help=shard)
    max_errors = "fraction of records that may be unreadable (%(default)s)"
    add("--max-errors", type=fraction, default=0.01, help=max_errors)
    add_runner(parser)
    renamed_option(parser, "--list", "--list-datasets")
    renamed_option(parser, "--part", "--shard")
    renamed_option(parser, "--max-bad", "--max-errors")


def main(options: argparse.Namespace) -> None:
    """Prepares a data set, or lists the known ones. Raises UserError for conflicting options."""
    if options.list_datasets:
        print(dataset_table())
        return
    names = ("dataset", "root", "out")
    if missing := [f"--{name}" for name in names if getattr(options, name) is None]:
        hint = "name the data set, its folder and one for the shards"
        raise UserError(f"{' and '.join(missing)} missing", hint=hint)
    if options.resolution and options.max_side:
        raise UserError("--resolution and --max-side are two sizes", hint="give one of them")
    if options.quality > 100:
        raise UserError(f"--quality is {options.quality}", hint="the range is 1 to 100")
    check_runner(options, ("workers", "shard"))
    from modality_forcing.data.records import Notes
    from modality_forcing.datasets.registry import check_split, find_dataset
    from modality_forcing.paths import check_folder, require_disk
    from modality_forcing.prepare import pipeline, work
    from modality_forcing.prepare.job import PrepareJob, Settings

    dataset_options = dict(map(_pair, options.option))
    dataset = find_dataset(options.dataset).with_options(dataset_options)
    split = check_split(dataset, options.split)
    check_folder(options.out, "--out", utf8=True)
    source = dataset.open(require_disk(options.root, "unpacked data sets"), split)
    notes = source.notes() if isinstance(source, Notes) else []
    for note in notes:
        print_stderr(note)
    if not len(source):
        what = f"holds no record of {dataset.title}"
        raise UserError(what, where=options.root, hint="check the path and the split")
    settings = Settings(
        dataset=dataset.name,
        split=split,
        records=min(len(source), options.limit or len(source)),
        resolution=None if options.max_side else options.resolution or RESOLUTION,
        max_side=options.max_side,
        image_format=options.image_format,
        quality=options.quality,
        shard_size=options.shard_size,
        options=dataset_options,
    )
    below = tuple(_below(options.root, note) for note in notes)
    job = PrepareJob(options.out.absolute(), dataset, settings, below)
    if options.runner == "beam":
        root, given = options.root.absolute(), options.beam_options
        manifest = pipeline.prepare(job, root, given, max_errors=options.max_errors)
    else:
        manifest = work.prepare(
            job,
            source,
            workers=options.workers,
            shard=options.shard or (0, 1),
            max_errors=options.max_errors,
        )
    if manifest:
        print(manifest.path)


def _below(root: Path, note: str) -> str:
    """Returns a note with paths below the root instead of absolute ones."""
    for folder in (root, root.resolve()):
        note = note.removeprefix(f"{folder}: ").removeprefix(f"{folder}/")
    return note


def dataset_table() -> str:
    """Returns the data sets as a table, with the missing package of those that need one."""
    from modality_forcing.datasets.registry import NAMES, find_dataset
    from modality_forcing.progress import format_table

    rows = []
    for name in NAMES:
        try:
            found = find_dataset(name)
        except UserError as error:
            rows.append((name, str(error)))
        else:
            rows.append((name, found.title, found.unit, ", ".join(found.splits), found.license))
    return format_table(rows, header=("name", "title", "unit", "splits", "license"))


def _pair(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not name or not equals:
        hint = "write e.g. --option depth_scale=0.001"
        raise UserError(f"--option {option} is not NAME=VALUE", hint=hint)
    return name, value


def _workers(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)
