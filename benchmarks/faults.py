"""Injects fault after fault into a tiny run and prints what happened, as a table.

python benchmarks/faults.py --tries=20 --only=SIGTERM

Each fault strikes the real command. The run is then resumed, and its final state must equal that of
an undisturbed run to the bit: the checksums of all arrays in the last checkpoint are compared. The
faults of several processes compare with an undisturbed run of as many processes. Full and read-only
disks are mounted, which only root may do; elsewhere their rows say that they were not run.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import data_faults
import disk_faults
import process_faults
from fault_bench import (
    NAMED,
    STOPPED,
    VERDICTS,
    Bench,
    Row,
    Running,
    last_state,
    own_mounts,
    step_done,
    until,
)

from modality_forcing.progress import format_table, print_stderr


def killed(bench: Bench) -> Row:
    """Kill -9 at random moments."""
    return _struck(bench, lambda run, _: run.process.kill(), [-signal.SIGKILL])


def killed_in_save(bench: Bench) -> Row:
    """Kill -9 inside a save."""

    def strike(run: Running, workdir: Path) -> None:
        folder = workdir / "checkpoints"
        before = {path.name for path in folder.glob("*")}

        def saving() -> bool:
            new = [path for path in folder.glob("*") if path.name not in before]
            return any(not (path / "meta/metadata").exists() for path in new)

        until(saving, run)
        run.process.kill()

    return _struck(bench, strike, [-signal.SIGKILL], in_steps=True)


def stopped(bench: Bench) -> Row:
    """SIGTERM, SIGHUP, SIGUSR1 at random moments."""
    return _struck(bench, lambda run, _: os.kill(run.process.pid, bench.rng.choice(NAMED)), [143])


def _struck(
    bench: Bench,
    strike: Callable[[Running, Path], None],
    codes: list[int],
    *,
    in_steps: bool = False,
) -> Row:
    """Strikes runs at random moments, those of the start-up included, until all tries are used."""
    lost: list[int] = []
    struck = runs = 0
    wrong: list[str] = []
    while struck < bench.tries:
        workdir = bench.folder / f"struck{runs}"
        runs += 1
        finished = False
        while not finished and struck < bench.tries:
            run = bench.start(bench.command(workdir))
            if in_steps or bench.rng.random() < 0.7:  # among the steps, where most of the time is
                start = step_done(workdir)
                until(lambda start=start, w=workdir: step_done(w) > start, run)
                time.sleep(bench.rng.uniform(0, 0.5))
            else:
                time.sleep(bench.rng.uniform(0.1, bench.starts_s))
            if run.process.poll() is None:
                strike(run, workdir)
            code = run.wait()
            if finished := code == 0:
                break
            struck += 1
            done = step_done(workdir)
            if code not in codes or "Traceback" in run.output():
                wrong.append(f"code {code}: {run.output()[-300:]}")
            steps = [int(p.parent.parent.name) for p in workdir.glob("checkpoints/*/meta/metadata")]
            lost.append(max(done - max(steps, default=0), 0))
        bench.finish(workdir)
        if not bench.equal(workdir):
            wrong.append("other weights")
        shutil.rmtree(workdir)
    for reason in wrong:
        print_stderr(f"  {reason}")
    happens = f"{struck} times, in {runs} runs: exit code {codes[0]}, resumes to the same bits"
    return Row(happens, f"at most {max(lost)} steps of {bench.steps}", not wrong)


def launched_twice(bench: Bench) -> Row:
    """Two launches at once."""
    workdir = bench.folder / "twice"
    command = bench.command(workdir, train__steps=100000)  # still runs when the second one starts
    first = bench.start(command)
    until(lambda: step_done(workdir) > 0, first)
    second = bench.start(command)
    refused = second.wait() == 2 and "is in use by process" in second.output()
    going_on = first.process.poll() is None
    first.process.terminate()
    ok = refused and going_on and first.wait() == STOPPED
    return Row("the second one is refused with exit code 2", "nothing", ok)


def loader_killed(bench: Bench) -> Row:
    """Kill -9 of a loader process."""
    workdir = bench.folder / "loader"
    run = bench.start(bench.command(workdir, data__workers=2, train__steps=100000))
    until(lambda: step_done(workdir) > 2, run)
    children = subprocess.run(
        ["pgrep", "-P", str(run.process.pid), "-f", "spawn_main"], capture_output=True, text=True
    )
    struck = time.monotonic()
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    code = run.wait()
    seconds = time.monotonic() - struck
    said = run.output().splitlines()[-1]
    ok = code == 1 and bool(re.search(r"loader process.* was killed by SIGKILL", said))
    return Row(f"exit code 1 after {seconds:.0f} s, one line naming it", "since the last save", ok)


def clock_set_back(bench: Bench) -> Row:
    """The clock set back by a day."""
    folder = bench.folder / "clock"
    folder.mkdir()
    patch = (
        "import time\nreal, start = time.time, time.monotonic()\n"
        "time.time = lambda: real() - 86400 * (time.monotonic() - start > 6)\n"
    )
    (folder / "sitecustomize.py").write_text(patch)
    workdir = bench.folder / "backwards"
    run = bench.start(bench.command(workdir, train__save_every_minutes=0.01), FIRST=str(folder))
    code = run.wait()
    ok = code == 0 and bench.equal(workdir)
    return Row("the run continues; rows keep their order", "nothing", ok)


FAULTS = (
    killed,
    killed_in_save,
    stopped,
    launched_twice,
    loader_killed,
    clock_set_back,
    *disk_faults.FAULTS,
    *data_faults.FAULTS,
    *process_faults.FAULTS,
)


def main() -> int:
    """Prints the table; exit code 1 if a row is not ok."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # pyright: ignore
    parser.add_argument("--tries", type=int, default=20, help="strikes a fault (%(default)s)")
    parser.add_argument("--steps", type=int, default=150, help="of a run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", default="", help="faults whose names have one of these in them, as disk,clock"
    )
    options = parser.parse_args()
    own_mounts()
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder), options.tries, options.steps, random.Random(options.seed))
        bench.finish(bench.folder / "undisturbed")
        bench.ends[1] = last_state(bench.folder / "undisturbed")
        start, again = time.monotonic(), bench.start(bench.command(bench.folder / "again"))
        until(lambda: step_done(bench.folder / "again") > 0, again)
        bench.starts_s = time.monotonic() - start
        again.wait()
        assert bench.equal(bench.folder / "again"), "two undisturbed runs differ"
        for fault in FAULTS:
            name = str(fault.__doc__).rstrip(".")
            if not any(part in name.lower() for part in options.only.lower().split(",")):
                continue
            row = fault(bench)
            rows.append((name, row.happens, row.lost, VERDICTS[row.ok]))
            print_stderr("  ".join(rows[-1]))
    print(format_table(rows, header=("fault", "what happens", "work lost", "")))
    return 1 if any(row[-1] == VERDICTS[False] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
