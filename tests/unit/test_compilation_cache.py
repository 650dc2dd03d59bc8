"""Compiled programs on disk: found again, equal, and never the reason that a command fails."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from modality_forcing import compilation_cache, paths
from modality_forcing.compilation_cache import cache_folder, enabled
from modality_forcing.errors import StorageFailed


@pytest.fixture(autouse=True)
def no_outer_cache(monkeypatch) -> Iterator[None]:
    """Tests share a cache of their own (conftest.py), which would win."""
    outer = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    uses_cache = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    jax_cache.reset_cache()
    monkeypatch.setattr(compilation_cache, "MIN_COMPILE_S", 0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", outer)
    jax.config.update("jax_enable_compilation_cache", uses_cache)
    jax_cache.reset_cache()


def compute(folder: Path) -> np.ndarray:
    """Compiles and runs a program that donates its input, with the cache in a folder."""

    def program(x):
        return jnp.sin(x) * 3.0 + jnp.cumsum(x)

    with enabled(str(folder)):
        jax.clear_caches()
        return np.asarray(jax.jit(program, donate_argnums=0)(jnp.linspace(0, 1, 7)))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("jit_program-*-cache"))


def own_lines(text: str) -> list[str]:
    """Returns the lines of stderr without those of XLA for each hit, which jax < 0.10 prints."""
    return [line for line in text.splitlines() if "cpu_aot_loader" not in line]


def test_programs_are_read_back_and_give_the_same_bits(tmp_path):
    first = compute(tmp_path)
    (entry,) = entries(tmp_path)
    before = entry.stat().st_mtime_ns
    np.testing.assert_array_equal(compute(tmp_path), first)
    assert [path.stat().st_mtime_ns for path in entries(tmp_path)] == [before]


def test_programs_are_read_back_from_a_bucket(bucket, gs_path, capfd):
    first = compute(gs_path)
    names = [
        name for name in bucket.names() if name.endswith("-cache") and str(gs_path)[12:] in name
    ]
    (entry,) = (name for name in names if "jit_program-" in name)
    before = bucket.generation(entry)
    bucket.requests.clear()
    np.testing.assert_array_equal(compute(gs_path), first)
    file = entry.rpartition("/")[2]
    assert any(
        method == "GET" and "alt=media" in path and file in path for method, path in bucket.requests
    )
    assert bucket.generation(entry) == before
    assert capfd.readouterr().err == ""


def test_damaged_entry_in_a_bucket_is_one_line(bucket, gs_path, capfd):
    first = compute(gs_path)
    (entry,) = (
        name for name in bucket.names() if "jit_program-" in name and str(gs_path)[12:] in name
    )
    path = paths.as_path(f"{bucket.address}/{entry}")
    paths.write_file(path, paths.read_bytes(path)[:-9])
    np.testing.assert_array_equal(compute(gs_path), first)
    (said,) = own_lines(capfd.readouterr().err)
    assert "a program is compiled again (" in said


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_entry_is_one_line_and_is_replaced(tmp_path, capfd, damage):
    first = compute(tmp_path)
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    flipped = bytes([content[100] ^ 16])
    bad = {"cut": content[:-9], "flipped": content[:100] + flipped + content[101:], "empty": b""}
    entry.write_bytes(bad[damage])
    np.testing.assert_array_equal(compute(tmp_path), first)
    (said,) = own_lines(capfd.readouterr().err)
    assert "a program is compiled again (" in said
    assert not entry.exists()  # the next start keeps it again
    compute(tmp_path)
    assert zlib.decompress(entry.read_bytes())
    assert own_lines(capfd.readouterr().err) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder_is_one_line(tmp_path, capfd):
    tmp_path.chmod(0o500)
    assert compute(tmp_path / "cache").shape == (7,)
    assert "no compiled programs are kept (Permission denied)" in capfd.readouterr().err


def test_file_in_place_of_the_folder_is_one_line(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert compute(tmp_path / "file").shape == (7,)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "no compiled programs are kept (" in said


def test_full_disk_is_one_line(tmp_path, capfd, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with enabled(str(tmp_path)):
        jax.clear_caches()
        monkeypatch.setattr(Path, "write_bytes", fail)
        monkeypatch.setattr("etils.epath.gpath.PosixGPath.write_bytes", fail)
        for scale in (2.0, 3.0):
            np.testing.assert_array_equal(jax.jit(lambda x, s=scale: x * s)(jnp.ones(2)), scale)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "not all are kept (" in said and "No space left" in said


def test_least_recently_used_entries_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 25)
    for age, name in enumerate("abcd"):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(b"0" * 10)
        os.utime(path, (1000 - age, 1000 - age))
    compilation_cache._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cache", "b-cache"]


def test_outer_cache_wins_and_settings_are_restored(tmp_path):
    with enabled(str(tmp_path / "outer")), enabled(str(tmp_path / "inner")):
        pass
    assert not (tmp_path / "inner").exists() and (tmp_path / "outer").is_dir()
    assert jax.config.jax_compilation_cache_dir is None  # pyright: ignore[reportAttributeAccessIssue]
    with enabled(""):
        assert jax.config.jax_compilation_cache_dir is None  # pyright: ignore[reportAttributeAccessIssue]


def test_places_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("auto", None).parent == tmp_path / "modality_forcing" / "compiled"
    assert cache_folder("auto", tmp_path / "run").parent == tmp_path / "run" / "compiled"
    assert cache_folder(str(tmp_path / "x"), tmp_path / "run").parent == tmp_path / "x"
    assert str(cache_folder("gs://bucket/x", None)).startswith("gs://bucket/x/")


def test_machines_of_other_instruction_sets_share_nothing(tmp_path, monkeypatch):
    ours = cache_folder("auto", tmp_path)
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor : 0\nflags : avx2 sse\n")
    monkeypatch.setattr(compilation_cache, "_CPU", listed)
    other = cache_folder("auto", tmp_path)
    listed.write_text("processor : 0\nflags : sse avx2\n")
    assert cache_folder("auto", tmp_path) == other != ours


def test_bucket_out_of_reach_is_one_line(capfd, monkeypatch):
    def fail(path):
        raise StorageFailed("cannot be looked up (no answer in time)", where=path)

    monkeypatch.setattr(paths, "exists", fail)
    compute(paths.as_path("gs://nowhere/cache"))
    said = capfd.readouterr().err
    assert said.startswith("no compiled programs are kept: gs://nowhere/cache/")
    assert "no answer in time" in said and said.count("\n") == 1
