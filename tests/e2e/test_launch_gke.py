"""Launching on GKE: the commands and manifests, and after which exit codes they retry."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from tests.fakes import PROGRAM, TRAIN, Tools, flags, refused

XPK = [
    "--name=run1",
    "--topology=v5p:4x4x4",
    "--image=img",
    "--cluster=c",
    "--project=p",
    "--env=A=b c",
]
JOBSET = [
    "--via=jobset",
    "--name=run1",
    "--topology=v6e:8x8",
    "--slices=2",
    "--image=img",
    "--bucket=bucket",
]


def jobset(tools: Tools, *options: str, argv: list[str] = TRAIN) -> dict[str, Any]:
    tools.add("kubectl", reads=True)
    assert tools.launch("gke", *JOBSET, *options, "--", *argv).code == 0
    ((_, arguments, manifest),) = tools.calls()
    assert arguments[-3:] == ["apply", "-f", "-"] and manifest
    return json.loads(manifest)


@pytest.mark.parametrize(("options", "tool"), [(XPK, "xpk"), (JOBSET, "kubectl")])
def test_dry_run_prints_the_commands_that_run(options: list[str], tool: str, tools: Tools):
    tools.add(tool, reads=True)
    printed = tools.launch("gke", "--dry-run", *options, "--", *TRAIN)
    assert printed.code == 0 and tools.calls() == []
    assert tools.launch("gke", *options, "--", *TRAIN).code == 0
    ran = [[name, arguments, (stdin or "").strip()] for name, arguments, stdin in tools.calls()]
    assert tools.run("bash", "-c", printed.out).code == 0
    assert (
        [[name, arguments, (stdin or "").strip()] for name, arguments, stdin in tools.calls()]
        == ran
        != []
    )


def test_xpk_command(tools: Tools):
    command = shlex.split(tools.launch("gke", "--dry-run", *XPK, "--retries=7", "--", *TRAIN).out)
    assert command[:3] == ["xpk", "workload", "create"]
    passed = flags(command)
    expected = {
        "cluster": "c",
        "workload": "run1",
        "tpu-type": "v5p-4x4x4",
        "num-slices": "1",
        "docker-image": "img",
    }
    assert (
        expected.items() <= passed.items()
        and passed["max-restarts"] == "7"
        and passed["env"] == "A=b c"
    )
    assert shlex.split(passed["command"]) == PROGRAM


def test_xpk_attaches_the_bucket(tools: Tools):
    assert "storage" not in flags(
        shlex.split(tools.launch("gke", "--dry-run", *XPK, "--", *TRAIN).out)
    )
    printed = tools.launch("gke", "--dry-run", *XPK, "--bucket=bucket", "--", *TRAIN).out
    assert flags(shlex.split(printed))["storage"] == "bucket"


def test_xpk_restarts_unless_the_exit_code_is_2(tools: Tools):
    passed = flags(shlex.split(tools.launch("gke", "--dry-run", *XPK, "--", *TRAIN).out))
    restarted = {42, *range(127, 256)}  # restarted by xpk itself
    for item in passed["restart-on-exit-codes"].split(","):
        first, _, last = item.partition("-")
        restarted |= set(range(int(first), int(last or first) + 1))
    assert restarted == set(range(1, 256)) - {2}


def test_jobset_has_one_job_per_slice_and_one_pod_per_host(tools: Tools):
    manifest = jobset(tools)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "run1"
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 2
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (16, 16, "Indexed")
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "8x8",
    }
    (container,) = pod["containers"]
    assert (
        container["resources"]["limits"]
        == container["resources"]["requests"]
        == {"google.com/tpu": 4}
    )
    # Kubernetes escapes $( as $$(; unescaped it refers to a variable
    assert container["command"] == [word.replace("$(", "$$(") for word in PROGRAM]


def test_jobset_restarts_after_crashes_and_fails_after_user_errors(tools: Tools):
    spec = jobset(tools, "--retries=9")["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 9
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (rule,) = job["podFailurePolicy"]["rules"]  # the only way in which a Job fails for that reason
    container = job["template"]["spec"]["containers"][0]["name"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container, "operator": "In", "values": [2]},
    }
    # A pod failure policy requires Never; with backoffLimit 0 other failed pods fail the Job.
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimit"] == 0


def bucket_of(pod: dict[str, Any]) -> dict[str, str]:
    """Returns the attributes of a pod's bucket, mounted where TRAIN writes."""
    (shm, volume), (container,) = pod["volumes"], pod["containers"]
    assert container["volumeMounts"] == [
        {"name": shm["name"], "mountPath": "/dev/shm"},
        {"name": volume["name"], "mountPath": "/gcs/bucket"},
    ]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    return volume["csi"]["volumeAttributes"]


