"""Folders of those who use a page."""

from __future__ import annotations

from pathlib import Path

from modality_forcing.app.sessions import KEPT, Sessions


def test_folders_are_apart_and_not_to_be_guessed(tmp_path):
    sessions = Sessions(tmp_path)
    folders = [sessions.new_folder(name) for name in ("a", "b", "a")]
    assert len(set(folders)) == 3
    assert all(folder.is_dir() and len(folder.name) >= 32 for folder in folders)


def test_oldest_answers_of_a_session_are_removed(tmp_path):
    sessions = Sessions(tmp_path)
    other = sessions.new_folder("b")
    mine = [sessions.new_folder("a") for _ in range(KEPT + 2)]
    assert [folder.is_dir() for folder in mine] == [False] * 2 + [True] * KEPT
    assert other.is_dir()


def test_closed_session_leaves_nothing(tmp_path):
    sessions = Sessions(tmp_path)
    mine, other = sessions.new_folder("a"), sessions.new_folder("b")
    (mine / "depth.npy").write_bytes(b"x")
    sessions.close("a")
    sessions.close("a")  # a browser may say so twice
    assert not mine.exists() and other.is_dir()


def test_fullness_counts_every_file_below_the_root(tmp_path):
    sessions = Sessions(tmp_path, max_total=100)
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload/photo.jpg").write_bytes(bytes(60))
    assert not sessions.is_full()
    Path(sessions.new_folder("a"), "depth.npy").write_bytes(bytes(50))
    assert sessions.is_full()
