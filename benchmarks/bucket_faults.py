"""Injects faults into runs whose workdir is in a bucket, and prints what happened, as a table.

python benchmarks/bucket_faults.py --only=stalls

The bucket is a storage emulator in this process (extra `test`), with injected failures. Runs of one
process must end in the state of an undisturbed run on a disk, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fault_bench import STOPPED, Bench, Row, Running, last_state, several, until  # noqa: E402

from modality_forcing import locks, paths  # noqa: E402
from modality_forcing.progress import format_table, print_stderr  # noqa: E402
from modality_forcing.train import checkpoint  # noqa: E402
from modality_forcing.train.metric_rows import read_metrics  # noqa: E402
from tests.bucket import Bucket  # noqa: E402

AMONG_STEPS = 40  # a fault strikes after this step


class Table:
    """The bench and a bucket."""

    def __init__(self, bench: Bench, bucket: Bucket):
        self.bench, self.bucket = bench, bucket

    def workdir(self, name: str) -> Path:
        """Returns an address of this name."""
        return paths.as_path(f"{self.bucket.address}/{name}")

    def start(self, workdir: Path, **keys: object) -> Running:
        """Starts a run that saves every 10 steps, with more keys of the config."""
        command = self.bench.command(workdir, train__save_every=10, **keys)
        return self.bench.start(command, **self.bucket.environment())

    def among_steps(self, workdir: Path, run: Running) -> None:
        """Waits until the run is among its steps, by the checkpoints that it has saved."""
        until(lambda: (saved(workdir) or 0) >= AMONG_STEPS, run)

    def finished(self, workdir: Path, run: Running) -> bool:
        """Whether a run ends well, in the undisturbed state."""
        return run.wait() == 0 and state(workdir) == self.bench.ends[1]


def saved(workdir: Path) -> int | None:
    """Returns the last complete step, if there is one."""
    folders = checkpoint.step_folders(workdir / "checkpoints")
    return int(folders[-1].name) if folders else None


def state(workdir: Path) -> object:
    """As `fault_bench.last_state`, of a bucket."""
    folder = checkpoint.resolve_checkpoint(workdir)
    meta = json.loads(paths.read_text(folder / checkpoint.META))
    return {"step": meta["step"], "checksums": meta["checksums"], "data": meta["data_state"]}


def killed(table: Table) -> Row:
    """Kill -9 of a run in a bucket."""
    workdir = table.workdir("killed")
    run = table.start(workdir)
    table.among_steps(workdir, run)
    run.process.kill()
    run.wait()
    again = table.start(workdir)
    ok = table.finished(workdir, again)
    lease = "takes the lease over" if "lease" in again.output() else "resumes"
    return Row(f"the next start {lease}", "since the last save", ok)


def answers(table: Table, name: str, fault: Callable[[str, str], int | None], for_s: float) -> Row:
    """Lets the bucket answer so for a while among the steps."""
    workdir = table.workdir(name)
    run = table.start(workdir)
    table.among_steps(workdir, run)
    table.bucket.fault = fault
    time.sleep(for_s)
    table.bucket.fault = lambda method, path: None
    ok = table.finished(workdir, run)
    return Row("the run continues" if ok else run.output().strip()[-200:], "nothing", ok)


def fails(table: Table) -> Row:
    """The bucket answers 503 for 10 s."""
    return answers(table, "fails", lambda method, path: 503, 10)


def every_third(table: Table) -> Row:
    """The bucket answers every third request with 503, for 30 s."""
    rng = random.Random(0)
    return answers(table, "third", lambda *_: 503 if rng.random() < 1 / 3 else None, 30)


def stalls(table: Table) -> Row:
    """The bucket does not answer for 20 s."""
    end = time.monotonic() + 20

    def wait(method: str, path: str) -> None:
        end_s = end - time.monotonic()
        time.sleep(max(end_s, 0.0))

    return answers(table, "stalls", wait, 20)


def gone(table: Table) -> Row:
    """The bucket answers 503 for good."""
    workdir = table.workdir("gone")
    run = table.start(workdir)
    table.among_steps(workdir, run)
    table.bucket.fault, struck = (lambda method, path: 503), time.monotonic()
    code, seconds = run.wait(), time.monotonic() - struck
    table.bucket.fault = lambda method, path: None
    last = run.output().strip().splitlines()[-1]
    one_line = "Traceback" not in run.output()
    again = table.finished(workdir, table.start(workdir))
    happens = f"ends after {seconds:.0f} s, exit code {code}: {last[:160]}"
    return Row(happens, "since the last save", code == 1 and one_line and again)


def launched_twice(table: Table) -> Row:
    """Two launches on one workdir in a bucket."""
    workdir = table.workdir("twice")
    run = table.start(workdir, train__steps=100000)  # still runs when the second one starts
    table.among_steps(workdir, run)
    struck = time.monotonic()
    second = table.start(workdir, train__steps=100000)
    code, seconds = second.wait(), time.monotonic() - struck
    refused = code == 2 and "is in use by process" in second.output()
    going_on = run.process.poll() is None
    run.process.terminate()
    ok = refused and going_on and run.wait() == STOPPED
    return Row(f"the second is refused with exit code {code} after {seconds:.0f} s", "nothing", ok)


def four_then_two(table: Table) -> Row:
    """Kill -9 of four processes over a bucket; two resume."""
    return resumed_by_two(table, "four")


def four_then_two_elsewhere(table: Table) -> Row:
    """The same; the two are on another machine, where the lease shows no dead process."""
    return resumed_by_two(table, "elsewhere", elsewhere=True)


def resumed_by_two(table: Table, name: str, elsewhere: bool = False) -> Row:
    """Kills four processes after a save, and resumes with two."""
    workdir, environment = table.workdir(name), table.bucket.environment()
    with several(table.bench, workdir, 4, environment) as runs:
        until(lambda: (saved(workdir) or 0) >= 25, runs[0])
        for run in runs:
            run.process.kill()
            run.wait()
    if elsewhere:
        lease = json.loads(paths.read_text(workdir / locks.LOCK))
        paths.write_file(workdir / locks.LOCK, json.dumps({**lease, "machine": "another"}))
    at, struck = saved(workdir), time.monotonic()
    with several(table.bench, workdir, 2, environment) as runs:
        codes = [run.wait() for run in runs]
    seconds = time.monotonic() - struck
    said = runs[0].output()
    rows = [int(row["step"]) for row in read_metrics(workdir) if "loss" in row]
    whole = rows == list(range(1, table.bench.steps + 1))
    resumed = f"resuming from step {at}" in said
    ok = codes == [0, 0] and resumed and whole and saved(workdir) == table.bench.steps
    if not ok:
        print_stderr(f"  {codes} {at} {saved(workdir)} {rows} {[run.output() for run in runs]}")
    return Row(f"two resume from step {at} and end in {seconds:.0f} s", "since the last save", ok)


FAULTS = (killed, fails, every_third, stalls, gone, launched_twice)
FAULTS += (four_then_two, four_then_two_elsewhere)


def main() -> int:
    """Prints the table; exit code 1 if a row is not ok."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # pyright: ignore
    parser.add_argument("--steps", type=int, default=120, help="of a run (%(default)s)")
    parser.add_argument("--only", default="", help="faults whose names have this in them")
    options = parser.parse_args()
    rows, bucket = [], Bucket()
    for name, value in bucket.environment().items():
        os.environ[name] = value
    with tempfile.TemporaryDirectory(prefix="bucket-faults-") as folder:
        bench = Bench(Path(folder), 1, options.steps, random.Random(0))
        bench.finish(bench.folder / "undisturbed")
        bench.ends[1] = last_state(bench.folder / "undisturbed")
        table = Table(bench, bucket)
        for fault in FAULTS:
            name = str(fault.__doc__).rstrip(".")
            if options.only.lower() not in name.lower():
                continue
            row = fault(table)
            rows.append((name, row.happens, row.lost, "ok" if row.ok else "NOT OK"))
            print_stderr("  ".join(rows[-1]))
    bucket.close()
    print(format_table(rows, header=("fault", "what happens", "work lost", "")))
    return 0 if all(row[-1] == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
