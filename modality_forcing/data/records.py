"""The record: one image with its depth, on the host. Every source yields these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

Unit = Literal["metric", "sfm", "relative"]


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its depth. `valid` says where depth was measured; elsewhere it is arbitrary."""

    image: np.ndarray  # u8 [h w 3]
    depth: np.ndarray  # f32 [h w], distance along the optical axis
    valid: np.ndarray  # bool [h w]
    intrinsics: np.ndarray  # f32 [3 3] in pixels, or NaN
    unit: Unit
    caption: str
    source: str
    id: str
    # bf16 [2 y x c], cached autoencoder latents of the image and of its horizontal flip. With them
    # `image` is arbitrary.
    latents: np.ndarray | None = None


@runtime_checkable
class RecordSource(Protocol):
    """A random-access collection of records; record i depends on nothing but i."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def check(record: Record) -> Record:
    """Returns the record unchanged; raises ValueError for the first field of a wrong kind."""
    for problem in _problems(record):
        raise ValueError(f"record {record.id}: {problem}")
    return record


def _problems(record: Record) -> Iterator[str]:
    size = record.depth.shape
    image, valid, intrinsics = record.image, record.valid, record.intrinsics
    if image.dtype != np.uint8 or image.shape != (*size, 3):
        yield f"image is {image.dtype} {image.shape}, expected uint8 {(*size, 3)}"
    if record.depth.dtype != np.float32 or record.depth.ndim != 2:
        yield f"depth is {record.depth.dtype} {size}, expected float32 [h w]"
    if valid.dtype != np.bool_ or valid.shape != size:
        yield f"valid is {valid.dtype} {valid.shape}, expected bool {size}"
    if intrinsics.dtype != np.float32 or intrinsics.shape != (3, 3):
        yield f"intrinsics are {intrinsics.dtype} {intrinsics.shape}, expected float32 (3, 3)"
    measured = record.depth[valid]
    if not np.all(np.isfinite(measured)) or np.any(measured <= 0):
        yield "depth is not finite and positive everywhere it is valid"
