"""One process that locks two workdirs: python -m tests.sharded.hold_for FREE USED."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from modality_forcing import distributed, locks
from modality_forcing.errors import UserError
from modality_forcing.train.workdir import hold


def main(free: str, used: str) -> int:
    distributed.initialize()
    from jax.experimental import multihost_utils

    try_hold, broadcast = locks.try_hold, multihost_utils.broadcast_one_to_all

    def slow(*arguments):
        time.sleep(1)
        print(f"held at {time.monotonic()}", flush=True)
        return try_hold(*arguments)

    def collective(*arguments):
        print(f"collective at {time.monotonic()}", flush=True)
        return broadcast(*arguments)

    locks.try_hold, multihost_utils.broadcast_one_to_all = slow, collective
    with hold(Path(free)):
        pass
    try:
        with hold(Path(used)):
            return 1
    except UserError as error:
        print(f"refused: {error}", flush=True)
        return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
