"""Evaluation while training: losses at fixed levels, image to maps, benchmarks, a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jax.sharding import Mesh

from modality_forcing import distributed, tasks
from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.evaluation import benchmark, conversions
from modality_forcing.evaluation.benchmarks.open import OpenedBenchmark
from modality_forcing.evaluation.depth_metrics import mean_scores
from modality_forcing.evaluation.fixed_levels import FixedLevelLoss
from modality_forcing.evaluation.heldout import Arrays, Evaluator, HeldOutData, load_records
from modality_forcing.evaluation.predictions import UnstoredPredictions
from modality_forcing.evaluation.protocols import get_protocol
from modality_forcing.generator import Generator
from modality_forcing.modalities.base import Modality
from modality_forcing.modalities.depth import Depth
from modality_forcing.modalities.normals import Normals
from modality_forcing.paths import as_path
from modality_forcing.progress import print_stderr
from modality_forcing.train import inputs as run_inputs
from modality_forcing.train.evaluation import EvalResult, Evaluate
from modality_forcing.train.inputs import Inputs
from modality_forcing.train.state import Params
from modality_forcing.viz import images

SHEET_EXAMPLES = 8  # the first ones, not selected
_CELL = 128  # least pixels of a side
# What an image is turned into: the input that says where it is known, and the scalars of its score.
_TARGETS: dict[type[Modality], tuple[str, dict[str, str]]] = {
    Depth: ("valid", {"absrel": "absrel", "delta1": "delta1"}),
    Normals: ("normals", {"normals_mean_deg": "mean_deg"}),
}


def make_evaluate(config: Config, inputs: Inputs, mesh: Mesh) -> Evaluate | None:
    """Returns what a run evaluates every `eval.every` steps, None if that is 0.

    Everything is a function of the weights and the config: seeds, records and captions are the same
    at every step. Where training records and held-out ones are the same, as in a folder, only the
    sheet and the benchmarks are made, which a note says.

    Raises UserError if there are no held-out records, if they cannot be encoded, or if a benchmark
    is unknown, incomplete or without use for the network.
    """
    c = config.eval
    if not c.every:
        return None
    options = _few_steps(config)
    # A run with a cache has loaded no encoders, and held-out records are not in the cache.
    frozen = inputs.encoders
    if inputs.caches:
        frozen = run_inputs.build_encoders(config, mesh)
        frozen.check()
    generator = Generator(options, {}, frozen, mesh)
    data = load_records(config, "eval", c.while_training_examples)
    _check_encodable(generator, data)
    opened = [_few_frames(one, c.benchmark_frames) for one in _open_benchmarks(config, generator)]
    same = _same_records(config)
    if same and distributed.is_primary():
        what = "there are no held-out records: eval/ has the image sheet"
        print_stderr(f"{config.name}: {what}{' and benchmarks' if opened else ' alone'}")
    return partial(_evaluate, _Parts(generator, data, opened, _make_scores(generator, data, same)))


@dataclass(frozen=True)
class _Scores:
    """What is computed on held-out records."""

    losses: FixedLevelLoss
    from_image: Evaluator
    targets: Sequence[str]  # modalities that have something to compare with


@dataclass(frozen=True)
class _Parts:
    generator: Generator
    data: HeldOutData
    benchmarks: Sequence[OpenedBenchmark]
    scores: _Scores | None


def _make_scores(generator: Generator, data: HeldOutData, same: bool) -> _Scores | None:
    if same:
        return None
    known, targets = data.inputs(), []
    for name, m in generator.modalities.items():
        if type(m) in _TARGETS and "image" in generator.modalities:
            targets += [name] if known[_TARGETS[type(m)][0]].any() else []
    evaluator = Evaluator(generator.config, data=data)
    return _Scores(FixedLevelLoss(generator, data), evaluator, targets)


def _score_maps(scores: _Scores, generator: Generator) -> tuple[dict[str, float], Arrays]:
    """Returns the scalars of what one run makes of the held-out images, and what it makes."""
    if not scores.targets:
        return {}, {}
    # All that is not given is generated along, whatever is asked for.
    task = "i2d" if "depth" in scores.targets else tasks.conversion(("image",), scores.targets[:1])
    data, found = scores.from_image.data, {}
    made = scores.from_image.generate(generator, task, {"image": data.image})
    for name in scores.targets:
        kind = type(generator.modalities[name])
        metrics = conversions.SCORES[kind](made[name], data)
        found |= {scalar: metrics[metric] for scalar, metric in _TARGETS[kind][1].items()}
    return found, made


def _evaluate(parts: _Parts, params: Params) -> EvalResult:
    generator, found, depth = parts.generator, dict[str, float](), None
    generator.params = params
    try:
        if parts.scores:
            found |= parts.scores.losses(params)
            maps, made = _score_maps(parts.scores, generator)
            found, depth = found | maps, made.get("depth")
        for opened in parts.benchmarks:
            found |= _score_benchmark(generator, opened)
        return EvalResult(found, _sheet(parts, depth))
    finally:
        generator.params = {}  # the next step donates them


def _few_steps(config: Config) -> Config:
    most, s = config.eval.while_training_steps, config.sample
    few = {task: min(steps, most) for task, steps in s.task_steps.items()}
    return replace(config, sample=replace(s, steps=min(s.steps, most), task_steps=few))


def _has_depth(generator: Generator) -> bool:
    return {"image", "depth"} <= generator.modalities.keys()


def _same_records(config: Config) -> bool:
    data = config.data
    return data.source == "folder" or (data.source == "prepared" and data.split == data.eval_split)


def _check_encodable(generator: Generator, data: HeldOutData) -> None:
    """Raises UserError if captions or images of held-out records cannot be encoded."""
    latents = any(m.latent_channels for m in generator.modalities.values())
    hint = "name them in the config, or set eval.every=0"
    if latents and not generator.frozen.has_image:
        what = "eval.every needs the autoencoder, since data.cache has no held-out latents"
        raise UserError(what, hint=hint)
    try:
        for caption in (*data.captions, ""):
            generator.encoder.encode(caption)
    except UserError as error:
        what = f"eval.every needs a text encoder: {error}"
        raise UserError(what, hint=hint) from error


def _open_benchmarks(config: Config, generator: Generator) -> list[OpenedBenchmark]:
    c = config.eval
    if not c.benchmark:
        return []
    if not c.benchmark_root:
        hint = "name the folder of the sets with --config.eval.benchmark_root=FOLDER"
        raise UserError("eval.benchmark_root is empty", hint=hint)
    benchmark.check_supported(generator, benchmark.InferenceOptions(), get_protocol())
    return benchmark.open_benchmarks(c.benchmark, as_path(c.benchmark_root))


def _few_frames(opened: OpenedBenchmark, count: int) -> OpenedBenchmark:
    """Returns a benchmark of at most `count` of the frames, evenly spaced."""
    total = len(opened)
    names = tuple(opened.names[i * total // count] for i in range(count)) if count < total else ()
    return replace(opened, names=names, official_list=False) if names else opened


def _score_benchmark(generator: Generator, opened: OpenedBenchmark) -> dict[str, float]:
    protocol = benchmark.resolve_protocol(get_protocol(), opened.benchmark)
    store, options = UnstoredPredictions(), benchmark.InferenceOptions()
    scores = benchmark.evaluate_benchmark(generator, opened, protocol, options, store=store)
    means = mean_scores(scores.per_image)
    return {f"{opened.benchmark.name}/{name}": means[name] for name in ("absrel", "delta1")}


def _sheet(parts: _Parts, depth: np.ndarray | None) -> np.ndarray:
    """Returns u8 [h w 3]: caption, record, its depth, estimated depth, and what captions make."""
    generator, data = parts.generator, parts.data
    count, seed = min(SHEET_EXAMPLES, len(data.captions)), generator.config.seed
    captions, index = data.captions[:count], np.arange(count)
    columns: dict[str, Sequence[np.ndarray]] = {"image": list(data.image[:count])}
    if _has_depth(generator):
        valid, image = data.valid[:count], data.image[:count]
        if depth is None:
            run = generator.run("i2d", captions, batch={"image": image}, seed=seed, index=index)
            depth = run.images["depth"]
        columns["depth"] = _colored(data.depth[:count], valid)
        # Elsewhere nothing is to be compared.
        columns["estimated depth"] = _colored(depth[:count], valid)
    task = "joint" if len(generator.modalities) > 1 else "t2i"
    generated = generator.run(task, captions, seed=seed, index=index).images
    for name, m in generator.modalities.items():
        columns[f"generated {name}"] = list(m.colorize(generated[name]))
    side = data.image.shape[1]
    factor = max(1, -(-_CELL // side))
    cells = [
        [images.upscale(column[i], factor) for column in columns.values()] for i in range(count)
    ]
    texts = [images.text_cell(caption, side * factor) for caption in captions]
    rows = [[text, *row] for text, row in zip(texts, cells, strict=True)]
    return images.grid(rows, labels=["caption", *columns])


def _colored(depth: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    return [images.colorize_disparity(d, mask) for d, mask in zip(depth, valid, strict=True)]
