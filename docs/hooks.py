"""MkDocs hook: generates the reference pages from the code, and pages from files of the root."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import io
import re
import sys
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the checkout, whether or not the package is installed

from modality_forcing import cli, config  # noqa: E402
from modality_forcing.datasets import registry  # noqa: E402


def on_files(files, config):
    """Adds the generated pages to the site (MkDocs event)."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Returns the text of every generated page by its path below docs/."""
    return {
        "reference/cli.md": cli_page(),
        "reference/config.md": config_page(),
        "reference/datasets.md": datasets_page(),
        "launchers.md": _relink((ROOT / "launch/README.md").read_text()),
        "changelog.md": _relink((ROOT / "CHANGELOG.md").read_text()),
        "contributing.md": _relink((ROOT / "CONTRIBUTING.md").read_text()),
    }


def _relink(text: str) -> str:
    """Makes links to `docs/x.md` from the repository's root work inside the site."""
    return re.sub(r"\]\((?:\.\./)?docs/", "](", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ---- command line


def cli_page() -> str:
    """Returns a section for each command of mforce: what it does, its options, its examples."""
    parser = cli.build_parser()
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = [
        "# Command line",
        "Generated from the option parsers; `mforce COMMAND --help` prints the same text.",
    ]
    for name, command in subparsers.choices.items():
        parts += [f"## mforce {name}", command.description or "", _options(command)]
        if command.epilog:
            parts.append(f"``` {{.text .wrap}}\n{command.epilog.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _options(command: argparse.ArgumentParser) -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for action in command._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.choices:
            name += f" {{{','.join(map(str, action.choices))}}}"
        elif action.nargs != 0 and action.option_strings:
            metavar = action.metavar or action.dest.upper()
            name += f" {metavar if isinstance(metavar, str) else ' '.join(metavar)}"
        text = (action.help or "") % {**vars(action), "prog": command.prog}
        required = " **Required.**" if action.required else ""
        rows.append(f"| `{name.replace('|', ' or ')}` | {_cell(text)}{required} |")
    return "\n".join(rows)


# ---- configs


def config_page() -> str:
    """Returns a section for each part of a config, and the docstring of each file of configs/."""
    parts = [
        "# Configs",
        "Generated from `modality_forcing/config.py` and the files of `configs/`.",
        "`--config=demo:phase=t2i` takes the name of a file in `configs/`, or the path of "
        "your own, and its arguments. Every key can be set on the command line, such as "
        "`--config.train.steps=50`; an unknown key is an error that names the nearest known one.",
        "## Keys",
    ]
    for path, kind in _sections(config.Config, ""):
        parts += [f"### {path.rstrip('.') or 'top level'}", inspect.getdoc(kind) or ""]
        parts.append(_keys(kind, path))
    parts.append("## Files")
    for file in sorted((ROOT / "configs").glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text()))
        if file.stem != "__init__" and docstring:
            summary, _, rest = docstring.partition("\n")
            parts += [f"### configs/{file.name}", summary]
            if rest.strip():
                parts.append(f"``` {{.text .wrap}}\n{inspect.cleandoc(rest)}\n```")
    return "\n\n".join(parts) + "\n"


def _sections(kind: type, path: str) -> Iterator[tuple[str, type]]:
    """Yields (dotted path, dataclass) of a config and of everything below it."""
    yield path, kind
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _sections(typing.cast(type, hint), f"{path}{name}.")
        for argument in typing.get_args(hint):
            if dataclasses.is_dataclass(argument):
                yield from _sections(typing.cast(type, argument), f"{path}{name}.NAME.")


def _keys(kind: type, path: str) -> str:
    hints, notes = typing.get_type_hints(kind), field_notes(kind)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            continue
        rows.append(
            f"| `{path}{field.name}` | {_cell(_type_name(hint))} | `{_default(field)}` "
            f"| {_cell(notes.get(field.name, ''))} |"
        )
    return "\n".join(rows) if len(rows) > 2 else ""  # a section may have sections only


def _type_name(hint: object) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " ".join(f"`{a}`" for a in arguments)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if arguments:
        return f"mapping of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    return getattr(hint, "__name__", str(hint))


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if isinstance(value, dict) and any(dataclasses.is_dataclass(v) for v in value.values()):
        return ", ".join(value)
    return '""' if value == "" else f"{value}"


def field_notes(kind: type) -> dict[str, str]:
    """Returns the description of each field: the string after it, or its comments."""
    source = inspect.getsource(kind)
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    notes: dict[str, str] = {}
    for node, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            notes[node.target.id] = inspect.cleandoc(after.value.value)
            continue
        first, above = node.lineno, []
        while comments.get(first - 1, ("", False))[1]:
            first -= 1
            above.insert(0, comments[first][0])
        within = [comments[i][0] for i in range(node.lineno, node.end_lineno + 1) if i in comments]
        notes[node.target.id] = " ".join([*above, *within])
    return notes


# ---- data sets


def datasets_page() -> str:
    """Returns a section for each data set: the facts, and its module's docstring."""
    parts = ["# Data sets", "Generated from the modules of `modality_forcing/datasets/`."]
    for name in registry.NAMES:
        module = importlib.import_module(f"modality_forcing.datasets.{name}")
        dataset = module.DATASET
        summary, _, rest = inspect.getdoc(module).partition("\n")
        parts += [
            f"## {name}",
            summary,
            "| title | unit of depth | splits | license |\n|---|---|---|---|\n"
            f"| {dataset.title} | {dataset.unit} | {', '.join(dataset.splits)} "
            f"| {dataset.license} |",
        ]
        if rest.strip():
            parts.append(f"``` {{.text .wrap}}\n{inspect.cleandoc(rest)}\n```")
    return "\n\n".join(parts) + "\n"
