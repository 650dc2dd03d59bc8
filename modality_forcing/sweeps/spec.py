"""A sweep as an expression over configs: points, their training runs and their evaluation."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, reduce
from pathlib import Path

from modality_forcing import config_file
from modality_forcing.config import Config, to_dict
from modality_forcing.errors import UserError
from modality_forcing.train.optim import branch_point
from modality_forcing.train.width_scaling import with_horizon
from modality_forcing.train.workdir import NON_IDENTITY_KEYS, SCHEDULE_KEYS
from modality_forcing.tree import JsonObject, differences

Value = str | int | float | bool
Point = Mapping[str, Value]
Points = tuple[Point, ...]

# A sweep has three notions of "the same".
# Same run: the configs differ in NON_IDENTITY_KEYS alone (`Run.digest`, resuming a workdir).
# Same constant phase: they may differ in SCHEDULE_KEYS as well (branching off a run).
# Rows that a fit may pool: they agree in the columns laws.table.MUST_MATCH. Those are no config
# keys: configs differ between cells by design; the code, the metric and the noise must not.


def axis(name: str, *values: Value) -> Points:
    """Returns a point for each value of one name."""
    return tuple({name: value} for value in values)


def product(*parts: Points) -> Points:
    """Returns every combination of one point of each part; the last part changes fastest.

    Raises UserError if two parts have the same name.
    """
    points: Points = ({},)
    for part in parts:
        points = tuple(_join(a, b) for a in points for b in part)
    return points


def zip_axes(*parts: Points) -> Points:
    """Joins the first points of all parts, then the second ones, and so on.

    Raises UserError if the parts differ in length or two have the same name.
    """
    if len({len(part) for part in parts}) > 1:
        lengths = " and ".join(str(len(part)) for part in parts)
        hint = "give each as many as the others"
        raise UserError(f"zip_axes parts have {lengths} points", hint=hint)
    return tuple(reduce(_join, row, {}) for row in zip(*parts, strict=True))


def chain(*parts: Points) -> Points:
    """Returns the points of the first part, then those of the second, and so on."""
    return tuple(point for part in parts for point in part)


def _join(a: Point, b: Point) -> Point:
    if both := set(a) & set(b):
        what = f"two parts of the sweep have the axis {min(both)!r}"
        raise UserError(what, hint="give it in one of them")
    return {**a, **b}


@dataclass(frozen=True)
class Run:
    """One training run of a cell.

    config.train.init_from and branch_from stay empty: the paths of other runs are known only in a
    sweep's folder (`config_in`, `SweepDir.config`).

    Args:
      phase: its role in the cell, such as "pretraining" or "forcing".
      config: of the run.
      init_from: the run whose weights it starts from.
      branch_from: its trunk, a longer run with the same constant phase. Branching off it gives
        bitwise the same weights as training from step 0, in fewer steps (train/branch.py).

    Raises UserError if the trunk differs in more than its length.
    """

    phase: str
    config: Config
    init_from: Run | None = None
    branch_from: Run | None = None

    def __post_init__(self):
        for name in ("init_from", "branch_from"):
            if getattr(self.config.train, name):
                hint = f"name that run with Run(..., {name}=...)"
                raise UserError(f"train.{name} is set in a run of a sweep", hint=hint)
        if self.branch_from is not None:
            trunk, branch = self.branch_from._constant_phase(), self._constant_phase()
            if changes := differences(trunk, branch):
                what = f"a run of {self.phase} is no branch of its trunk ({changes})"
                raise UserError(what, hint="only the length may differ from the trunk")

    def _constant_phase(self) -> JsonObject:
        """The part of the config that a trunk and its branches share."""
        config = _remove_keys(_normalized(self.config), (*NON_IDENTITY_KEYS, *SCHEDULE_KEYS))
        return config | {"init_from": self.init_from.digest if self.init_from else None}

    @cached_property
    def branch_step(self) -> int:
        """The step at which it branches off its trunk, 0 without one."""
        if self.branch_from is None:
            return 0
        return branch_point(self.config.train, self.branch_from.config.train)

    @cached_property
    def digest(self) -> str:
        """Identifies the run by all that its weights depend on, the earlier runs included.

        Excluded are NON_IDENTITY_KEYS and the trunk.
        """
        init_from = self.init_from.digest if self.init_from else None
        return _digest([_remove_keys(_normalized(self.config), NON_IDENTITY_KEYS), init_from])

    @property
    def folder(self) -> str:
        """The name of its workdir, below `runs/` of a sweep's folder."""
        return f"{self.phase}_w{self.config.model.width}_{self.config.train.steps}_{self.digest}"

    @property
    def examples(self) -> int:
        """The number of examples seen, repetitions included."""
        return self.config.train.steps * self.config.train.batch

    def lineage(self) -> tuple[Run, ...]:
        """Returns the runs that its weights pass through, itself last."""
        return (*(self.init_from.lineage() if self.init_from else ()), self)

    def dependencies(self) -> tuple[Run, ...]:
        """Returns the runs to train in this order, itself last: `lineage` and its trunks."""
        previous = self.branch_from or self.init_from  # a trunk has the same init_from
        return (*(previous.dependencies() if previous else ()), self)

    def config_in(self, runs: Path) -> Config:
        """Returns its config with train.init_from set to a workdir below `runs`."""
        if self.init_from is None:
            return self.config
        init_from = str(runs / self.init_from.folder)
        return replace(self.config, train=replace(self.config.train, init_from=init_from))


