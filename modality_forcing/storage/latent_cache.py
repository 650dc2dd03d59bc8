"""Outputs of frozen encoders, cached beside prepared records: image latents and caption states.

Written by `mforce encode` into the folder of a cache, for each split of the prepared folder:

encoded-<split>.json    what the cache depends on: records, size, weights, settings of the encoders
latents/latents-<split>.array_record-00000-of-00012
                        of each record in order, a tf.train.Example of {size, latents}: bf16
                        [2 y x c] of its center square and of that flipped
text/text-<split>.array_record-00000-of-00012
                        of each distinct caption, {caption, size, states}: bf16 [k c], one state for
                        each token; of an encoder whose states of padding are read, of padding too,
                        and {count}, the number of other tokens
captions-<split>.npy    u64 [2 n], the sorted hashes of the captions, and the index of each

The caption "" is always there, first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np

from modality_forcing import numpy_io
from modality_forcing.data.records import Record
from modality_forcing.errors import UserError
from modality_forcing.paths import is_file
from modality_forcing.storage import manifest, tf_example
from modality_forcing.storage.shards import Shards

FORMAT = 1
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
AGAIN = "run the same mforce encode again"
_ELSEWHERE = "encode again, into another folder"


def settings_path(folder: Path, split: str) -> Path:
    """Returns the path of the settings of a split's cache."""
    return folder / f"encoded-{split}.json"


def caption_index_path(folder: Path, split: str) -> Path:
    """Returns the path of the caption index of a split's cache."""
    return folder / f"captions-{split}.npy"


def source_digest(folder: Path, split: str) -> str:
    """Returns a checksum of a prepared split; raises UserError if it is not complete."""
    found = manifest.read(folder, split)
    if found is None:
        hint = "run mforce prepare, or its last part, first"
        raise UserError(f"has no manifest of {split}", where=folder, hint=hint)
    return hashlib.sha256("".join(file.sha256 for file in found.files).encode()).hexdigest()[:16]


