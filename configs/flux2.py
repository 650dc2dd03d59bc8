"""FLUX.2 [klein] post-trained on sparse depth, or fine-tuned on images alone.

    mforce plan --config=flux2:size=klein-9b --topology=v5p:4x4x4
    mforce train --config=flux2:size=klein-9b --workdir=runs/flux2 \
        --config.train.init_from=flux2-klein:black-forest-labs/FLUX.2-klein-base-9B \
        --config.data.source=prepared --config.data.root=prepared --config.data.cache=cached
    mforce train --config=flux2:size=klein-4b,task=t2i,lora=16 --workdir=runs/style ...

`task=forcing` is the paper's last experiment, as far as it is published: weights of text and image
in the double blocks are frozen, the network stays near klein by self-distillation, an example has
2560 tokens at 512 px. How the depth stream began is published nowhere; here it starts as a copy of
the image stream (`depth=copy`) or at random (`depth=random`). Optimizer, batch, learning rates and
steps are not published either. `task=t2i` trains the image stream alone, all of it. `lora=RANK`
trains low-rank updates of all block matrices instead of the weights themselves, and with
`task=forcing` the depth stream in full.

Text states and latents come from a cache (data.cache), or from text.encoder=qwen3:PATH and
modalities.image.autoencoder=flux2:PATH. `size=tiny` runs on scenes, pixels and words.
"""

from dataclasses import replace

from modality_forcing.config import (
    Config,
    DataConfig,
    ModalityConfig,
    ModelConfig,
    NoiseConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
)
from modality_forcing.config_file import choose, parse_arg
from modality_forcing.data.sparsity import DEFAULT_MIXTURE
from modality_forcing.models.presets import size

CHANNELS = {"klein-4b": 7680, "klein-9b": 12_288}  # of a text state: three layers of Qwen3
TINY = ModelConfig(
    family="flux2",
    width=64,
    mlp_dim=192,
    double_layers=1,
    num_layers=2,
    heads=2,
    kv_heads=2,
    head_dim=32,
)


def get_config(arg: str = "") -> Config:
    """Takes size (klein-4b, klein-9b, tiny), task (forcing, t2i), lora (a rank) and depth."""
    a = parse_arg(arg, size="klein-9b", task="forcing", lora=0, depth="copy")
    name = choose("size", a["size"], ("klein-4b", "klein-9b", "tiny"))
    task = choose("task", a["task"], ("forcing", "t2i"))
    copies = choose("depth", a["depth"], ("copy", "random")) == "copy"
    config = _klein(name) if name != "tiny" else _tiny()
    config = replace(
        config,
        name=f"flux2_{task}",
        train=replace(
            config.train,
            lora_rank=a["lora"],
            learning_rate=config.train.learning_rate * (4 if a["lora"] else 1),
        ),
    )
    if task == "t2i":
        return config
    image = config.modalities["image"]
    depth = ModalityConfig(
        kind="depth",
        patch=image.patch,
        noise=NoiseConfig("plateau", timestep_shift=1.1),
        position_id=1,
        detokenizer_layers=4 if name != "tiny" else 1,
        cond_prob=0.2,
    )
    train = replace(
        config.train,
        freeze=() if a["lora"] else ("double/layers/text", "double/layers/image"),
        distill=True,
        allow_missing_modalities=("depth",),
        copy_missing_from="image" if copies else "",
    )
    return replace(
        config,
        modalities={"image": replace(image, cond_prob=0.2), "depth": depth},
        data=replace(config.data, sparsity_patterns=DEFAULT_MIXTURE),
        train=train,
        sample=replace(config.sample, shift_rule="constant", timestep_shift=1.1),
    )


def _klein(name: str) -> Config:
    """Returns the config of klein's base model at 512 px."""
    return Config(
        data=DataConfig(resolution=512, workers=8),
        text=TextConfig(tokens=512, vocab_size=0, channels=CHANNELS[name]),
        model=size(name),
        modalities={"image": _image(patch=16, latent_channels=128)},
        train=TrainConfig(
            steps=20_000,
            batch=256,
            learning_rate=2.5e-5,
            warmup_fraction=0.02,
            ema_decay=0.999,
            # The published weights are bfloat16 too.
            frozen_dtype="bfloat16",
            log_every=50,
            save_every=1000,
        ),
        sample=SampleConfig(steps=50, guidance={"image": 4.0}, shift_rule="flux2"),
    )


def _tiny() -> Config:
    return Config(
        data=DataConfig(resolution=32, workers=0),
        model=TINY,
        modalities={"image": _image(patch=8)},
        train=TrainConfig(steps=200, batch=16, frozen_dtype="bfloat16", t_min=0.3),
        sample=SampleConfig(steps=4, guidance={"image": 2.0}, shift_rule="flux2"),
    )


def _image(patch: int, latent_channels: int = 0) -> ModalityConfig:
    return ModalityConfig(
        patch=patch,
        prediction="v",
        noise=NoiseConfig("logit_normal", timestep_shift=1.1),
        latent_channels=latent_channels,
    )
