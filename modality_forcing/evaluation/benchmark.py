"""A checkpoint's image-to-depth on a benchmark: every frame predicted once, kept, and scored under a protocol."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from modality_forcing.config import to_dict
from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.open import Opened
from modality_forcing.evaluation.benchmarks.registry import Benchmark
from modality_forcing.evaluation.depth_metrics import DepthScores, concatenate, score
from modality_forcing.evaluation.ensemble import ensemble
from modality_forcing.evaluation.framing import Scored, ViewName, placed, scored
from modality_forcing.evaluation.predictions import Predictions, names_digest
from modality_forcing.evaluation.protocols import Protocol
from modality_forcing.generator import Generator, num_steps
from modality_forcing.train.state import params_hash

T = TypeVar("T")
U = TypeVar("U")

_READERS = 4  # threads that read and warp frames ahead of the device
_PIXELS_AT_ONCE = 2**24  # of truth kept in memory beside a batch


@dataclass(frozen=True)
class Setup:
    """How frames are shown to the model and its samples made one map; predictions depend on nothing else of the options."""

    view: ViewName = "square"
    samples: int = 1  # of each frame, ensembled where there are more than one
    known_up_to: Literal["scale", "affine"] = (
        "scale"  # what the ensemble takes to differ between samples
    )
    seed: int = 0


class Scores(NamedTuple):
    """What a benchmark gave, frame by frame."""

    each: DepthScores  # [n]
    pixels: np.ndarray  # i64 [n], of known truth in the view
    uncertainty: (
        np.ndarray
    )  # f32 [n], the mean over the view, in parts of the greatest depth; 0 of a single sample
    cameras: int  # frames that came with intrinsics
    predicted: int  # frames that had no kept prediction


def for_benchmark(protocol: Protocol, benchmark: Benchmark) -> Protocol:
    """Returns the protocol with what it fixes for this set: Marigold's range of depth and size of the fit.

    A range that was asked for stays. Raises UserError where the set's truth has no metres and the protocol needs them.
    """
    if protocol.align == "none" and not benchmark.metric:
        raise UserError(
            f"{benchmark.title} is in a unit of its own",
            hint="score it up to scale: --align scale or affine",
        )
    if protocol.name == "moge" or protocol.depth_range is not None or benchmark.depth_range is None:
        return protocol
    fit_side = benchmark.fit_side if protocol.name == "marigold" else None
    return replace(
        protocol,
        depth_range=benchmark.depth_range,
        masks_truth=benchmark.range_masks_truth,
        fit_side=fit_side,
    )


def check(generator: Generator, setup: Setup, protocol: Protocol) -> None:
    """Raises UserError for a model without image-to-depth and for an alignment that its depth does not allow."""
    generator.trajectory("i2d", generator.config.sample)
    if protocol.align == "none":
        hint = "choose --protocol moge or marigold; metric scores are for arrays (--pred, --truth)"
        raise UserError("the model's depth has no unit, so it cannot be scored as it is", hint=hint)
    if setup.samples > 1 and setup.known_up_to == "affine" and protocol.align != "affine":
        hint = "use --ensemble-mode scale, or --align affine"
        raise UserError(
            f"an affine ensemble has no zero, which alignment {protocol.align!r} needs", hint=hint
        )


def identity(generator: Generator, opened: Opened, setup: Setup) -> dict[str, Any]:
    """Returns all that predictions depend on: weights, network, frames, view, sampling."""
    config = to_dict(generator.config)
    ensembled = setup.known_up_to if setup.samples > 1 else None
    return {
        "weights": params_hash(generator.params),
        "network": {k: config[k] for k in ("model", "text", "modalities")}
        | {"t_min": generator.config.train.t_min},
        "frames": {
            "benchmark": opened.benchmark.name,
            "layout": opened.layout,
            "names": names_digest(opened.names),
        },
        "view": {"name": setup.view, "resolution": generator.config.data.resolution},
        "sampling": sampling(generator)
        | {"samples": setup.samples, "ensemble": ensembled, "seed": setup.seed},
    }


def sampling(generator: Generator) -> dict[str, Any]:
    """Returns the options that image-to-depth depends on."""
    options = generator.config.sample
    given = generator.trajectory("i2d", options)[1]
    return {
        "steps": num_steps("i2d", options),
        "solver": options.solver,
        "mu": options.timestep_shift,
        "guidance": {name: x for name, x in options.guidance.items() if name not in given},
    }


def evaluate(
    generator: Generator,
    opened: Opened,
    protocol: Protocol,
    setup: Setup,
    kept: Predictions,
    tell: Callable[[str], None] = lambda line: None,
) -> Scores:
    """Scores every frame of an opened benchmark; what `kept` lacks is predicted and kept, batch by batch.

    Frames are read by threads, ahead of the device. A frame's prediction depends on its index and the setup, not on the
    batch it came in. Raises UserError for a damaged frame or if predictions cannot be written.
    """
    parts: list[DepthScores] = []
    pixels, uncertainty, cameras, predicted = [], [], 0, 0
    progress = _Progress(opened.benchmark.title, len(opened), tell)
    resolution = generator.config.data.resolution

    def read(index: int) -> tuple[int, Scored]:
        return index, scored(opened[index], opened.benchmark, setup.view, resolution)

    with ThreadPoolExecutor(_READERS) as pool:
        frames = ahead(pool, read, range(len(opened)), 2 * _READERS)
        for batch in batches(frames, generator.config.eval.batch):
            found = {i: kept.get(i) for i, _ in batch}
            missing = [(i, frame.image) for i, frame in batch if found[i] is None]
            if missing:
                found |= predict(generator, missing, setup, kept)
            maps = [found[i] for i, _ in batch]
            pred = np.stack(
                [
                    placed(both[0], frame.truth.shape)  # pyright: ignore[reportOptionalSubscript]
                    for both, (_, frame) in zip(maps, batch, strict=True)
                ]
            )
            truth, valid = (
                np.stack([getattr(frame, name) for _, frame in batch])
                for name in ("truth", "valid")
            )
            parts.append(score(as_aligned(pred, protocol), truth, valid, protocol))
            pixels += valid.sum(axis=(1, 2)).tolist()
            uncertainty += [float(both[1].mean()) for both in maps]  # pyright: ignore[reportOptionalSubscript]
            cameras += sum(frame.camera for _, frame in batch)
            predicted += len(missing)
            progress(len(batch), predicted)
    return Scores(
        concatenate(parts), np.array(pixels), np.array(uncertainty, np.float32), cameras, predicted
    )


def as_aligned(pred: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Returns predicted depth as what the protocol aligns: itself, or its inverse."""
    return 1 / np.maximum(pred, 1e-6) if protocol.align == "disparity" else pred


