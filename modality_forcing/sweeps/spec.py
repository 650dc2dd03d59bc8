"""A sweep as an expression over configs: points made by product, zip and chain; at each, a cell of
training runs and a score.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from modality_forcing import config_file
from modality_forcing.config import Config, to_dict
from modality_forcing.errors import UserError
from modality_forcing.train.optim import branch_point
from modality_forcing.train.width_scaling import with_horizon
from modality_forcing.train.workdir import NON_IDENTITY_KEYS, SCHEDULE_KEYS
from modality_forcing.tree import differences

Value = str | int | float | bool
Point = Mapping[str, Value]
Points = tuple[Point, ...]


def axis(name: str, *values: Value) -> Points:
    """Returns a point for each value of one name."""
    return tuple({name: value} for value in values)


def product(*parts: Points) -> Points:
    """Returns every combination of a point of each part; the last part changes fastest. UserError
    for a name in two parts.
    """
    points: Points = ({},)
    for part in parts:
        points = tuple(_join(a, b) for a in points for b in part)
    return points


def zip_axes(*parts: Points) -> Points:
    """Returns the first points of all parts joined, then the second ones...; UserError if one part
    has more than another.
    """
    if len({len(part) for part in parts}) > 1:
        told = " and ".join(str(len(part)) for part in parts)
        raise UserError(
            f"zip_axes parts have {told} points", hint="give each as many as the others"
        )
    points: list[Point] = []
    for row in zip(*parts, strict=True):
        joined: Point = {}
        for point in row:
            joined = _join(joined, point)
        points.append(joined)
    return tuple(points)


def chain(*parts: Points) -> Points:
    """Returns the points of the first part, then those of the second..."""
    return tuple(point for part in parts for point in part)


def _join(a: Point, b: Point) -> Point:
    if both := set(a) & set(b):
        raise UserError(
            f"two parts of the sweep have the axis {min(both)!r}", hint="give it in one of them"
        )
    return {**a, **b}


@dataclass(frozen=True)
class Run:
    """One training run: its part in the cell ("pretraining", "forcing"), its config, and the run
    whose weights it starts from.

    trunk: a longer run that has its constant phase in common with this one, which then branches
    off: the same weights as from step 0, to the bit, in fewer steps (train/branch.py).
    config.train.init_from and branch stay empty: where other runs lie is known once there is a
    folder (`config_in`). Raises UserError for a trunk that differs in more than its length.
    """

    phase: str
    config: Config
    init_from: Run | None = None
    branch_from: Run | None = None

    def __post_init__(self):
        for name in ("init_from", "branch_from"):
            if getattr(self.config.train, name):
                raise UserError(
                    f"train.{name} is set in a run of a sweep",
                    hint=f"name that run with Run(..., {name}=...)",
                )
        if self.branch_from is not None:
            theirs, mine = (
                _without_keys(to_dict(run.config), (*NON_IDENTITY_KEYS, *SCHEDULE_KEYS))
                | {"init_from": run.init_from.digest if run.init_from else None}
                for run in (self.branch_from, self)
            )
            if told := differences(theirs, mine):
                hint = "a branch has all of its trunk's config but its length"
                raise UserError(
                    f"a run of {self.phase} is no branch of its trunk ({told})", hint=hint
                )

    @cached_property
    def branch_step(self) -> int:
        """The step that it branches off at, 0 without a trunk."""
        return (
            branch_point(self.config.train, self.branch_from.config.train)
            if self.branch_from
            else 0
        )

    @cached_property
    def digest(self) -> str:
        """What tells this run from others: all that its weights depend on, the runs before it
        included.

        How it is watched and laid out (`train.workdir.NON_IDENTITY_KEYS`) is not among it, as for
        a workdir that goes on; nor is a trunk.
        """
        told = [
            _without_keys(to_dict(self.config)),
            self.init_from.digest if self.init_from else None,
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """The name of its workdir, below `runs/` of a sweep's folder."""
        return f"{self.phase}_w{self.config.model.width}_{self.config.train.steps}_{self.digest}"

    @property
    def examples(self) -> int:
        """How many it sees, each as often as it comes."""
        return self.config.train.steps * self.config.train.batch

    def lineage(self) -> tuple[Run, ...]:
        """Returns the runs that lead to this one, and this one."""
        return (*(self.init_from.lineage() if self.init_from else ()), self)

    def dependencies(self) -> tuple[Run, ...]:
        """Returns all runs that must be there for this one, and this one, in order: `chain`, and
        what those branch off.
        """
        before = self.branch_from or self.init_from  # a trunk starts from the same run
        return (*(before.dependencies() if before else ()), self)

    def config_in(self, runs: Path) -> Config:
        """Returns its config with train.init_from at the workdir of the run before it."""
        if self.init_from is None:
            return self.config
        return replace(
            self.config,
            train=replace(self.config.train, init_from=str(runs / self.init_from.folder)),
        )


def _without_keys(
    tree: dict[str, Any], free: tuple[str, ...] = NON_IDENTITY_KEYS, above: str = ""
) -> dict[str, Any]:
    kept = {}
    for key, value in tree.items():
        if (path := f"{above}{key}").startswith(free) or f"{path}." in free:
            continue
        kept[key] = _without_keys(value, free, f"{path}.") if isinstance(value, dict) else value
    return kept


