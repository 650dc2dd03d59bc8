"""Submits a command to a GPU cluster under SLURM: writes the script and hands it to sbatch.

python launch/slurm.py --name=run1 --nodes=4 --gpus-per-node=8 --time=24:00:00 \\
    -- train --config=... --workdir=/nfs/...

The run is requeued after a preemption, at its time limit and after a crash, and resumes from its
last checkpoint. Near the time limit and at a preemption SIGUSR1 tells its processes to save. After
exit code 2, a mistake of the user, and once it is cancelled it is not requeued.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import common

# `srun` exits with the highest code of its tasks, and tasks that it stops after a failure exit with
# 137 or 143. A task that exits with 2 therefore leaves a file. The shell of a task ignores signals
# that the program also receives; otherwise the program's code would be lost.
# A trap runs as soon as `wait` is interrupted, so `wait` is called again.
# The step gets SIGUSR1, which srun passes on to its tasks. SIGTERM ends them by SIGKILL there.
# A job that was cancelled, or that SLURM requeues by itself, is no longer RUNNING.
SCRIPT = """\
#!/bin/bash
{directives}

{setup}mistake="$PWD/.{name}-$SLURM_JOB_ID.mistake"
rm -f "$mistake"
stopped=
trap 'stopped="the time is up"; kill -USR1 "$step" 2>/dev/null' USR1
trap 'stopped="preempted or cancelled"; kill -USR1 "$step" 2>/dev/null' TERM

srun {srun} bash -c '
    trap : TERM USR1 HUP
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
    echo "launch: a mistake that a retry would repeat; not requeued"
    exit {mistake}
fi
case $code in
    0 | {interrupted}) exit "$code" ;;
esac
if [ $code -eq {stopped} ] || [ -n "$stopped" ]; then
    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
    if [ "$state" != RUNNING ]; then
        echo "launch: ${{stopped:-exit code $code}}; the job is ${{state:-gone}}; not requeued"
        exit "$code"
    fi
fi
if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {retries} ]; then
    echo "launch: exit code $code after {retries} restarts"
    exit "$code"
fi
echo "launch: ${{stopped:-exit code $code}}; requeued"
scontrol requeue "$SLURM_JOB_ID"
"""


def run(arguments: list[str]) -> int:
    """Submits the run and returns sbatch's exit code."""
    options = _parser().read(arguments)
    where = common.workdir(options.argv)
    if options.argv[0] in common.TRAINS and not where:
        raise common.Mistake(
            f"{options.argv[0]} has no --workdir; give it after --, on a disk that all nodes share"
        )
    return common.Shell(options.dry_run).run(["sbatch"], stdin=script(options))


def _parser() -> common.Parser:
    parser = common.Parser("Submit a command to a GPU cluster under SLURM.")
    parser.add_argument("--name", type=common.run_name, required=True, help="of the run")
    parser.add_argument("--nodes", type=common.at_least(1), default=1, help="(%(default)s)")
    parser.add_argument("--gpus-per-node", type=common.at_least(1), default=8, help="(%(default)s)")
    process_per = "one process per GPU or node (%(default)s)"
    parser.add_argument("--process-per", choices=("gpu", "node"), default="gpu", help=process_per)
    parser.add_argument("--cpus-per-process", type=common.at_least(1), help="CPU cores")
    parser.add_argument("--time", help="limit, as HH:MM:SS or DAYS-HH:MM:SS")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    chdir = "working directory, a folder that all nodes share (here)"
    parser.add_argument("--chdir", type=Path, default=Path.cwd(), help=chdir)
    setup_help = "shell line to run before, such as module load; may be repeated"
    parser.add_argument("--setup", action="append", default=[], metavar="LINE", help=setup_help)
    parser.add_argument("--python", default="python", help="(%(default)s)")
    notice = "seconds for saving before the time limit (%(default)s)"
    parser.add_argument("--notice", type=common.at_least(1), default=120, help=notice)
    retries = "restarts after crashes and time limits (%(default)s)"
    parser.add_argument("--retries", type=common.at_least(0), default=20, help=retries)
    common.add_environment(parser)
    return parser


def script(options: argparse.Namespace) -> str:
    """Returns the batch script."""
    tasks = options.gpus_per_node if options.process_per == "gpu" else 1
    directives = {
        "job-name": options.name,
        "nodes": options.nodes,
        "ntasks-per-node": tasks,
        # Not per task: jax expects each task to see all GPUs and takes the one of its local rank.
        "gpus-per-node": options.gpus_per_node,
        "cpus-per-task": options.cpus_per_process,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "chdir": options.chdir.absolute(),
        "output": f"{options.name}-%j.out",
        "open-mode": "append",  # for restarts
        "signal": f"B:USR1@{options.notice}",
    }
    lines = [
        f"#SBATCH --{key}={shlex.quote(str(value))}"
        for key, value in directives.items()
        if value is not None
    ]
    srun = ["--kill-on-bad-exit=1", "--label"]
    if options.cpus_per_process:
        # srun does not inherit it from sbatch.
        srun.append(f"--cpus-per-task={options.cpus_per_process}")
    setup = [
        *options.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in options.env),
    ]
    return SCRIPT.format(
        directives="\n".join([*lines, "#SBATCH --requeue"]),
        setup="".join(f"{line}\n" for line in setup),
        name=options.name,
        srun=shlex.join(srun),
        command=shlex.join(common.program(options.argv, options.python)),
        mistake=common.MISTAKE,
        interrupted=common.INTERRUPTED,
        stopped=common.STOPPED,
        retries=options.retries,
    )


if __name__ == "__main__":
    common.main(run)
