"""`mforce inspect`: prints what a prepared folder holds, verifies it, or draws some records."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from modality_forcing.commands.arguments import path_option, positive_int
from modality_forcing.errors import UserError
from modality_forcing.progress import format_table

if TYPE_CHECKING:
    import numpy as np

    from modality_forcing.data.records import Record, RecordSource
    from modality_forcing.storage.manifest import Manifest

EXAMPLES = """examples:
  mforce inspect prepared/tum
  mforce inspect prepared/tum --sheet=tum.png --records=8 --verify"""

RECORDS = 6
CELL = (240, 320)  # of a sheet, (h, w)
_POINTS = 0.5  # fraction of valid pixels below which depth is drawn as points
_DOT = 3  # pixels of the sheet per point


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("folder", type=path_option, help="the --out of mforce prepare")
    add("--split", default="", help="required if the folder has several")
    add("--json", action="store_true", help="print the manifest itself")
    add("--verify", action="store_true", help="compare the checksum of every shard")
    sheet_help = "write an image of a few records with their depth"
    add("--sheet", type=path_option, metavar="FILE.png", help=sheet_help)
    records_help = "number on the sheet, evenly spaced in the split (%(default)s)"
    add("--records", type=positive_int, default=RECORDS, help=records_help)


def main(options: argparse.Namespace) -> None:
    """Prints what a folder holds.

    Raises UserError if it is incomplete or, with --verify, not as it was written.
    """
    from modality_forcing.paths import check_file, write_file
    from modality_forcing.storage import manifest
    from modality_forcing.storage.shards import Shards
    from modality_forcing.viz.images import png_bytes

    if options.sheet:
        check_file(options.sheet, "--sheet")
    source = Shards(options.folder, options.split)
    found = manifest.read(source.folder, source.split)
    if found is None:
        hint = "run the same mforce prepare again: it makes no shard twice"
        raise UserError(
            f"has shards of {source.split} and no manifest", where=source.folder, hint=hint
        )
    if options.sheet:
        if not len(source):
            raise UserError(
                "holds no record to plot", where=source.folder, hint="see its failed records"
            )
        write_file(options.sheet, png_bytes(sheet(source, options.records)))
    if options.verify:
        manifest.verify(found)
    print(json.dumps(found.to_json(), indent=1) if options.json else table(found, options.verify))


def table(found: Manifest, verified: bool = False) -> str:
    """Returns a manifest as lines of name and value."""
    stats = found.to_json()
    depth = stats["depth"]
    rows = {
        "data set": f"{found.title} ({found.name}), split {found.split}",
        "license": found.license,
        "records": f"{stats['records']:,}, {found.failed:,} more could not be read".replace(
            ", 0 more could not be read", ""
        ),
        "shards": f"{len(found.files)}, {_size(stats['bytes'])}"
        + ", checksums verified" * verified,
        "frames": ", ".join(f"{n:,} of {size}" for size, n in stats["sizes"].items()) or "none",
        "captions": _of(stats["with_caption"], stats["records"]),
        "intrinsics": _of(stats["with_intrinsics"], stats["records"]),
        "with depth": _of(stats["records"] - stats["without_depth"], stats["records"]),
    }
    if depth is not None:
        by_record = ", ".join(
            f"{float(q):.0%} {value:.0%}" for q, value in stats["valid_fraction_of_records"].items()
        )
        rows["valid pixels"] = (
            f"{stats['valid_fraction']:.1%} of all; quantiles of records: {by_record}"
        )
        rows["depth"] = (
            f"{found.unit}, {depth['min']:.4g} to {depth['max']:.4g}, median {depth['median']:.4g}"
        )
        rows["quantiles"] = ", ".join(
            f"{float(q):.0%} {value:.4g}" for q, value in depth["quantiles"].items()
        )
    if found.notes:
        rows["notes"] = "; ".join(found.notes)
    rows["settings"] = _pairs(
        {name: value for name, value in found.settings.items() if value not in (None, {}, "")}
    )
    rows["versions"] = _pairs(found.versions)
    return format_table(list(rows.items()))


def sheet(source: RecordSource, records: int) -> np.ndarray:
    """Returns u8 [h w 3]: image, depth over the image, and depth of a few records, with names."""
    from modality_forcing.viz.images import add_caption, grid

    count = min(records, len(source))
    rows = []
    for i in range(count):
        record = source[i * (len(source) - 1) // max(count - 1, 1)]
        coverage = record.valid.mean()
        name = f"{record.id}  {coverage:.1%} valid" + (
            f"  {record.caption}" if record.caption else ""
        )
        image = framed(record.image)
        rows.append(
            [add_caption(image, name), overlay(record, over=True), overlay(record, over=False)]
        )
    return grid(rows, labels=("image", "depth over it", "depth"))


def overlay(record: Record, over: bool) -> np.ndarray:
    """Returns colored depth u8 [h w 3] in a cell of a sheet, on the darkened image or on nothing.

    Near points cover far ones. Sparse points are drawn several pixels wide to be visible.
    """
    import numpy as np

    from modality_forcing.viz.images import INVALID_COLOR, colorize_disparity

    image = framed(record.image)
    canvas = (image * 0.45).astype(np.uint8) if over else np.full_like(image, INVALID_COLOR)
    if not record.valid.any():
        return canvas
    (height, width), scale, (top, left) = record.depth.shape, *_fitting(record.depth.shape)
    row, column = np.nonzero(record.valid)
    order = np.argsort(-record.depth[row, column], kind="stable")  # the nearest is drawn last
    row, column = row[order], column[order]
    colors = colorize_disparity(record.depth, record.valid)[row, column]
    lone = record.valid.mean() < _POINTS
    extent = max(int(np.ceil(scale)), _DOT if lone else 1)
    drawn = np.zeros(canvas.shape[:2], np.bool_)
    layer = np.zeros_like(canvas)
    block = np.arange(extent)
    down = (top + (row + 0.5) * scale - (extent - 1) / 2).astype(np.int64)[:, None, None] + block[
        :, None
    ]
    right = (left + (column + 0.5) * scale - (extent - 1) / 2).astype(np.int64)[
        :, None, None
    ] + block
    bottom, end = top + round(height * scale) - 1, left + round(width * scale) - 1
    # [points rows columns], the nearest point last
    at = np.broadcast_arrays(np.clip(down, top, bottom), np.clip(right, left, end))
    layer[at[0].ravel(), at[1].ravel()] = colors.repeat(extent * extent, axis=0)
    drawn[at[0], at[1]] = True
    if over and not lone:
        layer = (0.55 * layer + 0.45 * image).astype(np.uint8)
    canvas[drawn] = layer[drawn]
    return canvas


def framed(image: np.ndarray) -> np.ndarray:
    """Returns an image u8 [h w 3], resized to fit, in the middle of a cell."""
    import numpy as np
    from PIL import Image

    scale, (top, left) = _fitting(image.shape)
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    cell = np.full((*CELL, 3), 24, np.uint8)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    cell[top : top + height, left : left + width] = np.asarray(resized)
    return cell


def _fitting(size: tuple[int, ...]) -> tuple[float, tuple[int, int]]:
    """Returns the scale of a frame and its offset in the cell."""
    scale = min(CELL[0] / size[0], CELL[1] / size[1])
    top, left = ((cell - round(n * scale)) // 2 for cell, n in zip(CELL, size[:2], strict=True))
    return scale, (top, left)


def _of(count: int, total: int) -> str:
    return "all" if count == total else "none" if not count else f"{count:,} of {total:,}"


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
