"""The manifest: entries, torn lines, order."""

from __future__ import annotations

import json
from pathlib import Path

from modality_forcing.inference.manifest import NAME, Manifest, remove_temp_files


def entry(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "outputs": [f"{name}.npy"], **more}


def test_entries_are_kept_in_the_order_of_the_files(tmp_path: Path):
    (tmp_path / "a.npy").touch()
    first = Manifest(tmp_path)
    first.add([entry("b"), entry("a", settings="1")])
    assert (tmp_path / NAME).read_text().count("\n") == 2
    with (tmp_path / NAME).open("a") as file:
        file.write('{"name": "c", "outp')  # a killed run
    second = Manifest(tmp_path)
    assert list(second.entries) == ["b", "a"] and "c" not in (tmp_path / NAME).read_text()
    assert second.is_current("a", {"settings": "1"})
    assert not second.is_current("a", {"settings": "2"})
    assert not second.is_current("b", {}), "its file is missing"
    assert not second.is_current("c", {})
    second.add([entry("a", settings="2"), entry("other")])
    second.close(["a", "b"])
    lines = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert [line["name"] for line in lines] == ["other", "a", "b"] and lines[1]["settings"] == "2"


def test_nothing_is_written_without_entries(tmp_path: Path):
    Manifest(tmp_path / "new").close(["a"])
    assert not (tmp_path / "new").exists()


def test_temporary_files_of_a_killed_job_are_removed(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    left = (".manifest.jsonl.x1", ".a_depth.npy.x2", f".{'n' * 49}.x3", "sub/.b_mesh.ply.x4")
    kept = (".sample.lock", ".other.npy.x5", "a_depth.npy", "sub/.c_mesh.ply.x6")
    for name in (*left, *kept):
        (tmp_path / name).touch()
    remove_temp_files(tmp_path, ["a", "n" * 80, "sub/b"])
    found = {str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*") if x.is_file()}
    assert found == set(kept)
