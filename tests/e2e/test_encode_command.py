"""`mforce encode`, and training on its cache compared with training that encodes online."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

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
    assert done.out.strip() == str(folders["cache"] / "encoded-train.json")
    assert "train latents  11/11" in done.err
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
        assert structure(one) == structure(other)
        for name in ("depth", "valid", "index"):
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_array_equal(one["text"]["mask"], other["text"]["mask"])
        near(other["latent"], one["latent"])
        near(other["text"]["tokens"], one["text"]["tokens"])
    online.batches.close()
    cached.batches.close()


def structure(batch: dict) -> dict:
    return jax.tree.map(lambda x: (x.shape, x.dtype), batch)


def near(a: jax.Array, b: jax.Array) -> None:
    """Equal up to rounding to bfloat16, which may differ by one unit."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert np.abs(a - b).max() <= 2**-7 * np.abs(b).max()
    assert np.linalg.norm(a - b) <= 2**-8 * np.linalg.norm(b)


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


def encoders(folders: dict[str, Path]) -> tuple[str, str]:
    return f"--text-encoder=umt5:{folders['text']}", f"--autoencoder=flux2:{folders['image']}"


def test_latents_are_sampled_to_images(folders, runs, tmp_path, mforce):
    text, autoencoder = encoders(folders)
    sample = ("sample", "--checkpoint", runs[1], "--out", tmp_path / "out", "--steps", 2, "--mode")
    new = ("--caption", "a caption that no cache has")
    done = process(*sample, "joint", *new, text, autoencoder)
    assert done.code == 0, done.err
    path = tmp_path / "out" / "joint_000_image.png"
    image = np.asarray(Image.open(path))
    assert image.shape == (small.PIXELS, small.PIXELS, 3) and image.std() > 0
    done = mforce(*sample, "i2d", "--image", path, text, autoencoder)
    assert done.code == 0 and (tmp_path / "out" / "joint_000_image_depth.npy").is_file(), done.err
    needed = "name their autoencoder with --autoencoder flux2:PATH"
    refused(mforce(*sample, "t2i", text), needed)
    refused(mforce(*sample, "t2i", autoencoder, *new), "no cache has the caption 'a caption that")
    refused(mforce(*sample, "t2i", "--autoencoder=vae:x", text), "it must be flux2:PATH")


def test_evaluate_takes_encoders_missing_from_the_config(folders, runs, tmp_path, mforce):
    scores = tmp_path / "scores.json"
    evaluate = ("evaluate", "--checkpoint", runs[1], "--examples", 2, "--steps", 1, "--json")
    evaluate = (*evaluate, "--out", scores)
    text, autoencoder = encoders(folders)
    done = process(*evaluate, autoencoder, text)
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads(scores.read_text())
    assert json.loads(done.out)["i2d"]["absrel"] > 0
    refused(mforce(*evaluate), "name their autoencoder with --autoencoder flux2:PATH")
    refused(mforce(*evaluate, "--autoencoder=flux2:nowhere"), "nowhere: no such file or folder")
    arrays = ("evaluate", "--pred", "p.npz", "--target", "t.npz", autoencoder)
    refused(mforce(*arrays), r"--autoencoder is not for arrays \(--pred, --target\); leave it out")


def test_missing_half_of_a_cache_is_encoded_online(folders, encoded, tmp_path, mforce):
    """A caption cache with an online autoencoder gives the batches of both encoders online."""
    texts, online = tmp_path / "texts", configs(folders, encoded)[0]
    text = f"--text=umt5:{folders['text']}"
    encode = ("encode", "--source", folders["records"], "--out", texts, text)
    assert mforce(*encode, "--tokens", small.TOKENS).code == 0
    half = replace(online, data=replace(online.data, cache=str(texts)))
    frozen = inputs.open_inputs(half).encoders
    assert frozen.has_image and not frozen.has_text
    one, _ = init_run(half, tmp_path / "half")
    other, _ = init_run(online, tmp_path / "online")
    for _ in range(3):
        a, b = next(one.batches), next(other.batches)
        assert structure(a) == structure(b)
        np.testing.assert_array_equal(a["latent"], b["latent"])
        near(a["text"]["tokens"], b["text"]["tokens"])
    one.batches.close()
    other.batches.close()
    moved = replace(half, data=replace(half.data, min_crop=0.5))
    source = inputs.open_inputs(moved).source
    assert len(source) == 11 and source[0].latents is None
    message = r"holds nothing of image; run mforce encode with --image too"
    with pytest.raises(UserError, match=message):
        inputs.open_inputs(without_autoencoder(half))


