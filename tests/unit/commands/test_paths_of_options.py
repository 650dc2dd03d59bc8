"""Every option that takes a path, with what a path may turn out to be: one line, nothing lost."""

from __future__ import annotations

import argparse
import ctypes
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing import cli, distributed
from modality_forcing.commands.arguments import path_option
from modality_forcing.data import in_memory
from modality_forcing.encoders.weights import open_checkpoint
from modality_forcing.errors import UserError
from tests import frozen
from tests.runs import Done

# A path by the text of its metavar; all others have the type path_option.
KINDS = ("KIND:PATH", "flux2:PATH")
METAVARS = ("FILE[:ARG]", *KINDS)
PATHLESS = {"completion"}
ODD = "a b%20#\N{GRINNING FACE}"
STARTED = "no devices in this test"
SWEEP = """
from modality_forcing import config_file
from modality_forcing.sweeps.spec import Records, Run, axis, sweep

def get_sweep(arg):
    config = config_file.load("demo:phase=forcing")
    return sweep("one", axis("seed", 0), lambda seed: Run("forcing", config), Records())
"""

# What a command needs to get to its paths, as (name of an option, value); {NAME} is a path of
# `world`. An option is tried in the first of the sets that names it, else added to the first one.
BASES: dict[str, tuple[dict[str, str], ...]] = {
    "demo": ({"--workdir": "{new}"},),
    "train": ({"--config": "demo", "--workdir": "{new}"},),
    "sample": (
        {"--checkpoint": "{new}", "--mode": "t2i", "--out": "{new}"},
        {"--image": "", "--checkpoint": "{new}", "--mode": "i2d", "--out": "{new}"},
        {"--depth": "", "--checkpoint": "{new}", "--mode": "d2i", "--out": "{new}"},
    ),
    "evaluate": (
        {"--checkpoint": "{run}", "--save-images": "{new}"},
        {"--pred": "{npz}", "--target": "{npz}", "--out": "{new}"},
        {"--root": "{new}", "--frame-list": "{text}", "--checkpoint": "{run}"}
        | {"--benchmark": "nyuv2"},
    ),
    "prepare": ({"--root": "{images}", "--out": "{new}", "--dataset": "folder"},),
    "encode": (
        {"--source": "{prepared}", "--out": "{new}", "--text": "umt5:{encoder}"},
        {"--source": "{prepared}", "--out": "{new}", "--image": "flux2:{encoder}"},
    ),
    "inspect": ({"folder": "{images}", "--sheet": "{new}"},),
    "app": ({"--checkpoint": "{new}", "--port": "0"},),
    "export": ({"--checkpoint": "{run}", "--out": "{new}"},),
    "fit": (
        {"--table": "{table}", "--columns": "N=N,D=D,loss=loss", "--form": "chinchilla"}
        | {"--bootstrap": "100", "--out": "{new}"},
    ),
    "sweep": ({"--config": "{sweep}", "--workdir": "{new}"},),
    "plan": (
        {"--config": "demo", "--topology": "v5e:2x2"},
        {"--sweep": "{sweep}"},
        {"--out": "{new}", "--coord-check": "yes"},
    ),
}
FLAGS = {"--coord-check"}


def is_path(action: argparse.Action) -> bool:
    return action.type is path_option or action.metavar in METAVARS


def options() -> list[tuple[str, str, str]]:
    """Every option of every command that takes a path, and what is before it, from the parsers."""
    parser = cli.build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [
        (
            command,
            (action.option_strings or [action.dest])[0],
            str(action.metavar).removesuffix("PATH") if action.metavar in KINDS else "",
        )
        for command, sub in commands.choices.items()
        for action in sub._actions
        if is_path(action)
    ]


@dataclass(frozen=True)
class World:
    """The folder of a test, and named paths in it."""

    folder: Path
    special: dict[str, Path]  # pipes, devices, links: what a path may turn out to be
    named: dict[str, Path]  # valid inputs

    def kinds(self) -> dict[str, int]:
        """The kind of each special path that must stay what it is."""
        return {
            name: stat.S_IFMT(path.lstat().st_mode)
            for name, path in self.special.items()
            if name in ("pipe", "device", "dangling", "file", "folder")
        }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return frozen.prepared(tmp_path_factory.mktemp("prepared") / "records", count=1)


