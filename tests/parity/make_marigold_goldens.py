"""Writes data/marigold_alignment.npz: alignments by Marigold's own least squares.

    python -m tests.parity.make_marigold_goldens MARIGOLD [--check]

MARIGOLD is a checkout of prs-eth/Marigold; its src/util/alignment.py needs torch (the extra
`parity`). Only results are stored: the maps follow from a seed, and test_marigold_alignment.py
makes the same. With --check it writes nothing, and fails where a result differs.

Written with commit 3f74cba of Marigold and torch 2.13.0.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ARCHIVE = Path(__file__).parent / "data" / "marigold_alignment.npz"
SIDE = 1024  # of alignment, for ETH3D
# Height and width. The last ones have the long side of ETH3D's frames.
SIZES = ((1001, 1503), (1503, 1001), (40, 1025), (30, 6048), (6048, 40))


def maps(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns prediction f32, target f32 and validity bool, each [h w]."""
    rng = np.random.default_rng([height, width])
    target = (1 + 4 * rng.random((height, width))).astype(np.float32)
    noise = rng.standard_normal((height, width), np.float32)
    pred = (target / 2 + noise / 4).astype(np.float32)
    return pred, target, rng.random((height, width)) < 0.7


def load(marigold: Path) -> Any:
    """Returns Marigold's alignment module; the package around it needs more than torch."""
    path = marigold / "src" / "util" / "alignment.py"
    spec = importlib.util.spec_from_file_location("marigold_alignment", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(module: Any, height: int, width: int) -> dict[str, np.ndarray]:
    """Returns the columns that the alignment uses, scale and shift, and AbsRel after it."""
    pred, target, valid = maps(height, width)
    align = module.align_depth_least_square
    aligned, scale, shift = align(target, pred, valid, max_resolution=SIDE)
    aligned = np.clip(aligned, 1e-6, None)  # as script/depth/eval.py does
    absrel = np.mean((np.abs(aligned - target) / target)[valid], dtype=np.float64)
    # What reaches the solver shows which pixels were kept.
    index = np.arange(height * width, dtype=np.float32).reshape(height, width)
    with mock.patch.object(np.linalg, "lstsq", wraps=np.linalg.lstsq) as solver:
        align(index, index, np.ones_like(valid), max_resolution=SIDE)
    kept = solver.call_args.args[1].astype(np.int64).reshape(height, -1)
    columns = kept[0]
    assert np.array_equal(kept, columns + width * np.arange(height)[:, None]), "rows are missing"
    return {
        "columns": columns.astype(np.int16),
        "scale_shift_absrel": np.array([scale.item(), shift.item(), absrel]),
    }


def main() -> int:
    """Writes or checks the archive; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("marigold", type=Path, help="a checkout of prs-eth/Marigold")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    module = load(options.marigold)
    made = {
        f"{height}x{width}/{name}": array
        for height, width in SIZES
        for name, array in reference(module, height, width).items()
    }
    if not options.check:
        np.savez_compressed(ARCHIVE, **made)  # pyright: ignore[reportArgumentType]
        return 0
    with np.load(ARCHIVE, allow_pickle=False) as stored:
        wrong = [name for name in made if not np.allclose(made[name], stored[name], rtol=1e-6)]
    print(f"{len(made) - len(wrong)} of {len(made)} arrays agree", *wrong)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
