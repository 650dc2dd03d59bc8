"""The coordinate check: whether activations keep their scale as the network grows wider."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

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
from modality_forcing.modalities.base import Batch
from modality_forcing.models.blocks import Block, Segments, Stack
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
BLOCKS = 4  # the residual stream is measured after each quarter of them
HEAD_DIM = 32  # so that the narrowest network has several heads
TOLERANCE = 0.1  # of a slope: 1.23 times from width 128 to 1024. Unscaled rates give about 1.
KINDS = ("tokens", "modulation", "stream", "attention", "mlp", "prediction")
PLOTTED_STEPS = (0, 1, STEPS)

DEFAULT = Config(
    modalities={"image": ModalityConfig(patch=8, noise=NoiseConfig(timestep_shift=0.0))},
    model=ModelConfig(width=96, mlp_dim=288, heads=4, kv_heads=2, head_dim=24),
    train=TrainConfig(learning_rate=3e-3, t_min=0.3),
)
Probe = tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]  # x_t, t, text


@dataclass(frozen=True)
class Row:
    """The root mean square of one quantity after some steps, over a batch and all seeds."""

    transfer: bool  # whether learning rates scale with the width
    width: int
    step: int
    quantity: str
    scale: float


@dataclass(frozen=True)
class Slope:
    """The power of the width by which a scale grows; 0 where the scale is 0 at every width."""

    transfer: bool
    step: int
    quantity: str
    slope: float

    @property
    def flat(self) -> bool:
        """Whether the scale does not depend on the width (NaN is not flat)."""
        return abs(self.slope) <= TOLERANCE


def check(
    config: Config = DEFAULT,
    out: Path | None = None,
    widths: Sequence[int] = WIDTHS,
    seeds: int = 2,
) -> bool:
    """Prints a table, plots <out>/coord_check.png and .svg, and returns whether all is flat."""
    rows = measure(config, widths, seeds)
    found = slopes(rows)
    print(table(rows, found))
    if out is not None:
        with figures.style():
            paths = figures.save(plot(rows), out / "coord_check")
        print("\n".join(map(str, paths)))
    return all(slope.flat for slope in found if slope.transfer)


def measure(config: Config = DEFAULT, widths: Sequence[int] = WIDTHS, seeds: int = 2) -> list[Row]:
    """Trains at every width, with learning rates scaled and unscaled, and returns all scales.

    The config gives the modalities and the optimizer, at the learning rate of matrices at the
    narrowest width, where both kinds of runs are equal. The network is small: 4 blocks of
    32-channel heads, about 16 tokens a modality of synthetic scenes.
    Raises UserError for widths that make no whole heads, or fewer than two widths.
    """
    widths = sorted(set(widths))
    if len(widths) < 2:
        hint = f"take several, such as {', '.join(map(str, WIDTHS))}"
        raise UserError("one width shows no slope", hint=hint)
    narrow, rows = _small(config, widths[0]), []
    configs = [scale_width(narrow, width) for width in widths]
    batches, null_text = _batches(narrow, seeds * STEPS + 1)
    for width, wide in zip(widths, configs, strict=True):
        squares = _mean_squares(wide, batches, null_text, seeds)
        for (transfer, step), values in squares.items():
            rms = jax.tree.map(lambda *x: math.sqrt(np.mean(x)), *values)
            rows += [
                Row(transfer, width, step, name, rms[name]) for name in sorted(rms, key=_order)
            ]
    return rows


def _mean_squares(
    config: Config, batches: Sequence[Batch], null_text: dict[str, np.ndarray], seeds: int
) -> dict[tuple[bool, int], list[dict[str, jax.Array]]]:
    """The mean squares of each seed, by whether rates are scaled and by step."""
    modalities = base.build(config)
    graph = abstract_model(config, modalities)[0]
    probe = _probe(config, batches[-1])
    look = jax.jit(partial(pass_mean_squares, graph))
    unscaled = replace(config, train=replace(config.train, base_width=0))
    runs = {True: config, False: unscaled}
    steps = {transfer: make_step(c, modalities, graph, null_text) for transfer, c in runs.items()}
    found = {(transfer, k): [] for transfer in runs for k in range(STEPS + 1)}
    for seed in range(seeds):
        fresh = init_params(replace(config, seed=seed), modalities)
        for transfer, c in runs.items():
            state = init_state(c, fresh)
            found[transfer, 0].append(look(state.params, *probe))
            for k in range(STEPS):
                state, _ = steps[transfer](state, batches[seed * STEPS + k])
                found[transfer, k + 1].append(look(state.params, *probe))
    return found


def pass_mean_squares(
    graph: nnx.GraphDef,
    params: Params,
    noisy: dict[str, jax.Array],
    t: dict[str, jax.Array],
    text: dict[str, jax.Array],
) -> dict[str, Float[Array, ""]]:
    """Returns the mean square of every quantity in one pass through a network."""
    network, seen = nnx.merge(graph, params), {}
    # The network's own pass, with a trunk that runs its blocks one by one and records them.
    object.__setattr__(network, "trunk", _recording(network.trunk, seen))
    seen |= {f"prediction: {name}": y for name, y in network(noisy, t, text).items()}
    return {name: jnp.mean(jnp.square(x)) for name, x in seen.items()}


def _recording(stack: Stack, seen: dict[str, Array]) -> Callable[..., Array]:
    def trunk(x: Array, modulation: Array, segments: Segments, angles: Array) -> Array:
        graph, weights = nnx.split(stack.layers)
        seen["tokens"], seen["modulation"] = x, modulation
        recorded: dict[str, list[Array]] = {"attention": [], "mlp": []}
        for i in range(stack.depth):
            block = cast(Block, nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], weights)))
            block.record = lambda name, y: recorded[name].append(y)
            x = block(x, modulation, segments, angles)
            if (i + 1) * 4 % stack.depth == 0:
                seen[f"stream: {(i + 1) * 4 // stack.depth}/4"] = x
        seen.update({name: jnp.stack(values) for name, values in recorded.items()})
        return x

    return trunk


def _order(quantity: str) -> tuple[int, str]:
    """Sorts quantities in the order of the network's pass."""
    return KINDS.index(quantity.partition(":")[0]), quantity


