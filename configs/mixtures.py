"""Post-training on prepared data sets, mixed by weight.

    mforce prepare --dataset=scannet --root=data/scannet --out=prepared/scannet --workers=16
    mforce train --config=mixtures:root=prepared,size=370m --config.train.init_from=runs/t2i \
        --workdir=runs/forcing
    mforce train --config=mixtures:root=prepared,sets=offline,size=demo --workdir=runs/offline

`sets=paper` are the paper's twelve, `sets=offline` a few for which small samples do. The weight of
a set is its number of prepared frames, so every frame is equally likely. (The paper has 17 million
frames in 58 thousand scenes and does not give the shares.) Set other weights, of any scale, with
--config.data.mixture.scannet=2.5. Without root, to look at or to plan, all weights are 1.
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
    # One of each kind of depth: scanner, accumulated scans, sensor, reconstruction, rendered.
    "offline": ("kitti_raw", "kitti_depth", "seven_scenes", "colmap", "tartanair"),
}


def get_config(arg: str = "") -> Config:
    """Takes root (the folder of the prepared sets), sets (paper or offline) and size."""
    a = parse_arg(arg, root="", sets="paper", size="370m")
    names = SETS[choose("sets", a["sets"], tuple(SETS))]
    root, size = a["root"], a["size"]
    base = "folder:distill=False" if size == "demo" else f"forcing:size={size},encoders=none"
    config = load(base)
    weights = {name: float(len(Shards(Path(root) / name, "")) if root else 1) for name in names}
    # Their depth is as sparse as the sensors made it. Crops and mirroring are our choice.
    data = replace(
        config.data,
        source="prepared",
        root=root,
        mixture=weights,
        sparsity_patterns={},
        min_crop=0.6,
        crop_jitter=1.0,
        flip_prob=0.5,
    )
    return replace(config, name=f"mixture_{a['sets']}", data=data)
