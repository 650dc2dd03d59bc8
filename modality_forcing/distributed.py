"""Starts `jax.distributed` in runs of several processes, and only in those.

A run has several processes if one of these says so, in this order:

1. `MFORCE_COORDINATOR`, `MFORCE_PROCESS_COUNT` and `MFORCE_PROCESS_ID`, all three of them
   (`launch/local_multiprocess.py`);
2. a SLURM step of more than one task (`srun`, not the shell of an allocation);
3. the environment of a GKE pod of a TPU slice: more than one worker, or more than one slice;
4. the metadata server of a Cloud TPU VM. It is asked only on machines with TPU chips, for a second
   or two.

Otherwise there is one process, and this module does not import jax.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypedDict

from modality_forcing import preemption, signals
from modality_forcing.errors import UserError
from modality_forcing.progress import print_stderr

COORDINATOR, COUNT, ID = "MFORCE_COORDINATOR", "MFORCE_PROCESS_COUNT", "MFORCE_PROCESS_ID"
LOOPBACK = ("127.0.0.1", "localhost")
DEVICES = Path("/dev")
DRIVER = Path("/proc/driver/nvidia/version")
HEARTBEAT_TIMEOUT = 100  # seconds without a sign of life after which a process counts as dead
FIRST_TIMEOUT = 600  # seconds for which the others wait for what the first process finds out


class Arguments(TypedDict, total=False):
    """Those of jax.distributed.initialize."""

    coordinator_address: str
    num_processes: int
    process_id: int
    cluster_detection_method: str
    coordinator_bind_address: str


def initialize() -> None:
    """Joins the other processes of the run, if there are any. Call it before any use of devices.

    From then on an uncaught exception ends the process at once. Otherwise jax would first wait up
    to five minutes for the other processes, which wait for this one.

    Raises:
      UserError: the variables are incomplete or invalid.
      RuntimeError: the others cannot be reached within five minutes, or devices are in use already.
    """
    arguments = _arguments(os.environ)
    if arguments is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    # On CPUs, collectives need gloo, which is jax's default in all versions that we allow.
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    preemption.take_sigterm()
    if not arguments and _one_task_per_node(os.environ):
        # Under SLURM jax gives each process one GPU. This process has the whole node.
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")
    print_exception = sys.excepthook

    def print_and_exit(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        print_exception(kind, error, trace)
        exit_process(signals.exit_code(error) if isinstance(error, KeyboardInterrupt) else 1)

    sys.excepthook = print_and_exit


def exit_process(code: int, *, agreed: bool = False) -> int:
    """Returns an exit code, or ends the process with it after a failure in a run of several.

    This skips Python's own exit, which would wait for the other processes. After a success they do
    wait for each other, so that none is gone while another still writes.

    agreed: all processes end with this code here, and wait for each other.
    """
    if code and _joined():
        if agreed:
            with suppress(Exception):  # another has died; nothing is left to do
                _jax().distributed.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def lost_process(error: BaseException) -> str | None:
    """Returns a line for an error that means that another process of the run has died, or None."""
    if not _joined() or type(error).__name__ not in ("JaxRuntimeError", "XlaRuntimeError"):
        return None
    reason = str(error).strip().partition("\n")[0]
    if not re.search(r"Gloo|[Bb]arrier|[Cc]onnection|heartbeat|unhealthy|NCCL|UNAVAILABLE", reason):
        return None
    return f"another process of the run has died or does not answer ({reason[:200]})"


def devices() -> list[Any]:
    """Returns all devices of the run, starting them if need be.

    Raises UserError if those that JAX_PLATFORMS names are not there, or one cannot be started.
    """
    jax = _jax()
    try:
        found = jax.devices()
        if is_primary() and (line := _unused_hardware(found[0].platform, jax.config.jax_platforms)):
            _warn(line)
        return found
    except Exception as error:  # a plugin without its chip raises what it likes
        if jax.config.jax_platforms is None:
            raise
        asked, here = jax.config.jax_platforms, ", ".join(_hardware()) or "a CPU"
        said = " ".join(str(error).split()) or type(error).__name__
        what = f"{asked} cannot be started; this machine has {here} ({said})"
        hint = "unset JAX_PLATFORMS, set it to cpu, or install what jax needs for the device"
        raise UserError(what, where="JAX_PLATFORMS", hint=hint) from error


def local_devices() -> list[Any]:
    """Returns the devices of this process; raises UserError as `devices` does."""
    devices()
    return _jax().local_devices()


def backend() -> str:
    """Returns "cpu", "gpu" or "tpu", where programs run; raises UserError as `devices` does."""
    devices()
    return _jax().default_backend()


def process_count() -> int:
    """Returns the number of processes of this run."""
    return _jax().process_count() if _joined() else 1


def is_primary() -> bool:
    """Returns whether this is the process that prints and writes for all."""
    return not _joined() or _jax().process_index() == 0


def from_first(value: int) -> int:
    """Returns the value of the first process, for which the others wait for up to 10 minutes.

    All processes must call this at the same points. They wait for each other by the coordination
    service, and only then by a collective, whose connections gloo gives 30 s.
    """
    if process_count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils
    from orbax.checkpoint import multihost

    wait = multihost.get_barrier_sync_fn()
    wait(key="from_first", timeout_ms=1000 * FIRST_TIMEOUT)
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def _jax() -> ModuleType:
    import jax

    return jax


def _joined() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _arguments(environment: Mapping[str, str]) -> Arguments | None:
    """The arguments for jax: {} where it detects them by itself, None for one process."""
    names = (COORDINATOR, COUNT, ID)
    if explicit := {name: environment[name] for name in names if environment.get(name)}:
        return _explicit(explicit)
    if _slurm_tasks(environment) > 1 or (_on_tpu(environment) and _tpu_hosts(environment) > 1):
        return {}
    return None


def _explicit(given: dict[str, str]) -> Arguments | None:
    if missing := [name for name in (COORDINATOR, COUNT, ID) if name not in given]:
        what = f"{', '.join(given)} set without {' and '.join(missing)}"
        raise UserError(what, hint="set all three, or none")
    host, _, port = given[COORDINATOR].rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{given[COORDINATOR]!r} is not HOST:PORT", where=COORDINATOR)
    if not given[COUNT].isdecimal() or int(given[COUNT]) < 1:
        raise UserError(f"{given[COUNT]!r} is not a whole number above 0", where=COUNT)
    if not given[ID].isdecimal() or int(given[ID]) >= int(given[COUNT]):
        raise UserError(f"{given[ID]!r} is not one of 0 to {int(given[COUNT]) - 1}", where=ID)
    if int(given[COUNT]) == 1:
        return None
    arguments: Arguments = {
        "coordinator_address": given[COORDINATOR],
        "num_processes": int(given[COUNT]),
        "process_id": int(given[ID]),
        "cluster_detection_method": "deactivate",  # else SLURM would set the local devices
    }
    if host in LOOPBACK:  # otherwise jax listens on every network
        arguments["coordinator_bind_address"] = given[COORDINATOR]
    return arguments


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """The tasks of this SLURM step; 1 elsewhere, also in the shell of an allocation."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    return int(tasks) if tasks.isdecimal() and environment.get("SLURM_STEP_NODELIST") else 1


