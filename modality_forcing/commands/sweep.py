"""`mforce sweep`: trains and scores the cells of a sweep, or prints commands for many machines."""

from __future__ import annotations

import argparse
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from modality_forcing import distributed
from modality_forcing.commands.arguments import path_option, positive_int, renamed_option, shard_of
from modality_forcing.errors import UserError
from modality_forcing.paths import require_dir
from modality_forcing.progress import print_stderr

if TYPE_CHECKING:  # jax is imported only when the work starts
    from modality_forcing.sweeps.run import Failure
    from modality_forcing.sweeps.spec import Sweep
    from modality_forcing.sweeps.workdir import SweepDir

LAUNCHERS = ("local", "tpu_vm", "gke", "slurm")
EXAMPLES = """examples:
  mforce plan --sweep=configs/sweep_paper.py                  # its cost
  mforce sweep --config=configs/sweep_scenes.py --workdir=runs/scenes           # start or resume
  mforce sweep --config=configs/sweep_scenes.py --workdir=runs/scenes --status
  mforce sweep --config=configs/sweep_paper.py --workdir=/gcs/bucket/paper --launcher=gke \\
      --jobs=12 --launcher-options='--cluster=C --topology=v5p:4x4x4 --image=IMAGE'
                                                              # prints one command per job

Finished cells are skipped, failed cells are tried again, interrupted cells resume from their last
checkpoint. Runs that cells share are trained once. rows.jsonl has one row per cell, identical
however often the sweep was interrupted; rows.csv has seconds as well; report.html has the curves
and the fitted law.
Exit code 1: a cell failed. 2: all failed cells would fail again."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    config = "a file with get_sweep(arg), e.g. configs/sweep_scenes.py"
    add("--config", required=True, metavar="FILE[:ARG]", help=config)
    add("--workdir", type=path_option, required=True, help="folder of the runs, rows and locks")
    shard = "job I of N, from 0: one of N parts that have no training run in common"
    add("--shard", type=shard_of, metavar="I/N", help=shard)
    renamed_option(parser, "--part", "--shard")
    add("--dry-run", action="store_true", help="list what is left and exit")
    add("--status", action="store_true", help="print a table of the cells, plot curves and exit")
    launcher = "others print the commands of launch/ (%(default)s)"
    add("--launcher", choices=LAUNCHERS, default="local", help=launcher)
    jobs = "for a launcher: the number of shards (one per group of cells that share runs)"
    add("--jobs", type=positive_int, metavar="N", help=jobs)
    options = "for a launcher: its own options, the same for every job"
    add("--launcher-options", default="", metavar="'...'", help=options)


def main(options: argparse.Namespace) -> int:
    """Runs the command; returns 0, or 1 or 2 if cells failed.

    Raises UserError for options that exclude each other.
    """
    local = options.launcher == "local"
    if local and not (options.status or options.dry_run):
        distributed.initialize()
    from modality_forcing.sweeps import spec
    from modality_forcing.sweeps.price import run_flops

    if local and (options.jobs or options.launcher_options):
        what = "--jobs and --launcher-options are for a launcher"
        raise UserError(what, hint="give --launcher=slurm, tpu_vm or gke as well")
    if not local and (options.shard or options.status):
        what = f"--launcher={options.launcher} makes the shards itself"
        raise UserError(what, hint="leave --shard and --status out")
    if options.status:
        require_dir(options.workdir, "check --workdir, or start the sweep without --status")
    sweep = spec.load(options.config)
    if not local:
        print("\n".join(commands(options, sweep, options.jobs or len(sweep.groups()))))
        return 0
    index, count = options.shard or (0, 1)
    cells = sweep.cells if count == 1 else spec.partition(sweep, count, run_flops)[index]

    from modality_forcing.sweeps import status
    from modality_forcing.sweeps.run import work
    from modality_forcing.sweeps.workdir import SweepDir

    folder = SweepDir(sweep, options.workdir)
    if options.status or options.dry_run:
        print((status.status if options.status else status.dry_run)(folder, cells))
        if options.status:
            _write_curves(folder)
        return 0
    failed = work(folder, cells, _log)
    if not distributed.is_primary():
        return 1 if failed else 0
    done = sum(folder.row(cell) is not None for cell in cells)
    print(f"{done} of {len(cells)} cells are done; rows in {options.workdir / 'rows.jsonl'}")
    _write_report(folder)
    return _report_failures(failed, options.workdir / "failed")


def commands(options: argparse.Namespace, sweep: Sweep, jobs: int) -> list[str]:
    """Returns the launcher's command for each shard, to run in a clone.

    Raises UserError for more jobs than groups of cells.
    """
    groups = len(sweep.groups())
    if jobs > groups:
        what = f"--jobs={jobs}, but sweep {sweep.name} has {groups} groups of cells"
        raise UserError(what, hint=f"cells of a group share runs: ask for at most {groups}")
    try:
        own = shlex.split(options.launcher_options)
    except ValueError as error:
        what = f"--launcher-options cannot be read ({error})"
        raise UserError(what, hint="quote them as for a shell") from None
    dry = ["--dry-run"] if options.dry_run else []
    common = ["sweep", f"--config={options.config}", f"--workdir={options.workdir}"]
    lines = []
    for i in range(jobs):
        launch = ["python", f"launch/{options.launcher}.py", f"--name=sweep-{sweep.name}-{i}"]
        lines.append(shlex.join([*launch, *dry, *own, "--", *common, f"--shard={i}/{jobs}"]))
    return lines


def _write_report(folder: SweepDir) -> None:
    """Writes the report of all rows; without depth scores, as in text-to-image, there is none."""
    from modality_forcing.sweeps import curves, report

    rows, found = [row for _, row in folder.rows()], curves.read_curves(folder)
    with suppress(UserError):
        print(f"report in {report.write(folder.path, folder.sweep.name, rows, found)}")


def _write_curves(folder: SweepDir) -> None:
    """Writes the early figure, if runs evaluate while training (eval.every)."""
    from modality_forcing.sweeps import curves

    if found := curves.read_curves(folder):
        path = curves.write(found, folder.path / "curves")[0]
        print(f"held-out losses so far in {path}")


def _report_failures(failed: dict[str, Failure], logs: Path) -> int:
    """Prints the failed cells and returns the exit code."""
    for name, failure in failed.items():
        print_stderr(f"failed: {name}: {failure.line} ({logs / f'{name}.log'})")
    if not failed:
        return 0
    return 2 if all(failure.mistake for failure in failed.values()) else 1


def _log(line: str) -> None:
    if distributed.is_primary():
        print_stderr(f"sweep: {line}")
