"""Qwen3's prompts: template, padding, other processes, messages for invalid files."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.encoders import qwen3_tokenizer
from modality_forcing.encoders.qwen3_tokenizer import AFTER, BEFORE, Qwen3Tokenizer
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.errors import UserError
from tests.parity import make_qwen3_token_goldens as goldens
from tests.runs import ROOT, environment

tokenizers = pytest.importorskip("tokenizers")
PAD, START, END, THINK, NO_THINK = 151643, 151644, 151645, 151667, 151668


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer.json with the merges of the hundred prompts."""
    return goldens.tokenizer_folder(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def encoder(folder) -> Qwen3Tokenizer:
    return Qwen3Tokenizer(40, str(folder))


def ids(encoder: TextEncoder, prompt: str) -> list[int]:
    text = encoder.encode(prompt)
    return text["tokens"][text["mask"]].tolist()


def refused(model: Path, tokens: int = 40) -> str:
    with pytest.raises(UserError) as caught:
        Qwen3Tokenizer(tokens, str(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_prompt_stands_in_the_template(folder, encoder):
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.decoder = tokenizers.decoders.ByteLevel()
    prompt = own.encode("a red cube").ids
    assert len(prompt) == 3
    null = ids(encoder, "")
    assert ids(encoder, "a red cube") == [*null[:3], *prompt, *null[3:]]
    assert own.decode(null, skip_special_tokens=False) == BEFORE + AFTER
    assert [i for i in null if i >= PAD] == [START, END, START, THINK, NO_THINK]


@given(st.text(alphabet=st.characters(), max_size=60), st.integers(12, 60))
def test_shapes_and_range(folder, prompt, tokens):  # half surrogate pairs among them
    text = Qwen3Tokenizer(tokens, str(folder)).encode(prompt)
    assert text["tokens"].shape == text["mask"].shape == (tokens,)
    assert text["tokens"].dtype == np.int32 and text["mask"].dtype == np.bool_
    count = int(text["mask"].sum())
    assert count >= 12 and np.all(text["mask"][:count])
    assert np.all(text["tokens"][count:] == PAD) and text["tokens"].max() < 151_669


@pytest.mark.parametrize("tokens", [12, 13, 20, 27, 28])
def test_long_prompt_loses_its_end(folder, encoder, tokens):
    """The template's end goes first, then the prompt's."""
    prompt = "a red cube beside a red cube and a red cube"
    full = ids(encoder, prompt)
    assert ids(Qwen3Tokenizer(tokens, str(folder)), prompt) == full[:tokens]
    assert 20 < len(full) <= 28


def test_control_tokens_of_a_prompt_are_control_tokens(encoder):
    found = ids(encoder, "<|im_end|>")
    assert found.count(END) == 2 and len(found) == 13
    assert ids(encoder, "<|endoftext|>")[3] == PAD and encoder.encode("<|endoftext|>")["mask"][3]


def test_white_space_and_case_are_kept(encoder):
    found = {
        tuple(ids(encoder, x)) for x in ("a red cube", "a red cube ", "a  red cube", "A red cube")
    }
    assert len(found) == 4


def test_no_limits_of_the_file_apply(tmp_path, folder, encoder):
    """A tokenizer.json may have been saved with its own truncation and padding."""
    own = json.loads((folder / "tokenizer.json").read_text())
    end = {"direction": "Right", "strategy": "LongestFirst", "max_length": 8, "stride": 0}
    pad = {"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None}
    pad |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(own | {"truncation": end, "padding": pad}))
    other = Qwen3Tokenizer(40, str(tmp_path / "tokenizer.json"))
    assert ids(other, "a red cube") == ids(encoder, "a red cube")


def test_line_ends_of_merges_do_not_matter(tmp_path):
    byte_ids, merges, _ = goldens.stored()
    found = []
    for name, end in (("unix", b"\n"), ("windows", b"\r\n")):
        path = goldens.files(tmp_path / name, byte_ids, merges) / "merges.txt"
        path.write_bytes(path.read_bytes().replace(b"\n", end))
        found.append(ids(Qwen3Tokenizer(40, str(path.parent)), "a red cube"))
    assert found[0] == found[1]


def test_null_is_the_empty_prompt(encoder):
    for key, value in encoder.null().items():
        np.testing.assert_array_equal(value, encoder.encode("")[key])


def test_another_process_encodes_the_same(encoder):
    assert isinstance(encoder, TextEncoder)
    assert len(pickle.dumps(encoder)) < 400  # its path, not the model
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (there,) = pool.map(encoder.encode, ["a red cube"])
    np.testing.assert_array_equal(there["tokens"], encoder.encode("a red cube")["tokens"])


def test_loader_processes_need_no_jax():
    program = "import sys, modality_forcing.encoders.qwen3_tokenizer\n"
    program += "print('jax' in sys.modules, 'tokenizers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_too_few_tokens_are_refused(folder):
    message = "text tokens is 11; it must be at least 12, which the empty prompt takes"
    assert refused(folder, tokens=11) == message


def test_missing_tokenizer_is_refused(tmp_path):
    assert refused(tmp_path / "there").startswith(f"{tmp_path}/there: no such file")
    assert f"{tmp_path}: holds no tokenizer.json; download" in refused(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")  # without merges.txt
    assert "holds no tokenizer.json" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
def test_truncated_tokenizer_is_refused(tmp_path, folder, keep):
    whole = (folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[:keep])
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path}/tokenizer.json: is no tokenizer, or truncated")


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ('{"a": 0, "b": 1, "ab"', "a b", "vocab.json: "),
        ('{"a": 0, "b": "1"}', "a b", "vocab.json: is no vocabulary; download it again"),
        ('{"a": 0, "b": 1}', "a b c", "merges.txt: holds 'a b c', not a pair of tokens"),
        ('{"a": 0, "b": 1}', "a b", "is no tokenizer, or truncated"),  # without "ab"
    ],
)
def test_damaged_vocabulary_is_refused(tmp_path, vocab, merges, message):
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    assert message in refused(tmp_path)


def test_tokenizer_of_another_model_is_refused(tmp_path, folder):
    """Qwen2.5 has no <think>; other networks have no chat template of this kind."""
    own = json.loads((folder / "tokenizer.json").read_text())
    own["added_tokens"] = [x for x in own["added_tokens"] if "think>" not in x["content"]]
    own["model"]["vocab"] = {k: i for k, i in own["model"]["vocab"].items() if "think>" not in k}
    (tmp_path / "tokenizer.json").write_text(json.dumps(own))
    message = refused(tmp_path)
    assert "has no token <think>; give the tokenizer of Qwen3-4B or Qwen3-8B" in message


def test_tokens_that_are_not_found_in_text_are_refused(tmp_path, folder):
    own = json.loads((folder / "tokenizer.json").read_text())
    own["added_tokens"] = [x for x in own["added_tokens"] if "im_end" not in x["content"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(own))
    assert "does not find the control tokens of the chat template" in refused(tmp_path)


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    qwen3_tokenizer._load.cache_clear()
    assert "pip install 'modality_forcing[encoders]'" in refused(tmp_path)
