"""Injects fault after fault into a tiny run and prints what happened, as a table.

python benchmarks/faults.py --tries=20 --only=SIGTERM

Each fault strikes the real command. The run is then resumed, and its final state must equal that of
an undisturbed run to the bit: the checksums of all arrays in the last checkpoint are compared. The
faults of several processes compare with an undisturbed run of as many processes.
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

from fault_bench import NAMED, STOPPED, Bench, Row, Running, last_state, several, step_done, until

from modality_forcing.progress import format_table, print_stderr

# ---- The faults


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


def deleted(bench: Bench) -> Row:
    """A deleted workdir."""
    workdir = bench.folder / "deleted"
    run = bench.start(bench.command(workdir))
    until(lambda: step_done(workdir) > 2, run)
    shutil.rmtree(workdir, ignore_errors=True)
    code = run.wait()
    said = run.output()
    last = said.strip().splitlines()[-1]
    ok = code == 2 and "Traceback" not in said
    return Row(f"exit code {code}: {shorten(last, bench)}", "all", ok)


def full_in_save(bench: Bench) -> Row:
    """A full disk (file size limit) in a save."""
    workdir = bench.folder / "full"
    limited = ["prlimit", "--fsize=30000", *bench.command(workdir, train__log_every=10)]
    run = bench.start(limited)
    code = run.wait()
    last = run.output().strip().splitlines()[-1]
    bench.finish(workdir)
    ok = code == 2 and "could not be saved" in last and bench.equal(workdir)
    return Row(f"exit code {code}: {shorten(last, bench)}", "since the last save", ok)


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


def flipped_byte(bench: Bench) -> Row:
    """A flipped byte in every file of the last checkpoint."""
    workdir = bench.folder / "flipped"
    bench.finish(workdir)
    last = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    files = [p for p in sorted(last.rglob("*")) if p.is_file() and p.stat().st_size]
    files = bench.rng.sample(files, min(bench.tries, len(files)))
    wrong = harmless = 0
    for path in files:
        content = path.read_bytes()
        at = bench.rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        run = bench.start(bench.command(workdir))
        code, said = run.wait(), run.output()
        # A flip may be of no consequence, as in a comment of the storage format.
        same = code == 0 and bench.equal(workdir)
        reported = any(
            word in said for word in ("damaged", "cannot be read", "unfinished", "intact")
        )
        wrong += not same or "Traceback" in said
        harmless += not reported
        if not same:
            print_stderr(f"  {path.relative_to(last)}: code {code}: {said[-300:]}")
        path.write_bytes(content)
        (last / "damaged.txt").unlink(missing_ok=True)
    happens = f"{len(files)} files: the run falls back to the checkpoint before and trains again"
    happens += f"; {harmless} flips change nothing that is read"
    return Row(happens, "at most save_every", not wrong)


# ---- Several processes


def four_reference(bench: Bench) -> None:
    """Runs four processes undisturbed, once."""
    if 4 not in bench.ends:
        workdir = bench.folder / "four"
        with several(bench, workdir) as runs:
            codes = [run.wait() for run in runs]
        assert codes == [0] * 4, (codes, runs[0].output())
        bench.ends[4] = last_state(workdir)


def one_of_four(
    bench: Bench, strike: Callable[[list[Running]], None]
) -> tuple[list[int], float, bool]:
    """Strikes a run of four among its steps; exit codes, seconds until all ended, equality."""
    four_reference(bench)
    workdir = bench.folder / f"four{bench.rng.random()}"
    with several(bench, workdir) as runs:
        until(lambda: step_done(workdir) > 3, runs[0])
        struck = time.monotonic()
        strike(runs)
        others = [run.wait() for i, run in enumerate(runs) if i != 2]
        seconds = time.monotonic() - struck
        runs[2].process.kill()
        codes = [*others, runs[2].wait()]
    if any(codes):
        with several(bench, workdir) as runs:
            assert [run.wait() for run in runs] == [0] * 4, runs[0].output()
    return codes, seconds, bench.equal(workdir, 4)


def four_signaled(bench: Bench) -> Row:
    """SIGTERM to one of four processes."""
    codes, seconds, same = one_of_four(
        bench, lambda runs: (os.kill(runs[2].process.pid, signal.SIGTERM), runs[2].wait())[0]
    )
    happens = f"all end at one step with exit codes {codes} after {seconds:.0f} s"
    return Row(happens, "nothing", same and codes == [STOPPED] * 4)


def four_killed(bench: Bench) -> Row:
    """Kill -9 of one of four processes."""
    codes, seconds, same = one_of_four(bench, lambda runs: runs[2].process.kill())
    happens = f"the others end after {seconds:.0f} s, exit codes {codes}"
    return Row(happens, "since the last save", same and 0 not in codes and 2 not in codes)


def four_paused(bench: Bench) -> Row:
    """SIGSTOP of one of four processes for 30 s."""

    def strike(runs: list[Running]) -> None:
        os.kill(runs[2].process.pid, signal.SIGSTOP)
        time.sleep(30)
        os.kill(runs[2].process.pid, signal.SIGCONT)
        runs[2].wait()

    codes, _, same = one_of_four(bench, strike)
    return Row("the run continues", "nothing", same and codes[:3] == [0] * 3)


def four_halted(bench: Bench) -> Row:
    """SIGSTOP of one of four processes for ever."""
    codes, seconds, same = one_of_four(
        bench, lambda runs: os.kill(runs[2].process.pid, signal.SIGSTOP)
    )
    happens = f"the others end after {seconds:.0f} s, exit codes {codes[:3]}"
    return Row(happens, "since the last save", same and 0 not in codes[:3] and seconds < 130)


FAULTS = (
    killed,
    killed_in_save,
    stopped,
    launched_twice,
    loader_killed,
    deleted,
    full_in_save,
    clock_set_back,
    flipped_byte,
    four_signaled,
    four_killed,
    four_paused,
    four_halted,
)


def shorten(line: str, bench: Bench) -> str:
    """A line without the folder of this run."""
    return line.replace(str(bench.folder), "...").removeprefix("mforce train: ")


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
            rows.append((name, row.happens, row.lost, "ok" if row.ok else "NOT OK"))
            print_stderr("  ".join(rows[-1]))
    print(format_table(rows, header=("fault", "what happens", "work lost", "")))
    return 0 if all(row[-1] == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
