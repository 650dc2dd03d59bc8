"""A lock has one owner; a dead owner holds none; nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modality_forcing import locks
from modality_forcing.errors import UserError
from tests.runs import environment

HOLDER = """
import sys, time
from modality_forcing import locks
with locks.hold(sys.argv[1], "--workdir"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_owner_is_refused_and_nothing_is_left(tmp_path: Path):
    folder = tmp_path / "runs" / "a"
    with locks.hold(folder, "--workdir"):
        refused = rf"a: is in use by process {os.getpid()} on .* since .*choose another --workdir"
        with pytest.raises(UserError, match=refused), locks.hold(folder, "--workdir"):
            pass
        with locks.hold(folder, "--workdir", ".other"):
            pass
    assert list(tmp_path.iterdir()) == []
    with locks.hold(folder, "--workdir"):
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_killed_owner_holds_nothing(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None and held.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {held.pid} on "):
            locks.hold(tmp_path, "--workdir").__enter__()
        held.kill()
        held.wait()
    assert (tmp_path / locks.LOCK).exists()
    with locks.hold(tmp_path, "--workdir"):
        assert f"process {os.getpid()} " in (tmp_path / locks.LOCK).read_text()


def test_owner_deletes_the_file_before_another_opens_it_again(tmp_path: Path):
    """The flock of a deleted file protects nothing."""
    path = tmp_path / "lock"
    with locks.try_hold(path) as held:
        assert held and locks.owner(path).startswith("process")
        with locks.try_hold(path) as again:
            assert not again
    assert not path.exists() and locks.owner(path) == ""
    stale = path.open("a+")
    fcntl.flock(stale, fcntl.LOCK_EX)
    path.unlink()
    assert not locks._is_at(stale, path)
    with locks.try_hold(path) as held:
        assert held
    stale.close()


def test_waiting_owner_follows(tmp_path: Path):
    path = tmp_path / "lock"
    code = "import sys; from pathlib import Path; from modality_forcing import locks"
    code += "\nwith locks.try_hold(Path(sys.argv[1]), wait=True) as held: print(held)"
    with locks.try_hold(path):
        command = [sys.executable, "-c", code, str(path)]
        waiting = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
        time.sleep(0.3)
        assert waiting.poll() is None
    assert waiting.communicate()[0] == "True\n"


def test_folder_that_cannot_be_locked_is_one_line(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"\.lock: cannot be locked"),
        locks.hold(tmp_path / "file" / "folder", "--workdir"),
    ):
        pass

    def fail(code):
        def flock(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", flock)

    fail(errno.ENOLCK)  # a file system without locks
    for _ in range(2):
        with locks.hold(tmp_path, "--workdir"):
            pass
    assert capsys.readouterr().err.count("has no locks") == 1
    fail(errno.EIO)
    with pytest.raises(UserError, match="cannot be locked"), locks.hold(tmp_path, "--workdir"):
        pass