def test_jobset_mounts_the_bucket(tools: Tools):
    template = jobset(tools)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    # An annotation of the pods: the driver adds its sidecar to pods, not to Jobs.
    assert template["metadata"]["annotations"] == {
        "gke-gcsfuse/volumes": "true",
        **{f"gke-gcsfuse/{what}-limit": "0" for what in ("cpu", "memory", "ephemeral-storage")},
    }
    bucket = bucket_of(template["spec"])
    assert (
        bucket["bucketName"] == "bucket" and bucket["mountOptions"].split(",")[0] == "implicit-dirs"
    )
    assert template["spec"]["hostNetwork"] and bucket["hostNetworkPodKSA"] == "true"


def test_jobset_on_autopilot_mounts_the_bucket(tools: Tools):
    template = jobset(tools, "--autopilot")["spec"]["replicatedJobs"][0]["template"]["spec"][
        "template"
    ]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert bucket_of(template["spec"]).keys() == {"bucketName", "mountOptions"}


def test_jobset_without_a_bucket(tools: Tools):
    tools.add("kubectl", reads=True)
    options = [option for option in JOBSET if not option.startswith("--bucket")]
    assert (
        tools.launch("gke", *options, "--shared-workdir", "--", "train", "--workdir=/nfs/run1").code
        == 0
    )
    ((_, _, manifest),) = tools.calls()
    assert manifest and "gcsfuse" not in manifest and "/gcs" not in manifest


