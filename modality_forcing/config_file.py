"""Config files: a Python file with an argument, and dotted overrides."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modality_forcing.config import Config, from_dict, to_dict
from modality_forcing.config_keys import RENAMED, unknown_key
from modality_forcing.errors import UserError
from modality_forcing.paths import is_dir, is_file
from modality_forcing.tree import Tree

if TYPE_CHECKING:
    from ml_collections import ConfigDict

T = TypeVar("T")
_PACKAGE = Path(__file__).parent


def config_folder() -> Path:
    """Returns the folder of the configs that come with the package.

    A wheel holds them in the package, a checkout (also with `pip install -e`) beside it.
    """
    installed = _PACKAGE / "configs"
    return installed if is_dir(installed) else _PACKAGE.parent / "configs"


def load(spec: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Returns the config of a file, with dotted overrides ({"train.steps": "50"}) applied.

    spec: "demo", "demo:phase=t2i" (a name in configs/) or "path/file.py:argument".
    A config file may build on another one by calling this.
    Raises UserError for a missing or broken file, an argument the file does not take, and an
    unknown or ill-typed key.
    """
    return override(call(spec, "get_config", Config), overrides or {})


def override(config: Config, overrides: Mapping[str, str]) -> Config:
    """Returns a config with dotted overrides applied; raises UserError as `load`."""
    from ml_collections import ConfigDict  # slow to import; config files need the rest alone

    written = to_dict(config)
    tree = ConfigDict(written)
    for key, text in overrides.items():
        _override(tree, key, text)
    return from_dict(_in_order(tree.to_dict(), written))


def call(spec: str, function: str, kind: type[T]) -> T:
    """Calls a function of a config file with the argument after the colon of `spec`.

    function: "get_config" or "get_sweep", which returns a `kind`.
    Raises UserError for a missing or broken file, and one without the function.
    """
    name, _, argument = spec.partition(":")
    what = function.removeprefix("get_")
    path = _find(name, what)
    found = importlib.util.spec_from_file_location(f"{what}_{path.stem}", path)
    if found is None or found.loader is None:
        hint = f"name a .py file with a {function}(arg)"
        raise UserError("not a Python file", where=path, hint=hint)
    module = importlib.util.module_from_spec(found)
    with _neighbors_importable(path):
        try:
            found.loader.exec_module(module)
            if not callable(getattr(module, function, None)):
                hint = f"define one that returns a {kind.__name__}"
                raise UserError(f"has no {function}(arg)", where=path, hint=hint)
            made = getattr(module, function)(argument)
        except UserError:
            raise
        except Exception as error:  # the file is the user's own code
            raise _error_in_file(error, path, what) from error
    if not isinstance(made, kind):
        hint = f"return a {kind.__name__}"
        raise UserError(f"{function} returned a {type(made).__name__}", where=path, hint=hint)
    return made


def _find(name: str, what: str) -> Path:
    """Returns the file of a path, or of a name in configs/."""
    path, folder = Path(name), config_folder()
    if is_file(path):
        return path
    if is_file(folder / f"{name}.py") and path.name == name:
        return folder / f"{name}.py"
    names = [f.stem for f in sorted(folder.glob("[!_]*.py"))]
    known = ", ".join(n for n in names if n.startswith("sweep_") == (what == "sweep"))
    hint = f"name a .py file, or one of {known}"
    raise UserError(f"no such {what} file", where=name, hint=hint)


@contextmanager
def _neighbors_importable(path: Path):
    """Lets a user's file build on another in its folder: `from my_configs import base`."""
    root = path.absolute().parent.parent  # "/" for a file in "/"
    if root == _PACKAGE:  # its modules would hide others of the same names
        yield
        return
    sys.path.append(str(root))  # last: what lies there must not hide modules of the same names
    try:
        yield
    finally:
        sys.path.remove(str(root))


def _error_in_file(error: Exception, path: Path, what: str) -> UserError:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    hint = f"fix the {what} file"
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    for old, new in RENAMED.items():
        if unexpected and old.endswith(f".{unexpected[1]}"):
            hint = f"{unexpected[1]} is now {new}"
    where = f"{path}:{lines[-1]}" if lines else path
    return UserError(f"{type(error).__name__}: {error}", where=where, hint=hint)


def parse_arg(argument: str, **defaults: Any) -> dict[str, Any]:
    """Parses "size=3b3,resolution=64", with defaults that give names and types.

    Raises UserError for an unknown name, one given twice, and a value of another type.
    """
    values, given = dict(defaults), set()
    for item in argument.split(",") if argument else ():
        name, equals, text = item.partition("=")
        if name not in defaults or not equals:
            signature = ", ".join(f"{k}={v}" for k, v in defaults.items()) or "none"
            what = f"config argument {item!r} is not understood"
            raise UserError(what, hint=f"it takes {signature}")
        if name in given:
            raise UserError(f"config argument {name} is given twice", hint="leave one of them out")
        given.add(name)
        value = _literal(text)
        kind = type(defaults[name])
        if kind is str:
            value = text
        elif kind is float and isinstance(value, int):
            value = float(value)
        if type(value) is not kind:
            raise UserError(f"config argument {item!r} is not of type {kind.__name__}")
        values[name] = value
    return values


def choose(name: str, value: str, known: tuple[str, ...]) -> str:
    """Returns a config argument's value; raises UserError if it is not a known one."""
    if value not in known:
        hint = f"choose one of {', '.join(known)}"
        raise UserError(f"config argument {name}={value!r} is unknown", hint=hint)
    return value


def check_range(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raises UserError if a config argument's number is below `low` or above `high`."""
    if value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"config argument {name}={value} is not {span}")


def _override(tree: ConfigDict, key: str, text: str) -> None:
    from ml_collections import ConfigDict

    *parents, last = key.split(".")
    node: Any = tree
    for i, name in enumerate([*parents, last]):
        if not isinstance(node, ConfigDict) or name not in node:
            prefix = "".join(f"{p}." for p in parents[:i])
            raise unknown_key(key, prefix, node if isinstance(node, ConfigDict) else ())
        if i < len(parents):
            node = node[name]
    value = _literal(text)
    current = node[last]
    if isinstance(current, str):
        value = text
    elif isinstance(current, list | tuple) and isinstance(value, str):
        parts = [part.strip() for part in text.split(",")]  # names need no quotes: q,k,v
        value = [part for part in parts if part]
    elif isinstance(current, ConfigDict) and isinstance(value, dict):
        value = ConfigDict(value)
    with node.ignore_type():  # types are checked against the dataclasses, with a better message
        node[last] = value


def _in_order(tree: Tree, like: Tree) -> dict[str, object]:
    """Restores the order of keys, which ConfigDict sorts: the first modality is the primary one."""
    ordered = {}
    for key in [*(key for key in like if key in tree), *(key for key in tree if key not in like)]:
        both = isinstance(tree[key], Mapping) and isinstance(like.get(key), Mapping)
        ordered[key] = _in_order(tree[key], like[key]) if both else tree[key]
    return ordered


def _literal(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
