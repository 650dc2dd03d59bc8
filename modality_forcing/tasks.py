"""Tasks by name: which modalities are given, and which are generated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from modality_forcing.errors import UserError

# The condition of each task with a name of its own. "partial" follows its condition loosely.
TASKS: dict[str, tuple[str, ...]] = {
    "t2i": (),
    "joint": (),
    "i2d": ("image",),
    "d2i": ("depth",),
    "partial": ("depth",),
}
# Named as any other conversion, and what files are converted by besides.
TO_NORMALS: dict[str, tuple[str, ...]] = {"i2n": ("image",), "d2n": ("depth",)}
SAMPLED = TASKS | TO_NORMALS  # tasks of captions and of single files


@dataclass(frozen=True)
class Task:
    """A task of one network. All that is not given is generated; t2i generates the first alone."""

    name: str
    given: tuple[str, ...]
    asked: tuple[str, ...]  # of what is generated, in the order of the network


def parse(name: str, modalities: Sequence[str]) -> Task:
    """Returns the task of a name, for a network of these modalities.

    name: a key of TASKS, or GIVEN2ASKED in first letters of modalities, such as in2d (image and
      normals to depth). Where two share a first letter they have none.

    Raises UserError for an unknown name, and for a task that the network cannot do.
    """
    if name in TO_NORMALS and not any(n.startswith("n") for n in modalities):
        what = f"mode {name} needs normals, this network has {', '.join(modalities)} only"
        raise UserError(what, hint="use a checkpoint of configs/normals.py")
    given = TASKS[name] if name in TASKS else _parse_letters(name, modalities)[0]
    missing = [n for n in given if n not in modalities]
    if missing or (name != "t2i" and len(modalities) < 2):
        needs = " and ".join(missing) or "a second modality"
        what = f"mode {name} needs {needs}, this network has {', '.join(modalities)} only"
        raise UserError(what, hint="use a checkpoint of the forcing phase")
    rest = tuple(n for n in modalities if n not in given)
    if name == "t2i":
        return Task(name, (), tuple(modalities[:1]))
    if name in ("joint", "partial"):
        return Task(name, given, rest)
    return Task(name, given, _parse_letters(name, modalities)[1])


def conversion(given: Sequence[str], asked: Sequence[str]) -> str:
    """Returns the name of the task that generates some modalities from others: in2d."""
    return "2".join("".join(n[0] for n in names) for names in (given, asked))


def _parse_letters(name: str, modalities: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    count = Counter(n[0] for n in modalities)
    letters = {n[0]: n for n in modalities if count[n[0]] == 1}
    left, _, right = name.partition("2")
    both = left + right
    known = left and right and len(set(both)) == len(both) and set(both) <= letters.keys()
    if not known:
        hint = f"choose one of {', '.join(TASKS)}"
        if len(modalities) > 2:
            hint += f", or GIVEN2ASKED with letters of {', '.join(letters)}"
        raise UserError(f"unknown mode {name!r}", hint=hint)
    given, asked = ({letters[x] for x in part} for part in (left, right))
    return (tuple(n for n in modalities if n in given), tuple(n for n in modalities if n in asked))
