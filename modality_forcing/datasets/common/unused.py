"""What a data set holds and its frames do not use: counted by reason, the first ones named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from modality_forcing.data.names import list_some


@dataclass
class _Count:
    count: int = 0
    total: int = 0
    names: list[str] = field(default_factory=list)  # enough for `list_some`


@dataclass
class Unused:
    """Collects what a reader leaves out while it lists the frames below a root."""

    root: Path
    _counts: dict[str, _Count] = field(default_factory=dict)

    def add(self, reason: str, total: int, names: Iterable[Path | str]) -> None:
        """Adds what is left out, of `total`, for a reason such as "images have no depth"."""
        entry = self._counts.setdefault(reason, _Count())
        entry.total += total
        for name in names:
            entry.count += 1
            if len(entry.names) < 4:
                if isinstance(name, Path) and name.is_relative_to(self.root):
                    name = name.relative_to(self.root)
                entry.names.append(str(name))

    def add_partners(
        self, images: Collection[Path], depths: Collection[Path], pairs: Iterable[tuple[Path, Path]]
    ) -> None:
        """Adds the images and the files of depth of a folder that are in none of the pairs."""
        used = {path for pair in pairs for path in pair}
        self.add("images have no depth", len(images), (p for p in images if p not in used))
        self.add("files of depth have no image", len(depths), (p for p in depths if p not in used))

    def match(
        self,
        images: Collection[Path],
        depths: Collection[Path],
        key: Callable[[Path], str] = attrgetter("stem"),
    ) -> list[tuple[Path, Path]]:
        """Returns images and files of depth with equal keys, in the order of the images.

        Adds the others.
        """
        by_key = {key(path): path for path in depths}
        found = {key(path): path for path in images}
        pairs = [(path, by_key[name]) for name, path in found.items() if name in by_key]
        self.add_partners(images, depths, pairs)
        return pairs

    def with_depth(
        self, images: Iterable[Path], depths: Iterable[Path], depth_path: Callable[[Path], Path]
    ) -> Iterator[Path]:
        """Yields the images whose depth, by its path, is among `depths`; adds the others."""
        images, here = list(images), set(depths)
        pairs = [(image, path) for image in images if (path := depth_path(image)) in here]
        self.add_partners(images, sorted(here), pairs)
        yield from (image for image, _ in pairs)

    def reasons(self) -> list[str]:
        """Returns a text for each reason, with the first names."""
        return [
            f"{entry.count} of {entry.total} {reason} ({list_some(entry.names)})"
            for reason, entry in self._counts.items()
            if entry.count
        ]
