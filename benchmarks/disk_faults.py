"""Faults of disks: full, read-only, deleted, and little shared memory."""

from __future__ import annotations

import functools
import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fault_bench import Bench, Row, disk, fill, may_mount, remount, step_done, until
from PIL import Image

# Makes folders of images a data set of its own, which a user does by a reader.
PREPARE = """
import sys
from modality_forcing.datasets import registry
registry.NAMES = (*registry.NAMES, "folder")
from modality_forcing.cli import main
sys.exit(main())
"""
FREE = "since the last save"


def with_mounts(fault: Callable[[Bench], Row]) -> Callable[[Bench], Row]:
    """Skips a fault where nothing can be mounted."""

    @functools.wraps(fault)
    def run(bench: Bench) -> Row:
        return fault(bench) if may_mount() else Row("needs root and unshare", "", None)

    return run


def deleted(bench: Bench) -> Row:
    """A deleted workdir."""
    workdir = bench.folder / "deleted"
    run = bench.start(bench.command(workdir))
    until(lambda: step_done(workdir) > 2, run)
    shutil.rmtree(workdir, ignore_errors=True)
    code = run.wait()
    said = run.output()
    ok = code == 2 and "Traceback" not in said
    return Row(f"exit code {code}: {bench.shorten(said)}", "all", ok)


@with_mounts
def read_only(bench: Bench) -> Row:
    """A read-only workdir, empty and with a run."""
    with disk(bench.folder / "read_only", "50m") as workdir:
        outputs = []
        for steps in (0, 26):
            if steps:
                run = bench.start(bench.command(workdir))
                until(lambda: step_done(workdir) >= 26, run)
                run.process.kill()
                run.wait()
            remount(workdir, "ro")
            run = bench.start(bench.command(workdir))
            outputs.append((run.wait(), run.output()))
            remount(workdir, "rw")
        bench.finish(workdir)
        same = bench.equal(workdir)
    ok = same and all(code == 2 and one_line(said) for code, said in outputs)
    codes = [code for code, _ in outputs]
    return Row(f"exit codes {codes}: {bench.shorten(outputs[1][1])}", "nothing", ok)


def full_in_save(bench: Bench) -> Row:
    """A full disk (file size limit) in a save."""
    workdir = bench.folder / "full"
    limited = ["prlimit", "--fsize=30000", *bench.command(workdir, train__log_every=10)]
    run = bench.start(limited)
    code = run.wait()
    last = bench.shorten(run.output())
    bench.finish(workdir)
    ok = code == 2 and "could not be saved" in last and bench.equal(workdir)
    return Row(f"exit code {code}: {last}", "since the last save", ok)


@with_mounts
def full_in_metrics(bench: Bench) -> Row:
    """A full disk among the steps, in rows of metrics."""
    with disk(bench.folder / "full_metrics", "50m") as workdir:
        return _filled(bench, workdir, workdir)


@with_mounts
def full_in_events(bench: Bench) -> Row:
    """A full disk among the steps, in TensorBoard events alone."""
    workdir = bench.folder / "full_events"
    with disk(workdir / "events", "1m") as events:
        return _filled(bench, workdir, events)


def _filled(bench: Bench, workdir: Path, folder: Path) -> Row:
    """Fills a disk after step 26, and frees it after the run has ended."""
    run = bench.start(bench.command(workdir))
    until(lambda: step_done(workdir) > 26, run)
    filler = fill(folder)
    code, said = run.wait(), run.output()
    lost = step_done(workdir) - 25
    filler.unlink()
    bench.finish(workdir)
    ok = code in (0, 2) and "Traceback" not in said and bench.equal(workdir)
    if not ok:
        print(f"  {code}: {said[-2000:]}", file=sys.stderr)
    return Row(f"exit code {code}: {bench.shorten(said)}", f"{FREE} (here {lost} steps)", ok)


@with_mounts
def full_in_prepare(bench: Bench) -> Row:
    """A full disk in prepare."""
    images = bench.folder / "images" / "images"
    images.mkdir(parents=True)
    for index in range(24):
        noise = np.random.default_rng(index).integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(noise).save(images / f"{index:02d}.png")
    command = [sys.executable, "-c", PREPARE, "prepare", "--dataset=folder", "--shard-size=4"]
    command.append(f"--root={images.parent}")
    undisturbed = bench.folder / "prepared"
    assert bench.start([*command, f"--out={undisturbed}"]).wait() == 0
    with disk(bench.folder / "full_prepare", "400k") as out:
        run = bench.start([*command, f"--out={out}"])
        code, said = run.wait(), run.output()
        done = len(list(out.glob("done-*/*.json")))
        remount(out, "size=50m")
        again = bench.start([*command, f"--out={out}"])
        same = again.wait() == 0 and _bytes(out) == _bytes(undisturbed)
    ok = same and code == 2 and "Traceback" not in said
    happens = f"exit code {code}: {bench.shorten(said)}; the same command writes the same bytes"
    return Row(happens, f"the shard in progress ({done} of 6 stay)", ok)


@with_mounts
def small_shared_memory(bench: Bench) -> Row:
    """64 MiB of /dev/shm, as in a container."""
    workdir = bench.folder / "shm"
    with disk(Path("/dev/shm"), "64m"):
        run = bench.start(bench.command(workdir, data__workers=2))
        code = run.wait()
    ok = code == 0 and bench.equal(workdir)
    return Row(f"exit code {code}, with 2 loader processes: the same bits", "nothing", ok)


@with_mounts
def full_shared_memory(bench: Bench) -> Row:
    """A full /dev/shm of 64 MiB."""
    workdir = bench.folder / "full_shm"
    with disk(Path("/dev/shm"), "64m") as memory:
        fill(memory)
        run = bench.start(bench.command(workdir, data__workers=2))
        code, said = run.wait(), run.output()
    ok = code == 2 and one_line(said) and "/dev/shm" in said
    return Row(f"exit code {code}: {bench.shorten(said)}", "nothing", ok)


def one_line(said: str) -> bool:
    """Whether a command has said what is wrong in its last line, without a traceback."""
    return "Traceback" not in said and said.strip().splitlines()[-1].startswith("mforce ")


def _bytes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


FAULTS = (
    deleted,
    read_only,
    full_in_save,
    full_in_metrics,
    full_in_events,
    full_in_prepare,
    small_shared_memory,
    full_shared_memory,
)
