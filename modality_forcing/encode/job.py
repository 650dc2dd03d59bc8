"""Writes a cache of frozen encoders: latents of images and states of captions, in shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding

from modality_forcing import numpy_io
from modality_forcing.data.augment import hflip
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.encoders.frozen import BATCH, FrozenEncoders
from modality_forcing.paths import is_file, write_file
from modality_forcing.progress import ProgressMeter
from modality_forcing.storage import codec, latent_cache
from modality_forcing.storage.shard_job import ShardJob, check_or_write_settings, remove_temp_files
from modality_forcing.storage.shards import Shards, ShardWriter

T = TypeVar("T")

_LENGTHS = 32  # captions are padded to multiples of it: few programs, little padding
_REPORT_EVERY = 10.0  # seconds
_READERS = 8  # threads that decode images while the previous ones are encoded


@dataclass(frozen=True)
class Part:
    """The shards of one encoder. encode: from the items of a shard to its examples."""

    shards: ShardJob
    encode: Callable[[range], Iterator[bytes]]

    def write(self, index: int, count: Callable[[], None] = lambda: None) -> None:
        """Writes one shard. count: called after each example."""
        with ShardWriter(self.shards.path(index)) as writer:
            for example in self.encode(self.shards.items(index)):
                writer.write(example)
                count()


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """A cache that is being written. The bytes of a shard depend only on the settings.

    batch: size over all devices of this process. shard: (i, n), every n-th shard from i on.
    """

    source: Shards
    out: Path
    settings: Mapping[str, object]
    frozen: FrozenEncoders
    batch: int
    shard: tuple[int, int] = (0, 1)

    def check_or_write_settings(self) -> None:
        """Writes the settings. Raises UserError if the folder was started with others.

        An encoder that was not used before may be added.
        """
        path = latent_cache.settings_path(self.out, self.source.split)
        check_or_write_settings(path, self.settings, self.out, again=latent_cache.AGAIN)

    def encode_text(self, tokens: int) -> None:
        """Writes the states of every distinct caption."""
        self._write(self.text(self.write_captions(), tokens))

    def encode_images(self, resolution: int) -> None:
        """Writes the latents of every image and of its mirror image."""
        self._write(self.images(resolution))

    def write_captions(self) -> list[str]:
        """Writes the index of the distinct captions, and returns them in their order."""
        captions = self._captions()
        index_path = latent_cache.caption_index_path(self.out, self.source.split)
        index = latent_cache.build_caption_index(captions)
        write_file(index_path, numpy_io.npy_bytes(index))
        return captions

    def text(self, captions: Sequence[str], tokens: int) -> Part:
        """Returns the shards of the states of captions. tokens: of a caption at most."""
        tokenizer = self.frozen.tokenizer(tokens)
        keeps_padding = self.frozen.text_kind.keeps_padding
        lengths = [tokens] if keeps_padding else range(_LENGTHS, tokens + _LENGTHS, _LENGTHS)

        def encode(rows: range) -> Iterator[bytes]:
            texts = [tokenizer.encode(captions[row]) for row in rows]
            counts = [int(text["mask"].sum()) for text in texts]
            states: dict[int, bytes] = {}
            done = 0
            for length, similar in _by_length(counts, lengths):
                for chunk in _chunks(similar, self.batch):
                    batch = {
                        key: self._to_devices([texts[i][key][:length] for i in chunk])
                        for key in texts[chunk[0]]
                    }
                    encoded = np.asarray(self.frozen.states(batch)["tokens"])
                    for i, one in zip(chunk, encoded, strict=False):  # the batch is padded
                        more = {"count": counts[i]} if keeps_padding else {}
                        kept = one if keeps_padding else one[: counts[i]]
                        caption = captions[rows[i]].encode()
                        states[i] = latent_cache.pack(kept, "states", caption=caption, **more)
                    while done in states:  # at once, as a shard of them may be large
                        yield states.pop(done)
                        done += 1

        return Part(self._shards("text", len(captions)), encode)

    def images(self, resolution: int) -> Part:
        """Returns the shards of the latents of images. resolution: in pixels a side."""

        def read(index: int) -> tuple[np.ndarray, np.ndarray]:
            record = center_crop_resize(self.source[index], resolution)
            return record.image, hflip(record).image

        def encode(rows: range) -> Iterator[bytes]:
            with ThreadPoolExecutor(_READERS) as pool:
                for chunk in _prefetch(pool, read, _chunks(rows, max(1, self.batch // 2))):
                    images = self._to_devices([image for pair in chunk for image in pair])
                    latents = np.asarray(self.frozen.latents(images))
                    for i in range(len(chunk)):
                        yield latent_cache.pack(latents[2 * i : 2 * i + 2], "latents")

        return Part(self._shards("latents", len(self.source)), encode)

    def summary(self) -> str:
        """Returns the path of a complete cache, or how many shards exist."""
        parts = []
        if self.frozen.has_text:
            index = latent_cache.caption_index_path(self.out, self.source.split)
            parts.append(self._shards("text", latent_cache.read_caption_index(index).shape[1]))
        if self.frozen.has_image:
            parts.append(self._shards("latents", len(self.source)))
        exist = [sum(is_file(part.path(i)) for i in range(part.count)) for part in parts]
        if all(n == part.count for n, part in zip(exist, parts, strict=True)):
            return str(latent_cache.settings_path(self.out, self.source.split))
        return "this job is done; " + ", ".join(
            f"{n} of {part.count} shards of {part.name}"
            for n, part in zip(exist, parts, strict=True)
        )

    def _shards(self, name: str, total: int) -> ShardJob:
        shard_size = self.settings["shard_size"]
        assert isinstance(shard_size, int)
        return ShardJob(self.out / name, name, self.source.split, total, shard_size)

    def _write(self, part: Part) -> None:
        """Writes the missing shards of this job."""
        shards = part.shards
        assigned = shards.assigned(self.shard)
        missing = [index for index in assigned if not is_file(shards.path(index))]
        total = shards.size(assigned)
        done = total - shards.size(missing)
        title = f"{shards.split} {shards.name}"
        meter = ProgressMeter(title, total, done=done, every=_REPORT_EVERY)

        def count() -> None:
            nonlocal done
            done += 1
            meter.update(done)

        for index in missing:
            part.write(index, count)
            remove_temp_files(shards.path(index))
        meter.report(done)
        meter.close()

    def _captions(self) -> list[str]:
        """Returns the distinct captions, in the order of their first records, "" first."""

        def read(index: int) -> tuple[str, ...]:
            return codec.captions(self.source.example(index))

        captions = {"": None}
        with ThreadPoolExecutor(_READERS) as pool:
            for chunk in _prefetch(pool, read, _chunks(range(len(self.source)), 256)):
                captions.update(dict.fromkeys(chain.from_iterable(chunk)))
        return list(captions)

    def _to_devices(self, rows: Sequence[np.ndarray]) -> jax.Array:
        """Returns the rows as one array, padded to a batch by repeating the last."""
        padded = np.stack([*rows, *[rows[-1]] * (self.batch - len(rows))])
        assert self.frozen.mesh is not None
        return jax.device_put(padded, NamedSharding(self.frozen.mesh, BATCH))


def _prefetch(
    pool: ThreadPoolExecutor, read: Callable[[int], T], chunks: Iterable[Sequence[int]]
) -> Iterator[list[T]]:
    """Yields what `read` returns for each chunk, while the next chunk is read."""
    chunks = iter(chunks)
    waiting = [[pool.submit(read, i) for i in chunk] for chunk in islice(chunks, 2)]
    while waiting:
        results = [future.result() for future in waiting.pop(0)]
        waiting += [[pool.submit(read, i) for i in chunk] for chunk in islice(chunks, 1)]
        yield results


def _by_length(counts: Sequence[int], lengths: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
    """Yields each length, and the indices of captions that fit it but not a shorter one."""
    shorter = 0
    for length in lengths:
        yield length, [i for i, count in enumerate(counts) if shorter < count <= length]
        shorter = length


def _chunks(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