def _small(config: Config, width: int) -> Config:
    """The config with a small network, few tokens, scenes, and a constant learning rate."""
    c = config.model
    rate = config.train.learning_rate * (config.train.base_width or c.width) / width
    modalities = {
        name: replace(
            m, latent_channels=0, autoencoder="", detokenizer_layers=min(m.detokenizer_layers, 1)
        )
        for name, m in config.modalities.items()
    }
    model = replace(c, width=HEAD_DIM * c.heads, head_dim=HEAD_DIM, num_layers=BLOCKS, unroll=1)
    train = replace(config.train, steps=1000, batch=16, grad_accum_steps=1, base_width=width)
    train = replace(train, learning_rate=rate, schedule="wsd", warmup_fraction=0.0, distill=False)
    small = replace(
        config,
        data=DataConfig(
            resolution=4 * math.lcm(*(m.patch for m in modalities.values())),
            num_scenes=4096,
            sparsity_patterns=config.data.sparsity_patterns,
        ),
        text=TextConfig(text_dropout=config.text.text_dropout),
        modalities=modalities,
        model=replace(model, dtype="float32", attention="einsum", remat="none"),
        mesh=MeshConfig(),
        train=replace(train, init_from="", branch_from="", allow_missing_modalities=()),
    )
    return scale_width(small, width)


def _batches(config: Config, count: int) -> tuple[list[Batch], dict[str, np.ndarray]]:
    """Batches of scenes, and the text of an empty caption."""
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


def _probe(config: Config, batch: Batch) -> Probe:
    """The network's inputs, equal at every width and step: noisy tokens, noise levels, text."""
    arrays = jax.tree.map(jnp.asarray, batch)
    noisy, t = {}, {}
    for i, (name, modality) in enumerate(base.build(config).items()):
        x0, observed = modality.to_tokens(arrays)
        t[name] = jnp.roll(jnp.linspace(0.1, 0.9, len(x0)), 3 * i)
        noise = jax.random.normal(
            jax.random.fold_in(rng.named_key(config.seed, "probe", 0), i), x0.shape
        )
        noisy[name] = flow.add_noise(x0, noise, t[name], observed)
    return noisy, t, arrays["text"]


