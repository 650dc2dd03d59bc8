"""The cost of a sweep before it starts: FLOPs, and chip-hours at an assumed MFU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from modality_forcing.chips import CHIPS
from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import flops
from modality_forcing.models.flops import Parameters
from modality_forcing.progress import format_table
from modality_forcing.sweeps.spec import Cell, Run, Sweep
from modality_forcing.train.state import abstract_model
from modality_forcing.train.throughput import step_flops
from modality_forcing.tree import JsonObject
from modality_forcing.viz.figures import format_count

# Assumed model FLOPs utilization: published values of tuned dense models of this size (about 60% on
# v5e, 50% on v5p, 45% on v6e and Hopper), 40% where nothing comparable is published.
# `mforce plan --config` computes a bound.
MFU: Mapping[str, float] = {"v5e": 0.60, "v5p": 0.50, "v6e": 0.45, "h100": 0.45, "h200": 0.45}
OTHER_MFU = 0.40
DEFAULT_CHIPS = ("v5e", "v5p", "v6e", "h200")


@dataclass(frozen=True)
class RunPrice:
    """One training run."""

    name: str  # its folder
    phase: str
    width: int
    params: int  # weights in the trunk's blocks, N
    params_total: int
    examples: int
    steps: int
    flops: int
    cells: int  # the number that use it


@dataclass(frozen=True)
class ChipPrice:
    """The time of a sweep on one kind of chip."""

    chip: str
    mfu: float
    hours: float  # for one chip; n chips take 1/n of it


@dataclass(frozen=True)
class Price:
    """The cost of a sweep's training; evaluation is not counted.

    `flops` counts shared runs once and branches from their branch step on; `flops_unshared` counts
    every run of every cell from step 0.
    """

    sweep: str
    cells: int
    runs: tuple[RunPrice, ...]
    flops: int
    flops_unshared: int
    chips: tuple[ChipPrice, ...]


def run_flops(run: Run, first: int = 0) -> int:
    """Returns the FLOPs of a training run from step `first` on, counted as in models/flops.py."""
    return step_flops(run.config) * (run.config.train.steps - first)


# By network: the many runs of a sweep have few networks.
_PARAMETERS: dict[str, Parameters] = {}


def parameters(config: Config) -> Parameters:
    """Returns the numbers of parameters of a config's network, from shapes alone."""
    network = config.model, config.text, dict(config.modalities), config.data.resolution
    key = repr(network)
    if key not in _PARAMETERS:
        _PARAMETERS[key] = flops.parameters(abstract_model(config, base.build(config))[1])
    return _PARAMETERS[key]


def price(sweep: Sweep, chips: Sequence[str] = DEFAULT_CHIPS, mfu: float | None = None) -> Price:
    """Returns the price of a sweep on kinds of chips. `mfu` replaces that of every chip.

    Raises UserError for an unknown chip, or an MFU that is not above 0 and at most 1.
    """
    if unknown := [name for name in chips if name not in CHIPS]:
        raise UserError(f"unknown chip {unknown[0]!r}", hint=f"choose from {', '.join(CHIPS)}")
    if mfu is not None and not 0 < mfu <= 1:
        hint = "give a share of the peak, above 0 and at most 1, such as 0.4"
        raise UserError(f"an MFU of {mfu:g}", hint=hint)
    uses = Counter(run.digest for cell in sweep.cells for run in cell.runs())
    runs = tuple(_run_price(run, uses[run.digest]) for run in sweep.runs())
    total = sum(run.flops for run in runs)
    unshared = sum(run_flops(run) * uses[run.digest] for run in sweep.runs())
    prices = []
    for name in dict.fromkeys(chips):
        share = MFU.get(name, OTHER_MFU) if mfu is None else mfu
        prices.append(ChipPrice(name, share, total / (CHIPS[name].bf16_flops * share) / 3600))
    return Price(sweep.name, len(sweep.cells), runs, total, unshared, tuple(prices))


def _run_price(run: Run, cells: int) -> RunPrice:
    weights = parameters(run.config)
    return RunPrice(
        name=run.folder,
        phase=run.phase,
        width=run.config.model.width,
        params=weights.trunk,
        params_total=weights.total,
        examples=run.examples,
        steps=run.config.train.steps,
        flops=run_flops(run, run.branch_step),
        cells=cells,
    )


def to_json(p: Price) -> JsonObject:
    """Returns the price as JSON values."""
    return asdict(p)


def to_text(p: Price) -> str:
    """Returns two tables: runs grouped by phase, width and length, and chip-hours."""
    kinds: dict[tuple[object, ...], list[RunPrice]] = {}
    for run in p.runs:
        key = (run.phase, run.width, run.params, run.examples, run.cells)
        kinds.setdefault(key, []).append(run)
    rows = []
    for runs in kinds.values():
        kind, spent = runs[0], sum(run.flops for run in runs)
        sizes = kind.phase, kind.width, format_count(kind.params), format_count(kind.examples)
        used = f"{kind.cells} cell{'s' * (kind.cells > 1)}"
        rows.append((*sizes, len(runs), used, f"{spent:.2e}", f"{spent / p.flops:.1%}"))
    header = ("phase", "width", "params", "examples", "runs", "used by", "FLOPs", "share")
    chips = []
    for c in p.chips:
        digits = 0 if c.hours >= 100 else 2
        chips.append((c.chip, f"{c.mfu:.0%}", f"{c.hours:,.{digits}f}"))
    return "\n".join(
        [
            f"{p.sweep}: {p.cells} cells of {len(p.runs)} training runs",
            "",
            format_table(rows, header),
            "",
            f"total {p.flops:.3e} FLOPs; without sharing runs {p.flops_unshared:.3e}; "
            "evaluation is not counted",
            "",
            format_table(chips, ("chip", "MFU, assumed", "chip-hours")),
        ]
    )


LAW_COLUMNS = {"N": "params", "n": "images", "s": "frames"}  # a law's variables and their columns
SCORE_COLUMNS = ("i2d_absrel", "absrel", "loss")  # a law is fitted to the first that rows have


def cell_columns(cell: Cell) -> JsonObject:
    """Returns the columns of a cell's row on size, data and FLOPs.

    images, frames: examples seen in pretraining (one modality) and post-training (several), repeats
    included. unique_images, unique_frames: without repetitions, if the config says how many records
    there are. flops: of all its training runs.
    """
    runs, last = cell.runs(), cell.run.config
    weights, spent = parameters(last), {f"flops_{run.phase}": run_flops(run) for run in runs}
    columns: JsonObject = {"width": last.model.width, "seed": last.seed}
    columns |= {"params": weights.trunk, "params_total": weights.total}
    is_counted = all(run.config.data.source == "scenes" for run in runs)
    for name, several in (("images", False), ("frames", True)):
        phases = [run for run in runs if (len(run.config.modalities) > 1) == several]
        columns[name] = sum(run.examples for run in phases)
        if is_counted:
            unique = (min(run.examples, run.config.data.num_scenes) for run in phases)
            columns[f"unique_{name}"] = sum(unique)
    return columns | {"flops": sum(spent.values())} | spent
