"""Prints the requirements of pyproject.toml with those of extras, for the image's first layers.

python launch/requirements.py cpu,datasets,gcs > requirements.txt

`cpu` is no extra: the base installation has it. Reads ./pyproject.toml and installs nothing.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> list[str]:
    """Returns the requirements of a [project] table, each once; exits for an unknown extra."""
    known = project["optional-dependencies"]
    found = list(project["dependencies"])
    for extra in extras:
        if extra not in known:
            sys.exit(f"pyproject.toml has no extra {extra!r}; it has {', '.join(sorted(known))}")
        for requirement in known[extra]:
            own = re.fullmatch(rf"{project['name']}\[([\w,-]+)\]", requirement)
            found += requirements(project, own[1].split(",")) if own else [requirement]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the extras, joined by commas; cpu for none")
    table = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    names = [name for name in sys.argv[1].split(",") if name not in ("", "cpu")]
    print("\n".join(requirements(table, names)))
