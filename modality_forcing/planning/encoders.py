"""Plans of the frozen encoders: each compiled for the chips of a host, and its highest rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from modality_forcing.config import MeshConfig
from modality_forcing.encoders.flux2_vae import Decoder, Encoder, VAEConfig
from modality_forcing.encoders.frozen import BATCH, fsdp_sharding, program, replicated
from modality_forcing.encoders.qwen3 import Qwen3Config
from modality_forcing.encoders.text_encoders import KINDS
from modality_forcing.encoders.umt5 import UMT5Config
from modality_forcing.encoders.weights import named_leaves
from modality_forcing.planning.analysis import NOT_MODELED, Analysis, analyze
from modality_forcing.planning.compile import Target, compile_lowered, device_bytes
from modality_forcing.train import sharding
from modality_forcing.tree import JsonObject

XXL = UMT5Config(
    vocab_size=256_384, width=4096, mlp_dim=10_240, heads=64, head_dim=64, num_layers=24
)
_QWEN3 = Qwen3Config(
    vocab_size=151_936,
    hidden=4096,
    mlp_dim=12_288,
    heads=32,
    kv_heads=8,
    head_dim=128,
    num_layers=36,
    rope_theta=1e6,
)


@dataclass(frozen=True)
class TextPart:
    """A published text encoder: its kind, its sizes, and the FLOPs of a batch of b captions."""

    kind: str
    config: UMT5Config | Qwen3Config
    flops: Callable[[Any, int, int], int]

    @property
    def tokens(self) -> int:
        """Of a caption, as it is encoded by default."""
        return KINDS[self.kind].tokens


def text_flops(c: UMT5Config, b: int, l: int) -> int:
    """Returns the FLOPs of all products of a UMT5 encoder, 2 per multiply-add."""
    inner = c.heads * c.head_dim
    return (
        2 * b * l * c.num_layers * (4 * c.width * inner + 3 * c.width * c.mlp_dim + 2 * l * inner)
    )


def qwen3_flops(c: Qwen3Config, b: int, l: int) -> int:
    """Returns the FLOPs of all products of a Qwen3 encoder, 2 per multiply-add."""
    inner, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    block = c.hidden * (2 * inner + 2 * shared + 3 * c.mlp_dim) + 2 * l * inner
    return 2 * b * l * c.blocks * block


TEXTS = {  # by part; "text" is UMT5-XXL
    "text": TextPart("umt5", XXL, text_flops),
    "qwen3-4b": TextPart("qwen3", replace(_QWEN3, hidden=2560, mlp_dim=9728), qwen3_flops),
    "qwen3-8b": TextPart("qwen3", _QWEN3, qwen3_flops),
}
PARTS = (*TEXTS, "encoder", "decoder")  # text encoders, and the halves of FLUX.2's autoencoder
BATCHES = (8, 16, 32, 64, 128)  # per device, that the search tries


@dataclass(frozen=True, kw_only=True)
class EncodePlan(Analysis):
    """One part on the chips of one host. Several hosts encode independently, each at this rate."""

    part: str
    batch: int  # of all devices
    units: int  # tokens or images of a batch

    @property
    def rate(self) -> float | None:
        """Upper bound of tokens or images per second."""
        return self.units / self.bound.seconds if self.bound else None


def plan(
    part: str, target: Target, each: int, tokens: int = 0, resolution: int = 256
) -> EncodePlan:
    """Compiles a part for a target with `each` captions or images per device.

    tokens: of a caption; by default those of the encoder's kind.
    """
    text = TEXTS.get(part)
    tokens = tokens or (text.tokens if text else 0)
    mesh = sharding.make_mesh(MeshConfig(), target.devices)
    batch = each * mesh.size
    graph, weights = nnx.split(nnx.eval_shape(_build(part)))
    sharding_of = fsdp_sharding if text else replicated
    leaves, tree = named_leaves(weights)
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(mesh, name, x.shape))
        for name, x in leaves.items()
    ]
    params = jax.tree_util.tree_unflatten(tree, shapes)
    inputs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, BATCH))
        for x in _inputs(part, batch, tokens, resolution)
    ]
    done = compile_lowered(
        lambda: program("text" if text else part, graph, mesh).lower(params, *inputs),
        target,
        device_bytes((params, inputs)),
    )
    if text:
        flops = text.flops(text.config, batch, tokens)
    else:
        flops = image_flops(part, batch, resolution)
    return EncodePlan(
        part=part,
        batch=batch,
        units=batch * tokens if text else batch,
        **analyze(target, done, sum(x.size for x in shapes), flops),
    )


def search(
    part: str, target: Target, log: Callable[[str], None] = lambda _: None, **sizes: int
) -> EncodePlan:
    """Returns the plan with the highest bound on the rate.

    Stops where a larger batch does not fit or gains less than 2%.
    """
    best = None
    for each in BATCHES:
        tried = plan(part, target, each, **sizes)
        gib = tried.chip_gib(tried.bytes.total)
        log(f"{part}, {each} a device: {gib:.1f} GiB a chip, {_rate(tried)}")
        if best and (not tried.fits or (tried.rate or 0) < 1.02 * (best.rate or 0)):
            break
        best = tried
    assert best is not None
    return best


def image_flops(part: str, b: int, resolution: int) -> int:
    """Returns the FLOPs of half an autoencoder, as XLA counts them for a CPU before fusion."""
    (image,) = _inputs(part, 1, 0, resolution)
    image = jax.ShapeDtypeStruct(image.shape, jnp.float32)
    graph, weights = nnx.split(nnx.eval_shape(_build(part)))
    costs = jax.jit(lambda w, x: nnx.merge(graph, w)(x)).lower(weights, image).cost_analysis()
    return b * int(costs["flops"])  # pyright: ignore


def to_json(p: EncodePlan) -> JsonObject:
    """Returns plain data; bytes are per chip."""
    m = p.target.chip.devices
    return {
        "part": p.part,
        "topology": p.target.topology,
        "chips": p.target.chips,
        "batch": p.batch,
        "params": p.params,
        "flops": p.flops,
        "bytes_per_chip": p.bytes.total * m,
        "hbm_bytes": int(p.target.chip.usable_bytes * m),
        "fits": p.fits,
        "collectives": {kind: dict(counts) for kind, counts in p.collectives.items()},
        **p.bound_json(),
        "rate": p.rate,
        "mfu_bound": p.mfu_bound,
        "compile_seconds": round(p.compile_seconds, 1),
        "not_modeled": NOT_MODELED,
    }


def to_text(p: EncodePlan) -> str:
    """Returns the plan as text."""
    fits, usable = "fits" if p.fits else "does not fit", p.chip_gib(p.target.chip.usable_bytes)
    lines = [
        f"{p.part} on {p.target.topology}, {p.target.chips} chips: {fits}",
        f"  parameters      {p.params / 1e9:.3f} B, bfloat16",
        f"  batch           {p.batch}, {p.flops / 1e12:,.1f} TFLOP",
        f"  GiB a chip      {p.chip_gib(p.bytes.total):.2f} of {usable:.2f}",
    ]
    lines += p.collective_lines("batch")
    if p.bound:
        lines += [
            f"  roofline        {1e3 * p.bound.seconds:.1f} ms a batch at least;"
            f" collectives {1e3 * p.bound.ici_seconds:.1f}"
            f" (without overlap they add {1e3 * p.bound.exposed_seconds:.1f})",
            f"  rate            {_rate(p)}, MFU {p.mfu_bound:.1%}",
            *p.bound.warnings,
        ]
    return "\n".join([*lines, f"  {NOT_MODELED}"])


def _rate(p: EncodePlan) -> str:
    unit = "tokens" if p.part in TEXTS else "images"
    return f"{p.rate:,.0f} {unit} a second at most" if p.rate else "does not fit"


def _build(part: str) -> Callable[[], nnx.Module]:
    if text := TEXTS.get(part):
        return lambda: KINDS[text.kind].build(text.config)
    half = Encoder if part == "encoder" else Decoder
    return lambda: half(VAEConfig(), rngs=nnx.Rngs(0), dtype=jnp.bfloat16)


def _inputs(part: str, batch: int, tokens: int, resolution: int) -> list[jax.ShapeDtypeStruct]:
    if part in TEXTS:
        return [jax.ShapeDtypeStruct((batch, tokens), dtype) for dtype in (jnp.int32, jnp.bool_)]
    if part == "encoder":
        return [jax.ShapeDtypeStruct((batch, resolution, resolution, 3), jnp.uint8)]
    c = VAEConfig()
    side = resolution // c.scale
    return [jax.ShapeDtypeStruct((batch, side, side, c.channels), jnp.bfloat16)]
