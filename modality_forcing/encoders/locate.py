"""Where published weights are: a file, a folder of files, a bucket, or a repository of the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modality_forcing.errors import UserError
from modality_forcing.mirror import on_disk
from modality_forcing.paths import as_path, glob, is_dir, is_file
from modality_forcing.text_io import list_some, read_object

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?P<folder>(/[\w.-]+)*?)(@(?P<revision>[\w./-]+))?")
PATTERNS = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "spiece.model", "*.model"),
    *("tokenizer.json", "vocab.json", "merges.txt", "model_index.json"),
)
HUB = "hf"  # of hf:owner/name[@revision], where a path could be meant too


class Found(NamedTuple):
    """A file or folder on a disk; revision: of the hub's repository, if from there."""

    path: Path
    revision: str = ""


def locate(location: str | Path, patterns: Sequence[str] = PATTERNS) -> Found:
    """Returns the file or folder of a location, with the files whose names match a pattern.

    A hub id is owner/name, with a folder of the repository and a revision where needed:
    owner/name/text_encoder@main. It needs the extra `encoders` and a network, or files that were
    downloaded before. Raises UserError if there is no such thing.
    """
    path = on_disk(as_path(location).expanduser(), patterns)
    if is_file(path) or is_dir(path):
        return Found(path)
    hub = _HUB.fullmatch(str(location))
    if hub is None or is_dir(path.parent):  # a path with a wrong last part is not a hub id
        hint = "give a folder of safetensors files, or a hub id"
        raise UserError("no such file or folder", where=location, hint=hint)
    return _download(hub["repo"], hub["folder"].strip("/"), hub["revision"], patterns)


def is_hub(location: str | Path) -> bool:
    """Returns whether a location is written as hf:owner/name, maybe with a folder and revision."""
    return str(location).startswith(f"{HUB}:")


def fetch(location: str | Path, patterns: Sequence[str] = PATTERNS) -> Found:
    """Returns the folder with the files of hf:owner/name whose names match a pattern.

    Raises UserError for what is no hub id, and if it cannot be fetched.
    """
    text = str(location).partition(":")[2].lstrip("/")  # hf://owner/name, as others write it
    hub = _HUB.fullmatch(text)
    if hub is None:
        hint = f"write {HUB}:OWNER/NAME or {HUB}:OWNER/NAME@REVISION"
        raise UserError("is not a repository of the hub", where=location, hint=hint)
    hint = "check the network, the name, and that the account may see it"
    return _download(hub["repo"], hub["folder"].strip("/"), hub["revision"], patterns, hint=hint)


def below(location: str | Path, folder: str) -> str:
    """Returns the location of a folder of another location, whose revision it keeps."""
    start, at, revision = str(location).partition("@")
    if at and _HUB.fullmatch(str(location)) and not is_dir(as_path(location).expanduser()):
        return f"{start.rstrip('/')}/{folder}@{revision}"
    return f"{str(location).rstrip('/')}/{folder}"


def find_files(folder: Path, stem: str = "") -> tuple[Path, ...]:
    """Returns the safetensors files of a folder: all, those of its index, or those of a stem.

    Raises UserError if there are none, one of an index is missing, or there are several indices.
    """
    indices = glob(folder, f"{stem or '*'}.safetensors.index.json")
    if len(indices) > 1:
        what = "holds several indices of safetensors files"
        hint = "name one file, or keep one index"
        raise UserError(what, where=folder, hint=hint)
    if not indices:
        files = tuple(glob(folder, f"{stem or '*'}.safetensors"))
        if not files:
            hint = "give the folder of the weights themselves"
            raise UserError(f"holds no {stem}.safetensors file", where=folder, hint=hint)
        return files
    index = read_object(indices[0], hint="download it again", finite=False)
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError("lists no files", where=indices[0], hint="download it again")
    files = tuple(folder / name for name in sorted(set(listed.values())))
    if missing := [path.name for path in files if not is_file(path)]:
        what = f"lacks {list_some(missing)}"
        raise UserError(what, where=folder, hint="download the rest")
    return files


def _download(
    repo: str,
    folder: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    hint: str = "give a folder that is there",
) -> Found:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        install = "or pip install 'modality_forcing[encoders]' to fetch from the hub"
        where = f"{repo}/{folder}".strip("/")
        hint = f"give a folder that is there, {install}"
        raise UserError("no such file or folder", where=where, hint=hint) from error
    allowed = [f"{folder}/{name}" if folder else name for name in patterns]
    try:
        fetched = Path(snapshot_download(repo, revision=revision, allow_patterns=allowed))
    except Exception as error:  # a dozen kinds: no network, no such repository, no access
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot be fetched ({reason})", where=repo, hint=hint) from error
    return Found(fetched / folder, fetched.name)  # a snapshot's folder is named by its commit
