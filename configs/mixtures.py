"""Post-training on prepared data sets, mixed by weight: the paper's twelve, or a few for which small samples do.

    mforce prepare --dataset=scannet --root=data/scannet --out=prepared/scannet --workers=16     # and so on, into one folder
    mforce train --config=configs/mixtures.py:root=prepared,size=370m --config.train.init_from=runs/t2i --workdir=runs/forcing
    mforce train --config=configs/mixtures.py:root=prepared,sets=offline,size=demo --workdir=runs/offline

The weight of a set is the number of frames that were prepared of it, so that every frame is as likely as any other. (The
paper has 17 million frames in 58 thousand scenes and does not say how many of them each set gives.) Other weights:
--config.data.mixture.scannet=2.5, of any scale. Without root, to look at or to plan, all weights are 1.
"""

from dataclasses import replace
from pathlib import Path

from modality_forcing.config import Config
from modality_forcing.config_file import choose, load, parse_arg
from modality_forcing.storage.shards import Shards

SETS = {
    # Duisterhof et al. 2026, the twelve sources of post-training.
    "paper": (
        "argoverse2",
        "aria_synthetic",
        "arkitscenes",
        "blendedmvs",
        "foundationstereo",
        "hypersim",
        "megadepth",
        "parallel_domain",
        "scannet",
        "tartanair",
        "taskonomy",
        "waymo",
    ),
    # One of each kind of depth: scanner, accumulated scans, sensor, points of a reconstruction, rendered.
    "offline": ("kitti_raw", "kitti_depth", "seven_scenes", "colmap", "tartanair"),
}


def get_config(arg: str = "") -> Config:
    """Takes root (the folder that holds the prepared ones), sets (paper or offline) and size (a name of the family, or demo)."""
    a = parse_arg(arg, root="", sets="paper", size="370m")
    names = SETS[choose("sets", a["sets"], tuple(SETS))]
    small = a["size"] == "demo"
    config = load("folder:distill=False" if small else f"forcing:size={a['size']},encoders=none")
    weights = {
        name: float(len(Shards(Path(a["root"]) / name, "")) if a["root"] else 1) for name in names
    }
    # Depth of these sets is as sparse as their sensors made it; crops and mirroring are ours.
    data = replace(
        config.data,
        source="prepared",
        root=a["root"],
        mixture=weights,
        sparsity_patterns={},
        min_crop=0.6,
        crop_jitter=1.0,
        flip_prob=0.5,
    )
    return replace(config, name=f"mixture_{a['sets']}", data=data)
