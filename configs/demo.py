"""The main job at the size of a laptop: 32 px procedural scenes, first text-to-image, then depth.

    mforce demo                                            # both phases, evaluation and a report
    mforce train --config=demo:phase=t2i --workdir=runs/t2i
    mforce train --config=demo:phase=forcing --config.train.init_from=runs/t2i --workdir=runs/mf

Expect 400 to 480 s for `mforce demo` on two idle cores, up to 20 minutes on a busy machine.
"""

from dataclasses import replace

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
from modality_forcing.data.sparsity import DEFAULT_MIXTURE
from modality_forcing.models.presets import size


def get_config(arg: str = "") -> Config:
    """Takes phase=t2i|forcing, resolution (32 or 64) and size (a name of the family)."""
    a = parse_arg(arg, phase="forcing", resolution=32, size="demo")
    phase = choose("phase", a["phase"], ("t2i", "forcing"))
    # Few tokens need less noise: the paper's shift of 1.1 is for 256 tokens of latents, and these
    # are 16 patches of pixels.
    image = ModalityConfig(
        kind="image", patch=8, noise=NoiseConfig("logit_normal", timestep_shift=0.0)
    )
    depth = ModalityConfig(
        kind="depth",
        patch=8,
        noise=NoiseConfig("plateau", timestep_shift=0.5),
        position_id=1,
        detokenizer_layers=1,
        cond_prob=0.15,
        loss_weight=1.5,
    )
    config = Config(
        name=phase,
        # `mforce demo` keeps its scenes in memory, which loader processes could not share. Larger
        # images need two processes to keep up.
        data=DataConfig(
            resolution=a["resolution"], num_scenes=32_768, workers=0 if a["resolution"] <= 32 else 2
        ),
        text=TextConfig(tokens=12, vocab_size=2048, channels=64),
        model=size(a["size"]),
        modalities={"image": image},
        train=TrainConfig(
            steps=4000,
            batch=16,
            learning_rate=3e-3,
            t_min=0.3,  # runs this short learn faster than with the public code's 0.05
            decay_fraction=0.5,  # much of the gain comes while the rate falls
            ema_decay=0.995,
            log_every=50,
            save_every=500,
        ),
        # One step from pure noise gives the mean of the possible depths; more steps give a sample,
        # with its pixel noise.
        sample=SampleConfig(
            steps=10,
            task_steps={"i2d": 1},
            guidance={"image": 2.0},
            log2_alpha=3.0,
            timestep_shift=0.0,
        ),
        eval=EvalConfig(examples=256, batch=64),
    )
    if phase == "t2i":
        return config
    # One modality is clean in 60% of the examples. In the paper the image is in 20%; here depth is
    # learned from those, and there is little time.
    return replace(
        config,
        modalities={"image": replace(image, cond_prob=0.45), "depth": depth},
        data=replace(config.data, sparsity_patterns=DEFAULT_MIXTURE),
        train=replace(config.train, steps=10_500, allow_missing_modalities=("depth",)),
    )
