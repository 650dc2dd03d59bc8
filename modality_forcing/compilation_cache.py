"""Compiled programs that outlive the process, so that a restart does not compile them again.

It is jax's own cache. What is added: where it is, by kind of machine, and that nothing wrong with
it ends a command. A cache is as trusted as the code: users who can write to it can run code.
"""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.progress import print_stderr

AUTO = "auto"
MIN_COMPILE_S = 0.5  # what compiles faster is not worth a file
MAX_BYTES = 8 * 2**30  # of a local cache; what was used least recently is deleted first
_ENTRIES = "*-cache"
_CPU = Path("/proc/cpuinfo")


@contextmanager
def enabled(setting: str = AUTO, beside: Path | None = None) -> Iterator[None]:
    """Keeps compiled programs on disk, unless a cache is in use already, as an outer one.

    A cache that cannot be written or has a damaged entry is a warning; damaged entries are deleted.

    Args:
      setting: a folder or address, "" for no cache, or "auto": `compiled/` in `beside`, else in
        the user's folder of caches.
      beside: the workdir of a run.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if not setting or jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    folder = cache_folder(setting, beside)
    is_local = not paths.is_address(folder)
    if not (_is_usable(folder) if is_local else _is_reachable(folder)):
        yield
        return
    changes: dict[str, str | float] = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": MIN_COMPILE_S,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if not is_local:
        changes["jax_persistent_cache_enable_xla_caches"] = ""  # XLA itself writes to disks only
    before = {name: getattr(jax.config, name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        with _warnings_in_one_line(folder):
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def cache_folder(setting: str, beside: Path | None) -> Path:
    """Returns the cache for this kind of machine: a program for one CPU may not run on another."""
    if setting != AUTO:
        root = paths.as_path(os.path.expanduser(setting))
    elif beside is not None:
        root = beside / "compiled"
    else:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        root = Path(caches) / "modality_forcing" / "compiled"
    return root / _machine()


def _machine() -> str:
    """A name for the machine's instruction set."""
    features = platform.processor()
    with suppress(OSError):
        lines = _CPU.read_text().splitlines()
        features = next((x for x in lines if x.startswith(("flags", "Features"))), features)
    digest = hashlib.sha256(" ".join(sorted(features.split())).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"


def _is_reachable(folder: Path) -> bool:
    """Returns whether a bucket answers."""
    try:
        paths.exists(folder)
    except UserError as error:
        print_stderr(f"no compiled programs are kept: {error}")
        return False
    return True


def _is_usable(folder: Path) -> bool:
    """Makes a local cache and returns whether it can be written.

    It deletes the least recently used entries beyond MAX_BYTES.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"0")
        probe.unlink()
        _prune(folder)
    except OSError as error:
        with suppress(OSError):
            (folder / f".probe-{os.getpid()}").unlink()
        print_stderr(f"{folder}: no compiled programs are kept ({paths.reason(error)})")
        return False
    return True


def _prune(folder: Path) -> None:
    states = {path: path.stat() for path in folder.glob(_ENTRIES)}
    total = sum(state.st_size for state in states.values())
    for path in sorted(states, key=lambda p: max(states[p].st_atime, states[p].st_mtime)):
        if total <= MAX_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= states[path].st_size


@contextmanager
def _warnings_in_one_line(folder: Path) -> Iterator[None]:
    """Prints jax's warnings of its cache as lines, each kind once, and deletes damaged entries."""
    before, seen = warnings.showwarning, set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(str(message).split())
        kind = next((k for k in ("reading", "writing") if text.startswith(f"Error {k} p")), None)
        if kind is None or "persistent compilation cache" not in text:
            before(message, category, filename, lineno, file, line)
        elif kind not in seen:
            seen.add(kind)
            cause = text.partition(": ")[2]
            used = "a program is compiled again" if kind == "reading" else "not all are kept"
            print_stderr(f"{folder}: {used} ({cause[:200]})")

    warnings.showwarning = show
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", "Error (reading|writing) persistent compilation")
            warnings.showwarning = show
            yield
    finally:
        warnings.showwarning = before
        if seen and not paths.is_address(folder):
            _delete_damaged(folder)


def _delete_damaged(folder: Path) -> None:
    for path in folder.glob(_ENTRIES):
        with suppress(OSError):
            content = path.read_bytes()
            try:
                if content[:1] == b"\x78":  # zlib; jax may use zstd, whose frames it checks itself
                    zlib.decompress(content)
                elif content[:4] != b"\x28\xb5\x2f\xfd":
                    path.unlink()
            except zlib.error:
                path.unlink()