@pytest.fixture
def world(tmp_path, monkeypatch, prepared) -> Iterator[World]:
    home = tmp_path / "home"
    named = {name: home / name for name in ("new", "images", "npz", "table", "text", "run")}
    named |= {"prepared": prepared, "encoder": home / "encoder"}
    named["images"].mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(named["images"] / "a.png")
    Image.fromarray(np.ones((8, 8, 3), np.uint8)).save(named["images"] / "b.png")
    named["text"].write_text("name\n")
    named["npz"] = home / "arrays.npz"
    np.savez(named["npz"], depth=np.ones((1, 4, 4)), valid=np.ones((1, 4, 4), np.bool_))
    named["table"] = home / "runs.csv"
    rows = [(n, d, 1 + 9 / n**0.3 + 9 / d**0.3) for n in (1e6, 3e6, 9e6) for d in (1e8, 3e8, 9e8)]
    named["table"].write_text("N,D,loss\n" + "".join(f"{n},{d},{x}\n" for n, d, x in rows))

    named["sweep"] = home / "sweep.py"
    named["sweep"].write_text(SWEEP)

    special = {
        name: tmp_path / name for name in ("pipe", "device", "dangling", "file", "folder", ODD)
    }
    os.mkfifo(special["pipe"])
    special["dangling"].symlink_to("nowhere/at/all")
    special["file"].write_text("text\n")
    special["folder"].mkdir()
    try:  # as /dev/null
        os.mknod(special["device"], stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        del special["device"]
    (tmp_path / "locked" / "in").mkdir(parents=True)
    (tmp_path / "locked").chmod(0)
    special |= {
        "locked": tmp_path / "locked" / "in" / "x",
        "long": tmp_path / ("x" * 300),
        "below a file": special["file"] / "below",
        "not UTF-8": tmp_path / os.fsdecode(b"r\xe9n"),
        "slash": Path(f"{special['folder']}/"),  # pathlib drops it; see `spell`
        "relative": Path("../folder/../home/none"),
    }
    monkeypatch.chdir(home)
    yield World(tmp_path, special, named)
    (tmp_path / "locked").chmod(0o700)


@contextmanager
def pumped(pipe: Path) -> Iterator[None]:
    """Reads what is written into a pipe, and ends it for those who read from it."""
    done = threading.Event()

    def pump() -> None:
        end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        while not done.wait(0.002):
            os.close(os.open(pipe, os.O_WRONLY))
            with suppress(BlockingIOError):
                os.read(end, 1 << 16)
        os.close(end)

    thread = threading.Thread(target=pump)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def without_privileges() -> Iterator[None]:
    """Takes from root the right to look everywhere, in this thread."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    assert libc.capget(header, less) == 0
    less[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def spell(path: Path, kind: str, prefix: str = "") -> str:
    return f"{prefix}{path}/" if kind == "slash" else f"{prefix}{path}"


def command_line(world: World, base: dict[str, str]) -> list[str]:
    line = []
    for name, value in base.items():
        if name in FLAGS:
            line.append(name)
        else:
            value = value.format(**world.named) if "{" in value else value
            line += [value] if not name.startswith("-") else [f"{name}={value}"]
    return line


def is_one_line_or_success(command: str, done: Done) -> bool:
    """Whether a command succeeded, or ended with one line; it may have noted progress before."""
    *notes, last = done.err.splitlines() or [""]
    if "Traceback" in done.err or len(last) > 800 or any(n.startswith("mforce") for n in notes):
        return False
    return done.code == 0 or (done.code == 2 and last.startswith(f"mforce {command}: "))


def names(done: Done, path: Path) -> bool:
    """Whether the error is about a path, of which a very long name is cut."""
    shown = str(path) if len(path.name) < 100 else str(path)[:80]
    return shown.encode(errors="backslashreplace").decode() in done.err


@pytest.mark.parametrize(("command", "option", "prefix"), options())
def test_any_path_is_one_line_or_works(world, mforce, monkeypatch, command, option, prefix):
    def refuse(*_: object, **__: object) -> None:
        raise UserError(STARTED)

    monkeypatch.setattr(distributed, "initialize", lambda: None)
    for name in ("devices", "local_devices", "backend"):
        if command != "encode":  # which opens weights once it has devices
            monkeypatch.setattr(distributed, name, refuse)
    monkeypatch.setattr(in_memory, "InMemory", refuse)
    base = next((base for base in BASES[command] if option in base), BASES[command][0])
    before, odd = world.kinds(), []
    with pumped(world.special["pipe"]):
        for kind, path in world.special.items():
            line = command_line(world, base | {option: spell(path, kind, prefix)})
            with without_privileges():
                done = mforce(command, *line)
            if not is_one_line_or_success(command, done):
                odd.append((kind, done))
            if command == "encode" and prefix and not names(done, path):
                odd.append((kind, done))
    assert not odd
    assert world.kinds() == before
    assert world.special["file"].read_text() == "text\n" or option in ("--out", "--sheet")
    assert not list(world.folder.glob(".*"))  # no temporary file stays


def test_every_command_with_a_path_is_tried():
    assert {command for command, *_ in options()} == set(BASES)
    assert set(BASES) | PATHLESS == set(cli.COMMANDS)


def test_location_of_weights_may_be_any_path(world):
    for kind, path in world.special.items():
        with without_privileges(), pytest.raises(UserError) as caught:
            open_checkpoint(spell(path, kind))
        assert "\n" not in str(caught.value)
