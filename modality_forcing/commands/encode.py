"""`mforce encode`: caches what frozen encoders make of a prepared data set."""

from __future__ import annotations

import argparse

from modality_forcing import compilation_cache
from modality_forcing.commands.arguments import (
    CHECKPOINT,
    add_runner,
    check_runner,
    path_option,
    positive_int,
    renamed_option,
    shard_of,
)
from modality_forcing.errors import UserError
from modality_forcing.paths import check_folder

EXAMPLES = """examples:
  mforce encode --source=prepared/tum --out=encoded/tum \\
      --text=umt5:weights/umt5-xxl --image=flux2:weights/flux2-vae
  mforce train --config=forcing:size=370m --config.data.source=prepared \\
      --config.data.root=prepared/tum --config.data.cache=encoded/tum --workdir=runs/forcing
  mforce encode --source=prepared/tum --out=encoded/tum --checkpoint=flux2-klein:weights/klein-9b
An interrupted command resumes with the missing shards. Several processes (a TPU slice, or --shard)
share the work; so do the workers of --runner=beam. A path is a folder of safetensors files, one
such file, or a hub id such as google/umt5-xxl. States of Qwen3-8B take 12.6 MB a caption, as those
of padding are kept; encode few captions, or leave them to the training run."""

_RESOLUTION = 256  # pixels a side


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("--source", type=path_option, required=True, help="the --out of mforce prepare")
    add("--split", default="", help="required if the folder has several")
    add("--out", type=path_option, required=True, help="folder of the cache; splits may share it")
    text = "encode captions with this encoder: umt5:PATH or qwen3:PATH"
    add("--text", default="", metavar="KIND:PATH", help=text)
    checkpoint = "encode captions and images with the encoders of these weights, at their size"
    add("--checkpoint", type=path_option, help=f"{checkpoint}: {CHECKPOINT}")
    image = "encode images and their mirror images with this autoencoder"
    add("--image", default="", metavar="flux2:PATH", help=image)
    resolution = "pixels a side of the encoded center square (256, or the checkpoint's)"
    add("--resolution", type=positive_int, help=resolution)
    add("--tokens", type=positive_int, help="of a caption at most (umt5: 128, qwen3: 512)")
    batch = "images, or captions, per step and device (%(default)s)"
    add("--batch", type=positive_int, default=32, help=batch)
    add("--shard-size", type=positive_int, default=1024, help="records per shard (%(default)s)")
    shard = "write every N-th shard from I on, I from 0: one of N jobs"
    add("--shard", type=shard_of, metavar="I/N", help=shard)
    add_runner(parser)
    renamed_option(parser, "--part", "--shard")


@compilation_cache.enabled()
def main(options: argparse.Namespace) -> None:
    """Encodes a prepared data set.

    Raises UserError for unreadable inputs, conflicting options, or a cache with other settings.
    """
    if not options.text and not options.image and options.checkpoint is None:
        hint = "give --text=umt5:PATH or qwen3:PATH, --image=flux2:PATH, or both"
        raise UserError("nothing to encode with", hint=f"{hint}; or --checkpoint")
    check_runner(options, ("shard",))
    on_beam = options.runner == "beam"
    from modality_forcing import distributed

    if not on_beam:
        distributed.initialize()
    import jax

    if options.checkpoint is not None:
        _take_encoders(options)
    from modality_forcing.config import MeshConfig
    from modality_forcing.encode import pipeline
    from modality_forcing.encode.job import EncodeJob
    from modality_forcing.encoders.frozen import FrozenEncoders
    from modality_forcing.storage import latent_cache
    from modality_forcing.storage.shard_job import hold_job
    from modality_forcing.storage.shards import Shards
    from modality_forcing.train import sharding

    check_folder(options.out, "--out", utf8=True)
    source = Shards(options.source, options.split)
    # The process that starts a pipeline leaves the devices to the workers.
    mesh = None if on_beam else sharding.make_mesh(MeshConfig(), distributed.local_devices())
    frozen = FrozenEncoders(options.text, options.image, mesh)
    frozen.check()  # before the checksum of all weights, and before anything is written
    tokens = options.tokens or (frozen.text_kind.tokens if frozen.has_text else 0)
    resolution = options.resolution or _RESOLUTION
    own = {"text": {"tokens": tokens}, "image": {"resolution": resolution}}
    settings = {
        "format": latent_cache.FORMAT,
        "source": latent_cache.source_digest(source.folder, source.split),
        "records": len(source),
        "shard_size": options.shard_size,
        **{kind: {**identity, **own[kind]} for kind, identity in frozen.identity().items()},
    }
    if frozen.has_text:
        frozen.tokenizer(tokens)  # raises without a tokenizer, before anything is written
    if on_beam:
        task = pipeline.EncodeTask(
            source=source,
            out=options.out.absolute(),
            settings=settings,
            text=options.text,
            image=options.image,
            batch=options.batch,
            tokens=tokens,
            resolution=resolution,
        )
        print(pipeline.encode(task, options.beam_options))
        return
    assert mesh is not None
    job = EncodeJob(
        source=source,
        out=options.out.absolute(),
        settings=settings,
        frozen=frozen,
        batch=options.batch * mesh.size,
        shard=options.shard or (jax.process_index(), distributed.process_count()),
    )
    with hold_job(job.out, f"encode-{source.split}", job.shard):
        job.check_or_write_settings()
        if frozen.has_text:
            job.encode_text(tokens)
            frozen.free_text()
        if frozen.has_image:
            job.encode_images(resolution)
        print(job.summary())


def _take_encoders(options: argparse.Namespace) -> None:
    """Completes options with the encoders of --checkpoint, its resolution and its text tokens."""
    from modality_forcing.train import weights
    from modality_forcing.train.inputs import encoder_locations

    config, _ = weights.describe(options.checkpoint)
    text, image = encoder_locations(config)
    options.text, options.image = options.text or text, options.image or image
    if not options.text and not options.image:
        hint = "name them with --text and --image, if the network has any"
        raise UserError("names no frozen encoders", where=options.checkpoint, hint=hint)
    options.resolution = options.resolution or config.data.resolution
    options.tokens = options.tokens or config.text.tokens
