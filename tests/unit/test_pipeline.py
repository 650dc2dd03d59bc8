"""The loader: batch k depends on the seed and k, not on workers, restarts, threads or the length of the source."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data import pipeline
from modality_forcing.data.records import Record
from modality_forcing.encoders.words import Words
from modality_forcing.errors import UserError

SPARSE = {"uniform": 1.0}


@dataclass(frozen=True)
class Numbered:
    """Records whose every pixel tells their index, at their own size."""

    length: int
    size: int = 16
    broken: int = -1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        if index == self.broken:
            raise UserError("cannot be read", where=f"{index}.png", mend="replace it")
        shape = (self.size, self.size)
        return Record(
            image=np.full((*shape, 3), index % 256, np.uint8),
            depth=np.full(shape, index + 1, np.float32),
            valid=np.ones(shape, np.bool_),
            intrinsics=np.full((3, 3), np.nan, np.float32),
            unit="relative",
            caption=f"picture number {index}",
            source="numbered",
            id=str(index),
        )


def batches(source: Numbered = Numbered(100), **changes) -> pipeline.BatchIterator:
    options = {"batch": 8, "seed": 3, "resolution": 16, "sparse": SPARSE, **changes}
    return pipeline.train_batches(source, Words(), **options)


def take(iterator: pipeline.BatchIterator, count: int) -> list[pipeline.Batch]:
    taken = [next(iterator) for _ in range(count)]
    iterator.close()
    return taken


def flat(batch: pipeline.Batch, prefix: str = "") -> dict[str, np.ndarray]:
    leaves = {}
    for key, value in batch.items():
        leaves.update(flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: np.asarray(value)})
    return leaves


def assert_equal(some: list[pipeline.Batch], others: list[pipeline.Batch]):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        left, right = flat(one), flat(other)
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def test_shapes_and_types():
    batch = take(batches(resolution=8), 1)[0]
    described = {key: (str(value.dtype), value.shape) for key, value in flat(batch).items()}
    assert described == {
        "image": ("uint8", (8, 8, 8, 3)),
        "depth": ("float32", (8, 8, 8)),
        "valid": ("bool", (8, 8, 8)),
        "index": ("int32", (8,)),
        "text/tokens": ("int32", (8, 12)),
        "text/mask": ("bool", (8, 12)),
    }


def test_rows_belong_together():
    for batch in take(batches(), 3):
        for row, index in enumerate(batch["index"]):
            assert np.all(batch["image"][row] == index)
            assert np.all(batch["depth"][row][batch["valid"][row]] == index + 1)
            tokens = Words().encode(f"picture number {index}")["tokens"]
            np.testing.assert_array_equal(batch["text"]["tokens"][row], tokens)


def test_resumed_batches_are_the_same():
    whole = batches()
    first = [next(whole) for _ in range(4)]
    state = whole.get_state()
    rest = take(whole, 6)
    assert state == {"batches": 4}
    again = batches()
    again.set_state(state)
    assert_equal(take(again, 6), rest)
    again.set_state({"batches": 0})
    assert_equal(take(again, 4), first)


def test_any_number_of_workers_gives_the_same_batches_and_state():
    expected = take(batches(), 7)
    parallel = batches(workers=2)
    assert_equal(take(parallel, 5), expected[:5])
    assert parallel.get_state() == {"batches": 5}
    alone = batches()
    alone.set_state(parallel.get_state())
    assert_equal(take(alone, 2), expected[5:])
    parallel.set_state({"batches": 3})
    assert_equal(take(parallel, 2), expected[3:5])


@pytest.mark.parametrize("workers", [0, 1])
def test_leaves_quietly_when_nobody_closes(workers: int, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "from modality_forcing.data.pipeline import train_batches\n"
        "from modality_forcing.data.scenes import Scenes\n"
        "from modality_forcing.encoders.words import Words\n"
        "if __name__ == '__main__':\n"
        f"    loader = train_batches(Scenes(), Words(), batch=4, seed=0, resolution=64, workers={workers})\n"
        "    kept = next(loader)\n"
        "    raise SystemExit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


def test_goes_on_after_close():
    iterator = batches()
    some = take(iterator, 2) + take(iterator, 2)
    assert_equal(some, take(batches(), 4))


def test_every_record_once_an_epoch_and_patterns_anew():
    seen = take(batches(Numbered(24)), 6)  # two epochs
    for epoch in (seen[:3], seen[3:]):
        assert Counter(int(i) for batch in epoch for i in batch["index"]) == Counter(range(24))
    order = [int(i) for batch in seen for i in batch["index"]]
    assert order[:24] != order[24:] and order[:24] != list(range(24))
    masks = {int(i): mask for batch in seen[:3] for i, mask in zip(batch["index"], batch["valid"], strict=True)}
    again = {int(i): mask for batch in seen[3:] for i, mask in zip(batch["index"], batch["valid"], strict=True)}
    assert sum(np.array_equal(masks[i], again[i]) for i in range(24)) < 3


def test_seeds_differ_and_do_not_overlap_in_a_later_epoch():
    def orders(seed: int) -> list[tuple[int, ...]]:
        rows = [int(i) for batch in take(batches(Numbered(24), seed=seed, batch=24), 3) for i in batch["index"]]
        return [tuple(rows[start : start + 24]) for start in (0, 24, 48)]

    assert len({order for seed in (0, 1, 2) for order in orders(seed)}) == 9


def test_source_shorter_than_a_batch():
    batch = take(batches(Numbered(3)), 1)[0]
    assert batch["index"].shape == (8,) and set(batch["index"].tolist()) == {0, 1, 2}


def test_dense_without_patterns():
    assert take(batches(sparse=None), 1)[0]["valid"].all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_mistake_arrives_as_itself(workers: int):
    iterator = batches(Numbered(8, broken=5), workers=workers)
    with pytest.raises(UserError) as caught:
        take(iterator, 1)
    assert str(caught.value) == "5.png: cannot be read; replace it"


@pytest.mark.parametrize("state", [{}, {"batches": -1}, {"batches": "4"}, {"batches": 1, "more": 2}])
def test_refuses_a_foreign_state(state: dict):
    with pytest.raises(UserError, match="data state"):
        batches().set_state(state)


def test_refuses_nothing_to_read():
    with pytest.raises(UserError, match="no record"):
        batches(Numbered(0))
    with pytest.raises(UserError, match="batch size"):
        batches(batch=0)


def test_our_data_modules_load_neither_jax_nor_grain():
    program = (
        "import sys, modality_forcing.data.records, modality_forcing.data.resize, modality_forcing.data.folder,"
        "modality_forcing.data.sparse, modality_forcing.encoders.words;"
        "sys.exit(', '.join(sorted({'jax', 'grain', 'flax'} & set(sys.modules))) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
