"""The loader: batch k depends on the seed and k, not on workers, hosts, threads or restarts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from modality_forcing.data import pipeline
from modality_forcing.data.mixture import MixtureComponent
from modality_forcing.data.records import Record
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.errors import UserError
from modality_forcing.tree import flatten
from tests.numbered import MIXED, MOVED, SPARSE, Numbered, batches, take


def record_numbers(taken: list[pipeline.Batch]) -> list[int]:
    """The records in the order in which batches show them."""
    return [int(number) for batch in taken for number in batch["image"][:, 0, 0, 0]]


def assert_equal(some: list[pipeline.Batch], others: list[pipeline.Batch]):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        left, right = flatten(one, "."), flatten(other, ".")
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def test_shapes_and_types():
    batch = take(batches(resolution=8), 1)[0]
    described = {key: (str(value.dtype), value.shape) for key, value in flatten(batch, ".").items()}
    assert described == {
        "image": ("uint8", (8, 8, 8, 3)),
        "depth": ("float32", (8, 8, 8)),
        "valid": ("bool", (8, 8, 8)),
        "index": ("int32", (8,)),
        "text.tokens": ("int32", (8, 12)),
        "text.mask": ("bool", (8, 12)),
    }


def test_rows_belong_together():
    for batch in take(batches(), 3):
        for row, index in enumerate(record_numbers([batch])):
            assert np.all(batch["image"][row] == index)
            assert np.all(batch["depth"][row][batch["valid"][row]] == index + 1)
            tokens = HashedWordTokenizer().encode(f"image number {index}")["tokens"]
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


def test_workers_do_not_change_batches_and_state():
    expected = take(batches(), 7)
    parallel = batches(workers=2)
    assert_equal(take(parallel, 5), expected[:5])
    assert parallel.get_state() == {"batches": 5}
    alone = batches()
    alone.set_state(parallel.get_state())
    assert_equal(take(alone, 2), expected[5:])
    parallel.set_state({"batches": 3})
    assert_equal(take(parallel, 2), expected[3:5])


def test_continues_after_close():
    iterator = batches()
    some = take(iterator, 2) + take(iterator, 2)
    assert_equal(some, take(batches(), 4))


@pytest.mark.parametrize("few", [0, 4096])
def test_epochs_are_complete_and_patterns_are_resampled(few: int, monkeypatch):
    monkeypatch.setattr(pipeline, "_SMALL_SOURCE", few)
    seen = take(batches(Numbered(24)), 6)  # two epochs
    order = record_numbers(seen)
    assert Counter(order[:24]) == Counter(order[24:]) == Counter(range(24))
    assert order[:24] != order[24:] and order[:24] != list(range(24))
    masks, again = (
        dict(zip(order[half], valid(seen)[half], strict=True))
        for half in (slice(0, 24), slice(24, 48))
    )
    assert sum(np.array_equal(masks[i], again[i]) for i in range(24)) < 3


def valid(taken: list[pipeline.Batch]) -> np.ndarray:
    return np.concatenate([batch["valid"] for batch in taken])


def test_index_counts_examples_and_not_records():
    """Noise is keyed by it: no two examples of a batch share it, though they show one record."""
    for source in (Numbered(3), Numbered(100), MIXED):
        indices = np.concatenate([batch["index"] for batch in take(batches(source), 3)])
        np.testing.assert_array_equal(indices, np.arange(24))
    far = batches(batch=2**10)
    far.set_state({"batches": 2**21 - 1})
    assert next(far)["index"][-1] == 2**31 - 1
    assert next(far)["index"][0] == 0  # starts again where i32 ends
    far.close()


def test_seeds_differ_and_do_not_overlap_in_a_later_epoch():
    def orders(seed: int) -> list[tuple[int, ...]]:
        rows = record_numbers(take(batches(Numbered(24), seed=seed, batch=24), 3))
        return [tuple(rows[start : start + 24]) for start in (0, 24, 48)]

    assert len({order for seed in (0, 1, 2) for order in orders(seed)}) == 9


def test_source_shorter_than_a_batch():
    assert set(record_numbers(take(batches(Numbered(3)), 1))) == {0, 1, 2}


def test_sources_of_a_mixture_have_complete_epochs():
    order = record_numbers(take(batches(MIXED), 60))
    counts = Counter(number // 100 for number in order)
    for source, (length, weight) in enumerate(((40, 2), (6, 1), (25, 0.2))):
        assert abs(counts[source] - 480 * weight / 3.2) < 1
        mine = [number for number in order if number // 100 == source]
        starts = range(0, len(mine) - length + 1, length)
        epochs = [tuple(mine[start : start + length]) for start in starts]
        assert all(
            set(epoch) == set(range(100 * source, 100 * source + length)) for epoch in epochs
        )
        assert len(set(epochs)) == len(epochs) >= 1


def test_order_of_a_source_does_not_depend_on_others():
    def few(mixture: dict[str, MixtureComponent]) -> list[int]:
        numbers = record_numbers(take(batches(mixture), 6 if len(mixture) < 2 else 20))
        return [number for number in numbers if number // 100 == 1][:24]

    assert few(MIXED) == few({"few": MIXED["few"]})
    assert few(MIXED) == few({"rare": MIXED["rare"], "few": MIXED["few"]})
    other = MixtureComponent(Numbered(6, first=200), 1.0)
    twins = record_numbers(take(batches({"one": MIXED["few"], "other": other}), 3))
    first = [number % 100 for number in twins if number < 200]
    assert first != [number % 100 for number in twins if number >= 200]
    assert few(MIXED) != few({"few": replace(MIXED["few"], source=Numbered(5, first=100))})


def test_components_have_their_own_sparsity():
    for batch in take(batches(MIXED), 3):
        for number, mask in zip(record_numbers([batch]), batch["valid"], strict=True):
            assert mask.all() if number >= 100 else 0 < mask.mean() < 0.14


def test_hosts_workers_and_restarts_do_not_change_the_mixture():
    """1, 2 and 4 hosts; 0, 1 and 4 loader processes; 3 threads; from any batch on."""
    expected = take(batches(MIXED, augment=MOVED), 6)
    for hosts, workers, threads, begin in ((2, 0, 1, 3), (4, 0, 3, 0), (1, 4, 1, 1), (2, 1, 2, 4)):
        parts = []
        for host in range(hosts):
            iterator = batches(
                MIXED, augment=MOVED, workers=workers, threads=threads, shard=(host, hosts)
            )
            iterator.set_state({"batches": begin})
            parts.append(take(iterator, 2))
        for k in range(2):
            for host in range(hosts):
                one = {
                    key: value[host::hosts]
                    for key, value in flatten(expected[begin + k], ".").items()
                }
                assert_equal([parts[host][k]], [one])


def test_augmentation_is_resampled_and_does_not_change_patterns():
    wide = {"wide": MixtureComponent(Gradient(), 1.0, SPARSE)}
    moved = take(batches(wide, augment=MOVED, batch=16), 2)
    assert_equal(moved, take(batches(wide, augment=MOVED, batch=16), 2))
    corners = np.concatenate([batch["image"][:, 0, 0, 1] for batch in moved])
    assert len(set(corners.tolist())) > 10
    plain = take(batches(wide, batch=16), 2)
    np.testing.assert_array_equal(valid(plain), valid(moved))  # of a map that is known all over


@dataclass(frozen=True)
class Gradient:
    """One record, valid everywhere, each column brighter than the last."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        record = Numbered(1, size=64)[0]
        image = record.image + np.arange(64, dtype=np.uint8)[:, None]
        return replace(record, image=image)