@dataclass(frozen=True)
class Records:
    """Scores a cell on held-out records of its last config: image to depth, and the losses of
    training.

    seed: of those records and of all noise, the same in every cell, so that cells differ in their
    weights alone. draws: noise levels per record behind a loss.
    """

    seed: int = 0
    draws: int = 8


@dataclass(frozen=True)
class Benchmarks:
    """Scores a cell on real benchmarks under a protocol of evaluation/protocols.py, at the model's
    own square view.
    """

    names: str  # "nyuv2,diode"
    root: str  # the folder that they are unpacked in
    protocol: str = "moge"
    samples: int = 1  # merged into one map
    seed: int = 0


@dataclass(frozen=True)
class Cell:
    """One point of the sweep: the last of its runs, which is what is scored."""

    point: Point
    run: Run
    evaluation: Records | Benchmarks

    @property
    def name(self) -> str:
        """Its axes, as a file's name."""
        return (
            re.sub(
                r"[^-+.,=\w]",
                "_",
                ",".join(f"{name}={value}" for name, value in self.point.items()),
            )
            or "cell"
        )

    @cached_property
    def digest(self) -> str:
        """What its row depends on, the code aside."""
        c = self.run.config
        told = [
            self.run.digest,
            type(self.evaluation).__name__,
            asdict(self.evaluation),
            to_dict(c.sample),
            to_dict(c.eval),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

    def runs(self) -> tuple[Run, ...]:
        """Returns its runs, in their order."""
        return self.run.lineage()


@dataclass(frozen=True)
class Sweep:
    """A named list of cells. Raises UserError if there are none, or if two of them are the same."""

    name: str
    cells: tuple[Cell, ...]

    def __post_init__(self):
        if not re.fullmatch(r"[a-z][-a-z0-9]{0,23}", self.name):
            hint = "take at most 24 of a-z, 0-9 and -: launchers name jobs by it"
            raise UserError(f"the sweep's name is {self.name!r}", hint=hint)
        if not self.cells:
            raise UserError(f"sweep {self.name} has no cells", hint="give every axis a value")
        for what in ("name", "digest"):
            seen: dict[str, Cell] = {}
            for cell in self.cells:
                if (other := seen.setdefault(getattr(cell, what), cell)) is not cell:
                    told = f"cells {other.name} and {cell.name} of sweep {self.name} are the same"
                    raise UserError(told, hint="a row must not count twice; drop one of the points")
        for cell in self.cells:
            if len({run.phase for run in cell.runs()}) < len(cell.runs()):
                raise UserError(
                    f"two runs of cell {cell.name} are called the same phase",
                    hint="name them apart",
                )

    def runs(self) -> tuple[Run, ...]:
        """Returns every training run once, a run after the one that it starts from."""
        return tuple(
            {run.digest: run for cell in self.cells for run in cell.run.dependencies()}.values()
        )

    def branch_points(self, run: Run) -> tuple[int, ...]:
        """Returns the steps at which other runs branch off this one."""
        found = {
            other.branch_step
            for other in self.runs()
            if other.branch_from and other.branch_from.digest == run.digest
        }
        return tuple(sorted(found))

    def groups(self) -> tuple[tuple[Cell, ...], ...]:
        """Returns the cells by their first run: those that have a run in common are together."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.run.dependencies()[0].digest, []).append(cell)
        return tuple(map(tuple, found.values()))


def sweep(
    name: str, points: Points, run: Callable[..., Run], evaluation: Records | Benchmarks
) -> Sweep:
    """Returns the sweep whose cell at a point is run(**point): the last of its training runs."""
    return Sweep(name, tuple(Cell(point, run(**point), evaluation) for point in points))


def horizons(
    phase: str, config: Config, examples: Sequence[int], init_from: Run | None = None
) -> dict[int, Run]:
    """Returns the run that sees so many examples, for each number: all branch off the longest
    (train/width_scaling.py: with_horizon).
    """
    longest = max(examples)
    trunk = Run(phase, with_horizon(config, longest), init_from)
    return {
        n: trunk
        if n == longest
        else Run(phase, with_horizon(config, n, trunk=trunk.config), init_from, trunk)
        for n in examples
    }


def partition(found: Sweep, of: int, cost: Callable[[Run], float]) -> tuple[tuple[Cell, ...], ...]:
    """Returns the cells in `of` parts that share no run, about equally dear: the dearest group
    first, to the least busy part.

    A function of its arguments alone, so that `of` machines agree without talking.
    """
    groups = found.groups()
    costs = [
        sum(
            cost(run)
            for run in {r.digest: r for cell in group for r in cell.run.dependencies()}.values()
        )
        for group in groups
    ]
    parts: list[list[int]] = [[] for _ in range(of)]
    load = [0.0] * of
    for i in sorted(range(len(groups)), key=lambda i: -costs[i]):
        least = load.index(min(load))
        parts[least].append(i)
        load[least] += costs[i]
    return tuple(tuple(cell for i in sorted(part) for cell in groups[i]) for part in parts)


def load(spec: str) -> Sweep:
    """Returns the sweep of `path.py` or `path.py:key=value,...`, whose get_sweep(arg) makes it.

    Raises UserError for a missing or broken file and for an argument that it does not take.
    """
    return config_file.call(spec, "get_sweep", Sweep)
