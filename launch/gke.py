"""Runs a command on TPU slices of a GKE cluster, through xpk or as a plain JobSet.

python launch/gke.py --cluster=C --name=run1 --topology=v5p:4x4x4 --image=IMAGE \\
    -- train --config=... --workdir=/gcs/B/...
python launch/gke.py --via=jobset --bucket=B --name=run1 --topology=v6e:8x8 \\
    --repository=us-docker.pkg.dev/P/R --build -- train --config=... --workdir=/gcs/B/...

The image is --image, or that of the commit that is checked out: REPOSITORY/mforce:tpu-COMMIT, which
--build makes by the Dockerfile and pushes.

The workdir is a path in a bucket that is mounted at /gcs/NAME: a JobSet mounts --bucket by GKE's
Cloud Storage FUSE driver, xpk mounts what `xpk storage attach` attached to the cluster.
A run that crashed or was preempted is restarted from its last checkpoint; one that ended with exit
code 2, a mistake of the user, is not.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

import common
import tpu

CONTAINER = "train"


def run(arguments: list[str]) -> int:
    """Submits the run and returns the exit code of xpk or kubectl."""
    parser = _parser()
    options = parser.read(arguments)
    if options.via == "xpk" and not options.cluster:
        parser.error("--via=xpk needs --cluster")
    if options.via == "jobset" and (options.cluster or options.project or options.zone):
        parser.error(
            "--cluster, --project and --zone are for --via=xpk; "
            "kubectl uses its current context, or --context"
        )
    if options.slices > 1 and options.topology.hosts == 1:
        parser.error(
            "GKE joins slices of several hosts only; take a larger --topology, or --slices=1"
        )
    # xpk may mount storage that was attached to the cluster, whatever the options are.
    unnamed = common.MOUNTS if options.via == "xpk" else ""
    below = common.mount(options.bucket) if options.bucket else unnamed
    why = "a restarted container has a new one"
    common.check_workdir(options.argv, None if options.shared_workdir else below, why)
    shell = common.Shell(options.dry_run)
    if options.repository:
        options.image = f"{options.repository}/mforce:tpu-{_commit()}"
    for command in build(options.image) if options.build else []:
        if code := shell.run(command):
            return code
    if options.via == "xpk":
        return shell.run(xpk(options))
    context = [f"--context={options.context}"] if options.context else []
    return shell.run(
        ["kubectl", *context, "apply", "-f", "-"], stdin=json.dumps(jobset(options), indent=1)
    )


def _parser() -> common.Parser:
    parser = common.Parser("Run a command on TPU slices of a GKE cluster.")
    via = "the tool to submit with (%(default)s)"
    parser.add_argument("--via", choices=("xpk", "jobset"), default="xpk", help=via)
    parser.add_argument(
        "--name", type=common.run_name, required=True, help="of the run; the same name resumes it"
    )
    parser.add_argument(
        "--topology", type=tpu.topology, required=True, metavar="v5p:4x4x4", help="one slice"
    )
    slices = "joined over the data-center network (%(default)s)"
    parser.add_argument("--slices", type=common.at_least(1), default=1, help=slices)
    image = parser.add_mutually_exclusive_group(required=True)
    image.add_argument(
        "--image", help="container image in which `python -m modality_forcing.cli` runs"
    )
    repository = "of images, such as us-docker.pkg.dev/P/R: use the one of this commit there"
    image.add_argument("--repository", type=_repository, help=repository)
    parser.add_argument("--build", action="store_true", help="build and push the image first")
    grace = "seconds to save in after SIGTERM (%(default)s); Spot nodes give less"
    parser.add_argument("--grace", type=common.at_least(0), default=120, help=grace)
    retries = "restarts after crashes and preemptions (%(default)s)"
    parser.add_argument("--retries", type=common.at_least(0), default=50, help=retries)
    bucket_help = "mounted at /gcs/NAME; with xpk, the storage attached under that name"
    parser.add_argument("--bucket", type=common.bucket, help=bucket_help)
    shared_workdir = "--workdir is another mount that all processes share"
    parser.add_argument("--shared-workdir", action="store_true", help=shared_workdir)
    common.add_environment(parser)
    parser.add_argument("--priority", help="a priority class; xpk knows very-low to very-high")
    xpk_only = parser.add_argument_group("for --via=xpk")
    xpk_only.add_argument("--cluster", help="the cluster that `xpk cluster create` made")
    xpk_only.add_argument("--project")
    xpk_only.add_argument("--zone")
    jobset_only = parser.add_argument_group("for --via=jobset")
    jobset_only.add_argument("--context", help="of kubectl, instead of the current one")
    jobset_only.add_argument("--namespace", help="instead of the context's own")
    jobset_only.add_argument("--queue", help="LocalQueue of Kueue")
    jobset_only.add_argument(
        "--service-account", help="Kubernetes service account that may use the bucket"
    )
    jobset_only.add_argument("--spot", action="store_true", help="on Spot nodes")
    jobset_only.add_argument(
        "--autopilot", action="store_true", help="without the host's network and privileges"
    )
    return parser


def build(image: str) -> list[list[str]]:
    """Returns the commands that build an image for TPUs from this checkout and push it."""
    argument = "--build-arg=ACCELERATOR=tpu"
    architecture = "--platform=linux/amd64"  # of TPU hosts, whatever this machine is
    make = ["docker", "build", architecture, argument, f"--tag={image}", str(common.ROOT)]
    return [make, ["docker", "push", image]]


def _repository(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][-.:a-z0-9]*(/[a-z0-9][-._a-z0-9]*)+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a repository such as us-docker.pkg.dev/PROJECT/NAME, without a tag"
        )
    return text


def _commit() -> str:
    """Returns the commit that is checked out; raises Mistake if it is not what the files are.

    An image of other files under its tag would be reused by nodes that have the first one.
    """
    git = ["git", "-C", str(common.ROOT)]
    shell = common.Shell(dry=False)
    code, commit = shell.answer([*git, "rev-parse", "--short=12", "HEAD"])
    if code:
        raise common.Mistake("--repository needs a git checkout; or name an --image")
    code, changes = shell.answer([*git, "status", "--porcelain", "--untracked-files=no"])
    if code or changes:
        raise common.Mistake("files differ from the last commit; commit them, or name an --image")
    return commit.strip()


def xpk(options: argparse.Namespace) -> list[str]:
    """Returns the command of xpk (1.16).

    By default xpk restarts on exit codes 42 and 127 to 255, so not after a Python exception. All
    other codes are added except 2: a code that is not listed makes xpk's JobSet fail for good.
    """
    command = ["xpk", "workload", "create"]
    command += [
        f"--cluster={options.cluster}",
        f"--workload={options.name}",
        f"--tpu-type={options.topology.xpk_type}",
        f"--num-slices={options.slices}",
        f"--docker-image={options.image}",
    ]
    command += [
        f"--{key}={value}"
        for key in ("project", "zone", "priority")
        if (value := getattr(options, key))
    ]
    if options.bucket:  # xpk refuses one that is not attached
        command.append(f"--storage={options.bucket}")
    command += [
        f"--max-restarts={options.retries}",
        f"--termination-grace-period-seconds={options.grace}",
        f"--restart-on-exit-codes=1,{common.MISTAKE + 1}-126",
    ]
    command += [f"--env={name}={value}" for name, value in options.env]
    return [*command, f"--command={common.to_shell(common.program(options.argv))}"]


def jobset(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the manifest of a JobSet: one indexed Job per slice, one pod per host.

    JobSet gives the pods a headless service and stable names. GKE sets each pod's worker and slice
    ids, which `modality_forcing.distributed` reads. A failed pod fails its Job (backoffLimit 0) and
    so restarts all slices together; exit code 2 fails the JobSet.
    """
    where = options.topology
    chips = {"google.com/tpu": where.chips // where.hosts}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": options.image,
        "command": [_literal(word) for word in common.program(options.argv)],
        "env": [{"name": name, "value": _literal(value)} for name, value in options.env],
        # Of the TPU runtime, and between slices.
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "resources": {"requests": chips, "limits": chips},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": where.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": where.shape,
            **({"cloud.google.com/gke-spot": "true"} if options.spot else {}),
        },
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists"}],
        "terminationGracePeriodSeconds": options.grace,
        "containers": [container],
        # Batches are in shared memory, of which a container has 64 MiB by default.
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    container["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
    if options.spot:
        pod["tolerations"].append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        )
    if not options.autopilot:  # as xpk does: full speed between slices on the host's network
        container["securityContext"] = {"privileged": True}
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    annotations = _mount(pod, container, options.bucket) if options.bucket else {}
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.priority:
        pod["priorityClassName"] = options.priority
    mistake = {"containerName": CONTAINER, "operator": "In", "values": [common.MISTAKE]}
    job = {
        "parallelism": where.hosts,
        "completions": where.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": mistake}]},
        "template": {"metadata": {"annotations": annotations}, "spec": pod},
    }
    metadata: dict[str, Any] = {"name": options.name}
    if options.namespace:
        metadata["namespace"] = options.namespace
    if options.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    # A slice is a node pool: no two Jobs on one.
    metadata["annotations"] = {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": options.retries,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": options.slices, "template": {"spec": job}}
            ],
        },
    }


def _mount(pod: dict[str, Any], container: dict[str, Any], bucket: str) -> dict[str, str]:
    """Mounts a bucket into a pod's container; returns the annotations that add GKE's sidecar."""
    attributes = {"bucketName": bucket, "mountOptions": ",".join(common.MOUNT_OPTIONS)}
    annotations = {"gke-gcsfuse/volumes": "true"}
    if pod.get("hostNetwork"):
        # Else the driver authenticates as the node, not as the pod's service account.
        attributes["hostNetworkPodKSA"] = "true"
        # No limits (Autopilot requires some): files stay on the node's disk until closed.
        annotations |= {
            f"gke-gcsfuse/{what}-limit": "0" for what in ("cpu", "memory", "ephemeral-storage")
        }
    driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
    pod["volumes"].append({"name": "bucket", "csi": driver})
    container["volumeMounts"].append({"name": "bucket", "mountPath": common.mount(bucket)})
    return annotations


def _literal(text: str) -> str:
    """Escapes text for Kubernetes, which expands $(NAME)."""
    return text.replace("$(", "$$(")


if __name__ == "__main__":
    common.main(run)
