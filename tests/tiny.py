"""The smallest complete run: a config, a batch and weights, none of them zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modality_forcing.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModalityConfig,
    ModelConfig,
    NoiseConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
)
from modality_forcing.modalities import base
from modality_forcing.train.state import abstract_model

MODEL = ModelConfig(
    width=32, mlp_dim=48, num_layers=2, heads=4, kv_heads=2, head_dim=8, attention="einsum"
)
MATRICES = ("w", "q", "k", "v", "gate", "up", "out", "down", "table")
TEXT = TextConfig(tokens=3, vocab_size=16, channels=8)
IMAGE = ModalityConfig(kind="image", patch=8)
# Patches differ from the image's, so that code cannot assume equal token counts.
DEPTH = ModalityConfig(
    kind="depth",
    patch=4,
    noise=NoiseConfig("plateau"),
    position_id=1,
    detokenizer_layers=1,
    cond_prob=0.2,
)


def t2i(**train: Any) -> Config:
    """A text-to-image run at 16 px: 4 image tokens and 3 of text."""
    return Config(
        name="t2i",
        seed=3,
        data=DataConfig(resolution=16, num_scenes=64, workers=0),
        text=TEXT,
        modalities={"image": IMAGE},
        model=MODEL,
        train=replace(TrainConfig(steps=6, batch=4, ema_decay=0.9, log_every=1), **train),
        sample=SampleConfig(steps=4),
        eval=EvalConfig(examples=4, batch=2),
    )


def forcing(**train: Any) -> Config:
    """The post-training run: 16 more tokens of depth; each modality is the condition in 20%."""
    config = t2i()
    modalities = {"image": replace(IMAGE, cond_prob=0.2), "depth": DEPTH}
    return replace(
        config,
        name="forcing",
        modalities=modalities,
        train=replace(config.train, **{"allow_missing_modalities": ("depth",), **train}),
    )


def normals(**train: Any) -> Config:
    """The run of three: 16 more tokens of normals."""
    config = forcing(**{"allow_missing_modalities": ("depth", "normals"), **train})
    third = replace(DEPTH, kind="normals", position_id=2)
    return replace(config, name="normals", modalities={**config.modalities, "normals": third})


def flux2(**train: Any) -> Config:
    """The post-training run with the FLUX.2 network: two blocks of each kind."""
    config = forcing(**train)
    model = replace(config.model, family="flux2", kv_heads=4, double_layers=2)
    return replace(config, name="flux2", model=model)


def batch(config: Config, b: int = 4, seed: int = 0, first: int = 0) -> dict[str, Any]:
    """A batch of noise, half of the depth and 0.7 of normals valid; example i has first + i."""
    rng = np.random.default_rng(seed)
    r, l = config.data.resolution, config.text.tokens
    arrays = {
        "image": rng.integers(0, 256, (b, r, r, 3), np.uint8),
        "depth": rng.uniform(0.5, 9.0, (b, r, r)).astype(np.float32),
        "valid": rng.random((b, r, r)) < 0.5,
        "text": {
            "tokens": rng.integers(0, config.text.vocab_size, (b, l), np.int32),
            "mask": np.arange(l)[None] < rng.integers(1, l + 1, (b, 1)),
        },
        "index": np.arange(first, first + b, dtype=np.int32),
    }
    if "normals" in config.modalities:
        n = rng.standard_normal((b, r, r, 3)) - (0, 0, 2)
        n /= np.linalg.norm(n, axis=-1, keepdims=True)
        arrays["normals"] = (n * (rng.random((b, r, r, 1)) < 0.7)).astype(np.float32)
    return arrays


def null_text(config: Config) -> dict[str, np.ndarray]:
    """The encoding of the empty caption."""
    return {
        "tokens": np.zeros(config.text.tokens, np.int32),
        "mask": np.zeros(config.text.tokens, bool),
    }


def take(tree: Any, rows: Any) -> Any:
    """Selects rows of every array of a batch."""
    return jax.tree.map(lambda x: x[rows], tree)


def network(config: Config, seed: int = 0, scale: float = 0.3) -> tuple[Any, dict[str, Any]]:
    """A network's graph and weights without zeros, since a fresh network always predicts 0."""
    graph, shapes = abstract_model(config, base.build(config))
    rng = np.random.default_rng(seed)

    def weight(path, leaf) -> jax.Array:
        noise = jnp.asarray(rng.standard_normal(leaf.shape, np.float32))
        if path[-1].key in ("q_scale", "k_scale"):
            return 1 + scale * noise
        if path[-1].key in MATRICES:
            return noise / np.sqrt(leaf.shape[-2], dtype=np.float32)
        return scale * noise

    return graph, jax.tree_util.tree_map_with_path(weight, shapes)


def perturbed(params: Mapping[str, Any], seed: int = 0, scale: float = 0.3) -> dict[str, Any]:
    """Weights plus Gaussian noise with standard deviation `scale`."""
    rng = np.random.default_rng(seed)

    def perturb(w) -> jax.Array:
        return jnp.asarray(np.asarray(w) + scale * rng.standard_normal(w.shape, np.float32))

    return jax.tree.map(perturb, dict(params))
