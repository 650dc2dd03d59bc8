"""Files are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from modality_forcing.atomic_io import check_folder, write_file
from modality_forcing.errors import UserError


def test_write_file_replaces_the_file_with_default_permissions(tmp_path):
    path = tmp_path / "a"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_file(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        write_file(path, b"new")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_check_folder_creates_nothing(tmp_path):
    check_folder(tmp_path, "--out")
    check_folder(tmp_path / "new" / "below", "--out")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file: is a file; choose another --out"):
            check_folder(path, "--out")


@pytest.mark.parametrize(
    "address", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket/run", Path("gs://bucket/run")]
)
def test_url_is_refused_as_a_folder(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"is an address.*mount the bucket.* --workdir below the mount"
    ) as caught:
        check_folder(address, "--workdir")
    assert "\n" not in str(caught.value)


def test_path_with_a_colon_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("run:1/below", "a/gs:/b", tmp_path / "gs:" / "b"):
        check_folder(path, "--workdir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="may not be written to"):
        check_folder(tmp_path / "new", "--workdir")
