"""`mforce prepare` as a user runs it: killed and resumed, damaged, misused, inspected, read."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.storage.shards import Shards

COUNT = 24
# Registers the folder as a data set.
MFORCE = """
from modality_forcing.datasets import registry
registry.NAMES = tuple({*registry.NAMES, "folder"})
from modality_forcing.cli import main
import sys
sys.exit(main())
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", MFORCE, *map(str, arguments)]


def mforce(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images large enough that reading one takes some time, with sparse depth."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "images").mkdir()
    (folder / "depth").mkdir()
    rng = np.random.default_rng(5)
    for index in range(COUNT):
        image = np.repeat(np.repeat(rng.integers(0, 256, (90, 120, 3), np.uint8), 10, 0), 10, 1)
        counts = (rng.integers(800, 9000, (225, 300)) * (rng.random((225, 300)) < 0.05)).astype(
            np.uint16
        )
        Image.fromarray(image).save(folder / f"images/{index:02d}.png", compress_level=1)
        Image.fromarray(counts).save(folder / f"depth/{index:02d}.png")
    return folder


def options(root: Path, out: Path) -> list[object]:
    return [
        "prepare",
        "--dataset=folder",
        "--option=depth_scale=0.001",
        f"--root={root}",
        f"--out={out}",
        "--shard-size=4",
    ]


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "uninterrupted"
    done = mforce(*options(root, out))
    assert (done.returncode, done.stdout) == (0, f"{out}/manifest-train.json\n"), done.stderr
    assert f"{COUNT}/{COUNT}" in done.stderr
    return out


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_prepare_writes_identical_bytes(
    root: Path, uninterrupted: Path, tmp_path: Path, workers: int
):
    arguments = [*options(root, tmp_path / "out"), f"--workers={workers}"]
    running = subprocess.Popen(
        command(*arguments),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out/done-train/*.json")):
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)  # workers must notice by themselves
    running.wait()
    while workers and _alive(running.pid):
        assert time.monotonic() < until, "workers outlive their parent"
        time.sleep(0.02)
    assert not (tmp_path / "out/manifest-train.json").exists()
    done = mforce(*arguments)
    assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / "out") == bytes_of(uninterrupted)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_shards_of_all_parts_equal_those_of_one_run(
    root: Path, uninterrupted: Path, tmp_path: Path
):
    for part in ("1/2", "0/2"):
        done = mforce(*options(root, tmp_path / "out"), f"--shard={part}")
        assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / "out") == bytes_of(uninterrupted)


def test_prepared_records_are_read_and_inspected(uninterrupted: Path, tmp_path: Path):
    source = Shards(uninterrupted)
    assert len(source) == COUNT and [source[i].id for i in (0, COUNT - 1)] == ["00", "23"]
    record = source[5]
    assert (
        record.image.shape == (256, 342, 3) and record.source and 0.03 < record.valid.mean() < 0.05
    )
    assert record.depth[record.valid].min() >= 0.8 and record.depth.max() < 9
    done = mforce("inspect", uninterrupted, "--verify", f"--sheet={tmp_path / 'sheet.png'}")
    assert done.returncode == 0, done.stderr
    assert "24 of 342 x 256" in done.stdout and "checksums verified" in done.stdout
    with Image.open(tmp_path / "sheet.png") as opened:
        assert opened.width > 900


def one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2 and done.stdout == ""
    lines = [
        line for line in done.stderr.splitlines() if not line.startswith("folder train records")
    ]
    assert len(lines) == 1 and message in lines[0], done.stderr


def test_user_errors_are_one_line(root: Path, uninterrupted: Path, tmp_path: Path):
    one_line(
        mforce(*options(root, uninterrupted), "--quality=90"),
        "started with other settings (quality 95, now 90)",
    )
    one_line(mforce(*options(tmp_path / "none", tmp_path / "out")), "none: no such folder")
    one_line(mforce("inspect", tmp_path), "holds no shards; give the --out of mforce prepare")


def test_truncated_shard_is_named(root: Path, uninterrupted: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = mforce(*options(root, out), "--limit=8")
    assert done.returncode == 0, done.stderr
    before = bytes_of(out)
    shard = out / "folder-train.array_record-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:-1000])
    one_line(mforce("inspect", out, "--verify"), f"{shard}: is not what was written")
    assert mforce(*options(root, out), "--limit=8").returncode == 0
    assert bytes_of(out) == before


def test_too_many_truncated_images_stop_the_job(root: Path, tmp_path: Path):
    bad = tmp_path / "bad"
    (bad / "images").mkdir(parents=True)
    for path in sorted((root / "images").iterdir())[:8]:
        (bad / "images" / path.name).symlink_to(path)
    (bad / "images/03.png").unlink()
    (bad / "images/03.png").write_bytes((root / "images/03.png").read_bytes()[:5000])
    arguments = [
        "prepare",
        "--dataset=folder",
        f"--root={bad}",
        f"--out={tmp_path / 'out'}",
        "--shard-size=2",
    ]
    one_line(
        mforce(*arguments),
        "1 of 8 records could not be read, more than --max-errors=0.01 allows (record 3: ",
    )
    done = mforce(*arguments, "--max-errors=0.2")
    assert done.returncode == 0 and "errors 1" in done.stderr
    assert len(Shards(tmp_path / "out")) == 7
    assert (tmp_path / "out/failed-train.txt").read_text().startswith("3\t")
