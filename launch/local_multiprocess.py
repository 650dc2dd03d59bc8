"""Runs one command in several processes on this machine, each with simulated CPU devices.

python launch/local_multiprocess.py --processes=2 --devices-per-process=2 \\
    -- train --config=configs/demo.py --workdir=runs/x

Each line of output is prefixed with the number of its process. When one process fails, the others
are stopped, and its exit code is the run's. SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C stop all of them,
which save first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

import common

# Seconds to wait for further exit codes after a failure: a process that lost its peer may exit
# before the one that caused it.
SETTLE = 0.3


class Terminated(Exception):
    """The launcher received SIGTERM, SIGHUP or SIGUSR1."""


def run(arguments: list[str]) -> int:
    """Runs the command with retries; returns the exit code."""
    options = _parser().read(arguments)
    if options.dry_run:
        variables = _variables(options.processes, options.devices_per_process)
        for each in variables:
            environment = (f"{name}={value}" for name, value in each.items())
            print(f"{shlex.join(['env', *environment, *_command(options)])} &")
        print("wait")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _terminate)
    shell = common.Shell(dry=False)
    code = 0
    for attempt in range(options.retries + 1):
        if attempt:
            shell.log(
                f"ended with exit code {code}; attempt {attempt + 1} of {options.retries + 1}"
            )
        try:
            code = _attempt(options)
        except Terminated:
            return common.STOPPED
        if not common.is_retryable(code):
            break
    return code


def _parser() -> common.Parser:
    parser = common.Parser(
        "Run one command in several processes on this machine, on simulated CPU devices."
    )
    parser.add_argument(
        "--processes", type=common.at_least(1), default=2, help="how many (%(default)s)"
    )
    parser.add_argument(
        "--devices-per-process",
        type=common.at_least(1),
        default=1,
        help="simulated CPU devices (%(default)s)",
    )
    parser.add_argument(
        "--retries", type=common.at_least(0), default=0, help="restarts after a crash (%(default)s)"
    )
    grace_help = "seconds from SIGTERM to SIGKILL for the others after one has failed"
    parser.add_argument("--grace", type=float, default=3.0, help=grace_help)
    stop_help = "the same when the launcher is stopped, for saving (%(default)s)"
    parser.add_argument("--stop-grace", type=float, default=120.0, help=stop_help)
    parser.add_argument("--module", default=common.PROGRAM, help="module to run (%(default)s)")
    return parser


def _command(options) -> list[str]:
    return common.program(options.argv, sys.executable, options.module)


def _variables(processes: int, devices: int) -> list[dict[str, str]]:
    """Returns the environment of each process: its id, the coordinator and its devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others = re.sub(
        r"--xla_force_host_platform_device_count=\S*", "", os.environ.get("XLA_FLAGS", "")
    ).split()
    return [
        {
            "MFORCE_COORDINATOR": f"127.0.0.1:{port}",
            "MFORCE_PROCESS_COUNT": str(processes),
            "MFORCE_PROCESS_ID": str(i),
            "JAX_PLATFORMS": "cpu",
            "PYTHONUNBUFFERED": "1",  # keeps the output of a killed process
            "XLA_FLAGS": " ".join([*others, f"--xla_force_host_platform_device_count={devices}"]),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(common.ROOT), os.environ.get("PYTHONPATH")])
            ),
        }
        for i in range(processes)
    ]


def _attempt(options) -> int:
    """Runs all processes once and returns the run's exit code; no process is left running."""
    children: list[subprocess.Popen[bytes]] = []
    pumps: list[threading.Thread] = []
    asked, grace = signal.SIGTERM, options.grace
    try:
        for each in _variables(options.processes, options.devices_per_process):
            children.append(
                subprocess.Popen(
                    _command(options),
                    env={**os.environ, **each},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # a group with its loaders; Ctrl-C goes through us
                    preexec_fn=_DIE_WITH_PARENT,
                )
            )
        ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        lock = threading.Lock()
        for i, child in enumerate(children):  # only now: no threads during fork
            assert child.stdout and child.stderr
            pumps += [_thread(_pump, i, child.stdout, sys.stdout.buffer, lock)]
            pumps += [_thread(_pump, i, child.stderr, sys.stderr.buffer, lock)]
            _thread(lambda child=child: ended.put(common.exit_code(child.wait())))
        return _watch(ended, len(children))
    except KeyboardInterrupt:
        asked, grace = signal.SIGINT, options.stop_grace
        return common.INTERRUPTED
    except Terminated:
        grace = options.stop_grace
        raise
    finally:
        _stop(children, asked, grace)
        for pump in pumps:
            pump.join(timeout=1)


def _watch(ended: queue.SimpleQueue[int], count: int) -> int:
    codes: list[int] = []
    deadline = float("inf")
    while len(codes) < count and time.monotonic() < deadline:
        with contextlib.suppress(queue.Empty):
            codes.append(ended.get(timeout=0.05))
            if codes[-1]:
                deadline = min(deadline, time.monotonic() + SETTLE)
    return common.run_exit_code(codes)


def _stop(children: list[subprocess.Popen[bytes]], asked: signal.Signals, grace: float) -> None:
    """Signals running processes; kills every group after the grace or a second Ctrl-C."""
    running = [child for child in children if child.poll() is None]
    for child in running:
        _signal(child, asked)
    hurry: BaseException | None = None
    try:
        deadline = time.monotonic() + grace
        while any(child.poll() is None for child in running) and time.monotonic() < deadline:
            time.sleep(0.02)
    except (KeyboardInterrupt, Terminated) as error:
        hurry = error
    for child in children:
        _signal(child, signal.SIGKILL)
        child.wait()
    if hurry:
        raise hurry


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
        os.killpg(child.pid, number)


def _pump(i: int, source: IO[bytes], sink: IO[bytes], lock: threading.Lock) -> None:
    """Copies lines with the process number; reads on if the sink is closed, or it would block."""
    for line in source:
        with lock, contextlib.suppress(OSError, ValueError):
            sink.write(b"[%d] %s\n" % (i, line.rstrip(b"\n")))
            sink.flush()


def _thread(work: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def _terminate(*_: object) -> None:
    raise Terminated


def _die_with_parent() -> Callable[[], None] | None:
    """Returns a function for the child (Linux): kill it when the launcher dies, even by SIGKILL."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)  # loaded here: as little as possible between fork and exec
    return lambda: library.prctl(1, signal.SIGKILL, 0, 0, 0)  # 1 is PR_SET_PDEATHSIG


_DIE_WITH_PARENT = _die_with_parent()

if __name__ == "__main__":
    common.main(run)
