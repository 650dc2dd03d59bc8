"""`mforce evaluate --pred --truth`: scores arrays of depth, whoever made them, under a protocol."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.evaluation.depth_metrics import METRICS, mean_scores, score
from modality_forcing.evaluation.protocols import Protocol

_SAVE = "write it with numpy.savez_compressed(file, depth=...)"


def evaluate(pred: Path | None, truth: Path | None, protocol: Protocol) -> dict[str, Any]:
    """Scores the `depth` (or `disparity`, where that is aligned) of one .npz against `depth` and `valid` of another.

    Returns the protocol, the mean of each metric, the number of images scored and of those skipped because they have
    nothing to score, and one row per image; what is not a number is None. Raises UserError for files that do not fit.
    """
    key = "disparity" if protocol.align == "disparity" else "depth"
    predicted, known = read(pred, "--pred", (key,))[key], read(truth, "--truth", ("depth", "valid"))
    true, valid = known["depth"], known["valid"]
    if not predicted.shape == true.shape == valid.shape:
        told = f"{key} {predicted.shape} of the prediction, depth {true.shape} and valid {valid.shape} of the truth differ"
        raise UserError(told, where=pred, hint="resize and order the prediction like the truth")
    if predicted.ndim != 3 or not predicted.size:
        raise UserError(
            f"{key} has shape {predicted.shape}, not [n h w]",
            where=pred,
            hint="stack the images along the first axis",
        )
    if valid.dtype != np.bool_ and not np.isin(valid, (0, 1)).all():
        raise UserError(
            "`valid` holds other values than true and false", where=truth, hint="save a mask"
        )
    valid = valid.astype(bool)
    if not valid.any():
        raise UserError(
            "no pixel of it is valid", where=truth, hint="nothing can be scored; check `valid`"
        )
    if not (np.isfinite(true) & (true > 0))[valid].all():
        raise UserError(
            "depth is not finite and positive everywhere it is valid",
            where=truth,
            hint="take such pixels out of `valid`",
        )

    scores = score(predicted, true, valid, protocol)
    rows = [
        {"image": i, "pixels": int(valid[i].sum())}
        | {name: _number(float(x[i])) for name, x in scores._asdict().items()}
        for i in range(len(true))
    ]
    means = {
        name: _number(x) if isinstance(x, float) else x for name, x in mean_scores(scores).items()
    }
    return {"protocol": protocol.to_dict(), **means, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """Returns the means as lines for a terminal."""
    settings = Protocol.from_dict(result["protocol"])
    lines = [
        f"protocol {settings}; {result['images']} images scored, {result['skipped']} with nothing to score"
    ]
    lines += [
        f"{name:<7} {'-' if result[name] is None else format(result[name], '.6f')}"
        for name in METRICS
    ]
    return "\n".join(lines)


def depth_range(text: str) -> tuple[float, float]:
    """Reads LEAST:MOST; raises UserError if it is not two numbers."""
    least, _, most = text.partition(":")
    try:
        return float(least), float(most)
    except ValueError as error:
        raise UserError(
            f"depth range {text!r} is not LEAST:MOST", hint="e.g. --depth-range 0.001:10"
        ) from error


def read(path: Path | None, option: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns arrays of an .npz by name; raises UserError if the file or one of them is missing or not of numbers."""
    if path is None:
        raise UserError(
            f"{option} is missing", hint="give both --pred FILE.npz and --truth FILE.npz"
        )
    try:
        with open(path, "rb") as opened:  # np.load would leave a damaged file open
            archive = np.load(opened, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError("is one bare array, not an .npz", where=path, hint=_SAVE)
            if missing := [key for key in keys if key not in archive]:
                has = ", ".join(archive.files) or "nothing"
                raise UserError(
                    f"has no array `{missing[0]}`, but {has}",
                    where=path,
                    hint=_SAVE.replace("depth", missing[0]),
                )
            arrays = {key: archive[key] for key in keys}
    except FileNotFoundError as error:
        raise UserError("no such file", where=path, hint=f"check {option}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError("cannot be read as an .npz of numbers", where=path, hint=_SAVE) from error
    for key, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise UserError(f"`{key}` holds {array.dtype}, not numbers", where=path, hint=_SAVE)
    return arrays


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
