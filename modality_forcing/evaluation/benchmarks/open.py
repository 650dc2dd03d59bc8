"""Opens a benchmark: finds out how it is laid out on disk and makes sure that all of it is there, before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from modality_forcing.datasets.common.frame_names import read_name_list
from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.bundle import find_bundle
from modality_forcing.evaluation.benchmarks.native_layouts import find_original, marks_of
from modality_forcing.evaluation.benchmarks.registry import Benchmark, Frame, find_benchmark

LayoutName = Literal["bundle", "original"]


@runtime_checkable
class _Layout(Protocol):
    @property
    def kind(self) -> LayoutName: ...
    @property
    def expected(self) -> int | None: ...
    def names(self) -> tuple[str, ...]: ...
    def files(self, name: str) -> Mapping[str, Path]: ...
    def read(self, name: str) -> Frame: ...


@dataclass(frozen=True, eq=False)
class Opened:
    """A benchmark of which every file is there: frames are read when asked for, and frame i depends on i alone.

    Masks are those of the layout (`bundle`, `originals`); `benchmark.depth_range` is the protocol's to apply.
    """

    benchmark: Benchmark
    names: tuple[str, ...]
    official: bool  # False for a user's own list: its mean is not the benchmark's
    _layout: _Layout

    @property
    def layout(self) -> LayoutName:
        """How the set lies on disk; the same set masks other pixels in each, so a report should say it."""
        return self._layout.kind

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Frame:
        return self._layout.read(self.names[index])


def open_benchmark(name: str, root: str | Path, names: str | Path | None = None) -> Opened:
    """Returns the benchmark that lies in the folder `root`, with its official frames or those of the file `names`.

    name: a key of `BENCHMARKS`. names: a text file with one frame name a line, in the form of the layout's module.
    Raises UserError if the name is not known, the folder holds no layout of the set or more than one, the official list
    there has another length, or a file of any listed frame is missing: a set that is not whole has no mean.
    """
    benchmark = find_benchmark(name)
    layout = _find_layout(benchmark, Path(root))
    listed = layout.names() if names is None else read_name_list(Path(names))
    if names is None and layout.expected not in (None, len(listed)):
        raise UserError(
            f"{benchmark.title} has {layout.expected} images, but {len(listed)} are listed here",
            where=root,
            hint="unpack the whole set again, or list in a file of your own what is to be scored",
        )
    _check_files(layout, listed, Path(root))
    return Opened(benchmark, listed, names is None, layout)


def _find_layout(benchmark: Benchmark, root: Path) -> _Layout:
    if not root.is_dir():
        raise UserError(
            "no such folder",
            where=root,
            hint=f"give the folder that {benchmark.title} is unpacked in",
        )
    bundle, original = find_bundle(benchmark, root), find_original(benchmark, root)
    marks = ", ".join(marks_of(benchmark.name))
    if bundle and original:
        index = bundle.index.relative_to(root)
        what = f"holds {benchmark.title} twice, as MoGe's bundle ({index}) and in its original layout ({marks})"
        raise UserError(what, where=root, hint="give a folder that holds one of them")
    layout = bundle or original
    if layout is None:
        sought = ", ".join(
            f"{folder}{index}"
            for folder in ("", f"{benchmark.folder}/")
            for index in benchmark.indexes
        )
        sought = f"{sought} of MoGe's bundle" + (
            f", nor {marks} of the original layout" if marks else ""
        )
        # h5py would be a dependency for one file.
        hint = (
            " (the .mat is not read: take Marigold's or MoGe's files)"
            if benchmark.name == "nyuv2"
            else ""
        )
        raise UserError(
            f"holds no {sought}",
            where=root,
            hint=f"give the folder that {benchmark.title} is unpacked in{hint}",
        )
    return layout


def _check_files(layout: _Layout, names: tuple[str, ...], root: Path) -> None:
    missing = [
        [path for path in layout.files(name).values() if not path.is_file()] for name in names
    ]
    gaps = [paths for paths in missing if paths]
    if gaps:
        raise UserError(
            f"files of {len(gaps)} of {len(names)} images are missing, the first is {gaps[0][0]}",
            where=root,
            hint="unpack the whole set again, or list in a file of your own what is to be scored",
        )
