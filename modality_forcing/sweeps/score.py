"""The score of a cell: depth and losses on held-out records, or real benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from modality_forcing.config import Config, to_dict
from modality_forcing.evaluation import benchmark, image_quality
from modality_forcing.evaluation.heldout import Evaluator, HeldOutData
from modality_forcing.evaluation.protocols import MOGE, get_protocol
from modality_forcing.generator import Generator
from modality_forcing.modalities.base import Batch
from modality_forcing.paths import as_path
from modality_forcing.sweeps.spec import Benchmarks, Cell, Records
from modality_forcing.train.state import Params
from modality_forcing.train.step import Sums, compute_loss


@dataclass(frozen=True)
class Score:
    """The metrics of a cell. Scores are comparable if protocol and seeds agree."""

    metrics: Mapping[str, float]
    protocol: str
    seeds: str


class Scorer:
    """Scores cells one after the other; cells with the same held-out records share them.

    folder: of the predictions of benchmarks.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._evaluators: dict[str, Evaluator] = {}
        self._open_metrics = lru_cache(1)(image_quality.open_metrics)  # of a network each

    def __call__(self, cell: Cell, workdirs: Mapping[str, Path]) -> Score:
        """Scores a cell from the workdir of each phase.

        Raises UserError if records or benchmarks are missing.
        """
        generator = _load_generator(workdirs[cell.run.phase], cell.run.config)
        if isinstance(cell.evaluation, Benchmarks):
            return self._benchmarks(cell, cell.evaluation, generator)
        return self._records(cell, cell.evaluation, generator, workdirs)

    def check(self, cells: Iterable[Cell]) -> None:
        """Raises UserError, before cells are trained, for image metrics that cannot be computed.

        Their networks are loaded and freed again.
        """
        for cell in cells:
            options = cell.evaluation
            if isinstance(options, Records) and options.image_metrics:
                self._open(options).check(cell.run.config.eval.examples)
        self._open_metrics.cache_clear()

    def _open(self, options: Records) -> image_quality.ImageMetrics:
        return self._open_metrics(options.image_metrics, options.inception, options.clip)

    def _records(
        self, cell: Cell, options: Records, last: Generator, workdirs: Mapping[str, Path]
    ) -> Score:
        evaluator = self._evaluator(replace(cell.run.config, seed=options.seed))
        metrics: dict[str, float] = {}
        if "depth" in last.modalities:
            for task, values in {"i2d": evaluator.i2d(last)[0], **evaluator.baselines()}.items():
                metrics |= {f"{task}_{name}": value for name, value in values.items()}
        for run in cell.runs():
            is_last = run is cell.run
            generator = last if is_last else _load_generator(workdirs[run.phase], run.config)
            losses = held_out_loss(generator, evaluator.data, options.seed, options.draws)
            prefix = "" if is_last else f"{run.phase}_"
            metrics |= {f"{prefix}{name}": value for name, value in losses.items()}
        if options.image_metrics:
            metrics |= self._images(last, options, evaluator.config)
        records = len(evaluator.data.captions)
        seeds = f"seed {options.seed}, {records} records, {options.draws} draws"
        return Score(metrics, f"held out: {MOGE}", seeds)

    def _images(self, last: Generator, options: Records, config: Config) -> dict[str, float]:
        opened = self._open(options)
        result = image_quality.evaluate_checkpoint(last, "t2i", opened, config=config)
        return {f"t2i_{name}": value for name, value in result["metrics"].items()}

    def _evaluator(self, config: Config) -> Evaluator:
        values = to_dict(config)
        key = json.dumps([values[name] for name in ("seed", "data", "eval")])
        if key not in self._evaluators:
            self._evaluators[key] = Evaluator(config)
        evaluator = self._evaluators[key]
        evaluator.config = config  # the records are the same; network and sampling may differ
        return evaluator

    def _benchmarks(self, cell: Cell, options: Benchmarks, generator: Generator) -> Score:
        protocol = get_protocol(options.protocol)
        results = benchmark.run_benchmarks(
            generator,
            benchmark.open_benchmarks(options.names, as_path(options.root)),
            protocol,
            benchmark.InferenceOptions(samples=options.samples, seed=options.seed),
            step=str(cell.run.config.train.steps),
            out=self.folder / "benchmarks" / cell.name,
        )
        metrics: dict[str, float] = {}
        for result in results:
            for name, value in result.items():
                if name in ("absrel", "delta1", "images", "skipped"):
                    value = float("nan") if value is None else value
                    metrics[f"{result['benchmark']}_{name}"] = value
        # The paper's figure: the mean over the benchmarks, each counting as one.
        for name in ("absrel", "delta1"):
            values = [metrics[f"{result['benchmark']}_{name}"] for result in results]
            metrics[name] = float(np.mean(values))
        seeds = f"seed {options.seed}, {options.samples} samples"
        return Score(metrics, f"{options.names}: {protocol}", seeds)


def _load_generator(workdir: Path, config: Config) -> Generator:
    """Loads the EMA weights of a run, with the sampling options of the sweep, not of the run."""
    return Generator.from_checkpoint(workdir, sample=vars(config.sample))


def held_out_loss(
    generator: Generator, data: HeldOutData, seed: int, draws: int
) -> dict[str, float]:
    """Returns the mean training loss on held-out records: `loss` and `loss_<modality>`.

    Noise levels and noise depend on (seed, draw, record) alone, so that two networks are compared
    at the same ones. Text is never dropped and depth is not sparsified. The loss is in velocity at
    the config's t_min: losses of networks trained with another t_min or other noise levels are not
    comparable.
    """
    c = generator.config
    text, loop = replace(c.text, text_dropout=0.0), replace(c.train, distill=False)
    c = replace(c, seed=seed, text=text, train=loop)
    count = len(data.captions)
    size = min(c.eval.batch, count)

    @jax.jit
    def compute_losses(params: Params, batch: Batch, draw: jax.Array) -> Sums:
        # compute_loss reads the null text only where text is dropped.
        null_text = jax.tree.map(lambda x: jnp.zeros_like(x[0]), batch["text"])
        model = nnx.merge(generator.graph, params)
        modalities = generator.modalities
        return compute_loss(model, modalities, batch, draw, config=c, null_text=null_text)[1]

    totals: dict[str, np.ndarray] = {}  # sum and count of every loss
    for start in range(0, count, size):
        index = np.arange(start, min(start + size, count))
        batch = jax.tree.map(jnp.asarray, generator.frozen.encode(_batch(generator, data, index)))
        for draw in range(draws):
            losses = jax.device_get(compute_losses(generator.params, batch, jnp.int32(draw)))
            for name, (value, number) in losses.items():
                if np.ndim(value):
                    continue  # by noise level, for the rows of training
                # `loss` is a mean over the batch, the others are sums.
                weight = len(index) if name == "loss" else 1
                part = np.array([value * weight, number * weight], np.float64)
                totals[name] = totals.get(name, np.zeros(2)) + part
    return {name: float(value / max(number, 1.0)) for name, (value, number) in totals.items()}


def _batch(generator: Generator, data: HeldOutData, index: np.ndarray) -> dict[str, object]:
    tokens = [generator.encoder.encode(data.captions[i]) for i in index]
    return {
        **data.inputs(index),
        "index": index.astype(np.int32),
        "text": {key: np.stack([t[key] for t in tokens]) for key in tokens[0]},
    }
