"""Option types and the `--config.KEY=VALUE` overrides that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence


def positive_int(text: str) -> int:
    """Parses an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def finite_float(text: str) -> float:
    """Parses a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def split_overrides(
    arguments: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], dict[str, str]]:
    """Splits off `--config.a.b=value` and `--config.a.b value`.

    Returns the other arguments, and {"a.b": "value"}. Exits with a usage error where a value lacks.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if not name.startswith("--config."):
            rest.append(argument)
            continue
        if not equals:
            value = next(remaining, "--")
            if value.startswith("--"):
                parser.error(f"{name} has no value")
        overrides[name.removeprefix("--config.")] = value
    return rest, overrides


def shard_of(text: str) -> tuple[int, int]:
    """Parses I/N: job I of N, counted from 0."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()) or int(index) >= int(count):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(index), int(count)


def renamed_option(parser: argparse.ArgumentParser, old: str, new: str) -> None:
    """Answers an option's old name with its new one, as a usage error."""
    hidden = argparse.SUPPRESS
    parser.add_argument(old, action=_Renamed, const=new, nargs="?", help=hidden, default=hidden)


class _Renamed(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} is now {self.const}")
