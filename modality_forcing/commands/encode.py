"""`mforce encode`: its options, and what they mean together."""

from __future__ import annotations

import argparse
from pathlib import Path

from modality_forcing.atomic_io import check_folder
from modality_forcing.commands.arguments import positive_int
from modality_forcing.commands.prepare import part_of
from modality_forcing.errors import UserError

EXAMPLES = """examples:
  mforce encode --source=prepared/tum --out=encoded/tum --text=umt5:weights/umt5-xxl --image=flux2:weights/flux2-vae
  mforce train --config=configs/forcing.py:size=370m --config.data.source=prepared --config.data.root=prepared/tum \\
      --config.data.cache=encoded/tum --workdir=runs/forcing
Stopped or killed, the same command goes on with the shards that are missing. Several processes (a TPU slice, or --part)
share the work. A path is a folder of safetensors files, one such file, or a hub id such as google/umt5-xxl."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("--source", type=Path, required=True, help="the --out of mforce prepare")
    add("--split", default="", help="may be left out where there is one")
    add(
        "--out",
        type=Path,
        required=True,
        help="the folder for the cache; several splits may share one",
    )
    add("--text", default="", metavar="umt5:PATH", help="encode captions with this UMT5")
    add(
        "--image",
        default="",
        metavar="flux2:PATH",
        help="encode pictures and their mirror images with this autoencoder",
    )
    add(
        "--resolution",
        type=positive_int,
        default=256,
        help="pixels a side of the centre square that is encoded (%(default)s)",
    )
    add("--tokens", type=positive_int, default=128, help="of a caption at most (%(default)s)")
    add(
        "--batch",
        type=positive_int,
        default=32,
        help="pictures, or captions, at a time on each device (%(default)s)",
    )
    add("--shard-size", type=positive_int, default=1024, help="records of a shard (%(default)s)")
    add(
        "--part",
        type=part_of,
        metavar="I/N",
        help="make every N-th shard from I on, I from 0: one of N jobs",
    )


def main(options: argparse.Namespace) -> None:
    """Encodes what the options name; raises UserError for what cannot be read, does not go together or was begun otherwise."""
    if not options.text and not options.image:
        raise UserError(
            "nothing to encode with", hint="give --text=umt5:PATH, --image=flux2:PATH or both"
        )
    from modality_forcing import distributed

    distributed.initialize()
    import jax

    from modality_forcing.config import MeshConfig
    from modality_forcing.encode.job import Job
    from modality_forcing.encoders.frozen import FrozenEncoders
    from modality_forcing.storage import latent_cache
    from modality_forcing.storage.shards import Shards
    from modality_forcing.train import sharding

    check_folder(options.out, "--out")
    source = Shards(options.source, options.split)
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices())
    frozen = FrozenEncoders(options.text, options.image, mesh)
    own = {"text": {"tokens": options.tokens}, "image": {"resolution": options.resolution}}
    settings = {
        "format": latent_cache.FORMAT,
        "source": latent_cache.source_digest(source.folder, source.split),
        "records": len(source),
        "shard_size": options.shard_size,
        **{part: {**told, **own[part]} for part, told in frozen.identity().items()},
    }
    if frozen.has_text:
        frozen.tokenizer(
            options.tokens
        )  # raises where there is no tokenizer, before anything is written
    part = options.part or (jax.process_index(), distributed.process_count())
    job = Job(source, options.out.absolute(), settings, frozen, options.batch * mesh.size, part)
    job.claim()
    if frozen.has_text:
        job.encode_text(options.tokens)
    if frozen.has_image:
        job.encode_pictures(options.resolution)
    print(job.told())
