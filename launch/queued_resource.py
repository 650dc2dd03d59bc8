"""The TPU VMs of one queued resource, controlled through gcloud: create, install, run, delete."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

import common

# From https://cloud.google.com/storage/docs/cloud-storage-fuse/install. A VM that has just started
# may still be installing updates, hence the lock timeout.
KEY, PACKAGES = "/usr/share/keyrings/cloud.google.asc", "https://packages.cloud.google.com/apt"
GCSFUSE = (
    f"sudo curl -fsSL -o {KEY} {PACKAGES}/doc/apt-key.gpg",
    f'echo "deb [signed-by={KEY}] {PACKAGES} gcsfuse-$(lsb_release -c -s) main" '
    "| sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null",
    "sudo apt-get -q -o DPkg::Lock::Timeout=600 update",
    "sudo apt-get -q -o DPkg::Lock::Timeout=600 install -y gcsfuse",
)

GONE = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")  # final states of a queued resource
NOT_FOUND = 10  # failed queries of the state in a row before giving up


class Lost(Exception):
    """The machines are gone."""


class QueuedResource:
    """The hosts of one queued resource, controlled through gcloud."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.shell = common.Shell(options.dry_run)
        self.hosts = options.topology.vm_hosts * options.slices
        self.installed = False
        self.folder = f"mforce/{options.name}"  # below the home folder of each host
        self.deletion = self._gcloud("delete", options.name, "--force")

    def _gcloud(self, verb: str, *rest: str) -> list[str]:
        where = [f"--zone={self.options.zone}"] + (
            [f"--project={self.options.project}"] if self.options.project else []
        )
        command = ["gcloud", "compute", "tpus", "queued-resources", verb]
        return [*command, *rest, *where, "--quiet"]

    def _everywhere(self, verb: str, *rest: str) -> list[str]:
        return self._gcloud(
            verb,
            *rest,
            "--worker=all",
            "--node=all",
            *(["--internal-ip"] if self.options.internal_ip else []),
        )

    def _ssh(self, script: str) -> list[str]:
        # Without these flags a connection to a preempted host may hang for hours.
        alive = ["--ssh-flag=-o ServerAliveInterval=30", "--ssh-flag=-o ServerAliveCountMax=4"]
        return self._everywhere("ssh", self.options.name, *alive, f"--command={script}")

    def state(self) -> str:
        """Returns the state of the queued resource, or ""."""
        code, answer = self.shell.answer(
            self._gcloud("describe", self.options.name, "--format=value(state.state)")
        )
        return answer.strip() if code == 0 else ""

    def make(self) -> None:
        """Requests the machines if necessary and waits until they are active.

        Raises Mistake if they cannot be requested, Lost if the request failed.
        """
        create = self._gcloud("create", self.options.name, *_wanted(self.options))
        if self.shell.dry:
            self.shell.run(create)
            self.shell.log(
                "until this says ACTIVE; deleted and created again on " + ", ".join(GONE)
            )
            self.shell.run(
                self._gcloud("describe", self.options.name, "--format=value(state.state)")
            )
            return
        state = self.state()
        if state == "ACTIVE":
            return
        if state in GONE:
            self.delete()
            state = ""
        if not state:
            self.installed = False
            if self.shell.run(create):
                raise common.Mistake("gcloud refuses to create the machines; it says above why")
        last, unknown = "", 0
        while (state := self.state()) != "ACTIVE":
            unknown = 0 if state else unknown + 1
            if state in GONE or unknown == NOT_FOUND:
                raise Lost(f"{self.options.name} is {state or 'gone'}")
            if state and state != last:
                self.shell.log(f"{self.options.name} is {state}")
                last = state
            time.sleep(self.options.poll)

    def install(self) -> None:
        """Installs the package and its configs on every host; raises Lost if one fails."""
        if self.installed:
            return
        what, home = self.options.install, f"$HOME/{self.folder}"
        with tempfile.TemporaryDirectory() as scratch:
            # A dry run prints a name that can be pasted.
            archive = (
                f"/tmp/{self.options.name}.tar.gz"
                if self.shell.dry
                else f"{scratch}/{self.options.name}.tar.gz"
            )
            files = []
            if not what.startswith("git+"):
                self._pack(archive, "" if what == "checkout" else "configs")
                files = [archive] if what == "checkout" else [archive, what]
            if files and self.shell.run(self._everywhere("scp", *files, f"{self.options.name}:")):
                raise Lost("copying did not succeed on all hosts")
        if self.shell.run(self._ssh(" && ".join(self._setup(what, home)))):
            raise Lost("installing did not succeed on all hosts")
        self.installed = True

    def _pack(self, archive: str, below: str) -> None:
        listing = [
            "git",
            "-C",
            str(common.ROOT),
            "ls-files",
            "-co",
            "--exclude-standard",
            "-z",
            *([below] if below else []),
        ]
        packing = [
            "tar",
            "-C",
            str(common.ROOT),
            "-czf",
            archive,
            "--null",
            "--ignore-failed-read",
            "-T",
            "-",
        ]
        if self.shell.dry:
            print(f"{shlex.join(listing)} | {shlex.join(packing)}")
            return
        code, names = self.shell.answer(listing)
        if code or subprocess.run(packing, input=names, text=True, check=False).returncode:
            raise common.Mistake(
                f"{common.ROOT} could not be packed; "
                "--install=checkout and FILE.whl need a git checkout"
            )

    def _setup(self, what: str, home: str) -> list[str]:
        """Returns the shell commands for a host. Its Python is too old, so uv installs one."""
        # Kept machines may hold the files of an earlier run.
        steps = [f'mkdir -p "{home}"', f'cd "{home}"', "rm -rf src code", "mkdir src"]
        if what.startswith("git+"):
            url, ref = what.removeprefix("git+"), "HEAD"
            if "@" in url.rsplit("/", 1)[-1]:  # not the one of git@host
                url, ref = url.rsplit("@", 1)
            steps += [
                f"git clone -q {shlex.quote(url)} src",
                f"git -C src checkout -q {shlex.quote(ref)}",
            ]
        else:
            steps += [f'tar -xzf "$HOME/{self.options.name}.tar.gz" -C src']
        python = shlex.quote(self.options.python)
        package = f'"$HOME"/{shlex.quote(Path(what).name)}' if what.endswith(".whl") else "./src"
        return [
            *steps,
            "python3 -m pip install -q --user uv",
            f"python3 -m uv venv -q --allow-existing --python {python} venv",
            "python3 -m uv pip install -q --python venv --reinstall-package modality_forcing "
            f"{package} 'jax[tpu]' gcsfs",  # of the extras tpu and gcs
        ]

    def mount(self) -> None:
        """Mounts the bucket on every host before each attempt: a restarted host lost its mount.

        Raises Lost if one fails.
        """
        if self.options.bucket and self.shell.run(self._ssh(_mounting(self.options.bucket))):
            raise Lost("mounting the bucket did not succeed on all hosts")

    def work(self) -> int:
        """Runs the command on all hosts and returns the run's exit code.

        Raises Lost if the machines disappeared meanwhile.
        """
        command = ["../venv/bin/python", *common.program(self.options.argv)[1:]]
        variables = [f"{name}={value}" for name, value in self.options.env]
        run = shlex.join(["env", *variables, *command])
        inner = f"echo $$ > ../pid; {run}; echo $? > ../code; exit $(cat ../code)"
        # gcloud repeats the command after a broken connection, and the first process may still be
        # running. A TPU takes one process.
        steps = [
            f'cd "$HOME/{self.folder}/src" || exit 1',
            'old=$(cat ../pid 2>/dev/null) && grep -qs modality_forcing "/proc/$old/cmdline" '
            '&& kill -9 -- "-$old"',
            "rm -f ../code",
            f"exec setsid --wait bash -c {shlex.quote(inner)}",
        ]
        code = self.shell.run(self._ssh("; ".join(steps)))
        # gcloud exits with the code of any host; each host has written its own.
        reading = self._ssh(f'echo "code $(cat "$HOME/{self.folder}/code")"')
        if self.shell.dry:
            self.shell.log(
                "exit code 2 on any host ends the run; 0 on all is success; others are retried"
            )
            return self.shell.run(reading)
        _, answer = self.shell.answer(reading)
        codes = [int(code) for code in re.findall(r"^code (\d+)$", answer, re.MULTILINE)]
        if len(codes) == self.hosts or common.MISTAKE in codes:
            return common.run_exit_code(codes)
        if (state := self.state()) != "ACTIVE":
            raise Lost(f"{self.options.name} is {state or 'gone'}")
        return code or 1

    def delete(self) -> None:
        """Deletes the queued resource and its machines, and waits until they are gone."""
        self.installed = False
        self.shell.run(self.deletion)


def _mounting(bucket: str) -> str:
    """Returns the script that mounts a bucket as the current user, unless it is mounted."""
    where = common.mount(bucket)
    return "; ".join(
        [
            "set -e",
            f"if mountpoint -q {where}; then exit 0; fi",
            f"if ! command -v gcsfuse > /dev/null; then {'; '.join(GCSFUSE)}; fi",
            f"sudo umount -l {where} 2> /dev/null || true",  # left by a gcsfuse that died
            f"sudo mkdir -p {where}",
            f'sudo chown "$(id -u)" {where}',
            f"gcsfuse {' '.join(common.MOUNT_FLAGS)} {bucket} {where}",
        ]
    )


def _wanted(options: argparse.Namespace) -> list[str]:
    named = [f"--node-id={options.name}"]
    if options.slices > 1:
        named = [f"--node-count={options.slices}", f"--node-prefix={options.name}"]
    capacity = {"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}[options.capacity]
    kind = [f"--accelerator-type={options.topology.accelerator_type}"]
    return [
        *named,
        *kind,
        f"--runtime-version={options.runtime_version or options.topology.runtime}",
        *capacity,
    ]
