"""From a config to its text encoder and its source of records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.folder import ImageFolder
from modality_forcing.data.in_memory import InMemory
from modality_forcing.data.records import Record
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.errors import UserError
from modality_forcing.storage.codec import encode
from modality_forcing.storage.shards import ShardWriter, shard_name
from modality_forcing.synthetic.source import Scenes
from modality_forcing.train import inputs
from modality_forcing.viz.images import png_bytes
from tests import frozen, tiny

CONFIG = tiny.t2i()


def test_text_encoder_hashes_words_by_default():
    assert inputs.open_inputs(CONFIG).text_encoder == HashedWordTokenizer(
        CONFIG.text.tokens, CONFIG.text.vocab_size
    )


def test_missing_text_encoder_is_refused():
    with pytest.raises(UserError, match="states of a text encoder, and none is named"):
        inputs.open_inputs(replace(CONFIG, text=replace(CONFIG.text, vocab_size=0)))


def test_text_encoder_of_the_wrong_width_is_refused(tmp_path):
    folder = frozen.text_folder(tmp_path)
    text = replace(CONFIG.text, vocab_size=0, channels=12288, encoder=f"umt5:{folder}")
    with pytest.raises(UserError) as caught:
        inputs.open_inputs(replace(CONFIG, text=text))
    what, _, hint = str(caught.value).partition("; ")
    assert what == f"text.channels is 12288, and the states of umt5:{folder} have 32"
    assert hint.startswith("set text.channels to 32, or give an encoder of the network's width: ")
    assert hint.endswith("UMT5-XXL has 4096")


def test_scenes_have_the_config_resolution_and_eval_scenes_differ():
    train, held_out = inputs.open_source(CONFIG), inputs.open_source(CONFIG, "eval")
    assert isinstance(train, Scenes) and len(train) == CONFIG.data.num_scenes
    assert train[0].image.shape == (16, 16, 3)
    assert not np.array_equal(train[0].image, held_out[0].image)
    assert not np.array_equal(train[0].image, inputs.open_source(replace(CONFIG, seed=4))[0].image)


def test_scenes_are_kept_unless_loader_processes_read_them():
    assert isinstance(inputs.open_inputs(CONFIG).source, InMemory)
    workers = replace(CONFIG, data=replace(CONFIG.data, workers=1))
    assert isinstance(inputs.open_inputs(workers).source, Scenes)


def test_folder_source_needs_a_root(tmp_path):
    config = replace(CONFIG, data=replace(CONFIG.data, source="folder"))
    with pytest.raises(UserError, match=r"data\.root is empty; .*--config\.data\.root"):
        inputs.open_source(config)
    (tmp_path / "a.png").write_bytes(png_bytes(np.zeros((20, 20, 3), np.uint8)))
    np.save(tmp_path / "a.depth.npy", np.full((20, 20), 2, np.uint16))
    data = replace(config.data, root=str(tmp_path), depth_scale=0.5, depth_unit="metric")
    named = inputs.open_source(replace(config, data=data))
    assert isinstance(named, ImageFolder)
    record = named[0]
    assert (
        record.image.shape == (16, 16, 3)
        and record.unit == "metric"
        and np.all(record.depth[record.valid] == 1.0)
    )


def test_what_a_folder_does_not_use_is_printed(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png_bytes(np.zeros((20, 20, 3), np.uint8)))
    depth = np.where(np.arange(400).reshape(20, 20) < 80, 65535, 1000 + np.arange(20))
    np.save(tmp_path / "a.depth.npy", depth.astype(np.uint16))
    (tmp_path / "b.heic").touch()
    config = replace(CONFIG, data=replace(CONFIG.data, source="folder", root=str(tmp_path)))
    inputs.open_inputs(config).check()
    unused, repeated = capsys.readouterr().err.splitlines()
    assert "1 not used (b.heic)" in unused
    assert "more than 3% of 1 of 1 depth maps examined (a: 65535 in 20%)" in repeated
    excluded = replace(config.data, depth_invalid=65535.0)
    inputs.open_inputs(replace(config, data=excluded)).check()
    assert "65535" not in capsys.readouterr().err


def test_folder_without_cameras_gives_no_normals(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(np.zeros((20, 20, 3), np.uint8)))
    np.save(tmp_path / "a.depth.npy", np.full((20, 20), 2, np.float32))
    config = tiny.normals()
    config = replace(config, data=replace(CONFIG.data, source="folder", root=str(tmp_path)))
    hint = "no image here gives normals; they take dense depth and intrinsics.json"
    with pytest.raises(UserError, match=hint):
        inputs.open_inputs(config).check()
    camera = {"fx": 20, "fy": 20, "cx": 10, "cy": 10}
    (tmp_path / "intrinsics.json").write_text(json.dumps(camera))
    inputs.open_inputs(config).check()


def test_prepared_sets_without_normals_are_named_or_refused(tmp_path, capsys):
    unknown = np.full((3, 3), np.nan, np.float32)
    camera = np.array([[20, 0, 12], [0, 20, 10], [0, 0, 1]], np.float32)
    for name, intrinsics in {"a": camera, "b": unknown, "c": unknown}.items():
        write_prepared(tmp_path / name, "train", 2, 1.0, intrinsics)
    config = prepared_config(tmp_path, mixture={"a": 1.0, "b": 1.0, "c": 1.0})
    config = replace(tiny.normals(), data=config.data)
    inputs.open_inputs(config).check()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("normals: no normals in b, c, as their first records have none: no loss")
    without = replace(config, data=replace(config.data, mixture={"b": 1.0, "c": 1.0}))
    with pytest.raises(UserError, match=r"no prepared set here gives normals \(b, c\); they take"):
        inputs.open_inputs(without).check()
    alone = replace(config, data=replace(config.data, mixture={}, root=str(tmp_path / "b")))
    with pytest.raises(UserError, match=r"no prepared set here gives normals \(b\)"):
        inputs.open_inputs(alone).check()
    two = replace(without, modalities=CONFIG.modalities)
    inputs.open_inputs(two).check()
    assert not capsys.readouterr().err


def write_prepared(
    folder: Path,
    split: str,
    count: int,
    depth: float,
    intrinsics: np.ndarray = np.eye(3, dtype=np.float32),  # noqa: B008
) -> None:
    """Shards of records whose depth says where they are from."""
    image = np.full((20, 24, 3), 7, np.uint8)
    with ShardWriter(folder / shard_name(folder.name, split, 0, 1)) as writer:
        for i in range(count):
            z = np.full((20, 24), depth + i / 100, np.float32)
            record = Record(
                image, z, np.ones_like(z, bool), intrinsics, "metric", f"{i}", folder.name, str(i)
            )
            writer.write(encode(record))


def prepared_config(root: Path, **data):
    return replace(CONFIG, data=replace(CONFIG.data, source="prepared", root=str(root), **data))


def test_prepared_sets_are_mixed_by_weight_and_evaluated_round_robin(tmp_path):
    for name, splits in {
        "a": {"train": 3, "val": 2},
        "b": {"train": 4, "val": 3},
        "c": {"every": 2},
    }.items():
        for split, count in splits.items():
            write_prepared(
                tmp_path / name, split, count, 10 * (ord(name) - 96) + (5 if split == "val" else 0)
            )
    config = prepared_config(
        tmp_path, mixture={"a": 3.0, "b": 1.0, "c": 1.0}, sparsity_patterns={"keep": 1.0}
    )
    parts = inputs.open_inputs(config).source
    assert isinstance(parts, dict) and {name: part.weight for name, part in parts.items()} == {
        "a": 3.0,
        "b": 1.0,
        "c": 1.0,
    }
    assert [len(part.source) for part in parts.values()] == [3, 4, 2] and all(
        part.sparsity for part in parts.values()
    )
    held_out = inputs.open_source(config, "eval")
    depths = [float(np.median(held_out[i].depth)) for i in range(len(held_out))]
    np.testing.assert_allclose(depths, [15, 25, 15.01, 25.01], rtol=2e-4)
    alone = inputs.open_inputs(prepared_config(tmp_path / "c")).source
    assert not isinstance(alone, dict) and len(alone) == 2
    with pytest.raises(UserError, match=r"none of c has a split 'val'; set data\.eval_split"):
        inputs.open_source(prepared_config(tmp_path / "c"), "eval")


def test_missing_prepared_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.root is empty"):
        inputs.open_inputs(replace(CONFIG, data=replace(CONFIG.data, source="prepared")))
    with pytest.raises(UserError, match="no such folder"):
        inputs.open_inputs(prepared_config(tmp_path, mixture={"a": 1.0}))
    write_prepared(tmp_path / "a", "val", 2, 1.0)
    write_prepared(tmp_path / "a", "test", 2, 1.0)
    with pytest.raises(UserError, match="has no split 'train'; choose one of test, val"):
        inputs.open_inputs(prepared_config(tmp_path, mixture={"a": 1.0}))
