"""`mforce encode` with the encoders of a network's weights."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from modality_forcing.commands import encode
from modality_forcing.errors import UserError
from tests import released


def options(checkpoint: str | Path, **given: object) -> Namespace:
    none = {"text": "", "image": "", "resolution": None, "tokens": None}
    return Namespace(checkpoint=checkpoint, **{**none, **given})


def test_encoders_size_and_tokens_are_those_of_the_checkpoint(tmp_path: Path):
    found = options(released.pipeline(tmp_path, {"is_distilled": True}))
    encode._take_encoders(found)
    assert found.text == f"qwen3:{tmp_path}/text_encoder"
    assert found.image == f"flux2:{tmp_path}/vae"
    assert (found.resolution, found.tokens) == (1024, 512)


def test_options_come_before_the_checkpoint(tmp_path: Path):
    given = {"text": "qwen3:mine", "resolution": 64}
    found = options(released.release(tmp_path), **given)
    encode._take_encoders(found)
    assert (found.text, found.resolution) == ("qwen3:mine", 64)
    assert found.image == f"flux2:{tmp_path}"


def test_network_without_encoders_is_one_line(forcing_run: Path):
    with pytest.raises(UserError, match="names no frozen encoders; name them with --text and"):
        encode._take_encoders(options(forcing_run))
