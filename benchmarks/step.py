"""Time of a train step on the available devices, and its share of their peak.

    python benchmarks/step.py                      # the demo's size, on any device
    python benchmarks/step.py --size=370m,3b3 --phase=t2i,forcing --batch=16,32 --json=step.json
    python benchmarks/step.py --config=configs/folder.py --batch=8

One table, a row for every combination. The step is the real one: noise, loss, gradient, AdamW, EMA
and metrics, over all devices by the config's mesh, on one random batch that stays on the devices;
no data is loaded. Each row runs in its own process, so that none sees another's memory. `step ms`
is the median of five blocks of steps, each timed from idle device to idle device, with the fastest
and the slowest block. `MFU` counts FLOPs as models/flops.py does and is blank if the device's peak
is unknown. `peak GiB` is what one device reports, or `~` and the compiler's plan.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BLOCKS, WARM_UP = 5, 3
AXES = ("size", "phase", "batch", "remat", "attention")
COLUMNS = (
    *(
        "size",
        "phase",
        "tokens",
        "batch",
        "remat",
        "attention",
        "params",
        "step ms",
        "images/s",
        "tokens/s",
    ),
    *("TFLOP/s/chip", "MFU", "peak GiB", "compile s"),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", default="demo", help="of the family: demo, 370m, 800m, 3b3; several with commas"
    )
    parser.add_argument("--phase", default="forcing", help="t2i or forcing, or both with a comma")
    parser.add_argument(
        "--batch", default="16", help="examples a step over all devices; several with commas"
    )
    parser.add_argument(
        "--remat",
        default="",
        help="none, elementwise or full; several with commas; empty: the config's",
    )
    parser.add_argument(
        "--attention",
        default="",
        help="auto, einsum, splash or cudnn; several with commas; empty: the config's",
    )
    parser.add_argument("--encoders", default="frozen", help="frozen or none, as in configs/t2i.py")
    parser.add_argument(
        "--config",
        default="",
        help="a config file with its argument, in the place of size and phase",
    )
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a row")
    parser.add_argument("--json", type=Path, help="also write everything into this file")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one combination, in this process
    return parser.parse_args()


def load(row: dict[str, str], encoders: str) -> Any:
    """Returns the config of a row."""
    sys.path.insert(0, str(ROOT))
    if "config" in row:
        from modality_forcing.config_file import load as load_file

        config = load_file(row["config"])
    elif row["size"] == "demo":
        config = importlib.import_module("configs.demo").get_config(f"phase={row['phase']}")
    else:
        config = importlib.import_module(f"configs.{row['phase']}").get_config(
            f"size={row['size']},encoders={encoders}"
        )
    changes = {key: row[key] for key in ("remat", "attention") if row[key]}
    # A teacher would need a checkpoint.
    train = replace(config.train, batch=int(row["batch"]), distill=False)
    return replace(config, model=replace(config.model, **changes), train=train)


def outcome(row: dict[str, str], encoders: str, steps: int) -> dict[str, Any]:
    """Measures one row in this process; an error becomes a row, so that the others still run."""
    try:
        return measure(row, encoders, steps)
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else ""
        if "RESOURCE_EXHAUSTED" in message:
            return {**row, "error": "out of memory"}
        return {**row, "error": f"{type(error).__name__}: {message}"}


def measure(row: dict[str, str], encoders: str, steps: int) -> dict[str, Any]:
    """Runs one row on the devices of this process."""
    config = load(row, encoders)
    import jax

    from modality_forcing import chips
    from modality_forcing.modalities import base
    from modality_forcing.models import flops
    from modality_forcing.planning import hardware
    from modality_forcing.planning.compile import abstract_step
    from modality_forcing.train.batch_shapes import random_batch
    from modality_forcing.train.state import init_params, init_state, with_attention_kernel
    from modality_forcing.train.throughput import step_flops

    devices = jax.devices()
    config, modalities = with_attention_kernel(config, devices[0].platform), base.build(config)
    chip = chips.by_device_kind(devices[0].device_kind)
    function, (shapes, batch_shapes, _), _ = abstract_step(config, tuple(devices))
    started = time.perf_counter()
    options = hardware.compiler_options(chip) if chip else None
    step = function.lower(shapes, batch_shapes, teacher_params=None).compile(
        compiler_options=options or None
    )
    compile_seconds = time.perf_counter() - started

    def shardings(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, tree)

    # In one program, so that no weight is in memory twice.
    state = jax.jit(
        lambda: init_state(config, init_params(config, modalities)), out_shardings=shardings(shapes)
    )()
    batch = jax.device_put(random_batch(batch_shapes), shardings(batch_shapes))

    def run(count: int) -> float:
        nonlocal state
        started, metrics = time.perf_counter(), {}
        for _ in range(count):
            state, metrics = step(state, batch, teacher_params=None)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - started) / count

    run(WARM_UP)
    seconds = [run(max(steps // BLOCKS, 1)) for _ in range(BLOCKS)]
    work, each = step_flops(config), median(seconds)
    count = len(devices) / chip.devices if chip else len(devices)
    peak = (devices[0].memory_stats() or {}).get("peak_bytes_in_use")
    planned = step.memory_analysis()
    return {
        **row,
        "attention": config.model.attention,
        "remat": config.model.remat,
        "tokens": flops.tokens(config, modalities),
        "params": flops.parameters(shapes.all_params()).total,
        "step_seconds": each,
        "block_seconds": seconds,
        "images_per_second": config.train.batch / each,
        "flops_per_step": work,
        "flops_per_second_per_chip": work / each / count,
        "mfu": work / each / count / chip.bf16_flops if chip else None,
        "peak_bytes": peak,
        "planned_bytes": planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        - planned.alias_size_in_bytes
        + planned.temp_size_in_bytes,
        "compile_seconds": compile_seconds,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "jax": jax.__version__,
    }


def in_a_process(row: dict[str, str]) -> dict[str, Any]:
    """Measures one row in a fresh process; if that crashes, its exit code is the row's `error`."""
    # A GPU's default of 0.75 is for sharing it.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", **os.environ}
    command = [sys.executable, *sys.argv, f"--row={json.dumps(row)}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {**row, "error": f"exit code {done.returncode}"}


def cells(result: dict[str, Any]) -> list[str]:
    """Returns a row of the table."""
    named = [result.get("config") or result["size"], "" if "config" in result else result["phase"]]
    knobs = [result["batch"], result["remat"], result["attention"]]
    if "error" in result:
        return [*named, "", *knobs, "", result["error"], *[""] * 6]
    ms = [
        1e3 * s
        for s in (
            result["step_seconds"],
            min(result["block_seconds"]),
            max(result["block_seconds"]),
        )
    ]
    peak = (
        f"{result['peak_bytes'] / 2**30:.2f}"
        if result["peak_bytes"]
        else f"~{result['planned_bytes'] / 2**30:.2f}"
    )
    return [
        *named,
        str(result["tokens"]),
        *knobs,
        f"{result['params'] / 1e6:,.1f} M",
        f"{ms[0]:.1f} ({ms[1]:.1f} to {ms[2]:.1f})",
        f"{result['images_per_second']:,.1f}",
        f"{result['images_per_second'] * result['tokens']:,.0f}",
        f"{result['flops_per_second_per_chip'] / 1e12:,.2f}",
        f"{result['mfu']:.3f}" if result["mfu"] else "",
        peak,
        f"{result['compile_seconds']:.1f}",
    ]


def main() -> None:
    args = arguments()
    if args.row:
        print(json.dumps(outcome(json.loads(args.row), args.encoders, args.steps)))
        return
    choices = {axis: getattr(args, axis).split(",") for axis in AXES}
    if unknown := set(choices["phase"]) - {"t2i", "forcing"}:
        sys.exit(f"--phase={unknown.pop()} is neither t2i nor forcing")
    if args.config:
        del choices["size"], choices["phase"]
        choices = {"config": [args.config], **choices}
    rows = [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]
    results = [in_a_process(row) for row in rows]

    ran = next((r for r in results if "error" not in r), None)
    where = f"{ran['devices']} x {ran['device']}, jax {ran['jax']}" if ran else "nothing ran"
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    command = shlex.join(["python", *sys.argv])
    print(f"{where}, {date}\n\n    {command}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for result in results:
        print(f"| {' | '.join(cells(result))} |")
    if args.json:
        args.json.write_text(
            json.dumps({"date": date, "command": command, "rows": results}, indent=1)
        )
    if ran is None:
        sys.exit(1)


if __name__ == "__main__":
    main()
