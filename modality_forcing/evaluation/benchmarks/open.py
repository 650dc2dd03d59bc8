"""Opens a benchmark: detects its layout on disk and checks that it is complete before scoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from modality_forcing.datasets.common.frame_names import read_name_list
from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.bundle import find_bundle
from modality_forcing.evaluation.benchmarks.native_layouts import (
    find_native_layout,
    layout_patterns,
)
from modality_forcing.evaluation.benchmarks.registry import Benchmark, Frame, find_benchmark
from modality_forcing.paths import as_path, is_dir, is_file, require_disk

LayoutName = Literal["bundle", "native"]
_UNPACK = "unpack the whole set again, or give a --frame-list of the frames to score"


@runtime_checkable
class _Layout(Protocol):
    @property
    def kind(self) -> LayoutName: ...
    @property
    def num_expected(self) -> int | None: ...
    def names(self) -> tuple[str, ...]: ...
    def files(self, name: str) -> Mapping[str, Path]: ...
    def read(self, name: str) -> Frame: ...


@dataclass(frozen=True, eq=False)
class OpenedBenchmark:
    """A complete benchmark on disk, whose frames are read on demand by index.

    The masks are those of the layout; `benchmark.depth_range` is applied by the protocol.
    """

    benchmark: Benchmark
    names: tuple[str, ...]
    official_list: bool  # False for a user's frame list: its mean is not the benchmark's
    _layout: _Layout

    @property
    def layout(self) -> LayoutName:
        """The layout on disk; reports name it, because each layout masks other pixels."""
        return self._layout.kind

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Frame:
        return self._layout.read(self.names[index])


def open_benchmark(
    name: str, root: str | Path, frame_list: str | Path | None = None
) -> OpenedBenchmark:
    """Opens the benchmark in the folder `root`, with its official frames or those of a file.

    Args:
      name: a key of `BENCHMARKS`.
      root: the folder that it is unpacked in.
      frame_list: a text file with one frame name per line, in the form of the layout's module.

    Raises UserError for an unknown name, a folder without a layout of the set or with two, an
    official list of another length, or a missing file: an incomplete set has no mean.
    """
    benchmark, root = find_benchmark(name), require_disk(as_path(root), "benchmarks")
    layout = _find_layout(benchmark, root)
    names = layout.names() if frame_list is None else read_name_list(as_path(frame_list))
    if frame_list is None and layout.num_expected not in (None, len(names)):
        raise UserError(
            f"{benchmark.title} has {layout.num_expected} images, but {len(names)} are listed here",
            where=root,
            hint=_UNPACK,
        )
    _check_files(layout, names, root)
    return OpenedBenchmark(benchmark, names, frame_list is None, layout)


def _find_layout(benchmark: Benchmark, root: Path) -> _Layout:
    title = benchmark.title
    hint = f"give the folder that {title} is unpacked in"
    if not is_dir(root):
        raise UserError("no such folder", where=root, hint=hint)
    bundle, native = find_bundle(benchmark, root), find_native_layout(benchmark, root)
    patterns = ", ".join(layout_patterns(benchmark.name))
    if bundle and native:
        index = bundle.index.relative_to(root)
        what = f"contains {title} twice, as MoGe's bundle ({index}) and in its native layout"
        hint = "give a folder that contains one of them"
        raise UserError(f"{what} ({patterns})", where=root, hint=hint)
    layout = bundle or native
    if layout is None:
        indexes = ", ".join(
            f"{folder}{index}"
            for folder in ("", f"{benchmark.folder}/")
            for index in benchmark.indexes
        )
        what = f"contains no {indexes} of MoGe's bundle"
        what += f", nor {patterns} of the native layout" if patterns else ""
        if benchmark.name == "nyuv2":  # h5py would be a dependency for one file
            hint += " (the .mat is not read: take Marigold's or MoGe's files)"
        raise UserError(what, where=root, hint=hint)
    return layout


def _check_files(layout: _Layout, names: tuple[str, ...], root: Path) -> None:
    first, incomplete = None, 0
    for name in names:
        missing = [path for path in layout.files(name).values() if not is_file(path)]
        if missing:
            incomplete, first = incomplete + 1, first or missing[0]
    if incomplete:
        raise UserError(
            f"files of {incomplete} of {len(names)} images are missing, the first is {first}",
            where=root,
            hint=_UNPACK,
        )
