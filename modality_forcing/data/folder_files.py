"""Which files of a folder are images, their depth maps and their captions, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modality_forcing import paths
from modality_forcing.data.files import DEPTH_SUFFIXES, IMAGE_SUFFIXES
from modality_forcing.data.names import list_some, name_key
from modality_forcing.data.pairs import Pair
from modality_forcing.errors import UserError
from modality_forcing.paths import exists, is_dir, is_file

CAPTION_FILES = ("captions.txt", "captions.tsv", "captions.json")
INTRINSICS_FILE = "intrinsics.json"
_DEPTH = ".depth"  # ends the name of a depth map beside its image
_TEXT = ".txt"
_LAYOUT = (
    "add images (.jpg .jpeg .png .webp), or images/ with depth/NAME.png, .npy or .exr beside it"
)


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder, by `name_key`, in the order of the images' names.

    texts: files of captions by the name of their image. unused: the others, hidden ones apart.
    """

    names: Mapping[str, str]
    pairs: Mapping[str, Pair]
    texts: Mapping[str, Path]
    unused: tuple[Path, ...] = field(repr=False)

    def notes(self, root: Path) -> list[str]:
        """Returns a line for each folder with files that are not used."""
        lines = []
        for folder in sorted({path.parent for path in self.unused}):
            names = [path.name for path in self.unused if path.parent == folder]
            where = folder if folder != root else root
            lines.append(f"{where}: {len(names)} not used ({list_some(names)})")
        return lines


def find_files(root: Path) -> FolderFiles:
    """Returns the files of a folder in the layout of `ImageFolder`.

    A depth map of another kind and a link to nothing are listed too: reading them is an error.
    Raises UserError if there is no image, for depth without an image, and for two files of a name.
    """
    has_images, has_depth = is_dir(root / "images"), is_dir(root / "depth")
    image_folder = root / "images" if has_images else root
    listed = _list_visible(image_folder)
    beside = {path for path in listed if path.stem.lower().endswith(_DEPTH)}
    images = _by_name((path for path in listed if path not in beside), IMAGE_SUFFIXES, "images")
    if has_depth:
        maps = _list_visible(root / "depth")
        depths = _by_name(maps, DEPTH_SUFFIXES, "depth maps")
        listed += maps
    else:
        maps = sorted(beside)
        depths = _by_name(maps, DEPTH_SUFFIXES, "depth maps", ending=_DEPTH)
    for key in sorted(depths.keys() - images.keys()):
        hint = "add the image or remove the depth"
        name = depths[key].stem.removesuffix("" if has_depth else _DEPTH)
        raise UserError(f"no image is named {name}", where=depths[key], hint=hint)
    if not images:
        raise UserError("no image in this folder", where=root, hint=_LAYOUT)
    # Reading one of another kind says what to do about it.
    unread = (path for path in maps if path.suffix.lower() not in DEPTH_SUFFIXES)
    for path in unread:
        key = name_key(_name(path, "" if has_depth else _DEPTH))
        if key in images and not is_dir(path):
            depths.setdefault(key, path)
    if is_dir(root / "captions"):
        texts = _list_visible(root / "captions")
        listed += texts
    else:
        texts = listed
    by_text = {
        key: path
        for path in texts
        if path.suffix.lower() == _TEXT and (key := name_key(path.stem)) in images
    }
    used = {*images.values(), *depths.values(), *by_text.values()}
    known = {*CAPTION_FILES, INTRINSICS_FILE, *("images", "depth", "captions")}
    unused = [path for path in listed if path not in used]
    unused = [path for path in unused if path.parent != root or path.name not in known]
    order = sorted(images, key=lambda key: images[key].stem)
    return FolderFiles(
        names={key: images[key].stem for key in order},
        pairs={key: Pair(images[key], depths.get(key)) for key in order},
        texts=by_text,
        unused=tuple(unused),
    )


def _list_visible(folder: Path) -> list[Path]:
    """Returns what is in a folder by name, without hidden files such as macOS's "._" twins."""
    return [path for path in paths.list_dir(folder) if not path.name.startswith(".")]


def _by_name(
    paths: Iterable[Path], suffixes: tuple[str, ...], kind: str, ending: str = ""
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        # A link to nothing counts, but neither a folder nor a pipe.
        if path.suffix.lower() not in suffixes or (exists(path) and not is_file(path)):
            continue
        name = _name(path, ending)
        key = name_key(name)
        if key in found:
            hint = f"keep this one or {found[key].name}"
            raise UserError(f"two {kind} named {name}", where=path, hint=hint)
        found[key] = path
    return found


def _name(path: Path, ending: str) -> str:
    """Returns the name of an image from that of its file, which ends so."""
    return path.stem[: len(path.stem) - len(ending)]
