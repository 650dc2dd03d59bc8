"""What a run reads: records, caches of encoded records, frozen encoders, the text encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from modality_forcing.config import Config
from modality_forcing.data.folder import INTRINSICS_FILE, ImageFolder
from modality_forcing.data.in_memory import InMemory
from modality_forcing.data.mixture import MixtureComponent, RoundRobin
from modality_forcing.data.records import RecordSource
from modality_forcing.data.sparsity import sparsify
from modality_forcing.distributed import is_primary
from modality_forcing.encoders.frozen import FrozenEncoders
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.paths import as_path, require_disk, resolve
from modality_forcing.progress import print_stderr
from modality_forcing.storage import manifest
from modality_forcing.storage.latent_cache import Cache, CachedTextStates, LatentSource
from modality_forcing.storage.shards import Shards, splits
from modality_forcing.synthetic.source import Scenes

_FIRST = 4  # records of a prepared set that are looked at; those of a set are alike
PARTS = frozenset({"text", "image"})  # what a cache may hold and an encoder may compute


@dataclass(frozen=True)
class Inputs:
    """What a training run reads. `open_inputs` opens each file once."""

    config: Config
    source: RecordSource | Mapping[str, MixtureComponent]  # one source, or a mixture by name
    caches: Mapping[str, Cache]  # of each prepared data set, by name
    encoders: FrozenEncoders  # only those whose outputs no cache holds
    text_encoder: TextEncoder

    def check(self) -> None:
        """Reads every record of a folder, and the first record of each other source.

        The first process prints what of a folder is not used or looks wrong (`ImageFolder.notes`).

        Raises UserError for a bad file, an unknown sparsity pattern, a folder without depth for a
        network of depth, or data without what gives normals for one of these, and a cache made
        with other weights than those of an encoder that the config names.
        """
        parts = self.source.values() if isinstance(self.source, Mapping) else ()
        for source in [part.source for part in parts] or [self.source]:
            _check_records(self.config, source)  # pyright: ignore[reportArgumentType]
        _check_prepared(self)
        self.encoders.check()
        if self.caches:
            used = build_encoders(self.config, skip=PARTS - _cached_parts(self.caches)).identity()
            for cache in self.caches.values():
                for part, identity in used.items():
                    cache.check(part, weights=identity["weights"])

    def null_text(self) -> dict[str, np.ndarray]:
        """Returns the network's text input for an empty caption."""
        null = self.text_encoder.null()
        if self.encoders.has_text:
            # One copy per device, because the encoder splits its batch over them. All are equal.
            copies = jax.tree.map(lambda x: np.stack([x] * jax.device_count()), null)
            states = self.encoders.states(copies)["tokens"]
            null = {**null, "tokens": multihost_utils.process_allgather(states, tiled=True)[0]}
        return {k: np.asarray(v) for k, v in null.items()}


def open_inputs(
    config: Config, mesh: Mesh | None = None, records: RecordSource | None = None
) -> Inputs:
    """Opens what a training run reads; `records` replaces the config's own source.

    Raises UserError for data that are missing or do not fit the config, and for a modality of
    latents that neither a cache nor an autoencoder makes.
    """
    data = config.data
    for name, m in config.modalities.items():
        if m.latent_channels and not m.autoencoder and not data.cache:
            what = f"modalities.{name} has latents, and nothing says what makes them"
            key = f"modalities.{name}.autoencoder"
            hint = f"set {key}=flux2:PATH or data.cache, or latents to 0 for pixels"
            raise UserError(what, hint=hint)
    shards: Mapping[str, Shards] = {}
    if data.source == "prepared" and (records is None or data.cache):
        shards = open_shards(config, data.split)
    caches = _open_caches(config, shards)
    encoders = build_encoders(config, mesh, skip=_cached_parts(caches))
    text_encoder = build_text_encoder(config, encoders, caches)
    source: RecordSource | Mapping[str, MixtureComponent]
    if records is not None:
        source = records
    elif data.source != "prepared":
        source = open_source(config)
        if data.source == "scenes" and not data.workers:
            source = InMemory(source)  # each is rendered once, not in every epoch
    else:
        sources = _read_latents(config, shards, caches)
        patterns = data.sparsity_patterns or None
        source = {
            n: MixtureComponent(sources[n], data.mixture[n], patterns)
            for n in sources
            if data.mixture
        }
        source = source or next(iter(sources.values()))
    return Inputs(config, source, caches, encoders, text_encoder)


