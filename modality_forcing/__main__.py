"""The entry of `mforce`, which is ready for signals before anything slow is imported."""

from __future__ import annotations

import sys

from modality_forcing import signals


def main() -> int:
    """Runs one command of the command line and returns its exit code."""
    signals.leave_on_signals()
    from modality_forcing import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
