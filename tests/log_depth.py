"""Writes log-depth PNGs, the inverse of `modality_forcing.storage.log_depth`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

STEPS = 65533  # between code 1, near, and code 65534, far


def write_log_depth(path: str | Path, depth: np.ndarray) -> None:
    """Writes depth f32 [h w], NaN where unknown and +inf in the sky, as a log-depth PNG.

    near and far are the smallest and largest depth. Raises ValueError as `encode` does.
    """
    finite = depth[np.isfinite(depth)]
    near, far = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 1.0)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("near", repr(near))
    chunks.add_text("far", repr(far))
    Image.fromarray(encode(depth, near, far)).save(path, "PNG", pnginfo=chunks)


def encode(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Returns the codes u16 of depths that are within [near, far], NaN or +inf.

    The relative error is ln(far / near) / 131066 (half a code), beside the rounding of float32:
    0.007% for far / near of 10 000. Decoded codes encode to themselves if a code is more than that
    rounding (far / near of 1.01); if near = far, every depth has code 1. Raises ValueError if a
    depth is outside [near, far].
    """
    if not 0 < near <= far:
        raise ValueError(f"log depth from {near} to {far}")
    span = math.log(far) - math.log(near)
    finite = np.isfinite(depth)
    # Compared as float32, which is what depths are decoded to.
    outside = (depth[finite] < np.float32(near)) | (depth[finite] > np.float32(far))
    if np.any(outside) or np.any(np.isneginf(depth)):
        raise ValueError(f"depth is not all within {near:g} and {far:g}")
    log_ratio = np.log(np.where(finite, depth, near).astype(np.float64) / near)
    codes = 1 + np.clip(np.rint(log_ratio * (STEPS / span if span > 0 else 0)), 0, STEPS)
    return np.where(finite, codes, np.where(np.isnan(depth), 0, 65535)).astype(np.uint16)