def _one_task_per_node(environment: Mapping[str, str]) -> bool:
    # "1(x2)" means two nodes with one task each. JAX_LOCAL_DEVICE_IDS names the devices explicitly.
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    one_each = re.fullmatch(r"1(\(x\d+\))?", tasks)
    return bool(one_each) and not environment.get("JAX_LOCAL_DEVICE_IDS")


def _on_tpu(environment: Mapping[str, str]) -> bool:
    platforms = environment.get("JAX_PLATFORMS", "")
    return not platforms or "tpu" in platforms.split(",")


def _tpu_hosts(environment: Mapping[str, str]) -> int:
    """The hosts of this TPU job, of all slices, from the environment or the metadata server."""
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    slices = environment.get("MEGASCALE_NUM_SLICES", "")
    if workers is None and not slices and _may_ask_metadata(environment):
        # By number, because an unknown host name may take long to fail.
        server = environment.get("GCE_METADATA_IP", "169.254.169.254")
        workers = _metadata(server, "worker-network-endpoints")
        found = re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", _metadata(server, "tpu-env") or "")
        slices = found[1] if found else ""
    return len((workers or "").split(",")) * (int(slices) if slices.isdecimal() else 1)


def _may_ask_metadata(environment: Mapping[str, str]) -> bool:
    return "TPU_SKIP_MDS_QUERY" not in environment and bool(_tpu_chips())


def _tpu_chips() -> list[Path]:
    return [*DEVICES.glob("accel[0-9]*"), *DEVICES.glob("vfio/[0-9]*")]


def _hardware() -> list[str]:
    """The accelerators of this machine, by the files of their drivers."""
    counts = {"NVIDIA GPU": len([*DEVICES.glob("nvidia[0-9]*")]), "TPU chip": len(_tpu_chips())}
    return [f"{n} {name}{'s' * (n > 1)}" for name, n in counts.items() if n]


def _unused_hardware(platform: str, asked: str | None) -> str:
    """A line on accelerators that are here while jax uses the CPU, or "".

    asked: JAX_PLATFORMS; users who set it, or hide the GPUs, want the CPU.
    """
    here = _hardware()
    if platform != "cpu" or asked or not here:
        return ""
    extra = "tpu"
    if not any("TPU" in name for name in here):
        if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
            return ""
        extra = _cuda_extra()
    what = f"warning: this machine has {', '.join(here)}, and jax uses the CPU"
    return f'{what}; pip install "modality_forcing[{extra}]", or set JAX_PLATFORMS=cpu'


def _cuda_extra() -> str:
    """The extra whose CUDA the GPU's driver runs: CUDA 13 needs driver 580."""
    try:
        version = re.search(r"Kernel Module\D*(\d+)\.", DRIVER.read_text())
    except OSError:
        version = None
    return "cuda12" if version and int(version[1]) < 580 else "cuda13"


@functools.cache
def _warn(line: str) -> None:
    print_stderr(line)  # once


def _metadata(server: str, name: str) -> str | None:
    import http.client
    import urllib.request

    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    try:
        with opener.open(request, timeout=1) as answer:
            return answer.read().decode()
    except (OSError, http.client.HTTPException):  # no such server, or no such attribute
        return None