def predict(
    generator: Generator, frames: Sequence[tuple[int, np.ndarray]], setup: Setup, kept: Predictions
) -> dict[int, np.ndarray]:
    """Returns depth and uncertainty f32 [2 r r] by index of frames (index, image u8 [r r 3]), and keeps them.

    One sample: its depth, no uncertainty. Several: their ensemble (evaluation/ensemble.py). Captions are empty.
    """
    size = generator.config.eval.batch
    index = np.array([i for i, _ in frames])
    at = np.minimum(
        np.arange(size), len(frames) - 1
    )  # one size, one compilation: the last frame is repeated
    images = np.stack([image for _, image in frames])[at]
    samples = [
        generator.run(
            "i2d",
            [""] * size,
            batch={"image": images},
            seed=setup.seed,
            index=index[at],
            sample_index=k,
        ).images["depth"]
        for k in range(setup.samples)
    ]
    maps = np.stack(samples, axis=1)[: len(frames)]  # [b e h w]
    if setup.samples > 1:
        merged = ensemble(maps, setup.known_up_to)
        depth, uncertainty = merged.depth, merged.uncertainty
    else:
        depth, uncertainty = maps[:, 0], np.zeros_like(maps[:, 0])
    return {
        int(i): kept.put(int(i), d, u) for i, d, u in zip(index, depth, uncertainty, strict=True)
    }


def ahead(
    pool: ThreadPoolExecutor, call: Callable[[T], U], items: Iterable[T], most: int
) -> Iterator[U]:
    """Yields call(item) for each item in order, with at most `most` of them computed ahead."""
    todo = iter(items)
    running = [pool.submit(call, item) for item in itertools.islice(todo, most)]
    try:
        while running:
            done = running.pop(0).result()
            running += [pool.submit(call, item) for item in itertools.islice(todo, 1)]
            yield done
    finally:
        for future in running:
            future.cancel()


def batches(frames: Iterator[tuple[int, Scored]], size: int) -> Iterator[list[tuple[int, Scored]]]:
    """Yields frames in lists of one size of truth, of at most `size` and about sixteen million pixels."""
    batch: list[tuple[int, Scored]] = []
    for index, frame in frames:
        full = len(batch) >= min(size, max(1, _PIXELS_AT_ONCE // frame.truth.size))
        if batch and (full or batch[0][1].truth.shape != frame.truth.shape):
            yield batch
            batch = []
        batch.append((index, frame))
    if batch:
        yield batch


class _Progress:
    def __init__(self, title: str, total: int, tell: Callable[[str], None]):
        self.title, self.total, self.tell = title, total, tell
        self.done, self.started = 0, time.monotonic()

    def __call__(self, more: int, predicted: int) -> None:
        self.done += more
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        left = int((self.total - self.done) / rate)
        self.tell(
            f"{self.title}  {self.done}/{self.total}  {rate:.1f}/s  ETA {left // 60}:{left % 60:02d}  predicted {predicted}"
        )
