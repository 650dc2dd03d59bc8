"""Writes data/quantized_<case>.safetensors: quantized weights, saved by the libraries themselves.

    python -m tests.parity.make_quantized_goldens

Needs, in an environment of its own, torch 2.13, transformers 5.24, optimum-quanto 0.2.7,
bitsandbytes 0.50.2, torchao 0.18, compressed-tensors 0.20, comfy-kitchen 0.2.40 and accelerate;
CPU versions are enough.
data/quantized.npz holds each library's own dequantized values at every fifth row and third column,
which tests/unit/encoders/test_quantized.py compares with.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data"
ROWS, COLUMNS = 5, 3  # of the weights that are compared
Made = tuple[dict[str, torch.Tensor], torch.Tensor | None]  # the tensors, and the weights


def model(shape: tuple[int, int]) -> torch.nn.Sequential:
    """A linear layer of [out in] normal weights, whose rows differ in size."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * torch.logspace(-2, 0, shape[0])[:, None]
    layer = torch.nn.Linear(shape[1], shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return torch.nn.Sequential(layer)


def from_quanto(kind: str) -> Made:
    from optimum import quanto

    net = model((12, 32))
    quanto.quantize(net, weights=kind)
    quanto.freeze(net)
    return net.state_dict(), net[0].weight.dequantize()


def from_bitsandbytes_int8() -> Made:
    import bitsandbytes
    from bitsandbytes import functional

    layer = bitsandbytes.nn.Linear8bitLt(32, 12, bias=False, has_fp16_weights=False)
    weight = model((12, 32))[0].weight.data.half()
    layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    layer(torch.ones(2, 32).half())
    stored = {f"0.{name}": x for name, x in layer.state_dict().items()}
    return stored, functional.int8_vectorwise_dequant(stored["0.weight"], stored["0.SCB"])


def from_bitsandbytes_nf4() -> Made:
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(64, 12, bias=False, quant_type="nf4")
    layer.load_state_dict({"weight": model((12, 64))[0].weight.data})
    layer = layer.to("cpu")
    return {f"0.{name}": x for name, x in layer.state_dict().items()}, None


def from_torchao(config: str) -> Made:
    from torchao import quantization
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    net = model((12, 32))
    quantization.quantize_(net, getattr(quantization, config)())
    stored, _ = flatten_tensor_state_dict(net.state_dict())
    return stored, net[0].weight.dequantize()


def from_compressed_tensors(shape: tuple[int, int] = (12, 64), **weights: Any) -> Made:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import (
        QuantizationScheme,
        initialize_module_for_quantization,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    layer = model(shape)[0]
    initialize_module_for_quantization(layer, scheme)
    args, weight = scheme.weights, layer.weight.data
    if args.strategy == "tensor":
        parts = weight.reshape(1, -1)
    elif args.strategy == "channel":
        parts = weight
    elif args.strategy == "group":
        parts = weight.unflatten(1, (-1, args.group_size))
    else:
        high, wide = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -shape[1] % wide, 0, -shape[0] % high))
        parts = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, high)).transpose(1, 2).flatten(2)
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
    layer.weight_scale.data.copy_(scale.reshape(layer.weight_scale.shape))
    if hasattr(layer, "weight_zero_point"):
        layer.weight_zero_point.data.copy_(zero.reshape(layer.weight_zero_point.shape))
    kind = "mxfp8-quantized" if args.scale_dtype == torch.uint8 else "naive-quantized"
    compressor = BaseCompressor.get_value_from_registry(kind)
    stored = compressor.compress(dict(layer.state_dict()), scheme)
    restored = compressor.decompress(dict(stored), scheme)["weight"]
    return {f"0.{name}": x for name, x in stored.items()}, restored


def from_transformers(scale_fmt: str) -> Made:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    config = SimpleNamespace(weight_block_size=(128, 128), scale_fmt=scale_fmt)
    quantizer = SimpleNamespace(quantization_config=config)
    weight = model((128, 256))[0].weight.data
    stored = Fp8Quantize(quantizer).convert({"0.weight": weight})
    weight, scales = stored["0.weight"], stored["0.weight_scale_inv"]
    return stored, Fp8Dequantize(quantizer)._dequantize_one(weight, scales, torch.float32)


