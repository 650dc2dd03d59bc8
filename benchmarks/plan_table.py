"""Writes docs/plan/family.md: the family on common topologies (takes hours; keeps finished rows).

python benchmarks/plan_table.py --out docs/plan/family.md --rows docs/plan
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
from modality_forcing.planning.compile import get_target
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
HEAD = """Written by `python benchmarks/plan_table.py` on {date}, {machine}, {versions}.
Other work ran on the machine, so compile times are upper bounds.
One JSON file per row, with collectives, is in `docs/plan/`.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/plan/family.md"))
    parser.add_argument("--rows", type=Path, default=Path("docs/plan"))
    options = parser.parse_args()
    options.rows.mkdir(parents=True, exist_ok=True)
    for phase, size, topology, slices in CELLS:
        name = f"{phase}-{size}-{topology.replace(':', '-')}"
        path = options.rows / f"{name}-x{slices}.json"
        if slices == 1:
            path = options.rows / f"{name}.json"
        if not path.exists():
            print(path.stem, flush=True)
            p = search(
                config_file.load(f"configs/{phase}.py:size={size}"),
                get_target(topology, slices),
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
        date=datetime.date.today(),
        machine=f"{os.cpu_count()} cores of {platform.machine()}",
        versions=f"jax {jax.__version__}, libtpu {version('libtpu')}",
    )
    columns = f"| {' | '.join(report.COLUMNS)} |\n|{'---|' * len(report.COLUMNS)}\n"
    out.write_text(head + columns + "".join(f["row"] + "\n" for f in found))


if __name__ == "__main__":
    main()
