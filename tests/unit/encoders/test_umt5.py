"""The UMT5 encoder: reading weights, invariances, and eight devices (parity: tests/parity).

python -m tests.unit.encoders.test_umt5 FOLDER   saves states of the network in FOLDER (8 devices)
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from modality_forcing.encoders.umt5 import UMT5, UNUSED, UMT5Config, distance_buckets, tensors
from modality_forcing.encoders.weights import load_module, open_checkpoint
from modality_forcing.errors import UserError
from tests.parity import make_umt5_goldens as goldens
from tests.runs import ROOT, environment

XXL = UMT5Config(
    vocab_size=256_384, width=4096, mlp_dim=10_240, heads=64, head_dim=64, num_layers=24
)
SMALL = goldens.config("odd")
EVEN = SMALL | {"num_heads": 4, "d_kv": 8, "vocab_size": 104}  # every dimension can be cut in two


def save(
    folder: Path, c: dict, more: dict[str, np.ndarray] | None = None, table: str = "shared.weight"
) -> Path:
    """Writes a checkpoint as transformers does."""
    save_file(goldens.weights(c, table) | (more or {}), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(c))
    return folder


def load(folder: Path, dtype: str = "float32", sharding=None) -> UMT5:
    checkpoint = open_checkpoint(folder)
    c = UMT5Config.from_dict(checkpoint.config)

    def build() -> UMT5:
        return UMT5(c, rngs=nnx.Rngs(0), dtype=dtype)

    names = tensors(c, checkpoint.shapes)
    return load_module(build, names, checkpoint, sharding=sharding, unused=UNUSED)


def captions(lengths: tuple[int, ...], l: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of captions of these lengths, and their mask [b l]."""
    ids = np.random.default_rng(seed).integers(2, 101, (len(lengths), l))
    mask = np.arange(l) < np.array(lengths)[:, None]
    return ids * mask, mask


encode = nnx.jit(lambda network, ids, mask: network(ids, mask))


def states(network: UMT5, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.asarray(encode(network, ids, mask))


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> UMT5:
    return load(save(tmp_path_factory.mktemp("umt5"), SMALL))


def near(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_config_is_read():
    published = {
        "model_type": "umt5",
        "vocab_size": 256384,
        "d_model": 4096,
        "d_ff": 10240,
        "num_heads": 64,
        "d_kv": 64,
        "num_layers": 24,
        "num_decoder_layers": 24,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-06,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "scalable_attention": True,
        "dropout_rate": 0.1,
    }
    assert UMT5Config.from_dict(published) == XXL
    few = ("model_type", "vocab_size", "d_model", "d_ff", "num_heads", "d_kv", "num_layers")
    assert UMT5Config.from_dict({key: published[key] for key in few}) == XXL


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "t5"}, "model_type is 't5'"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu'"),
        ({"feed_forward_proj": "gated-silu"}, "gated-silu"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu', not 'gelu_new'"),
        ({"is_gated_act": False}, "is_gated_act is False"),
        ({"d_kv": None}, "d_kv is None"),
        ({"d_model": 0}, "d_model is 0; it must be a positive number"),
        ({"num_heads": True}, "num_heads is True"),
        ({"d_ff": 72.0}, "d_ff is 72.0"),
        ({"layer_norm_epsilon": -1e-6}, "layer_norm_epsilon is -1e-06"),
        ({"relative_attention_num_buckets": 3}, "3 buckets do not reach"),
        ({"relative_attention_max_distance": 8}, "to a distance of 8"),
    ],
)
def test_config_of_another_network_is_refused(changes, message):
    with pytest.raises(UserError) as caught:
        UMT5Config.from_dict(SMALL | changes, where="some/config.json")
    assert str(caught.value).startswith("some/config.json: ") and message in str(caught.value)


def test_config_without_a_size_is_refused():
    with pytest.raises(UserError, match=r"lacks d_ff, num_layers; download"):
        UMT5Config.from_dict(
            {key: value for key, value in SMALL.items() if key not in ("d_ff", "num_layers")}
        )


