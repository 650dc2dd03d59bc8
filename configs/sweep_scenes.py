"""The scaling study in miniature: the paper's question on procedural scenes, on a CPU of two cores.

    mforce sweep --config=sweep_scenes --workdir=runs/scenes
    mforce plan --sweep=sweep_scenes
    mforce train --config=sweep_scenes:phase=t2i,width=48 --workdir=runs/t2i  # a run of it alone

The demo's recipe. The axes are width at a fixed depth of 4 layers (16-fold in N), pretraining
images and post-training frames in steps of four, and seeds of scenes, weights and noise. Each width
and seed has one pretraining run, off which the shorter one branches, and one post-training run
after each of them, off which in turn the shorter ones branch. All cells are scored on the same 256
scenes, by one step from pure noise. A sweep that is stopped has done the first seed first.

Post-training has few scenes with depth (4,096; the longest run sees each 19 times), as the paper
has 58 thousand beside billions of images. Pretraining has 32,768; the largest run sees each two or
three times.

54 cells of 12 + 54 training runs, of which 6 + 36 are branches: less than an hour of one core.
"""

from dataclasses import replace

from modality_forcing.config import Config
from modality_forcing.config_file import check_range, load, parse_arg
from modality_forcing.sweeps.spec import Records, Run, Sweep, axis, horizons, product, sweep
from modality_forcing.train.width_scaling import scale_width

WIDTHS = (24, 48, 96)
IMAGES = (0, 20_000, 80_000)
FRAMES = (4_800, 19_200, 76_800)
SCENES_WITH_DEPTH = 4096


def get_config(arg: str = "") -> Config:
    """Takes phase=t2i|forcing, width and examples (held-out scenes)."""
    a = parse_arg(arg, phase="forcing", width=96, examples=256)
    check_range("examples", a["examples"], 1)
    config = load(f"demo:phase={a['phase']}")
    data = config.data
    if a["phase"] == "forcing":
        data = replace(data, num_scenes=SCENES_WITH_DEPTH)
    evaluation = replace(config.eval, examples=a["examples"])
    train = replace(config.train, log_every=100, save_every=1000)
    return scale_width(replace(config, data=data, eval=evaluation, train=train), a["width"])


def get_sweep(arg: str = "") -> Sweep:
    """Takes shorter (divides images and frames), seeds and examples (held-out scenes)."""
    a = parse_arg(arg, shorter=1, seeds=2, examples=256)
    check_range("shorter", a["shorter"], 1, 100)
    check_range("seeds", a["seeds"], 1)
    images, frames = (tuple(n // a["shorter"] for n in each) for each in (IMAGES, FRAMES))
    points = product(
        axis("seed", *range(a["seeds"])),
        axis("width", *WIDTHS),
        axis("images", *images),
        axis("frames", *frames),
    )

    def config(phase: str, width: int, seed: int) -> Config:
        made = load(f"sweep_scenes:phase={phase},width={width},examples={a['examples']}")
        return replace(made, seed=seed)

    def cell(seed: int, width: int, images: int, frames: int) -> Run:
        forcing, before = config("forcing", width, seed), None
        if images:
            t2i = config("t2i", width, seed)
            before = horizons("pretraining", t2i, pretraining)[images]
        else:
            train = replace(forcing.train, allow_missing_modalities=())
            forcing = replace(forcing, train=train)
        return horizons("forcing", forcing, lengths, init_from=before)[frames]

    pretraining, lengths = images[1:], frames
    return sweep("scenes", points, cell, Records(seed=0))
