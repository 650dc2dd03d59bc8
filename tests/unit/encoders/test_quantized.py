"""Quantized weights come with their scales, in parts as in whole; unknown layouts are refused."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from modality_forcing.encoders.quantized import offsets
from modality_forcing.encoders.weights import open_checkpoint
from modality_forcing.errors import UserError

NAMES = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "float32": "F32",
    "bfloat16": "BF16",
}
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(6, 4)).astype(np.float32)
FLOAT8 = WEIGHT.astype(ml_dtypes.float8_e4m3fn)
INT8 = RNG.integers(-127, 128, (6, 4)).astype(np.int8)
ROWS = RNG.uniform(0.1, 2, 6).astype(np.float32)
ONE = np.float32(0.125)
PART = (slice(1, 5), slice(0, 3))


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Writes a safetensors file; the package's own writer has no float8."""
    header, content = {}, b""
    for name, array in tensors.items():
        stored = np.asarray(array, order="C")
        ends = [len(content), len(content) + stored.nbytes]
        dtype = NAMES[str(stored.dtype)]
        header[name] = {"dtype": dtype, "shape": list(stored.shape), "data_offsets": ends}
        content += stored.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"p.weight": FLOAT8}, FLOAT8.astype("f4")),
        ({"p.weight": WEIGHT.astype(ml_dtypes.float8_e5m2)}, None),
        ({"p.weight": FLOAT8, "p.scale_weight": ONE}, FLOAT8.astype("f4") * ONE),
        ({"p.weight": FLOAT8, "p.weight_scale": ROWS[:, None]}, None),
        ({"p.weight": INT8, "p.SCB": ROWS, "p.weight_format": np.uint8(0)}, None),
    ],
    ids=["float8", "e5m2", "one scale", "scale of rows", "int8"],
)
def test_weights_are_the_numbers_times_their_scales(tmp_path, tensors, expected):
    marks = {"scaled_fp8": FLOAT8[:0, 0], "p.input_scale": ONE, "other": WEIGHT}
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", {**marks, **tensors}))
    assert set(checkpoint.shapes) == {"p.weight", "other"}
    if expected is None and "p.SCB" in tensors:
        expected = INT8 * ROWS[:, None] / np.float32(127)
    elif expected is None and "p.weight_scale" in tensors:
        expected = FLOAT8.astype("f4") * ROWS[:, None]
    elif expected is None:
        expected = tensors["p.weight"].astype("f4")
    read = checkpoint.read("p.weight")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, expected, rtol=1e-6)
    np.testing.assert_array_equal(checkpoint.read("p.weight", PART), read[PART])
    np.testing.assert_array_equal(checkpoint.read("other"), WEIGHT)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"p.weight": INT8}, "I8 without a scale that is known"),
        ({"p.weight": INT8, "p.weight_scale_inv": ONE}, "I8 without a scale that is known"),
        ({"p.weight": INT8, "p.weight_scale": np.uint8([127])}, "I8 with scales of U8"),
        ({"p.weight": INT8.view(np.uint8), "p.absmax": ROWS}, "U8 with absmax, a layout"),
        ({"p.weight": FLOAT8, "p.weight.scale": ONE}, r"F8_E4M3 with weight\.scale, a layout"),
        ({"p.weight": FLOAT8, "p.weight_scales": ONE}, "F8_E4M3 with weight_scales, a layout"),
        ({"p.weight": FLOAT8, "p.weight_scale": WEIGHT[:4]}, r"scales \[4, 4\], not one for each"),
        ({"p.weight": INT8, "p.weight_scale": ONE, "p.weight_zero_point": ROWS}, r"scales \[\]"),
        ({"p.weight": FLOAT8, "p.weight_scale_2": ONE}, "F8_E4M3 with weight_scale_2, a layout"),
        ({"p.weight": FLOAT8, "q.weight": FLOAT8, "q.scale_weight": ONE}, "without its scale"),
        ({"p.weight": INT8, "p.SCB": ROWS, "p.weight_format": np.uint8(2)}, "in an order of rows"),
    ],
)
def test_numbers_that_are_not_weights_are_refused_by_name(tmp_path, tensors, message):
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", tensors))
    with pytest.raises(UserError, match=rf"m\.safetensors: p\.weight is .*{message}"):
        checkpoint.read("p.weight")


