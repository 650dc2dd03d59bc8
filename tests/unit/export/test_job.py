"""Exported weights: complete, described, readable without this package."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from modality_forcing import paths, safetensors_io
from modality_forcing.config import to_dict
from modality_forcing.errors import UserError
from modality_forcing.export import job
from modality_forcing.train import checkpoint
from modality_forcing.tree import JsonObject, flatten
from tests import tiny
from tests.runs import contents, environment

# What someone else would write, from the manifest and the formats' own documentation.
READERS = {
    "safetensors": """
from safetensors.numpy import load_file
weights = load_file(folder / "weights.safetensors")
""",
    "orbax": """
import logging
logging.getLogger("absl").setLevel(logging.ERROR)
import orbax.checkpoint as ocp
def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, np.asarray(value)
weights = dict(flat(ocp.StandardCheckpointer().restore(folder / "weights")))
""",
}
CHECK = """
assert "modality_forcing" not in sys.modules
manifest = json.loads((folder / "manifest.json").read_text())
assert set(weights) == set(manifest["weights"])
for name, entry in manifest["weights"].items():
    assert [list(weights[name].shape), str(weights[name].dtype)] == [entry["shape"], entry["dtype"]]
np.savez(out, **weights)
"""


@pytest.fixture(scope="module", params=sorted(READERS))
def exported(request, tmp_path_factory, forcing_run: Path) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("export") / request.param
    assert job.export(forcing_run, out, request.param) == out
    return request.param, out


def test_manifest_lists_every_weight(exported, forcing_run: Path):
    kind, out = exported
    manifest = json.loads((out / "manifest.json").read_text())
    config, ema = checkpoint.load(forcing_run)
    assert manifest["config"] == to_dict(config) == to_dict(tiny.forcing())
    assert kind in manifest["format"]
    weights = {name: np.asarray(leaf) for name, leaf in flatten(ema).items()}
    assert set(manifest["weights"]) == set(weights)
    for name, entry in manifest["weights"].items():
        digest = hashlib.sha256(np.ascontiguousarray(weights[name]).tobytes()).hexdigest()
        assert entry == {"shape": list(weights[name].shape), "dtype": "float32", "sha256": digest}


def test_export_is_read_without_this_package(exported, forcing_run: Path, tmp_path: Path):
    kind, folder = exported
    places = f"folder, out = Path({str(folder)!r}), {str(tmp_path / 'w.npz')!r}"
    head = f"import json, sys\nfrom pathlib import Path\nimport numpy as np\n{places}\n"
    environ = environment()
    del environ["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", head + READERS[kind] + CHECK],
        env=environ,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    ema = flatten(checkpoint.load(forcing_run)[1])
    with np.load(tmp_path / "w.npz", allow_pickle=False) as read:
        assert set(read.files) == set(ema)
        for name in read.files:
            np.testing.assert_array_equal(read[name], ema[name])


def test_export_leaves_no_temporary_files(exported):
    kind, out = exported
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "manifest.json"),
        "weights.safetensors" if kind == "safetensors" else "weights",
    }
    assert [path.name for path in out.parent.iterdir()] == [kind]


def test_export_that_does_not_read_back_is_deleted(forcing_run: Path, tmp_path: Path, monkeypatch):
    right = safetensors_io.File.read
    monkeypatch.setattr(safetensors_io.File, "read", lambda *of: np.asarray(right(*of) + 1))
    with pytest.raises(UserError, match=r"does not read back .*is damaged.*; check the disk"):
        job.export(forcing_run, tmp_path / "out", "safetensors")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("kind", sorted(READERS))
def test_export_of_an_export_is_equal(exported, kind: str, tmp_path: Path):
    """Files are, but those of Orbax, which have times and random names."""
    _, folder = exported
    again = job.export(folder, tmp_path / "again", kind)
    third = job.export(again, tmp_path / "third", kind)
    if kind == "safetensors":
        assert contents(again) == contents(third)
        alone = job.export(again / "weights.safetensors", tmp_path / "alone", kind)
        assert contents(alone) == contents(third)
    manifests = [json.loads((out / "manifest.json").read_text()) for out in (folder, again, third)]
    assert manifests[1] == manifests[2] == manifests[0] | {"format": manifests[1]["format"]}


@pytest.mark.parametrize("complete", [False, True])
def test_killed_export_does_not_block_the_next_one(folder: Path, forcing_run: Path, complete):
    """`folder` is on a disk and in a bucket."""
    out = folder / "out"
    unfinished = out if paths.is_address(out) else folder / ".out.unfinished"
    paths.write_file(unfinished / "unfinished.txt", "")
    paths.write_file(unfinished / "weights/0", b"cut")
    if complete:
        paths.write_file(out / "manifest.json", "{}")
        with pytest.raises(UserError, match="out: already exists; name a folder that does not"):
            job.export(forcing_run, out, "safetensors")
        return
    job.export(forcing_run, out, "safetensors")
    names = {path.name for path in paths.list_dir(out)}
    assert names == {"README.md", "manifest.json", "weights.safetensors"}


FULL_DISK = """
import resource, signal, sys
from modality_forcing import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_what_is_written_late_is_removed_too(tmp_path: Path):
    """As Orbax's threads do after an error."""
    late = threading.Timer(0.03, lambda: (tmp_path / ".out.unfinished/late").mkdir(parents=True))

    def write(folder: Path) -> JsonObject:
        (folder / "early").mkdir()
        late.start()
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        job.write_folder(tmp_path / "out", write)
    late.join()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("kind", sorted(READERS))
def test_full_disk_leaves_no_file(forcing_run: Path, tmp_path: Path, kind: str):
    arguments = [
        "export",
        "--checkpoint",
        str(forcing_run),
        "--out",
        str(tmp_path / "out"),
        "--format",
        kind,
    ]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.startswith("mforce export: ")
        and "cannot be written" in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert contents(tmp_path) == {}
