"""The edge where configs come in: a Python file with an argument, dotted overrides, ml_collections in between."""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from modality_forcing.config import Config, from_dict, to_dict, unknown_key
from modality_forcing.errors import UserError

T = TypeVar("T")


def load(spec: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Returns the config of `path.py` or `path.py:key=value,...`, with dotted overrides ("train.steps": "50") applied.

    Raises UserError for a missing or broken file, an argument the file does not take, and an unknown or ill-typed key.
    """
    from ml_collections import (
        ConfigDict,  # the edge: config files themselves need parse_arg and choose alone
    )

    written = to_dict(call(spec, "get_config", Config))
    tree = ConfigDict(written)
    for key, text in (overrides or {}).items():
        _override(tree, key, text)
    return from_dict(_in_order(tree.to_dict(), written))


def call(spec: str, function: str, kind: type[T]) -> T:
    """Returns what `function` of the Python file `path.py` makes of the argument in `path.py:argument`.

    function: "get_config" or "get_sweep"; kind: the type that it returns. Raises UserError for a missing or broken file,
    one without the function, and a result of another type.
    """
    name, _, argument = spec.partition(":")
    path, what = Path(name), function.removeprefix("get_")
    if not path.is_file():
        raise UserError(
            f"no such {what} file", where=path, hint="see configs/ for those that exist"
        )
    found = importlib.util.spec_from_file_location(f"{what}_{path.stem}", path)
    if found is None or found.loader is None:
        raise UserError(
            "not a Python file", where=path, hint=f"name a .py file with a {function}(arg)"
        )
    module = importlib.util.module_from_spec(found)
    neighbours = str(path.absolute().parents[1])
    sys.path.insert(
        0, neighbours
    )  # a file may build on another in its folder: `from configs import t2i`
    try:
        found.loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            raise UserError(
                f"has no {function}(arg)",
                where=path,
                hint=f"define one that returns a {kind.__name__}",
            )
        made = getattr(module, function)(argument)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # the file is the user's own code: whatever it raises is theirs to hint
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == path.absolute()
        ]
        where = f"{path}:{lines[-1]}" if lines else path
        raise UserError(
            f"{type(error).__name__}: {error}", where=where, hint=f"hint the {what} file"
        ) from error
    finally:
        sys.path.remove(neighbours)
    if not isinstance(made, kind):
        raise UserError(
            f"{function} returned a {type(made).__name__}",
            where=path,
            hint=f"return a {kind.__name__}",
        )
    return made


def parse_arg(argument: str, **defaults: Any) -> dict[str, Any]:
    """Reads "size=3b3,resolution=64" against typed defaults; raises UserError for a name that has none or a bad value."""
    values = dict(defaults)
    for item in filter(None, argument.split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults or not equals:
            raise UserError(
                f"config argument {item!r} is not understood",
                hint=f"it takes {_signature(defaults)}",
            )
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
    """Returns a config argument's value if it is one of the known ones; raises UserError listing them otherwise."""
    if value not in known:
        raise UserError(
            f"config argument {name}={value!r} is unknown", hint=f"choose one of {', '.join(known)}"
        )
    return value


def _signature(defaults: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in defaults.items()) or "none"


def _override(tree: Any, key: str, text: str) -> None:
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
    elif isinstance(current, ConfigDict) and isinstance(value, dict):
        value = ConfigDict(value)
    with node.ignore_type():  # types are checked against the dataclasses, with a better message
        node[last] = value


def _in_order(tree: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts in the order of others: ConfigDict sorts its keys, but the first modality leads."""
    ordered = {}
    for key in [*(key for key in like if key in tree), *(key for key in tree if key not in like)]:
        both = isinstance(tree[key], Mapping) and isinstance(like.get(key), Mapping)
        ordered[key] = _in_order(tree[key], like[key]) if both else tree[key]
    return ordered


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
