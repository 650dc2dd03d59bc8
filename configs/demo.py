"""The main job at the size of a laptop: 32 px procedural scenes, first text-to-image, then depth.

    mforce demo                                            # both phases, evaluation and a report
    mforce train --config=demo:phase=t2i --workdir=runs/t2i
    mforce train --config=demo:phase=forcing --config.train.init_from=runs/t2i --workdir=runs/mf

docs/demo.md says how its settings were chosen.
"""

from dataclasses import dataclass, replace

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
from modality_forcing.data.sparsity import with_dense
from modality_forcing.errors import UserError
from modality_forcing.models.presets import size
from modality_forcing.synthetic.world import WORLDS


@dataclass(frozen=True)
class Scale:
    """A budget."""

    t2i_steps: int
    forcing_steps: int
    batch: int = 16
    image_patch: int = 8
    num_scenes: int = 32_768
    width: int = 96
    num_layers: int = 4


SCALES = {
    "short": Scale(t2i_steps=4000, forcing_steps=12_000),
    # Small patches draw better and take twice the time of a step.
    "hour": Scale(7500, 14_000, batch=32, image_patch=4, num_scenes=65_536),
    "night": Scale(
        10_000, 25_000, batch=32, image_patch=4, num_scenes=131_072, width=192, num_layers=6
    ),
}


def get_config(arg: str = "") -> Config:
    """Takes phase=t2i|forcing, scale=short|hour|night, world=plain|varied, dense (the share of
    dense maps in post-training; 0: sparse ones only), resolution (32 or 64) and size (a name of the
    family).
    """
    a = parse_arg(
        arg, phase="forcing", scale="short", world="plain", dense=0.75, resolution=32, size="demo"
    )
    phase = choose("phase", a["phase"], ("t2i", "forcing"))
    scale = SCALES[choose("scale", a["scale"], tuple(SCALES))]
    choose("world", a["world"], tuple(WORLDS))
    if not 0 <= a["dense"] <= 1:
        raise UserError(f"config argument dense={a['dense']:g}", hint="it is a share, from 0 to 1")
    # Few tokens need less noise: the paper's shift of 1.1 is for 256 tokens of latents.
    image = ModalityConfig(
        kind="image", patch=scale.image_patch, noise=NoiseConfig("logit_normal", timestep_shift=0.0)
    )
    depth = ModalityConfig(
        kind="depth",
        patch=8,
        noise=NoiseConfig("plateau", timestep_shift=0.5),
        position_id=1,
        detokenizer_layers=1,
        cond_prob=0.4,
        loss_weight=1.5,
    )
    model = size(a["size"])
    if a["size"] == "demo":
        model = replace(
            model,
            width=scale.width,
            mlp_dim=3 * scale.width,
            head_dim=scale.width // 4,
            num_layers=scale.num_layers,
            unroll=scale.num_layers,
        )
    config = Config(
        name=phase,
        # `mforce demo` keeps its scenes in memory, which loader processes could not share. Larger
        # images need two processes to keep up.
        data=DataConfig(
            resolution=a["resolution"],
            num_scenes=scale.num_scenes,
            world=a["world"],
            workers=0 if a["resolution"] <= 32 else 2,
        ),
        text=TextConfig(tokens=12, vocab_size=2048, channels=64),
        model=model,
        modalities={"image": image},
        train=TrainConfig(
            steps=scale.t2i_steps,
            batch=scale.batch,
            learning_rate=3e-3,
            base_width=96 if a["size"] == "demo" else 0,
            # With the public code's 0.05, high noise has a hundredth of low noise's weight, and
            # there a given modality says most.
            t_min=0.6,
            decay_fraction=0.5,  # much of the gain comes while the rate falls
            ema_decay=0.995,
            log_every=50,
            save_every=500,
        ),
        # One step from pure noise gives the mean of the possible depths; more steps give a sample,
        # with its pixel noise. log2_alpha is the paper's: depth takes few steps, from a clean
        # image.
        sample=SampleConfig(
            steps=10,
            task_steps={"i2d": 1},
            guidance={"image": 2.0},
            log2_alpha=5.0,
            timestep_shift=0.0,
        ),
        eval=EvalConfig(examples=256, batch=64),
    )
    if phase == "t2i":
        return config
    # One modality is clean in 80% of the examples (paper: 40%): there is little time, and joint
    # generation learns from conditional generation too.
    return replace(
        config,
        modalities={
            # Post-training looks at more noise: there depth decides what the image becomes.
            "image": replace(image, cond_prob=0.4, noise=replace(image.noise, timestep_shift=1.0)),
            "depth": depth,
        },
        data=replace(config.data, sparsity_patterns=with_dense(a["dense"])),
        train=replace(config.train, steps=scale.forcing_steps, allow_missing_modalities=("depth",)),
        sample=replace(config.sample, condition_guidance={"depth": 2.0}),
    )
