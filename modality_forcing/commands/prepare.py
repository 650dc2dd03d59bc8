"""`mforce prepare`: its options, what they mean together, and the list of data sets."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from modality_forcing.commands.arguments import positive_int
from modality_forcing.errors import UserError

EXAMPLES = """examples:
  mforce prepare --list
  mforce prepare --dataset=tum --root=data/tum --out=prepared/tum --workers=8
  mforce prepare --dataset=folder --option depth_scale=0.001 --option unit=metric --root=photos --out=prepared/photos
  mforce prepare --dataset=scannet --root=data/scannet --out=prepared/scannet --part=$SLURM_ARRAY_TASK_ID/64
Stopped or killed, the same command goes on with the shards that are missing, and the bytes are those of a run that was
never stopped. Training, and mforce inspect, read the folder when all shards are there."""

RESOLUTION = 256  # of the shorter side, where neither --resolution nor --max-side is given
SHARD_SIZE = 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add(
        "--list",
        action="store_true",
        help="print the data sets that can be read, with unit, splits and licence",
    )
    add("--dataset", help="one of those, or folder")
    add("--root", type=Path, help="the folder it was unpacked into")
    add("--out", type=Path, help="the folder for the shards; several splits may share one")
    add("--split", default="", help="by default the first of the data set")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the data set, e.g. depth_scale=0.001",
    )
    add(
        "--resolution",
        type=positive_int,
        help=f"pixels of the shorter side ({RESOLUTION}); give more to crop closer in training",
    )
    add("--max-side", type=positive_int, help="pixels of the longer side, instead of --resolution")
    add(
        "--image-format",
        choices=("jpeg", "webp", "png"),
        default="jpeg",
        help="png keeps every bit (%(default)s)",
    )
    add("--quality", type=positive_int, default=95, help="of JPEG and WebP (%(default)s)")
    add(
        "--shard-size",
        type=positive_int,
        default=SHARD_SIZE,
        help="records of a shard (%(default)s)",
    )
    add("--limit", type=positive_int, help="take no more than so many records, the first ones")
    add("--workers", type=_workers, default=0, help="processes; 0 works in this one (%(default)s)")
    add(
        "--part",
        type=part_of,
        default=(0, 1),
        metavar="I/N",
        help="make every N-th shard from I on, I from 0: one of N jobs",
    )
    add(
        "--max-bad",
        type=_share,
        default=0.01,
        help="share of records that may be unreadable (%(default)s)",
    )


def main(options: argparse.Namespace) -> None:
    """Prepares a data set, or lists those there are; raises UserError for options that do not go together."""
    if options.list:
        print(table())
        return
    if missing := [
        f"--{name}" for name in ("dataset", "root", "out") if getattr(options, name) is None
    ]:
        raise UserError(
            f"{' and '.join(missing)} missing",
            hint="name the data set, its folder and one for the shards",
        )
    if options.resolution and options.max_side:
        raise UserError("--resolution and --max-side are two sizes", hint="give one of them")
    if options.quality > 100:
        raise UserError(f"--quality is {options.quality}", hint="it goes from 1 to 100")
    from modality_forcing.atomic_io import check_folder
    from modality_forcing.datasets.registry import check_split, find_dataset
    from modality_forcing.prepare.job import Place, Settings
    from modality_forcing.prepare.work import prepare

    dataset = find_dataset(options.dataset).with_options(dict(map(_pair, options.option)))
    split = check_split(dataset, options.split)
    check_folder(options.out, "--out")
    source = dataset.open(options.root, split)
    if not len(source):
        raise UserError(
            f"holds no record of {dataset.title}",
            where=options.root,
            hint="check the path and the split",
        )
    settings = Settings(
        dataset=dataset.name,
        split=split,
        records=min(len(source), options.limit or len(source)),
        resolution=None if options.max_side else options.resolution or RESOLUTION,
        max_side=options.max_side,
        image_format=options.image_format,
        quality=options.quality,
        shard_size=options.shard_size,
        options=dict(map(_pair, options.option)),
    )
    place = Place(options.out.absolute(), dataset, settings)
    written = prepare(
        place, source, tell, workers=options.workers, part=options.part, max_bad=options.max_bad
    )
    if written:
        print(written.path)


def tell(line: str) -> None:
    """Prints progress, apart from results."""
    print(line, file=sys.stderr, flush=True)


def table() -> str:
    """Returns the data sets as a table; those that need a package that is not here say so."""
    from modality_forcing.datasets.registry import NAMES, find_dataset

    rows = [("name", "title", "unit", "splits", "license")]
    for name in NAMES:
        try:
            dataset = find_dataset(name)
            rows.append(
                (name, dataset.title, dataset.unit, ", ".join(dataset.splits), dataset.license)
            )
        except UserError as error:
            rows.append((name, str(error), "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _pair(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not name or not equals:
        raise UserError(
            f"--option {option} is not NAME=VALUE", hint="write e.g. --option depth_scale=0.001"
        )
    return name, value


def part_of(text: str) -> tuple[int, int]:
    """Reads the I/N of an option --part."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(found[1]), int(found[2])


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return share


def _workers(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)
