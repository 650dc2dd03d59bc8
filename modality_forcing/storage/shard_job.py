"""The common part of resumable jobs that write shards: settings, assignment, leftover files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modality_forcing import locks
from modality_forcing.errors import UserError
from modality_forcing.paths import glob, is_file, remove, write_file
from modality_forcing.storage.manifest import read_json
from modality_forcing.storage.shards import shard_name
from modality_forcing.text_io import with_checksum
from modality_forcing.tree import differences


@dataclass(frozen=True)
class ShardJob:
    """The shards of one split. Shard k holds the items from k * shard_size on.

    name: of the shards' files. total: the number of items.
    """

    folder: Path
    name: str
    split: str
    total: int
    shard_size: int

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-self.total // self.shard_size)

    def path(self, index: int) -> Path:
        """Returns the path of a shard."""
        return self.folder / shard_name(self.name, self.split, index, self.count)

    def items(self, index: int) -> range:
        """Returns the items of a shard."""
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.total))

    def assigned(self, shard: tuple[int, int]) -> range:
        """Returns the shards of job `shard` = (i, n), one of n: every n-th shard from i on."""
        return range(shard[0], self.count, shard[1])

    def size(self, indices: range | list[int]) -> int:
        """Returns the number of items in several shards."""
        return sum(len(self.items(index)) for index in indices)


@contextmanager
def hold_job(folder: Path, job: str, shard: tuple[int, int]) -> Iterator[None]:
    """Holds the lock of one of n jobs, shard = (i, n), that write into a folder.

    job: its name, such as "prepare-train". Raises UserError if the same job runs already, or a job
    that is one of another number, since the two could write the same shard. Of two such jobs that
    start at the same instant at most one runs; both may be refused.
    """
    index, count = shard
    with locks.hold(folder, "--out", f".{job}-{index}-of-{count}.lock"):
        # After the lock is held: whichever of two jobs looks last sees the other.
        for path in glob(folder, f".{job}-*-of-*.lock"):
            if path.stem.rpartition("-")[2] != str(count) and (owner := locks.live_owner(path)):
                what = f"is in use by {owner}, with another number of jobs"
                raise UserError(what, where=folder, hint="wait until it has ended")
        yield


def check_or_write_settings(
    path: Path, settings: Mapping[str, object], folder: Path, *, again: str
) -> None:
    """Writes the settings that the shards in a folder depend on.

    Keys that the file lacks are added. again: how to write the file again, for messages. Raises
    UserError with the differences if the folder was started with other settings.
    """
    before = read_json(path, again) if is_file(path) else {}
    now = {**before, **settings}
    if changes := differences(before, {name: now[name] for name in before}):
        what = f"was started with other settings ({changes})"
        raise UserError(what, where=folder, hint="choose another --out, or delete this one")
    if before != now:
        write_file(path, json.dumps(with_checksum(now), indent=1) + "\n")


def remove_temp_files(path: Path) -> None:
    """Removes the temporary files that killed runs left beside a file that is now complete."""
    for left in glob(path.parent, f".{path.name}.*"):
        remove(left)
