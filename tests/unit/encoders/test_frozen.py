"""Frozen encoders are loaded at first use and equal the networks that they wrap."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.encoders.flux2_names import HALVES
from modality_forcing.encoders.flux2_vae import VAEConfig
from modality_forcing.encoders.frozen import FrozenEncoders, replicated
from modality_forcing.encoders.pixels import from_u8
from modality_forcing.encoders.qwen3_tokenizer import Qwen3Tokenizer
from modality_forcing.encoders.sentencepiece import SentencePieceTokenizer
from modality_forcing.errors import UserError
from tests import frozen as small

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("frozen")
    return small.text_folder(folder / "text"), small.image_folder(folder / "image")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> FrozenEncoders:
    pytest.importorskip("tokenizers")
    return FrozenEncoders(f"qwen3:{small.qwen_folder(tmp_path_factory.mktemp('qwen'))}")


@pytest.fixture(scope="module")
def frozen(folders) -> FrozenEncoders:
    return FrozenEncoders(f"umt5:{folders[0]}", f"flux2:{folders[1]}")


def test_encode_replaces_images_and_token_ids(frozen):
    sentences = frozen.tokenizer(small.TOKENS)
    text = [sentences.encode(caption) for caption in ("", "a red cube", "un gato negro " * 20)]
    image = RNG.integers(0, 256, (3, 16, 16, 3), np.uint8)
    batch = {
        "image": image,
        "text": {k: np.stack([one[k] for one in text]) for k in text[0]},
        "depth": np.ones((3, 16, 16)),
    }
    made = frozen.encode(batch)
    assert set(made) == {"latent", "text", "depth"} and made["depth"] is batch["depth"]
    assert made["latent"].shape == (3, 4, 4, 12) and made["latent"].dtype == jnp.bfloat16
    states = np.asarray(made["text"]["tokens"], np.float32)
    assert (
        states.shape == (3, small.TOKENS, small.WIDTH)
        and made["text"]["tokens"].dtype == jnp.bfloat16
    )
    mask = batch["text"]["mask"]
    assert (
        mask.sum(1).tolist() == [1, *mask[1:].sum(1)]
        and not states[~mask].any()
        and states[mask].any(-1).all()
    )
    assert set(batch) == {"image", "text", "depth"}  # the caller's is as it was


def tokenized(encoders: FrozenEncoders, captions: tuple[str, ...]) -> dict[str, np.ndarray]:
    tokenizer = encoders.tokenizer(small.QWEN_TOKENS)
    text = [tokenizer.encode(caption) for caption in captions]
    return {k: np.stack([one[k] for one in text]) for k in text[0]}


def test_states_of_qwen3_are_kept_for_padding(qwen):
    text = tokenized(qwen, ("", "a red cube", "un gato negro " * 20))
    states = qwen.encode({"text": text})["text"]
    assert states["tokens"].shape == (3, small.QWEN_TOKENS, small.QWEN_WIDTH)
    assert states["tokens"].dtype == jnp.bfloat16 and states["mask"] is text["mask"]
    assert states["mask"].sum(1).tolist() == [25, 35, small.QWEN_TOKENS]
    assert np.asarray(states["tokens"], np.float32).any(-1).all()


def test_qwen3_has_its_own_identity(qwen):
    identity = qwen.identity()["text"]
    assert identity["kind"] == "qwen3" and identity["width"] == small.QWEN_WIDTH
    assert identity["hidden"] == 16 and identity["taps"] == [9, 18, 27]
    qwen.check()


def test_freed_text_encoder_is_loaded_again(qwen):
    text = tokenized(qwen, ("a red cube",))
    before = np.asarray(qwen.states(text)["tokens"], np.float32)
    weights = jax.tree.leaves(qwen._encode_text.args[0])
    qwen.free_text()
    assert all(weight.is_deleted() for weight in weights)
    qwen.free_text()  # nothing to free
    np.testing.assert_array_equal(np.asarray(qwen.states(text)["tokens"], np.float32), before)


def test_encoder_under_another_kind_is_one_line(qwen, folders):
    with pytest.raises(UserError, match="model_type is 'umt5', not 'qwen3'; give the folder of"):
        FrozenEncoders(f"qwen3:{folders[0]}").check()
    with pytest.raises(UserError, match="model_type is 'qwen3', not 'umt5'; give the folder of"):
        FrozenEncoders(f"umt5:{qwen._text_at}").check()


def test_tokenizer_of_another_model_is_one_line(qwen, tmp_path):
    small.qwen_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 281}))
    with pytest.raises(UserError, match="has 282 tokens, and the encoder's table 281 rows; take"):
        FrozenEncoders(f"qwen3:{tmp_path}").tokenizer(small.QWEN_TOKENS)


def test_latents_and_images_equal_those_of_the_vae(frozen):
    from flax import nnx

    from modality_forcing.encoders.weights import load_module, open_checkpoint
    from tests.vae import UNUSED, VAE, tensors

    c, image = VAEConfig.from_dict(small.VAE), RNG.integers(0, 256, (2, 16, 24, 3), np.uint8)
    weights = open_checkpoint(frozen._image_at)
    found = tensors(c, weights.shapes)
    vae = load_module(lambda: VAE(c, rngs=nnx.Rngs(0)), found, weights, unused=UNUSED)
    latents = vae.encode(from_u8(jnp.asarray(image)))
    np.testing.assert_allclose(
        np.asarray(frozen.latents(image), np.float32), latents, rtol=2**-8, atol=1e-5
    )
    images = np.asarray(frozen.decode_images(latents))
    np.testing.assert_allclose(images, np.clip((vae.decode(latents) + 1) / 2, 0, 1), atol=1e-5)
    assert images.shape == (2, 16, 24, 3) and images.min() >= 0 and images.max() <= 1


def test_identity_depends_on_weights_and_sizes(frozen, folders, tmp_path):
    identity = frozen.identity()
    assert identity["text"]["kind"] == "umt5" and identity["text"]["width"] == small.WIDTH
    assert identity["image"]["kind"] == "flux2" and identity["image"]["widths"] == [8, 16]
    other = FrozenEncoders(f"umt5:{small.text_folder(tmp_path, seed='other')}").identity()
    assert set(other) == {"text"} and other["text"]["weights"] != identity["text"]["weights"]
    assert {**other["text"], "weights": 0} == {**identity["text"], "weights": 0}
    assert (
        FrozenEncoders(f"umt5:{folders[0]}").identity()["text"] == identity["text"]
        and FrozenEncoders().identity() == {}
    )


@pytest.mark.parametrize("spec", ["t5:x", "x", "umt5", "umt5:", ":x", "flux2:x"])
def test_location_of_another_kind_is_refused(spec):
    with pytest.raises(UserError, match="it must be umt5:PATH or qwen3:PATH"):
        FrozenEncoders(spec)


def test_invalid_folder_is_one_line_at_first_use(folders, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        FrozenEncoders(f"umt5:{tmp_path}/nowhere").tokenizer(4)
    with pytest.raises(UserError, match="model_type is None, not 'umt5'"):
        FrozenEncoders(f"umt5:{folders[1]}").states(
            {"tokens": np.zeros((1, 2), np.int32), "mask": np.ones((1, 2), bool)}
        )
    with pytest.raises(UserError, match=r"config\.json: is of None"):
        FrozenEncoders("", f"flux2:{folders[0]}").latents(np.zeros((1, 16, 16, 3), np.uint8))


def test_tokenizer_folder_beside_the_encoder_is_found(folders, tmp_path):
    small.text_folder(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "text_encoder" / "spiece.model").rename(tmp_path / "tokenizer" / "spiece.model")
    found = FrozenEncoders(f"umt5:{tmp_path}/text_encoder").tokenizer(5)
    assert isinstance(found, SentencePieceTokenizer)
    assert found.model == str(tmp_path / "tokenizer") and found.encode("a red cube")["mask"].any()


def test_autoencoder_in_two_files_is_that_of_one(tmp_path):
    """As Modality Forcing's release has it: each file has names of its own, and statistics."""
    whole = FrozenEncoders(image=f"flux2:{small.image_folder(tmp_path / 'whole')}")
    folder = small.split_folder(tmp_path / "split")
    split = FrozenEncoders(image=f"flux2:{folder}")
    split.check()
    for half in HALVES:
        pair = (
            encoders._load(encoders._image_part(half), replicated) for encoders in (whole, split)
        )
        one, other = (jax.tree.leaves(nnx.state(network)) for network in pair)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert split.identity()["image"]["weights"] != whole.identity()["image"]["weights"]
    (folder / "config.json").write_text('{"variant": "flux_rgbd_9b_v2"}')  # of the release
    assert FrozenEncoders(image=f"flux2:{folder}").image_config == VAEConfig()


def test_tokenizer_of_qwen3_is_found_beside_it(qwen, tmp_path):
    small.qwen_folder(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "text_encoder" / name).rename(tmp_path / "tokenizer" / name)
    found = FrozenEncoders(f"qwen3:{tmp_path}/text_encoder").tokenizer(small.QWEN_TOKENS)
    assert isinstance(found, Qwen3Tokenizer) and found.model == str(tmp_path / "tokenizer")
    np.testing.assert_array_equal(
        found.encode("a red cube")["tokens"],
        qwen.tokenizer(small.QWEN_TOKENS).encode("a red cube")["tokens"],
    )
