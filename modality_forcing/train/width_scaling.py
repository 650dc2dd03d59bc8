"""How a config changes with width, batch and horizon, so that runs of one study are tuned alike: rules and their sources."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.train.optim import decay_start_step, warmup_steps


@dataclass(frozen=True)
class Recipe:
    """Constants of a family, those of the text-to-image pretraining at 256 px by default; another family has its own."""

    # The point that was tuned, or stands for it.
    base_width: int = 1024  # the narrowest of the family (Duisterhof et al. 2026, table 2)
    learning_rate: float = 3e-4  # at base_width and base_batch; unpublished: as for 350M of this width in Brown et al. 2020
    base_batch: int = 1024  # unpublished as well; 384 tokens each, 0.4M tokens a step
    base_images: int = 512_000_000  # of the horizon at which base_batch is right: 500,000 steps
    weight_decay: float = (
        0.01  # of matrices; little: diffusion transformers train without (Peebles & Xie 2023)
    )
    b1: float = 0.9  # Kingma & Ba 2015
    b2: float = 0.95  # Brown et al. 2020
    mlp_ratio: int = 3  # channels of the FFN per channel of width (Duisterhof et al. 2026, table 2)

    # Powers of width / base_width, at fixed depth. train/optim.py applies them, with the reasons; a test holds it to them.
    matrix_rate: float = -1.0  # of sums over the width, heads too: Yang et al. 2022 (2203.03466), Zheng et al. 2025 (2505.15270)
    other_rate: float = 0.0  # of input matrices, gains, offsets and scalars: the same
    rate_times_decay: float = 0.0  # of matrices: Wang & Aitchison 2024 (2405.13698); Fan et al. 2025 (2510.15262) fit -0.5
    eps: float = -1.0  # of Adam: as gradients fall, Everett et al. 2024 (2407.05872)

    # Powers of batch / base_batch, and of images / base_images.
    batch_rate: float = 0.5  # of all learning rates under Adam: Malladi et al. 2022 (2205.10287)
    batch_decay: float = 0.5  # so that rate x decay per example stays: Wang & Aitchison 2024
    images_batch: float = 0.5  # of the batch above which data is wasted, whatever the size: Zhang et al. 2024 (2410.21676)

    # Shares of a run's steps. The rate does not depend on the horizon, or horizons could not share a trunk.
    warmup_fraction: float = 0.01  # configs/t2i.py: 5000 of 500,000 steps
    decay_fraction: float = (
        0.2  # as good as a cosine, falling by 1 - sqrt: Hagele et al. 2024 (2405.18392)
    )


RECIPE = Recipe()


def scale_width(config: Config, width: int, recipe: Recipe = RECIPE) -> Config:
    """Returns the config at another width and the same depth, learning as well as the one that was tuned.

    Heads keep their size and grow in number; kv heads keep their share of them, or come as near as divides (1280: 2 for
    10 query heads, where 1024 has 2 for 8). The learning rate stays as it is written, and belongs to train.base_width:
    the config's own width, unless it names another.
    Raises UserError if the width does not make whole heads.
    """
    c = config.model
    heads, rest = divmod(width * c.heads, c.width)
    if rest or heads < 1:
        unit = c.width // math.gcd(c.width, c.heads)
        below = max(width // unit, 1) * unit
        hint = f"take a multiple of {unit}, such as {below} or {below + unit}"
        raise UserError(
            f"width {width} does not divide into heads of {c.head_dim} channels", hint=hint
        )
    share = heads * c.kv_heads / c.heads
    kv_heads = min(
        (g for g in range(1, heads + 1) if heads % g == 0), key=lambda g: abs(math.log(g / share))
    )
    model = replace(
        c, width=width, mlp_dim=recipe.mlp_ratio * width, heads=heads, kv_heads=kv_heads
    )
    return replace(
        config,
        model=model,
        train=replace(config.train, base_width=config.train.base_width or c.width),
    )


def with_horizon(
    config: Config, images: int, recipe: Recipe = RECIPE, trunk: Config | None = None
) -> Config:
    """Returns the config of a run that sees this many images (at least: whole steps) and then has cooled down.

    trunk: a longer run that this one can branch off (train.branch_from), since it takes as many steps to warm up.
    Raises UserError if the images make no step, or if it would cool down before the trunk is warm.
    """
    if images < 1:
        raise UserError(f"{images} images are no horizon", hint="take at least one batch of them")
    steps = -(-images // config.train.batch)
    train = replace(
        config.train,
        steps=steps,
        schedule="wsd",
        warmup_fraction=recipe.warmup_fraction,
        decay_fraction=recipe.decay_fraction,
    )
    if trunk is not None:
        warm = warmup_steps(trunk.train)
        if warm > decay_start_step(train):
            told = f"{images} images are {steps} steps of {config.train.batch}, too few beside the trunk's {warm} of warm-up"
            raise UserError(told, hint="take more images, or a shorter warm-up")
        train = replace(
            train, warmup_fraction=min((warm + 0.5) / steps, 1.0)
        )  # the half: a share is cut down to whole steps
    return replace(config, train=train)


def scale_batch(config: Config, batch: int, recipe: Recipe = RECIPE) -> Config:
    """Returns the config at another batch and as many images: fewer, larger steps, and averages over as many examples."""
    c, ratio = config.train, batch / config.train.batch
    train = replace(
        c,
        batch=batch,
        steps=max(-(-c.steps * c.batch // batch), 1),
        learning_rate=c.learning_rate * ratio**recipe.batch_rate,
        weight_decay=c.weight_decay * ratio**recipe.batch_decay,
        b2=c.b2**ratio,
    )
    return replace(config, train=train)


def batch_for(images: int, recipe: Recipe = RECIPE) -> int:
    """Returns the batch for a horizon, a power of two: base_batch at base_images, growing with the data and not the model.

    A study of transfer keeps one batch over its horizons instead; this is for a single run.
    """
    wanted = recipe.base_batch * (images / recipe.base_images) ** recipe.images_batch
    return 2 ** max(round(math.log2(wanted)), 0)
