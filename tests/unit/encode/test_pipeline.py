"""Encoding by a pipeline: the bytes of the local run, and what workers check."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from modality_forcing.config import MeshConfig
from modality_forcing.encode import pipeline
from modality_forcing.encode.pipeline import EncodeTask
from modality_forcing.encoders.frozen import FrozenEncoders
from modality_forcing.errors import UserError
from modality_forcing.storage import beam, latent_cache
from modality_forcing.storage.shards import Shards
from modality_forcing.train import sharding
from tests import frozen as small
from tests.runs import contents

INSTALLED = importlib.util.find_spec("apache_beam") is not None
BATCH = 4


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> EncodeTask:
    """A task without a folder for its output."""
    folder = tmp_path_factory.mktemp("encode")
    source = Shards(small.prepared(folder / "records"))
    text, image = small.text_folder(folder / "text"), small.image_folder(folder / "image")
    own = {"text": {"tokens": small.TOKENS}, "image": {"resolution": small.PIXELS}}
    frozen = FrozenEncoders(f"umt5:{text}", f"flux2:{image}")
    settings = {
        "format": latent_cache.FORMAT,
        "source": latent_cache.source_digest(source.folder, source.split),
        "records": len(source),
        "shard_size": 3,
        **{kind: {**identity, **own[kind]} for kind, identity in frozen.identity().items()},
    }
    return EncodeTask(
        source=source,
        out=folder / "local",
        settings=settings,
        text=f"umt5:{text}",
        image=f"flux2:{image}",
        batch=BATCH,
        tokens=small.TOKENS,
        resolution=small.PIXELS,
    )


@pytest.fixture(scope="module")
def local(task: EncodeTask) -> dict[str, bytes | None]:
    """What the local run writes."""
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    job = task.job(FrozenEncoders(task.text, task.image, mesh))
    job.check_or_write_settings()
    job.encode_text(task.tokens)
    job.encode_images(task.resolution)
    return contents(task.out)


def serial(task: beam.ShardTask, shards: Sequence[int], options: str) -> None:
    """A pipeline of one worker, which writes every shard twice, the last one first."""
    write = task.open()
    for shard in [*reversed(shards), *shards]:
        write(shard)


def test_bytes_are_those_of_a_local_run(
    task: EncodeTask, local: dict[str, str], tmp_path: Path, monkeypatch, capsys
):
    if not INSTALLED:  # each worker compiles the encoders, so not both
        monkeypatch.setattr(beam, "run", serial)
    made = replace(task, out=tmp_path)
    assert pipeline.encode(made, "") == f"{tmp_path}/encoded-train.json"
    assert contents(tmp_path) == local
    shard = tmp_path / "latents" / "latents-train.array_record-00002-of-00004"
    shard.unlink()
    pipeline.encode(made, "")
    assert contents(tmp_path) == local
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line.endswith("to write")]
    assert lines == ["6 of 6 shards of train to write", "1 of 6 shards of train to write"]


def test_workers_with_other_weights_are_refused(task: EncodeTask, tmp_path: Path):
    other = small.text_folder(tmp_path / "other", seed="other")
    with pytest.raises(UserError, match="other: holds other weights for a worker than"):
        replace(task, out=tmp_path, text=f"umt5:{other}").open()


def test_shards_written_elsewhere_are_missed(task: EncodeTask, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(beam, "run", lambda task, shards, options: None)
    with pytest.raises(UserError, match="lacks 6 of 6 shards after the pipeline"):
        pipeline.encode(replace(task, out=tmp_path), "")
