"""Files of a mirror arrive where they are meant to, each change once."""

from __future__ import annotations

import tempfile

import pytest

from modality_forcing import paths
from modality_forcing.mirror import Mirror, on_disk, staged


def test_only_changed_files_are_uploaded_again(bucket, gs_path):
    mirror = Mirror(gs_path)
    (mirror.local / "x").write_text("one")
    (mirror.local / "y").write_text("one")
    mirror.upload()
    bucket.requests.clear()
    with (mirror.local / "x").open("a") as grown:
        grown.write(" more")
    mirror.close()
    assert [method for method, _ in bucket.requests] == ["POST"]
    assert paths.read_text(gs_path / "x") == "one more" and paths.read_text(gs_path / "y") == "one"
    assert not mirror.local.exists()


def test_local_folder_is_its_own_mirror(tmp_path):
    mirror = Mirror(tmp_path)
    (tmp_path / "x").write_text("stays")
    mirror.close()
    assert mirror.local == tmp_path and (tmp_path / "x").read_text() == "stays"


def test_missing_temporary_folder_is_one_line(bucket, gs_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(paths.UserError, match="/nowhere: cannot be written"):
        Mirror(gs_path)


def test_what_is_staged_arrives_where_it_is_meant_to(folder):
    with staged(folder / "out") as local:
        (local / "below").mkdir(parents=True)
        (local / "below" / "x").write_bytes(b"content")
        assert not paths.is_address(local)
    assert paths.read_bytes(folder / "out" / "below" / "x") == b"content"


def test_nothing_is_staged_where_the_work_fails(gs_path):
    with pytest.raises(ZeroDivisionError), staged(gs_path / "out") as local:
        (local / "x").write_bytes(b"content")
        raise ZeroDivisionError
    assert not paths.exists(gs_path / "out")


def test_weights_are_downloaded_once_a_version(bucket, gs_path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("a.safetensors", "config.json", "README.md"):
        paths.write_file(gs_path / name, name)
    folder = on_disk(gs_path, ("*.safetensors", "*.json"))
    assert sorted(path.name for path in folder.iterdir()) == ["a.safetensors", "config.json"]
    bucket.requests.clear()
    assert on_disk(gs_path, ("*.safetensors", "*.json")) == folder
    assert not [path for _, path in bucket.requests if "alt=media" in path]
    paths.write_file(gs_path / "config.json", "another")
    assert (on_disk(gs_path, ("*.json",)) / "config.json").read_text() == "another"
    assert on_disk(gs_path / "README.md", ()).read_text() == "README.md"
    assert on_disk(tmp_path, ()) == tmp_path and on_disk(gs_path / "x", ()) == gs_path / "x"
