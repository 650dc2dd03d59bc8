"""The record: what every source of pictures and depth yields, one example at a time, on the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

Unit = Literal["metric", "sfm", "relative"]


@dataclass(frozen=True, eq=False)
class Record:
    """One picture with what is known of its depth.

    The mask is data: `valid` says where depth was measured, and `depth` holds anything at all elsewhere.
    """

    image: np.ndarray  # u8 [h w 3]
    depth: np.ndarray  # f32 [h w], distance along the optical axis
    valid: np.ndarray  # bool [h w]
    intrinsics: np.ndarray  # f32 [3 3] in pixels, or NaN
    unit: Unit
    caption: str
    source: str
    id: str
    # bf16 [2 y x c], what a frozen autoencoder makes of the picture and of its mirror image, where a cache has it; then
    # `image` may hold anything.
    latents: np.ndarray | None = None


@runtime_checkable
class RecordSource(Protocol):
    """A random-access collection of records; item i depends on nothing but i."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def check(record: Record) -> Record:
    """Returns the record unchanged, or raises ValueError naming the first broken promise (for tests and new readers)."""
    for problem in _problems(record):
        raise ValueError(f"record {record.id}: {problem}")
    return record


def _problems(record: Record) -> Iterator[str]:
    size = record.depth.shape
    if record.image.dtype != np.uint8 or record.image.shape != (*size, 3):
        yield f"image is {record.image.dtype} {record.image.shape}, expected uint8 {(*size, 3)}"
    if record.depth.dtype != np.float32 or record.depth.ndim != 2:
        yield f"depth is {record.depth.dtype} {size}, expected float32 [h w]"
    if record.valid.dtype != np.bool_ or record.valid.shape != size:
        yield f"valid is {record.valid.dtype} {record.valid.shape}, expected bool {size}"
    if record.intrinsics.dtype != np.float32 or record.intrinsics.shape != (3, 3):
        yield f"intrinsics are {record.intrinsics.dtype} {record.intrinsics.shape}, expected float32 (3, 3)"
    known = record.depth[record.valid]
    if not np.all(np.isfinite(known)) or np.any(known <= 0):
        yield "depth is not finite and positive everywhere it is valid"
