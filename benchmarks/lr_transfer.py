"""Whether the best learning rate stays the same as the width grows.

    python benchmarks/lr_transfer.py               # 5 rates x 2 widths, by width and with one rate
    python benchmarks/lr_transfer.py --widths 64 128 256 --steps 1000 --seeds 3 --json lr.json

Text-to-image at the demo's length on procedural scenes, the same batches for every run: the demo's
network with heads of 16 channels at other widths (train/width_scaling.py). Rates are those at the
demo's width of 96; `one rate` gives every weight the same rate at every width. The numbers are
losses on held-out scenes, at the same noise levels and noise for all runs, averaged over seeds;
`best` is the vertex of a parabola in log rate through the lowest loss and its neighbors.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from modality_forcing.config import Config
from modality_forcing.config_file import load
from modality_forcing.data.pipeline import train_batches
from modality_forcing.modalities import base
from modality_forcing.train import inputs
from modality_forcing.train.state import abstract_model, init_params, init_state
from modality_forcing.train.step import compute_loss, make_step
from modality_forcing.train.width_scaling import scale_width

ROOT = Path(__file__).resolve().parents[1]
HEAD_DIM = 16
AGREE = 2.0  # a factor


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 192])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--examples", type=int, default=512, help="held-out scenes")
    parser.add_argument(
        "--only-transfer", action="store_true", help="leave out the runs of one rate for all widths"
    )
    parser.add_argument("--json", type=Path, help="also write every run into this file")
    options = parser.parse_args()

    config = load(f"{ROOT}/configs/demo.py:phase=t2i", {"train.steps": str(options.steps)})
    c = config.model
    config = replace(
        config,
        model=replace(
            c, head_dim=HEAD_DIM, heads=c.width // HEAD_DIM, kv_heads=c.width // HEAD_DIM // 2
        ),
    )
    training = batches(config, options.steps)
    held = batches(config, -(-options.examples // config.train.batch), "eval")
    runs, verdicts = [], []
    print(f"| rates | width | {' | '.join(f'{rate:g}' for rate in options.rates)} | best |")
    print(f"|---|--:|{'--:|' * len(options.rates)}--:|", flush=True)
    for transfer in (True, False)[: 1 if options.only_transfer else 2]:
        bests = []
        for width in options.widths:
            losses = []
            for rate in options.rates:
                found = [
                    one(config, width, rate, transfer, seed, training, held)
                    for seed in range(options.seeds)
                ]
                runs += [
                    {"transfer": transfer, "width": width, "rate": rate, "seed": s, "loss": x}
                    for s, x in enumerate(found)
                ]
                losses.append(float(np.mean(found)))
            bests.append(best(options.rates, losses))
            cells = " | ".join(f"**{x:.5f}**" if x == min(losses) else f"{x:.5f}" for x in losses)
            text = "at the edge" if bests[-1] is None else f"{bests[-1]:.2e}"
            print(
                f"| {'by width' if transfer else 'one rate'} | {width} | {cells} | {text} |",
                flush=True,
            )
        verdicts.append(f"{'by width' if transfer else 'one rate'}: {verdict(bests)}")
    print("", *verdicts, sep="\n")
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(
            json.dumps({"options": settings, "verdicts": verdicts, "runs": runs}, indent=1)
        )
    return 0


def batches(config: Config, count: int, split: str = "train") -> list[Any]:
    """Returns batches of scenes, kept in memory."""
    made = train_batches(
        inputs.open_source(config, split),
        inputs.build_text_encoder(config),
        batch=config.train.batch,
        seed=config.seed,
        resolution=config.data.resolution,
    )
    found = [next(made) for _ in range(count)]
    made.close()
    return found


def one(
    config: Config,
    width: int,
    rate: float,
    transfer: bool,
    seed: int,
    training: list[Any],
    held: list[Any],
) -> float:
    """Trains once and returns the loss on held-out scenes, NaN for a run that broke."""
    started = time.monotonic()
    c = scale_width(replace(config, train=replace(config.train, learning_rate=rate)), width)
    c = c if transfer else replace(c, train=replace(c.train, base_width=0))
    modalities, null_text = base.build(c), inputs.build_text_encoder(c).null()
    graph = abstract_model(c, modalities)[0]
    state = init_state(c, init_params(replace(c, seed=seed), modalities))
    step = make_step(c, modalities, graph, null_text)
    for batch in training:
        state, _ = step(state, batch)

    @jax.jit
    def score(params, batch, k):
        undropped = replace(c, text=replace(c.text, text_dropout=0.0))
        return compute_loss(
            nnx.merge(graph, params), modalities, batch, k, config=undropped, null_text=null_text
        )[0]

    loss = float(
        np.mean([float(score(state.params, batch, jnp.int32(k))) for k, batch in enumerate(held)])
    )
    elapsed = f"{time.monotonic() - started:.0f} s"
    line = f"width {width}, rate {rate:g}, seed {seed}: {loss:.5f}, {elapsed}"
    print(line, file=sys.stderr, flush=True)
    return loss


def best(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Returns the rate of the lowest loss, None if it is the first or the last."""
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    i = int(np.argmin(finite))
    if i in (0, len(rates) - 1) or not math.isfinite(finite[i + 1]):
        return None
    a, b, _ = np.polyfit(np.log(rates[i - 1 : i + 2]), losses[i - 1 : i + 2], 2)
    return float(np.exp(-b / (2 * a)))


def verdict(bests: Sequence[float | None]) -> str:
    """Says whether the best rates of all widths agree."""
    found = [x for x in bests if x is not None]
    if len(found) < len(bests):
        return "no verdict: a best rate is at the edge of the sweep; widen --rates"
    factor = max(found) / min(found)
    answer = "agree" if factor <= AGREE else "DISAGREE"
    return f"the best rates {answer}: they differ by a factor of {factor:.2f}, {AGREE:g} is allowed"


if __name__ == "__main__":
    sys.exit(main())
