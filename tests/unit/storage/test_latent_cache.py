"""Caches: exact arrays, captions found by their hash, and one line for a damaged one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modality_forcing.errors import UserError
from modality_forcing.storage import latent_cache
from modality_forcing.storage.latent_cache import Cache, CachedTextStates
from modality_forcing.storage.shards import ShardWriter, shard_name
from modality_forcing.text_io import with_checksum
from tests import damage

WIDTH = 4
CAPTIONS = ("", "a red cube", "赤い球", "un gato negro")


def states(caption: str) -> np.ndarray:
    """One row for each letter and one for the end."""
    return (np.arange((len(caption) + 1) * WIDTH).reshape(-1, WIDTH) + len(caption)).astype(
        ml_dtypes.bfloat16
    )


def write(folder: Path, captions: tuple[str, ...] = CAPTIONS, **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": latent_cache.FORMAT, "text": {"width": WIDTH, "tokens": 8}, **settings}
    latent_cache.settings_path(folder, "train").write_text(json.dumps(with_checksum(content)))
    np.save(
        latent_cache.caption_index_path(folder, "train"), latent_cache.build_caption_index(captions)
    )
    with ShardWriter(folder / "text" / shard_name("text", "train", 0, 1)) as writer:
        for caption in captions:
            writer.write(latent_cache.pack(states(caption), "states", caption=caption.encode()))
    return folder


def found(tokens: int, *folders: Path) -> CachedTextStates:
    return CachedTextStates(tokens, tuple(Cache(folder, "train") for folder in folders))


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(max_dims=4),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    )
)
def test_unpack_inverts_pack(array):
    half = array.astype(ml_dtypes.bfloat16)
    back, features = latent_cache.unpack(
        latent_cache.pack(half, "latents", caption=b"more"), "latents"
    )
    np.testing.assert_array_equal(back.view(np.uint16), half.view(np.uint16))
    assert features["caption"] == [b"more"] and back.dtype == half.dtype


def test_other_examples_are_a_value_error():
    packed = latent_cache.pack(np.zeros((2, 3)), "latents")
    for content, name in (
        (packed, "states"),
        (packed[:-3], "latents"),
        (b"hello", "latents"),
        (packed, "size"),
    ):
        with pytest.raises(ValueError, match=f"holds no {name}"):
            latent_cache.unpack(content, name)


def test_states_are_truncated_and_padded(tmp_path):
    texts = found(11, write(tmp_path))
    for caption in CAPTIONS:
        text, want = texts.encode(caption), states(caption)[:11]
        assert text["tokens"].shape == (11, WIDTH) and text["tokens"].dtype == want.dtype
        assert (
            text["mask"].sum() == len(want)
            and not np.asarray(text["tokens"], np.float32)[len(want) :].any()
        )
        np.testing.assert_array_equal(text["tokens"][: len(want)], want)
    np.testing.assert_array_equal(texts.null()["tokens"], texts.encode("")["tokens"])


def test_second_cache_is_used_in_every_process(tmp_path):
    texts = found(
        5, write(tmp_path / "one", ("", "first")), write(tmp_path / "other", ("", "second"))
    )
    for each in (texts, pickle.loads(pickle.dumps(texts))):  # noqa: S301
        assert each.encode("first")["mask"].all() and each.encode("second")["mask"].all()
        with pytest.raises(
            UserError, match="no cache has the caption 'third'; run the same mforce encode again"
        ):
            each.encode("third")


@given(st.lists(st.text(max_size=6), unique=True, min_size=1, max_size=40))
def test_caption_index_is_sorted_by_key(captions):
    keys, rows = latent_cache.build_caption_index(
        [caption.encode("utf-8", "ignore").decode() for caption in captions]
    )
    assert np.all(keys[:-1] <= keys[1:]) and sorted(rows) == list(range(len(captions)))


def test_missing_cache_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no cache of train; make it with mforce encode"):
        Cache(tmp_path, "train")
    with pytest.raises(UserError, match="is of format 9, and this version reads 1"):
        Cache(write(tmp_path / "format", format=9), "train")
    with pytest.raises(UserError, match="holds nothing of text"):
        found(5, write(tmp_path / "nothing", text=None))
    cache = Cache(write(tmp_path / "cache"), "train")
    cache.check("text", width=WIDTH, tokens=8)
    with pytest.raises(UserError, match="was made with text tokens 8, and the config has 9"):
        cache.check("text", width=WIDTH, tokens=9)


@pytest.mark.parametrize("damaged", ["truncated", "lost"])
def test_damaged_shard_is_encoded_again(tmp_path, damaged):
    write(tmp_path)
    path = tmp_path / "text" / shard_name("text", "train", 0, 2)
    path.with_name(shard_name("text", "train", 0, 1)).rename(path)
    if damaged == "truncated":
        path.with_name(shard_name("text", "train", 1, 2)).write_bytes(path.read_bytes()[:90])
    with pytest.raises(UserError, match="run the same mforce encode again"):
        found(5, tmp_path)


def test_changed_digit_of_the_settings_is_one_line_and_old_settings_are_read(tmp_path):
    path = latent_cache.settings_path(write(tmp_path), "train")
    text = path.read_text()
    path.write_text(text.replace(f'"width": {WIDTH}', '"width": 5'))
    damaged = r"is damaged \(its checksum differs\); delete it and run the same mforce encode again"
    with pytest.raises(UserError, match=damaged):
        Cache(tmp_path, "train")
    content = json.loads(text)
    del content["checksum"]  # as earlier versions wrote it
    path.write_text(json.dumps(content))
    assert Cache(tmp_path, "train").settings == content


def test_damaged_index_is_one_line(tmp_path):
    path = latent_cache.caption_index_path(write(tmp_path), "train")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"cannot be read as a .*; run the same mforce encode"):
        found(5, tmp_path)
    np.save(path, np.zeros((2, 4)))
    with pytest.raises(UserError, match=r"holds float64 \(2, 4\), not the index of captions"):
        found(5, tmp_path)
    np.save(path, latent_cache.build_caption_index(CAPTIONS[:2]))
    with pytest.raises(UserError, match="does not list the captions beside it"):
        found(5, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        found(5, tmp_path)


@pytest.fixture(scope="module")
def spare(tmp_path_factory) -> Path:
    """A cache that every example of the fuzz test damages and repairs."""
    return write(tmp_path_factory.mktemp("spare"))


@given(st.data())
@damage.examples(60)
@pytest.mark.filterwarnings("ignore")
def test_damaged_cache_gives_one_line_or_the_same_states(spare, data):
    path = data.draw(st.sampled_from(sorted(p for p in spare.rglob("*") if p.is_file())))
    before = path.read_bytes()
    path.write_bytes(data.draw(damage.of(before)))
    try:
        settings = Cache(spare, "train").settings
        # A changed name of the checksum is one more key, which nothing reads.
        assert {**settings, "format": 1, "text": {"width": WIDTH, "tokens": 8}} == settings
        cache = found(8, spare)
        for caption in CAPTIONS:
            tokens = cache.encode(caption)["tokens"]
            expected = states(caption)[:8]
            np.testing.assert_array_equal(tokens[: len(expected)], expected)
    except UserError as error:
        assert str(spare) in str(error) and "\n" not in str(error)
    finally:
        path.write_bytes(before)
