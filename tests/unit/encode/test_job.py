"""Encoding: latents and states of every record; equal bytes for any jobs, batches and runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from modality_forcing.config import MeshConfig
from modality_forcing.data.augment import hflip
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.encode.job import EncodeJob
from modality_forcing.encoders.frozen import FrozenEncoders
from modality_forcing.errors import UserError
from modality_forcing.storage import latent_cache
from modality_forcing.storage.latent_cache import Cache, CachedTextStates, LatentSource
from modality_forcing.storage.shards import Shards
from modality_forcing.train import sharding
from tests import frozen as small

MESH = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> FrozenEncoders:
    folder = tmp_path_factory.mktemp("frozen")
    text, image = small.text_folder(folder / "text"), small.image_folder(folder / "image")
    return FrozenEncoders(f"umt5:{text}", f"flux2:{image}", MESH)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Shards:
    return Shards(small.prepared(tmp_path_factory.mktemp("prepared")))


def job(
    frozen: FrozenEncoders,
    shards: Shards,
    out: Path,
    shard: tuple[int, int] = (0, 1),
    batch: int = 4,
    **changes,
) -> EncodeJob:
    own = {"text": {"tokens": small.TOKENS}, "image": {"resolution": small.PIXELS}}
    settings = {
        "format": latent_cache.FORMAT,
        "source": latent_cache.source_digest(shards.folder, shards.split),
        "records": len(shards),
        "shard_size": 3,
        **{name: {**identity, **own[name]} for name, identity in frozen.identity().items()},
        **changes,
    }
    return EncodeJob(
        source=shards, out=out, settings=settings, frozen=frozen, batch=batch, shard=shard
    )


def encode(one: EncodeJob) -> Path:
    one.check_or_write_settings()
    one.encode_text(small.TOKENS)
    one.encode_images(small.PIXELS)
    return one.out


@pytest.fixture(scope="module")
def cache(frozen, source, tmp_path_factory) -> Path:
    return encode(job(frozen, source, tmp_path_factory.mktemp("cache")))


def bytes_of(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_latents_are_those_of_the_image_and_its_mirror_image(cache, frozen, source):
    records = LatentSource(source, Cache(cache, "train"))
    assert len(records) == len(source) == 11
    for index in (0, 5, 10):
        record, seen = records[index], center_crop_resize(source[index], small.PIXELS)
        both = np.stack([seen.image, hflip(seen).image])
        want = np.asarray(frozen.latents(jax.numpy.asarray(both)), np.float32)
        np.testing.assert_allclose(
            np.asarray(record.latents, np.float32), want, rtol=2**-7, atol=1e-4
        )
        assert not np.array_equal(record.latents[0], record.latents[1])
        np.testing.assert_array_equal(record.depth, source[index].depth)
        np.testing.assert_array_equal(hflip(record).latents, record.latents[::-1])


def test_every_caption_is_there_once(cache, frozen, source):
    states = CachedTextStates(small.TOKENS, (Cache(cache, "train"),))
    sentences = frozen.tokenizer(small.TOKENS)
    captions = {source[index].caption for index in range(len(source))}
    assert len(captions) == 6 and "" in captions
    assert len(Shards(cache / "text", "train")) == len(captions)
    for caption in captions:
        ids = sentences.encode(caption)
        want = frozen.states({k: jax.numpy.asarray(v[None]) for k, v in ids.items()})["tokens"][0]
        found = states.encode(caption)
        np.testing.assert_array_equal(found["mask"], ids["mask"])
        np.testing.assert_allclose(
            np.asarray(found["tokens"], np.float32),
            np.asarray(want, np.float32),
            rtol=0.02,
            atol=0.02,
        )


def test_states_of_padding_are_cached_where_networks_read_them(source, tmp_path):
    pytest.importorskip("tokenizers")
    encoder = small.qwen_folder(tmp_path / "text")
    frozen = FrozenEncoders(f"qwen3:{encoder}", mesh=MESH)
    one = job(frozen, source, tmp_path / "cache", text={**frozen.identity()["text"], "tokens": 40})
    one.check_or_write_settings()
    one.encode_text(small.QWEN_TOKENS)
    cache = Cache(tmp_path / "cache", "train")
    cache.check("text", width=small.QWEN_WIDTH, tokens=small.QWEN_TOKENS)
    states = CachedTextStates(small.QWEN_TOKENS, (cache,))
    tokenizer = frozen.tokenizer(small.QWEN_TOKENS)
    captions = sorted({source[index].caption for index in range(len(source))})
    ids = [tokenizer.encode(caption) for caption in captions]
    text = {k: jax.numpy.stack([row[k] for row in ids]) for k in ids[0]}
    want = np.asarray(frozen.states(text)["tokens"], np.float32)
    for i, caption in enumerate(captions):
        found = states.encode(caption)
        np.testing.assert_array_equal(found["mask"], ids[i]["mask"])
        near = np.asarray(found["tokens"], np.float32)
        assert np.abs(near - want[i]).max() < 0.03 * np.abs(want[i]).max()
    assert not states.null()["mask"].all() and states.null()["tokens"].any(-1).all()


def test_bytes_depend_on_neither_parts_nor_batches_nor_being_stopped(
    cache, frozen, source, tmp_path
):
    for part in ((1, 2), (0, 2)):
        encode(job(frozen, source, tmp_path / "parts", part))
    assert bytes_of(tmp_path / "parts") == bytes_of(cache)

    whole, stopped = FrozenEncoders.latents, []

    def stop(self: FrozenEncoders, image: np.ndarray):
        stopped.append(1)
        if len(stopped) == 4:
            raise KeyboardInterrupt
        return whole(self, image)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FrozenEncoders, "latents", stop)
        encode(job(frozen, source, tmp_path / "stopped"))
    left = bytes_of(tmp_path / "stopped")
    assert 0 < len(left) < len(bytes_of(cache)) and all(
        bytes_of(cache)[name] == content for name, content in left.items()
    )
    encode(job(frozen, source, tmp_path / "stopped"))
    assert bytes_of(tmp_path / "stopped") == bytes_of(cache)
    assert job(frozen, source, cache).summary() == str(cache / "encoded-train.json")


def test_unfinished_cache_is_refused(frozen, source, tmp_path):
    first = job(frozen, source, tmp_path, (0, 2))
    encode(first)
    assert first.summary() == "this job is done; 1 of 2 shards of text, 2 of 4 shards of latents"
    with pytest.raises(UserError, match="lacks 2 of 4 shards"):
        LatentSource(source, Cache(tmp_path, "train"))


def test_cache_of_other_settings_is_refused_by_name(cache, frozen, source, tmp_path):
    other = FrozenEncoders(f"umt5:{small.text_folder(tmp_path / 'other', seed='other')}", mesh=MESH)
    before = bytes_of(cache)
    with pytest.raises(
        UserError,
        match=r"was started with other settings \(text.weights \w+, now \w+\); choose another",
    ):
        job(other, source, cache).check_or_write_settings()
    with pytest.raises(UserError, match=r"\(shard_size 3, now 4\)"):
        job(frozen, source, cache, shard_size=4).check_or_write_settings()
    with pytest.raises(UserError, match=r"\(records 11, now 5, source \w+, now abc\)"):
        job(frozen, source, cache, source="abc", records=5).check_or_write_settings()
    assert bytes_of(cache) == before


def test_images_may_be_added_to_a_text_cache(cache, frozen, source, tmp_path):
    alone = FrozenEncoders(f"umt5:{frozen._text_at}", mesh=MESH)
    text = job(alone, source, tmp_path)
    text.check_or_write_settings()
    text.encode_text(small.TOKENS)
    with pytest.raises(
        UserError, match="holds nothing of image; run mforce encode with --image too"
    ):
        LatentSource(source, Cache(tmp_path, "train"))
    encode(job(frozen, source, tmp_path))
    have, want = (
        json.loads((folder / "encoded-train.json").read_text()) for folder in (tmp_path, cache)
    )
    assert have == want