def open_source(config: Config, split: str = "train") -> RecordSource:
    """Returns the records of "train" or "eval"; several prepared data sets take turns.

    A folder has no held-out split: both are the same records. Raises UserError if there are no
    records.
    """
    data = config.data
    if data.source == "prepared":
        sets = open_shards(config, data.split if split == "train" else data.eval_split)
        return RoundRobin(list(sets.values()))
    if data.source == "folder":
        if not data.root:
            hint = "name the folder of images with --config.data.root=FOLDER"
            raise UserError("data.root is empty", hint=hint)
        return ImageFolder(
            require_disk(as_path(data.root), "images"),
            data.resolution,
            data.depth_scale or None,
            data.depth_unit,
            depth_invalid=data.depth_invalid,
            depth_max=data.depth_max,
            depth_orientation=data.depth_orientation,
        )
    return Scenes(
        seed=config.seed,
        count=data.num_scenes,
        resolution=data.resolution,
        split=split,
        fields=frozenset(base.record_inputs(config)),
        world=data.world,
    )


def open_shards(config: Config, split: str) -> dict[str, Shards]:
    """Returns the prepared data sets that have a split, by name: a mixture, or the one at the root.

    Raises UserError if none has the split, or if one is not a prepared folder or lacks the training
    split.
    """
    data = config.data
    if not data.root:
        hint = "name what mforce prepare wrote with --config.data.root=FOLDER"
        raise UserError("data.root is empty", hint=hint)
    root = as_path(data.root)
    folders = {name: root / name for name in data.mixture} or {resolve(root).name: root}
    found = {}
    for name, folder in folders.items():
        there = splits(folder)
        if split in there or split == data.split:
            # A data set without official splits has a single one, under any name.
            found[name] = Shards(
                folder, there[0] if split not in there and len(there) == 1 else split
            )
    if not found:
        what = f"none of {', '.join(folders)} has a split {split!r}"
        raise UserError(what, where=root, hint="set data.eval_split to one that is there")
    return found


def build_encoders(
    config: Config, mesh: Mesh | None = None, *, skip: Collection[str] = ()
) -> FrozenEncoders:
    """Returns the frozen encoders that a config names, without those in `skip` ("text", "image").

    Raises UserError if there are two autoencoders, or if the config's latents are not those of its
    autoencoder.
    """
    named = {name: m for name, m in config.modalities.items() if m.autoencoder}
    if "image" in skip:
        named = {}
    locations = {m.autoencoder for m in named.values()}
    if len(locations) > 1:
        raise UserError("two modalities name two autoencoders", hint="name one")
    text = "" if "text" in skip else config.text.encoder
    frozen = FrozenEncoders(text, next(iter(locations), ""), mesh)
    for name, m in named.items():
        c = frozen.image_config
        if (m.latent_channels, m.patch) != (c.channels, c.scale):
            have = f"modalities.{name} has {m.latent_channels} latents of {m.patch} pixels"
            what = f"{have}, and {m.autoencoder} {c.channels} of {c.scale}"
            raise UserError(what, hint=f"set latents to {c.channels} and patch to {c.scale}")
    return frozen


def build_text_encoder(
    config: Config,
    encoders: FrozenEncoders | None = None,
    caches: Mapping[str, Cache] | None = None,
) -> TextEncoder:
    """Returns the host side of the text conditioning.

    It gives word ids, token ids for the text encoder among `encoders`, or else cached states. By
    default the caches are those that the config names. Raises UserError if none of these is there
    or its sizes differ from the config's.
    """
    c = config.text
    if c.vocab_size:
        return HashedWordTokenizer(c.tokens, c.vocab_size)
    if encoders is not None and encoders.has_text:
        if (width := encoders.text_config.width) != c.channels:
            what = f"text.channels is {c.channels}, and the states of {c.encoder} have {width}"
            hint = f"set text.channels to {width}, or give an encoder of the network's width: "
            raise UserError(what, hint=hint + encoders.text_kind.published)
        return encoders.tokenizer(c.tokens)
    if config.data.cache:
        if caches is None:
            caches = _open_caches(config, open_shards(config, config.data.split))
        for cache in caches.values():
            cache.check("text", width=c.channels, tokens=c.tokens)
        return CachedTextStates(c.tokens, tuple(caches.values()))
    raise UserError(
        "the network reads the states of a text encoder, and none is named",
        hint="name it with --text-encoder=qwen3:PATH or umt5:PATH; in a config, set text.encoder "
        "or data.cache, or learn words: encoders=none in configs/t2i",
    )


def encoder_locations(config: Config) -> tuple[str, str]:
    """Returns where the text encoder and the autoencoder of a config are, "" for none."""
    autoencoders = (m.autoencoder for m in config.modalities.values() if m.autoencoder)
    return config.text.encoder, next(autoencoders, "")


