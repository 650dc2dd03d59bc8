"""`mforce evaluate --pred --target`: scores depth arrays of any origin under a protocol."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from modality_forcing import numpy_io
from modality_forcing.errors import UserError
from modality_forcing.evaluation.depth_metrics import METRICS, describe_counts, mean_scores, score
from modality_forcing.evaluation.protocols import Protocol
from modality_forcing.paths import require_file
from modality_forcing.tree import JsonObject

_SAVE = "write it with numpy.savez_compressed(file, {}=...)"


def evaluate_arrays(pred: Path | None, target: Path | None, protocol: Protocol) -> JsonObject:
    """Scores `depth` (or `disparity`) of one .npz against `depth` and `valid` of another.

    Returns the protocol, the mean of each metric, the number of images scored and skipped, and one
    row per image; NaN and infinity become None. Raises UserError for invalid files.
    """
    key = "disparity" if protocol.align == "disparity" else "depth"
    predicted = read_npz(pred, "--pred", (key,))[key]
    arrays = read_npz(target, "--target", ("depth", "valid"))
    depth, valid = arrays["depth"], arrays["valid"]
    if not predicted.shape == depth.shape == valid.shape:
        raise UserError(
            f"the shapes of the prediction's {key} {predicted.shape}, the target's depth "
            f"{depth.shape} and its valid {valid.shape} differ",
            where=pred,
            hint="resize and order the prediction like the target",
        )
    if predicted.ndim != 3 or not predicted.size:
        raise UserError(
            f"{key} has shape {predicted.shape}, not [n h w]",
            where=pred,
            hint="stack the images along the first axis",
        )
    if valid.dtype != np.bool_ and not np.isin(valid, (0, 1)).all():
        raise UserError("`valid` has values other than 0 and 1", where=target, hint="save a mask")
    valid = valid.astype(bool)
    if not valid.any():
        raise UserError("no pixel is valid", where=target, hint="check `valid`")
    if not (np.isfinite(depth) & (depth > 0))[valid].all():
        raise UserError(
            "depth is not finite and positive everywhere it is valid",
            where=target,
            hint="set `valid` to False there",
        )

    scores = score(predicted, depth, valid, protocol)
    rows = [
        {"index": i, "valid_pixels": int(valid[i].sum())}
        | {name: _finite(x[i].item()) for name, x in scores._asdict().items()}
        for i in range(len(depth))
    ]
    means = {name: _finite(x) for name, x in mean_scores(scores).items()}
    return {"protocol": protocol.to_dict(), **means, "rows": rows}


def to_text(result: JsonObject) -> str:
    """Returns the means as lines for a terminal."""
    lines = [f"protocol {Protocol.from_dict(result['protocol'])}; {describe_counts(result)}"]
    none = "inf" if result["nonfinite"] else "-"
    for name in METRICS:
        value = result[name]
        lines.append(f"{name:<7} {none if value is None else format(value, '.6f')}")
    return "\n".join(lines)


def parse_depth_range(text: str) -> tuple[float, float]:
    """Parses MIN:MAX; raises UserError if it is not two numbers."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise UserError(
            f"depth range {text!r} is not MIN:MAX", hint="e.g. --depth-range 0.001:10"
        ) from error


def read_npz(path: Path | None, option: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns arrays of an .npz by name; raises UserError if one is missing or not numeric."""
    if path is None:
        raise UserError(
            f"{option} is missing", hint="give both --pred FILE.npz and --target FILE.npz"
        )
    require_file(path, f"check {option}")
    return numpy_io.read_npz(path, keys, _SAVE)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
