"""The coordinate check: whether what flows through the network keeps its scale as the width grows, over the first train steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from modality_forcing.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModalityConfig,
    ModelConfig,
    NoiseConfig,
    TextConfig,
    TrainConfig,
)
from modality_forcing.diffusion import flow, rng
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models.blocks import Segments, Stack
from modality_forcing.train import inputs
from modality_forcing.train.state import Params, abstract_model, init_params, init_state
from modality_forcing.train.step import make_step
from modality_forcing.train.width_scaling import scale_width
from modality_forcing.viz import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = (128, 256, 512, 1024)
STEPS = 5
BLOCKS = 4  # looked at after each quarter of them
HEAD_DIM = 32  # so that the narrowest has several heads
TOLERANCE = 0.1  # of a slope: from 128 to 1024 a scale may change by a factor of 1.23. Unscaled rates give about 1.
KINDS = ("tokens", "modulation", "stream", "attention", "mlp", "prediction")
DRAWN = (0, 1, STEPS)  # steps that are drawn

DEFAULT = Config(
    modalities={"image": ModalityConfig(patch=8, noise=NoiseConfig(timestep_shift=0.0))},
    model=ModelConfig(width=96, mlp_dim=288, heads=4, kv_heads=2, head_dim=24),
    train=TrainConfig(learning_rate=3e-3, t_min=0.3),
)


@dataclass(frozen=True)
class Row:
    """The scale of one quantity after some steps: the root of its mean square over a batch and all seeds."""

    transfer: bool  # whether learning rates went with the width
    width: int
    step: int
    quantity: str
    scale: float


@dataclass(frozen=True)
class Slope:
    """How a scale goes with the width after some steps: as width^slope; 0 where it is zero at every width."""

    transfer: bool
    step: int
    quantity: str
    slope: float

    @property
    def flat(self) -> bool:
        """Whether it does not go with the width (NaN does)."""
        return abs(self.slope) <= TOLERANCE


def run(
    config: Config = DEFAULT,
    out: Path | None = None,
    widths: Sequence[int] = WIDTHS,
    seeds: int = 2,
) -> bool:
    """Measures, prints a table and a verdict, draws <out>/coord_check.png and .svg, and returns whether all is flat."""
    rows = measure(config, widths, seeds)
    found = slopes(rows)
    print(table(rows, found))
    if out is not None:
        with figures.style():
            paths = figures.save(draw(rows), out / "coord_check")
        print("\n".join(map(str, paths)))
    return all(slope.flat for slope in found if slope.transfer)


def measure(config: Config = DEFAULT, widths: Sequence[int] = WIDTHS, seeds: int = 2) -> list[Row]:
    """Takes real train steps at every width, with rates that go with the width and without, and returns all scales.

    Of the config count the modalities and the optimiser, at the rate of its matrices at the narrowest width, where both
    kinds of runs are the same. The network is small: 4 blocks of 32-channel heads, some 16 tokens a modality of scenes.
    Raises UserError for widths that make no whole heads, or fewer than two of them.
    """
    widths = sorted(set(widths))
    if len(widths) < 2:
        raise UserError(
            "one width shows no slope", hint=f"take several, such as {', '.join(map(str, WIDTHS))}"
        )
    narrow, rows = _small(config, widths[0]), []
    configs = [scale_width(narrow, width) for width in widths]
    batches, null_text = _batches(narrow, seeds * STEPS + 1)
    for width, wide in zip(widths, configs, strict=True):
        modalities = base.build(wide)
        graph = abstract_model(wide, modalities)[0]
        look = jax.jit(lambda p, noisy, t, text, graph=graph: squares(graph, p, noisy, t, text))
        probe = _probe(wide, batches[-1])
        runs = {True: wide, False: replace(wide, train=replace(wide.train, base_width=0))}
        steps = {
            transfer: make_step(c, modalities, graph, null_text) for transfer, c in runs.items()
        }
        seen: dict[tuple[bool, int], list[dict[str, Any]]] = {}
        for seed in range(seeds):
            fresh = init_params(replace(wide, seed=seed), modalities)
            for transfer, c in runs.items():
                state = init_state(c, fresh)
                seen.setdefault((transfer, 0), []).append(look(state.params, *probe))
                for k in range(STEPS):
                    state, _ = steps[transfer](state, batches[seed * STEPS + k])
                    seen.setdefault((transfer, k + 1), []).append(look(state.params, *probe))
        for (transfer, step), told in seen.items():
            mean = jax.tree.map(lambda *x: math.sqrt(np.mean(x)), *told)
            rows += [
                Row(transfer, width, step, name, mean[name]) for name in sorted(mean, key=_place)
            ]
    return rows


def squares(
    graph: nnx.GraphDef, params: Params, noisy: Any, t: Any, text: Any
) -> dict[str, Float[Array, ""]]:
    """Returns the mean square of everything that is looked at in one pass through a network."""
    network, seen = nnx.merge(graph, params), {}
    # The network's own pass, with a trunk that looks at what it is given and goes through its blocks one by one.
    object.__setattr__(network, "trunk", _captured(network.trunk, seen))
    seen |= {f"prediction: {name}": y for name, y in network(noisy, t, text).items()}
    return {name: jnp.mean(jnp.square(x)) for name, x in seen.items()}


def _captured(stack: Stack, seen: dict[str, Array]) -> Callable[..., Array]:
    """The stack's blocks one by one, with what flows through them put into `seen`."""

    def trunk(x: Array, modulation: Array, segments: Segments, angles: Array) -> Array:
        graph, weights = nnx.split(stack.layers)
        seen["tokens"], seen["modulation"] = x, modulation
        recorded: dict[str, list[Array]] = {"attention": [], "mlp": []}
        for i in range(stack.depth):
            block = nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], weights))
            block.record = lambda name, y: recorded[name].append(y)
            x = block(x, modulation, segments, angles)
            if (i + 1) * 4 % stack.depth == 0:
                seen[f"stream: {(i + 1) * 4 // stack.depth}/4"] = x
        seen.update({name: jnp.stack(values) for name, values in recorded.items()})
        return x

    return trunk


