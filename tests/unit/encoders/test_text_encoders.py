"""The table of text encoders: what holds for every kind."""

from __future__ import annotations

import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing import paths
from modality_forcing.encoders.frozen import FrozenEncoders
from modality_forcing.encoders.text import TextEncoder, Tokenizer
from modality_forcing.encoders.text_encoders import KINDS, StatesConfig
from modality_forcing.encoders.weights import open_checkpoint
from tests import frozen as small

FOLDERS = {"umt5": (small.text_folder, 9), "qwen3": (small.qwen_folder, small.QWEN_TOKENS)}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    if request.param == "qwen3":
        pytest.importorskip("tokenizers")
    return request.param


def test_states_have_the_width_that_the_config_says(kind, tmp_path):
    of, (folder, tokens) = KINDS[kind], FOLDERS[kind]
    weights = open_checkpoint(folder(tmp_path))
    c = of.read(weights.config, "config.json")
    assert isinstance(c, StatesConfig)
    tokenizer = of.open_tokenizer(tokens, weights, c)
    assert isinstance(tokenizer, Tokenizer) and isinstance(tokenizer, TextEncoder)
    assert tokenizer.tokens == tokens and tokenizer.vocab_size <= c.vocab_size
    graph, state = nnx.split(nnx.eval_shape(lambda: of.build(c)))
    shape = jax.ShapeDtypeStruct
    ids, mask = shape((2, tokens), np.int32), shape((2, tokens), np.bool_)
    states = jax.eval_shape(lambda w, *x: nnx.merge(graph, w)(*x), state, ids, mask)
    assert states.shape == (2, tokens, c.width) and states.dtype == jnp.bfloat16
    named = {".".join(map(str, path)) for path, _ in state.flat_state()}
    assert named == of.tensors(c, weights.shapes).keys()
    assert str(of.tokens) and re.search(r"has \d+", of.published)


def test_tokenizer_beside_weights_in_a_bucket_is_found(kind, gs_path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, tokens = FOLDERS[kind]
    for path in sorted(folder(tmp_path / "there").iterdir()):
        below = "text_encoder" if path.name in ("config.json", "model.safetensors") else "tokenizer"
        paths.write_file(gs_path / below / path.name, path.read_bytes())
    there = FrozenEncoders(f"{kind}:{gs_path}/text_encoder").tokenizer(tokens)
    here = FrozenEncoders(f"{kind}:{tmp_path}/there").tokenizer(tokens)
    for key, value in here.encode("a red cube").items():
        np.testing.assert_array_equal(there.encode("a red cube")[key], value)


def test_tokenizer_beside_weights_of_the_hub_is_downloaded(kind, tmp_path, monkeypatch):
    folder, tokens = FOLDERS[kind]
    there, commit = folder(tmp_path / "there"), tmp_path / "0123abc"
    asked = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, {pattern.rpartition("/")[0] for pattern in allow_patterns}))
        part = allow_patterns[0].rpartition("/")[0]
        (commit / part).mkdir(parents=True)
        for path in there.iterdir():
            if (path.suffix == ".safetensors" or path.name == "config.json") == ("text" in part):
                (commit / part / path.name).write_bytes(path.read_bytes())
        return str(commit)

    fake = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    found = FrozenEncoders(f"{kind}:owner/klein/text_encoder@main").tokenizer(tokens)
    assert vars(found)["model"] == str(commit / "tokenizer")
    assert asked == [
        ("owner/klein", "main", {"text_encoder"}),
        ("owner/klein", "0123abc", {"tokenizer"}),
    ]
