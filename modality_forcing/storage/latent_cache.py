"""What `mforce encode` keeps of frozen encoders beside prepared records: latents of pictures, states of captions.

In the folder of a cache, for each split of the prepared folder it was made of:

encoded-<split>.json                 what everything here depends on: records, size, weights and settings of the encoders
latents/latents-<split>.array_record-00000-of-00012   of each record in order, a tf.train.Example {size, latents}: bf16
                                     [2 y x c] of the picture's centre square and of its mirror image
text/text-<split>.array_record-...   of each caption once, {caption, size, states}: bf16 [k c], one state for each token
captions-<split>.npy                 u64 [2 n], the captions' hashes in order, and the place of each

The caption "" is always there, first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.errors import UserError
from modality_forcing.storage import manifest, tf_example
from modality_forcing.storage.shards import Shards

FORMAT = 1
_HALF = np.dtype(ml_dtypes.bfloat16)
_AGAIN = "run the same mforce encode again"


def settings_path(folder: Path, split: str) -> Path:
    """Returns where the settings of a split's cache are."""
    return folder / f"encoded-{split}.json"


def places_path(folder: Path, split: str) -> Path:
    """Returns where the places of the captions are."""
    return folder / f"captions-{split}.npy"


def source_digest(folder: Path, split: str) -> str:
    """Returns a checksum of all that a prepared split holds; raises UserError where it is not complete."""
    known = manifest.read(folder, split)
    if known is None:
        raise UserError(
            f"has no manifest of {split}",
            where=folder,
            hint="run mforce prepare, or its last part, first",
        )
    return hashlib.sha256("".join(file.sha256 for file in known.files).encode()).hexdigest()[:16]


def key(caption: str) -> int:
    """Returns the hash by which a caption is found."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little")


def pack(array: np.ndarray, name: str, **more: bytes) -> bytes:
    """Returns an Example that holds an array of bfloat16."""
    features = {name: [np.ascontiguousarray(array, _HALF).tobytes()], "size": list(array.shape)}
    return tf_example.encode({**features, **{key: [value] for key, value in more.items()}})


def unpack(content: bytes, name: str) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Inverts `pack`; returns the array and all features. Raises ValueError for anything else."""
    try:
        features = tf_example.decode(content)
        size = [int(number) for number in features["size"]]
        (stored,) = features[name]
        if not isinstance(stored, bytes):
            raise ValueError(f"{name} is not bytes")
        return np.frombuffer(stored, _HALF).reshape(size), features
    except (LookupError, ValueError, TypeError) as error:
        raise ValueError(f"holds no {name} ({error or type(error).__name__})") from error


@dataclass(frozen=True)
class Cache:
    """The cache of one split of a prepared folder. Raises UserError where there is none or it is another format's."""

    folder: Path
    split: str
    settings: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        path = settings_path(self.folder, self.split)
        if not path.is_file():
            raise UserError(
                f"holds no cache of {self.split}",
                where=self.folder,
                hint="make it with mforce encode",
            )
        read = manifest.read_json(path)
        if read.get("format") != FORMAT:
            what = f"is of format {read.get('format')!r}, and this version reads {FORMAT}"
            raise UserError(what, where=path, hint="encode again, into another folder")
        object.__setattr__(self, "settings", read)

    def check(self, part: str, **wanted: Any) -> None:
        """Raises UserError, naming what differs, unless the encoder of a part, "text" or "image", was used in this way."""
        have = self.settings.get(part)
        if have is None:
            raise UserError(
                f"holds nothing of {part}",
                where=self.folder,
                hint=f"run mforce encode with --{part} too",
            )
        for name, want in wanted.items():
            if have.get(name) != want:
                what = f"was made with {part} {name} {have.get(name)}, and the config has {want}"
                raise UserError(
                    what,
                    where=self.folder,
                    hint="encode again, into another folder, or change the config",
                )


@dataclass(frozen=True)
class Encoded:
    """Prepared records, each with the latents of its picture from a cache in the place of its pixels.

    Raises UserError if the cache is of other records, is not complete, or holds no latents.
    """

    source: Shards
    cache: Cache
    _latents: Shards = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.cache.check("image")
        if self.cache.settings.get("source") != source_digest(
            self.source.folder, self.source.split
        ):
            hint = "encode them again, into another folder"
            raise UserError(
                f"was made of other records than {self.source.folder}",
                where=self.cache.folder,
                hint=hint,
            )
        held = Shards(self.cache.folder / "latents", self.cache.split)
        if len(held) != len(self.source):
            raise UserError(
                f"holds {len(held)} of {len(self.source)} latents", where=held.folder, hint=_AGAIN
            )
        object.__setattr__(self, "_latents", held)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        try:
            latents, _ = unpack(self._latents.example(index), "latents")
        except ValueError as error:
            raise UserError(
                f"record {index} {error}", where=self._latents.folder, hint=_AGAIN
            ) from error
        return replace(self.source[index], latents=latents)


@dataclass(frozen=True)
class States:
    """The text encoder of a run that reads states from caches: a caption is looked up in one after the other.

    tokens: l, to which states are cut or filled with zeros. Raises UserError for a caption that no cache has.
    """

    tokens: int
    caches: tuple[Cache, ...]
    _texts: list[_Texts] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_texts", [_Texts(cache) for cache in self.caches])

    def encode(self, caption: str) -> dict[str, np.ndarray]:
        """Returns {"tokens": bf16 [l c], "mask": bool [l]}; padding is 0."""
        for texts in self._texts:
            if (states := texts.find(caption)) is not None:
                tokens = np.zeros((self.tokens, states.shape[1]), _HALF)
                tokens[: len(states)] = states[: self.tokens]
                return {"tokens": tokens, "mask": np.arange(self.tokens) < len(states)}
        raise UserError(
            f"no cache has the caption {caption!r}", where=self.caches[0].folder, hint=_AGAIN
        )

    def null(self) -> dict[str, np.ndarray]:
        """Returns the states of the empty caption."""
        return self.encode("")

    def __reduce__(self) -> tuple[type[States], tuple[int, tuple[Cache, ...]]]:
        return States, (self.tokens, self.caches)


class _Texts:
    """The states of one cache."""

    def __init__(self, cache: Cache):
        cache.check("text")
        path = places_path(cache.folder, cache.split)
        try:
            self._places = np.load(path, mmap_mode="r")  # shared by all processes of a machine
        except (OSError, ValueError, EOFError) as error:
            raise UserError("cannot be read", where=path, hint=_AGAIN) from error
        self._held = Shards(cache.folder / "text", cache.split)
        if self._places.shape != (2, len(self._held)):
            raise UserError(
                "does not list the captions beside it", where=path, hint=f"delete it and {_AGAIN}"
            )

    def find(self, caption: str) -> np.ndarray | None:
        keys, rows = self._places
        wanted = np.uint64(key(caption))
        at = int(np.searchsorted(keys, wanted))
        if at == len(keys) or keys[at] != wanted:
            return None
        states, features = unpack(self._held.example(int(rows[at])), "states")
        return states if features["caption"] == [caption.encode()] else None


def places_of(captions: Sequence[str]) -> np.ndarray:
    """Returns u64 [2 n], where captions are that are stored in this order, as a cache keeps it."""
    keys = np.array([key(caption) for caption in captions], np.uint64)
    order = np.argsort(keys)
    return np.stack([keys[order], order.astype(np.uint64)])
