"""What a sweep costs before it starts: FLOPs of every run, those that cells share once, and
chip-hours at a stated MFU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import flops
from modality_forcing.models.flops import Parameters
from modality_forcing.planning.hardware import CHIPS
from modality_forcing.sweeps.spec import Cell, Run, Sweep, load
from modality_forcing.train.state import abstract_model
from modality_forcing.viz.figures import format_count

# Model FLOPs utilisation that a price assumes: what tuned dense models of this size reach on such
# chips as published (about 60% on v5e, 50% on v5p, 45% on v6e and Hopper), 40% where nothing
# comparable is. `mforce plan --config` bounds a real one.
MFU: Mapping[str, float] = {"v5e": 0.60, "v5p": 0.50, "v6e": 0.45, "h100": 0.45, "h200": 0.45}
OTHER_MFU = 0.40
DEFAULT_CHIPS = ("v5e", "v5p", "v6e", "h200")


@dataclass(frozen=True)
class RunPrice:
    """One training run."""

    name: str  # of its folder
    phase: str
    width: int
    params: int  # weights in the trunk's blocks, N
    params_total: int
    examples: int
    steps: int
    flops: int
    cells: int  # that use it


@dataclass(frozen=True)
class ChipPrice:
    """All of a sweep on one kind of chip."""

    chip: str
    mfu: float
    hours: float  # of one chip; a slice of n takes an n-th


@dataclass(frozen=True)
class Price:
    """A sweep's cost: `flops` counts shared runs once and branches from where they begin,
    `flops_unshared` every cell's runs whole.

    Evaluation is not counted.
    """

    sweep: str
    cells: int
    runs: tuple[RunPrice, ...]
    flops: int
    flops_unshared: int
    chips: tuple[ChipPrice, ...]


def run_flops(run: Run, first: int = 0) -> int:
    """Returns the FLOPs of a training run alone, from a step on, by the convention of
    models/flops.py.
    """
    return flops.step_flops(run.config, base.build(run.config)).total * (
        run.config.train.steps - first
    )


def parameters(config: Config) -> Parameters:
    """Returns the counts of weights of a config's network, from shapes alone."""
    return flops.parameters(abstract_model(config, base.build(config))[1])


def price(found: Sweep, chips: Sequence[str] = DEFAULT_CHIPS, mfu: float | None = None) -> Price:
    """Prices a sweep on kinds of chips; mfu: on all of them, instead of `MFU`.

    Raises UserError for an unknown chip, and an MFU that is not above 0 and at most 1.
    """
    if unknown := [name for name in chips if name not in CHIPS]:
        raise UserError(f"unknown chip {unknown[0]!r}", hint=f"choose among {', '.join(CHIPS)}")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(
            f"an MFU of {mfu:g}",
            hint="give a share of the peak, above 0 and at most 1, such as 0.4",
        )
    users = [run.digest for cell in found.cells for run in cell.runs()]
    runs, apart = [], 0
    for run in found.runs():
        weights, spent, cells = (
            _weights(run),
            run_flops(run, run.branch_step),
            users.count(run.digest),
        )
        apart += run_flops(run) * cells
        c = run.config
        told = (
            run.folder,
            run.phase,
            c.model.width,
            weights.trunk,
            weights.total,
            run.examples,
            c.train.steps,
            spent,
            cells,
        )
        runs.append(RunPrice(*told))
    total = sum(run.flops for run in runs)
    shares = {name: MFU.get(name, OTHER_MFU) if mfu is None else mfu for name in chips}
    hours = tuple(
        ChipPrice(name, share, total / (CHIPS[name].bf16_flops * share) / 3600)
        for name, share in shares.items()
    )
    return Price(found.name, len(found.cells), tuple(runs), total, apart, hours)


def _weights(run: Run) -> Parameters:
    return _counted(_Same(run.config))


class _Same:
    """A config by the network that it makes, so that each network is counted once."""

    def __init__(self, config: Config):
        self.config = config
        self.told = repr(
            (config.model, config.text, dict(config.modalities), config.data.resolution)
        )

    def __hash__(self) -> int:
        return hash(self.told)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.told == other.told


@cache
def _counted(same: _Same) -> Parameters:
    return parameters(same.config)


def to_json(p: Price) -> dict[str, Any]:
    """Returns everything as JSON-able values."""
    return asdict(p)


def to_text(p: Price) -> str:
    """Returns what a person reads before booking: kinds of runs by phase and width, then
    chip-hours.
    """
    kinds: dict[tuple[Any, ...], list[RunPrice]] = {}
    for run in p.runs:
        kinds.setdefault((run.phase, run.width, run.params, run.examples, run.cells), []).append(
            run
        )
    head = f"{'phase':12} {'width':>6} {'params':>9} {'examples':>9} {'runs':>5} {'used by':>8} {'FLOPs':>9} {'share':>6}"
    lines = [f"{p.sweep}: {p.cells} cells of {len(p.runs)} training runs", "", head]
    for (phase, width, params, examples, cells), runs in kinds.items():
        spent, used = sum(run.flops for run in runs), f"{cells} cell{'s' * (cells > 1)}"
        sizes = f"{width:>6} {format_count(params):>9} {format_count(examples):>9}"
        lines.append(
            f"{phase:12} {sizes} {len(runs):>5} {used:>8} {spent:9.2e} {spent / p.flops:6.1%}"
        )
    lines += [
        "",
        f"total {p.flops:.3e} FLOPs; without sharing runs {p.flops_unshared:.3e}; evaluation is not counted",
        "",
    ]
    lines.append(f"{'chip':8} {'MFU, assumed':>13} {'chip-hours':>12}")
    lines += [
        f"{c.chip:8} {c.mfu:13.0%} {c.hours:12,.{0 if c.hours >= 100 else 2}f}" for c in p.chips
    ]
    return "\n".join(lines)


LAW_COLUMNS = {"N": "params", "n": "images", "s": "frames"}  # a law's variables among the columns
SCORE_COLUMNS = ("i2d_absrel", "absrel", "loss")  # the first that the rows have is what is fitted


def cell_columns(cell: Cell) -> dict[str, Any]:
    """Returns what a cell's row says of sizes, data and FLOPs: the flat columns that a law is
    fitted to.

    images: examples seen by its runs of a single modality, 0 where there are none; frames: by
    those of several. unique_*: as many of them as are different records, where the config says how
    many there are. flops: of all its training runs.
    """
    runs, last = cell.runs(), cell.run.config
    weights, spent = _counted(_Same(last)), {run.phase: run_flops(run) for run in runs}
    told: dict[str, Any] = {"width": last.model.width, "seed": last.seed}
    told |= {"params": weights.trunk, "params_total": weights.total}
    for name, several in (("images", False), ("frames", True)):
        phases = [run for run in runs if (len(run.config.modalities) > 1) == several]
        told[name] = sum(run.examples for run in phases)
        if all(run.config.data.source == "scenes" for run in runs):
            told[f"unique_{name}"] = sum(
                min(run.examples, run.config.data.num_scenes) for run in phases
            )
    return (
        told | {"flops": sum(spent.values())} | {f"flops_{phase}": n for phase, n in spent.items()}
    )


def run(options: argparse.Namespace) -> int:
    """`mforce plan --sweep`: prints the price and returns 0."""
    found = price(load(options.sweep), options.chip or DEFAULT_CHIPS, options.mfu)
    print(json.dumps(to_json(found), indent=1) if options.json else to_text(found))
    return 0
