"""Text-to-image pretraining of the family at 256 px: the paper's first phase.

    mforce plan --config=t2i:size=3b3 --topology=v5p:4x4x4        # does it fit, and how fast?
    mforce train --config=t2i:size=370m,encoders=none --workdir=runs/t2i    # pixels and words

An example has 384 tokens. encoders=frozen is the paper's: latents of the FLUX.2 autoencoder (128
channels at 1/16) and states of UMT5-XXL (4096 channels), from a cache of mforce encode (data.cache)
or computed while training (text.encoder=umt5:PATH, modalities.image.autoencoder=flux2:PATH).
encoders=none takes patches of pixels and a learned table of words, and needs no weights.
"""

from modality_forcing.config import (
    Config,
    DataConfig,
    ModalityConfig,
    NoiseConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
)
from modality_forcing.config_file import choose, parse_arg
from modality_forcing.models.presets import size, with_head_dim
from modality_forcing.train.width_scaling import RECIPE

ENCODERS = {
    "frozen": (TextConfig(tokens=128, vocab_size=0, channels=4096), 128),
    "none": (TextConfig(tokens=128, vocab_size=32_768, channels=512), 0),
}


def get_config(arg: str = "") -> Config:
    """Takes size (370m, 800m, 3b3), encoders (frozen, none), head_dim (128; 256 for v6e, tpu7x)."""
    a = parse_arg(arg, size="370m", encoders="frozen", head_dim=128)
    text, latents = ENCODERS[choose("encoders", a["encoders"], tuple(ENCODERS))]
    return Config(
        name="t2i",
        data=DataConfig(resolution=256, workers=8),
        text=text,
        model=with_head_dim(size(a["size"]), a["head_dim"]),
        modalities={
            "image": ModalityConfig(
                kind="image",
                patch=16,
                latent_channels=latents,
                noise=NoiseConfig("logit_normal", timestep_shift=1.1),
            )
        },
        # Learning rates are not published: 3e-4 at width 1024, for matrices less at larger widths
        # (train/width_scaling.py).
        train=TrainConfig(
            steps=500_000,
            batch=1024,
            learning_rate=RECIPE.learning_rate,
            base_width=RECIPE.base_width,
            warmup_fraction=0.01,
            ema_decay=0.9999,
            log_every=100,
            save_every=2000,
            max_to_keep=3,
        ),
        sample=SampleConfig(steps=50, guidance={"image": 4.0}),
    )
