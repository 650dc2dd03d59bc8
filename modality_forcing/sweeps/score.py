"""What a cell of a sweep scores: depth from pictures, and losses at fixed noise, on records that
are the same in every cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from modality_forcing.config import Config, to_dict
from modality_forcing.evaluation import benchmark
from modality_forcing.evaluation.heldout import Evaluator, HeldOutData
from modality_forcing.evaluation.protocols import MOGE, get_protocol
from modality_forcing.generator import Generator
from modality_forcing.sweeps.spec import Benchmarks, Cell, Records
from modality_forcing.train.step import compute_loss


@dataclass(frozen=True)
class Score:
    """Numbers by name, and what numbers must share to be compared: the protocol, and the draws
    that they are over.
    """

    metrics: Mapping[str, float]
    protocol: str
    seeds: str


class Scorer:
    """Scores cells one after the other; those evaluated on the same records share them. folder:
    for what benchmarks write.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._evaluators: dict[str, Evaluator] = {}

    def __call__(self, cell: Cell, workdirs: Mapping[str, Path]) -> Score:
        """Scores a cell from the workdir of each phase; raises UserError where records or
        benchmarks are missing.
        """
        last = _generator(workdirs[cell.run.phase], cell.run.config)
        if isinstance(cell.evaluation, Benchmarks):
            return self._benchmarks(cell, cell.evaluation, last)
        return self._records(cell, cell.evaluation, last, workdirs)

    def _records(
        self, cell: Cell, how: Records, last: Generator, workdirs: Mapping[str, Path]
    ) -> Score:
        evaluator = self._evaluator(replace(cell.run.config, seed=how.seed))
        metrics: dict[str, float] = {}
        if "depth" in last.modalities:
            numbers = {"i2d": evaluator.i2d(last)[0], **evaluator.baselines()}
            metrics |= {
                f"{task}_{name}": value
                for task, told in numbers.items()
                for name, value in told.items()
            }
        for run in cell.runs():
            generator = last if run is cell.run else _generator(workdirs[run.phase], run.config)
            losses = held_out_loss(generator, evaluator.data, how.seed, how.draws)
            metrics |= {
                name if run is cell.run else f"{run.phase}_{name}": value
                for name, value in losses.items()
            }
        records = len(evaluator.data.captions)
        return Score(
            metrics, f"held out: {MOGE}", f"seed {how.seed}, {records} records, {how.draws} draws"
        )

    def _evaluator(self, config: Config) -> Evaluator:
        told = to_dict(config)
        key = json.dumps([told[name] for name in ("seed", "data", "eval")])
        if key not in self._evaluators:
            self._evaluators[key] = Evaluator(config)
        kept = self._evaluators[key]
        kept.config = config  # of the same records; network and sampling are this cell's
        return kept

    def _benchmarks(self, cell: Cell, how: Benchmarks, last: Generator) -> Score:
        chosen = get_protocol(how.protocol)
        opened = benchmark.open_benchmarks(how.names, Path(how.root))
        options = benchmark.InferenceOptions(samples=how.samples, seed=how.seed)
        step, out = str(cell.run.config.train.steps), self.folder / "benchmarks" / cell.name
        results = benchmark.run_benchmarks(last, opened, chosen, options, step=step, out=out)
        metrics = {
            f"{result['benchmark']}_{name}": float("nan") if value is None else value
            for result in results
            for name, value in result.items()
            if name in ("absrel", "delta1", "images", "skipped")
        }
        for name in ("absrel", "delta1"):  # of the sets, each counting as one: the paper's figure
            metrics[name] = float(
                np.mean([metrics[f"{result['benchmark']}_{name}"] for result in results])
            )
        return Score(metrics, f"{how.names}: {chosen}", f"seed {how.seed}, {how.samples} samples")


def _generator(workdir: Path, config: Config) -> Generator:
    """The EMA weights of a run, sampling as the sweep says now: a run's own options may be older."""
    return Generator.from_checkpoint(workdir, sample=vars(config.sample))


def held_out_loss(
    generator: Generator, data: HeldOutData, seed: int, draws: int
) -> dict[str, float]:
    """Returns the training loss of weights on whole held-out records: `loss` and
    `loss_<modality>`, means over all of them.

    Levels and noise are functions of (seed, draw, record) alone, so that two networks are compared
    at the same ones; text is never dropped and depth not thinned. A loss in velocity at the
    config's t_min: networks trained with another, or with other noise levels, have losses of
    another kind.
    """
    c = generator.config
    c = replace(
        c, seed=seed, text=replace(c.text, text_dropout=0.0), train=replace(c.train, distill=False)
    )
    size, count = min(c.eval.batch, len(data.captions)), len(data.captions)

    @jax.jit
    def sums(params: Any, batch: Any, draw: Any) -> Any:
        null = jax.tree.map(
            lambda x: jnp.zeros_like(x[0]), batch["text"]
        )  # nothing is dropped: it is never read
        model = nnx.merge(generator.graph, params)
        return compute_loss(model, generator.modalities, batch, draw, config=c, null_text=null)[1]

    total: dict[str, np.ndarray] = {}
    for start in range(0, count, size):
        at = np.arange(start, min(start + size, count))
        encoded = [generator.encoder.encode(data.captions[i]) for i in at]
        batch = {
            "image": data.image[at],
            "depth": data.depth[at],
            "valid": data.valid[at],
            "index": at.astype(np.int32),
        }
        batch["text"] = {k: np.stack([e[k] for e in encoded]) for k in encoded[0]}
        batch = jax.tree.map(jnp.asarray, generator.frozen.encode(batch))
        for draw in range(draws):
            for name, (value, number) in jax.device_get(
                sums(generator.params, batch, jnp.int32(draw))
            ).items():
                part = np.array(
                    [value * len(at), number * len(at)] if name == "loss" else [value, number],
                    np.float64,
                )
                total[name] = total.get(name, np.zeros(2)) + part
    return {name: float(value / max(number, 1.0)) for name, (value, number) in total.items()}
