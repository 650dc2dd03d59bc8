"""From a config to its text encoder and its source of records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.data.folder import Folder
from modality_forcing.data.scenes import Scenes
from modality_forcing.encoders.words import Words
from modality_forcing.errors import UserError
from modality_forcing.pictures import png_bytes
from modality_forcing.train import setup
from tests import tiny

CONFIG = tiny.t2i()


def test_words_are_encoded_as_the_config_says():
    assert setup.text_encoder(CONFIG) == Words(CONFIG.text.tokens, CONFIG.text.vocabulary)


def test_states_of_a_frozen_encoder_are_refused_while_there_is_none():
    with pytest.raises(UserError, match=r"text\.vocabulary is 0"):
        setup.text_encoder(replace(CONFIG, text=replace(CONFIG.text, vocabulary=0)))


def test_scenes_come_at_the_config_s_size_and_held_out_ones_are_others():
    train, held_out = setup.source(CONFIG), setup.source(CONFIG, "eval")
    assert isinstance(train, Scenes) and len(train) == CONFIG.data.count
    assert train[0].image.shape == (16, 16, 3)
    assert not np.array_equal(train[0].image, held_out[0].image)
    assert not np.array_equal(train[0].image, setup.source(replace(CONFIG, seed=4))[0].image)


def test_a_folder_needs_a_name(tmp_path):
    config = replace(CONFIG, data=replace(CONFIG.data, source="folder"))
    with pytest.raises(UserError, match=r"data\.root is empty; .*--config\.data\.root"):
        setup.source(config)
    (tmp_path / "a.png").write_bytes(png_bytes(np.zeros((20, 20, 3), np.uint8)))
    np.save(tmp_path / "a.depth.npy", np.full((20, 20), 2.0, np.float32))
    data = replace(config.data, root=str(tmp_path), depth_scale=0.5, unit="metric")
    named = setup.source(replace(config, data=data))
    assert isinstance(named, Folder)
    record = named[0]
    assert record.image.shape == (16, 16, 3) and record.unit == "metric" and np.all(record.depth[record.valid] == 1.0)
