"""Writes data/flux2_*.npz: outputs of diffusers' FLUX.2 transformer and klein pipeline.

python -m tests.parity.make_flux2_goldens           writes the files
python -m tests.parity.make_flux2_goldens --check   compares instead

Only outputs are stored: sizes, weights and inputs are functions of this file.
Written with diffusers 0.42.1 and torch 2.13.0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from modality_forcing.models.flux2_layouts import DIFFUSERS
from tests.flux2 import Sizes

FOLDER = Path(__file__).parent / "data"
SIZES = Sizes(width=96, head_dim=32, text=20, double=2, single=3, image=8)
GUIDED = Sizes(width=96, head_dim=32, text=20, double=2, single=3, image=8, guidance=True)
TOKENS = 7  # of text


@dataclass(frozen=True)
class Case:
    """One call of the transformer; references: grids of images that it is shown."""

    sizes: Sizes
    grid: tuple[int, int]
    references: tuple[tuple[int, int], ...] = ()
    guidance: float = 0.0
    second: bool = False  # the same number of tokens again, at position 1 of the first axis


CASES = {
    "square": Case(SIZES, (4, 4)),
    "wide": Case(SIZES, (3, 6)),
    "references": Case(SIZES, (3, 6), ((2, 3), (2, 2))),
    "guided": Case(GUIDED, (4, 4), guidance=0.5),
    "guided_4": Case(GUIDED, (4, 4), guidance=4.0),
    "depth_as_image": Case(SIZES, (3, 4), second=True),
}
PIPELINES = {"distilled": 4, "base": 6}  # steps
PIPELINE_GRID = (4, 6)
GUIDANCE = 4.0  # of the base model


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of mean 0 and variance 1, by name."""
    return 3**0.5 * (np.random.default_rng(crc32(name.encode())).random(shape) * 2 - 1)


def weights(sizes: Sizes) -> dict[str, np.ndarray]:
    """Tensors of a file in diffusers' layout, f32 [out in], with logits and outputs near 1."""

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        spread = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        return (spread * uniform(name, shape) + (len(shape) == 1)).astype(np.float32)

    return {n: tensor(n, shape) for n, shape in DIFFUSERS.shapes(sizes.shapes()).items()}


def inputs(name: str) -> dict[str, Any]:
    """Noisy tokens, levels, text states and reference tokens of a case."""
    case, c = CASES[name], CASES[name].sizes.image
    n = case.grid[0] * case.grid[1]
    return {
        "x": uniform("x", (2, n, c)).astype(np.float32),
        "second": uniform("second", (2, n, c)).astype(np.float32),
        "text": uniform("text", (2, TOKENS, case.sizes.text)).astype(np.float32),
        "t": np.array([0.3, 0.97], np.float32),
        "references": [
            uniform(f"reference {j}", (2, g[0] * g[1], c)).astype(np.float32)
            for j, g in enumerate(case.references)
        ],
    }


def pipeline_inputs(name: str) -> dict[str, np.ndarray]:
    """Noise [b c y x], and text states of two prompts and of the empty one."""
    shape = (2, TOKENS, SIZES.text)
    return {
        "noise": uniform(f"noise {name}", (2, SIZES.image, *PIPELINE_GRID)).astype(np.float32),
        "text": uniform("prompt", shape).astype(np.float32),
        "null": np.repeat(uniform("empty", shape[1:])[None], 2, 0).astype(np.float32),
    }


def _transformer(sizes: Sizes, dtype: str) -> Any:
    import torch
    from diffusers import Flux2Transformer2DModel

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    model = Flux2Transformer2DModel(
        in_channels=sizes.image,
        num_layers=sizes.double,
        num_single_layers=sizes.single,
        attention_head_dim=sizes.head_dim,
        num_attention_heads=sizes.width // sizes.head_dim,
        joint_attention_dim=sizes.text,
        axes_dims_rope=(sizes.head_dim // 4,) * 4,
        guidance_embeds=sizes.guidance,
    ).eval()
    stored = {name: torch.from_numpy(value) for name, value in weights(sizes).items()}
    model.load_state_dict(stored)  # strict: raises on unknown and on missing names
    return model.to(getattr(torch, dtype))


def _ids(time: int, grid: tuple[int, int]) -> np.ndarray:
    return np.array([(time, r, c, 0) for r in range(grid[0]) for c in range(grid[1])])


def reference(name: str, dtype: str) -> np.ndarray:
    """Returns the output f32 [b n c] of the noisy tokens by diffusers."""
    import torch

    case, given = CASES[name], inputs(name)
    tokens, ids = [given["x"]], [_ids(0, case.grid)]
    if case.second:
        tokens.append(given["second"])
        ids.append(_ids(1, case.grid))
    kept = sum(x.shape[1] for x in tokens)
    tokens += given["references"]
    ids += [_ids(10 * (j + 1), grid) for j, grid in enumerate(case.references)]
    to = getattr(torch, dtype)
    text_ids = np.array([(0, 0, 0, i) for i in range(TOKENS)])
    with torch.no_grad():
        out = _transformer(case.sizes, dtype)(
            hidden_states=torch.from_numpy(np.concatenate(tokens, axis=1)).to(to),
            encoder_hidden_states=torch.from_numpy(given["text"]).to(to),
            timestep=torch.from_numpy(given["t"]).to(to),
            guidance=torch.full((2,), case.guidance).to(to) if case.guidance else None,
            img_ids=torch.from_numpy(np.concatenate(ids)),
            txt_ids=torch.from_numpy(text_ids),
            return_dict=False,
        )[0]
    return out[:, :kept].float().numpy()


def pipeline(name: str) -> np.ndarray:
    """Returns the packed latents f32 [b n c] after the last step of diffusers' klein pipeline."""
    import torch
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    given = {key: torch.from_numpy(value) for key, value in pipeline_inputs(name).items()}
    vae = AutoencoderKLFlux2(
        latent_channels=SIZES.image // 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    run = Flux2KleinPipeline(
        scheduler=scheduler,
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=_transformer(SIZES, "float32"),
        is_distilled=name == "distilled",
    )
    seen = []

    def keep(_, i, t, values):
        seen.append(values["latents"])
        return values

    run.set_progress_bar_config(disable=True)
    run(
        prompt_embeds=given["text"],
        negative_prompt_embeds=given["null"],
        latents=given["noise"],
        height=16 * PIPELINE_GRID[0],
        width=16 * PIPELINE_GRID[1],
        num_inference_steps=PIPELINES[name],
        guidance_scale=GUIDANCE,
        output_type="latent",
        callback_on_step_end=keep,
    )
    assert len(seen) == PIPELINES[name]
    return seen[-1].float().numpy()


def outputs() -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays of each file."""
    found = {
        f"flux2_{name}.npz": {dtype: reference(name, dtype) for dtype in ("float32", "bfloat16")}
        for name in CASES
    }
    found["flux2_pipeline.npz"] = {name: pipeline(name) for name in PIPELINES}
    return found


def main(arguments: list[str]) -> int:
    """Writes the files, or compares with them."""
    worst = 0.0
    for file, arrays in outputs().items():
        if "--check" not in arguments:
            np.savez_compressed(FOLDER / file, **arrays)
            continue
        with np.load(FOLDER / file, allow_pickle=False) as stored:
            for key in arrays:
                scale = np.sqrt(np.mean(stored[key] ** 2))
                limit = 1 if key != "bfloat16" else 2**-10  # the roundings of a machine's kernels
                worst = max(worst, limit * np.abs(arrays[key] - stored[key]).max() / scale)
    print("written" if "--check" not in arguments else f"largest difference {worst:.1e}")
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
