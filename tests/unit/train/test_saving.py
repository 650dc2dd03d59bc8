"""Saves in the background, committed by their last file; errors named, damage passed over."""

from __future__ import annotations

import shutil
import threading
from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.train import checkpoint, saving
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import TrainState
from tests.saved import CONFIG, EXTRA, biggest, description, restore

# Orbax leaves reads and writes unfinished when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def at(state: TrainState, step: int) -> TrainState:
    return state._replace(step=jnp.int32(step))


def assert_same(left: TrainState, right: TrainState) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)
    assert jax.tree.map(lambda x: x.dtype, left) == jax.tree.map(lambda x: x.dtype, right)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_restored_state_equals_the_saved_one_to_the_bit(tmp_path, state, abstract, asynchronous):
    checkpoints = Checkpoints(tmp_path / "checkpoints", asynchronous=asynchronous)
    checkpoints.save(state, CONFIG, EXTRA)
    if not asynchronous:
        assert checkpoints.latest() == 3
    checkpoints.close()
    back, extra = restore(tmp_path, abstract)
    assert_same(back, state)
    assert {k: extra[k] for k in EXTRA} == EXTRA


def test_both_ways_of_saving_write_the_same_files(tmp_path, state):
    written = []
    for asynchronous in (True, False):
        folder = tmp_path / str(asynchronous)
        checkpoints = Checkpoints(folder, asynchronous=asynchronous)
        checkpoints.save(state, CONFIG, EXTRA)
        checkpoints.close()
        files = [p for p in (folder / "3").rglob("*") if p.is_file() and p.parent.name != "d"]
        # Names of data files are random; what Orbax notes holds times.
        names = sorted(str(p.relative_to(folder)) for p in files)
        written.append((names, (folder / "3" / checkpoint.META).read_bytes()))
    assert written[0] == written[1]
    assert "3/meta/metadata" in written[0][0]


def test_state_may_be_donated_while_its_save_is_in_flight(tmp_path, state, abstract, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    committing, donated = threading.Event(), threading.Event()
    commit = checkpoints._commit

    def slow_commit():
        committing.set()
        assert donated.wait(60)
        commit()

    monkeypatch.setattr(checkpoints._writer, "_post_finalization_callback", slow_commit)
    used = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    checkpoints.save(used, CONFIG, EXTRA)
    update = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)
    for _ in range(3):
        used = update(used)
    jax.block_until_ready(used)
    assert committing.wait(60) and checkpoints.latest() is None
    donated.set()
    checkpoints.close()
    assert_same(restore(tmp_path, abstract)[0], state)


def test_metadata_numbers_keep_every_bit(tmp_path, state, abstract):
    numbers = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state, CONFIG, {"pending": [float(x) for x in numbers]})
    checkpoints.close()
    np.testing.assert_array_equal(np.float32(restore(tmp_path, abstract)[1]["pending"]), numbers)


def test_latest_is_none_without_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    checkpoints.close()


def test_old_checkpoints_are_deleted_except_keep_steps(tmp_path, state):
    for keep, also, left in ((1, (), [12]), (2, (), [9, 12]), (1, (3, 4), [3, 12])):
        folder = tmp_path / f"{keep}{len(also)}" / "checkpoints"
        checkpoints = Checkpoints(folder, keep, also)
        for step in (3, 9, 12):
            checkpoints.save(at(state, step), CONFIG, EXTRA)
        checkpoints.close()
        assert checkpoints.latest() == 12
        assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == left
        assert checkpoint.resolve_checkpoint(folder.parent).name == "12"


def test_saving_a_step_twice_writes_it_once(copy, state):
    checkpoints = Checkpoints(copy / "checkpoints")
    before = description(copy).stat().st_mtime_ns
    checkpoints.save(state, CONFIG, {"other": 1})
    checkpoints.close()
    assert description(copy).stat().st_mtime_ns == before


