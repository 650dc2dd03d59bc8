"""The command line, `mforce COMMAND`: parses, dispatches, turns user errors into exit code 2."""

from __future__ import annotations

import argparse
import math
import os
import select
import sys
from pathlib import Path
from typing import NoReturn, TextIO

from modality_forcing import distributed
from modality_forcing.commands import encode as encoding
from modality_forcing.commands import evaluate as evaluation
from modality_forcing.commands import fit as fitting
from modality_forcing.commands import inspect as inspection
from modality_forcing.commands import plan as planning
from modality_forcing.commands import prepare as preparation
from modality_forcing.commands import sweep as sweeping
from modality_forcing.errors import UserError

GOES_ON = ("demo", "train", "prepare", "encode", "evaluate", "sweep")  # what was done is kept


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0, 1 for a plan that does not fit, 2 for a user's mistake, 130 for Ctrl-C, 141 where nobody reads its output any more.
    """
    parser = _parser()
    plain, overrides = _split_overrides(sys.argv[1:] if arguments is None else arguments, parser)
    options = parser.parse_args(plain)
    if overrides and options.command not in ("train", "plan"):
        parser.error(f"--config.{next(iter(overrides))} is an option of train and plan")
    try:
        code = options.run(options, overrides) or 0
        sys.stdout.flush()  # here, where a reader that has gone can be told
        return distributed.exit_process(code)
    except BrokenPipeError:
        if _is_read(sys.stdout):
            raise
        return distributed.exit_process(141)  # as a shell tells SIGPIPE: `| head` has seen enough
    except UserError as error:
        told, code = str(error), 2
    except FloatingPointError as error:  # training diverged
        told, code = f"{error}; lower train.learning_rate, in another --workdir", 2
    except KeyboardInterrupt:
        on = "; the same command goes on where it was stopped" if options.command in GOES_ON else ""
        told, code = f"interrupted{on}", 130
    print(f"mforce {options.command}: {told}", file=sys.stderr)
    return distributed.exit_process(code)


def _is_read(stream: TextIO) -> bool:
    """Whether a pipe still has a reader; where it has none, what is left for it is thrown away, or Python would tell at exit."""
    pipe = select.poll()
    pipe.register(stream.fileno(), 0)
    if not pipe.poll(0):  # errors alone are reported
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return False


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as every other one is told, and leaves the usage to --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def _split_overrides(
    arguments: list[str], parser: argparse.ArgumentParser
) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of the arguments."""
    plain, overrides, i = [], {}, 0
    while i < len(arguments):
        name, equals, value = arguments[i].partition("=")
        if name.startswith("--config."):
            if not equals:
                i += 1
                if i == len(arguments) or arguments[i].startswith("--"):
                    parser.error(f"{name} has no value")
                value = arguments[i]
            overrides[name.removeprefix("--config.")] = value
        else:
            plain.append(arguments[i])
        i += 1
    return plain, overrides


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mforce", description="Modality Forcing: train, sample and evaluate.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, run, text: str, epilog: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    demo = command(
        "demo",
        _demo,
        "Pretrain, post-train on sparse depth, evaluate and sample; write report.html.",
    )
    demo.add_argument(
        "--workdir",
        type=Path,
        default=Path("runs/demo"),
        help="where everything is written (%(default)s)",
    )
    demo.add_argument(
        "--ablate",
        action="store_true",
        help="also post-train without pretraining; takes about as long again",
    )
    demo.add_argument(
        "--t2i-steps", type=_count, help="steps of pretraining, instead of the config's"
    )
    demo.add_argument(
        "--forcing-steps", type=_count, help="steps of post-training, instead of the config's"
    )
    demo.add_argument(
        "--examples", type=_count, help="held-out scenes to evaluate on, instead of the config's"
    )

    train = command(
        "train",
        _train,
        "Train a config, or go on with the run in the workdir.",
        "Any value of the config can be set: --config.train.steps=50 --config.model.width=128",
    )
    train.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="e.g. configs/demo.py:phase=t2i"
    )
    train.add_argument(
        "--workdir",
        type=Path,
        required=True,
        help="checkpoints, metrics and TensorBoard events go here",
    )

    sample = command(
        "sample",
        _sample,
        "Generate pictures and depth from a checkpoint.",
        "examples:\n"
        "  mforce sample --checkpoint runs/demo/forcing --mode joint --caption 'a red ball on grass' --out out\n"
        "  mforce sample --checkpoint runs/demo/forcing --mode i2d --image photo.jpg --out out\n"
        "  mforce sample --checkpoint runs/demo/forcing --mode d2i --depth depth.png --depth-scale 0.001 --out out",
    )
    sample.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a workdir, its checkpoints/ or one step of it",
    )
    sample.add_argument("--mode", required=True, help="joint, i2d, d2i, partial or t2i")
    sample.add_argument("--out", type=Path, required=True, help="folder for what is generated")
    sample.add_argument(
        "--caption", action="append", default=[], help="text; give it again for more examples"
    )
    sample.add_argument("--n", type=_count, default=1, help="examples per caption (%(default)s)")
    sample.add_argument("--image", type=Path, help="the picture of i2d")
    sample.add_argument(
        "--depth",
        type=Path,
        help="the depth of d2i and partial: .npy, or 16-bit PNG with --depth-scale",
    )
    sample.add_argument(
        "--depth-scale", type=_number, help="units per count of a PNG, e.g. 0.001 for millimetres"
    )
    sample.add_argument(
        "--fit", choices=("crop", "stretch"), default="crop", help="how a picture becomes square"
    )
    sample.add_argument(
        "--text-encoder",
        default="",
        metavar="umt5:PATH",
        help="frozen, if not where the config says",
    )
    sample.add_argument(
        "--autoencoder",
        default="",
        metavar="flux2:PATH",
        help="frozen, if not where the config says",
    )
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--steps", type=_count, help="sampler steps, instead of the config's")
    sample.add_argument("--solver", choices=("euler", "heun"))
    sample.add_argument(
        "--guidance", type=_number, help="guidance scale of the image; depth is never guided"
    )
    sample.add_argument(
        "--log2-alpha",
        type=_number,
        help="joint: > 0 image first, < 0 depth first; partial: looser above 0",
    )
    sample.add_argument(
        "--refine",
        action="store_true",
        help="joint: a second image-to-depth pass on the generated image",
    )

    evaluate = command(
        "evaluate",
        _evaluate,
        "Score a checkpoint on its own held-out records or on benchmarks, or anyone's arrays of depth.",
        evaluation.EXAMPLES,
    )
    evaluation.add_options(evaluate, _count)

    prepare = command(
        "prepare",
        _prepare,
        "Read a data set once into shards that training reads at random.",
        preparation.EXAMPLES,
    )
    preparation.add_options(prepare, _count)

    encode = command(
        "encode",
        _encode,
        "Run prepared records through frozen encoders once, into a cache for training.",
        encoding.EXAMPLES,
    )
    encoding.add_options(encode, _count)

    inspect = command(
        "inspect",
        _inspect,
        "Print what a prepared folder holds; draw a sheet of its records; check its bytes.",
        inspection.EXAMPLES,
    )
    inspection.add_options(inspect, _count)

    export = command(
        "export",
        _export,
        "Write a checkpoint's EMA weights for others, with a manifest, and check them.",
    )
    export.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a workdir, its checkpoints/ or one step of it",
    )
    export.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    export.add_argument("--format", choices=("orbax", "safetensors"), default="orbax")

    fit = command(
        "fit", _fit, "Fit a scaling law to a table of runs, with error bars.", fitting.EXAMPLES
    )
    fitting.add_options(fit, _count)

    sweep = command(
        "sweep",
        _sweep,
        "Do all the runs of a scaling study, each once, and a row for each.",
        sweeping.EXAMPLES,
    )
    sweeping.add_options(sweep, _count)

    plan = command(
        "plan",
        _plan,
        "Say what a run, a frozen encoder or a sweep will take, before hardware is booked; check that a width transfers.",
        planning.EXAMPLES,
    )
    planning.add_options(plan, _count)
    return parser


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


