"""From prepared shards to training batches, next to a PyTorch DataLoader over the same files.

    python benchmarks/input.py --workers 0 2 --memory 10000

Examples are 256 pixels a side: rendered scenes with the noise of a camera and of a depth sensor, as
JPEG of quality 95, with depth everywhere ("dense") or at scan lines and scattered points
("sparse"). Both loaders read the same ArrayRecord file, decode image and depth, flip every other
example, look up the caption's words and stack 64 of them. The other one decodes and flips with
OpenCV; it needs torch and opencv-python-headless, and shows a dash without them.

One Markdown table. Per second: examples by the clock. Per core: examples per second of processor
time of this process and its loader processes, which other load disturbs less. The loaders
alternate; numbers are medians over the turns, `ratio` that of the examples per core of one turn.
--memory N reads N small batches and reports the memory of all processes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from modality_forcing.data.augment import Augment
from modality_forcing.data.pipeline import train_batches
from modality_forcing.data.records import Record
from modality_forcing.data.sparsity import sparsify
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.storage import codec, tf_example
from modality_forcing.storage.shards import Shards, ShardWriter, shard_name
from modality_forcing.synthetic.source import Scenes

SIDE = 256
FLIP = 0.5
SPARSE = {"lidar": 0.5, "uniform": 0.5}
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed and memory of reading prepared shards into batches."
    )
    parser.add_argument("--examples", type=int, default=256, help="in the file")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="per turn, after a warm-up")
    parser.add_argument("--turns", type=int, default=5, help="of each loader")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="loader processes")
    parser.add_argument(
        "--memory", type=int, default=0, help="batches of 4 over which to watch memory"
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as root:
        folders = {
            kind: write(Path(root) / kind, kind, options.examples) for kind in ("dense", "sparse")
        }
        print(f"{machine()}; {os.cpu_count()} cores; {versions()}\n")
        print("| depth | bytes | workers | per second | torch | per core | torch | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for kind, workers in itertools.product(folders, options.workers):
            print(row(str(kind), folders[str(kind)], int(workers), options), flush=True)
        if options.memory:
            print("\n| workers | batches of 4 | MiB of all processes |\n|---|---|---|")
            for workers in options.workers:
                for count, size in memory(folders["dense"], workers, options.memory):
                    print(f"| {workers} | {count} | {size:.0f} |", flush=True)


def write(folder: Path, kind: str, count: int) -> Path:
    """Writes one shard of examples."""
    scenes, rng = Scenes(resolution=SIDE), np.random.default_rng(0)
    rendered = [scenes[index] for index in range(min(count, 64))]
    with ShardWriter(folder / shard_name(kind, "train", 0, 1)) as shard:
        for index in range(count):
            record = noisy(rendered[index % len(rendered)], rng)
            shard.write(codec.encode(sparsify(record, rng, SPARSE) if kind == "sparse" else record))
    return folder


def noisy(record: Record, rng: np.random.Generator) -> Record:
    image = record.image + rng.normal(0, 3, record.image.shape)
    depth = record.depth * (1 + 1e-3 * rng.standard_normal(record.depth.shape, np.float32))
    return replace(
        record,
        image=np.clip(image, 0, 255).astype(np.uint8),
        depth=np.where(record.valid, depth, np.float32(0)),
    )


def row(kind: str, folder: Path, workers: int, options: argparse.Namespace) -> str:
    loaders: dict[str, Callable[[], Any]] = {"ours": lambda: ours(folder, workers, options.batch)}
    if torch_is_there():
        compare(folder)
        loaders["torch"] = lambda: Torch(folder, workers, options.batch)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for _ in range(options.turns):
        for name, loader in loaders.items():
            rates[name].append(speed(loader, workers, options.batch, options.batches))
    cells = [kind, f"{size(folder) / options.examples:.0f}", str(workers)]
    for unit in (0, 1):
        for name in ("ours", "torch"):
            turns = [turn[unit] for turn in rates.get(name, [])]
            cells.append(f"{median(turns):.0f}" if turns else "-")
    pairs = zip(rates["ours"], rates.get("torch", []), strict=False)
    ratios = [mine[1] / other[1] for mine, other in pairs]
    cells.append(f"{median(ratios):.2f}" if ratios else "-")
    return f"| {' | '.join(cells)} |"


def speed(loader: Callable[[], Any], workers: int, batch: int, count: int) -> tuple[float, float]:
    """Returns examples per second and examples per second of processor time."""
    with closing(loader()) as batches:
        for _ in range(3 + 3 * workers):  # what was made while starting must not count as speed
            next(batches)
        start, cpu_start = time.perf_counter(), processor_seconds()
        for _ in range(count):
            next(batches)
        elapsed, cpu_elapsed = time.perf_counter() - start, processor_seconds() - cpu_start
        return count * batch / elapsed, count * batch / cpu_elapsed


def memory(folder: Path, workers: int, count: int) -> Iterator[tuple[int, float]]:
    with closing(ours(folder, workers, 4)) as batches:
        for number in range(1, count + 1):
            next(batches)
            if number % max(1, count // 5) == 0:
                yield number, sum(resident(pid) for pid in processes()) / MIB


def ours(folder: Path, workers: int, batch: int) -> Any:
    options: dict[str, Any] = {"batch": batch, "resolution": SIDE, "workers": workers}
    augment = Augment(flip_prob=FLIP)
    text = HashedWordTokenizer()
    return train_batches(Shards(folder), text, seed=0, augment=augment, **options)


class Torch:
    """Endless shuffled batches of a PyTorch DataLoader."""

    def __init__(self, folder: Path, workers: int, batch: int):
        import torch  # pyright: ignore[reportMissingImports]
        from torch.utils.data import DataLoader, RandomSampler  # pyright: ignore

        torch.set_num_threads(1)
        examples: Any = OpenCV(Shards(folder), HashedWordTokenizer())
        self._loader = DataLoader(
            examples,
            batch_size=batch,
            sampler=RandomSampler(examples, replacement=True, num_samples=2**31),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        self._batches = iter(self._loader)

    def __next__(self) -> Any:
        return next(self._batches)

    def close(self) -> None:
        stop = getattr(self._batches, "_shutdown_workers", None)
        # A process that has read ArrayRecord may abort at exit, which torch reports as a failure.
        with suppress(RuntimeError):
            if stop:
                stop()
        del self._batches, self._loader


@dataclass(frozen=True)
class OpenCV:
    """The same examples, decoded and flipped by OpenCV."""

    shards: Shards
    text: HashedWordTokenizer

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import cv2  # pyright: ignore[reportMissingImports]

        cv2.setNumThreads(0)
        image, depth, valid, caption = self.decode(index)
        if np.random.default_rng().random() < FLIP:
            image, depth = cv2.flip(image, 1), cv2.flip(depth, 1)
            valid = cv2.flip(valid.view(np.uint8), 1).view(np.bool_)
        return {
            "image": image,
            "depth": depth,
            "valid": valid,
            "text": self.text.encode(caption),
            "index": index,
        }

    def decode(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        import cv2  # pyright: ignore[reportMissingImports]

        features = tf_example.decode(self.shards.example(index))
        encoded = np.frombuffer(features["image"][0], np.uint8)  # pyright: ignore
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)  # pyright: ignore
        depth, valid = codec._decode_depth(features, image.shape[:2])  # pyright: ignore
        return image, depth, valid, features["caption"][0].decode()  # pyright: ignore


def compare(folder: Path) -> None:
    """Raises AssertionError unless both loaders decode the same."""
    shards = Shards(folder)
    record = shards[0]
    image, depth, valid, caption = OpenCV(shards, HashedWordTokenizer()).decode(0)
    assert np.abs(record.image.astype(int) - image).max() <= 3 and record.caption == caption
    assert np.array_equal(record.depth, depth) and np.array_equal(record.valid, valid)


def torch_is_there() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "cv2"))


def processes() -> list[int]:
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]


def processor_seconds() -> float:
    """Processor time of this process and its loader processes, all threads."""
    ticks = 0
    for pid in processes():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user mode and in the kernel
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def versions() -> str:
    names = ["grain", "numpy", "pillow", "protobuf"]
    names += ["torch", "opencv-python-headless"] if torch_is_there() else []
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


if __name__ == "__main__":
    main()
