"""FLOPs: XLA's count where XLA can count, and the family's numbers."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from modality_forcing.config import (
    Config,
    DataConfig,
    ModalityConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
)
from modality_forcing.modalities import base
from modality_forcing.models.flops import (
    Flops,
    forward_flops,
    parameters,
    step_flops,
    tokens,
    weight_flops,
)
from modality_forcing.models.presets import block_parameters, size
from modality_forcing.train.state import abstract_model
from tests import tiny

# Wide, so that only products weigh; two blocks per iteration, so that no loop hides one.
MODEL = ModelConfig(
    width=512,
    mlp_dim=1536,
    num_layers=2,
    heads=4,
    kv_heads=2,
    head_dim=128,
    unroll=2,
    attention="einsum",
)
IMAGE = ModalityConfig(kind="image", patch=4)
DEPTH = ModalityConfig(kind="depth", patch=8, position_id=1, detokenizer_layers=1)
B = 2


def config(*names: str) -> Config:
    known = {"image": IMAGE, "depth": DEPTH}
    return Config(
        data=DataConfig(resolution=32),  # 64 and 16 tokens
        text=TextConfig(tokens=48, vocab_size=0, channels=64),
        model=MODEL,
        modalities={name: known[name] for name in names},
    )


def counted(c: Config, backward: bool) -> float:
    """FLOPs that XLA counts in the network alone: no loss, no optimizer."""
    modalities = base.build(c)
    graph, params = abstract_model(c, modalities)
    noisy = {n: jax.ShapeDtypeStruct((B, *m.shape), jnp.float32) for n, m in modalities.items()}
    t = {n: jax.ShapeDtypeStruct((B,), jnp.float32) for n in modalities}
    text = {
        "tokens": jax.ShapeDtypeStruct((B, c.text.tokens, c.text.channels), jnp.bfloat16),
        "mask": jax.ShapeDtypeStruct((B, c.text.tokens), bool),
    }

    def forward(params, noisy, t, text):
        return sum(jnp.sum(y) for y in nnx.merge(graph, params)(noisy, t, text).values())

    def both(params, noisy, t, text):  # all inputs get gradients: the convention has none for free
        return jax.grad(forward, argnums=(0, 1))(params, noisy, t, text)

    lowered = jax.jit(both if backward else forward).lower(params, noisy, t, text)
    return lowered.cost_analysis()["flops"]


@pytest.mark.parametrize("names", [("image",), ("image", "depth")])
@pytest.mark.parametrize("backward", [False, True])
def test_flops_agree_with_xla_within_two_percent(names, backward):
    c = config(*names)
    ours = forward_flops(c, base.build(c)).total * B * (3 if backward else 1)
    assert counted(c, backward) == pytest.approx(ours, rel=0.02)


def test_xla_counts_a_loop_body_once():
    c = config("image")
    looped = replace(c, model=replace(MODEL, unroll=1))
    assert counted(looped, backward=False) < 0.6 * forward_flops(c, base.build(c)).total * B


@pytest.mark.parametrize(("name", "share"), [("370m", 0.02), ("800m", 0.02), ("3b3", 0.02)])
@pytest.mark.parametrize("n", [384, 640])
def test_flops_of_the_family(name, share, n):
    """Trunk: 345 d² weights and 120 n d of attention, 2 FLOPs each, three times."""
    c = Config(
        data=DataConfig(resolution=256),
        text=TextConfig(tokens=n - 256, vocab_size=0, channels=64),
        model=size(name),
    )
    flops, d = forward_flops(c, base.build(c)), c.model.width
    assert 3 * (flops.trunk + flops.attention) == 3 * n * (2 * 345 * d**2 + 120 * n * d)
    assert 0 < flops.ends < share * flops.total


def test_step_is_three_forward_passes_and_the_teacher():
    c = config("image", "depth")
    modalities = base.build(c)
    student, teacher = forward_flops(c, modalities), forward_flops(c, modalities, only=["image"])
    assert step_flops(c, modalities) == student * 3 * c.train.batch
    distilled = replace(c, train=TrainConfig(batch=6, distill=True))
    assert step_flops(distilled, modalities) == (student * 3 + teacher) * 6
    assert teacher == forward_flops(config("image"), base.build(config("image")))


def test_attention_grows_with_the_square_of_all_tokens_together():
    c = config("image", "depth")
    n = tokens(c, base.build(c))
    assert n == 48 + 64 + 16
    assert forward_flops(c, base.build(c)).attention == 2 * 4 * n**2 * 4 * 128
    assert tokens(c, base.build(c), only=["depth"]) == 48 + 16


def test_total_is_the_sum_of_the_parts():
    assert Flops(1, 2, 3, 4).total == 10
    assert Flops(1, 2, 3, 4) * 2 + Flops(1, 0, 0, 0) == Flops(3, 4, 6, 8)


def test_weights_are_counted_by_part():
    c = tiny.forcing()
    shapes = abstract_model(c, base.build(c))[1]
    found = parameters(shapes)
    vectors = 3 * c.model.width + 2 * c.model.head_dim
    assert found.trunk == c.model.num_layers * (block_parameters(c.model) + vectors)
    assert found.detokenizers == block_parameters(c.model) + vectors
    assert found.total == sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(("name", "billions"), [("370m", 0.373), ("800m", 0.835), ("3b3", 3.327)])
def test_parameter_counts_of_the_family(name, billions):
    c = Config(
        data=DataConfig(resolution=256),
        text=TextConfig(tokens=128, vocab_size=0, channels=4096),
        model=replace(size(name), attention="einsum"),
        modalities={"image": ModalityConfig(latent_channels=128)},
    )
    assert parameters(abstract_model(c, base.build(c))[1]).total == pytest.approx(
        billions * 1e9, rel=2e-3
    )


def test_backward_pass_of_frozen_weights_is_counted_once():
    c = replace(config("image", "depth"), train=TrainConfig(batch=1))
    modalities, shapes = base.build(c), abstract_model(c, base.build(c))[1]
    whole, forward = step_flops(c, modalities), forward_flops(c, modalities)
    trunk = step_flops(c, modalities, frozen={"trunk": shapes["trunk"]})
    assert trunk == replace(whole, trunk=2 * forward.trunk)
    # All weights: what is left of the third pass is attention, which has none.
    everything = weight_flops(c, modalities, shapes)
    own = sum(4 * n * n * c.model.heads * c.model.head_dim for n in detokenized(modalities))
    assert everything.trunk == forward.trunk and everything.attention == 0
    assert everything.detokenizers == forward.detokenizers - own
    assert everything.ends == forward.ends


def detokenized(modalities) -> list[int]:
    """The tokens that each detokenizer block sees."""
    return [m.grid[0] * m.grid[1] for m in modalities.values() for _ in range(m.detokenizer_layers)]


@pytest.mark.parametrize(
    ("side", "depth", "tera"),
    [
        *[(256, False, 11.1), (512, False, 22.7), (1024, False, 75.5)],
        *[(256, True, 15.3), (512, True, 41.1), (1024, True, 169.5)],
    ],
)
def test_flops_of_flux2_9b(side, depth, tera):
    """TFLOP of a forward pass with 512 text tokens, counted by hand (klein, and with depth)."""
    modalities = {"image": replace(tiny.IMAGE, patch=16, latent_channels=128)}
    if depth:
        modalities["depth"] = replace(tiny.DEPTH, patch=16, detokenizer_layers=4, cond_prob=0.0)
    config = replace(
        tiny.flux2(),
        data=replace(tiny.flux2().data, resolution=side),
        text=TextConfig(tokens=512, vocab_size=0, channels=12_288),
        modalities=modalities,
        model=size("klein-9b"),
    )
    assert forward_flops(config, base.build(config)).total / 1e12 == pytest.approx(tera, rel=0.005)


def test_flops_of_flux2_are_those_of_its_weights():
    config = tiny.flux2()
    modalities = base.build(config)
    counted = forward_flops(config, modalities)
    by_weight = weight_flops(config, modalities, abstract_model(config, modalities)[1])
    assert (counted.trunk, counted.ends) == (by_weight.trunk, by_weight.ends)
