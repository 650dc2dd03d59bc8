"""How a process detects the others of its run (e2e/test_launch_local.py: joining them)."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

from modality_forcing import distributed
from modality_forcing.errors import UserError
from tests import runs

EXPLICIT = {
    "MFORCE_COORDINATOR": "127.0.0.1:1234",
    "MFORCE_PROCESS_COUNT": "4",
    "MFORCE_PROCESS_ID": "3",
}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = {
    **SLURM,
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}


@pytest.fixture
def started(monkeypatch, tmp_path) -> Callable[[dict[str, str]], list[dict[str, Any]]]:
    """Initializes under these variables and returns the calls of jax.distributed.initialize."""
    monkeypatch.setattr(distributed, "DEVICES", tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    calls: list[dict[str, Any]] = []

    def begin(*, heartbeat_timeout_seconds: int, **arguments: Any) -> None:
        assert heartbeat_timeout_seconds == distributed.HEARTBEAT_TIMEOUT
        calls.append(arguments)

    monkeypatch.setattr(jax.distributed, "initialize", begin)
    monkeypatch.setattr(jax.config, "update", lambda name, value: calls.append({name: value}))

    def start(variables: dict[str, str]) -> list[dict[str, Any]]:
        monkeypatch.setattr(distributed.os, "environ", {"JAX_PLATFORMS": "", **variables})
        distributed.initialize()
        return calls

    return start


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"MFORCE_COORDINATOR": "", "MFORCE_PROCESS_COUNT": "", "MFORCE_PROCESS_ID": ""},
        {**EXPLICIT, "MFORCE_PROCESS_COUNT": "1", "MFORCE_PROCESS_ID": "0"},
        SLURM,  # the batch script, or a shell of salloc: one process in a job of eight
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},  # the shell of an interactive step
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"},
    ],
    ids=[
        "nothing",
        "empty",
        "one",
        "batch script",
        "interactive step",
        "one TPU host",
        "TPU host without the TPU",
    ],
)
def test_single_process_does_not_start_jax_distributed(variables: dict[str, str], started):
    assert started(variables) == []
    assert distributed.process_count() == 1 and distributed.is_primary()


def test_explicit_variables(started):
    assert started(EXPLICIT) == [
        {
            "coordinator_address": "127.0.0.1:1234",
            "num_processes": 4,
            "process_id": 3,
            "cluster_detection_method": "deactivate",
            "coordinator_bind_address": "127.0.0.1:1234",  # loopback only
        }
    ]


def test_explicit_variables_come_first_and_bind_to_all_for_another_host(started):
    (call,) = started({**STEP, **EXPLICIT, "MFORCE_COORDINATOR": "node1:99"})
    assert call["coordinator_address"] == "node1:99" and "coordinator_bind_address" not in call


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"MFORCE_PROCESS_ID": "1"},
            "set without MFORCE_COORDINATOR and MFORCE_PROCESS_COUNT; set all three",
        ),
        ({**EXPLICIT, "MFORCE_PROCESS_ID": ""}, "without MFORCE_PROCESS_ID"),
        ({**EXPLICIT, "MFORCE_PROCESS_ID": "4"}, "MFORCE_PROCESS_ID: '4' is not one of 0 to 3"),
        ({**EXPLICIT, "MFORCE_PROCESS_ID": "-1"}, "'-1' is not one of 0 to 3"),
        (
            {**EXPLICIT, "MFORCE_PROCESS_COUNT": "0"},
            "MFORCE_PROCESS_COUNT: '0' is not a whole number above 0",
        ),
        ({**EXPLICIT, "MFORCE_PROCESS_COUNT": "two"}, "'two' is not a whole number"),
        (
            {**EXPLICIT, "MFORCE_COORDINATOR": "127.0.0.1"},
            "MFORCE_COORDINATOR: '127.0.0.1' is not HOST:PORT",
        ),
    ],
)
def test_incomplete_and_invalid_variables_are_refused(
    variables: dict[str, str], message: str, started
):
    with pytest.raises(UserError, match=message):
        started(variables)


def test_slurm_step_with_one_task_per_gpu_uses_jax_defaults(started):
    assert started(STEP) == [{}]


def test_slurm_task_alone_on_its_node_sees_all_gpus(started):
    alone = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    assert started(alone) == [
        {},
        {"jax_cuda_visible_devices": "all"},
        {"jax_rocm_visible_devices": "all"},
    ]


def test_named_local_devices_are_kept(started):
    assert started(
        {**STEP, "SLURM_STEP_TASKS_PER_NODE": "1(x8)", "JAX_LOCAL_DEVICE_IDS": "2,3"}
    ) == [{}]


@pytest.mark.parametrize(
    "variables",
    [
        {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"},
        {"TPU_PROCESS_ADDRESSES": "a:8471,b:8471", "TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "tpu,cpu"},
    ],
    ids=["hosts", "addresses", "slices", "platforms"],
)
def test_pods_of_a_tpu_slice(variables: dict[str, str], started):
    assert started(variables) == [{}]


@pytest.fixture
def metadata() -> Iterator[tuple[str, dict[str, str]]]:
    """A metadata server: its address, and what it answers by attribute."""
    answers: dict[str, str] = {}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            right = (
                self.headers["Metadata-Flavor"] == "Google"
                and self.path == f"/computeMetadata/v1/instance/attributes/{name}"
            )
            self.send_response(200 if right and name in answers else 404)
            self.end_headers()
            self.wfile.write(answers.get(name, "").encode())

        def log_message(self, *_: object, **__: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", answers
        server.shutdown()


ENDPOINTS = "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3"


@pytest.mark.parametrize(
    ("answers", "calls"),
    [
        ({"worker-network-endpoints": ENDPOINTS}, [{}]),
        (
            {
                "worker-network-endpoints": "unknown:unknown:10.0.0.2",
                "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\n",
            },
            [{}],
        ),
        ({"worker-network-endpoints": "unknown:unknown:10.0.0.2", "tpu-env": "ZONE: 'z'\n"}, []),
        ({}, []),
    ],
    ids=["two hosts", "two slices", "one host", "no answer"],
)
def test_tpu_vm_asks_its_metadata_server(answers, calls, started, metadata, tmp_path):
    (tmp_path / "accel0").touch()
    metadata[1].update(answers)
    assert started({"GCE_METADATA_IP": metadata[0], "http_proxy": "http://127.0.0.1:9"}) == calls


@pytest.mark.parametrize("why", ["no chips", "query disabled"])
def test_other_machines_do_not_ask_the_metadata_server(why: str, started, metadata, tmp_path):
    metadata[1]["worker-network-endpoints"] = ENDPOINTS
    if why == "query disabled":
        (tmp_path / "accel0").touch()
    assert (
        started(
            {
                "GCE_METADATA_IP": metadata[0],
                **({"TPU_SKIP_MDS_QUERY": "1"} if why == "query disabled" else {}),
            }
        )
        == []
    )


def test_metadata_server_that_does_not_answer_times_out(started, tmp_path):
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio/0").touch()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = time.monotonic()
        assert started({"GCE_METADATA_IP": f"127.0.0.1:{silent.getsockname()[1]}"}) == []
    assert time.monotonic() - before < 10


def test_jax_is_not_imported_for_one_process():
    code = (
        "import sys; from modality_forcing import distributed as d; d.initialize(); "
        "d.exit_process(3); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_exit_process_returns_the_code_of_a_single_process():
    assert [distributed.exit_process(code) for code in (0, 2)] == [0, 2]


def test_exit_process_ends_a_failed_process_at_once(monkeypatch):
    left: list[int] = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.os, "_exit", left.append)
    assert distributed.exit_process(0) == 0 and left == []
    distributed.exit_process(2)
    assert left == [2]


def test_uncaught_exception_is_printed_and_ends_the_process(started, monkeypatch, capsys):
    left: list[int] = []
    started(EXPLICIT)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.os, "_exit", left.append)
    sys.excepthook(ValueError, ValueError("out of memory"), None)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert left == [1, 130] and "ValueError: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "here"),
    [((), "a CPU"), (("nvidia0", "nvidia1", "nvidiactl"), "2 NVIDIA GPUs"), (("accel0",), "1 TPU")],
)
def test_missing_accelerator_is_one_line_that_names_the_variable(
    tmp_path, monkeypatch, files, here
):
    for name in files:
        (tmp_path / name).touch()

    def fail() -> None:
        raise AssertionError  # what jax raises for cuda without its plugin

    monkeypatch.setattr(distributed, "DEVICES", tmp_path)
    monkeypatch.setattr(jax, "devices", fail)
    for ask in (distributed.devices, distributed.local_devices, distributed.backend):
        with pytest.raises(UserError, match=rf"JAX_PLATFORMS: cpu cannot .* has {here}") as caught:
            ask()
        assert "\n" not in str(caught.value) and "unset JAX_PLATFORMS" in str(caught.value)


def test_devices_are_those_of_jax():
    assert distributed.devices() == jax.devices()
    assert distributed.local_devices() == jax.local_devices()
    assert distributed.backend() == jax.default_backend()


def test_checkpoint_is_not_blamed_for_a_missing_accelerator(t2i_run, tmp_path):
    command = runs.command("export", "--checkpoint", t2i_run, "--out", tmp_path / "out")
    env = {**runs.environment(), "JAX_PLATFORMS": "cuda"}
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is a GPU")
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    runs.refused(runs.Done(done.returncode, done.stdout, done.stderr), "JAX_PLATFORMS: cuda")


@pytest.mark.parametrize(
    ("message", "is_loss"),
    [
        ("UNKNOWN: Gloo AllGather failed: pair.cc:547] Connection closed by peer", True),
        ("DEADLINE_EXCEEDED: Barrier timed out. Id: from_first.0::0. # of tasks that", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes", False),
    ],
)
def test_death_of_another_process_is_told_from_other_errors(monkeypatch, message, is_loss):
    error = jax.errors.JaxRuntimeError(message)
    assert distributed.lost_process(error) is None  # a single process
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    found = distributed.lost_process(error)
    assert (found is not None and "another process" in found) == is_loss
    assert distributed.lost_process(ValueError(message)) is None


@pytest.mark.parametrize(
    "driver, extra", [("580.95.05", "cuda13"), ("535.104.12", "cuda12"), ("", "cuda13")]
)
def test_unused_gpu_is_one_line_with_the_extra(monkeypatch, tmp_path, driver, extra):
    (tmp_path / "nvidia0").touch()
    (tmp_path / "version").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver} x")
    monkeypatch.setattr(distributed, "DEVICES", tmp_path)
    monkeypatch.setattr(distributed, "DRIVER", tmp_path / ("version" if driver else "nowhere"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    line = distributed._unused_hardware("cpu", None)
    assert line.startswith("warning: this machine has 1 NVIDIA GPU, and jax uses the CPU; ")
    assert f'pip install "modality_forcing[{extra}]"' in line
    assert distributed._unused_hardware("gpu", None) == ""
    assert distributed._unused_hardware("cpu", "cpu") == ""  # asked for
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert distributed._unused_hardware("cpu", None) == ""  # hidden


def test_unused_tpu_names_its_extra(monkeypatch, tmp_path):
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(distributed, "DEVICES", tmp_path)
    assert "modality_forcing[tpu]" in distributed._unused_hardware("cpu", "")
