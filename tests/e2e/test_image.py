"""The Dockerfile, as far as that shows without Docker: what it copies, installs, starts and ends.

No test builds the image.
"""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from tests.fakes import Tools
from tests.runs import ROOT

ACCELERATORS = ("cpu", "tpu", "cuda12", "cuda13")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def instructions() -> list[tuple[str, str]]:
    """The keyword and the arguments of every instruction."""
    lines = [
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    ]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word, rest)
        for word, _, rest in (line.partition(" ") for line in text.splitlines())
        if word
    ]


def stages() -> dict[str, str]:
    """What each stage is made from, by its name; arguments are not replaced."""
    found = [rest.split() for word, rest in instructions() if word == "FROM"]
    return {name: base for base, _, name in found}


def argument(name: str) -> str:
    """The default of a build argument."""
    values = [
        rest.partition("=")[2]
        for word, rest in instructions()
        if word == "ARG" and f"{name}=" in rest
    ]
    assert len(values) == 1, f"{name} has one default"
    return values[0]


def test_copied_files_exist_and_are_sent():
    sent = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == sent and all((ROOT / path).exists() for path in sent)


def test_dependencies_are_installed_before_the_sources_are_copied():
    words = [f"{word} {rest}" for word, rest in instructions()]
    install = next(i for i, line in enumerate(words) if "--requirement=requirements.txt" in line)
    assert install < next(
        i for i, line in enumerate(words) if line.startswith("COPY modality_forcing")
    )


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_every_accelerator_has_a_stage_and_requirements(accelerator: str, tools: Tools):
    assert stages()["run"] == "user-${ACCELERATOR}" and f"user-{accelerator}" in stages()
    names = f"{accelerator},{argument('EXTRAS')}"
    code = f"import os; os.chdir({str(ROOT)!r}); import sys, runpy; sys.argv = ['x', {names!r}]; "
    code += f"runpy.run_path({str(ROOT / 'launch/requirements.py')!r}, run_name='__main__')"
    done = tools.run("python3", "-c", code)
    lines = done.out.splitlines()
    assert done.code == 0 and len(set(lines)) == len(lines), done.err
    wanted = {*PROJECT["dependencies"], *EXTRAS["encoders"], *EXTRAS["datasets"], *EXTRAS["gcs"]}
    assert set(lines) == wanted | set(EXTRAS.get(accelerator, []))


def test_unknown_extras_are_named(tools: Tools):
    (tools.folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    done = tools.run("python3", ROOT / "launch/requirements.py", "cpu,wrong")
    assert done.code == 1 and done.out == ""
    assert done.err.startswith("pyproject.toml has no extra 'wrong'; it has app, beam, ")


def test_extras_of_the_package_itself_are_resolved(tools: Tools):
    (tools.folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    lines = tools.run("python3", ROOT / "launch/requirements.py", "dev").out.splitlines()
    assert set(EXTRAS["docs"]) < set(lines) and not any(PROJECT["name"] in line for line in lines)


def test_signals_reach_python_and_only_tpus_run_as_root():
    starts = [json.loads(rest) for word, rest in instructions() if word == "ENTRYPOINT"]
    assert starts == [["tini", "--", "mforce"], ["/opt/apache/beam/boot"]]  # exec form: no shell
    assert "mforce" in PROJECT["scripts"]
    assert not [rest for word, rest in instructions() if word == "CMD" and not rest.startswith("[")]
    bases = stages()
    assert bases["user-cuda12"] == bases["user-cuda13"] == "user-cpu" != bases["user-tpu"]


def test_versions_are_those_of_the_project():
    assert f"Programming Language :: Python :: {argument('PYTHON')}" in PROJECT["classifiers"]
    (beam,) = EXTRAS["beam"]
    assert f">={argument('BEAM').rpartition('.')[0]}," in beam
