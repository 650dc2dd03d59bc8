"""`mforce prepare`'s options: what they mean, and one line for each that makes no sense."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.commands import inspect, prepare
from modality_forcing.commands.arguments import shard_of
from modality_forcing.data.records import RecordSource
from modality_forcing.datasets import registry
from modality_forcing.datasets.common.lazy import LazySource
from modality_forcing.errors import UserError
from modality_forcing.storage import manifest
from modality_forcing.storage.shards import Shards


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "NAMES", ("folder",))


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    prepare.add_options(parser)
    prepare.main(parser.parse_args(arguments))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "photos/images").mkdir(parents=True)
    (tmp_path / "photos/depth").mkdir()
    for index in range(4):
        Image.fromarray(np.full((30, 40, 3), 50 * index, np.uint8)).save(
            tmp_path / f"photos/images/{index}.png"
        )
        Image.fromarray(np.full((30, 40), 1500, np.uint16)).save(
            tmp_path / f"photos/depth/{index}.png"
        )
    return tmp_path / "photos"


FOLDER = ("--dataset=folder", "--option=depth_scale=0.001", "--option=unit=metric")


def test_data_set_is_prepared(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    run(
        *FOLDER,
        f"--root={root}",
        f"--out={out}",
        "--resolution=15",
        "--limit=3",
        "--image-format=png",
    )
    assert capsys.readouterr().out == f"{out}/manifest-train.json\n"
    source = Shards(out)
    assert len(source) == 3
    record = source[2]
    assert (
        record.image.shape == (15, 21, 3)
        and np.all(record.image == 100)
        and record.unit == "metric"
    )
    np.testing.assert_allclose(record.depth, 1.5)
    settings = json.loads((out / "manifest-train.json").read_text())["settings"]
    assert (
        settings["options"] == {"depth_scale": "0.001", "unit": "metric"}
        and settings["records"] == 3
    )


def test_what_is_not_used_is_printed_and_in_the_manifest(root: Path, tmp_path: Path, capsys):
    (root / "images/tour.mp4").write_bytes(b"")
    (root / "depth/2.png").unlink()
    out = tmp_path / "out"
    run(*FOLDER, f"--root={root}", f"--out={out}", "--resolution=15")
    assert f"{root}/images: 1 not used (tour.mp4)\n" in capsys.readouterr().err
    found = manifest.read(out, "train")
    assert found and found.notes[0] == "images: 1 not used (tour.mp4)"
    assert found.stats["without_depth"] == 1
    print(inspect.table(found))
    assert "notes         images: 1 not used (tour.mp4)" in capsys.readouterr().out


def test_manifest_without_notes_has_no_key_for_them(root: Path, tmp_path: Path):
    shutil.rmtree(root / "depth")
    run(*FOLDER, f"--root={root}", f"--out={tmp_path / 'out'}", "--resolution=15")
    assert "notes" not in json.loads((tmp_path / "out/manifest-train.json").read_text())


def test_max_side_limits_the_longer_side(root: Path, tmp_path: Path):
    run(*FOLDER, f"--root={root}", f"--out={tmp_path / 'out'}", "--max-side=20")
    assert Shards(tmp_path / "out")[0].image.shape == (15, 20, 3)


def test_data_sets_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "NAMES", ("folder", "lacking"))
    found = registry.find_dataset

    def find(name: str) -> registry.Dataset:
        if name == "lacking":
            raise UserError("data set lacking needs the package h5py", hint="pip install it")
        return found(name)

    monkeypatch.setattr(registry, "find_dataset", find)
    run("--list-datasets")
    heading, folder, lacking = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "title", "unit", "splits", "license"]
    assert folder.startswith("folder   a folder of your own ") and "relative" in folder
    assert lacking == "lacking  data set lacking needs the package h5py; pip install it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--dataset and --root and --out missing"),
        (("--dataset=folder", "--root=x"), "--out missing"),
        (
            (*FOLDER, "--root=ROOT", "--out=OUT", "--max-side=5", "--resolution=5"),
            "are two sizes; give one of them",
        ),
        ((*FOLDER, "--root=ROOT", "--out=OUT", "--quality=101"), "--quality is 101"),
        (("--dataset=foldr", "--root=ROOT", "--out=OUT"), "did you mean folder"),
        ((*FOLDER, "--root=ROOT/none", "--out=OUT"), "none: no such folder"),
        ((*FOLDER, "--root=ROOT", "--out=OUT", "--split=val"), "has no split 'val'"),
        ((*FOLDER, "--root=ROOT", "--out=ftp://bucket/x"), "is an address"),
        (
            (*FOLDER, "--root=ROOT", "--out=OUT", "--option=depth"),
            "--option depth is not NAME=VALUE",
        ),
        (("--dataset=folder", "--root=ROOT", "--out=OUT"), "the unit of its counts is not known"),
    ],
)
def test_meaningless_requests_are_refused(
    root: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
):
    given = [
        one.replace("ROOT", str(root)).replace("OUT", str(tmp_path / "out")) for one in arguments
    ]
    with pytest.raises(UserError, match=message) as caught:
        run(*given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_options_are_for_sets_that_have_some(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Empty(registry.Dataset):
        def open(self, root: Path, split: str) -> RecordSource:
            return LazySource((), list)  # pyright: ignore[reportReturnType]

    plain = Empty(name="folder", title="Some set", splits=("train",), license="free")
    monkeypatch.setattr(registry, "find_dataset", lambda name: plain)
    with pytest.raises(UserError, match=r"Some set has no option '.*'; leave --option out"):
        run(*FOLDER, f"--root={root}", f"--out={tmp_path / 'out'}")
    with pytest.raises(UserError, match="holds no record of Some set"):
        run("--dataset=folder", f"--root={root}", f"--out={tmp_path / 'out'}")


@pytest.mark.parametrize(
    "option",
    ["--shard=2/2", "--shard=1", "--shard=a/b", "--max-errors=2", "--max-errors=x", "--workers=-1"],
)
def test_numbers_are_checked(option: str):
    with pytest.raises(argparse.ArgumentError):
        run(*FOLDER, "--root=x", "--out=y", option)


def test_parts_count_from_0():
    assert shard_of("0/3") == (0, 3) and shard_of("2/3") == (2, 3)


def test_prepare_imports_no_heavy_package():
    """Neither they nor a worker process load what takes long."""
    heavy = "{'jax', 'grain', 'torch', 'tensorflow', 'flax', 'pyarrow', 'h5py'}"
    light = "{'numpy', 'PIL', 'array_record'}"
    script = (
        "import sys, modality_forcing.commands.prepare, modality_forcing.commands.inspect;"
        f"a = {light} & sys.modules.keys();"
        f"import modality_forcing.prepare.work; print(a, {heavy} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set() set()\n"