def test_pods_have_shared_memory_and_time_to_save(tools: Tools):
    options = [option for option in JOBSET if not option.startswith("--bucket")]
    for given, seconds in ([], 120), (["--grace=30"], 30):
        printed = tools.launch(
            "gke", "--dry-run", *options, *given, "--", "evaluate", "--checkpoint=x"
        ).out
        manifest = json.loads(printed.partition("\n")[2].rpartition("EOF")[0])
        pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] == seconds
        assert pod["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
        (container,) = pod["containers"]
        assert container["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
        printed = tools.launch("gke", "--dry-run", *XPK, *given, "--", *TRAIN).out
        passed = flags(shlex.split(printed))
        assert passed["termination-grace-period-seconds"] == str(seconds)


GIT = """
if "rev-parse" in arguments:
    print("0123456789ab")
elif pathlib.Path("changed").exists():
    print(" M setup.py")
"""


def test_the_image_is_that_of_the_commit(tools: Tools):
    tools.add("git", GIT)
    for name in ("docker", "xpk"):
        tools.add(name)
    options = [option for option in XPK if not option.startswith("--image")]
    command = ["gke", *options, "--repository=us-docker.pkg.dev/p/r", "--build", "--", *TRAIN]
    assert tools.launch(*command).code == 0
    image = "us-docker.pkg.dev/p/r/mforce:tpu-0123456789ab"
    build, push, xpk = [arguments for name, arguments, _ in tools.calls() if name != "git"]
    assert (
        build[0] == "build" and f"--tag={image}" in build and "--build-arg=ACCELERATOR=tpu" in build
    )
    assert push == ["push", image] and f"--docker-image={image}" in xpk
    (tools.folder / "changed").touch()
    refused(tools.launch(*command), "gke", "files differ from the last commit; commit them, or")
    assert {name for name, *_ in tools.calls()} == {"git"}


def test_a_build_that_fails_launches_nothing(tools: Tools):
    tools.add("docker", "sys.exit(7)")
    tools.add("xpk")
    assert tools.launch("gke", *XPK, "--build", "--", *TRAIN).code == 7
    assert [name for name, *_ in tools.calls()] == ["docker"]


@pytest.mark.parametrize("workdir", ["gs://b/x", "s3://b/x"])
def test_addresses_of_buckets_need_no_mount(workdir: str, tools: Tools):
    options = [option for option in XPK if not option.startswith("--bucket")]
    done = tools.launch("gke", "--dry-run", *options, "--", "train", f"--workdir={workdir}")
    assert done.code == 0 and f"--workdir={workdir}" in done.out, done.err


def test_jobset_options(tools: Tools):
    manifest = jobset(
        tools,
        "--namespace=n",
        "--queue=q",
        "--service-account=s",
        "--spot",
        "--autopilot",
        "--priority=high",
    )
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert manifest["metadata"]["namespace"] == "n" and manifest["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "q"
    }
    assert pod["serviceAccountName"] == "s" and pod["priorityClassName"] == "high"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert "hostNetwork" not in pod and "securityContext" not in pod["containers"][0]


@pytest.mark.parametrize(
    ("topology", "accelerator", "shape", "hosts", "chips"),
    [
        ("v5e:1x1", "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v5e:16x16", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v5p:4x4x4", "tpu-v5p-slice", "4x4x4", 16, 4),
        ("tpu7x:2x2x1", "tpu7x", "2x2x1", 1, 4),
        ("tpu7x:4x4x8", "tpu7x", "4x4x8", 32, 4),
    ],
)
def test_topology_of_each_tpu_generation(
    topology: str, accelerator: str, shape: str, hosts: int, chips: int, tools: Tools
):
    job = jobset(tools, f"--topology={topology}", "--slices=1")["spec"]["replicatedJobs"][0][
        "template"
    ]["spec"]
    pod = job["template"]["spec"]
    assert list(pod["nodeSelector"].values()) == [accelerator, shape]
    assert (job["completions"], pod["containers"][0]["resources"]["limits"]["google.com/tpu"]) == (
        hosts,
        chips,
    )


@pytest.mark.parametrize(
    ("options", "argv", "message"),
    [
        (["--topology=v5p:4x4"], TRAIN, "v5p has no slice '4x4', but 2x2x1"),
        (["--topology=v5p:8x4x4"], TRAIN, "in rising order"),
        (["--topology=v6e:3x3"], TRAIN, "v6e has no slice '3x3', but 1x1, 2x2"),
        (["--topology=h100:8"], TRAIN, "is not one of v5e, v5p, v6e, tpu7x"),
        (["--topology=v6e:2x2"], TRAIN, "take a larger --topology"),
        (["--name=Run_1"], TRAIN, "'Run_1' is not a name"),
        (["--cluster=c"], TRAIN, "are for --via=xpk"),
        (["--via=xpk"], TRAIN, "--via=xpk needs --cluster"),
        (["--env=A"], TRAIN, "'A' is not NAME=VALUE"),
        (["--repository=p/r"], TRAIN, "not allowed with argument --image"),
        (
            [],
            ["train", "--workdir=runs/x"],
            "mount a bucket: --bucket=bucket --workdir=/gcs/bucket/...",
        ),
        ([], ["train", "--workdir=/gcs/other/x"], "mount a bucket: --bucket=bucket"),
        ([], ["train", "--workdir=/gcs/bucket/../x"], "mount a bucket: --bucket=bucket"),
        (
            ["--shared-workdir"],
            ["train", "--workdir", "hdfs://b/x"],
            "hdfs://b/x is an address of an unknown kind; known are gs:// and s3://",
        ),
        (["--bucket=gs://b"], TRAIN, "'gs://b' is not the name of a bucket"),
        ([], ["train", "--config=x"], "train has no --workdir"),
        ([], ["sweep", "--config=x"], "sweep has no --workdir"),
        (
            [],
            ["sweep", "--workdir=runs/x"],
            "mount a bucket: --bucket=bucket --workdir=/gcs/bucket/...",
        ),
    ],
)
def test_user_errors_are_reported_before_anything_runs(
    options: list[str], argv: list[str], message: str, tools: Tools
):
    for tool in ("kubectl", "xpk"):
        tools.add(tool)
    refused(tools.launch("gke", *JOBSET, *options, "--", *argv), "gke", message)
    assert tools.calls() == []


@pytest.mark.parametrize(
    ("options", "workdir"),
    [(JOBSET[:-1], "/gcs/bucket/x"), (XPK, "runs/x"), ([*XPK, "--bucket=other"], "/gcs/bucket/x")],
)
def test_workdir_outside_the_mounted_bucket_is_refused(
    options: list[str], workdir: str, tools: Tools
):
    message = f"--workdir={workdir} is on a disk of one machine"
    refused(tools.launch("gke", *options, "--", "train", f"--workdir={workdir}"), "gke", message)


def test_missing_tool_is_reported(tools: Tools):
    tools.environment["PATH"] = str(tools.folder)
    done = tools.launch("gke", *XPK, "--", *TRAIN)
    assert (
        done.code == 2
        and done.err.splitlines()[-1] == "gke.py: xpk is not installed here, or not on PATH"
    )
