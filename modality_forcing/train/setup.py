"""From a config to the objects of a run: the text encoder and the source of records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modality_forcing.config import Config
from modality_forcing.data.alternating import Alternating
from modality_forcing.data.folder import Folder
from modality_forcing.data.mixture import Part
from modality_forcing.data.records import RecordSource
from modality_forcing.data.scenes import Scenes
from modality_forcing.data.shards import Shards, splits
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
    """Returns the records of a split, "train" or "eval"; a folder is its own held-out set, since it has no other.

    Of several prepared data sets, as many records of each. Raises UserError if there are none.
    """
    data = config.data
    if data.source == "prepared":
        sets = prepared(config, data.split if split == "train" else data.eval_split)
        return Alternating(list(sets.values()))
    if data.source == "folder":
        if not data.root:
            raise UserError("data.root is empty", mend="name the folder of pictures with --config.data.root=FOLDER")
        return Folder(Path(data.root), data.resolution, data.depth_scale or None, data.unit)
    return Scenes(seed=config.seed, count=data.count, resolution=data.resolution, split=split)


def prepared(config: Config, split: str) -> dict[str, Shards]:
    """Returns the prepared data sets of a config by name: those of its mixture that have the split, or the one at its root.

    Raises UserError if none has it, or if one of the mixture is no prepared folder or lacks the training split.
    """
    data = config.data
    if not data.root:
        raise UserError("data.root is empty", mend="name what mforce prepare wrote with --config.data.root=FOLDER")
    root = Path(data.root)
    folders = {name: root / name for name in data.mixture} or {root.resolve().name: root}
    found = {}
    for name, folder in folders.items():
        held = splits(folder)
        if split in held or split == data.split:  # a set without official splits has one, whatever it is called
            found[name] = Shards(folder, split if split in held or len(held) != 1 else held[0])
    if not found:
        mend = "set data.eval_split to one that is there"
        raise UserError(f"none of {', '.join(folders)} has a split {split!r}", where=root, mend=mend)
    return found


def training(config: Config, records: RecordSource | None = None) -> RecordSource | dict[str, Part]:
    """Returns what training draws from: the parts of a mixture by weight, or one source; `records` in its place if given."""
    data = config.data
    if records is not None or data.source != "prepared" or not data.mixture:
        return source(config) if records is None else records
    sparse = data.sparse or None
    return {name: Part(shards, data.mixture[name], sparse) for name, shards in prepared(config, data.split).items()}


def check_records(config: Config, records: RecordSource | Mapping[str, Part]) -> None:
    """Reads what a user may have got wrong before a run starts: a folder's every record, the first of other sources.

    Raises UserError for a file that is wrong, a sparse pattern that there is none of, and a folder without any depth
    for a network of depth.
    """
    for one in [part.source for part in records.values()] if isinstance(records, Mapping) else [records]:
        _check_source(config, one)


def _check_source(config: Config, records: RecordSource) -> None:
    known = False
    for i in range(len(records) if isinstance(records, Folder) else 1):
        record = records[i]
        known |= bool(record.valid.any())
        if config.data.sparse and i == 0:
            thin(record, np.random.default_rng(0), config.data.sparse)
    if isinstance(records, Folder) and not known and any(m.kind == "depth" for m in config.modalities.values()):
        mend = "put depth/NAME.png or .npy beside the pictures, or train on pictures alone with :phase=t2i"
        raise UserError("no picture here has depth", where=records.root, mend=mend)
