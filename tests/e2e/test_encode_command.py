"""`mforce encode`, and training on its cache compared with training that encodes online."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from modality_forcing.config import Config, to_dict
from modality_forcing.errors import UserError
from modality_forcing.train import inputs
from modality_forcing.train.init import init_run
from modality_forcing.train.loop import train
from tests import frozen as small
from tests.runs import process, refused


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encode")
    made = {"text": small.text_folder(root / "text"), "image": small.image_folder(root / "image")}
    return {**made, "records": small.prepared(root / "records"), "cache": root / "cache"}


@pytest.fixture(scope="module")
def encoded(folders) -> Path:
    done = process(
        "encode", "--source", folders["records"], "--out", folders["cache"],
        f"--text=umt5:{folders['text']}",
        f"--image=flux2:{folders['image']}", "--resolution", small.PIXELS, "--tokens", small.TOKENS,
        "--shard-size", 4,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (
        done.out.strip() == str(folders["cache"] / "encoded-train.json")
        and "train latents  11/11" in done.err
    )
    return folders["cache"]


def configs(folders: dict[str, Path], cache: Path) -> tuple[Config, Config]:
    names = {"text": folders["text"], "image": folders["image"]}
    return small.config(folders["records"], **names), small.config(folders["records"], cache=cache)


def test_cached_batches_equal_online_batches(folders, encoded, tmp_path):
    (online, _), (cached, _) = (
        init_run(c, tmp_path / c.data.cache[-5:]) for c in configs(folders, encoded)
    )
    for _ in range(6):
        one, other = next(online.batches), next(cached.batches)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), one) == jax.tree.map(
            lambda x: (x.shape, x.dtype), other
        )
        for name in ("depth", "valid", "index"):
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_array_equal(one["text"]["mask"], other["text"]["mask"])
        near(other["latent"], one["latent"])
        near(other["text"]["tokens"], one["text"]["tokens"])
    online.batches.close()
    cached.batches.close()


def near(a: jax.Array, b: jax.Array) -> None:
    """Equal up to the rounding of bfloat16, which may fall to either side."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert np.abs(a - b).max() <= 2**-7 * np.abs(b).max() and np.linalg.norm(
        a - b
    ) <= 2**-8 * np.linalg.norm(b)


@pytest.fixture(scope="module")
def runs(folders, encoded, tmp_path_factory) -> tuple[Path, Path]:
    """Workdirs of a run that encoded and of one that read the cache."""
    workdirs = tmp_path_factory.mktemp("online"), tmp_path_factory.mktemp("cached")
    for workdir, c in zip(workdirs, configs(folders, encoded), strict=True):
        train(c, workdir)
    return workdirs


def test_losses_with_and_without_cache_agree(runs):
    rows = []
    for workdir in runs:
        rows_read = [
            json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()
        ]
        rows.append([row["loss"] for row in rows_read if "loss" in row])
    assert len(rows[0]) == 6
    np.testing.assert_allclose(rows[0], rows[1], rtol=0.02)


def test_latents_are_sampled_to_images(folders, runs, tmp_path):
    encoders = (f"--text-encoder=umt5:{folders['text']}", f"--autoencoder=flux2:{folders['image']}")
    sample = ("sample", "--checkpoint", runs[1], "--out", tmp_path / "out", "--steps", 2)
    done = process(
        *sample, "--mode", "joint", "--caption", "a caption that no cache has", *encoders
    )
    assert done.code == 0, done.err
    image = np.asarray(Image.open(tmp_path / "out" / "joint_000_image.png"))
    assert image.shape == (small.PIXELS, small.PIXELS, 3) and image.std() > 0
    given = tmp_path / "out" / "joint_000_image.png"
    done = process(*sample, "--mode", "i2d", "--image", given, *encoders)
    assert done.code == 0 and (tmp_path / "out" / "i2d_000_depth.npy").is_file(), done.err
    refused(
        process(*sample, "--mode", "t2i", encoders[0]),
        "name their autoencoder with --autoencoder flux2:PATH",
    )
    refused(
        process(*sample, "--mode", "t2i", *encoders[1:], "--caption", "new"),
        "no cache has the caption 'new'",
    )
    refused(
        process(*sample, "--mode", "t2i", "--autoencoder=vae:x", encoders[0]),
        "it must be flux2:PATH",
    )


def test_evaluate_takes_encoders_missing_from_the_config(folders, runs, tmp_path):
    evaluate = (
        "evaluate",
        "--checkpoint",
        runs[1],
        "--examples",
        2,
        "--steps",
        1,
        "--json",
        "--out",
        tmp_path / "scores.json",
    )
    image = f"--autoencoder=flux2:{folders['image']}"
    done = process(*evaluate, image, f"--text-encoder=umt5:{folders['text']}")
    assert done.code == 0, done.err
    assert (
        json.loads(done.out) == json.loads((tmp_path / "scores.json").read_text())
        and json.loads(done.out)["i2d"]["absrel"] > 0
    )
    refused(process(*evaluate), "name their autoencoder with --autoencoder flux2:PATH")
    refused(process(*evaluate, "--autoencoder=flux2:nowhere"), "nowhere: no such file or folder")
    arrays = ("evaluate", "--pred", "p.npz", "--truth", "t.npz", image)
    refused(process(*arrays), r"--autoencoder is not for arrays \(--pred, --truth\); leave it out")


