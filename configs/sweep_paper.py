"""The paper's scaling study: none, 128M, 640M or 1.92B pretraining images at three widths, then forcing, all alike.

mforce plan --sweep=configs/sweep_paper.py                                        # what it costs
mforce sweep --config=configs/sweep_paper.py:t2i=/gcs/b/t2i,forcing=/gcs/b/forcing,benchmarks=/gcs/b/eval --workdir=/gcs/b/paper \
    --launcher=gke --jobs=12 --launcher-options='--cluster=C --topology=v5p:4x4x4 --image=IMAGE'

The paper has three sizes, which no law can be told from; `widths=all` adds the interpolating ones, at the same depth and
by the same recipe. The shorter pretraining runs branch off the longest one. Two more seeds of post-training at the smallest
width say how far single cells can be trusted: they start from the same pretraining runs. Scores are means over NYUv2, DIODE,
ETH3D and ScanNet (Duisterhof et al. 2026, figure 4).
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
    """Takes widths (paper or all), encoders (as configs/t2i.py), and where things are.

    t2i and forcing are prepared data, of one set and a folder of sets; t2i_cache and forcing_cache what mforce encode made
    of them; benchmarks the folder that they are unpacked in.
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
    widths = {"paper": PAPER, "all": tuple(sorted((*PAPER, *BETWEEN)))}[
        choose("widths", a["widths"], ("paper", "all"))
    ]
    points = chain(
        product(axis("width", *widths), axis("images", *IMAGES), axis("seed", 0)),
        product(axis("width", min(PAPER)), axis("images", *IMAGES), axis("seed", 1, 2)),
    )

    def cell(width: int, images: int, seed: int) -> Run:
        before = None
        if images:
            config = scale_width(load(f"t2i:size=370m,encoders={a['encoders']}"), width)
            before = horizons(
                "pretraining", _reading(config, a["t2i"], a["t2i_cache"]), IMAGES[1:]
            )[images]
        config = scale_width(load(f"forcing:size=370m,encoders={a['encoders']}"), width)
        if a["forcing"]:
            config = replace(config, data=load(f"mixtures:root={a['forcing']}").data)
        config = _reading(config, a["forcing"], a["forcing_cache"])
        train = replace(
            config.train,
            allow_missing_modalities=config.train.allow_missing_modalities if before else (),
        )
        return Run("forcing", replace(config, seed=seed, train=train), after=before)

    return sweep("paper", points, cell, Benchmarks("nyuv2,diode,eth3d,scannet", a["benchmarks"]))


def _reading(config: Config, root: str, cache: str) -> Config:
    """The config on prepared data; where a cache holds pictures encoded, they are not cropped any more."""
    if not root:
        return config
    data = replace(config.data, source="prepared", root=root, cache=cache)
    return replace(config, data=replace(data, min_crop=1.0, crop_jitter=0.0) if cache else data)
