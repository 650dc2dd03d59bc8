"""Post-training of the family on images and sparse depth at 256 px: the paper's second phase.

    mforce plan --config=forcing:size=3b3 --topology=v5p:4x4x4    # does it fit, and how fast?
    mforce train --config=forcing:size=370m,encoders=none --config.train.init_from=runs/t2i \
        --workdir=runs/forcing

An example has 640 tokens. The arguments are those of `t2i`, whose checkpoint this starts from.
"""

from dataclasses import replace

from modality_forcing.config import Config, ModalityConfig, NoiseConfig
from modality_forcing.config_file import load
from modality_forcing.data.sparsity import DEFAULT_MIXTURE


def get_config(arg: str = "") -> Config:
    """Takes size, encoders and head_dim, as configs/t2i.py."""
    config = load(f"t2i:{arg}")
    depth = ModalityConfig(
        kind="depth",
        patch=16,
        noise=NoiseConfig("plateau", timestep_shift=1.1),
        position_id=1,
        detokenizer_layers=4,
        cond_prob=0.2,
    )
    return replace(
        config,
        name="forcing",
        modalities={"image": replace(config.modalities["image"], cond_prob=0.2), "depth": depth},
        data=replace(config.data, sparsity_patterns=DEFAULT_MIXTURE),
        # 17M frames at 512 a step are 33,000 steps an epoch.
        train=replace(
            config.train,
            steps=66_000,
            batch=512,
            learning_rate=config.train.learning_rate / 3,
            allow_missing_modalities=("depth",),
        ),
    )
