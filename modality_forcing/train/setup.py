"""From a config to the objects of a run: the text encoder and the source of records."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.config import Config
from modality_forcing.data.folder import Folder
from modality_forcing.data.records import RecordSource
from modality_forcing.data.scenes import Scenes
from modality_forcing.data.sparse import thin
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.encoders.words import Words
from modality_forcing.errors import UserError


def text_encoder(config: Config) -> TextEncoder:
    """Returns the host side of the text conditioning."""
    if not config.text.vocabulary:
        raise UserError(
            "text.vocabulary is 0: the text would have to come as a frozen encoder's states, which no source here holds",
            mend="set text.vocabulary to learn a table of words (encoders=none in configs/t2i.py and configs/forcing.py)",
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


def check_records(config: Config, records: RecordSource) -> None:
    """Reads what a user may have got wrong before a run starts: a folder's every record, the first of other sources.

    Raises UserError for a file that is wrong, a sparse pattern that there is none of, and a folder without any depth
    for a network of depth.
    """
    known = False
    for i in range(len(records) if isinstance(records, Folder) else 1):
        record = records[i]
        known |= bool(record.valid.any())
        if config.data.sparse and i == 0:
            thin(record, np.random.default_rng(0), config.data.sparse)
    if isinstance(records, Folder) and not known and any(m.kind == "depth" for m in config.modalities.values()):
        mend = "put depth/NAME.png or .npy beside the pictures, or train on pictures alone with :phase=t2i"
        raise UserError("no picture here has depth", where=records.root, mend=mend)
