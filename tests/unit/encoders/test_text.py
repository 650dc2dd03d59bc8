"""Every text encoder returns one structure for all captions, equal in every process."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from modality_forcing.encoders.text import TextEncoder
from modality_forcing.encoders.words import HashedWordTokenizer

ENCODERS: list[TextEncoder] = [HashedWordTokenizer(), HashedWordTokenizer(tokens=3, vocab_size=64)]


@pytest.mark.parametrize("encoder", ENCODERS, ids=repr)
def test_one_structure_for_all_captions(encoder: TextEncoder):
    null = encoder.null()
    assert null["mask"].dtype == np.bool_ and null["mask"].shape == (encoder.tokens,)
    for caption in ("", "a cube", "many " * 50):
        text = encoder.encode(caption)
        assert {key: (value.shape, value.dtype) for key, value in text.items()} == {
            key: (value.shape, value.dtype) for key, value in null.items()
        }
        assert all(value.shape[0] == encoder.tokens for value in text.values())


@pytest.mark.parametrize("encoder", ENCODERS, ids=repr)
def test_pickled_copy_encodes_the_same(encoder: TextEncoder):
    for key, value in copy.deepcopy(encoder).encode("a red cube").items():
        np.testing.assert_array_equal(value, encoder.encode("a red cube")[key])
