"""Modality Forcing's FLUX.2 network in NumPy, float64: an oracle written from its description.

It reads tensors by the names of the release (Black Forest Labs' and those of the depth stream) and
keeps their conventions: neighboring channels of a head rotate together, and the image's output is
noise - data. With the image alone it is checked against diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]  # matrices [out, in]
EPS = 1e-6
THETA = 2000.0


def silu(x: np.ndarray) -> np.ndarray:
    """X * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def embed(w: Weights, name: str, t: np.ndarray) -> np.ndarray:
    """A level [b] through the sinusoid and one of the MLPs.

    Angles are up to 1000, so that their float32 rounding, as in the public code, is part of the
    function.
    """
    exponent = np.float32(-np.log(1e4)) * np.arange(128, dtype=np.float32) / np.float32(128)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = ((np.float32(1000) * t.astype(np.float32))[:, None] * frequency).astype(np.float64)
    s = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    inner = silu(s @ w[f"{name}.in_layer.weight"].T)
    return inner @ w[f"{name}.out_layer.weight"].T


def layer_norm(x: np.ndarray) -> np.ndarray:
    """Without scale and offset."""
    y = x - x.mean(-1, keepdims=True)
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + EPS)


def rms_norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Of the channels of a head."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * scale


def rotate(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rotates pairs (2p, 2p + 1) of [b n h k] by positions [n 4]."""
    k = x.shape[-1]
    frequency = THETA ** (-2 * np.arange(k // 8) / (k // 4))
    angle = (ids[:, :, None] * frequency).reshape(len(ids), k // 2)[:, None]  # [n 1 k/2]
    first, second = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = first * np.cos(angle) - second * np.sin(angle)
    out[..., 1::2] = second * np.cos(angle) + first * np.sin(angle)
    return out


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Of all tokens to all, [b n h k] -> [b n h k]."""
    q, k = rotate(q, ids), rotate(k, ids)
    logits = np.einsum("bqhk,bshk->bhqs", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqs,bshk->bqhk", weights, v)


def heads(
    w: Weights, norm: str, qkv: np.ndarray, h: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits [b n 3d] into normalized queries and keys, and values."""
    b, n, d = qkv.shape
    q, k, v = qkv.reshape(b, n, 3, h, d // 3 // h).transpose(2, 0, 1, 3, 4)
    q = rms_norm(q, w[f"{norm}.query_norm.scale"])
    return q, rms_norm(k, w[f"{norm}.key_norm.scale"]), v


def gated(x: np.ndarray) -> np.ndarray:
    """SwiGLU of [a | b]."""
    a, b = np.split(x, 2, axis=-1)
    return silu(a) * b


def single(
    w: Weights, name: str, x: np.ndarray, rows: np.ndarray, ids: np.ndarray, *, h: int
) -> np.ndarray:
    """A single block; rows: modulation of each token [b n 3d]."""
    d = x.shape[-1]
    shift, scale, gate = np.split(rows, 3, axis=-1)
    fused = (layer_norm(x) * (1 + scale) + shift) @ w[f"{name}.linear1.weight"].T
    mixed = attention(*heads(w, f"{name}.norm", fused[..., : 3 * d], h), ids)
    joined = np.concatenate([mixed.reshape(x.shape), gated(fused[..., 3 * d :])], axis=-1)
    return x + gate * (joined @ w[f"{name}.linear2.weight"].T)


def double(
    w: Weights,
    name: str,
    x: dict[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    ids: np.ndarray,
    *,
    h: int,
) -> dict[str, np.ndarray]:
    """A double block; x and rows by stream: txt, img, depth."""
    six = {s: np.split(rows[s][:, None], 6, axis=-1) for s in x}
    parts = []
    for s, tokens in x.items():
        y = layer_norm(tokens) * (1 + six[s][1]) + six[s][0]
        qkv = y @ w[f"{name}.{s}_attn.qkv.weight"].T
        parts.append(heads(w, f"{name}.{s}_attn.norm", qkv, h))
    q, k, v = (np.concatenate(p, axis=1) for p in zip(*parts, strict=True))
    mixed = attention(q, k, v, ids).reshape(len(q), len(ids), -1)
    out, start = {}, 0
    for s, tokens in x.items():
        own = mixed[:, start : start + tokens.shape[1]]
        start += tokens.shape[1]
        y = tokens + six[s][2] * (own @ w[f"{name}.{s}_attn.proj.weight"].T)
        z = (layer_norm(y) * (1 + six[s][4]) + six[s][3]) @ w[f"{name}.{s}_mlp.0.weight"].T
        out[s] = y + six[s][5] * (gated(z) @ w[f"{name}.{s}_mlp.2.weight"].T)
    return out


def head(w: Weights, name: str, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The last layer: shift and scale, in this order, then a linear map."""
    rows = silu(vector) @ w[f"{name}.adaLN_modulation.1.weight"].T
    shift, scale = np.split(rows[:, None], 2, axis=-1)
    return (layer_norm(x) * (1 + scale) + shift) @ w[f"{name}.linear.weight"].T


def forward(
    weights: Weights,
    x: Mapping[str, np.ndarray],
    t: Mapping[str, np.ndarray],
    text: np.ndarray,
    *,
    grids: Mapping[str, tuple[int, int]],
    heads: int,
) -> dict[str, np.ndarray]:
    """Returns the image's velocity (noise - data) and the depth's clean tokens.

    x, t, grids by modality: image, or image and depth.
    """
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    h = heads
    vectors = {"img": embed(w, "time_in", t["image"])}
    streams = {"txt": text @ w["txt_in.weight"].T, "img": x["image"] @ w["img_in.weight"].T}
    ids = [[(0, 0, 0, i) for i in range(text.shape[1])]]
    ids.append([(0, r, c, 0) for r in range(grids["image"][0]) for c in range(grids["image"][1])])
    if "depth" in x:
        vectors["depth"] = embed(w, "time_in_depth", t["depth"])
        if "cross_alpha_img" in w:
            of_depth = embed(w, "time_in_depth_to_img", t["depth"])
            of_image = embed(w, "time_in_rgb_to_depth", t["image"])
            vectors["img"] = vectors["img"] + w["cross_alpha_img"] * of_depth
            vectors["depth"] = vectors["depth"] + w["cross_alpha_depth"] * of_image
        streams["depth"] = x["depth"] @ w["depth_in.weight"].T
        rows, columns = grids["depth"]
        ids.append([(1, r, c, 0) for r in range(rows) for c in range(columns)])
    every = np.concatenate(ids).astype(np.float64)

    def modulation(name: str, vector: np.ndarray) -> np.ndarray:
        return silu(vector) @ w[f"{name}.lin.weight"].T

    vectors["txt"] = vectors["img"]
    of = {s: modulation(f"double_stream_modulation_{s}", vectors[s]) for s in streams}
    for i in range(sum(name.endswith("img_attn.qkv.weight") for name in w)):
        streams = double(w, f"double_blocks.{i}", streams, of, every, h=h)
    names = {"txt": "single_stream_modulation", "img": "single_stream_modulation"}
    names["depth"] = "single_stream_modulation_depth"
    rows = np.concatenate(
        [
            np.repeat(modulation(names[s], vectors[s])[:, None], y.shape[1], axis=1)
            for s, y in streams.items()
        ],
        axis=1,
    )
    tokens = np.concatenate(list(streams.values()), axis=1)
    for i in range(sum(n.startswith("single_blocks") and "linear1" in n for n in w)):
        tokens = single(w, f"single_blocks.{i}", tokens, rows, every, h=h)
    start = text.shape[1]
    n = streams["img"].shape[1]
    out = {"image": head(w, "final_layer", tokens[:, start : start + n], vectors["img"])}
    if "depth" in x:
        y, own = tokens[:, start + n :], every[start + n :]
        if "depth_decoder_modulation.lin.weight" in w:
            row = modulation("depth_decoder_modulation", vectors["depth"])[:, None]
            for i in range(sum(n.startswith("depth_decoder_blocks") and "linear1" in n for n in w)):
                y = single(w, f"depth_decoder_blocks.{i}", y, row, own, h=h)
        out["depth"] = head(w, "depth_final_layer", y, vectors["depth"])
    return out