def caption_key(caption: str) -> int:
    """Returns the hash of a caption, of 64 bits."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little")


def build_caption_index(captions: Sequence[str]) -> np.ndarray:
    """Returns u64 [2 n]: the sorted keys of captions, and the position of each in the sequence."""
    keys = np.array([caption_key(caption) for caption in captions], np.uint64)
    order = np.argsort(keys)
    return np.stack([keys[order], order.astype(np.uint64)])


def read_caption_index(path: Path) -> np.ndarray:
    """Returns what `build_caption_index` made, in shared memory; raises UserError if damaged."""
    index = numpy_io.map_npy(path, AGAIN)
    if index.ndim != 2 or len(index) != 2 or index.dtype != np.uint64:
        what = f"holds {index.dtype} {index.shape}, not the index of captions"
        raise UserError(what, where=path, hint=f"delete it and {AGAIN}")
    return index


def pack(array: np.ndarray, name: str, **more: bytes | int) -> bytes:
    """Returns an Example with an array of bfloat16 and other features."""
    content = np.ascontiguousarray(array, _BFLOAT16).tobytes()
    others = {key: [value] for key, value in more.items()}
    return tf_example.encode({name: [content], "size": list(array.shape), **others})


def unpack(content: bytes, name: str) -> tuple[np.ndarray, Mapping[str, tf_example.Feature]]:
    """Inverts `pack`: returns the array and all features. Raises ValueError for anything else."""
    try:
        features = tf_example.decode(content)
        size = [int(number) for number in features["size"]]
        (stored,) = features[name]
        if not isinstance(stored, bytes):
            raise ValueError(f"{name} is not bytes")
        return np.frombuffer(stored, _BFLOAT16).reshape(size), features
    except (LookupError, ValueError, TypeError) as error:
        raise ValueError(f"holds no {name} ({error or type(error).__name__})") from error


@dataclass(frozen=True)
class Cache:
    """The cache of one split. Raises UserError if there is none or it has another format."""

    folder: Path
    split: str
    settings: Mapping[str, object] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        path = settings_path(self.folder, self.split)
        if not is_file(path):
            what = f"holds no cache of {self.split}"
            raise UserError(what, where=self.folder, hint="make it with mforce encode")
        settings = manifest.read_json(path, AGAIN)
        if settings.get("format") != FORMAT:
            what = f"is of format {settings.get('format')!r}, and this version reads {FORMAT}"
            raise UserError(what, where=path, hint=_ELSEWHERE)
        object.__setattr__(self, "settings", settings)

    def check(self, part: str, **expected: object) -> None:
        """Raises UserError unless the encoder of "text" or "image" had these settings."""
        settings = self.settings.get(part)
        if not isinstance(settings, Mapping):
            hint = f"run mforce encode with --{part} too"
            raise UserError(f"holds nothing of {part}", where=self.folder, hint=hint)
        for name, value in expected.items():
            if settings.get(name) != value:
                what = f"was made with {part} {name} {settings.get(name)}"
                hint = f"{_ELSEWHERE}, or change the config"
                raise UserError(f"{what}, and the config has {value}", where=self.folder, hint=hint)


@dataclass(frozen=True)
class LatentSource:
    """Prepared records with the cached latents of their images.

    Raises UserError if the cache is of other records, is not complete, or holds no latents.
    """

    source: Shards
    cache: Cache
    _latents: Shards = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cache, source = self.cache, self.source
        cache.check("image")
        if cache.settings.get("source") != source_digest(source.folder, source.split):
            what = f"was made of other records than {source.folder}"
            hint = "encode them again, into another folder"
            raise UserError(what, where=cache.folder, hint=hint)
        latents = Shards(cache.folder / "latents", cache.split, again=AGAIN)
        if len(latents) != len(source):
            what = f"holds {len(latents)} of {len(source)} latents"
            raise UserError(what, where=latents.folder, hint=AGAIN)
        object.__setattr__(self, "_latents", latents)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        try:
            latents, _ = unpack(self._latents.example(index), "latents")
        except ValueError as error:
            what = f"record {index} {error}"
            raise UserError(what, where=self._latents.folder, hint=AGAIN) from error
        return replace(self.source[index], latents=latents)


@dataclass(frozen=True)
class CachedTextStates:
    """A text encoder that looks captions up in caches, one after the other.

    tokens: l, to which states are truncated or zero-padded. Raises UserError for a caption that is
    in no cache.
    """

    tokens: int
    caches: tuple[Cache, ...]
    _texts: list[_TextCache] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_texts", [_TextCache(cache) for cache in self.caches])

    def encode(self, caption: str) -> dict[str, np.ndarray]:
        """Returns {"tokens": bf16 [l c], "mask": bool [l]}; padding without states is 0."""
        for texts in self._texts:
            if (found := texts.find(caption)) is not None:
                states, count = found
                tokens = np.zeros((self.tokens, states.shape[1]), _BFLOAT16)
                tokens[: len(states)] = states[: self.tokens]
                return {"tokens": tokens, "mask": np.arange(self.tokens) < count}
        what = f"no cache has the caption {caption!r}"
        raise UserError(what, where=self.caches[0].folder, hint=AGAIN)

    def null(self) -> dict[str, np.ndarray]:
        """Returns the states of the empty caption."""
        return self.encode("")

    def __reduce__(self) -> tuple[type[CachedTextStates], tuple[int, tuple[Cache, ...]]]:
        return CachedTextStates, (self.tokens, self.caches)


class _TextCache:
    """The caption states of one cache."""

    def __init__(self, cache: Cache):
        cache.check("text")
        path = self._path = caption_index_path(cache.folder, cache.split)
        self._index = read_caption_index(path)
        self._shards = Shards(cache.folder / "text", cache.split, again=AGAIN)
        if self._index.shape != (2, len(self._shards)):
            what = "does not list the captions beside it"
            raise UserError(what, where=path, hint=f"delete it and {AGAIN}")

    def find(self, caption: str) -> tuple[np.ndarray, int] | None:
        """Returns the states of a caption and the number of its tokens; None if it is not here."""
        keys, rows = self._index
        key = np.uint64(caption_key(caption))
        at = int(np.searchsorted(keys, key))
        if at == len(keys) or keys[at] != key:
            return None
        try:
            states, features = unpack(self._shards.example(int(rows[at])), "states")
            (count,) = features.get("count", [len(states)])
            count = int(count)
        except (IndexError, ValueError, TypeError) as error:
            what = f"leads to no states of the caption {caption!r}"
            raise UserError(what, where=self._path, hint=AGAIN) from error
        return (states, count) if features.get("caption") == [caption.encode()] else None
