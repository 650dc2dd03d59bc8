"""Files are whole or not there, and what the system refuses is one line."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.paths import check_file, check_folder, write_file


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


@pytest.mark.parametrize("address", ["ftp://host/run", "abc:/run", Path("http://host/run")])
def test_address_of_another_kind_is_refused_as_a_folder(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is an address of the kind .* use gs://") as caught:
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


LONG = "x" * 300


def test_pipe_is_written_into_and_stays(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"content" * 20_000)  # more than a pipe holds
    reader.join()
    assert read == [b"content" * 20_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


def test_device_is_written_into_and_stays(tmp_path):
    device = tmp_path / "device"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
        device.open("wb").close()
    except PermissionError:
        pytest.skip("only root may make a device")
    write_file(device, b"content")
    assert stat.S_ISCHR(device.stat().st_mode) and os.listdir(tmp_path) == ["device"]


def test_link_is_followed_and_stays(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"old")
    for name, target in {"link": "folder/file", "dangling": "folder/new"}.items():
        link = tmp_path / name
        link.symlink_to(target)
        write_file(link, b"new")
        assert link.is_symlink() and (tmp_path / target).read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path / "folder")) == ["file", "new"]


def test_folder_and_socket_are_refused_and_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 107 bytes
    (tmp_path / "folder").mkdir()
    bound = socket.socket(socket.AF_UNIX)
    bound.bind("socket")
    for name in ("folder", "socket"):
        for refuse in (lambda path: write_file(path, b""), lambda path: check_file(path, "--out")):
            with pytest.raises(UserError, match=f"{name}: is a {name}"):
                refuse(Path(name))
    bound.close()
    assert stat.S_ISSOCK(Path("socket").stat().st_mode)
    assert sorted(os.listdir()) == ["folder", "socket"]


def test_link_to_itself_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for refuse in (paths.exists, paths.read_bytes, lambda p: check_folder(p, "--out")):
        with pytest.raises(UserError, match=r"loop: cannot be looked up .*symbolic link"):
            refuse(tmp_path / "loop")


def test_folder_behind_a_dangling_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link: is a link to nothing"):
        check_folder(tmp_path / "link" / "below", "--out")


def test_name_that_is_too_long_is_one_line(tmp_path):
    for ask in (paths.exists, paths.is_dir, paths.is_file, paths.read_text, paths.list_dir):
        with pytest.raises(UserError, match=r"\.\.\.x+: .*File name too long.*a shorter name"):
            ask(tmp_path / LONG)
    with pytest.raises(UserError, match="File name too long"):
        write_file(tmp_path / LONG, b"")
    write_file(tmp_path / LONG[:255], b"")  # the longest name that a file may have
    assert os.listdir(tmp_path) == [LONG[:255]]


def test_name_that_is_not_utf8_is_refused_only_where_libraries_write(tmp_path):
    name = os.fsdecode(b"r\xe9n")
    with pytest.raises(UserError, match="not UTF-8") as caught:
        check_folder(tmp_path / name, "--workdir", utf8=True)
    check_folder(tmp_path / name, "--out")
    assert "\n" not in str(caught.value)
    (tmp_path / name).write_text("read")
    assert paths.read_text(tmp_path / name) == "read"
    assert paths.list_dir(tmp_path) == [tmp_path / name]


def test_file_as_a_folder_is_nothing(tmp_path):
    (tmp_path / "file").touch()
    assert not paths.exists(tmp_path / "file" / "below")
    with pytest.raises(UserError, match="file: is a file, not a folder"):
        paths.list_dir(tmp_path / "file")


def test_files_are_written_listed_and_read_back(folder):
    assert not paths.exists(folder / "a") and paths.glob(folder / "a", "*") == []
    paths.make_folder(folder / "a")
    for name, content in {"x.txt": "é\r\n", "y.bin": b"\x00\xff", "z.txt": ""}.items():
        write_file(folder / "a" / name, "old")
        write_file(folder / "a" / name, content)
    assert paths.is_dir(folder / "a") and not paths.is_file(folder / "a")
    assert paths.is_file(folder / "a" / "x.txt") and not paths.is_dir(folder / "a" / "x.txt")
    assert [path.name for path in paths.list_dir(folder / "a")] == ["x.txt", "y.bin", "z.txt"]
    assert paths.glob(folder / "a", "*.txt") == [folder / "a" / name for name in ("x.txt", "z.txt")]
    assert paths.read_text(folder / "a" / "x.txt") == "é\r\n"
    assert paths.read_bytes(folder / "a" / "y.bin") == b"\x00\xff"
    assert paths.size(folder / "a" / "y.bin") == 2 and paths.size(folder / "a" / "z.txt") == 0
    with paths.open_file(folder / "a" / "y.bin") as opened:
        opened.seek(1)
        assert opened.read() == b"\xff"
    assert paths.require_file(folder / "a" / "x.txt") == folder / "a" / "x.txt"
    assert paths.resolve(folder / "b" / ".." / "a") == folder / "a"


def test_text_is_added_to_the_end(tmp_path):
    for text in ("a\n", "b\n"):
        paths.append_file(tmp_path / "x", text)
    assert (tmp_path / "x").read_text() == "a\nb\n"
    with pytest.raises(UserError, match="cannot be written"):
        paths.append_file(tmp_path / "missing" / "x", "a")


def test_files_and_folders_are_removed(folder):
    for name in ("x", "a/y", "a/b/z"):
        write_file(folder / name, name)
    paths.remove(folder / "x")
    paths.remove(folder / "x")
    assert [path.name for path in paths.list_dir(folder)] == ["a"]
    paths.remove_tree(folder / "a")
    assert not paths.exists(folder / "a" / "b" / "z")


def test_what_is_read_from_disks_only_is_refused_in_a_bucket(tmp_path):
    assert paths.require_disk(tmp_path, "images") == tmp_path
    with pytest.raises(UserError, match=r"b/x: is in a bucket, and images are read from disks"):
        paths.require_disk(paths.as_path("gs://b/x"), "images")


def test_finished_file_is_moved(folder, tmp_path):
    for content in ("old", "new"):
        (tmp_path / "finished").write_text(content)
        paths.move_file(tmp_path / "finished", folder / "x")
        assert paths.read_text(folder / "x") == content and not (tmp_path / "finished").exists()


def test_missing_files_are_one_line(folder):
    write_file(folder / "x", "")
    for ask in (paths.read_bytes, paths.read_text, paths.list_dir, paths.require_file):
        with pytest.raises(UserError, match=r"no such") as caught:
            ask(folder / "y")
        assert str(folder / "y") in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        paths.size(folder / "y")


def test_a_file_is_no_folder_to_write_to(folder):
    check_folder(folder / "new" / "below", "--out")
    check_file(folder / "new", "--out")
    write_file(folder / "x", "")
    with pytest.raises(UserError, match=r"x: is a file; choose another --out"):
        check_folder(folder / "x", "--out")


def test_writing_to_a_bucket_renames_and_copies_nothing(bucket, gs_path):
    write_file(gs_path / "x", "old")
    write_file(gs_path / "x", "new")
    # Two uploads, no more. A client of an earlier test may still ask for something of its own.
    own = [(m, p) for m, p in bucket.requests if m == "POST" or gs_path.name in unquote(p)]
    assert [method for method, _ in own] == ["POST", "POST"]
    assert not [path for _, path in bucket.requests if "copyTo" in path or "rewriteTo" in path]


def test_device_is_not_read():
    with pytest.raises(UserError, match="/dev/zero: is a device, not a file"):
        paths.read_bytes("/dev/zero")


def test_resolved_paths_of_one_folder_are_equal(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path / "a")
    for text in ("b", "b/", "./b", "../a/b", "../link/b", tmp_path / "link" / "b"):
        assert paths.resolve(text) == (tmp_path / "a" / "b").resolve()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_unreadable_parent_is_one_line(tmp_path):
    (tmp_path / "locked" / "in").mkdir(parents=True)
    (tmp_path / "locked").chmod(0)
    try:
        for ask in (paths.exists, paths.is_file, paths.read_text, paths.list_dir):
            with pytest.raises(UserError, match=r"cannot be looked up .Permission denied"):
                ask(tmp_path / "locked" / "in" / "x")
    finally:
        (tmp_path / "locked").chmod(0o700)


@pytest.mark.parametrize("text", ["gs:bucket/run", "s3:run"])
def test_address_without_slashes_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{text}: is not the address of a bucket; write .*://"):
        paths.check_folder(paths.as_path(text), "--workdir")
