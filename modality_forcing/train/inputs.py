"""From a config to the objects of a run: the text encoder and the source of records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from modality_forcing.config import Config
from modality_forcing.data.folder import Folder
from modality_forcing.data.mixture import Part
from modality_forcing.data.records import RecordSource
from modality_forcing.data.round_robin import Alternating
from modality_forcing.data.sparsity import thin
from modality_forcing.encoders.frozen import Frozen
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.encoders.words import Words
from modality_forcing.errors import UserError
from modality_forcing.storage.latent_cache import Cache, Encoded, States
from modality_forcing.storage.shards import Shards, splits
from modality_forcing.synthetic.source import Scenes


def text_encoder(config: Config, frozen: Frozen | None = None) -> TextEncoder:
    """Returns the host side of the text conditioning: words, states from caches, or token ids for a frozen encoder.

    frozen: where given, its encoder computes the states, whatever caches there are.
    """
    c = config.text
    if c.vocabulary:
        return Words(c.tokens, c.vocabulary)
    if frozen is not None and frozen.has_text:
        if (width := frozen.text_config.width) != c.channels:
            raise UserError(
                f"text.channels is {c.channels}, and {c.encoder} has {width}",
                hint=f"set text.channels to {width}",
            )
        return frozen.sentences(c.tokens)
    if config.data.cache:
        caches = tuple(cache for _, cache in _caches(config).values())
        for cache in caches:
            cache.check("text", width=c.channels, tokens=c.tokens)
        return States(c.tokens, caches)
    raise UserError(
        "text.vocabulary is 0, and nothing says where the states of a frozen text encoder come from",
        hint="set text.encoder=umt5:PATH (sampling: --text-encoder) or data.cache, or learn words: encoders=none in configs/t2i",
    )


def online(config: Config, mesh: Mesh | None = None) -> Frozen:
    """Returns the frozen encoders that a training run computes with: those whose work no cache holds.

    Raises UserError for a modality of latents that neither a cache nor an autoencoder makes.
    """
    for name, m in config.modalities.items():
        if m.latents and not m.autoencoder and not config.data.cache:
            hint = f"set modalities.{name}.autoencoder=flux2:PATH or data.cache, or latents to 0 for pixels"
            raise UserError(
                f"modalities.{name} has latents, and nothing says what makes them", hint=hint
            )
    return frozen_encoders(_without_encoders(config, _cached(config)), mesh)


def check_caches(config: Config) -> None:
    """Raises UserError if a cache was made with other weights than those of an encoder that the config names beside it."""
    made = frozen_encoders(
        _without_encoders(config, {"text", "image"} - _cached(config))
    ).identity()
    for _, cache in _caches(config).values() if made else ():
        for part, told in made.items():
            cache.check(part, weights=told["weights"])


def frozen_encoders(config: Config, mesh: Mesh | None = None) -> Frozen:
    """Returns the frozen encoders that a config names."""
    images = {m.autoencoder for m in config.modalities.values() if m.autoencoder}
    if len(images) > 1:
        raise UserError("two modalities name two autoencoders", hint="name one")
    frozen = Frozen(config.text.encoder, images.pop() if images else "", mesh)
    for name, m in config.modalities.items():
        c = frozen.image_config if m.autoencoder else None
        if c and (m.latents, m.patch) != (c.channels, c.scale):
            what = f"modalities.{name} has {m.latents} latents of {m.patch} pixels, and {m.autoencoder} {c.channels} of {c.scale}"
            raise UserError(what, hint=f"set latents to {c.channels} and patch to {c.scale}")
    return frozen


def with_encoders(config: Config, text: str = "", image: str = "") -> Config:
    """Returns the config with frozen encoders at other places; raises UserError if its network takes none."""
    if text:
        if config.text.vocabulary:
            raise UserError("this network reads words", hint="leave --text-encoder out")
        config = replace(config, text=replace(config.text, encoder=text))
    if image:
        if not any(m.latents for m in config.modalities.values()):
            raise UserError("this network makes pixels", hint="leave --autoencoder out")
        named = {
            name: replace(m, autoencoder=image if m.latents else "")
            for name, m in config.modalities.items()
        }
        config = replace(config, modalities=named)
    return config


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
            raise UserError(
                "data.root is empty",
                hint="name the folder of pictures with --config.data.root=FOLDER",
            )
        return Folder(Path(data.root), data.resolution, data.depth_scale or None, data.unit)
    return Scenes(seed=config.seed, count=data.count, resolution=data.resolution, split=split)


def prepared(config: Config, split: str) -> Mapping[str, Shards]:
    """Returns the prepared data sets of a config by name: those of its mixture that have the split, or the one at its root.

    Raises UserError if none has it, or if one of the mixture is no prepared folder or lacks the training split.
    """
    data = config.data
    if not data.root:
        raise UserError(
            "data.root is empty",
            hint="name what mforce prepare wrote with --config.data.root=FOLDER",
        )
    root = Path(data.root)
    folders = {name: root / name for name in data.mixture} or {root.resolve().name: root}
    found = {}
    for name, folder in folders.items():
        held = splits(folder)
        if (
            split in held or split == data.split
        ):  # a set without official splits has one, whatever it is called
            found[name] = Shards(folder, split if split in held or len(held) != 1 else held[0])
    if not found:
        hint = "set data.eval_split to one that is there"
        raise UserError(
            f"none of {', '.join(folders)} has a split {split!r}", where=root, hint=hint
        )
    return found


def training(config: Config, records: RecordSource | None = None) -> RecordSource | dict[str, Part]:
    """Returns what training draws from: the parts of a mixture by weight, or one source; `records` in its place if given."""
    data = config.data
    if records is not None or data.source != "prepared" or not data.mixture:
        if records is None and data.cache:
            return next(iter(_with_latents(config).values()))
        return source(config) if records is None else records
    sparse = data.sparse or None
    return {
        name: Part(shards, data.mixture[name], sparse)
        for name, shards in _with_latents(config).items()
    }


def _with_latents(config: Config) -> Mapping[str, RecordSource]:
    """The prepared training sets, with latents in the place of pixels where caches have them and the network reads them."""
    latents = [m for m in config.modalities.values() if m.latents]
    if (
        not config.data.cache
        or not latents
        or ("image" not in _cached(config) and all(m.autoencoder for m in latents))
    ):
        return prepared(config, config.data.split)
    if config.data.crop < 1 or config.data.shift > 0:
        what = "data.crop and data.shift cannot move pictures that data.cache holds encoded"
        raise UserError(what, hint="set 1 and 0, or encode captions alone")
    found = {}
    for name, (shards, cache) in _caches(config).items():
        cache.check("image", resolution=config.data.resolution)
        found[name] = Encoded(replace(shards, pixels=False), cache)
    return found


def _caches(config: Config) -> dict[str, tuple[Shards, Cache]]:
    """The prepared training sets and the cache of each, by name."""
    sets, root = prepared(config, config.data.split), Path(config.data.cache)
    return {
        name: (one, Cache(root / name if config.data.mixture else root, one.split))
        for name, one in sets.items()
    }


def _cached(config: Config) -> set[str]:
    """What every cache of a config holds, of "text" and "image"; nothing where there is none."""
    if not config.data.cache:
        return set()
    return set.intersection(
        *({"text", "image"} & set(cache.settings) for _, cache in _caches(config).values())
    )


def _without_encoders(config: Config, parts: set[str]) -> Config:
    """A config that names no frozen encoder of these parts."""
    if "text" in parts:
        config = replace(config, text=replace(config.text, encoder=""))
    if "image" in parts:
        config = replace(
            config,
            modalities={name: replace(m, autoencoder="") for name, m in config.modalities.items()},
        )
    return config


def check_records(config: Config, records: RecordSource | Mapping[str, Part]) -> None:
    """Reads what a user may have got wrong before a run starts: a folder's every record, the first of other sources.

    Raises UserError for a file that is wrong, a sparse pattern that there is none of, and a folder without any depth
    for a network of depth.
    """
    for one in (
        [part.source for part in records.values()] if isinstance(records, Mapping) else [records]
    ):
        _check_source(config, one)


def _check_source(config: Config, records: RecordSource) -> None:
    known = False
    for i in range(len(records) if isinstance(records, Folder) else 1):
        record = records[i]
        known |= bool(record.valid.any())
        if config.data.sparse and i == 0:
            thin(record, np.random.default_rng(0), config.data.sparse)
    if (
        isinstance(records, Folder)
        and not known
        and any(m.kind == "depth" for m in config.modalities.values())
    ):
        hint = "put depth/NAME.png or .npy beside the pictures, or train on pictures alone with :phase=t2i"
        raise UserError("no picture here has depth", where=records.root, hint=hint)
