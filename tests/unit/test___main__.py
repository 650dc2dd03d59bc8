"""A signal during the imports of `mforce` is one line too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runs import environment

# The signal arrives while a module is imported.
START = """
import os, signal, sys, time

class Finder:
    def find_spec(self, name, *rest):
        if name == "modality_forcing.{module}":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.{number})
            time.sleep(0.01)

sys.meta_path.insert(0, Finder())
sys.argv = ["mforce", "--version"]
{call}
"""
SCRIPT = "from modality_forcing.__main__ import main; sys.exit(main())"
MODULE = "import runpy; runpy.run_module('modality_forcing.cli', run_name='__main__')"


def run(module: str, number: str, call: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START.format(module=module, number=number, call=call)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize("call", [SCRIPT, MODULE])
@pytest.mark.parametrize("module", ["distributed", "commands.demo"])
def test_signal_during_imports_is_one_line(module: str, call: str):
    done = run(module, "SIGINT", call)
    assert (done.returncode, done.stderr) == (130, "mforce: interrupted\n")
    if call == SCRIPT:
        done = run(module, "SIGTERM", call)
        assert (done.returncode, done.stderr) == (143, "mforce: stopped by SIGTERM\n")


def test_command_runs():
    done = run("nothing", "SIGTERM", SCRIPT)
    assert done.returncode == 0 and done.stdout.startswith("mforce 0.")
