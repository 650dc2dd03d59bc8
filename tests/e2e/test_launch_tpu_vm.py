"""`launch/tpu_vm.py` under preemption, crashes and user errors."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable

import pytest

from tests import runs
from tests.fakes import PROGRAM, TRAIN, Tools, flags, refused
from tests.runs import Done

VM = ["--name=run1", "--zone=z", "--topology=v6e:4x4", "--bucket=bucket", "--poll=0.01"]
VM += ["--install=git+https://host/repository@v1"]

# A fake gcloud: `describe` returns successive states from a file; commands really run, in a home
# folder for each of the four hosts. Installation is skipped: a fake Python is where uv would put
# it. Mounting calls fakes.
GCLOUD = """
home = pathlib.Path(os.environ["HOME"])

def following(name):  # pops the first word of a file, unless it is the last
    words = (home / name).read_text().split()
    (home / name).write_text(" ".join(words[1:] or words))
    return words[0]

command = next((a.partition("=")[2] for a in arguments if a.startswith("--command=")), "")
if arguments[3] == "describe":
    state = following("states")
    print(state)
    sys.exit(state == "ABSENT")
if arguments[3] == "scp":
    shutil.copy(arguments[4], home / "copied")
if arguments[3] != "ssh":
    sys.exit()
hosts = [home / f"host{i}" for i in range(4)]
if "uv pip install" in command:
    for host in hosts:
        (host / "mforce/run1/src").mkdir(parents=True, exist_ok=True)
        (host / "mforce/run1/venv/bin").mkdir(parents=True, exist_ok=True)
        (host / "mforce/run1/venv/bin/python").unlink(missing_ok=True)
        (host / "mforce/run1/venv/bin/python").symlink_to(home / "program")
    sys.exit()
if "setsid" in command:
    for host, code in zip(hosts, following("codes").split(",")):
        (host / "code").write_text(code)
