"""One run over benchmarks: everything checked before the first prediction, then set by set, each written as it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.atomic_io import write_file
from modality_forcing.errors import UserError
from modality_forcing.evaluation import benchmark, report
from modality_forcing.evaluation.benchmark import Setup
from modality_forcing.evaluation.benchmarks.open import Opened, open_benchmark
from modality_forcing.evaluation.framing import Scored, placed, scored
from modality_forcing.evaluation.predictions import Predictions
from modality_forcing.evaluation.protocols import Protocol
from modality_forcing.generator import Generator
from modality_forcing.viz import images


def open_all(names: str, root: Path, listed: Path | None = None) -> list[Opened]:
    """Returns the benchmarks of a comma list, all of them whole; listed: a file of frame names instead of the official list.

    Raises UserError as `open_benchmark` does, and if the list names nothing, a set twice, or several with one file.
    """
    each = [name.strip() for name in names.split(",") if name.strip()]
    if not each or len(set(each)) < len(each):
        raise UserError(
            f"--benchmark {names!r} names no set, or one twice", hint="e.g. --benchmark nyuv2,diode"
        )
    if listed is not None and len(each) > 1:
        raise UserError("--list is for a single set", hint="evaluate the sets one by one")
    return [open_benchmark(name, root, listed) for name in each]


def run(
    generator: Generator,
    step: str,
    opened: Sequence[Opened],
    protocol: Protocol,
    setup: Setup,
    out: Path,
    tell: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Evaluates a model, of training step `step`, on opened benchmarks, and returns a result for each.

    Writes <out>/<set>_<protocol>_<digest>.json, .md and .png for each as it is done, and keeps predictions in
    <out>/predictions. Raises UserError, before anything is predicted, if a set does not fit the model or the protocol.
    """
    protocols = [benchmark.for_benchmark(protocol, one.benchmark) for one in opened]
    benchmark.check(generator, setup, protocol)
    about = {"name": generator.config.name, "step": step}
    return [
        _one(generator, *pair, setup, out, about, tell)
        for pair in zip(opened, protocols, strict=True)
    ]


def _one(
    generator: Generator,
    opened: Opened,
    protocol: Protocol,
    setup: Setup,
    out: Path,
    about: Mapping[str, Any],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    identity = benchmark.identity(generator, opened, setup)
    kept = Predictions(out / "predictions", identity, generator.config.data.resolution)
    scores = benchmark.evaluate(generator, opened, protocol, setup, kept, tell)
    result = report.to_json(opened, scores, protocol, identity, kept.digest, about)

    def look(index: int) -> tuple[Scored, np.ndarray]:
        frame = scored(
            opened[index], opened.benchmark, setup.view, generator.config.data.resolution
        )
        both = kept.get(index)
        assert both is not None, "predicted a moment ago"
        return frame, benchmark.as_aligned(placed(both[0], frame.truth.shape), protocol)

    said = json.dumps([kept.digest, protocol.to_dict()], sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()[:8]
    stem = out / f"{opened.benchmark.name}_{protocol.name}-{protocol.align}_{digest}"
    write_file(stem.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_file(stem.with_suffix(".md"), report.to_markdown([result]))
    if result["images"]:
        write_file(
            stem.with_suffix(".png"), images.png_bytes(report.sheet(scores.each, look, protocol))
        )
    tell(f"{stem}.json, .md, .png")
    return result
