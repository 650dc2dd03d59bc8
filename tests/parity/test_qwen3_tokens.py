"""Token ids of a hundred prompts equal those of transformers, with Qwen3's real vocabulary.

data/qwen3_tokens.npz holds the ids and the merges that occur in these prompts;
tests/parity/make_qwen3_token_goldens.py made it and documents how.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.encoders.qwen3_tokenizer import Qwen3Tokenizer
from tests.parity import make_qwen3_token_goldens as goldens

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("tokenizer")
    byte_ids, merges, _ = goldens.stored()
    parts = goldens.files(top / "parts", byte_ids, merges)
    return {"parts": parts, "whole": goldens.tokenizer_json(parts, top / "whole").parent}


def ids(tokenizer: Qwen3Tokenizer, prompt: str) -> list[int]:
    made = tokenizer.encode(prompt)
    return made["tokens"][made["mask"]].tolist()


def test_ids_equal_transformers(folders):
    tokenizer = Qwen3Tokenizer(goldens.TOKENS, str(folders["whole"]))
    prompts, (_, _, want) = goldens.prompts(), goldens.stored()
    assert len(prompts) == len(want) == 100
    for prompt, expected in zip(prompts, want, strict=True):
        assert ids(tokenizer, prompt) == expected, prompt
    assert sum(len(one) == goldens.TOKENS for one in want) >= 5  # cut
    added = np.concatenate(want)
    assert len(np.unique(added[added >= goldens.FIRST_ADDED])) > 15  # control tokens inside


def test_empty_prompt_is_the_template_and_padding(folders):
    null = Qwen3Tokenizer(goldens.TOKENS, str(folders["whole"])).null()
    template = [151644, 872, 198, 151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]
    assert null["tokens"].tolist() == template + [151643] * 500
    assert null["mask"].tolist() == [True] * 12 + [False] * 500


def test_vocab_and_merges_give_the_same_ids(folders):
    """Of the stored part of the vocabulary, added tokens follow its last id."""
    whole, parts = (Qwen3Tokenizer(goldens.TOKENS, str(folders[x])) for x in ("whole", "parts"))
    first = parts.vocab_size - 26
    assert whole.vocab_size == 151_669
    for prompt in goldens.prompts():
        found = [i + max(goldens.FIRST_ADDED - first, 0) * (i >= first) for i in ids(parts, prompt)]
        assert found == ids(whole, prompt), prompt
