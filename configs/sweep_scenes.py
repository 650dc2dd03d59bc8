"""The scaling study in miniature: the paper's question on the procedural world, for a CPU of two cores.

mforce sweep --config=configs/sweep_scenes.py --workdir=runs/scenes
mforce plan --sweep=configs/sweep_scenes.py

Widths at a fixed depth of 4 blocks (9-fold in N, as the paper's), pretraining sizes in steps of four, post-training lengths
in steps of four too, and seeds. A seed is one of everything that is drawn in training: scenes, weights, noise. Of each width
and seed there is one pretraining run, off which the shorter ones branch, and one post-training run after each of them, off
which in turn the shorter ones branch. All cells are scored on the same 256 scenes, by one step from pure noise
(configs/demo.py). The first seed comes first, so that a sweep that is stopped has it whole.

Post-training has few scenes with depth (4,096, the longest run sees each 19 times) as the paper has 58 thousand beside
billions of pictures; pretraining has 32,768, so that the largest run sees each two or three times.

96 cells of 24 + 96 training runs, of which 16 + 64 are branches; about an hour and a half on two idle cores, estimated.
"""

from dataclasses import replace

from modality_forcing.config import Config
from modality_forcing.config_file import load, parse_arg
from modality_forcing.sweeps.spec import Records, Run, Sweep, axis, horizons, product, sweep
from modality_forcing.train.width_scaling import scale_width

BASE = 64  # the width that the demo's learning rate is taken to be right for
WIDTHS = (32, 48, 64, 96)
IMAGES = (0, 5_000, 20_000, 80_000)
FRAMES = (4_800, 19_200, 76_800)
SCENES_WITH_DEPTH = 4096


def get_sweep(arg: str = "") -> Sweep:
    """Takes shorter (by which images and frames are divided), seeds and examples (held-out scenes)."""
    a = parse_arg(arg, shorter=1, seeds=2, examples=256)
    images, frames = (tuple(n // a["shorter"] for n in each) for each in (IMAGES, FRAMES))
    points = product(
        axis("seed", *range(a["seeds"])),
        axis("width", *WIDTHS),
        axis("images", *images),
        axis("frames", *frames),
    )

    def cell(seed: int, width: int, images: int, frames: int) -> Run:
        before = None
        if images:
            before = horizons(
                "pretraining", _config("t2i", width, seed, a["examples"]), pretraining
            )[images]
        config = _config("forcing", width, seed, a["examples"])
        train = replace(
            config.train,
            allow_missing_modalities=config.train.allow_missing_modalities if before else (),
        )
        config = replace(
            config, train=train, data=replace(config.data, num_scenes=SCENES_WITH_DEPTH)
        )
        return horizons("forcing", config, lengths, after=before)[frames]

    pretraining, lengths = images[1:], frames
    return sweep("scenes", points, cell, Records(seed=0))


def _config(phase: str, width: int, seed: int, examples: int) -> Config:
    config = load(f"demo:phase={phase}")
    model = replace(config.model, width=BASE, mlp_dim=3 * BASE, heads=4, kv_heads=2, head_dim=16)
    train = replace(config.train, log_every=100, save_every=1000)
    config = replace(
        config, seed=seed, model=model, train=train, eval=replace(config.eval, examples=examples)
    )
    return scale_width(config, width)