def test_save_in_a_bucket_is_committed_by_its_last_object(gs_path, bucket, state, abstract):
    checkpoints = Checkpoints(gs_path / "checkpoints")
    checkpoints.save(state, CONFIG, EXTRA)
    checkpoints.close()
    assert_same(restore(gs_path, abstract)[0], state)
    written = [path for method, path in bucket.requests if method == "POST"]
    assert written and not [path for path in written if "rewriteTo" in path or "copyTo" in path]
    meta = gs_path / "checkpoints" / "3" / checkpoint.META
    content = paths.read_bytes(meta)
    assert b"/tmp" not in content and str(gs_path).encode() not in content
    paths.remove(gs_path / "checkpoints" / "3" / saving._DONE)
    assert_same(restore(gs_path, abstract)[0], state)
    paths.remove(meta)
    with pytest.raises(UserError, match=r"3: is unfinished"):
        checkpoint.load(gs_path / "checkpoints" / "3")
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.load(gs_path)
    Checkpoints(gs_path / "checkpoints").close()
    assert not [name for name in bucket.names() if name.startswith(f"{gs_path.name}/checkpoints/3")]


# ---- Interrupted saves


def test_step_without_its_last_file_is_no_checkpoint(copy, abstract):
    half, older = copy / "checkpoints" / "7", copy / "checkpoints" / "8.orbax-checkpoint-tmp-1"
    for path in (half, older):
        shutil.copytree(copy / "checkpoints" / "3", path)
    shutil.rmtree(half / "meta")
    (half / saving._DONE).unlink()
    assert checkpoint.resolve_checkpoint(copy).name == "3"
    with pytest.raises(UserError, match=r"7: is unfinished: its save was interrupted, or not all"):
        checkpoint.load(half)
    assert int(restore(copy, abstract)[0].step) == 3
    assert not half.exists() and not older.exists()


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_deletion_killed_halfway_leaves_a_whole_step_or_none(
    copy, state, abstract, monkeypatch, removed
):
    checkpoints = Checkpoints(copy / "checkpoints")
    files = []

    def remove(path):
        if len(files) == removed:
            raise KeyboardInterrupt
        files.append(path)
        path.unlink()

    with monkeypatch.context() as killed:
        killed.setattr(paths, "remove", remove)
        killed.setattr(paths, "remove_tree", lambda path: None)
        with suppress(KeyboardInterrupt):
            checkpoints._delete(3)
    checkpoints.close()
    assert len(files) == removed
    if removed < 2:
        assert_same(restore(copy, abstract)[0], state)
    else:
        Checkpoints(copy / "checkpoints").close()
        assert not (copy / "checkpoints" / "3").exists()


def test_complete_step_that_lost_its_last_file_is_kept(copy, state):
    description(copy).unlink()
    checkpoints = Checkpoints(copy / "checkpoints")
    assert checkpoints.latest() is None
    checkpoints.close()
    assert biggest(copy / "checkpoints" / "3").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(24, "Too many open files"), r"\(Too many open files\); .* allow more open files"),
        (
            ValueError("RESOURCE_EXHAUSTED: x: No space left on device"),
            r"\(No space left on device",
        ),
        (RuntimeError("Disk quota exceeded"), r"\(Disk quota exceeded\); .* make room"),
    ],
)
def test_failed_save_names_its_own_cause(copy, state, monkeypatch, error, message):
    checkpoints = Checkpoints(copy / "checkpoints")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints._writer, "save", fail)
    with pytest.raises(UserError, match=rf"step 4 could not be saved {message}"):
        checkpoints.save(at(state, 4), CONFIG, EXTRA)
    checkpoints.close()
    assert checkpoints.latest() == 3


def test_failed_save_ends_in_silence(copy, state, monkeypatch, recwarn):
    """Orbax leaves coroutines behind that nobody awaits, and Python would warn of them at exit."""
    checkpoints = Checkpoints(copy / "checkpoints")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    async def write() -> None: ...

    monkeypatch.setattr(checkpoints._writer, "save", fail)
    with pytest.raises(UserError):
        checkpoints.save(at(state, 4), CONFIG, EXTRA)
    abandoned = write()
    del abandoned
    checkpoints.close()
    assert not [str(w.message) for w in recwarn if "never awaited" in str(w.message)]


