"""The documentation agrees with the code: commands, config keys, links, floors and extras."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import tomllib
import typing
from pathlib import Path

import pytest

from modality_forcing import cli
from modality_forcing.commands.arguments import split_overrides
from modality_forcing.config import Config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").glob("*.md")])
SCRIPTS = (
    "".join(
        path.read_text()
        for folder in ("modality_forcing/commands", "launch", "benchmarks")
        for path in (ROOT / folder).glob("*.py")
    )
    + (ROOT / "modality_forcing/cli.py").read_text()
)
OTHER_OPTIONS = {  # of mkdocs, mforce itself, gcloud and xpk
    *("--strict", "--help", "--version", "--update-addons", "--auto-mount", "--size", "--shm-size")
}
CONFIGS = {path.stem for path in (ROOT / "configs").glob("*.py")}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """The pages that the MkDocs hook generates."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec and spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks.pages()


def commands(page: Path) -> list[list[str]]:
    """The words after `mforce` of every command in the shell blocks of a page."""
    blocks = re.findall(r"```(?:bash|sh|shell)\n(.*?)```", page.read_text(), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [
        shlex.split(line.partition(" > ")[0], comments=True)
        for line in lines
        if not line.startswith("#")
    ]
    trained = [words[words.index("--") + 1 :] for words in found if "--" in words]
    return [words[1:] for words in found if words[:1] == ["mforce"]] + trained


def resolves(kind: object, path: list[str]) -> bool:
    """Whether a dotted key names a value of a config; a key of a mapping may have any name."""
    if not path:
        return True
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return path[0] in hints and resolves(hints[path[0]], path[1:])
    arguments = typing.get_args(kind)
    return len(arguments) == 2 and resolves(arguments[1], path[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_the_documentation_are_accepted(page: Path):
    parser = cli.build_parser()
    for words in commands(page):
        plain, overrides = split_overrides(words, parser)
        try:
            options = parser.parse_args(plain)
        except SystemExit as error:
            assert not error.code, f"{page.name}: mforce {shlex.join(words)}"
            continue
        for key in overrides:
            assert resolves(Config, key.split(".")), f"{page.name}: --config.{key}"
        for spec in (getattr(options, "config", None), getattr(options, "sweep", None)):
            name = (spec or "").partition(":")[0]
            assert not name or name == "log2_alpha" or name in CONFIGS, f"{page.name}: {spec}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_and_keys_named_in_the_documentation_exist(page: Path):
    if page.name == "CHANGELOG.md":
        return  # names of earlier versions
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))
    for span in spans:
        for option in re.findall(r"(?<![\w-])--(?!config\.)[a-z][\w-]*", span):
            assert f'"{option}"' in SCRIPTS or option in OTHER_OPTIONS, f"{page.name}: {span}"
        for part, rest in re.findall(r"(?:^|config\.)([a-z]+)((?:\.[a-z_0-9]+)+)(?:=|$)", span):
            if part in {field.name for field in dataclasses.fields(Config)}:
                assert resolves(Config, [part, *rest[1:].split(".")]), f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_exist(page: Path, generated: dict[str, str]):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        if re.match(r"[a-z]+:", target) or not path:
            continue
        file = (page.parent / path).resolve()
        assert file.exists() or path in generated, f"{page.name}: {target}"


def test_module_files_named_in_the_documentation_exist():
    names = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.*")}
    names |= {name.removeprefix("modality_forcing/") for name in names}
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for name in re.findall(r"`((?:[a-z_]+/)+\w+\.(?:py|ipynb|yml|md))`", page.read_text()):
            assert name in names, f"{page.name}: {name}"


def test_generated_reference_has_every_command_and_key(generated: dict[str, str]):
    for name in ("demo", "train", "sample", "evaluate", "prepare", "encode", "fit", "plan"):
        assert f"\n## mforce {name}\n" in generated["reference/cli.md"]
    for key in ("`seed`", "`train.steps`", "`modalities.NAME.patch`", "`modalities.NAME.noise."):
        assert key in generated["reference/config.md"]
    assert "\n## kitti_raw\n" in generated["reference/datasets.md"]


def test_every_config_key_has_a_meaning(generated: dict[str, str]):
    rows = [
        line for line in generated["reference/config.md"].splitlines() if line.startswith("| `")
    ]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |")] == []


def test_architecture_page_names_every_floor():
    (contract,) = (
        c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers"
    )
    names = {name for layer in contract["layers"] for name in re.findall(r"\w+", layer)}
    page = (ROOT / "docs/architecture.md").read_text()
    floors = page.partition("## Floors")[2].partition("Further contracts")[0]
    assert names == set(re.findall(r"`(\w+)`", floors)) & names


def test_install_page_names_every_extra():
    page = (ROOT / "docs/install.md").read_text()
    for extra in PYPROJECT["project"]["optional-dependencies"]:
        assert f"`{extra}`" in page
