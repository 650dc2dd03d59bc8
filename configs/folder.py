"""Your own folder of images, with sparse or dense depth and optional captions.

    mforce train --config=folder:phase=t2i --config.data.root=photos --workdir=runs/photos_t2i
    mforce train --config=folder --config.data.root=photos --config.data.depth_scale=0.001 \
        --config.train.init_from=runs/photos_t2i --workdir=runs/photos
    mforce sample --checkpoint runs/photos --mode i2d --image photo.jpg --out out

data/folder.py describes the layout. Depth is .npy of floats, or 16-bit PNG times data.depth_scale;
0, NaN, data.depth_invalid and what is beyond data.depth_max are unknown. It may have any size of
the image's aspect, and any sparsity. The second phase stays near the first by self-distillation
(paper, eq. 8); without a first phase pass `:distill=False`.
"""

from dataclasses import replace

from modality_forcing.config import (
    Config,
    DataConfig,
    ModalityConfig,
    NoiseConfig,
    SampleConfig,
    TrainConfig,
)
from modality_forcing.config_file import choose, parse_arg
from modality_forcing.models.presets import size


def get_config(arg: str = "") -> Config:
    """Takes phase=t2i|forcing, resolution, size (a name of the family) and distill."""
    a = parse_arg(arg, phase="forcing", resolution=64, size="demo", distill=True)
    phase = choose("phase", a["phase"], ("t2i", "forcing"))
    image = ModalityConfig(
        kind="image", patch=8, noise=NoiseConfig("logit_normal", timestep_shift=0.0)
    )
    depth = ModalityConfig(
        kind="depth",
        patch=8,
        noise=NoiseConfig("plateau", timestep_shift=0.5),
        position_id=1,
        detokenizer_layers=1,
        cond_prob=0.2,
    )
    config = Config(
        name=f"folder_{phase}",
        data=DataConfig(source="folder", resolution=a["resolution"], workers=1),
        model=size(a["size"]),
        modalities={"image": image},
        train=TrainConfig(steps=2000, batch=16, t_min=0.3, ema_decay=0.995, save_every=200),
        sample=SampleConfig(steps=20, guidance={"image": 2.0}, timestep_shift=0.0),
    )
    if phase == "t2i":
        return config
    train = (
        replace(config.train, allow_missing_modalities=("depth",), distill=a["distill"])
        if a["distill"]
        else config.train
    )
    return replace(
        config, modalities={"image": replace(image, cond_prob=0.2), "depth": depth}, train=train
    )
