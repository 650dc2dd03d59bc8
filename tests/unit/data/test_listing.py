"""Lists of files below a folder, with links that lead nowhere or back."""

from __future__ import annotations

from pathlib import Path

from modality_forcing.data.listing import files_below


def test_files_of_known_kinds_are_found_once(tmp_path: Path):
    (tmp_path / "b/c.png").mkdir(parents=True)  # a folder, whatever its name
    for name in ("z.PNG", "a.txt", ".hidden.png", "b/y.jpg", "b/c.png/x.png"):
        (tmp_path / name).touch()
    (tmp_path / "b/up").symlink_to("..")
    (tmp_path / "gone.png").symlink_to("nothing")  # an error of who reads it
    (tmp_path / "loop.png").symlink_to("loop.png")
    expected = ["b/c.png/x.png", "b/y.jpg", "gone.png", "loop.png", "z.PNG"]
    found = list(files_below(tmp_path, (".png", ".jpg")))
    assert [below.as_posix() for _, below in found] == expected
    assert all(path == tmp_path / below for path, below in found)
    assert not list(files_below(tmp_path, (".png",), {tmp_path.resolve()}))
