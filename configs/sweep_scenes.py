"""The scaling study in miniature: the paper's question on the procedural world, for a CPU of two cores.

mforce sweep --config=configs/sweep_scenes.py --workdir=runs/scenes
mforce plan --sweep=configs/sweep_scenes.py

Four widths at a fixed depth of 4 blocks (9-fold in N, as the paper's), four pretraining sizes in steps of four (none, 1, 4 and
16 units of 5,000 images), two seeds: 32 cells, 24 pretraining runs and 32 post-training runs, all of these alike. A seed is one
of everything that is drawn in training: scenes, weights, noise. All cells are scored on the same 256 scenes, by one step from
pure noise (configs/demo.py).

Post-training has few scenes with depth (4,096, each seen five times) as the paper has 58 thousand beside billions of
pictures; pretraining has 32,768, so that the largest run sees each two or three times.

Some 40 min on two idle cores, estimated: steps of pretraining and post-training take 8 and 14 ms at width 32, 10 and 19 at 48,
14 and 26 at 64, 22 and 42 at 96, which is 12 min and 16 min over all; compiling 7, scoring 4, rendering the scenes 4.
"""

from dataclasses import replace

from configs import demo
from modality_forcing.config import Config
from modality_forcing.config_file import parse_arg
from modality_forcing.scaling.grid import Records, Run, Sweep, axis, product, sweep
from modality_forcing.scaling.recipe import horizon, scaled

BASE = 64  # the width that the demo's learning rate is taken to be right for
WIDTHS = (32, 48, 64, 96)
UNIT = 5_000  # images
SCENES_WITH_DEPTH = 4096


def get_sweep(arg: str = "") -> Sweep:
    """Takes unit (images), steps (of post-training), seeds and examples (held-out scenes)."""
    a = parse_arg(arg, unit=UNIT, steps=1200, seeds=2, examples=256)
    points = product(
        axis("width", *WIDTHS),
        axis("images", *(a["unit"] * n for n in (0, 1, 4, 16))),
        axis("seed", *range(a["seeds"])),
    )

    def cell(width: int, images: int, seed: int) -> Run:
        before = None
        if images:
            before = Run("pretraining", horizon(_config("t2i", width, seed, a["examples"]), images))
        config = _config("forcing", width, seed, a["examples"])
        train = replace(config.train, steps=a["steps"], new=config.train.new if before else ())
        return Run("forcing", replace(config, train=train, data=replace(config.data, count=SCENES_WITH_DEPTH)), after=before)

    return sweep("scenes", points, cell, Records(seed=0))


def _config(phase: str, width: int, seed: int, examples: int) -> Config:
    config = demo.get_config(f"phase={phase}")
    model = replace(config.model, width=BASE, ffn=3 * BASE, heads=4, kv_heads=2, head_dim=16)
    train = replace(config.train, log_every=100, save_every=1000)
    config = replace(config, seed=seed, model=model, train=train, eval=replace(config.eval, examples=examples))
    return scaled(config, width)
