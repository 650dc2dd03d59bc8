"""Submits a command to a GPU cluster under SLURM: writes the script and hands it to sbatch.

python launch/slurm.py --name=run1 --nodes=4 --gpus-per-node=8 --time=24:00:00 -- train --config=... --workdir=/nfs/...

The run is queued again when it is preempted, when its time is up and after a crash, and goes on from its last
checkpoint. After exit code 2, a mistake of the user, it never is.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import common

# `srun` ends with the highest code of its tasks, and those that it stops because one failed tell 137 or 143: so a task
# that ends with 2 leaves a file. The shell of a task outlives SIGTERM, which the program gets too, or its code were lost.
# A trap runs as soon as `wait` is interrupted, and `wait` has to be called again.
SCRIPT = """\
#!/bin/bash
{directives}

{setup}mistake="$PWD/.{name}-$SLURM_JOB_ID.mistake"
rm -f "$mistake"
stopped=
trap 'stopped=time; kill -TERM "$step" 2>/dev/null' USR1  # the time is nearly up: the run may save
trap 'stopped=asked; kill -TERM "$step" 2>/dev/null' TERM  # preempted (SLURM queues it again by itself) or cancelled

srun {srun} bash -c '
    trap : TERM
    "${{@:2}}"
    code=$?
    [ $code -ne {mistake} ] || touch "$1"
    exit $code
' task "$mistake" {command} &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    code=$?
done

if [ -e "$mistake" ]; then
    rm -f "$mistake"
    echo "launch: a mistake that trying again would only repeat; not queued again"
    exit {mistake}
fi
case "$stopped:$code" in
    :0 | asked:* | :130 | :143) exit "$code" ;;
esac
if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {retries} ]; then
    echo "launch: exit code $code, and {retries} restarts were all"
    exit "$code"
fi
echo "launch: ${{stopped:-exit code $code}}; queued again"
scontrol requeue "$SLURM_JOB_ID"
"""


def run(arguments: list[str]) -> int:
    """Submits the run and returns sbatch's exit code; what the run does is then SLURM's."""
    options = _parser().read(arguments)
    where = common.workdir(options.given)
    if options.given[0] in common.TRAINS and not where:
        raise common.Mistake(
            f"{options.given[0]} has no --workdir; give it behind --, on a disk that all nodes share"
        )
    return common.Shell(options.dry_run).run(["sbatch"], stdin=script(options))


def _parser() -> common.Parser:
    parser = common.Parser("Submit a command to a GPU cluster under SLURM.")
    parser.add_argument("--name", type=common.run_name, required=True, help="of the run")
    parser.add_argument("--nodes", type=common.above(1), default=1, help="(%(default)s)")
    parser.add_argument("--gpus-per-node", type=common.above(1), default=8, help="(%(default)s)")
    parser.add_argument(
        "--process-per",
        choices=("gpu", "node"),
        default="gpu",
        help="one process per GPU or node (%(default)s)",
    )
    parser.add_argument("--cpus-per-process", type=common.above(1), help="CPU cores")
    parser.add_argument("--time", help="limit, as HH:MM:SS or DAYS-HH:MM:SS")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument(
        "--chdir",
        type=Path,
        default=Path.cwd(),
        help="where it runs: a folder that all nodes share (here)",
    )
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="of shell, before: module load, source ...",
    )
    parser.add_argument("--python", default="python", help="(%(default)s)")
    parser.add_argument(
        "--notice",
        type=common.above(1),
        default=120,
        help="seconds to save before the time is up (%(default)s)",
    )
    parser.add_argument(
        "--retries",
        type=common.above(0),
        default=20,
        help="restarts after crashes and time limits (%(default)s)",
    )
    common.add_environment(parser)
    return parser


def script(options: argparse.Namespace) -> str:
    """The batch script."""
    tasks = options.gpus_per_node if options.process_per == "gpu" else 1
    directives = {
        "job-name": options.name,
        "nodes": options.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": options.gpus_per_node,  # not per task: jax wants each task to see all and takes the one of its number
        "cpus-per-task": options.cpus_per_process,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "chdir": options.chdir.absolute(),
        "output": f"{options.name}-%j.out",
        "open-mode": "append",  # a restart writes on
        "signal": f"B:USR1@{options.notice}",
    }
    lines = [
        f"#SBATCH --{key}={shlex.quote(str(value))}"
        for key, value in directives.items()
        if value is not None
    ]
    srun = ["--kill-on-bad-exit=1", "--label"]
    if options.cpus_per_process:
        srun.append(
            f"--cpus-per-task={options.cpus_per_process}"
        )  # srun does not take it from sbatch
    setup = [
        *options.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in options.env),
    ]
    return SCRIPT.format(
        directives="\n".join([*lines, "#SBATCH --requeue"]),
        setup="".join(f"{line}\n" for line in setup),
        name=options.name,
        srun=shlex.join(srun),
        command=shlex.join(common.program(options.given, options.python)),
        mistake=common.MISTAKE,
        retries=options.retries,
    )


if __name__ == "__main__":
    common.main(run)
