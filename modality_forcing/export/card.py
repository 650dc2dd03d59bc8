"""The model card of an export: README.md with the front matter of the hub, from the manifest alone.

It has no number that was not measured: losses and evaluations are the run's last rows, benchmark
scores are results of `mforce evaluate` for exactly these weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from modality_forcing import paths
from modality_forcing.config import Config, from_dict
from modality_forcing.errors import UserError
from modality_forcing.evaluation.report import describe_settings
from modality_forcing.progress import print_stderr
from modality_forcing.text_io import read_object
from modality_forcing.train.exported import NETWORK, PROGRAM, Export, kind_of
from modality_forcing.train.metric_rows import Row, read_metrics
from modality_forcing.train.state import Params, params_hash
from modality_forcing.train.weights import Source, Step
from modality_forcing.tree import JsonObject

FILE = "README.md"
RESULTS = "evaluation"  # folder of a workdir: --out of mforce evaluate, whose results are read
NO_LICENSE = "unspecified"
PAPER = "https://arxiv.org/abs/2606.13676"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_UNSHOWN = ("step", "learning_rate")  # scalars of a row that say nothing of the weights
_SCORES = {"absrel": "AbsRel", "delta1": "δ1"}
_ADAPTER_TAG = "adapter"


def check_license(name: str) -> None:
    """Raises UserError for what is no license id of the hub."""
    if name and not _LICENSE.fullmatch(name):
        hint = "give an id of the hub in lower case, such as apache-2.0 or cc-by-nc-4.0"
        raise UserError(f"--license is {name!r}", hint=hint)


def facts(found: Source, config: Config, params: Params) -> JsonObject:
    """Returns what is known of the training of weights, for the manifest; {} of a release.

    A file of the run that is damaged is left out, with a note.
    """
    if isinstance(found, Export):
        return found.training
    if not isinstance(found, Step):
        return {}
    step = int(found.name)
    known: JsonObject = {"step": step, "examples": step * config.train.batch}
    if found.where.parent.name != "checkpoints":
        return known
    workdir = found.where.parent.parent
    try:
        rows = [row for row in read_metrics(workdir) if row.get("step", math.inf) <= step]
        known |= {name: row for name, row in _last_rows(rows) if row}
    except UserError as error:
        print_stderr(f"{error}; the model card has no metrics")
    if results := list(_results(workdir / RESULTS, params)):
        known["results"] = results
    return known


def _last_rows(rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """Yields the last losses and the last evaluation, each with its step."""
    for name, is_of in (("losses", _is_loss), ("evaluation", lambda key: key.startswith("eval/"))):
        row = next((row for row in reversed(rows) if any(map(is_of, row))), {})
        # Shorter than as measured: the last digits depend on the machine.
        scalars = {key: float(f"{x:.6g}") for key, x in row.items() if is_of(key) and _finite(x)}
        yield name, {"step": int(row["step"]), **scalars} if scalars else {}


def _is_loss(name: str) -> bool:
    return name.startswith("loss") and "/" not in name


def _finite(x: object) -> bool:
    return isinstance(x, int | float) and math.isfinite(x)


def _results(folder: Path, params: Params) -> Iterator[JsonObject]:
    """Yields the benchmark results in a folder that are of these weights."""
    files = paths.glob(folder, "*.json")
    weights = params_hash(params) if files else ""
    for path in files:
        try:
            result = read_object(path, hint="delete it")
            if result["checkpoint"]["weights"] != weights:
                continue
            yield {
                "title": str(result["title"]),
                "official_list": bool(result["official_list"]),
                "settings": describe_settings(result),
                "images": int(result["images"]),
                **{name: result[name] for name in _SCORES if _finite(result[name])},
            }
        except UserError as error:
            print_stderr(f"{error}; the model card leaves it out")
        except (KeyError, TypeError, ValueError):
            continue  # another JSON file


def render(manifest: JsonObject) -> str:
    """Returns the card of an export; equal manifests have equal cards."""
    config = from_dict(manifest["config"])
    sections = [
        _front_matter(manifest, config),
        f"# {config.name}",
        _about(manifest, config),
        "## Use",
        _use(manifest, config),
        "## Network",
        _table(_network(manifest, config)),
        "## Training",
        _training(manifest, config),
        "## Intended use and limits",
        _limits(manifest, config),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(manifest: JsonObject, config: Config) -> str:
    has_depth = "depth" in config.modalities
    license_ = manifest.get("license", "")
    tags = ["modality-forcing", "jax", "flax", "diffusion", "text-to-image"]
    tags += ["depth-estimation", "image-to-depth", "depth-to-image"] if has_depth else []
    tags += [_ADAPTER_TAG] if manifest.get("adapter") else []
    named = (
        [f"license: {license_}"] if license_ else ["license: other", f"license_name: {NO_LICENSE}"]
    )
    lines = [
        *named,
        "library_name: modality_forcing",
        f"pipeline_tag: {'depth-estimation' if has_depth else 'text-to-image'}",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _about(manifest: JsonObject, config: Config) -> str:
    names = " and ".join(config.modalities)
    each = ", with a noise level for each" if len(config.modalities) > 1 else ""
    what = f"One diffusion transformer over {names}{each}"
    if manifest.get("adapter"):
        what = f"An adapter: the weights that a run trained on top of another network over {names}"
    if kind_of(manifest) == PROGRAM:
        what = f"Image to depth of a diffusion transformer over {names}, as a compiled program"
    package = manifest["format"].partition(",")[0]
    return (
        f"{what}, as in *Modality Forcing for Scalable Spatial Generation* ([paper]({PAPER})).\n"
        f"Exported by {package}; `manifest.json` has the config and the SHA-256 of each weight."
    )


def _use(manifest: JsonObject, config: Config) -> str:
    where = "WHERE is this folder, or hf:OWNER/NAME of its repository on the hub."
    task, cond = "t2i", "--caption='a red chair'"
    call = 'image = p.generate("a red chair").image'
    if "depth" in config.modalities:
        task, cond = "i2d", "--image=photo.jpg"
        call = 'depth = p.image_to_depth("photo.jpg").depth'
    if kind_of(manifest) == PROGRAM:
        steps, pixels = manifest["program"]["steps"], _size(manifest, config)
        return (
            "```bash\npip install jax flatbuffers\npython run.py images.npy depth.npy 0\n```\n\n"
            f"Images are u8 [b, h, w, 3] of {pixels} pixels (rows x columns), any number of them; "
            f"depth is f32 [b, h, w] up to scale, after {steps} step{'s' * (steps != 1)}. The last "
            "argument is the seed."
        )
    option, argument, base = "--checkpoint=WHERE", '"WHERE"', ""
    if manifest.get("adapter"):
        option, argument = "--checkpoint=BASE --adapter=WHERE", '"BASE", adapter="WHERE"'
        base = " BASE is the network that it was trained on."
    return (
        f"```bash\nmforce sample {option} --mode={task} {cond} --out=out\n```\n\n"
        "```python\nfrom modality_forcing import Pipeline\n\n"
        f"p = Pipeline.from_pretrained({argument})\n{call}\n```\n\n{where}{base}"
    )


def _network(manifest: JsonObject, config: Config) -> list[tuple[str, object]]:
    # Of a program, its frozen encoders are beside the network.
    prefix = NETWORK if kind_of(manifest) == PROGRAM else ""
    weights = manifest["weights"].items()
    model, entries = config.model, [entry for name, entry in weights if name.startswith(prefix)]
    count = sum(math.prod(entry["shape"]) for entry in entries)
    dtypes = ", ".join(sorted({entry["dtype"] for entry in entries}))
    modalities = ", ".join(
        f"{name} ({m.prediction}-prediction, patches of {m.patch} px"
        f"{', latents' if m.latent_channels else ''})"
        for name, m in config.modalities.items()
    )
    text = config.text.encoder.partition(":")[0] or f"{config.text.vocab_size} learned words"
    blocks = f"{model.num_layers}, of width {model.width}, {model.heads} heads"
    return [
        ("parameters", f"{count:,} ({dtypes})"),
        ("modalities", modalities),
        ("resolution", f"{_size(manifest, config)} px"),
        ("blocks", blocks + (f"; {model.double_layers} double" if model.double_layers else "")),
        ("family", model.family),
        ("text", f"{text}, {config.text.tokens} tokens"),
        ("computes in", model.dtype),
    ]


def _training(manifest: JsonObject, config: Config) -> str:
    known, data = manifest.get("training") or {}, config.data
    if not known:
        return "No record of the training: the weights are of a released network."
    source = ", ".join(sorted(data.mixture)) or data.source
    rows: list[tuple[str, object]] = [("steps", f"{known['step']:,}")]
    if "examples" in known:
        rows.append(("examples", f"{known['examples']:,}"))
    rows.append(("data", f"`{source}`"))
    parts = [_table(rows)]
    for name, title in (("losses", "Training losses"), ("evaluation", "Evaluation while training")):
        if scalars := known.get(name):
            listed = [(f"`{k}`", f"{x:.4g}") for k, x in scalars.items() if k not in _UNSHOWN]
            parts += [f"{title}, at step {scalars['step']:,}:", _table(listed)]
    parts += [_result(result) for result in known.get("results", [])]
    if len(parts) == 1:
        parts.append("No metrics were found beside the checkpoint.")
    return "\n\n".join(parts)


def _result(result: JsonObject) -> str:
    scores = ", ".join(f"{t} {result[n]:.4f}" for n, t in _SCORES.items() if n in result)
    frames = f"{result['images']} frames" + (
        "" if result["official_list"] else ", not the official list"
    )
    return f"**{result['title']}** ({frames}): {scores}.\n{result['settings']}."


def _limits(manifest: JsonObject, config: Config) -> str:
    lines = [f"For research on generation of {' and '.join(config.modalities)}."]
    if "depth" in config.modalities:
        lines.append(
            "Depth is relative: it has no unit, and its scale is unknown unless it is aligned to "
            "measurements. Where an image says nothing of depth, as on mirrors, glass and sky, it "
            "is made up; samples of several seeds show where. Do not let safety depend on it."
        )
    lines.append(
        f"The network works at {_size(manifest, config)} pixels (rows x columns); finer detail "
        "is lost. It shares the biases of its training data and does not generalize far beyond "
        "them."
    )
    if not (manifest.get("training") or {}).get("results"):
        lines.append("No benchmark of these weights was found: their accuracy is not stated here.")
    if not manifest.get("license"):
        lines.append(
            "No license was named for these weights: ask their owner. The code's is Apache-2.0."
        )
    return "\n".join(f"- {line}" for line in lines)


def _size(manifest: JsonObject, config: Config) -> str:
    side = config.data.resolution
    program = manifest.get("program", {"size": [side, side]})
    return "{} x {}".format(*program["size"])


def _table(rows: Sequence[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