environments = [{**os.environ, "HOME": str(host)} for host in hosts]
running = [subprocess.Popen(["bash", "-c", command], env=each) for each in environments]
sys.exit(next((code for code in [each.wait() for each in running] if code), 0))
"""
ON_A_HOST = {
    "sudo": "exit 0",
    "mountpoint": '[ -e "$HOME/mounted" ]',
    "gcsfuse": 'touch "$HOME/mounted"',
}
ON_A_HOST["program"] = """
[ -e "$HOME/mounted" ] || exit 99
echo "${HOME##*/} $*"
code=$(cat "$HOME/code")
[ "$code" != lost ] || kill -9 $PPID
exit "$code"
"""


@pytest.fixture
def cloud(tools: Tools) -> Callable[..., tuple[Done, list[str]]]:
    """Runs tpu_vm with these machine states and host exit codes; returns the calls of gcloud."""
    tools.add("gcloud", GCLOUD)
    for name, script in ON_A_HOST.items():
        (tools.folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools.folder / name).chmod(0o755)

    def run(states: str, codes: str, *options: str) -> tuple[Done, list[str]]:
        (tools.folder / "states").write_text(states)
        (tools.folder / "codes").write_text(codes)
        done = tools.launch("tpu_vm", *VM, *options, "--", *TRAIN)
        asked = []
        for name, arguments, _ in tools.calls():
            assert name == "gcloud" and arguments[:3] == ["compute", "tpus", "queued-resources"]
            script = flags(arguments).get("command", "")
            does = {"uv pip": "install", "gcsfuse": "mount", "setsid": "run", "code $": "codes"}
            how = next(does[part] for part in does if part in script) if script else arguments[3]
            asked += [how] if how not in ("describe", "codes") else []
        return done, asked

    return run


def test_run_on_tpu_vms(cloud):
    done, asked = cloud("ABSENT WAITING_FOR_RESOURCES PROVISIONING ACTIVE", "0,0,0,0")
    assert (done.code, asked) == (0, ["create", "install", "mount", "run", "delete"]), done.err
    for i in range(4):
        assert f"host{i} {' '.join(PROGRAM[1:])}" in done.out
    assert "run1 is WAITING_FOR_RESOURCES" in done.err


def test_user_error_on_one_host_ends_the_run(cloud):
    # The other hosts lose a peer; gcloud reports the exit code of the first.
    done, asked = cloud("ABSENT ACTIVE", "134,134,2,134", "--retries=5")
    assert (done.code, asked) == (2, ["create", "install", "mount", "run", "delete"]), done.err


def test_crashed_run_restarts_on_the_same_vms(cloud):
    done, asked = cloud("ABSENT ACTIVE", "0,1,134,134 0,0,0,0", "--retries=5")
    assert (done.code, asked) == (0, ["create", "install", *["mount", "run"] * 2, "delete"]), (
        done.err
    )


def test_number_of_attempts_is_bounded(cloud):
    done, asked = cloud("ABSENT ACTIVE", "1,1,1,1", "--retries=2", "--keep")
    assert (done.code, asked) == (1, ["create", "install", *["mount", "run"] * 3]), done.err
    deletion = "gcloud compute tpus queued-resources delete run1"
    assert f"run1 was kept and costs money; delete it with: {deletion}" in done.err


def test_preempted_vms_are_recreated_under_the_same_name(cloud):
    # No host has written a code: the connection broke.
    states = "ABSENT ACTIVE SUSPENDING SUSPENDED ABSENT ACTIVE"
    done, asked = cloud(states, "lost,lost,lost,lost 0,0,0,0", "--retries=5")
    assert done.code == 0, done.err
    assert asked == [
        "create",
        "install",
        "mount",
        "run",
        "delete",
        "create",
        "install",
        "mount",
        "run",
        "delete",
    ]
    assert "run1 is SUSPENDING" in done.err


def test_existing_vms_are_reused(cloud):
    done, asked = cloud("ACTIVE", "0,0,0,0")
    assert (done.code, asked) == (0, ["install", "mount", "run", "delete"]), done.err


def test_leftover_processes_on_a_host_are_killed_first(cloud, tools: Tools):
    # A program that survived a broken connection or a killed launcher: a chip takes one process.
    left = subprocess.Popen(["bash", "-c", "sleep 60; : modality_forcing"], start_new_session=True)
    pid = tools.folder / "host0/mforce/run1/pid"
    pid.parent.mkdir(parents=True)
    pid.write_text(f"{left.pid}\n")
    done, _ = cloud("ACTIVE", "0,0,0,0")
    assert done.code == 0, done.err
    assert left.wait(timeout=5) == -signal.SIGKILL


def test_dry_run_prints_the_commands_that_run(cloud, tools: Tools):
    printed = tools.launch("tpu_vm", "--dry-run", *VM, "--", *TRAIN).out
    assert tools.calls() == []
    (tools.folder / "states").write_text("ABSENT ACTIVE")
    (tools.folder / "codes").write_text("0,0,0,0")
    assert tools.launch("tpu_vm", *VM, "--", *TRAIN).code == 0
    ran = [call for call in tools.calls() if "describe" not in call[1]]
    assert tools.run("bash", "-c", printed).code == 0
    assert [call for call in tools.calls() if "describe" not in call[1]] == ran
    create = ran[0][1]
    assert (
        "--spot" in create
        and flags(create)["accelerator-type"] == "v6e-16"
        and flags(create)["node-id"] == "run1"
    )
    assert flags(create)["runtime-version"] == "v2-alpha-tpuv6e"


def mount(tools: Tools) -> tuple[int, list[list[str]]]:
    """Runs the mount script on a host with fakes only; returns its exit code and its calls."""
    printed = tools.launch("tpu_vm", "--dry-run", *VM, "--", *TRAIN).out
    (script,) = (
        text
        for line in printed.splitlines()
        if "gcsfuse" in (text := flags(shlex.split(line)).get("command", ""))
    )
    tools.environment["PATH"] = str(tools.folder)
    code = tools.run(str(shutil.which("bash")), "-c", script).code
    return code, [[name, *arguments] for name, arguments, _ in tools.calls()]


FLAGS = [
    "--implicit-dirs",
    "--metadata-cache-ttl-secs=0",
    "--metadata-cache-negative-ttl-secs=0",
    "--rename-dir-limit=200000",
]
MOUNTS = [
    ["sudo", "umount", "-l", "/gcs/bucket"],
    ["sudo", "mkdir", "-p", "/gcs/bucket"],
    ["id", "-u"],
    ["sudo", "chown", "1000", "/gcs/bucket"],
    ["gcsfuse", *FLAGS, "bucket", "/gcs/bucket"],
]
LOOKS = [["mountpoint", "-q", "/gcs/bucket"]]


@pytest.fixture
def host(tools: Tools) -> Tools:
    """A host with gcsfuse and without a mount, where unmounting fails."""
    tools.add("sudo", 'sys.exit(arguments[0] == "umount")')
    tools.add("id", "print(1000)")
    mounted = 'pathlib.Path(os.environ["HOME"], "mounted")'
    tools.add("mountpoint", f"sys.exit(not {mounted}.exists())")
    tools.add("gcsfuse", f"{mounted}.touch()")
    return tools


def test_host_mounts_the_bucket_once(host: Tools):
    assert mount(host) == (0, LOOKS + MOUNTS)
    assert mount(host) == (0, LOOKS)


def test_host_without_gcsfuse_installs_it(host: Tools):
    (host.folder / "gcsfuse").rename(host.folder / "package")
    installed = 'if arguments[-1] == "gcsfuse": shutil.copy("package", "gcsfuse")'
    host.add("sudo", f'{installed}\nsys.exit(arguments[0] == "umount")')
    host.add("lsb_release", "print('jammy')")
    code, called = mount(host)
    assert code == 0 and called[-len(MOUNTS) :] == MOUNTS
    # Both ends of a pipe run concurrently.
    assert sorted(name for call in called[1 : -len(MOUNTS)] if (name := " ".join(call[:2]))) == [
        "lsb_release -c",
        *["sudo apt-get"] * 2,
        "sudo curl",
        "sudo tee",
    ]
    assert [word for call in called for word in call if word in ("update", "install")] == [
        "update",
        "install",
    ]


@pytest.mark.parametrize("fails", ["curl", "apt-get", "mkdir", "chown"])
def test_failed_mount_is_reported(fails: str, host: Tools):
    if fails in ("curl", "apt-get"):
        (host.folder / "gcsfuse").unlink()
    host.add("lsb_release", "print('jammy')")
    host.add("sudo", f'sys.exit(arguments[0] in ("umount", "{fails}"))')
    code, called = mount(host)
    assert code != 0 and called[-1][1] == fails


def test_command_does_not_run_without_the_mounted_bucket(cloud, tools: Tools):
    (tools.folder / "gcsfuse").write_text("#!/bin/bash\nexit 1\n")
    done, asked = cloud("ABSENT ACTIVE", "0,0,0,0", "--retries=1")
    assert (done.code, asked) == (1, ["create", "install", "mount", "mount", "delete"]), done.err
    assert "mounting the bucket did not succeed on all hosts" in done.err


@pytest.mark.skipif(not (runs.ROOT / ".git").exists(), reason="not a checkout")
def test_checkout_is_copied_unchanged(cloud, tools: Tools):
    done, asked = cloud("ABSENT ACTIVE", "0,0,0,0", "--install=checkout")
    assert (done.code, asked) == (0, ["create", "scp", "install", "mount", "run", "delete"]), (
        done.err
    )
    with tarfile.open(tools.folder / "copied") as archive:
        names = set(archive.getnames())
    assert {
        "launch/tpu_vm.py",
        "configs/forcing.py",
        "modality_forcing/distributed.py",
        "pyproject.toml",
    } <= names
    assert not any(name.startswith(".git/") for name in names)


def test_checkout_and_several_slices(tools: Tools):
    options = ["--install=checkout", "--slices=2", "--capacity=reserved", "--env=A=b c"]
    lines = tools.launch("tpu_vm", "--dry-run", *VM, *options, "--", *TRAIN).out.splitlines()
    create = next(line for line in lines if " create " in line)
    assert (
        "--node-count=2 --node-prefix=run1" in create
        and "--reserved" in create
        and "--spot" not in create
    )
    scp = shlex.split(next(line for line in lines if " scp " in line))
    packing = next(line for line in lines if line.startswith("git "))
    assert scp[5] in packing and {"run1:", "--worker=all", "--node=all"} <= set(scp)
    assert any(
        "env 'A=b c' ../venv/bin/python"
        in flags(shlex.split(line)).get("command", "").replace("'\"'\"'", "'")
        for line in lines
    )


@pytest.mark.parametrize(
    ("options", "argv", "message"),
    [
        (
            ["--retries=0", "--keep", "--topology=v6e:2x4"],
            ["train", "--workdir=hdfs://b/x"],
            "--workdir=hdfs://b/x is an address",
        ),
        (
            [],
            ["train", "--workdir=/gcs/other/x"],
            "mount a bucket: --bucket=bucket --workdir=/gcs/bucket/...",
        ),
        (
            [],
            ["train", "--workdir=runs/x"],
            "--workdir=runs/x is on a disk of one machine, and there are 4 hosts",
        ),
        (
            ["--topology=v6e:2x4"],
            ["train", "--workdir", "runs/x"],
            "deleted after the run and after a preemption",
        ),
        (["--topology=tpu7x:4x4x4"], TRAIN, "there are no TPU VMs of tpu7x; use launch/gke.py"),
        (["--topology=v5p:8x8x8"], TRAIN, "128 hosts are more than the 64"),
        (["--install=nowhere.whl"], TRAIN, "no such file"),
    ],
)
def test_user_errors_are_reported_before_vms_are_created(
    options: list[str], argv: list[str], message: str, tools: Tools
):
    tools.add("gcloud")
    refused(tools.launch("tpu_vm", *VM, *options, "--", *argv), "tpu_vm", message)
    assert tools.calls() == []


def test_local_workdir_is_allowed_on_one_kept_host(tools: Tools):
    options = ["--topology=v6e:2x4", "--retries=0", "--keep", "--dry-run"]
    assert tools.launch("tpu_vm", *VM, *options, "--", "train", "--workdir=runs/x").code == 0
