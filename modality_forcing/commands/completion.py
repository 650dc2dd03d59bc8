"""`mforce completion`: prints a shell's completion script."""

from __future__ import annotations

import argparse
from pathlib import Path

from modality_forcing.errors import UserError

EXAMPLES = """examples:
  mforce completion bash > ~/.local/share/bash-completion/completions/mforce
  mforce completion zsh  > ~/.zfunc/_mforce            # with fpath+=~/.zfunc before compinit
  mforce completion fish > ~/.config/fish/completions/mforce.fish

Needs shtab: pip install 'modality_forcing[completion]'"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def main(options: argparse.Namespace) -> None:
    """Prints the script."""
    try:
        import shtab
    except ImportError:
        hint = "pip install 'modality_forcing[completion]'"
        raise UserError("shell completion needs the package shtab", hint=hint) from None
    _complete_paths(options.parser, shtab.FILE)
    print(shtab.complete(options.parser, options.shell))


def _complete_paths(parser: argparse.ArgumentParser, files: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _complete_paths(sub, files)
        elif action.type is Path or action.dest == "config":
            action.complete = files  # pyright: ignore[reportAttributeAccessIssue]
