"""Writes docs/PLAN.md: the family planned on the topologies that people book. Hours on a laptop; finished rows are kept.

python benchmarks/plan_table.py --out docs/PLAN.md --rows docs/plan
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from modality_forcing import config_file
from modality_forcing.planning import report
from modality_forcing.planning.compile import target
from modality_forcing.planning.search import search

SIZES = ("370m", "800m", "3b3")
CELLS = [
    *(
        ("forcing", size, topology, 1)
        for topology in ("v5p:4x4x4", "v6e:8x8", "v5e:8x8", "tpu7x:4x4x4")
        for size in SIZES
    ),
    *(("t2i", size, "v5p:4x4x4", 1) for size in SIZES),
    ("forcing", "3b3", "v5e:16x16", 1),
    ("forcing", "3b3", "v5p:4x4x4", 2),
]
HEAD = """# Plans

What `mforce plan` says of the family before any hardware is booked: {cells} compiles of the real train step by the real TPU
compiler, on a machine without a TPU. Joint rows are image + depth, 640 tokens an example; T2I rows 384. "Bound" is the
roofline of the compiled program, "MFU bound" what the analytic FLOPs make of it: no run is faster, and real ones are slower
({blind}).
Each layout is the first of the search's that fits with enough tokens per chip. A run's own options also move collectives beside
the products (`LIBTPU_INIT_ARGS`, which `mforce plan` prints) and may take a little more memory for it.

Written by `python benchmarks/plan_table.py` on {date}, {machine}, jax {jax}, libtpu {libtpu}; other work ran on the
machine meanwhile, so compile times are upper bounds. One JSON file per row, with collectives, lies in `docs/plan/`.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/PLAN.md"))
    parser.add_argument("--rows", type=Path, default=Path("docs/plan"))
    options = parser.parse_args()
    options.rows.mkdir(parents=True, exist_ok=True)
    for phase, size, topology, slices in CELLS:
        path = (
            options.rows
            / f"{phase}-{size}-{topology.replace(':', '-')}{f'-x{slices}' if slices > 1 else ''}.json"
        )
        if not path.exists():
            print(path.stem, flush=True)
            p = search(
                config_file.load(f"configs/{phase}.py:size={size}"),
                target(topology, slices),
                lambda s: print("  ", s, flush=True),
            )
            name = f"{size} {'joint' if phase == 'forcing' else 'T2I'}"
            path.write_text(
                json.dumps({"row": report.row(p, name), **report.to_json(p)}, indent=1) + "\n"
            )
        write(options.out, options.rows)


def write(out: Path, rows: Path) -> None:
    """Writes the page from the rows that are there."""
    from importlib.metadata import version

    found = [
        json.loads(path.read_text())
        for path in sorted(rows.glob("*.json"), key=lambda path: path.stat().st_mtime)
    ]
    head = HEAD.format(
        cells=len(found),
        blind=report.BLIND,
        date=datetime.date.today(),
        machine=f"{os.cpu_count()} cores of {platform.machine()}",
        jax=jax.__version__,
        libtpu=version("libtpu"),
    )
    columns = f"| {' | '.join(report.COLUMNS)} |\n|{'---|' * len(report.COLUMNS)}\n"
    encoders = rows / "encode.md"  # by encode_plan_table.py
    more = f"\n{encoders.read_text()}" if encoders.exists() else ""
    out.write_text(head + columns + "".join(f["row"] + "\n" for f in found) + more)


if __name__ == "__main__":
    main()
