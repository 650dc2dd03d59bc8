"""A small benchmark on disk, in the format of MoGe's bundles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.log_depth import write_log_depth

# The index of Spring has no published length, so three frames are complete.
NAMES = ("x/a", "x/b", "c")


def write_bundle(root: Path) -> Path:
    """Writes Spring with three frames of noise; the second has no valid depth."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        (root / "Spring" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(
            root / "Spring" / name / "image.jpg"
        )
        depth = (
            rng.uniform(1, 5, (24, 32)).astype("f4") if i != 1 else np.full((24, 32), np.nan, "f4")
        )
        write_log_depth(root / "Spring" / name / "depth.png", depth)
        meta = {"intrinsics": [[1, 0, 0.5], [0, 1.3, 0.5], [0, 0, 1]]}
        (root / "Spring" / name / "meta.json").write_text(json.dumps(meta))
    (root / "Spring" / ".index.txt").write_text("\n".join(NAMES))
    return root
