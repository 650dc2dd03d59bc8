"""Exports as weights: from a folder, a file, a bucket and the hub; everything else is one line."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.export import job
from modality_forcing.train import checkpoint
from modality_forcing.train.exported import is_export, open_export
from modality_forcing.train.sharding import Shardings
from tests import damage
from tests.runs import contents

KINDS = ("orbax", "safetensors")


@pytest.fixture(scope="module")
def exports(tmp_path_factory, forcing_run: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return {kind: job.export(forcing_run, folder / kind, kind) for kind in KINDS}


def assert_read(where: str | Path, run: Path, shardings: Shardings | None = None) -> None:
    config, expected = checkpoint.load(run)
    found = open_export(where)
    assert found.name == "0" and found.where == where
    read_config, weights = found.load(shardings)
    assert read_config == config
    jax.tree.map(np.testing.assert_array_equal, weights, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_folder_has_the_weights_of_its_run(exports, forcing_run: Path, kind: str, monkeypatch):
    assert is_export(exports[kind]) and not is_export(forcing_run)
    assert_read(exports[kind], forcing_run)
    monkeypatch.chdir(exports[kind].parent)
    assert_read(kind, forcing_run)


def test_file_alone_is_enough(exports, forcing_run: Path, tmp_path: Path):
    alone = shutil.copy(
        exports["safetensors"] / "weights.safetensors", tmp_path / "a b.safetensors"
    )
    assert_read(Path(alone), forcing_run)
    (tmp_path / "in").mkdir()
    shutil.copy(alone, tmp_path / "in" / "weights.safetensors")
    assert_read(tmp_path / "in", forcing_run)


@pytest.mark.parametrize("kind", KINDS)
def test_bucket_is_read_as_a_disk(gs_path, forcing_run: Path, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = job.export(forcing_run, gs_path / "out", kind)
    assert contents(tmp_path) == {}  # what was read back is gone
    assert_read(str(out), forcing_run)
    if kind == "safetensors":
        assert_read(out / "weights.safetensors", forcing_run)
    paths.remove(out / "manifest.json")
    paths.remove(out / "weights.safetensors")
    paths.write_file(out / "unfinished.txt", "")
    with pytest.raises(UserError, match="is unfinished: its export was cut off"):
        open_export(out)


def test_hub_is_asked_for_the_files_of_an_export(exports, forcing_run: Path, monkeypatch):
    asked = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(exports["safetensors"])

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert_read("hf:owner/name@v1", forcing_run)
    open_export(Path("hf://owner/name"))
    patterns = ["manifest.json", "weights.safetensors", "weights/*"]
    assert asked == [("owner/name", "v1", patterns), ("owner/name", None, patterns)]
    hub.snapshot_download = lambda *given, **named: 1 / 0
    with pytest.raises(UserError, match=r"owner/name: cannot be fetched \(div.* check the net"):
        open_export("hf:owner/name")
    with pytest.raises(UserError, match="hf:name: is not a repository of the hub; write hf:OWNER"):
        open_export("hf:name")


@pytest.mark.parametrize("kind", KINDS)
def test_shardings_place_every_weight(exports, forcing_run: Path, kind: str):
    asked = []

    def shardings(tree):
        asked.append(jax.tree.structure(tree))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
        return jax.tree.map(lambda _: device, tree)

    assert_read(exports[kind], forcing_run, shardings)
    assert asked == [jax.tree.structure(checkpoint.load(forcing_run)[1])]


def manifest_with(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WRONG = {
    "bfl": ({"format": "modality_forcing 1, bfl"}, "layout bfl; name it as flux2-klein:"),
    "ours": ({"format": "modality_forcing 1, modality-forcing"}, "name it as mf-flux2:"),
    "program": ({"format": "modality_forcing 1, stablehlo"}, r"run it with its run\.py"),
    "shards": ({"format": 2}, "is not an export of mforce"),
    "version": ({"version": 2}, "is an export of version 2, this package reads 1"),
    "adapter": ({"adapter": True}, "is an adapter, .* and this with --adapter"),
    "config": ({"config": {"colour": 1}}, "its config is of another version"),
    "no config": ({"config": None}, "its manifest is damaged"),
    "no weights": ({"weights": {}}, "its manifest is damaged"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_other_exports_are_answered_with_what_to_do(exports, tmp_path: Path, changes, message):
    folder = shutil.copytree(exports["safetensors"], tmp_path / "out")
    manifest_with(folder, **changes)
    with pytest.raises(UserError, match=f"out: {message}|out: .*{message}"):
        open_export(folder)


def test_weights_that_are_not_the_manifests_are_named(exports, tmp_path: Path):
    for kind in KINDS:
        folder = shutil.copytree(exports[kind], tmp_path / kind)
        entries = json.loads((folder / "manifest.json").read_text())["weights"]
        name = next(iter(entries))
        wrong = entries | {name: entries[name] | {"sha256": "0" * 64}}
        manifest_with(folder, weights=wrong)
        with pytest.raises(UserError, match=f"is damaged: {name} changed after the export; export"):
            open_export(folder).load()
        manifest_with(folder, weights={**entries, "more/w": entries[name]})
        with pytest.raises(UserError, match=r"the weights of its manifest \(more/w\)"):
            open_export(folder).load()


def test_what_is_no_export_is_refused(tmp_path: Path):
    other = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, other)
    with pytest.raises(UserError, match=r"not written by mforce export; .* flux2-klein:/.*other"):
        open_export(other)
    with pytest.raises(UserError, match="empty: holds no export; name a folder or file that"):
        open_export(paths.make_folder(tmp_path / "empty"))
    with pytest.raises(UserError, match="nowhere: no such export"):
        open_export(tmp_path / "nowhere")


@damage.examples(15)
@given(st.data())
def test_damage_is_one_line_or_harmless(exports, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(KINDS))
    copy = shutil.copytree(exports[kind], tmp_path_factory.mktemp("copy") / "export")
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    strategy = damage.of(content := path.read_bytes())
    if path.name == "manifest.json":
        strategy |= damage.of_json(content)
    path.write_bytes(data.draw(strategy))
    try:
        _, weights = open_export(copy).load()
    except UserError as error:
        assert str(copy) in str(error) and "\n" not in str(error)
        return
    jax.tree.map(np.testing.assert_array_equal, weights, open_export(exports[kind]).load()[1])
