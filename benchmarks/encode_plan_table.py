"""Writes docs/plan/encode.md: plans of the frozen encoders on the chips of one host.

python benchmarks/encode_plan_table.py
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from modality_forcing.planning.compile import get_target
from modality_forcing.planning.encoders import PARTS, TEXTS, plan

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
EACH = 16  # captions or images a device; more gains nothing
NAMES = {
    "text": "UMT5-XXL, 128 tokens",
    "qwen3-4b": "Qwen3-4B, 512 tokens",
    "qwen3-8b": "Qwen3-8B, 512 tokens",
    "encoder": "FLUX.2 encoder, 256 px",
    "decoder": "FLUX.2 decoder, 256 px",
}
HEAD = "Written by `python benchmarks/encode_plan_table.py` on {date}, {machine}, jax {jax}.\n\n"
COLUMNS = (
    *("encoder", "topology", "batch", "GiB a chip", "of", "bound, ms", "ICI, ms", "a second"),
    *("MFU bound", "compile, s"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/plan/encode.md"))
    options = parser.parse_args()
    about = {
        "date": datetime.date.today(),
        "machine": f"{os.cpu_count()} cores of {platform.machine()}",
        "jax": jax.__version__,
    }
    page = HEAD.format(**about)
    page += f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    for part in PARTS:
        for topology in TOPOLOGIES:
            p = plan(part, get_target(topology), EACH)
            print(part, topology, f"{p.compile_seconds:.0f} s", flush=True)
            unit = "tokens" if part in TEXTS else "images"
            assert p.bound and p.rate and p.mfu_bound
            cells = (
                *(
                    NAMES[part],
                    topology,
                    p.batch,
                    f"{p.chip_gib(p.bytes.total):.1f}",
                    f"{p.chip_gib(p.target.chip.usable_bytes):.1f}",
                ),
                *(
                    f"{1e3 * p.bound.seconds:.1f}",
                    f"{1e3 * p.bound.ici_seconds:.1f}",
                    f"{p.rate:,.0f} {unit}",
                ),
                *(f"{p.mfu_bound:.2f}", f"{p.compile_seconds:.0f}"),
            )
            page += f"| {' | '.join(map(str, cells))} |\n"
            options.out.write_text(page)


if __name__ == "__main__":
    main()
