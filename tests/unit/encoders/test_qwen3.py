"""The Qwen3 encoder: reading weights, masks, sizes (parity: tests/parity)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from modality_forcing.encoders.qwen3 import Qwen3, Qwen3Config, rotate, tensors, unused
from modality_forcing.encoders.weights import check_module, load_module, open_checkpoint
from modality_forcing.errors import UserError
from tests.parity import make_qwen3_goldens as goldens
from tests.unit.encoders.test_quantized import write
from tests.unit.encoders.test_qwen3_config import PUBLISHED

SMALL = goldens.config("long")  # 5 layers
TAPS = (1, 3)


def save(folder: Path, stored: dict[str, np.ndarray], c: dict = SMALL) -> Path:
    """Writes a checkpoint as transformers does."""
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(c))
    return folder


def load(folder: Path, dtype: str = "float32") -> Qwen3:
    checkpoint = open_checkpoint(folder)
    c = Qwen3Config.from_dict(checkpoint.config, taps=TAPS)

    def build() -> Qwen3:
        return Qwen3(c, rngs=nnx.Rngs(0), dtype=dtype)

    names = tensors(c, checkpoint.shapes)
    return load_module(build, names, checkpoint, unused=unused(c))


def prompts(lengths: tuple[int, ...], l: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of prompts of these lengths, then padding, and their mask [b l]."""
    mask = np.arange(l) < np.array(lengths)[:, None]
    ids = np.random.default_rng(0).integers(0, 100, (len(lengths), l))
    return np.where(mask, ids, 100), mask


encode = nnx.jit(lambda network, ids, mask: network(ids, mask))


