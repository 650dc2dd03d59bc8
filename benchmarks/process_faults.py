"""Faults of a run of four processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from fault_bench import STOPPED, Bench, Row, Running, last_state, several, step_done, until


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


FAULTS = (four_signaled, four_killed, four_paused, four_halted)