@pytest.mark.parametrize("table", ["shared.weight", "encoder.embed_tokens.weight"])
def test_every_tensor_of_umt5_xxl_has_a_name_and_fits(table):
    """The published encoders of Wan 2.1 and 2.2 have 242 tensors and 5,680,910,336 weights."""
    d, f, inner = 4096, 10_240, 64 * 64
    stored = {table: (256_384, d), "encoder.final_layer_norm.weight": (d,)}
    for i in range(24):
        attention, mlp = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        stored |= {f"{attention}.SelfAttention.{x}.weight": (inner, d) for x in "qkv"}
        stored[f"{attention}.SelfAttention.o.weight"] = (d, inner)
        stored[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (32, 64)
        stored |= {f"{mlp}.DenseReluDense.{x}.weight": (f, d) for x in ("wi_0", "wi_1")}
        stored[f"{mlp}.DenseReluDense.wo.weight"] = (d, f)
        stored |= {f"{attention}.layer_norm.weight": (d,), f"{mlp}.layer_norm.weight": (d,)}
    assert len(stored) == 242 and sum(map(math.prod, stored.values())) == 5_680_910_336

    named = tensors(XXL, stored)
    assert sorted(name for tensor in named.values() for name in tensor.names) == sorted(stored)
    state = nnx.state(nnx.eval_shape(lambda: UMT5(XXL, rngs=nnx.Rngs(0))))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    shapes = {".".join(key.key for key in path): leaf for path, leaf in leaves}
    assert shapes.keys() == named.keys()
    for path, leaf in shapes.items():
        assert leaf.dtype == jnp.bfloat16
        assert {named[path].shape(stored[name]) for name in named[path].names} == {leaf.shape}


def test_decoder_of_a_complete_umt5_is_ignored(tmp_path, network):
    complete = {
        name: np.zeros((2, 2), np.float32)
        for name in ("decoder.block.0.layer.0.layer_norm.weight", "lm_head.weight")
    }
    complete["encoder.embed_tokens.weight"] = goldens.weights(SMALL)["shared.weight"]
    ids, mask = captions((4,), 5)
    np.testing.assert_array_equal(
        states(load(save(tmp_path, SMALL, complete)), ids, mask), states(network, ids, mask)
    )


def test_embedding_is_read_by_either_name(tmp_path, network):
    ids, mask = captions((4,), 5)
    other = load(save(tmp_path, SMALL, table="encoder.embed_tokens.weight"))
    np.testing.assert_array_equal(states(other, ids, mask), states(network, ids, mask))


def test_unknown_tensor_is_refused(tmp_path):
    bias = {"encoder.block.0.layer.0.SelfAttention.q.bias": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"q\.bias"):
        load(save(tmp_path, SMALL, bias))


def test_masked_tokens_have_no_influence(network):
    ids, mask = captions((9, 1, 4), 12)
    junk = np.where(mask, ids, np.random.default_rng(1).integers(0, 101, ids.shape))
    np.testing.assert_array_equal(states(network, junk, mask), states(network, ids, mask))


def test_states_past_the_end_are_zero(network):
    ids, mask = captions((9, 0, 12), 12)
    found = states(network, ids, mask)
    assert np.all(np.isfinite(found))  # also without any token
    np.testing.assert_array_equal(np.any(found != 0, axis=-1), mask)


@pytest.mark.parametrize("l", [8, 9, 40, 200])
def test_padding_does_not_matter(network, l):
    ids, mask = captions((8,), 8)
    padded = [np.pad(x, ((0, 0), (0, l - 8))) for x in (ids, mask)]
    near(states(network, *padded)[:, :8], states(network, ids, mask))


def test_captions_do_not_depend_on_their_batch(network):
    ids, mask = captions((9, 3, 12, 1, 7), 12)
    together = states(network, ids, mask)
    near(
        together,
        np.concatenate([states(network, ids[i : i + 1], mask[i : i + 1]) for i in range(5)]),
    )
    near(together[::-1], states(network, ids[::-1], mask[::-1]))


def test_bfloat16_keeps_what_blocks_add_to_large_states(tmp_path):
    """With large embeddings, bfloat16 states between blocks would lose what blocks add."""
    loud = {
        name: (value * 300 if name == "shared.weight" else value)
        for name, value in goldens.weights(SMALL).items()
    }
    # The same for both.
    stored = {name: value.astype(jnp.bfloat16).astype(np.float32) for name, value in loud.items()}
    folder = save(tmp_path, SMALL, stored)
    ids, mask = captions((9, 12), 12)
    half, full = (states(load(folder, dtype), ids, mask) for dtype in ("bfloat16", "float32"))
    assert half.dtype == jnp.bfloat16
    assert np.mean(half == full.astype(jnp.bfloat16)) > 0.9


def test_distance_buckets_equal_t5():
    """Compared in integers: bucket 8 + i starts where (distance / 8)^8 reaches 16^i."""

    def bucket(key: int, query: int) -> int:
        distance = abs(key - query)
        wide = (
            next(i for i in range(7, -1, -1) if i == 0 or distance**8 >= 16**i * 8**8)
            if distance >= 8
            else 0
        )
        return 16 * (key > query) + (distance if distance < 8 else 8 + wide)

    found = distance_buckets(400, 32, 128)
    assert found.tolist() == [[bucket(key, query) for key in range(400)] for query in range(400)]
    # 16 would be distance 0 to the right.
    assert found.min() == 0 and found.max() == 31 and len(np.unique(found)) == 31


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory) -> tuple[Path, dict]:
    folder = save(tmp_path_factory.mktemp("eight"), EVEN)
    env = {
        **environment(),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, "-m", "tests.unit.encoders.test_umt5", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "shares.json").read_text())


def test_eight_devices_agree_with_one(on_eight):
    folder, shares = on_eight
    ids, mask = captions((9, 3, 12, 1, 7, 2, 12, 5), 12)
    near(np.load(folder / "states.npy"), states(load(folder), ids, mask))
    assert (
        shares["q"] == shares["down"] == 1 / 4
        and shares["table"] == 1 / 2
        and shares["states"] == 1 / 4
    )


def spread(path: str, shape: tuple[int, ...]) -> P:
    """Shards matrices along both axes, as the train state does."""
    kinds = {"table": P("fsdp"), "bias": P(None, None, "tensor"), "scale": P()}
    kinds |= {name: P(None, "tensor", "fsdp") for name in ("out", "down")}
    return kinds.get(path.rpartition(".")[2], P(None, "fsdp", "tensor"))


def main(folder: Path) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    network = load(folder, sharding=lambda path, shape: NamedSharding(mesh, spread(path, shape)))
    graph, weights = nnx.split(network)
    ids, mask = (
        jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"))))
        for x in captions((9, 3, 12, 1, 7, 2, 12, 5), 12)
    )
    found = jax.jit(lambda w, ids, mask: nnx.merge(graph, w)(ids, mask))(weights, ids, mask)
    np.save(folder / "states.npy", jax.device_get(found))
    attention, mlp = network.blocks.attention, network.blocks.feed_forward
    arrays = {
        "q": attention.q[...],
        "down": mlp.down[...],
        "table": network.table[...],
        "states": found,
    }
    shares = {name: x.addressable_shards[0].data.size / x.size for name, x in arrays.items()}
    (folder / "shares.json").write_text(json.dumps(shares))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
