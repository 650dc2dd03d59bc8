"""SentencePiece tokens: the end, the mask, other processes, messages for invalid model files."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.encoders import sentencepiece as sentences
from modality_forcing.encoders.sentencepiece import EOS, PAD, UNK, SentencePieceTokenizer
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.errors import UserError
from tests.parity.make_umt5_goldens import CAPTIONS, spiece
from tests.runs import ROOT, environment

sentencepiece = pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return spiece(tmp_path_factory.mktemp("spiece"))


@pytest.fixture(scope="module")
def encoder(model) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(24, str(model))


def ids(encoder: TextEncoder, caption: str) -> list[int]:
    text = encoder.encode(caption)
    return text["tokens"][text["mask"]].tolist()


def pieces(model: Path, caption: str) -> list[int]:
    return sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(caption)


def refused(model: Path, tokens: int = 8) -> str:
    with pytest.raises(UserError) as caught:
        SentencePieceTokenizer(tokens, str(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_caption_becomes_its_pieces_and_the_end(encoder, model, caption):
    assert ids(encoder, caption) == [*pieces(model, " ".join(caption.split()))[:23], EOS]


@given(
    st.text(alphabet=st.characters(), max_size=60), st.integers(1, 40)
)  # half surrogate pairs among them
def test_shapes_and_range(model, caption, tokens):
    text = SentencePieceTokenizer(tokens, str(model)).encode(caption)
    assert text["tokens"].shape == text["mask"].shape == (tokens,)
    assert text["tokens"].dtype == np.int32 and text["mask"].dtype == np.bool_
    count = int(text["mask"].sum())
    assert np.all(text["mask"][:count]) and np.all(text["tokens"][count:] == PAD)
    assert (
        text["tokens"][count - 1] == EOS
        and EOS not in text["tokens"][: count - 1]
        and PAD not in text["tokens"][:count]
    )
    assert (
        text["tokens"].max()
        < sentencepiece.SentencePieceProcessor(model_file=str(model)).get_piece_size()
    )


def test_end_is_the_last_token_of_a_cut_caption(model):
    full, cut = (
        ids(SentencePieceTokenizer(tokens, str(model)), "a red cube beside a table")
        for tokens in (64, 5)
    )
    assert len(full) > 5 and cut == [*full[:4], EOS]


def test_white_space_is_one_space(encoder):
    assert ids(encoder, "\n a  red\u00a0\tcube\r\n") == ids(encoder, "a red cube")


def test_null_is_the_end_alone(encoder):
    null = encoder.null()
    assert (
        null["tokens"].tolist() == [EOS] + [PAD] * 23
        and null["mask"].tolist() == [True] + [False] * 23
    )
    some = encoder.encode("a red cube")
    assert {k: (v.shape, v.dtype) for k, v in null.items()} == {
        k: (v.shape, v.dtype) for k, v in some.items()
    }


def test_control_symbols_cannot_be_written(encoder):
    found = ids(encoder, "<pad> </s> <unk>")
    assert PAD not in found and found.index(EOS) == len(found) - 1


def test_letters_without_a_piece_are_bytes_or_unknown(tmp_path, encoder):
    assert UNK not in ids(encoder, "猫")
    assert UNK in ids(
        SentencePieceTokenizer(24, str(spiece(tmp_path, bytes_for_unknown=False))), "猫"
    )


def test_model_can_be_given_as_its_folder(encoder, model):
    assert ids(SentencePieceTokenizer(24, str(model.parent)), "a red cube") == ids(
        encoder, "a red cube"
    )


def test_another_process_encodes_the_same(encoder):
    assert len(pickle.dumps(encoder)) < 400  # its path, not the model
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(encoder.encode, ["a red cube", ""])
    for text, caption in zip(there, ["a red cube", ""], strict=True):
        np.testing.assert_array_equal(text["tokens"], encoder.encode(caption)["tokens"])


def test_loader_processes_need_no_jax():
    program = "import sys, modality_forcing.encoders.sentencepiece\n"
    program += "print('jax' in sys.modules, 'sentencepiece' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_no_tokens_are_refused(model):
    assert refused(model, tokens=0) == "text tokens is 0; it must be at least 1"


def test_missing_model_is_refused(tmp_path):
    assert refused(tmp_path / "spiece.model").startswith(f"{tmp_path}/spiece.model: no such file")
    assert f"{tmp_path}: holds no spiece.model; download spiece.model" in refused(tmp_path)


def test_tokenizer_json_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be read" in refused(tmp_path)
    assert "is a tokenizer.json; download spiece.model" in refused(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
def test_truncated_model_is_refused(tmp_path, model, keep):
    broken = tmp_path / "spiece.model"
    broken.write_bytes(model.read_bytes()[:keep])
    assert "no SentencePiece model" in refused(broken)


def test_model_of_another_kind_is_refused(tmp_path):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red cube"] * 9),
        model_writer=written,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "llama.model").write_bytes(written.getvalue())
    message = refused(tmp_path / "llama.model")
    assert "has its padding, end and unknown token at -1, 2 and 0;" in message
    assert message.endswith("give a T5's or UMT5's model, with 0, 1 and 2")


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    sentences._processor.cache_clear()
    assert "pip install 'modality_forcing[encoders]'" in refused(tmp_path / "spiece.model")
