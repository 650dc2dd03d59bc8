"""The paper's scaling study: 0, 128M, 640M or 1.92B pretraining images, then equal post-training.

    mforce plan --sweep=sweep_paper                                             # what it costs
    mforce sweep --config=sweep_paper:t2i=/gcs/b/t2i,forcing=/gcs/b/forcing,benchmarks=/gcs/b/eval \
        --workdir=/gcs/b/paper --launcher=gke --jobs=12 \
        --launcher-options='--cluster=C --topology=v5p:4x4x4 --image=IMAGE'

The paper has three widths, too few to fit a law; `widths=all` adds interpolating ones, at the same
depth and by the same recipe. The shorter pretraining runs branch off the longest. Two more seeds of
post-training at the smallest width, from the same pretraining runs, show the noise of single cells.
Scores are means over NYUv2, DIODE, ETH3D and ScanNet (Duisterhof et al. 2026, figure 4).
"""

from dataclasses import replace

from modality_forcing.config import Config
from modality_forcing.config_file import choose, load, parse_arg
from modality_forcing.sweeps.spec import (
    Benchmarks,
    Run,
    Sweep,
    axis,
    chain,
    horizons,
    product,
    sweep,
)
from modality_forcing.train.width_scaling import scale_width

PAPER = (1024, 1536, 3072)
BETWEEN = (512, 768, 1280, 2048, 2560)
IMAGES = (0, 128_000_000, 640_000_000, 1_920_000_000)


def get_sweep(arg: str = "") -> Sweep:
    """Takes widths (paper or all), encoders (as t2i) and paths.

    t2i: a prepared set. forcing: a folder of prepared sets. t2i_cache, forcing_cache: their caches
    by mforce encode. benchmarks: the folder of the benchmarks.
    """
    a = parse_arg(
        arg,
        widths="all",
        encoders="frozen",
        t2i="",
        t2i_cache="",
        forcing="",
        forcing_cache="",
        benchmarks="data/eval",
    )
    all_widths = choose("widths", a["widths"], ("paper", "all")) == "all"
    widths = sorted((*PAPER, *BETWEEN)) if all_widths else PAPER
    points = chain(
        product(axis("width", *widths), axis("images", *IMAGES), axis("seed", 0)),
        product(axis("width", min(PAPER)), axis("images", *IMAGES), axis("seed", 1, 2)),
    )

    def cell(width: int, images: int, seed: int) -> Run:
        before = None
        if images:
            config = scale_width(load(f"t2i:size=370m,encoders={a['encoders']}"), width)
            config = _with_data(config, a["t2i"], a["t2i_cache"])
            before = horizons("pretraining", config, IMAGES[1:])[images]
        config = scale_width(load(f"forcing:size=370m,encoders={a['encoders']}"), width)
        if a["forcing"]:
            config = replace(config, data=load(f"mixtures:root={a['forcing']}").data)
        config = replace(_with_data(config, a["forcing"], a["forcing_cache"]), seed=seed)
        if not before:
            config = replace(config, train=replace(config.train, allow_missing_modalities=()))
        return Run("forcing", config, init_from=before)

    return sweep("paper", points, cell, Benchmarks("nyuv2,diode,eth3d,scannet", a["benchmarks"]))


def _with_data(config: Config, root: str, cache: str) -> Config:
    """Returns the config on prepared data. Cached latents cannot be cropped."""
    if not root:
        return config
    data = replace(config.data, source="prepared", root=root, cache=cache)
    return replace(config, data=replace(data, min_crop=1.0, crop_jitter=0.0) if cache else data)
