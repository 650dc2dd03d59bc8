"""A third modality: the demo's network post-trained on images, depth and surface normals.

    mforce train --config=demo:phase=t2i --workdir=runs/t2i
    mforce train --config=normals --config.train.init_from=runs/t2i --workdir=runs/normals
    mforce evaluate --checkpoint=runs/normals

Normals of procedural scenes are exact; of other data they are those of depth and intrinsics.
A quarter of the depth maps are sparse as in the demo, normals are not. An example has 60 tokens,
the demo's has 44.
"""

from dataclasses import replace

from modality_forcing.config import Config, ModalityConfig, NoiseConfig
from modality_forcing.config_file import load, parse_arg


def get_config(arg: str = "") -> Config:
    """Takes resolution (32 or 64) and size (a name of the family)."""
    a = parse_arg(arg, resolution=32, size="demo")
    config = load(f"demo:phase=forcing,resolution={a['resolution']},size={a['size']}")
    image, depth = config.modalities["image"], config.modalities["depth"]
    normals = ModalityConfig(
        kind="normals",
        patch=8,
        noise=NoiseConfig("plateau", timestep_shift=0.5),
        position_id=2,
        detokenizer_layers=1,
        cond_prob=0.1,
    )
    one_step = dict.fromkeys(("i2d", "i2n", "d2n", "n2d", "in2d", "id2n", "i2dn"), 1)
    return replace(
        config,
        name="normals",
        modalities={
            "image": replace(image, cond_prob=0.25, cond_prob_with={"depth": 0.1, "normals": 0.1}),
            "depth": replace(depth, cond_prob=0.25),
            "normals": normals,
        },
        train=replace(config.train, allow_missing_modalities=("depth", "normals")),
        sample=replace(config.sample, task_steps=one_step),
    )
