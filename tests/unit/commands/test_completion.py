"""Shell completion scripts."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

pytest.importorskip("shtab")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_completes_commands_and_options(mforce, shell: str):
    done = mforce("completion", shell)
    assert (done.code, done.err) == (0, "")
    assert "evaluate" in done.out and "max-errors" in done.out
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=done.out, text=True, check=True)


def test_missing_package_is_one_line(mforce, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    done = mforce("completion", "bash")
    assert done.code == 2 and "pip install 'modality_forcing[completion]'" in done.err