def test_error_in_the_background_shows_at_the_next_step_with_its_own(copy, state, monkeypatch):
    checkpoints, failed = Checkpoints(copy / "checkpoints"), threading.Event()

    def fail(*_):
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths, "write_file", fail)
    checkpoints.save(at(state, 4), CONFIG, EXTRA)
    assert failed.wait(60)
    message = r"step 4 could not be saved \(No space left on device\); the checkpoint of step 3 is"
    with pytest.raises(UserError, match=message):
        for _ in range(1000):
            checkpoints.check()
            threading.Event().wait(0.01)
    monkeypatch.undo()
    assert not (copy / "checkpoints" / "4").exists()
    checkpoints.save(at(state, 5), CONFIG, EXTRA)  # and the next one works
    checkpoints.close()
    assert checkpoint.resolve_checkpoint(copy).name == "5"


def test_check_waits_for_no_file_of_a_save_in_flight(copy, state, monkeypatch):
    checkpoints, waiting = Checkpoints(copy / "checkpoints"), set()
    store = checkpoints._writer._metadata_store
    wait = store.wait_until_finished
    checkpoints.save(at(state, 4), CONFIG, EXTRA)

    def note() -> None:
        waiting.add(threading.current_thread())
        wait()

    monkeypatch.setattr(store, "wait_until_finished", note)
    while checkpoints.latest() == 3:
        checkpoints.check()
    assert threading.main_thread() not in waiting
    checkpoints.close()
    assert checkpoints.latest() == 4


def test_other_save_errors_pass(copy, state, monkeypatch):
    checkpoints = Checkpoints(copy / "checkpoints")

    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(checkpoints._writer, "save", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.save(at(state, 4), CONFIG, EXTRA)
    checkpoints.close()


# ---- Damaged checkpoints


@pytest.fixture
def two(copy, state):
    """A run with the checkpoints 3 and 4."""
    checkpoints = Checkpoints(copy / "checkpoints")
    checkpoints.save(at(state, 4), CONFIG, EXTRA)
    checkpoints.close()
    return copy


def test_damaged_last_checkpoint_is_passed_over_and_written_anew(two, state, abstract, capsys):
    newest = two / "checkpoints" / "4"
    biggest(newest / "params").write_bytes(b"")
    checkpoints = Checkpoints(two / "checkpoints")
    back, _ = checkpoints.restore(abstract)
    assert_same(back, state)
    said = capsys.readouterr().err
    assert "checkpoints/4: cannot be read" in said and "; passed over for step 3" in said
    assert "cannot be read" in (newest / "damaged.txt").read_text()
    assert checkpoints.latest() == 3
    assert checkpoint.resolve_checkpoint(two).name == "3"
    checkpoints.save(at(state, 4), CONFIG, EXTRA)
    checkpoints.close()
    assert checkpoint.resolve_checkpoint(two).name == "4" and not (newest / "damaged.txt").exists()
    assert int(restore(two, abstract)[0].step) == 4


def test_one_flipped_bit_is_passed_over(two, state, abstract, capsys):
    meta = description(two, 4)
    meta.write_bytes(meta.read_bytes().replace(b'"elapsed_s": 1.5', b'"elapsed_s": 1.7'))
    assert int(restore(two, abstract)[0].step) == 3
    assert "4: its description is damaged" in capsys.readouterr().err


def test_no_intact_checkpoint_is_an_error_that_marks_none(two, abstract):
    for step in ("3", "4"):
        biggest(two / "checkpoints" / step / "params").write_bytes(b"")
    with pytest.raises(UserError, match=r"4: cannot be read .*restore it from a backup, or train"):
        restore(two, abstract)
    assert not list(two.rglob("damaged.txt"))
