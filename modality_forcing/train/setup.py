"""From a config to the objects of a run: the text encoder and the source of records."""

from __future__ import annotations

from pathlib import Path

from modality_forcing.config import Config
from modality_forcing.data.folder import Folder
from modality_forcing.data.records import RecordSource
from modality_forcing.data.scenes import Scenes
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.encoders.words import Words
from modality_forcing.errors import UserError


def text_encoder(config: Config) -> TextEncoder:
    """Returns the host side of the text conditioning."""
    if not config.text.vocabulary:
        raise UserError(
            "text.vocabulary is 0: the text would have to come as a frozen encoder's states",
            mend="set text.vocabulary to learn a table of words",
        )
    return Words(config.text.tokens, config.text.vocabulary)


def source(config: Config, split: str = "train") -> RecordSource:
    """Returns the records of a split; a folder is its own held-out set, since it has no other."""
    data = config.data
    if data.source == "folder":
        if not data.root:
            raise UserError("data.root is empty", mend="name the folder of pictures with --config.data.root=FOLDER")
        return Folder(Path(data.root), data.resolution, data.depth_scale or None, data.unit)
    return Scenes(seed=config.seed, count=data.count, resolution=data.resolution, split=split)