def test_missing_half_of_a_cache_is_encoded_online(folders, encoded, tmp_path):
    """A caption cache with an online autoencoder gives the batches of both caches."""
    texts, online = tmp_path / "texts", configs(folders, encoded)[0]
    encode = (
        "encode",
        "--source",
        folders["records"],
        "--out",
        texts,
        f"--text=umt5:{folders['text']}",
        "--tokens",
        small.TOKENS,
    )
    assert process(*encode).code == 0
    half = replace(online, data=replace(online.data, cache=str(texts)))
    frozen = inputs.open_inputs(half).encoders
    assert frozen.has_image and not frozen.has_text
    one, _ = init_run(half, tmp_path / "half")
    other, _ = init_run(online, tmp_path / "online")
    for _ in range(3):
        a, b = next(one.batches), next(other.batches)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), a) == jax.tree.map(
            lambda x: (x.shape, x.dtype), b
        )
        np.testing.assert_array_equal(a["latent"], b["latent"])
        near(a["text"]["tokens"], b["text"]["tokens"])
    one.batches.close()
    other.batches.close()
    moved = replace(half, data=replace(half.data, min_crop=0.5))
    source = inputs.open_inputs(moved).source
    assert len(source) == 11 and source[0].latents is None
    without = replace(
        half, modalities={n: replace(m, autoencoder="") for n, m in half.modalities.items()}
    )
    with pytest.raises(
        UserError, match=r"holds nothing of image; run mforce encode with --image too"
    ):
        inputs.open_inputs(without)


def test_cache_of_other_weights_is_refused(folders, encoded, tmp_path):
    both = replace(configs(folders, encoded)[0], data=configs(folders, encoded)[1].data)
    inputs.open_inputs(both).check()
    other = replace(
        both,
        text=replace(
            both.text, encoder=f"umt5:{small.text_folder(tmp_path / 'other', seed='other')}"
        ),
    )
    with pytest.raises(
        UserError, match=r"was made with text weights \w+, and the config has \w+; encode again"
    ):
        init_run(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_invalid_arguments_are_refused_and_write_nothing(folders, encoded, tmp_path):
    call = ("encode", "--source", folders["records"], "--out", tmp_path / "out")
    refused(
        process(*call), "nothing to encode with; give --text=umt5:PATH, --image=flux2:PATH or both"
    )
    refused(process(*call, "--text=umt5:nowhere"), "nowhere: no such file or folder")
    refused(process(*call, f"--text=umt5:{folders['image']}"), "model_type is None, not 'umt5'")
    refused(process(*call, f"--image=flux2:{folders['text']}"), "config.json is of None")
    refused(
        process("encode", "--source", tmp_path, "--out", tmp_path / "out", "--text=umt5:x"),
        "holds no shards",
    )
    torn = small.text_folder(tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-8])
    refused(process(*call, f"--text=umt5:{torn}"), "is truncated or no safetensors file")
    small.text_folder(tmp_path / "torn")
    (torn / "spiece.model").unlink()
    refused(process(*call, f"--text=umt5:{torn}"), "holds no spiece.model")
    assert not (tmp_path / "out").exists()
    again = (
        "encode",
        "--source",
        folders["records"],
        "--out",
        encoded,
        f"--text=umt5:{folders['text']}",
    )
    refused(
        process(*again, "--tokens", 5, "--shard-size", 4),
        r"was started with other settings \(text\.tokens 9, now 5\)",
    )


def test_cache_of_another_config_is_refused(folders, encoded):
    _, c = configs(folders, encoded)
    with pytest.raises(UserError, match="was made with image resolution 16, and the config has 32"):
        inputs.open_inputs(replace(c, data=replace(c.data, resolution=32)))
    with pytest.raises(UserError, match="was made with text tokens 9, and the config has 7"):
        inputs.open_inputs(replace(c, text=replace(c.text, tokens=7)))
    with pytest.raises(UserError, match="holds no cache of train; make it with mforce encode"):
        inputs.open_inputs(replace(c, data=replace(c.data, cache=str(folders["records"]))))
    other = small.prepared(folders["cache"].parent / "others", count=7)
    with pytest.raises(UserError, match="was made of other records than"):
        inputs.open_inputs(replace(c, data=replace(c.data, root=str(other))))
    online = configs(folders, encoded)[0]
    lacking = replace(
        online, modalities={n: replace(m, autoencoder="") for n, m in online.modalities.items()}
    )
    with pytest.raises(
        UserError,
        match=r"modalities\.image has latents, and nothing says what makes them; set modalities\.image",
    ):
        inputs.open_inputs(lacking)
    with pytest.raises(UserError, match=r"data\.min_crop and data\.crop_jitter cannot move images"):
        inputs.open_inputs(replace(c, data=replace(c.data, min_crop=0.5)))
    assert to_dict(c)["data"]["cache"] == str(encoded)