def override_encoders(config: Config, text: str = "", image: str = "") -> Config:
    """Returns the config with other frozen encoders; raises UserError if its network has none."""
    if text:
        if config.text.vocab_size:
            raise UserError("this network reads words", hint="leave --text-encoder out")
        config = replace(config, text=replace(config.text, encoder=text))
    if image:
        latents = {name for name, m in config.modalities.items() if m.latent_channels}
        if not latents:
            raise UserError("this network makes pixels", hint="leave --autoencoder out")
        modalities = {
            name: replace(m, autoencoder=image if name in latents else "")
            for name, m in config.modalities.items()
        }
        config = replace(config, modalities=modalities)
    return config


def _open_caches(config: Config, shards: Mapping[str, Shards]) -> dict[str, Cache]:
    if not config.data.cache:
        return {}
    root = as_path(config.data.cache)
    return {
        name: Cache(root / name if config.data.mixture else root, one.split)
        for name, one in shards.items()
    }


def _cached_parts(caches: Mapping[str, Cache]) -> frozenset[str]:
    """What every one of the caches holds."""
    held = [PARTS.intersection(cache.settings) for cache in caches.values()]
    return frozenset.intersection(*held) if held else frozenset()


def _read_latents(
    config: Config, shards: Mapping[str, Shards], caches: Mapping[str, Cache]
) -> Mapping[str, RecordSource]:
    """The training sets, with cached latents instead of pixels where the network reads latents."""
    latents = [m for m in config.modalities.values() if m.latent_channels]
    computed = "image" not in _cached_parts(caches) and all(m.autoencoder for m in latents)
    if not caches or not latents or computed:
        return shards
    if config.data.min_crop < 1 or config.data.crop_jitter > 0:
        what = "data.min_crop and data.crop_jitter cannot move images that data.cache holds encoded"
        raise UserError(what, hint="set 1 and 0, or encode captions alone")
    for cache in caches.values():
        cache.check("image", resolution=config.data.resolution)
    return {n: LatentSource(replace(one, pixels=False), caches[n]) for n, one in shards.items()}


def _check_prepared(opened: Inputs) -> None:
    """Prints which prepared sets give nothing of a modality, such as normals; there is no loss.

    By their manifests, and else by their first records. Raises UserError if no set can.
    """
    source, root = opened.source, opened.config.data.root
    parts = source if isinstance(source, Mapping) else {resolve(as_path(root)).name: source}
    sets = {n: x.source if isinstance(x, MixtureComponent) else x for n, x in parts.items()}
    sets = {n: x.source if isinstance(x, LatentSource) else x for n, x in sets.items()}
    shards = {n: x for n, x in sets.items() if isinstance(x, Shards)}
    for name, read in base.record_inputs(opened.config).items() if shards else ():
        first = {n: [x[i] for i in range(min(_FIRST, len(x)))] for n, x in shards.items()}
        never = [n for n, x in shards.items() if len(x) <= _FIRST or _lacks_intrinsics(x)]
        lacking = [n for n in shards if not any(np.any(read(x)) for x in first[n])]
        hint = "they take intrinsics and dense depth"
        if lacking and set(lacking) == shards.keys() & set(never):
            what = f"no prepared set here gives {name} ({', '.join(lacking)})"
            raise UserError(what, where=root, hint=f"{hint}; or train without this modality")
        if lacking and is_primary():
            what = f"no {name} in {', '.join(lacking)}, as their first records have none"
            print_stderr(f"{opened.config.name}: {what}: no loss there; {hint}")


def _lacks_intrinsics(shards: Shards) -> bool:
    found = manifest.read(shards.folder, shards.split)
    return found is not None and found.stats["with_intrinsics"] == 0


def _check_records(config: Config, records: RecordSource) -> None:
    is_folder, has_depth = isinstance(records, ImageFolder), False
    missing = base.record_inputs(config) if is_folder else {}
    for i in range(len(records) if is_folder else 1):
        record = records[i]
        has_depth |= bool(record.valid.any())
        missing = {name: read for name, read in missing.items() if not np.any(read(record))}
        if config.data.sparsity_patterns and i == 0:
            sparsify(record, np.random.default_rng(0), config.data.sparsity_patterns)
    needs_depth = any(m.kind == "depth" for m in config.modalities.values())
    if isinstance(records, ImageFolder) and needs_depth and not has_depth:
        hint = (
            "put depth/NAME.png, .npy or .exr beside the images, or train without depth: :phase=t2i"
        )
        raise UserError("no image here has depth", where=records.root, hint=hint)
    if isinstance(records, ImageFolder) and missing:
        hint = f"they take dense depth and {INTRINSICS_FILE}; or train without this modality"
        raise UserError(f"no image here gives {min(missing)}", where=records.root, hint=hint)
    if isinstance(records, ImageFolder) and is_primary():  # last, so that an error is one line
        for note in records.notes():
            print_stderr(note)
