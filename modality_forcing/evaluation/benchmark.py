"""Image-to-depth of a checkpoint on benchmarks: frames are predicted once, stored and scored."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.evaluation import report
from modality_forcing.evaluation.benchmarks.open import OpenedBenchmark, open_benchmark
from modality_forcing.evaluation.benchmarks.registry import Benchmark
from modality_forcing.evaluation.depth_metrics import DepthScores, concatenate, score
from modality_forcing.evaluation.ensemble import ensemble
from modality_forcing.evaluation.predictions import (
    PredictionStore,
    UnstoredPredictions,
    names_digest,
    network_settings,
)
from modality_forcing.evaluation.protocols import Protocol
from modality_forcing.evaluation.report import BenchmarkScores
from modality_forcing.evaluation.resample import resize_prediction
from modality_forcing.evaluation.views import EvalFrame, ViewName, make_eval_frame
from modality_forcing.generator import Generator, num_steps
from modality_forcing.paths import write_file
from modality_forcing.progress import ProgressMeter
from modality_forcing.train.state import params_hash
from modality_forcing.tree import JsonObject
from modality_forcing.viz import images

T = TypeVar("T")
U = TypeVar("U")
Log = Callable[[str], None]

_READERS = 4  # threads that read and warp frames ahead of the device
_PIXELS_PER_BATCH = 2**24  # of targets in memory beside a batch


@dataclass(frozen=True)
class InferenceOptions:
    """How frames are shown to the model and its samples are merged into one map."""

    view: ViewName = "square"
    samples: int = 1  # of each frame; several are ensembled
    ensemble_mode: Literal["scale", "affine"] = "scale"  # what may differ between samples
    seed: int = 0


def open_benchmarks(
    names: str, root: Path, frame_list: Path | None = None
) -> list[OpenedBenchmark]:
    """Opens the benchmarks of a comma-separated list, each checked to be complete.

    frame_list: a file of frame names, instead of the official list. Raises UserError as
    `open_benchmark` does, for an empty list, a repeated name, or several names with one frame list.
    """
    each = [name.strip() for name in names.split(",") if name.strip()]
    if not each or len(set(each)) < len(each):
        raise UserError(
            f"--benchmark {names!r} names no set, or one twice", hint="e.g. --benchmark nyuv2,diode"
        )
    if frame_list is not None and len(each) > 1:
        raise UserError("--frame-list is for a single set", hint="evaluate the sets one by one")
    return [open_benchmark(name, root, frame_list) for name in each]


def run_benchmarks(
    generator: Generator,
    opened: Sequence[OpenedBenchmark],
    protocol: Protocol,
    options: InferenceOptions,
    *,
    step: str,
    out: Path,
    log: Log = lambda line: None,
) -> list[JsonObject]:
    """Evaluates a model, saved at training step `step`, and returns one result per benchmark.

    Writes <out>/<set>_<protocol>_<digest>.json, .md and .png as each benchmark ends, and stores
    predictions in <out>/predictions. Raises UserError before the first prediction if a benchmark
    does not suit the model or the protocol.
    """
    protocols = [resolve_protocol(protocol, one.benchmark) for one in opened]
    check_supported(generator, options, protocol)
    results = []
    for one, resolved in zip(opened, protocols, strict=True):
        identity = prediction_identity(generator, one, options)
        store = PredictionStore(out / "predictions", identity, generator.config.data.resolution)
        scores = evaluate_benchmark(generator, one, resolved, options, store=store, log=log)
        checkpoint = {"name": generator.config.name, "step": step, "weights": identity["weights"]}
        about = {
            "view": identity["view"],
            "sampling": identity["sampling"],
            "checkpoint": checkpoint,
            "predictions_digest": store.digest,
        }
        result = report.make_result(one, scores, resolved, about)
        stem = _result_path(out, one.benchmark, resolved, store.digest)
        write_file(stem.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
        write_file(stem.with_suffix(".md"), report.to_markdown([result]))
        if result["images"]:
            load = _example_loader(generator, one, resolved, options, store=store)
            sheet = report.example_sheet(scores.per_image, load, resolved)
            write_file(stem.with_suffix(".png"), images.png_bytes(sheet))
        log(f"{stem}.json, .md, .png")
        results.append(result)
    return results


def _result_path(out: Path, benchmark: Benchmark, protocol: Protocol, digest: str) -> Path:
    text = json.dumps([digest, protocol.to_dict()], sort_keys=True)
    suffix = hashlib.sha256(text.encode()).hexdigest()[:8]
    return out / f"{benchmark.name}_{protocol.name}-{protocol.align}_{suffix}"


def _example_loader(
    generator: Generator,
    opened: OpenedBenchmark,
    protocol: Protocol,
    options: InferenceOptions,
    *,
    store: PredictionStore,
) -> report.ExampleLoader:
    resolution = generator.config.data.resolution

    def load(index: int) -> tuple[EvalFrame, np.ndarray]:
        frame = make_eval_frame(opened[index], opened.benchmark, options.view, resolution)
        stored = store.get(index)
        assert stored is not None, "predicted a moment ago"
        return frame, to_alignment_space(resize_prediction(stored[0], frame.target.shape), protocol)

    return load


def resolve_protocol(protocol: Protocol, benchmark: Benchmark) -> Protocol:
    """Returns the protocol with the benchmark's depth range and alignment size (Marigold's).

    A range given by the user takes precedence. Raises UserError if the protocol needs meters and
    the benchmark has none.
    """
    if protocol.align == "none" and not benchmark.metric:
        raise UserError(
            f"{benchmark.title} is in a unit of its own",
            hint="score it up to scale: --align scale or affine",
        )
    if protocol.name == "moge" or protocol.depth_range is not None or benchmark.depth_range is None:
        return protocol
    return replace(
        protocol,
        depth_range=benchmark.depth_range,
        masks_target=benchmark.range_masks_target,
        align_max_side=benchmark.align_max_side if protocol.name == "marigold" else None,
    )


def check_supported(generator: Generator, options: InferenceOptions, protocol: Protocol) -> None:
    """Raises UserError for a model without image-to-depth, or an unsupported alignment."""
    generator.trajectory("i2d", generator.config.sample)
    if protocol.align == "none":
        raise UserError(
            "the model's depth has no unit, so it cannot be scored without alignment",
            hint="choose --protocol moge or marigold; metric is for arrays (--pred, --target)",
        )
    if options.samples > 1 and options.ensemble_mode == "affine" and protocol.align != "affine":
        raise UserError(
            f"an affine ensemble has no zero, which alignment {protocol.align!r} needs",
            hint="use --ensemble-mode scale, or --align affine",
        )


def prediction_identity(
    generator: Generator, opened: OpenedBenchmark, options: InferenceOptions
) -> JsonObject:
    """Returns everything that predictions depend on: weights, network, frames, view, sampling."""
    sampling = sampling_options(generator) | {
        "samples": options.samples,
        "ensemble": options.ensemble_mode if options.samples > 1 else None,
        "seed": options.seed,
    }
    return {
        "weights": params_hash(generator.params),
        "network": network_settings(generator.config),
        "frames": {
            "benchmark": opened.benchmark.name,
            "layout": opened.layout,
            "names": names_digest(opened.names),
        },
        "view": {"name": options.view, "resolution": generator.config.data.resolution},
        "sampling": sampling,
    }


def sampling_options(generator: Generator) -> JsonObject:
    """Returns the options that image-to-depth depends on."""
    options = generator.config.sample
    cond = generator.trajectory("i2d", options)[1]
    weights = {name: w for name, w in options.condition_guidance.items() if name in cond and w != 1}
    return {
        "steps": num_steps("i2d", options),
        "solver": options.solver,
        "timestep_shift": generator.shift("i2d", options),
        "t_min": options.t_min,
        "guidance": {name: x for name, x in options.guidance.items() if name not in cond},
        **({"condition_guidance": weights} if weights else {}),
    }


def evaluate_benchmark(
    generator: Generator,
    opened: OpenedBenchmark,
    protocol: Protocol,
    options: InferenceOptions,
    *,
    store: PredictionStore | UnstoredPredictions,
    log: Log = lambda line: None,
) -> BenchmarkScores:
    """Scores every frame; frames missing from the store are predicted and stored, by batches.

    Threads read frames ahead of the device. A prediction depends on its frame index and the
    options, not on its batch. Raises UserError for a damaged frame, or if a prediction cannot be
    written.
    """
    parts: list[DepthScores] = []
    pixels, uncertainty, num_with_intrinsics, num_predicted = [], [], 0, 0
    progress = ProgressMeter(opened.benchmark.title, len(opened), write=log)
    progress.report(0)
    resolution = generator.config.data.resolution

    def read(index: int) -> tuple[int, EvalFrame]:
        return index, make_eval_frame(opened[index], opened.benchmark, options.view, resolution)

    with ThreadPoolExecutor(_READERS) as pool:
        frames = prefetch_map(pool, read, range(len(opened)), 2 * _READERS)
        for batch in batch_frames(frames, generator.config.eval.batch):
            stored = {i: map_ for i, _ in batch if (map_ := store.get(i)) is not None}
            missing = [(i, frame.model_image) for i, frame in batch if i not in stored]
            if missing:
                stored |= predict(generator, missing, options, store)
            maps = [stored[i] for i, _ in batch]
            size = batch[0][1].target.shape
            pred = np.stack([resize_prediction(depth, size) for depth, _ in maps])
            target = np.stack([frame.target for _, frame in batch])
            valid = np.stack([frame.valid for _, frame in batch])
            parts.append(score(to_alignment_space(pred, protocol), target, valid, protocol))
            pixels += valid.sum(axis=(1, 2)).tolist()
            uncertainty += [float(spread.mean()) for _, spread in maps]
            num_with_intrinsics += sum(frame.has_intrinsics for _, frame in batch)
            num_predicted += len(missing)
            progress.report(len(pixels), predicted=num_predicted)
    return BenchmarkScores(
        concatenate(parts),
        np.array(pixels),
        np.array(uncertainty, np.float32),
        num_with_intrinsics,
        num_predicted,
    )


def to_alignment_space(pred: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Returns predicted depth as what the protocol aligns: depth or disparity."""
    return 1 / np.maximum(pred, 1e-6) if protocol.align == "disparity" else pred