def states(network: Qwen3, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.asarray(encode(network, ids, mask))


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Qwen3:
    return load(save(tmp_path_factory.mktemp("qwen3"), goldens.weights(SMALL)))


def near(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def shapes_of(c: Qwen3Config) -> dict[str, jax.ShapeDtypeStruct]:
    state = nnx.state(nnx.eval_shape(lambda: Qwen3(c, rngs=nnx.Rngs(0))))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    return {".".join(key.key for key in path): leaf for path, leaf in leaves}


@pytest.mark.parametrize(
    "changes, count, complete",
    [
        ({}, 5_831_883_520, 8_190_735_360),
        (
            {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
            3_114_088_192,
            4_022_468_096,
        ),
    ],
    ids=["8B", "4B"],
)
def test_every_tensor_of_the_published_encoders_has_a_name_and_fits(changes, count, complete):
    written = PUBLISHED | changes
    c = Qwen3Config.from_dict(written)
    d, f, k = c.hidden, c.mlp_dim, c.head_dim
    of = {"q_proj": (c.heads * k, d), "k_proj": (c.kv_heads * k, d), "v_proj": (c.kv_heads * k, d)}
    of |= {"o_proj": (d, c.heads * k), "q_norm": (k,), "k_norm": (k,)}
    block = {f"self_attn.{name}": shape for name, shape in of.items()}
    block |= {"mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    block |= {"input_layernorm": (d,), "post_attention_layernorm": (d,)}
    stored = {
        f"model.layers.{i}.{name}.weight": shape for i in range(36) for name, shape in block.items()
    }
    stored |= {"model.embed_tokens.weight": (c.vocab_size, d), "model.norm.weight": (d,)}
    if not written["tie_word_embeddings"]:
        stored["lm_head.weight"] = (c.vocab_size, d)
    assert sum(map(math.prod, stored.values())) == complete

    named, shapes = tensors(c, stored), shapes_of(c)
    assert shapes.keys() == named.keys()
    assert sum(leaf.size for leaf in shapes.values()) == count
    for path, leaf in shapes.items():
        assert leaf.dtype == jnp.bfloat16
        assert {named[path].shape(stored[name]) for name in named[path].names} == {leaf.shape}
    used = {name for tensor in named.values() for name in tensor.names}
    left = sorted(set(stored) - used)
    assert all(name.startswith(unused(c)) for name in left)
    assert not any(name.startswith(unused(c)) for name in used)
    layers = {int(name.split(".")[2]) for name in left if "layers" in name}
    assert layers == set(range(27, 36))


def test_unread_tensors_are_never_read(tmp_path, network, monkeypatch):
    """A head, a last norm and later blocks: their bytes stay on the disk."""
    checkpoint = open_checkpoint(save(tmp_path, goldens.weights(SMALL)))
    read, names = type(checkpoint).read, []
    monkeypatch.setattr(
        type(checkpoint),
        "read",
        lambda self, name, index=(): names.append(name) or read(self, name, index),
    )
    inputs = prompts((4, 2), 5)
    np.testing.assert_array_equal(states(load(tmp_path), *inputs), states(network, *inputs))
    assert names and not any(name.startswith(unused(network.c)) for name in names)
    assert {"model.layers.3.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"} <= set(
        checkpoint.shapes
    ) - set(names)


def test_tied_and_bare_files_are_read(tmp_path, network):
    """A tied head is no tensor; a Qwen3Model alone is saved without the prefix."""
    inputs = prompts((4, 2), 5)
    tied = goldens.weights(SMALL, tied=True)
    bare = {name.removeprefix("model."): value for name, value in tied.items()}
    for i, stored in enumerate((tied, bare)):
        (folder := tmp_path / str(i)).mkdir()
        np.testing.assert_array_equal(
            states(load(save(folder, stored)), *inputs), states(network, *inputs)
        )


def test_shards_of_an_index_are_read(tmp_path, network):
    stored = goldens.weights(SMALL)
    shards = {name: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, name in enumerate(stored)}
    for file in set(shards.values()):
        save_file({n: x for n, x in stored.items() if shards[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    inputs = prompts((4, 2), 5)
    np.testing.assert_array_equal(states(load(tmp_path), *inputs), states(network, *inputs))


def test_float8_of_blocks_is_read(tmp_path):
    """As in Qwen3-8B-FP8: matrices of blocks in e4m3, a scale for each 128 x 128 numbers."""
    c = SMALL | {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64}
    c |= {"num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 3}
    plain, quantized = goldens.weights(c), {}
    for name, value in goldens.weights(c).items():
        if value.ndim == 1 or "layers" not in name:
            quantized[name] = value.astype(ml_dtypes.bfloat16)
            plain[name] = quantized[name].astype(np.float32)
            continue
        rows, columns = (n // 128 for n in value.shape)
        blocks = value.reshape(rows, 128, columns, 128)
        scale = (np.abs(blocks).max(axis=(1, 3), keepdims=True) / 448).astype(np.float32)
        numbers = (blocks / scale).astype(ml_dtypes.float8_e4m3fn)
        quantized[name] = numbers.reshape(value.shape)
        quantized[f"{name}_scale_inv"] = scale.reshape(rows, columns).astype(ml_dtypes.bfloat16)
        rounded = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
        plain[name] = (numbers.astype(np.float32) * rounded).reshape(value.shape)
    for folder in ("plain", "float8"):
        (tmp_path / folder).mkdir()
    described = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    write(
        save(tmp_path / "float8", {}, c | {"quantization_config": described}) / "model.safetensors",
        quantized,
    )
    inputs = prompts((4, 2), 5)
    np.testing.assert_array_equal(
        states(load(tmp_path / "float8"), *inputs),
        states(load(save(tmp_path / "plain", plain, c)), *inputs),
    )


def test_other_tensors_are_refused(tmp_path):
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(60, np.float32)}
    with pytest.raises(UserError, match=r"has model\.layers\.0\.self_attn\.q_proj\.bias beyond"):
        load(save(tmp_path, goldens.weights(SMALL) | bias))
    deeper = goldens.weights(SMALL | {"num_hidden_layers": 6})
    with pytest.raises(UserError, match=r"has model\.layers\.5\..* 8 more beyond this"):
        load(save(tmp_path, deeper))


def test_missing_and_misshaped_tensors_are_refused(tmp_path):
    c = Qwen3Config.from_dict(SMALL, taps=TAPS)

    def refused(stored: dict[str, np.ndarray]) -> str:
        checkpoint = open_checkpoint(save(tmp_path, stored))
        with pytest.raises(UserError) as caught:
            check_module(
                lambda: Qwen3(c, rngs=nnx.Rngs(0)),
                tensors(c, checkpoint.shapes),
                checkpoint,
                unused(c),
            )
        return str(caught.value)

    stored = goldens.weights(SMALL)
    without = {k: v for k, v in stored.items() if k != "model.layers.2.self_attn.k_norm.weight"}
    assert "lacks model.layers.2.self_attn.k_norm.weight" in refused(without)
    other = goldens.weights(SMALL | {"hidden_size": 25})
    assert "check that config.json goes with the weights" in refused(other)


def test_padding_has_states_and_no_influence(network):
    """States of padding are those of a padding token that reads the text alone."""
    ids, mask = prompts((3, 9, 1), 9)
    found = states(network, ids, mask)
    assert found.shape == (3, 9, 48) and np.all(np.any(found != 0, axis=-1))
    near(found[:1, :3], states(network, ids[:1, :3], mask[:1, :3]))
    for place in (3, 8):  # the same position, with other padding or none between
        junk = ids.copy()
        junk[0, 3:place] = 7
        junk[0, place + 1 :] = 8
        np.testing.assert_array_equal(states(network, junk, mask)[0, place], found[0, place])
    assert np.abs(found[0, 3] - found[0, 8]).max() > 1e-3  # positions are counted through padding


def test_text_reads_what_came_before(network):
    ids, mask = prompts((9, 9), 9)
    other = ids.copy()
    other[:, 5] = (other[:, 5] + 1) % 100
    a, b = states(network, ids, mask), states(network, other, mask)
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert np.all(np.any(a[:, 5:] != b[:, 5:], axis=-1))


def test_row_without_text_is_finite(network):
    assert np.all(np.isfinite(states(network, *prompts((0, 4), 5))))


def test_states_are_those_of_the_taps(tmp_path):
    """One encoder of two taps equals two of one."""
    ids, mask = prompts((4, 2), 5)
    folder = save(tmp_path, goldens.weights(SMALL))
    checkpoint = open_checkpoint(folder)

    def of(*taps: int) -> np.ndarray:
        c = Qwen3Config.from_dict(SMALL, taps=taps)
        network = load_module(
            lambda: Qwen3(c, rngs=nnx.Rngs(0), dtype="float32"),
            tensors(c, checkpoint.shapes),
            checkpoint,
            unused=unused(c),
        )
        return states(network, ids, mask)

    near(of(1, 4), np.concatenate([of(1), of(4)], axis=-1))


def test_rotation_keeps_products_of_equal_distance():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 2, 8)).astype(np.float32)
    at = [jnp.repeat(jnp.asarray(x), 512, axis=1) for x in (q, k)]
    rotated = [np.asarray(rotate(x, 1e6))[0, :, 0] for x in at]
    products = rotated[0] @ rotated[1].T
    for apart in (0, 1, 100):
        assert np.ptp(np.diagonal(products, apart)) < 1e-5
    np.testing.assert_array_equal(rotate(at[0], 1e6)[:, 0], q[:, 0])  # position 0 is not rotated