def without_autoencoder(c: Config) -> Config:
    modalities = {name: replace(m, autoencoder="") for name, m in c.modalities.items()}
    return replace(c, modalities=modalities)


def test_cache_of_other_weights_is_refused(folders, encoded, tmp_path):
    online, cached = configs(folders, encoded)
    both = replace(online, data=cached.data)
    inputs.open_inputs(both).check()
    text = small.text_folder(tmp_path / "other", seed="other")
    other = replace(both, text=replace(both.text, encoder=f"umt5:{text}"))
    message = r"was made with text weights \w+, and the config has \w+; encode again"
    with pytest.raises(UserError, match=message):
        init_run(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_invalid_arguments_are_refused_and_write_nothing(folders, encoded, tmp_path, mforce):
    records, text, out = folders["records"], folders["text"], tmp_path / "out"
    call = ("encode", "--source", records, "--out", out)
    needed = (
        "nothing to encode with; give --text=umt5:PATH or qwen3:PATH, --image=flux2:PATH, or both"
    )
    refused(mforce(*call), needed)
    refused(mforce(*call, "--text=umt5:nowhere"), "nowhere: no such file or folder")
    refused(mforce(*call, f"--text=umt5:{folders['image']}"), "model_type is None, not 'umt5'")
    refused(mforce(*call, f"--image=flux2:{text}"), "config.json: is of None")
    unprepared = ("encode", "--source", tmp_path, "--out", out, "--text=umt5:x")
    refused(mforce(*unprepared), "holds no shards")
    damaged = small.text_folder(tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused(mforce(*call, f"--text=umt5:{damaged}"), "is truncated or no safetensors file")
    small.text_folder(damaged)
    (damaged / "spiece.model").unlink()
    refused(mforce(*call, f"--text=umt5:{damaged}"), "holds no spiece.model")
    assert not out.exists()
    again = ("encode", "--source", records, "--out", encoded, f"--text=umt5:{text}")
    message = r"was started with other settings \(text\.tokens 9, now 5\)"
    refused(mforce(*again, "--tokens", 5, "--shard-size", 4), message)


def test_cache_of_another_config_is_refused(folders, encoded):
    def refuses(c: Config, message: str) -> None:
        with pytest.raises(UserError, match=message):
            inputs.open_inputs(c)

    online, c = configs(folders, encoded)
    larger = replace(c, data=replace(c.data, resolution=32))
    refuses(larger, "was made with image resolution 16, and the config has 32")
    shorter = replace(c, text=replace(c.text, tokens=7))
    refuses(shorter, "was made with text tokens 9, and the config has 7")
    empty = replace(c, data=replace(c.data, cache=str(folders["records"])))
    refuses(empty, "holds no cache of train; make it with mforce encode")
    records = small.prepared(folders["cache"].parent / "others", count=7)
    other = replace(c, data=replace(c.data, root=str(records)))
    refuses(other, "was made of other records than")
    unnamed = r"modalities\.image has latents, and nothing says what makes them; set modalities\."
    refuses(without_autoencoder(online), unnamed + "image")
    cropped = replace(c, data=replace(c.data, min_crop=0.5))
    refuses(cropped, r"data\.min_crop and data\.crop_jitter cannot move images")
    assert to_dict(c)["data"]["cache"] == str(encoded)


def test_encoder_that_cannot_be_loaded_leaves_no_cache(folders, tmp_path):
    """Numbers of int8 without their scales are no weights."""
    text = small.text_folder(tmp_path / "text")
    stored = load_file(text / "model.safetensors")
    stored["shared.weight"] = stored["shared.weight"].astype(np.int8)
    save_file(stored, text / "model.safetensors")
    done = process(
        "encode", "--source", folders["records"], "--out", tmp_path / "cache", f"--text=umt5:{text}"
    )
    refused(done, r"text: shared\.weight is I8 without a scale that is known; give weights in bf")
    assert not (tmp_path / "cache").exists()