def _remove_keys(tree: JsonObject, removed: tuple[str, ...], parent: str = "") -> JsonObject:
    """Returns a nested dict without the keys that start with one of the prefixes."""
    kept = {}
    for key, value in tree.items():
        path = f"{parent}{key}"
        if path.startswith(removed) or f"{path}." in removed:
            continue
        kept[key] = _remove_keys(value, removed, f"{path}.") if isinstance(value, dict) else value
    return kept


def _normalized(config: Config) -> JsonObject:
    """The config with one spelling of each path, `folder` for `./folder/`; a study may be moved."""

    def normal(path: str) -> str:
        return os.path.normpath(path) if path else ""

    def location(text: str) -> str:
        kind, colon, path = text.partition(":")
        return f"{kind}{colon}{normal(path)}"

    modalities = {
        name: replace(m, autoencoder=location(m.autoencoder))
        for name, m in config.modalities.items()
    }
    data = replace(config.data, root=normal(config.data.root), cache=normal(config.data.cache))
    text = replace(config.text, encoder=location(config.text.encoder))
    return to_dict(replace(config, data=data, text=text, modalities=modalities))


def _digest(content: list[object]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Records:
    """Scores a cell on held-out records of its last config: image to depth, and training losses.

    Args:
      seed: of the records and of all noise, the same in every cell.
      draws: noise levels per record for a loss.
      image_metrics, inception, clip: of t2i, as --metrics, --inception and --clip of evaluate.
    """

    seed: int = 0
    draws: int = 8
    image_metrics: str = ""
    inception: str = ""
    clip: str = ""


@dataclass(frozen=True)
class Benchmarks:
    """Scores a cell on real benchmarks at the square view of the model.

    Args:
      names: comma-separated, such as "nyuv2,diode".
      root: the folder of the unpacked benchmarks.
      protocol: one of evaluation/protocols.py.
      samples: the number of depth maps merged into one.
      seed: of the noise.
    """

    names: str
    root: str
    protocol: str = "moge"
    samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Cell:
    """One point of a sweep, with its last run, which is scored."""

    point: Point
    run: Run
    evaluation: Records | Benchmarks

    @property
    def name(self) -> str:
        """Its values on all axes, as a file name."""
        values = ",".join(f"{name}={value}" for name, value in self.point.items())
        return re.sub(r"[^-+.,=\w]", "_", values) or "cell"

    @cached_property
    def digest(self) -> str:
        """Identifies all that its row depends on, except the code."""
        kind, c = type(self.evaluation).__name__, self.run.config
        own = {k: v for k, v in asdict(self.evaluation).items() if v or k != "clip"}  # it is newer
        options = [own, to_dict(c.sample), {"examples": c.eval.examples, "batch": c.eval.batch}]
        return _digest([self.run.digest, kind, *options])

    def runs(self) -> tuple[Run, ...]:
        """Returns its training runs in order."""
        return self.run.lineage()


@dataclass(frozen=True)
class Sweep:
    """A named list of cells. Raises UserError if it is empty or two cells are the same."""

    name: str
    cells: tuple[Cell, ...]

    def __post_init__(self):
        if not re.fullmatch(r"[a-z][-a-z0-9]{0,23}", self.name):
            hint = "take at most 24 of a-z, 0-9 and -: launchers name jobs by it"
            raise UserError(f"the sweep's name is {self.name!r}", hint=hint)
        if not self.cells:
            raise UserError(f"sweep {self.name} has no cells", hint="give every axis a value")
        for attribute in ("name", "digest"):
            seen: dict[str, Cell] = {}
            for cell in self.cells:
                other = seen.setdefault(getattr(cell, attribute), cell)
                if other is not cell:
                    what = f"cells {other.name} and {cell.name} of sweep {self.name} are the same"
                    raise UserError(what, hint="a row must not count twice; drop one of the points")
        for cell in self.cells:
            if len({run.phase for run in cell.runs()}) < len(cell.runs()):
                what = f"two runs of cell {cell.name} have the same phase"
                raise UserError(what, hint="give them different names")

    def runs(self) -> tuple[Run, ...]:
        """Returns every training run once, after those that it depends on."""
        return _unique_runs(self.cells)

    def branch_points(self, run: Run) -> tuple[int, ...]:
        """Returns the steps at which other runs branch off this one, ascending."""
        steps = {
            other.branch_step
            for other in self.runs()
            if other.branch_from and other.branch_from.digest == run.digest
        }
        return tuple(sorted(steps))

    def groups(self) -> tuple[tuple[Cell, ...], ...]:
        """Returns the cells by their first run; cells of two groups have no run in common."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.run.dependencies()[0].digest, []).append(cell)
        return tuple(map(tuple, groups.values()))


def _unique_runs(cells: Sequence[Cell]) -> tuple[Run, ...]:
    runs = (run for cell in cells for run in cell.run.dependencies())
    return tuple({run.digest: run for run in runs}.values())


def sweep(
    name: str, points: Points, run: Callable[..., Run], evaluation: Records | Benchmarks
) -> Sweep:
    """Returns the sweep with a cell per point, whose last run is run(**point)."""
    return Sweep(name, tuple(Cell(point, run(**point), evaluation) for point in points))


def horizons(
    phase: str, config: Config, examples: Sequence[int], init_from: Run | None = None
) -> dict[int, Run]:
    """Returns a run per number of examples; all branch off the longest (`with_horizon`)."""
    longest = max(examples)
    trunk = Run(phase, with_horizon(config, longest), init_from)
    runs = {longest: trunk}
    for n in examples:
        if n != longest:
            branch = with_horizon(config, n, trunk=trunk.config)
            runs[n] = Run(phase, branch, init_from, trunk)
    return {n: runs[n] for n in examples}


def partition(
    sweep: Sweep, count: int, cost: Callable[[Run], float]
) -> tuple[tuple[Cell, ...], ...]:
    """Divides the cells into parts of about equal cost that have no run in common.

    The most expensive group comes first and goes to the cheapest part so far. The result depends
    on the arguments alone, so that machines agree without communication.
    """
    groups = sweep.groups()
    costs = [sum(cost(run) for run in _unique_runs(group)) for group in groups]
    parts: list[list[int]] = [[] for _ in range(count)]
    load = [0.0] * count
    for i in sorted(range(len(groups)), key=lambda i: -costs[i]):
        cheapest = load.index(min(load))
        parts[cheapest].append(i)
        load[cheapest] += costs[i]
    return tuple(tuple(cell for i in sorted(part) for cell in groups[i]) for part in parts)


def load(spec: str) -> Sweep:
    """Returns the sweep made by get_sweep(arg) of `path.py` or `path.py:key=value,...`.

    Raises UserError for a missing or broken file and for an argument that it does not take.
    """
    return config_file.call(spec, "get_sweep", Sweep)
