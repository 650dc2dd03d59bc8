"""How a config changes with width and horizon so that runs of one study are tuned alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.train.optim import decay_start_step, warmup_steps


@dataclass(frozen=True)
class Recipe:
    """Constants of a model family, by default those of text-to-image pretraining at 256 px.

    The learning rate does not depend on the horizon, so that horizons can share a trunk.
    `train/optim.py` has the powers of the width that rates follow, and their sources. Under Adam, a
    batch of n times as many examples goes with n^0.5 times the rate (Malladi et al. 2022,
    2205.10287) and with n^0.5 times the weight decay, which keeps rate x decay per example (Wang &
    Aitchison 2024, 2405.13698).
    """

    base_width: int = 1024  # the narrowest of the family (Duisterhof et al. 2026, table 2)
    learning_rate: float = 3e-4  # unpublished; of 350M parameters in Brown et al. 2020
    mlp_ratio: int = 3  # mlp_dim / width (Duisterhof et al. 2026, table 2)
    warmup_fraction: float = 0.01  # of the steps; configs/t2i.py: 5000 of 500,000
    decay_fraction: float = 0.2  # 1 - sqrt, as good as a cosine: Hagele et al. 2024 (2405.18392)


RECIPE = Recipe()


def scale_width(config: Config, width: int, recipe: Recipe = RECIPE) -> Config:
    """Returns the config at another width and the same depth, with the tuning transferred.

    Heads keep their size and grow in number. kv heads keep their share of the heads, or the nearest
    that divides (1280: 2 for 10 query heads, where 1024 has 2 for 8). The learning rate keeps its
    value and belongs to train.base_width, by default the config's own width.
    Raises UserError if the width is no whole number of heads.
    """
    c = config.model
    heads, rest = divmod(width * c.heads, c.width)
    if rest or heads < 1:
        unit = c.width // math.gcd(c.width, c.heads)
        below = max(width // unit, 1) * unit
        what = f"width {width} does not divide into heads of {c.head_dim} channels"
        hint = f"take a multiple of {unit}, such as {below} or {below + unit}"
        raise UserError(what, hint=hint)
    share = heads * c.kv_heads / c.heads
    kv_heads = min(
        (g for g in range(1, heads + 1) if heads % g == 0), key=lambda g: abs(math.log(g / share))
    )
    model = replace(
        c, width=width, mlp_dim=recipe.mlp_ratio * width, heads=heads, kv_heads=kv_heads
    )
    base_width = config.train.base_width or c.width
    return replace(config, model=model, train=replace(config.train, base_width=base_width))


def with_horizon(
    config: Config, images: int, recipe: Recipe = RECIPE, trunk: Config | None = None
) -> Config:
    """Returns the config of a run over this many images, rounded up to whole steps.

    trunk: a longer run to branch off (train.branch_from); the branch warms up in as many steps.
    Raises UserError for no images, and for a run that would decay before the trunk has warmed up.
    """
    if images < 1:
        raise UserError(f"images is {images}", hint="a run needs at least 1 image")
    steps = -(-images // config.train.batch)
    train = replace(
        config.train,
        steps=steps,
        schedule="wsd",
        warmup_fraction=recipe.warmup_fraction,
        decay_fraction=recipe.decay_fraction,
    )
    if trunk is not None:
        warmup = warmup_steps(trunk.train)
        if warmup > decay_start_step(train):
            run = f"{images} images are {steps} steps of {config.train.batch}"
            what = f"{run}, fewer than the trunk's {warmup} warm-up steps allow"
            raise UserError(what, hint="take more images, or a shorter warm-up")
        # The half, because a share is rounded down to whole steps.
        train = replace(train, warmup_fraction=min((warmup + 0.5) / steps, 1.0))
    return replace(config, train=train)