GOLDENS = Path(__file__).parents[2] / "parity" / "data"  # make_quantized_goldens.py makes them
EXPONENTS = ("transformers_float8_ue8m0", "comfy_mxfp8")  # whose scales are of that type
REFUSED = {
    "bitsandbytes_nf4": r"0\.weight is U8 with weight\.absmax, a layout that is not known",
    "comfy_int8_rotated": r"0\.weight is I8 with rotated columns \(convrot\), a layout",
    "comfy_mxfp8": r"0\.weight is F8_E4M3 in the format 'mxfp8', which is not known",
    "quanto_int4": r"0\.weight is U8 with weight_shift, a layout that is not known",
}
CASES = [path.stem.removeprefix("quantized_") for path in sorted(GOLDENS.glob("quantized_*.s*"))]


@pytest.mark.parametrize("case", CASES)
def test_files_of_the_libraries_have_the_weights_that_they_restore(case: str):
    if case in EXPONENTS and tuple(map(int, version("safetensors").split(".")[:2])) < (0, 6):
        pytest.skip("older safetensors have no such type")
    checkpoint = open_checkpoint(GOLDENS / f"quantized_{case}.safetensors")
    assert set(checkpoint.shapes) == {"0.weight"}
    if case in REFUSED:
        with pytest.raises(UserError, match=REFUSED[case]):
            checkpoint.read("0.weight")
        return
    weights = checkpoint.read("0.weight")
    with np.load(GOLDENS / "quantized.npz") as expected:
        np.testing.assert_array_equal(weights[::5, ::3], expected[case])
    part = (slice(5, len(weights) - 2), slice(17, weights.shape[1] - 5))
    np.testing.assert_array_equal(checkpoint.read("0.weight", part), weights[part])
    np.testing.assert_array_equal(checkpoint.read("0.weight", part[:1]), weights[part[:1]])


def test_every_library_was_tried():
    with np.load(GOLDENS / "quantized.npz") as expected:
        assert len(CASES) == 21 and set(CASES) == {*expected, *REFUSED}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"format": "asym_w4a8_int8"}, "is I8 in the format 'asym_w4a8_int8'"),
        ({"format": "int8_tensorwise", "convrot": True}, "with rotated columns"),
        ({"format": "int8_tensorwise"}, None),
        ("no description", None),
    ],
)
def test_formats_of_the_metadata_are_heeded(tmp_path, stated, message):
    metadata = {"_quantization_metadata": json.dumps({"layers": {"p": stated}})}
    save_file({"p.weight": INT8, "p.weight_scale": ROWS}, tmp_path / "m.safetensors", metadata)
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    if message:
        with pytest.raises(UserError, match=message):
            checkpoint.read("p.weight")
    else:
        np.testing.assert_array_equal(checkpoint.read("p.weight"), INT8 * ROWS[:, None])


def test_damaged_description_is_one_line(tmp_path):
    tensors = {"p.weight": INT8, "p.weight_scale": ONE, "p.comfy_quant": np.uint8([123, 34])}
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", tensors))
    with pytest.raises(UserError, match=r"p\.weight has a comfy_quant that cannot be read"):
        checkpoint.read("p.weight")


def test_blocks_have_the_size_that_the_config_states(tmp_path):
    wide = RNG.normal(size=(6, 10)).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    scales = RNG.uniform(0.1, 2, (2, 3)).astype(np.float32)
    path = write(tmp_path / "m.safetensors", {"p.weight": wide, "p.weight_scale_inv": scales})
    with pytest.raises(UserError, match=r"with scales \[2, 3\], not one for each row or block"):
        open_checkpoint(path).read("p.weight")
    stated = {"quantization_config": {"weight_block_size": [4, 4]}}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    expected = wide.astype("f4") * scales.repeat(4, 0)[:6].repeat(4, 1)[:, :10]
    np.testing.assert_array_equal(open_checkpoint(path).read("p.weight"), expected)


def test_numbers_begin_where_safetensors_reads_them(tmp_path):
    path = write(tmp_path / "m.safetensors", {"a": WEIGHT, "b": INT8})
    raw = path.read_bytes()
    found = offsets(path)
    assert raw[found["a"] :][: WEIGHT.nbytes] == WEIGHT.tobytes()
    assert raw[found["b"] :] == INT8.tobytes()
