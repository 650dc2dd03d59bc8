"""Runs a command on Cloud TPU VMs: requests them, installs, runs on all hosts, retries.

python launch/tpu_vm.py --name=run1 --zone=Z --topology=v6e:4x4 --bucket=B \\
    -- train --config=... --workdir=/gcs/B/...

The workdir is a path in the bucket, which every host mounts at /gcs/NAME by Cloud Storage FUSE.
The launcher runs until the run has ended, so start it where it can stay (tmux on a small VM).
Started again with the same name, it takes over the existing machines. gcloud reaches several hosts
only with the key in the agent: ssh-add ~/.ssh/google_compute_engine
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from pathlib import Path

import common
import tpu
from queued_resource import Lost, QueuedResource

MOST_HOSTS = 64  # gcloud's `queued-resources ssh` serves so many at a time, the rest afterwards


def run(arguments: list[str]) -> int:
    """Runs the command with retries; returns the exit code."""
    options = _parser().read(arguments)
    _check(options)
    machines = QueuedResource(options)
    # Exits normally, so that the machines are deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    code = 1
    try:
        for attempt in range(options.retries + 1):
            if attempt:
                machines.shell.log(
                    f"ended with exit code {code}; attempt {attempt + 1} of {options.retries + 1}"
                )
                time.sleep(options.poll)
            try:
                machines.make()
                machines.install()
                machines.mount()
                code = machines.work()
            except Lost as lost:
                machines.shell.log(str(lost))
                code = 1
            if not common.is_retryable(code):
                break
    finally:
        if options.keep:
            deletion = shlex.join(machines.deletion)
            machines.shell.log(
                f"{options.name} was kept and costs money; delete it with: {deletion}"
            )
        else:
            machines.delete()
    return code


def _parser() -> common.Parser:
    parser = common.Parser("Run a command on Cloud TPU VMs.")
    parser.add_argument(
        "--name", type=common.run_name, required=True, help="of the run and of the queued resource"
    )
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="instead of gcloud's own")
    parser.add_argument(
        "--topology", type=tpu.topology, required=True, metavar="v6e:4x4", help="one slice"
    )
    slices = "joined over the data-center network (%(default)s)"
    parser.add_argument("--slices", type=common.at_least(1), default=1, help=slices)
    parser.add_argument(
        "--capacity",
        choices=("spot", "reserved", "on-demand"),
        default="spot",
        help="(%(default)s)",
    )
    parser.add_argument(
        "--runtime-version", help="software version of the VM; by default that of the generation"
    )
    install = "checkout (this tree as it is), FILE.whl, or git+URL[@REF]"
    parser.add_argument("--install", default="checkout", metavar="WHAT", help=install)
    parser.add_argument(
        "--python", default="3.12", help="version of Python to run with (%(default)s)"
    )
    retries = "after crashes and preemptions (%(default)s)"
    parser.add_argument("--retries", type=common.at_least(0), default=20, help=retries)
    poll = "seconds between queries of the state (%(default)s)"
    parser.add_argument("--poll", type=float, default=30.0, help=poll)
    parser.add_argument("--bucket", type=common.bucket, help="mounted at /gcs/NAME on every host")
    shared_workdir = "--workdir is another mount that all hosts share"
    parser.add_argument("--shared-workdir", action="store_true", help=shared_workdir)
    parser.add_argument("--keep", action="store_true", help="do not delete the machines at the end")
    parser.add_argument(
        "--internal-ip", action="store_true", help="reach the hosts within their network"
    )
    common.add_environment(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    if not options.topology.runtime:
        raise common.Mistake(
            f"there are no TPU VMs of {options.topology.generation}; use launch/gke.py"
        )
    hosts = options.topology.vm_hosts * options.slices
    if hosts > MOST_HOSTS:
        raise common.Mistake(
            f"{hosts} hosts are more than the {MOST_HOSTS} that gcloud reaches at once; "
            "use launch/gke.py"
        )
    if options.install.endswith(".whl") and not Path(options.install).is_file():
        raise common.Mistake(f"--install={options.install}: no such file")
    if (
        not options.install.endswith(".whl")
        and options.install != "checkout"
        and not options.install.startswith("git+")
    ):
        raise common.Mistake(
            f"--install={options.install} is not checkout, FILE.whl or git+URL[@REF]"
        )
    # A single host that is neither replaced nor deleted may use its own disk.
    stays = hosts == 1 and options.keep and not options.retries
    below = common.mount(options.bucket) if options.bucket else ""
    if options.shared_workdir or stays:
        below = None
    gone = "the machine is deleted after the run and after a preemption"
    common.check_workdir(options.argv, below, f"there are {hosts} hosts" if hosts > 1 else gone)


if __name__ == "__main__":
    common.main(run)