def predict(
    generator: Generator,
    frames: Sequence[tuple[int, np.ndarray]],
    options: InferenceOptions,
    store: PredictionStore | UnstoredPredictions,
) -> dict[int, np.ndarray]:
    """Predicts and stores frames (index, image u8 [r r 3]) with empty captions.

    Returns depth and uncertainty f32 [2 r r] by index. Several samples are ensembled
    (`ensemble.ensemble`); the uncertainty of a single one is 0.
    """
    size = generator.config.eval.batch
    index = np.array([i for i, _ in frames])
    # One batch size, one compilation: the last frame is repeated.
    rows = np.minimum(np.arange(size), len(frames) - 1)
    batch = {"image": np.stack([image for _, image in frames])[rows]}
    inputs = {"batch": batch, "index": index[rows], "seed": options.seed}
    outputs = [
        generator.run("i2d", [""] * size, **inputs, sample_index=k) for k in range(options.samples)
    ]
    # [b e h w]
    maps = np.stack([output.images["depth"] for output in outputs], axis=1)[: len(frames)]
    if options.samples > 1:
        merged = ensemble(maps, options.ensemble_mode)
        depth, uncertainty = merged.depth, merged.uncertainty
    else:
        depth, uncertainty = maps[:, 0], np.zeros_like(maps[:, 0])
    return {
        int(i): store.put(int(i), d, u) for i, d, u in zip(index, depth, uncertainty, strict=True)
    }


def prefetch_map(
    pool: ThreadPoolExecutor, call: Callable[[T], U], items: Iterable[T], depth: int
) -> Iterator[U]:
    """Yields call(item) for each item in order, with at most `depth` of them computed ahead."""
    todo = iter(items)
    running = [pool.submit(call, item) for item in itertools.islice(todo, depth)]
    try:
        while running:
            done = running.pop(0).result()
            running += [pool.submit(call, item) for item in itertools.islice(todo, 1)]
            yield done
    finally:
        for future in running:
            future.cancel()


def batch_frames(
    frames: Iterator[tuple[int, EvalFrame]], size: int
) -> Iterator[list[tuple[int, EvalFrame]]]:
    """Yields lists of at most `size` frames of one shape and about sixteen million pixels."""
    batch: list[tuple[int, EvalFrame]] = []
    for index, frame in frames:
        full = len(batch) >= min(size, max(1, _PIXELS_PER_BATCH // frame.target.size))
        if batch and (full or batch[0][1].target.shape != frame.target.shape):
            yield batch
            batch = []
        batch.append((index, frame))
    if batch:
        yield batch
