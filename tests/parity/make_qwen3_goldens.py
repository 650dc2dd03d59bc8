"""Writes data/qwen3_*.npz: hidden states of transformers' Qwen3Model (needs torch).

python -m tests.parity.make_qwen3_goldens           writes the files
python -m tests.parity.make_qwen3_goldens --check   compares instead

Only outputs are stored: configs, weights and inputs are functions of this file (NumPy only).
Written with transformers 5.24.0 and torch 2.13.0.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

FOLDER = Path(__file__).parent / "data"
SHARED = {
    "model_type": "qwen3",
    "vocab_size": 101,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "hidden_act": "silu",
    "attention_bias": False,
}
CASES: dict[str, dict[str, Any]] = {
    # The published depth and states; heads x head dim is not the width.
    "klein": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 28,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "long": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 20,
    },
}
TAPS = {"klein": (9, 18, 27), "long": (2, 3)}
LENGTHS = {"klein": (20, 7, 1), "long": (512, 300)}  # of the prompts; padded to the longest
EVERY = {"klein": 1, "long": 19}  # positions of which states are stored: every 19th
KINDS = {  # of the states in a file: attention, and type of weights
    "eager": ("eager", "float32"),
    "sdpa": ("sdpa", "float32"),
    "bfloat16": ("eager", "bfloat16"),
}


def config(case: str) -> dict[str, Any]:
    """The case's config.json, as transformers 4 writes it."""
    return SHARED | CASES[case]


def weights(c: dict[str, Any], tied: bool = False) -> dict[str, np.ndarray]:
    """Tensors of a Qwen3ForCausalLM's file, f32 [out in]: uniform, with logits near 1.

    tied: the head is the embedding, and no tensor of the file.
    """
    d, f, k = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    h, g = c["num_attention_heads"], c["num_key_value_heads"]
    block = {
        "input_layernorm": ((d,), 0.3),
        "post_attention_layernorm": ((d,), 0.3),
        "self_attn.q_norm": ((k,), 0.3),
        "self_attn.k_norm": ((k,), 0.3),
        "self_attn.q_proj": ((h * k, d), d**-0.5),
        "self_attn.k_proj": ((g * k, d), d**-0.5),
        "self_attn.v_proj": ((g * k, d), d**-0.5),
        "self_attn.o_proj": ((d, h * k), (h * k) ** -0.5),
        "mlp.gate_proj": ((f, d), d**-0.5),
        "mlp.up_proj": ((f, d), d**-0.5),
        "mlp.down_proj": ((d, f), f**-0.5),
    }
    layers = range(c["num_hidden_layers"])
    shapes = {f"model.layers.{i}.{name}.weight": of for i in layers for name, of in block.items()}
    shapes["model.embed_tokens.weight"] = ((c["vocab_size"], d), 1.0)
    shapes["model.norm.weight"] = ((d,), 0.3)
    if not tied:
        shapes["lm_head.weight"] = ((c["vocab_size"], d), d**-0.5)

    def tensor(name: str, shape: tuple[int, ...], spread: float) -> np.ndarray:
        uniform = np.random.default_rng(crc32(name.encode())).random(shape) * 2 - 1
        return (3**0.5 * spread * uniform + (1.0 if "norm" in name else 0.0)).astype(np.float32)

    return {name: tensor(name, *of) for name, of in shapes.items()}


def inputs(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask [b l]: random tokens, then padding, which has the last id."""
    lengths = np.array(LENGTHS[case])[:, None]
    l = int(lengths.max())
    uniform = np.random.default_rng(crc32(case.encode())).random((len(lengths), l))
    mask = np.arange(l) < lengths
    pad = SHARED["vocab_size"] - 1
    return np.where(mask, (uniform * pad).astype(np.int64), pad), mask


def reference(case: str, kind: str) -> np.ndarray:
    """Returns the taps' states f32 [b positions d] by transformers, padding included."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    attention, dtype = KINDS[kind]
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    ids, mask = inputs(case)
    model = Qwen3Model._from_config(Qwen3Config(**config(case)), attn_implementation=attention)
    stored = {
        name.removeprefix("model."): torch.from_numpy(value)
        for name, value in weights(config(case), tied=True).items()
    }
    model.load_state_dict(stored)  # strict: raises on unknown and on missing names
    model = model.eval().to(getattr(torch, dtype))
    with torch.no_grad():
        states = model(
            torch.from_numpy(ids),
            torch.from_numpy(mask.astype(np.int64)),
            output_hidden_states=True,
        ).hidden_states
    taps = torch.cat([states[tap] for tap in TAPS[case]], dim=-1)
    return taps[:, :: EVERY[case]].float().numpy()


def error(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the root mean square of b."""
    return float(np.abs(a - b).max() / np.sqrt(np.mean(np.square(b))))


def check_config(case: str) -> None:
    """Asserts that what transformers writes as config.json is read as the case's sizes."""
    from transformers import Qwen3Config as Theirs

    from modality_forcing.encoders.qwen3 import Qwen3Config

    taps = {"taps": TAPS[case]}
    written = Theirs(**config(case)).to_dict()
    assert Qwen3Config.from_dict(written, **taps) == Qwen3Config.from_dict(config(case), **taps)


def main(check: bool) -> None:
    for case in CASES:
        check_config(case)
        path = FOLDER / f"qwen3_{case}.npz"
        made = {kind: reference(case, kind) for kind in KINDS}
        halves = made["bfloat16"].view(np.uint32) >> 16  # exact: the values are bfloat16
        if not check:
            stored = {**made, "bfloat16": halves.astype(np.uint16)}
            np.savez_compressed(path, **stored)
        with np.load(path) as stored:
            off = {kind: error(made[kind], stored[kind]) for kind in ("eager", "sdpa")}
            same = np.mean(stored["bfloat16"] == halves)
        print(
            f"{case}: eager within {off['eager']:.1e}, sdpa within {off['sdpa']:.1e}, "
            f"bfloat16 {same:.1%} equal; sdpa differs by {error(made['sdpa'], made['eager']):.1e} "
            f"from eager, bfloat16 by {error(made['bfloat16'], made['eager']):.1e}"
        )
        assert max(off.values()) < 5e-6 and same > 0.99, path


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
