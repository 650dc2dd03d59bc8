"""The scaling study in miniature: the paper's question on procedural scenes, on a CPU of two cores.

    mforce sweep --config=sweep_scenes --workdir=runs/scenes
    mforce plan --sweep=sweep_scenes

The axes are width at a fixed depth of 4 layers (9-fold in N, as in the paper), pretraining images
and post-training frames in steps of four, and seeds of scenes, weights and noise. Each width and
seed has one pretraining run, off which the shorter ones branch, and one post-training run after
each of them, off which in turn the shorter ones branch. All cells are scored on the same 256
scenes, by one step from pure noise (configs/demo.py). A sweep that is stopped has done the first
seed first.

Post-training has few scenes with depth (4,096; the longest run sees each 19 times), as the paper
has 58 thousand beside billions of images. Pretraining has 32,768; the largest run sees each two or
three times.

96 cells of 24 + 96 training runs, of which 16 + 64 are branches: an estimated hour and a half on
two idle cores.
"""

from dataclasses import replace

from modality_forcing.config import Config
from modality_forcing.config_file import load, parse_arg
from modality_forcing.sweeps.spec import Records, Run, Sweep, axis, horizons, product, sweep
from modality_forcing.train.width_scaling import scale_width

BASE = 64  # width at which the demo's learning rate is assumed to be right
WIDTHS = (32, 48, 64, 96)
IMAGES = (0, 5_000, 20_000, 80_000)
FRAMES = (4_800, 19_200, 76_800)
SCENES_WITH_DEPTH = 4096


def get_sweep(arg: str = "") -> Sweep:
    """Takes shorter (divides images and frames), seeds and examples (held-out scenes)."""
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
            config = _config("t2i", width, seed, a["examples"])
            before = horizons("pretraining", config, pretraining)[images]
        config = _config("forcing", width, seed, a["examples"])
        config = replace(config, data=replace(config.data, num_scenes=SCENES_WITH_DEPTH))
        if not before:
            config = replace(config, train=replace(config.train, allow_missing_modalities=()))
        return horizons("forcing", config, lengths, init_from=before)[frames]

    pretraining, lengths = images[1:], frames
    return sweep("scenes", points, cell, Records(seed=0))


def _config(phase: str, width: int, seed: int, examples: int) -> Config:
    """Returns the setting of the rows in docs/scaling: the varied world, and sparse depth only."""
    config = load(f"demo:phase={phase},world=varied,dense=0")
    model = replace(config.model, width=BASE, mlp_dim=3 * BASE, heads=4, kv_heads=2, head_dim=16)
    train = replace(config.train, base_width=0, t_min=0.3, log_every=100, save_every=1000)
    sample = replace(config.sample, log2_alpha=3.0, condition_guidance={})
    modalities = config.modalities
    if phase == "forcing":
        image, depth = modalities["image"], modalities["depth"]
        noise = replace(image.noise, timestep_shift=0.0)
        modalities = {
            "image": replace(image, cond_prob=0.45, noise=noise),
            "depth": replace(depth, cond_prob=0.15),
        }
    config = replace(
        config,
        seed=seed,
        model=model,
        train=train,
        modalities=modalities,
        sample=sample,
        eval=replace(config.eval, examples=examples),
    )
    return scale_width(config, width)