def _place(quantity: str) -> tuple[int, str]:
    """Where a quantity comes in a table: in the order of the network's pass."""
    return KINDS.index(quantity.partition(":")[0]), quantity


def _small(config: Config, width: int) -> Config:
    """The config with a small network of this width, few tokens, scenes, and a rate that is constant from the first step."""
    c, rate = (
        config.model,
        config.train.learning_rate * (config.train.base_width or config.model.width) / width,
    )
    modalities = {
        name: replace(
            m, latent_channels=0, autoencoder="", detokenizer_layers=min(m.detokenizer_layers, 1)
        )
        for name, m in config.modalities.items()
    }
    model = replace(
        c,
        width=HEAD_DIM * c.heads,
        head_dim=HEAD_DIM,
        num_layers=BLOCKS,
        dtype="float32",
        attention="einsum",
        remat="none",
    )
    train = {
        "steps": 1000,
        "batch": 16,
        "grad_accum_steps": 1,
        "schedule": "wsd",
        "warmup_fraction": 0.0,
        "base_width": width,
        "distill": False,
    }
    small = replace(
        config,
        data=DataConfig(
            resolution=4 * math.lcm(*(m.patch for m in modalities.values())),
            num_scenes=4096,
            sparsity_patterns=config.data.sparsity_patterns,
        ),
        text=TextConfig(text_dropout=config.text.text_dropout),
        modalities=modalities,
        model=replace(model, unroll=1),
        mesh=MeshConfig(),
        train=replace(
            config.train,
            learning_rate=rate,
            init_from="",
            branch_from="",
            allow_missing_modalities=(),
            **train,
        ),
    )
    return scale_width(small, width)


def _batches(config: Config, count: int) -> tuple[list[Any], Any]:
    """Returns batches of scenes, and the text of no caption."""
    from modality_forcing.data.pipeline import train_batches  # loads grain

    encoder = inputs.build_text_encoder(config)
    data = config.data
    batches = train_batches(
        inputs.open_source(config),
        encoder,
        batch=config.train.batch,
        seed=config.seed,
        resolution=data.resolution,
        sparsity=data.sparsity_patterns or None,
    )
    try:
        return [next(batches) for _ in range(count)], encoder.null()
    finally:
        batches.close()


def _probe(config: Config, batch: Any) -> tuple[Any, Any, Any]:
    """Returns what the network is looked at with, the same at every width and step: noisy tokens, their levels, text."""
    noisy, t = {}, {}
    for i, (name, modality) in enumerate(base.build(config).items()):
        x0, observed = modality.encode(batch)
        t[name] = jnp.roll(jnp.linspace(0.1, 0.9, len(x0)), 3 * i)
        noise = jax.random.normal(
            jax.random.fold_in(rng.stream(config.seed, "probe", 0), i), x0.shape
        )
        noisy[name] = flow.corrupt(x0, noise, t[name], observed)
    return noisy, t, jax.tree.map(jnp.asarray, batch["text"])


