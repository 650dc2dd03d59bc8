"""The record: one image with its depth, on the host. Every source yields these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from modality_forcing.data.names import is_valid_text

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
    other_captions: tuple[str, ...] = ()  # training samples one of these and `caption`
    # f32 [h w 3], exact normals (`data/normals.py`), 0 where unknown. Most sources have none: then
    # they are estimated from depth. Shards do not store them.
    normals: np.ndarray | None = None


@runtime_checkable
class RecordSource(Protocol):
    """A random-access collection of records; record i depends on nothing but i."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@runtime_checkable
class ManyRecords(Protocol):
    """A source that makes many records in less time than one by one."""

    def records(self, indices: Sequence[int], /) -> list[Record]: ...


def read_many(source: RecordSource, indices: Sequence[int]) -> list[Record]:
    """Returns the records of the indices."""
    if isinstance(source, ManyRecords):
        return source.records(indices)
    return [source[index] for index in indices]


@runtime_checkable
class Notes(Protocol):
    """A source that reports what it does not use."""

    def notes(self) -> list[str]:
        """Returns a line for each kind of thing that is not used or looks wrong."""
        ...


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
    elif not (np.isfinite(intrinsics).all() or np.isnan(intrinsics).all()):
        yield "intrinsics are neither finite nor unknown (NaN)"
    measured = record.depth[valid]
    if not np.all(np.isfinite(measured)) or np.any(measured <= 0):
        yield "depth is not finite and positive everywhere it is valid"
    if record.normals is not None:
        yield from _problems_of_normals(record.normals, size)
    for name in ("caption", "source", "id"):
        if not is_valid_text(getattr(record, name)):
            yield f"{name} holds half a character (a lone surrogate)"
    if not all(map(is_valid_text, record.other_captions)):
        yield "another caption holds half a character (a lone surrogate)"


def _problems_of_normals(normals: np.ndarray, size: tuple[int, ...]) -> Iterator[str]:
    if normals.dtype != np.float32 or normals.shape != (*size, 3):
        yield f"normals are {normals.dtype} {normals.shape}, expected float32 {(*size, 3)}"
        return
    length = np.sqrt(np.einsum("hwi,hwi->hw", normals, normals))
    if not np.all((length == 0) | (np.abs(length - 1) < 1e-3)):  # NaN fails
        yield "normals are neither of length 1 nor unknown (0)"
