"""Batch memory: reused only when nobody holds it, shared between processes, and cleaned up."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from modality_forcing.data import shared_memory
from modality_forcing.data.shared_memory import (
    BufferedStacker,
    SharedMemoryReceiver,
    SharedMemorySender,
)
from modality_forcing.errors import UserError


def rows(first: int, count: int = 3, size: int = 7) -> list[shared_memory.Batch]:
    return [
        {
            "image": np.full((size, 5, 3), i, np.uint8),
            "depth": np.arange(size * 5, dtype=np.float32).reshape(size, 5)[:, ::-1]
            + i,  # a view, as a mirrored one is
            "latent": np.full((2, 2), i, ml_dtypes.bfloat16),
            "text": {"tokens": np.full(4, -i, np.int32), "mask": np.arange(4) < i % 5},
            "index": np.int32(i),
        }
        for i in range(first, first + count)
    ]


def leaves(batch: shared_memory.Batch) -> list[np.ndarray]:
    return [
        leaf
        for value in batch.values()
        for leaf in (leaves(value) if isinstance(value, dict) else [value])
    ]


def check(batch: shared_memory.Batch, first: int, count: int = 3) -> None:
    expected = rows(first, count)
    for name in ("image", "depth", "latent", "index"):
        np.testing.assert_array_equal(
            batch[name], np.stack([row[name] for row in expected]), err_msg=name
        )
        assert batch[name].dtype == np.asarray(expected[0][name]).dtype
    for name in ("tokens", "mask"):
        np.testing.assert_array_equal(
            batch["text"][name], np.stack([row["text"][name] for row in expected])
        )
    assert all(
        leaf.ctypes.data % 64 == 0 and leaf.flags.c_contiguous and leaf.flags.writeable
        for leaf in leaves(batch)
    )


def addresses(batch: shared_memory.Batch) -> list[int]:
    return [leaf.ctypes.data for leaf in leaves(batch)]


def pickled(thing: Any) -> Any:
    """What another process gets."""
    return pickle.loads(pickle.dumps(thing))  # noqa: S301  # our own bytes


def test_slab_is_reused_when_its_batch_is_freed():
    stack = BufferedStacker()
    batch = stack(rows(0))
    check(batch, 0)
    was = addresses(batch)
    other = stack(rows(10))
    assert not set(was) & set(addresses(other))  # the first is held
    check(batch, 0)
    del batch
    third = stack(rows(20))
    assert addresses(third) == was
    check(third, 20)
    check(other, 10)


@pytest.mark.parametrize(
    "keep",
    [lambda b: b["image"][1, 2:], lambda b: b["text"]["mask"], lambda b: memoryview(b["depth"])],
)
def test_view_keeps_its_slab(keep):
    stack = BufferedStacker()
    batch = stack(rows(0))
    was, kept = addresses(batch), keep(batch)
    before = np.array(kept)
    del batch
    gc.collect()
    assert addresses(stack(rows(10))) != was
    np.testing.assert_array_equal(np.asarray(kept), before)
    del kept
    assert was in (addresses(stack(rows(20))), addresses(stack(rows(20))))


def test_larger_batch_gets_a_larger_slab():
    stack = BufferedStacker()
    stack(rows(0, 1))
    check(stack(rows(0, 9)), 0, 9)
    check(stack(rows(0, 2)), 0, 2)


def test_unequal_rows_are_refused():
    with pytest.raises(ValueError):
        BufferedStacker()([*rows(0, 1), *rows(1, 1, size=8)])


def test_sender_reuses_slabs_that_the_receiver_freed():
    received = SharedMemoryReceiver()
    send = pickled(SharedMemorySender(received.folder))
    sent = pickled(send(rows(0)))
    assert len(os.listdir(received.folder)) == 1
    batch = received.open(sent)
    check(batch, 0)
    assert os.listdir(received.folder) == []  # nothing is left if both processes are killed now
    held = send(rows(10))
    assert held.path != sent.path
    check(batch, 0)
    part = batch["depth"][0]
    del batch
    assert send(rows(20)).path not in (sent.path, held.path)
    before = part.copy()
    np.testing.assert_array_equal(part, before)
    del part
    again = send(rows(30))
    assert again.path == sent.path
    last = received.open(again)
    check(last, 30)
    check(received.open(held), 10)
    received.close()
    check(last, 30)
    assert not Path(received.folder).exists()


def test_close_removes_unopened_slabs():
    received = SharedMemoryReceiver()
    SharedMemorySender(received.folder)(rows(0))
    received.close()
    assert not Path(received.folder).exists()


def test_process_exit_without_close_is_clean(tmp_path):
    program = (
        "from tests.unit.data.test_shared_memory import *\n"
        "received = SharedMemoryReceiver(); send = SharedMemorySender(received.folder)\n"
        "batch = received.open(send(rows(0))); send(rows(1)); print(received.folder)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and done.stderr == "" and not Path(done.stdout.strip()).exists()


def test_full_memory_is_one_line(monkeypatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    received = SharedMemoryReceiver()
    with pytest.raises(
        UserError,
        match=r"no room for a batch of 0 MiB in shared memory \(No space left.*data.workers=0",
    ):
        SharedMemorySender(received.folder)(rows(0))
    received.close()