@pytest.mark.parametrize("number", [0, 7])
def test_records_of_a_batch_are_named_without_reading_them(number):
    iterator, first = batches(MIXED), {"many": 0, "few": 100, "rare": 200}
    shown = record_numbers(take(iterator, number + 1)[number:])
    named = iterator.records(number)
    assert sorted(shown) == sorted(first[name] + i for name, found in named.items() for i in found)
    assert batches(MIXED, shard=(1, 2)).records(number) == named


def test_loader_stats():
    iterator = batches(MIXED)
    assert iterator.pop_stats() == {}
    numbers = record_numbers(take(iterator, 10))
    stats = iterator.pop_stats()
    names = dict(enumerate(MIXED))
    for part, count in Counter(number // 100 for number in numbers).items():
        assert stats[f"share/{names[part]}"] == pytest.approx(count / 80)
        assert stats[f"valid/{names[part]}"] == 1 if part else stats["valid/many"] < 0.14
        assert 0 < stats[f"seconds/{names[part]}"] < 1
    assert 0 < stats["wait"] < 5 and iterator.pop_stats() == {}
    alone = batches(workers=1)
    take(alone, 1)
    assert alone.pop_stats().keys() == {"wait", "share", "valid", "seconds"}


def test_depth_is_dense_without_patterns():
    assert take(batches(sparsity=None), 1)[0]["valid"].all()


@pytest.mark.parametrize("workers", [0, 1])
def test_user_error_of_a_record_is_raised(workers: int):
    iterator = batches(Numbered(8, broken=5), workers=workers)
    with pytest.raises(UserError) as caught:
        take(iterator, 1)
    assert str(caught.value) == "5.png: cannot be read; replace it"


@pytest.mark.parametrize(
    "state", [{}, {"batches": -1}, {"batches": "4"}, {"batches": 1, "more": 2}]
)
def test_invalid_loader_state_is_refused(state: dict):
    with pytest.raises(UserError, match="data state"):
        batches().set_state(state)


def test_empty_sources_are_refused():
    with pytest.raises(UserError, match="no record"):
        batches(Numbered(0))
    with pytest.raises(UserError, match="empty: no record"):
        full, empty = (MixtureComponent(Numbered(length), 1.0) for length in (1, 0))
        batches({"full": full, "empty": empty})
    with pytest.raises(UserError, match="mixture of nothing"):
        batches({})
    with pytest.raises(UserError, match="batch size"):
        batches(batch=0)


def share_of_depth(record: Record) -> np.ndarray:
    return np.float32(record.valid.mean())


def test_further_inputs_see_all_depth_of_the_augmented_record():
    plain = take(batches(sparsity=SPARSE), 2)
    more = take(batches(sparsity=SPARSE, record_inputs={"share": share_of_depth}), 2)
    shares = [batch.pop("share") for batch in more]
    assert_equal(more, plain)
    assert [share.shape for share in shares] == [(8,), (8,)]
    for share, batch in zip(shares, plain, strict=True):
        assert (share >= batch["valid"].mean(axis=(1, 2))).all() and share.min() == share.max() == 1