def slopes(rows: Sequence[Row]) -> list[Slope]:
    """Returns the slope of log scale over log width for each quantity and step (least squares)."""
    found: dict[tuple[bool, int, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.transfer, row.step, row.quantity), []).append(row)
    return [
        Slope(*key, _slope([r.width for r in group], [r.scale for r in group]))
        for key, group in found.items()
    ]


def _slope(widths: Sequence[int], scales: Sequence[float]) -> float:
    if not any(scales):  # heads and gates start at zero
        return 0.0
    if not all(0 < scale < math.inf for scale in scales):
        return math.nan
    return float(np.polyfit(np.log(widths), np.log(scales), 1)[0])


def table(rows: Sequence[Row], found: Sequence[Slope]) -> str:
    """Returns a Markdown table of slopes after each step, with a verdict on each quantity."""
    names = list(dict.fromkeys(s.quantity for s in found))
    widths = sorted({row.width for row in rows})
    by_key = {(s.transfer, s.step, s.quantity): s for s in found}
    scale = {(r.transfer, r.width, r.step, r.quantity): r.scale for r in rows}
    steps = [f"slope, step {k}" for k in range(STEPS + 1)]
    head = ["quantity", f"scale at {widths[0]}", f"at {widths[-1]}", *steps, "verdict"]
    lines = [_cells(head), "|---" + "|--:" * (STEPS + 3) + "|---|"]
    for transfer, title in ((True, "by width"), (False, f"as at {widths[0]}")):
        lines.append(f"| *rates {title}*{' |' * (STEPS + 4)} |")
        for name in names:
            each = [by_key[transfer, k, name] for k in range(STEPS + 1)]
            ends = [scale[transfer, width, STEPS, name] for width in (widths[0], widths[-1])]
            verdict = "flat" if all(s.flat for s in each) else "not flat"
            values = [*(f"{end:.3g}" for end in ends), *(f"{s.slope:+.2f}" for s in each)]
            lines.append(_cells([name, *values, verdict]))
    scaled = [s for s in found if s.transfer]
    steep = [s for s in scaled if not s.flat]
    worst = max(scaled, key=lambda s: abs(s.slope) if math.isfinite(s.slope) else math.inf)
    verdict = f"FLAT: all slopes within {TOLERANCE}"
    if steep:
        verdict = f"NOT FLAT: {len(steep)} slopes beyond {TOLERANCE}"
    steepest = f"the steepest is {worst.quantity} at step {worst.step}, {worst.slope:+.3f}"
    return "\n".join([*lines, "", f"{verdict}; {steepest}"])


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(rows: Sequence[Row]) -> Figure:
    """Returns the figure: scale over width, with scaled rates above and unscaled ones below."""
    figure = figures.new_figure(2, height=3.7)
    panels = figure.subplots(2, len(PLOTTED_STEPS), sharex=True, sharey=True)
    for transfer, line in zip((True, False), panels, strict=True):
        for step, axes in zip(PLOTTED_STEPS, line, strict=True):
            _panel(axes, [r for r in rows if (r.transfer, r.step) == (transfer, step)])
            how = "rates by width" if transfer else "one rate for all widths"
            axes.set_title(
                f"{how}, " + (f"after {step} step{'s' * (step > 1)}" if step else "at the start")
            )
        line[0].set_ylabel("root mean square")
    for axes in panels[-1]:
        axes.set_xlabel("width")
    handles, labels = panels[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    """One line per quantity; those of one kind share a color, later ones are darker."""
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.quantity for row in rows):
        kinds.setdefault(name.partition(":")[0], []).append(name)
    for i, (kind, names) in enumerate(kinds.items()):
        for j, name in enumerate(names):
            points = [(r.width, r.scale) for r in rows if r.quantity == name and r.scale > 0]
            x, y = zip(*points, strict=True) if points else ((), ())
            label = kind if j == len(names) - 1 else None
            alpha = (j + 1) / len(names)
            axes.plot(
                x,
                y,
                color=figures.COLORS[i],
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
