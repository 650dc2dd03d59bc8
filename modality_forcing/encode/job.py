"""Prepared records through frozen encoders once: the shards of a cache (`data.encoded`), each whole or not there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from modality_forcing.atomic_io import write_file
from modality_forcing.data.augment import hflip
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.encoders.frozen import BATCH, FrozenEncoders
from modality_forcing.errors import UserError
from modality_forcing.progress import ProgressMeter
from modality_forcing.storage import codec, latent_cache, manifest
from modality_forcing.storage.shards import Shards, ShardWriter, shard_name
from modality_forcing.tree import differences

_LENGTHS = (
    32  # captions are padded to multiples of this many tokens: few programs, and little padding
)
_TELL_EVERY = 10.0  # seconds
_READERS = 8  # threads that decode pictures while the last ones are encoded


@dataclass(frozen=True)
class Job:
    """A cache in the making. Each shard depends on nothing but the settings, and is there when it is whole."""

    source: Shards
    out: Path
    settings: Mapping[str, Any]
    frozen: FrozenEncoders
    batch: int  # of all devices of this process
    part: tuple[int, int]  # (i, of): every of-th shard, beginning at i

    @property
    def split(self) -> str:
        """The split's name."""
        return self.source.split

    def claim(self) -> None:
        """Puts the settings down; raises UserError, naming what differs, if the folder was begun with others.

        A part that was not encoded before may be added.
        """
        path = latent_cache.settings_path(self.out, self.split)
        before = manifest.read_json(path) if path.is_file() else {}
        now = {**before, **self.settings}
        if told := differences(before, {name: now[name] for name in before}):
            hint = "choose another --out, or delete this one"
            raise UserError(f"was begun otherwise ({told})", where=self.out, hint=hint)
        if before != now:
            write_file(path, json.dumps(now, indent=1) + "\n")

    def encode_text(self, tokens: int) -> None:
        """Writes the states of every caption once."""
        captions = self._captions()
        kept = io.BytesIO()
        np.save(kept, latent_cache.build_caption_index(captions))
        write_file(latent_cache.caption_index_path(self.out, self.split), kept.getvalue())
        sentences = self.frozen.tokenizer(tokens)

        def shard(part: range) -> Iterator[bytes]:
            read = [(captions[row], sentences.encode(captions[row])) for row in part]
            states: dict[int, bytes] = {}
            for length in range(
                _LENGTHS, tokens + _LENGTHS, _LENGTHS
            ):  # captions of like length together
                rows = [
                    i
                    for i, (_, text) in enumerate(read)
                    if length - _LENGTHS < text["mask"].sum() <= length
                ]
                for some in _chunks(rows, self.batch):
                    cut = [{k: v[:length] for k, v in read[i][1].items()} for i in some]
                    text = {k: self._placed([one[k] for one in cut]) for k in cut[0]}
                    made = np.asarray(self.frozen.states(text)["tokens"])
                    for i, one in zip(some, made, strict=False):  # the batch is filled up behind
                        caption = read[i][0].encode()
                        states[i] = latent_cache.pack(
                            one[: read[i][1]["mask"].sum()], "states", caption=caption
                        )
            yield from (states[i] for i in range(len(read)))

        self._write("text", len(captions), shard)

    def encode_pictures(self, resolution: int) -> None:
        """Writes the latents of every picture and of its mirror image."""

        def read(index: int) -> tuple[np.ndarray, np.ndarray]:
            record = center_crop_resize(self.source[index], resolution)
            return record.image, hflip(record).image

        def shard(part: range) -> Iterator[bytes]:
            with ThreadPoolExecutor(_READERS) as pool:
                for some in _ahead(pool, read, _chunks(part, max(1, self.batch // 2))):
                    images = self._placed([image for pair in some for image in pair])
                    made = np.asarray(self.frozen.latents(images))
                    for i in range(len(some)):
                        yield latent_cache.pack(made[2 * i : 2 * i + 2], "latents")

        self._write("latents", len(self.source), shard)

    def told(self) -> str:
        """Returns what is there by now."""
        shards = {name: self._shards(name, total) for name, total in self._totals().items()}
        there = {name: sum(path.is_file() for path in paths) for name, paths in shards.items()}
        if all(there[name] == len(paths) for name, paths in shards.items()):
            return str(latent_cache.settings_path(self.out, self.split))
        return "this part is done; " + ", ".join(
            f"{there[name]} of {len(shards[name])} shards of {name}" for name in shards
        )

    def _totals(self) -> dict[str, int]:
        totals = {}
        if self.frozen.has_text:
            totals["text"] = np.load(
                latent_cache.caption_index_path(self.out, self.split), mmap_mode="r"
            ).shape[1]
        if self.frozen.has_image:
            totals["latents"] = len(self.source)
        return totals

    def _shards(self, name: str, total: int) -> list[Path]:
        count = -(-total // self.settings["shard_size"])
        return [
            self.out / name / shard_name(name, self.split, index, count) for index in range(count)
        ]

    def _write(self, name: str, total: int, shard: Callable[[range], Iterator[bytes]]) -> None:
        """Writes this part's shards that are not there yet."""
        size, paths = self.settings["shard_size"], self._shards(name, total)
        i, of = self.part
        mine = [
            (path, range(k * size, min((k + 1) * size, total)))
            for k, path in enumerate(paths)
            if k % of == i
        ]
        missing = [(path, rows) for path, rows in mine if not path.is_file()]
        done = sum(len(rows) for path, rows in mine if path.is_file())
        progress = ProgressMeter(
            f"{self.split} {name}", sum(len(rows) for _, rows in mine), done=done, every=_TELL_EVERY
        )
        for path, rows in missing:
            with ShardWriter(path) as writer:
                for example in shard(rows):
                    writer.write(example)
                    done += 1
                    progress.update(done)
        progress.report(done)
        progress.close()

    def _captions(self) -> list[str]:
        """Every caption once, by where it comes first; "" before all."""
        seen = dict.fromkeys([""])
        with ThreadPoolExecutor(_READERS) as pool:
            for some in _ahead(
                pool,
                lambda i: codec.caption(self.source.example(i)),
                _chunks(range(len(self.source)), 256),
            ):
                seen.update(dict.fromkeys(some))
        return list(seen)

    def _placed(self, rows: Sequence[np.ndarray]) -> Any:
        """Rows as one array over the devices, filled up to a whole batch by repeating the last."""
        filled = np.stack([*rows, *[rows[-1]] * (self.batch - len(rows))])
        assert self.frozen.mesh is not None
        return jax.device_put(filled, NamedSharding(self.frozen.mesh, BATCH))


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[int], Any], chunks: Iterable[Sequence[int]]
) -> Iterator[list[Any]]:
    """What `read` gives of each chunk, the next chunk being read meanwhile."""
    chunks = iter(chunks)
    waiting = [[pool.submit(read, i) for i in chunk] for chunk in islice(chunks, 2)]
    while waiting:
        now = [future.result() for future in waiting.pop(0)]
        waiting += [[pool.submit(read, i) for i in chunk] for chunk in islice(chunks, 1)]
        yield now


def _chunks(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (rows[at : at + size] for at in range(0, len(rows), size))