def slopes(rows: Sequence[Row]) -> list[Slope]:
    """Returns the slope of log scale over log width, by least squares, for each quantity and step."""
    found: dict[tuple[bool, int, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.transfer, row.step, row.quantity), []).append(row)
    return [
        Slope(*key, _slope([r.width for r in told], [r.scale for r in told]))
        for key, told in found.items()
    ]


def _slope(widths: Sequence[int], scales: Sequence[float]) -> float:
    if not any(scales):  # heads and gates start at zero
        return 0.0
    if not all(0 < scale < math.inf for scale in scales):
        return math.nan
    return float(np.polyfit(np.log(widths), np.log(scales), 1)[0])


def table(rows: Sequence[Row], found: Sequence[Slope]) -> str:
    """Returns a Markdown table of slopes with a verdict: each quantity after each step, rates scaled and not."""
    names, widths = (
        list(dict.fromkeys(s.quantity for s in found)),
        sorted({row.width for row in rows}),
    )
    told = {(s.transfer, s.step, s.quantity): s for s in found}
    scale = {(r.transfer, r.width, r.step, r.quantity): r.scale for r in rows}
    head = [
        "quantity",
        f"scale at {widths[0]}",
        f"at {widths[-1]}",
        *(f"slope, step {k}" for k in range(STEPS + 1)),
        "verdict",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (STEPS + 3) + "|---|"]
    for transfer in (True, False):
        lines.append(
            f"| *rates {'by width' if transfer else 'as at ' + str(widths[0])}*{' |' * (STEPS + 4)} |"
        )
        for name in names:
            each = [told[transfer, k, name] for k in range(STEPS + 1)]
            ends = [
                f"{scale[transfer, width, STEPS, name]:.3g}" for width in (widths[0], widths[-1])
            ]
            verdict = "flat" if all(s.flat for s in each) else "not flat"
            lines.append(
                "| " + " | ".join([name, *ends, *(f"{s.slope:+.2f}" for s in each), verdict]) + " |"
            )
    bad = [s for s in found if s.transfer and not s.flat]
    worst = max(
        (s for s in found if s.transfer),
        key=lambda s: abs(s.slope) if math.isfinite(s.slope) else math.inf,
    )
    verdict = (
        f"all slopes within {TOLERANCE}" if not bad else f"{len(bad)} slopes beyond {TOLERANCE}"
    )
    lines += [
        "",
        f"{'NOT ' * bool(bad)}FLAT: {verdict}; the steepest is {worst.quantity} at step {worst.step}, {worst.slope:+.3f}",
    ]
    return "\n".join(lines)


def draw(rows: Sequence[Row]) -> Figure:
    """Returns the figure: scale over width at the first steps, rates by width above and unscaled below."""
    drawn = figures.figure(2, height=3.7)
    panels = drawn.subplots(2, len(DRAWN), sharex=True, sharey=True)
    for transfer, line in zip((True, False), panels, strict=True):
        for step, axes in zip(DRAWN, line, strict=True):
            _panel(axes, [r for r in rows if (r.transfer, r.step) == (transfer, step)])
            how = "rates by width" if transfer else "one rate for all widths"
            axes.set_title(
                f"{how}, " + (f"after {step} step{'s' * (step > 1)}" if step else "at the start")
            )
        line[0].set_ylabel("root mean square")
    for axes in panels[-1]:
        axes.set_xlabel("width")
    handles, labels = panels[0, -1].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return drawn


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    """A line a quantity; those of one kind share a colour, later ones are darker."""
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.quantity for row in rows):
        kinds.setdefault(name.partition(":")[0], []).append(name)
    for i, (kind, names) in enumerate(kinds.items()):
        for j, name in enumerate(names):
            told = [(r.width, r.scale) for r in rows if r.quantity == name and r.scale > 0]
            x, y = zip(*told, strict=True) if told else ((), ())
            label = kind if j == len(names) - 1 else None
            alpha = (j + 1) / len(names)
            axes.plot(
                x,
                y,
                color=figures.COLOURS[i],
                marker=figures.MARKERS[i],
                alpha=alpha,
                label=label,
                markeredgewidth=0,
            )
    widths = sorted({row.width for row in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
