"""The config of a Qwen3 encoder: what is read of it, and what is refused."""

from __future__ import annotations

import math

import pytest

from modality_forcing.encoders.qwen3 import Qwen3Config
from modality_forcing.errors import UserError

PUBLISHED = {  # config.json of Qwen/Qwen3-8B, as transformers 4.51 wrote it
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
NEWER = {k: v for k, v in PUBLISHED.items() if k not in ("rope_scaling", "rope_theta")} | {
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "layer_types": ["full_attention"] * 36,
    "dtype": "bfloat16",
}
B8 = Qwen3Config(
    vocab_size=151_936,
    hidden=4096,
    mlp_dim=12_288,
    heads=32,
    kv_heads=8,
    head_dim=128,
    num_layers=36,
    rope_theta=1e6,
)


@pytest.mark.parametrize("written", [PUBLISHED, NEWER], ids=["transformers 4", "transformers 5"])
def test_config_is_read(written):
    assert Qwen3Config.from_dict(written) == B8
    assert B8.width == 3 * 4096 and B8.blocks == 27


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe', not 'qwen3'"),
        ({"model_type": "umt5"}, "give the folder of a Qwen3 encoder"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', not 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "has 'sliding_attention'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling is {'type': 'yarn'}"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type is 'yarn'"),
        ({"rope_parameters": [1]}, "rope_parameters is [1]"),
        ({"rope_theta": None}, "lacks rope_theta"),
        ({"rope_theta": -1}, "rope_theta is -1; it must be a positive number"),
        ({"rope_theta": math.inf}, "rope_theta is inf"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"head_dim": True}, "head_dim is True"),
        ({"head_dim": 127}, "head_dim is 127; rotary positions need an even number"),
        ({"intermediate_size": 96.0}, "intermediate_size is 96.0"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ({"num_key_value_heads": 5}, "32 heads do not share 5 key and value heads"),
        ({"num_hidden_layers": 26}, "has 26 layers, and states after layer 27 are read"),
    ],
)
def test_config_of_another_network_is_refused(changes, message):
    with pytest.raises(UserError) as caught:
        Qwen3Config.from_dict(PUBLISHED | changes, where="some/config.json")
    assert str(caught.value).startswith("some/config.json: ") and message in str(caught.value)


def test_config_without_a_size_is_refused():
    few = {k: v for k, v in PUBLISHED.items() if k not in ("head_dim", "rope_theta")}
    with pytest.raises(UserError, match=r"lacks head_dim, rope_theta; download"):
        Qwen3Config.from_dict(few)
