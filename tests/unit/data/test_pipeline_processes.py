"""The loader as a process: what it leaves behind, loads and says when memory is missing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import grain
import psutil
import pytest

from modality_forcing.data.mixture import MixtureComponent
from modality_forcing.data.prefetch import PrefetchToDevice
from modality_forcing.errors import UserError
from tests.numbered import Numbered, batches, take


@pytest.mark.parametrize("workers", [0, 1])
def test_process_exit_without_close_is_clean(workers: int, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "from modality_forcing.data.pipeline import train_batches\n"
        "from modality_forcing.synthetic.source import Scenes\n"
        "from modality_forcing.encoders.words import HashedWordTokenizer\n"
        "if __name__ == '__main__':\n"
        f"    options = dict(batch=4, seed=0, resolution=64, workers={workers})\n"
        "    loader = train_batches(Scenes(), HashedWordTokenizer(), **options)\n"
        "    kept = next(loader)\n"
        "    raise SystemExit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


def test_memory_is_constant_and_no_process_remains():
    process = psutil.Process()
    # Grain keeps one pool of threads for good, which frees shared memory.
    take(batches(workers=1), 1)
    threads, children = set(threading.enumerate()), set(process.children(recursive=True))
    own_files = f"mforce-{os.getpid()}-*"  # other workers of the suite have files there too
    files = set(Path("/dev/shm").glob(own_files))
    mixture = {
        "one": MixtureComponent(Numbered(40, size=64), 1.0),
        "other": MixtureComponent(Numbered(7, size=64, first=100), 1.0),
    }
    for workers in (0, 1):
        prefetched = PrefetchToDevice(
            batches(mixture, resolution=64, batch=16, workers=workers, threads=2),
            lambda batch: batch,
        )
        sizes = []
        for number in range(300):
            next(prefetched)
            if number % 50 == 49:
                sizes.append(
                    sum(
                        one.memory_info().rss
                        for one in (process, *process.children(recursive=True))
                    )
                    / 2**20
                )
        prefetched.close()
        assert sizes[-1] - sizes[2] < 8, sizes  # MiB; the 150 batches between are 75
        for _ in range(100):  # Grain's threads end with what they were reading
            left = {thread.name for thread in set(threading.enumerate()) - threads}
            if not left:
                break
            time.sleep(0.05)
        assert not left and set(process.children(recursive=True)) <= children
        assert set(Path("/dev/shm").glob(own_files)) <= files


def test_data_modules_load_neither_jax_nor_grain():
    modules = ("records", "resize", "folder", "sparsity", "mixture", "augment")
    program = (
        f"import sys, {', '.join(f'modality_forcing.data.{name}' for name in modules)},"
        "modality_forcing.encoders.words;"
        "sys.exit(', '.join(sorted({'jax', 'grain', 'flax'} & set(sys.modules))) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, r"No space left on device\); give it more, .*, or set data\.workers=0"),
        (errno.EROFS, r"Read-only file system\); make it writable, or set data\.workers=0"),
        (errno.EMFILE, r"Too many open files\); allow more open files .*, or set data\.workers=0"),
    ],
)
def test_missing_memory_for_loader_processes_is_one_line(monkeypatch, code, message):
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))  # as a semaphore does

    monkeypatch.setattr(grain.IterDataset, "mp_prefetch", fail)
    loading = batches(workers=2)
    with pytest.raises(UserError, match=rf"no room for 2 loader processes .*{message}"):
        next(loading)
