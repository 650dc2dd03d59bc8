"""A process of the launcher tests: sums over all devices, then ends in the requested way.

python -m tests.collective WAY ARGUMENTS, where WAY is one of
  sum
  sum-then-mistake PROCESS
  sum-then-crash PROCESS FILE
  sum-then-stay FOLDER
  end CODE,CODE,...  (without jax; a CODE of -9 is a signal to itself)
  stay FOLDER        (without jax)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def main(way: str, *rest: str) -> int:
    me = int(os.environ["MFORCE_PROCESS_ID"])
    print(f"started with {rest}", flush=True)
    if way.startswith("sum"):
        return sum_up(way, *rest)
    if way == "end":
        code = int(rest[0].split(",")[me])
        if code < 0:
            os.kill(os.getpid(), -code)
            time.sleep(60)
        return code
    return stay(Path(rest[0]), me)


def sum_up(way: str, *rest: str) -> int:
    from modality_forcing import distributed

    distributed.initialize()
    import jax
    import jax.numpy as jnp
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(jax.devices(), "all")
    mine = jnp.arange(jax.local_device_count()) + 10.0 * jax.process_index()
    every = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("all")), mine)
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(every)
    ids = multihost_utils.process_allgather(jnp.float32(jax.process_index())).tolist()
    process, first = jax.process_index(), distributed.is_primary()
    local, devices = jax.local_device_count(), jax.device_count()
    print(
        f"process {process} of {distributed.process_count()}, first {first}, "
        f"devices {local} of {devices}, sum {float(total):g}, ids {ids}",
        flush=True,
    )

    chosen = way != "sum" and rest[0] == str(jax.process_index())
    if chosen and way == "sum-then-mistake":
        print("no such folder", file=sys.stderr)
        return distributed.exit_process(2)
    if chosen and way == "sum-then-crash" and not Path(rest[1]).exists():
        Path(rest[1]).touch()
        raise RuntimeError("crashed on request")
    if way == "sum-then-stay":
        return stay(Path(rest[0]), jax.process_index())
    if way != "sum":  # the other processes wait for the one that ended
        multihost_utils.sync_global_devices("end")
    return 0


def stay(folder: Path, me: int) -> int:
    """Starts a child, as a data loader does, writes both process ids and waits."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    part = folder / f"{me}.part"
    part.write_text(f"{os.getpid()} {child.pid}")
    part.rename(folder / str(me))
    time.sleep(60)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
