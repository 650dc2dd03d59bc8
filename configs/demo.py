"""The main job, small enough for a laptop: 32-px procedural scenes, text-to-image and then image + depth.

mforce demo                                                      # everything, see README
mforce train --config=configs/demo.py:phase=t2i --workdir=runs/t2i
mforce train --config=configs/demo.py:phase=forcing --config.train.init=runs/t2i --workdir=runs/forcing
"""

from modality_forcing.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModalityConfig,
    NoiseConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
)
from modality_forcing.config_file import choose, parse_arg
from modality_forcing.data.sparse import DEFAULT_MIXTURE
from modality_forcing.models.family import size


def get_config(arg: str = "") -> Config:
    """Takes phase=t2i|forcing and resolution (32 or 64)."""
    a = parse_arg(arg, phase="forcing", resolution=32, size="demo")
    phase = choose("phase", a["phase"], ("t2i", "forcing"))
    patch = 8  # 16 tokens a modality at 32 px; 4-pixel patches cost several times more there for no gain
    image = ModalityConfig(kind="image", patch=patch, noise=NoiseConfig("logit_normal", 1.1))
    depth = ModalityConfig(kind="depth", patch=patch, noise=NoiseConfig("plateau", 1.1), position_id=1, detokenizer=1, given=0.2)
    shared = TrainConfig(
        batch=32,
        learning_rate=2e-3,
        t_min=0.3,  # runs this short learn faster than with the public code's 0.05
        ema=0.995,
        log_every=20,
        save_every=400,
    )
    config = Config(
        name=phase,
        data=DataConfig(resolution=a["resolution"], count=32_768, workers=0),
        text=TextConfig(tokens=12, vocabulary=2048, channels=64),
        model=size(a["size"]),
        modalities={"image": image},
        train=shared,
        sample=SampleConfig(steps=20, guidance={"image": 2.0}, log2_alpha=3.0),
        eval=EvalConfig(examples=256, batch=64),
    )
    return to_forcing(config, image, depth) if phase == "forcing" else config


def to_forcing(config: Config, image: ModalityConfig, depth: ModalityConfig) -> Config:
    """Post-training: the same run with a second modality, sparse depth, and a given modality in 40% of the examples."""
    from dataclasses import replace

    return replace(
        config,
        modalities={"image": replace(image, given=0.2), "depth": depth},
        data=replace(config.data, sparse=DEFAULT_MIXTURE),
        train=replace(config.train, steps=2400, new=("depth",)),
    )
