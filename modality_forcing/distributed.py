"""Which of a run's processes this one is: `jax.distributed` is started when, and only when, several are meant.

How that is known, the first that applies:

1. `MFORCE_COORDINATOR`, `MFORCE_PROCESS_COUNT` and `MFORCE_PROCESS_ID`, all three (`launch/local_multiprocess.py`);
2. a SLURM step of more than one task (`srun`, not the shell of an allocation);
3. what GKE tells a pod of a TPU slice: more than one worker, or more than one slice;
4. what the metadata server tells a Cloud TPU VM. It is asked only where TPU chips are seen, for a second or two.

Anywhere else there is one process, and jax is not even imported here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modality_forcing.errors import UserError

COORDINATOR, COUNT, ID = "MFORCE_COORDINATOR", "MFORCE_PROCESS_COUNT", "MFORCE_PROCESS_ID"
LOOPBACK = ("127.0.0.1", "localhost")
DEVICES = Path("/dev")


def initialize() -> None:
    """Joins this process to the others of its run, if there are others; to be called before any device is asked for.

    From then on an exception that nothing catches ends the process at once. Left to itself, jax would first wait up to
    five minutes for the others, which wait for this one.

    Raises:
      UserError: the variables are set in part or make no sense.
      RuntimeError: the others cannot be reached (jax waits five minutes for them), or devices were asked for before.
    """
    arguments = _arguments(os.environ)
    if arguments is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    # On the CPU collectives between processes need gloo, which is jax's default in all versions that we allow.
    jax.distributed.initialize(**arguments)
    if not arguments and _one_task_per_node(os.environ):
        # Under SLURM jax gives each process one GPU, the one of its number on the node. This process has the node to itself.
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")
    shown = sys.excepthook

    def show_and_leave(*caught: Any) -> None:
        shown(*caught)
        exit_process(130 if issubclass(caught[0], KeyboardInterrupt) else 1)

    sys.excepthook = show_and_leave


def exit_process(code: int) -> int:
    """Returns an exit code, or ends the process with it where it is a failure and other processes would be waited for.

    Only a failure leaves this way: it skips what Python does at exit. After a success the processes wait for each
    other, so that none is gone while another still writes.
    """
    if code and _joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def process_count() -> int:
    """The number of processes of this run, 1 where `start` found no others."""
    return _jax().process_count() if _joined() else 1


def is_primary() -> bool:
    """Whether this is the process that prints and writes for all."""
    return not _joined() or _jax().process_index() == 0


def _jax() -> Any:
    import jax

    return jax


def _joined() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be given: nothing where jax finds out by itself, None for a single process."""
    if explicit := {
        name: environment[name] for name in (COORDINATOR, COUNT, ID) if environment.get(name)
    }:
        return _explicit(explicit)
    if _slurm_tasks(environment) > 1 or (_on_tpu(environment) and _tpu_hosts(environment) > 1):
        return {}
    return None


def _explicit(given: dict[str, str]) -> dict[str, Any] | None:
    if missing := [name for name in (COORDINATOR, COUNT, ID) if name not in given]:
        raise UserError(
            f"{', '.join(given)} set without {' and '.join(missing)}", hint="set all three, or none"
        )
    host, _, port = given[COORDINATOR].rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{given[COORDINATOR]!r} is not HOST:PORT", where=COORDINATOR)
    if not given[COUNT].isdecimal() or int(given[COUNT]) < 1:
        raise UserError(f"{given[COUNT]!r} is not a whole number above 0", where=COUNT)
    if not given[ID].isdecimal() or int(given[ID]) >= int(given[COUNT]):
        raise UserError(f"{given[ID]!r} is not one of 0 to {int(given[COUNT]) - 1}", where=ID)
    if int(given[COUNT]) == 1:
        return None
    arguments: dict[str, Any] = {
        "coordinator_address": given[COORDINATOR],
        "num_processes": int(given[COUNT]),
        "process_id": int(given[ID]),
        "cluster_detection_method": "deactivate",  # or SLURM's idea of the local devices would come in
    }
    if host in LOOPBACK:  # jax would listen on every network otherwise
        arguments["coordinator_bind_address"] = given[COORDINATOR]
    return arguments


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """The tasks of this SLURM step; 1 elsewhere, the shell of an allocation for many included, where nobody else would come."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    return int(tasks) if tasks.isdecimal() and environment.get("SLURM_STEP_NODELIST") else 1


def _one_task_per_node(environment: Mapping[str, str]) -> bool:
    # "1(x2)" for two nodes with one task each; whoever names devices has said which are meant
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    return bool(re.fullmatch(r"1(\(x\d+\))?", tasks)) and not environment.get(
        "JAX_LOCAL_DEVICE_IDS"
    )


def _on_tpu(environment: Mapping[str, str]) -> bool:
    platforms = environment.get("JAX_PLATFORMS", "")
    return not platforms or "tpu" in platforms.split(",")


def _tpu_hosts(environment: Mapping[str, str]) -> int:
    """The hosts of all slices of this TPU job, from the environment of a GKE pod or from the VM's metadata server."""
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    slices = environment.get("MEGASCALE_NUM_SLICES", "")
    if workers is None and not slices and _may_ask_metadata(environment):
        server = environment.get(
            "GCE_METADATA_IP", "169.254.169.254"
        )  # by number: a name may take long not to be found
        workers = _metadata(server, "worker-network-endpoints")
        found = re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", _metadata(server, "tpu-env") or "")
        slices = found[1] if found else ""
    return len((workers or "").split(",")) * (int(slices) if slices.isdecimal() else 1)


def _may_ask_metadata(environment: Mapping[str, str]) -> bool:
    return "TPU_SKIP_MDS_QUERY" not in environment and any(
        chip for pattern in ("accel[0-9]*", "vfio/[0-9]*") for chip in DEVICES.glob(pattern)
    )


def _metadata(server: str, name: str) -> str | None:
    import http.client
    import urllib.request

    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:  # never through a proxy
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=1
        ) as answer:
            return answer.read().decode()
    except (OSError, http.client.HTTPException):  # no such server, or no such attribute
        return None
