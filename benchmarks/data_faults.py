"""Faults of what a run reads: its last checkpoint, shards and caches."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_bench import ROOT, Bench, Row, last_state

from modality_forcing.progress import print_stderr

STEPS = 30
CONFIG = f"""
from dataclasses import replace
from pathlib import Path
from tests import frozen

def get_config(arg):
    here = Path(__file__).parents[1]
    names = {{"text": here / "text", "image": here / "image"}}
    more = {{"cache": here / "cache"}} if arg == "cache" else names
    config = frozen.config(here / "records", **more)
    return replace(config, train=replace(config.train, steps={STEPS}, save_every=10))
"""


def flipped_byte(bench: Bench) -> Row:
    """A flipped byte in every file of the last checkpoint."""
    finished, workdir = bench.folder / "finished", bench.folder / "flipped"
    bench.finish(finished)
    steps = (finished / "checkpoints").glob("[0-9]*")
    last = max(steps, key=lambda path: int(path.name)).relative_to(finished)
    files = sorted(p for p in (finished / last).rglob("*") if p.is_file() and p.stat().st_size)
    wrong = harmless = 0
    files = bench.rng.sample(files, min(bench.tries, len(files)))
    for file in (path.relative_to(finished) for path in files):
        shutil.copytree(finished, workdir)
        with flipped(workdir / file, bench.rng, restore=False):
            run = bench.start(bench.command(workdir))
            code, said = run.wait(), run.output()
        # A flip may be of no consequence, as in a comment of the storage format.
        same = code == 0 and bench.equal(workdir)
        words = ("damaged", "cannot be read", "unfinished", "intact")
        harmless += not any(word in said for word in words)
        if not same or "Traceback" in said:
            wrong += 1
            print_stderr(f"  {file.relative_to(last)}: code {code}: {said[-600:]}")
        shutil.rmtree(workdir)
    happens = f"{len(files)} files: the run falls back to the checkpoint before and trains again"
    happens += f"; {harmless} flips change nothing that is read"
    return Row(happens, "at most save_every", not wrong)


@dataclass(frozen=True)
class Read:
    """A run that reads shards, or a cache of them, and the state at its end."""

    bench: Bench
    kind: str  # "shards" or "cache"
    files: list[Path]
    end: object

    def run(self, workdir: Path) -> tuple[int, str]:
        """Returns the exit code and the output of the run."""
        return _train(self.bench, self.kind, workdir)


def _train(bench: Bench, kind: str, workdir: Path) -> tuple[int, str]:
    config = f"--config={bench.folder / 'configs/read.py'}:{kind}"
    arguments = ["train", config, f"--workdir={workdir}"]
    run = bench.start([sys.executable, "-m", "modality_forcing.cli", *arguments])
    return run.wait(), run.output()


def read(bench: Bench, kind: str) -> Read:
    """Prepares and encodes records once, and runs undisturbed on them."""
    records, cache = bench.folder / "records", bench.folder / "cache"
    if not records.exists():
        sys.path.insert(0, str(ROOT))
        from tests import frozen

        frozen.prepared(records)
        text, image = (
            frozen.text_folder(bench.folder / "text"),
            frozen.image_folder(bench.folder / "image"),
        )
        encode = ["encode", f"--source={records}", f"--out={cache}", f"--text=umt5:{text}"]
        encode += [f"--image=flux2:{image}", f"--resolution={frozen.PIXELS}"]
        encode += [f"--tokens={frozen.TOKENS}", "--shard-size=4"]
        run = bench.start([sys.executable, "-m", "modality_forcing.cli", *encode])
        assert run.wait() == 0, run.output()
        (bench.folder / "configs").mkdir()
        (bench.folder / "configs" / "read.py").write_text(CONFIG)
    undisturbed = bench.folder / f"read_{kind}"
    if not undisturbed.exists():
        code, said = _train(bench, kind, undisturbed)
        assert code == 0, said
    folder = {"shards": records, "cache": cache}[kind]
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    return Read(bench, kind, files, last_state(undisturbed))


@contextmanager
def flipped(path: Path, rng: random.Random, restore: bool = True) -> Iterator[None]:
    """Flips a bit of a file, not in its padding, for a while or for good."""
    content = path.read_bytes()
    at = rng.choice([i for i, byte in enumerate(content) if byte])
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    yield
    if restore:
        path.write_bytes(content)


@contextmanager
def truncated(path: Path, rng: random.Random) -> Iterator[None]:
    """Cuts a file for a while."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])
    yield
    path.write_bytes(content)


@contextmanager
def lost(path: Path, rng: random.Random) -> Iterator[None]:
    """Takes a file away for a while."""
    path.rename(path.with_suffix(".away"))
    yield
    path.with_suffix(".away").rename(path)


Damage = Callable[[Path, random.Random], AbstractContextManager[None]]


def damaged(given: Read, damage: Damage, shards_only: bool = False) -> Row:
    """Damages one file after another; each run is refused, or ends in the undisturbed state."""
    bench = given.bench
    files = [path for path in given.files if not shards_only or ".array_record" in path.name]
    files = bench.rng.sample(files, min(bench.tries, len(files)))
    refused = wrong = 0
    said = ""
    for number, path in enumerate(files):
        workdir = bench.folder / f"{given.kind}_{damage.__name__}_{number}"
        with damage(path, bench.rng):
            code, output = given.run(workdir)
        refused += code == 2
        said = output if code == 2 else said
        ok = code in (0, 2) and "Traceback" not in output
        if code:
            code, _ = given.run(workdir)
        if not (ok and code == 0 and last_state(workdir) == given.end):
            wrong += 1
            print_stderr(f"  {path.name}: {output[-600:]}")
    happens = f"{len(files)} files: {refused} refused with exit code 2"
    happens += f", {len(files) - refused} of no consequence for what is read"
    if said:
        happens += f"; the last: {bench.shorten(said)}"
    return Row(happens, "since the last save", not wrong)


def flipped_in_shard(bench: Bench) -> Row:
    """A flipped bit in each file of prepared records."""
    return damaged(read(bench, "shards"), flipped)


def flipped_in_cache(bench: Bench) -> Row:
    """A flipped bit in each file of a cache."""
    return damaged(read(bench, "cache"), flipped)


def lost_shard(bench: Bench) -> Row:
    """A lost shard."""
    return damaged(read(bench, "shards"), lost, shards_only=True)


def truncated_shard(bench: Bench) -> Row:
    """A truncated shard."""
    return damaged(read(bench, "shards"), truncated, shards_only=True)


def lost_in_cache(bench: Bench) -> Row:
    """A lost shard of a cache."""
    return damaged(read(bench, "cache"), lost, shards_only=True)


def truncated_in_cache(bench: Bench) -> Row:
    """A truncated shard of a cache."""
    return damaged(read(bench, "cache"), truncated, shards_only=True)


FAULTS = (
    flipped_byte,
    flipped_in_shard,
    flipped_in_cache,
    lost_shard,
    truncated_shard,
    lost_in_cache,
    truncated_in_cache,
)
