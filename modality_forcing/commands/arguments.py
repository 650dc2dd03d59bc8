"""Option types and the `--config.KEY=VALUE` overrides that several commands share."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from modality_forcing.errors import UserError
from modality_forcing.paths import as_path
from modality_forcing.storage import beam

# Help of options that several commands have.
CHECKPOINT = (
    "a workdir, its checkpoints/ or one step; an export: its folder, its .safetensors file or "
    "hf:OWNER/NAME[@REVISION]; mf-flux2:WHERE or flux2-klein:WHERE"
)
ADAPTER = "an export with --adapter, to put on top of the checkpoint"
INT8 = "keep the matrices of blocks in 8 bits, half the memory of bfloat16"
TENSOR = "devices that share an example, of several; the others take other examples (1)"

CONDITION_GUIDANCE = (
    "weight of what is given, such as depth=2 in d2i: above 1 it is followed more closely, at the "
    "cost of one more evaluation of the network a step"
)

LARGEST_SIDE = 8192  # pixels; FLUX.2 makes noise from about 4000


def add_network(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Adds the options of a checkpoint to run; `optional`: none is required, and unset is None."""
    add, unset = parser.add_argument, None if optional else ""
    add("--checkpoint", type=path_option, required=not optional, help=CHECKPOINT)
    is_int8 = None if optional else False
    add("--int8", action="store_const", const=True, default=is_int8, help=INT8)
    add("--adapter", type=path_option, help=ADAPTER)
    frozen = "frozen encoder, if not where the config says"
    text = f"umt5:PATH or qwen3:PATH, a {frozen}"
    add("--text-encoder", default=unset, metavar="KIND:PATH", help=text)
    add("--autoencoder", default=unset, metavar="flux2:PATH", help=frozen)


def path_option(text: str) -> Path:
    """Parses a path or an address; refuses an empty one, which would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: name a path (. is this folder)")
    return as_path(text)


def positive_int(text: str) -> int:
    """Parses an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def image_size(text: str) -> tuple[int, int]:
    """Parses "WIDTHxHEIGHT", or the side of a square, as (rows, columns)."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give 512, or 768x512")
    if max(map(int, sides)) > LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is above {LARGEST_SIDE} pixels a side")
    return int(sides[-1]), int(sides[0])


def fraction(text: str) -> float:
    """Parses a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction from 0 to 1")
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


def weights(text: str) -> dict[str, float]:
    """Parses "NAME=WEIGHT,NAME=WEIGHT"; the config has the range of weights."""
    parsed = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not (name and equals):
            what = f"{part!r} is no weight: give a name and a number, such as depth=2"
            raise argparse.ArgumentTypeError(what)
        if name in parsed:
            raise argparse.ArgumentTypeError(f"{text!r} gives {name} twice")
        parsed[name] = finite_float(value)
    return parsed


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


def add_runner(parser: argparse.ArgumentParser) -> None:
    """Adds --runner and --beam-options."""
    runner = "local, or beam: every shard is a step of an Apache Beam pipeline (%(default)s)"
    parser.add_argument("--runner", choices=("local", "beam"), default="local", help=runner)
    options = "of Beam, such as '--runner=DataflowRunner --project=P'; this machine by default"
    parser.add_argument("--beam-options", default="", metavar="OPTIONS", help=options)


def check_runner(options: argparse.Namespace, excluded: Sequence[str]) -> None:
    """Raises UserError for options that do not go together, or a missing package.

    excluded: names of the options that divide the work of a local run.
    """
    if options.runner == "local":
        if options.beam_options:
            raise UserError(
                "--beam-options are for --runner=beam", hint="add it, or leave them out"
            )
        return
    if given := [f"--{name}" for name in excluded if getattr(options, name.replace("-", "_"))]:
        hint = "leave it out: the workers of the pipeline share the shards"
        raise UserError(f"{given[0]} is for --runner=local", hint=hint)
    beam.split_options(options.beam_options)
    if importlib.util.find_spec("apache_beam") is None:
        hint = "pip install 'modality_forcing[beam]'"
        raise UserError("--runner=beam needs the package apache_beam", hint=hint)


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