def from_comfy(layout: str, stated: dict[str, Any], **options: Any) -> Made:
    from comfy_kitchen.tensor import QuantizedTensor

    quantized = QuantizedTensor.from_float(model((32, 256))[0].weight.data, layout, **options)
    stored = quantized.layout_cls.state_dict_tensors(quantized._qdata, quantized._params)
    tensors = {f"0.weight{suffix}": x for suffix, x in stored.items()}
    text = json.dumps(stated).encode()
    tensors["0.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    return tensors, quantized.dequantize()


def from_torch() -> Made:
    """As diffusers' layerwise casting stores weights: float8 without a scale."""
    weight = model((12, 32))[0].weight.data.to(torch.float8_e4m3fn)
    return {"0.weight": weight}, weight


FLOAT8: dict[str, Any] = {"num_bits": 8, "type": "float"}
INT8: dict[str, Any] = {"num_bits": 8, "type": "int"}
MX: dict[str, Any] = {"strategy": "group", "group_size": 32, "scale_dtype": torch.uint8}
ROTATED = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}
CASES: dict[str, Callable[[], Made]] = {
    "quanto_int8": lambda: from_quanto("qint8"),
    "quanto_float8": lambda: from_quanto("qfloat8"),
    "quanto_int4": lambda: (from_quanto("qint4")[0], None),
    "bitsandbytes_int8": from_bitsandbytes_int8,
    "bitsandbytes_nf4": from_bitsandbytes_nf4,
    "torchao_int8": lambda: from_torchao("Int8WeightOnlyConfig"),
    "torchao_float8": lambda: from_torchao("Float8WeightOnlyConfig"),
    "compressed_int8": lambda: from_compressed_tensors(**INT8, strategy="channel"),
    "compressed_int8_asymmetric": lambda: from_compressed_tensors(
        **INT8, strategy="channel", symmetric=False
    ),
    "compressed_int8_group": lambda: from_compressed_tensors(
        **INT8, strategy="group", group_size=16
    ),
    "compressed_float8_tensor": lambda: from_compressed_tensors(**FLOAT8, strategy="tensor"),
    "compressed_float8": lambda: from_compressed_tensors(**FLOAT8, strategy="channel"),
    "compressed_float8_block": lambda: from_compressed_tensors(
        (144, 160), **FLOAT8, strategy="block", block_structure=[128, 128]
    ),
    "compressed_mxfp8": lambda: from_compressed_tensors(**FLOAT8, **MX),
    "transformers_float8": lambda: from_transformers("float"),
    "transformers_float8_ue8m0": lambda: from_transformers("ue8m0"),
    "comfy_float8": lambda: from_comfy("TensorCoreFP8Layout", {"format": "float8_e4m3fn"}),
    "comfy_int8": lambda: from_comfy(
        "TensorWiseINT8Layout", {"format": "int8_tensorwise"}, per_channel=True
    ),
    "comfy_int8_rotated": lambda: (
        from_comfy("TensorWiseINT8Layout", ROTATED, per_channel=True, convrot=True)[0],
        None,
    ),
    "comfy_mxfp8": lambda: (from_comfy("TensorCoreMXFP8Layout", {"format": "mxfp8"})[0], None),
    "torch_float8": from_torch,
}


def main() -> None:
    expected = {}
    for name, make in CASES.items():
        stored, weights = make()
        print(name, {key: (str(x.dtype), tuple(x.shape)) for key, x in stored.items()})
        stored = {key: copy.deepcopy(x).contiguous() for key, x in stored.items()}
        save_file(stored, str(DATA / f"quantized_{name}.safetensors"))
        if weights is not None:
            expected[name] = weights.detach().float().numpy()[::ROWS, ::COLUMNS]
    np.savez_compressed(DATA / "quantized.npz", **expected)


if __name__ == "__main__":
    main()