# The work is imported where it starts, so that --help answers at once.


def _demo(options: argparse.Namespace, _: dict[str, str]) -> None:
    from modality_forcing.commands import demo

    chosen = {
        k: getattr(options, k)
        for k in ("workdir", "ablate", "t2i_steps", "forcing_steps", "examples")
    }
    summary = demo.run(demo.Options(**chosen))
    print(demo.told(summary, options.workdir))


def _train(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    distributed.initialize()  # before anything asks for devices
    from modality_forcing import config_file
    from modality_forcing.train.loop import train

    train(config_file.load(options.config, overrides), options.workdir)


def _sample(options: argparse.Namespace, _: dict[str, str]) -> None:
    from modality_forcing.commands import sample

    sample.run(options)


def _evaluate(options: argparse.Namespace, _: dict[str, str]) -> None:
    evaluation.run(options)


def _prepare(options: argparse.Namespace, _: dict[str, str]) -> None:
    preparation.run(options)


def _encode(options: argparse.Namespace, _: dict[str, str]) -> None:
    distributed.initialize()
    encoding.run(options)


def _inspect(options: argparse.Namespace, _: dict[str, str]) -> None:
    inspection.run(options)


def _export(options: argparse.Namespace, _: dict[str, str]) -> None:
    from modality_forcing import export

    print(export.export(options.checkpoint, options.out, options.format))


def _fit(options: argparse.Namespace, _: dict[str, str]) -> None:
    fitting.run(options)


def _sweep(options: argparse.Namespace, _: dict[str, str]) -> int:
    if options.launcher == "local" and not (options.status or options.dry_run):
        distributed.initialize()
    return sweeping.run(options)


def _plan(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the devices planned for are described, not used
    return planning.run(options, overrides)


if __name__ == "__main__":
    sys.exit(main())
