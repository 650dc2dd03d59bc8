"""A lease has one owner, which is taken over once it is dead, and never before."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest

from modality_forcing import leases, locks, paths
from modality_forcing.errors import StorageFailed, UserError
from tests.runs import environment

HOLDER = """
import sys, time
from modality_forcing import leases, locks, paths
leases.RENEW_S = 0.1
with locks.hold(paths.as_path(sys.argv[1]), "--workdir"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.1)
    monkeypatch.setattr(leases, "DEAD_S", 0.6)
    monkeypatch.setattr(leases, "_POLL_S", 0.03)


@pytest.fixture
def elsewhere(monkeypatch):
    """Makes every process one of another machine, which only time shows to be dead."""
    monkeypatch.setattr(leases, "_is_dead", lambda content: False)


def abandoned(path) -> bytes:
    """Leaves the lease of a process that is gone without a word."""
    lease = leases.Lease(path)
    assert lease.acquire(wait=False)
    lease._stop.set()
    lease._thread.join()
    return lease._generation


def test_second_owner_is_refused_and_nothing_is_left(gs_path, capfd):
    with locks.hold(gs_path, "--workdir"):
        refused = r"is in use by process \d+ on .* since .*choose another --workdir"
        with pytest.raises(UserError, match=refused), locks.hold(gs_path, "--workdir"):
            pass
        assert locks.owner(gs_path / locks.LOCK).startswith("process ")
        with locks.hold(gs_path, "--workdir", ".other"):
            pass
    assert paths.glob(gs_path, "*") == [] and locks.owner(gs_path / locks.LOCK) == ""
    assert "to see whether process" in capfd.readouterr().err


def test_a_living_owner_keeps_its_lease_for_long(gs_path, elsewhere):
    with locks.try_hold(gs_path / "lock") as held:
        assert held
        until = time.monotonic() + 3 * leases.DEAD_S
        while time.monotonic() < until:
            with locks.try_hold(gs_path / "lock") as again:
                assert not again


def test_the_lease_of_the_dead_is_taken_over_after_a_while(gs_path, elsewhere):
    abandoned(gs_path / "lock")
    start = time.monotonic()
    with locks.try_hold(gs_path / "lock") as held:
        assert held
        assert time.monotonic() - start >= leases.DEAD_S
        assert json.loads(paths.read_text(gs_path / "lock"))["owner"].startswith("process ")


def test_a_dead_process_of_this_machine_holds_nothing(gs_path, monkeypatch):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(gs_path)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as held:
        assert held.stdout is not None and held.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {held.pid} on "):
            locks.hold(gs_path, "--workdir").__enter__()
        held.kill()
        monkeypatch.setattr(leases, "DEAD_S", 60.0)
        start = time.monotonic()
        with locks.hold(gs_path, "--workdir"):  # at once, though its parent has not noticed
            assert held.returncode is None and time.monotonic() - start < 30


def test_of_many_takers_one_wins(gs_path, elsewhere):
    abandoned(gs_path / "lock")
    at_once, results, done = threading.Barrier(6), [], threading.Event()

    def take() -> None:
        at_once.wait()
        with locks.try_hold(gs_path / "lock") as held:
            results.append(held)
            if held:
                done.wait(20)

    takers = [threading.Thread(target=take) for _ in range(6)]
    for taker in takers:
        taker.start()
    until = time.monotonic() + 20
    while len(results) < 6 and time.monotonic() < until:
        time.sleep(0.05)
    done.set()
    for taker in takers:
        taker.join()
    assert sorted(results) == [False] * 5 + [True]


def test_waiting_owner_follows(gs_path, elsewhere):
    with locks.try_hold(gs_path / "lock"):
        order = []

        def follow() -> None:
            with locks.try_hold(gs_path / "lock", wait=True) as held:
                order.append(held)

        waiting = threading.Thread(target=follow)
        waiting.start()
        time.sleep(2 * leases.DEAD_S)
        assert order == []
    waiting.join(20)
    assert order == [True]


def test_owner_that_lost_its_lease_ends(gs_path, monkeypatch, capfd):
    ended = threading.Event()
    monkeypatch.setattr(leases, "_end", lambda code: ended.set())
    with locks.try_hold(gs_path / "lock") as held:
        assert held
        paths.write_file(gs_path / "lock", '{"owner": "process 7 on other", "id": "x"}')
        assert ended.wait(20)
    assert "was taken over by process 7 on other; exiting" in capfd.readouterr().err
    assert "process 7" in paths.read_text(gs_path / "lock")  # nor is it deleted


def test_lost_answer_to_a_write_is_no_loss(bucket, gs_path, monkeypatch):
    """The request is repeated with a condition that no longer holds, because it succeeded."""
    lease = leases.Lease(gs_path / "lock")
    assert lease.acquire(wait=False)
    lease._stop.set()
    lease._thread.join()
    before = lease._generation
    assert lease._write(before) and lease._generation != before
    assert lease._write(before)  # as the repeated request


def test_bucket_out_of_reach_ends_no_owner(bucket, gs_path, monkeypatch):
    monkeypatch.setattr(leases, "_ANSWER_S", 0.1)
    monkeypatch.setattr(leases, "_end", lambda code: pytest.fail("ended"))
    with locks.try_hold(gs_path / "lock") as held:
        assert held
        bucket.fault = lambda method, path: 503
        time.sleep(0.5)
        bucket.fault = lambda method, path: None
        time.sleep(0.5)
    assert not paths.exists(gs_path / "lock")


def test_bucket_that_does_not_answer_is_one_line(bucket, gs_path, monkeypatch):
    monkeypatch.setattr(leases, "_ANSWER_S", 0.3)
    bucket.fault = lambda method, path: 503
    with (
        pytest.raises(StorageFailed, match=r"lock: cannot be locked \(no answer in time\)"),
        locks.try_hold(gs_path / "lock"),
    ):
        pass


def test_live_owner_frees_the_lease_of_the_dead(gs_path, elsewhere):
    abandoned(gs_path / "lock")
    assert locks.live_owner(gs_path / "lock") == ""
    assert not paths.exists(gs_path / "lock")
    with locks.try_hold(gs_path / "lock"):
        assert locks.live_owner(gs_path / "lock").startswith("process ")


@pytest.mark.parametrize("content", ["", "not JSON", "[1]", '{"pid": 1}'])
def test_damaged_object_is_taken_over(gs_path, content):
    paths.write_file(gs_path / "lock", content)
    with locks.try_hold(gs_path / "lock") as held:
        assert held
