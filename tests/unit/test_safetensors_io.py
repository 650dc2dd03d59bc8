"""Safetensors files written tensor by tensor, read by the library of the format."""

from __future__ import annotations

import json
import weakref

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from modality_forcing import safetensors_io
from modality_forcing.errors import UserError
from modality_forcing.safetensors_io import Tensor

RNG = np.random.default_rng(0)
STORED = {
    "b": RNG.normal(size=(3, 4)).astype(ml_dtypes.bfloat16),
    "a": RNG.normal(size=(5,)).astype(ml_dtypes.bfloat16),
    "wide": np.array([0.1], np.float32),
    "half": RNG.normal(size=(2, 1, 2)).astype(np.float16),
    "integers": np.arange(-3, 4, dtype=np.int8),
    "scalar": np.full((), 2, np.float32),
    "none": np.zeros((0, 3), np.float32),
}


def listed(stored: dict[str, np.ndarray] = STORED) -> list[Tensor]:
    return [Tensor(name, x.dtype, x.shape, lambda x=x: x) for name, x in stored.items()]


def test_one_file_holds_every_tensor_bit_for_bit(tmp_path):
    (path,) = safetensors_io.write(tmp_path / "new", "model", listed())
    assert path == tmp_path / "new" / "model.safetensors"
    again = load_file(path)
    assert again.keys() == STORED.keys()
    for name, tensor in STORED.items():
        assert (again[name].dtype, again[name].shape) == (tensor.dtype, tensor.shape)
        assert again[name].tobytes() == tensor.tobytes()
    with safe_open(path, "np") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_content_is_converted_and_may_be_transposed(tmp_path):
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = Tensor("a", np.dtype(ml_dtypes.bfloat16), (3, 2), lambda: table.T)
    (path,) = safetensors_io.write(tmp_path, "model", [tensor])
    np.testing.assert_array_equal(load_file(path)["a"], table.T)


def test_several_files_have_an_index(tmp_path):
    stored = {f"t{i}": np.full(10, i, np.float32) for i in range(5)}  # 40 bytes each
    *files, index = safetensors_io.write(tmp_path, "model", listed(stored), max_bytes=80)
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [path.name for path in files] == names
    assert index.name == "model.safetensors.index.json"
    content = json.loads(index.read_text())
    assert content["metadata"] == {"total_size": 200}
    places = dict(zip(stored, [names[0]] * 2 + [names[1]] * 2 + [names[2]], strict=True))
    assert content["weight_map"] == places
    for name, file in places.items():
        np.testing.assert_array_equal(load_file(tmp_path / file)[name], stored[name])


def test_a_tensor_larger_than_a_file_has_its_own(tmp_path):
    stored = {"a": np.zeros(1, np.float32), "b": np.zeros(100, np.float32)}
    files = safetensors_io.write(tmp_path, "model", listed(stored), max_bytes=80)
    assert [path.name for path in files[:-1]] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    alive: list[weakref.ref] = []

    def content() -> np.ndarray:
        assert not any(reference() is not None for reference in alive[:-1])
        array = np.zeros(7, np.float32)
        alive.append(weakref.ref(array))
        return array

    tensors = [Tensor(f"{i}", np.dtype(np.float32), (7,), content) for i in range(4)]
    safetensors_io.write(tmp_path, "model", tensors)
    assert len(alive) == 4


def test_content_of_another_shape_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"a is \(3,\), not \(4,\)"):
        tensor = Tensor("a", np.dtype(np.float32), (4,), lambda: np.zeros(3, np.float32))
        safetensors_io.write(tmp_path, "model", [tensor])


@pytest.mark.parametrize("shape", [(), (7,), (600, 5), (513, 1030)])
@pytest.mark.parametrize("target", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_copies_in_blocks_are_copies(shape, target, transposed):
    """To the bit where the dtype stays, NaN and all."""
    bits = RNG.integers(0, 2**16, shape[::-1] if transposed else shape, np.uint16)
    source = np.asarray(bits).view(ml_dtypes.bfloat16)
    source = source.T if transposed else source
    copy = np.empty(shape, target)
    safetensors_io.copy_blocks(copy, source)
    expected = np.asarray(source, order="C").astype(target)
    assert copy.tobytes() == expected.tobytes()


def test_file_is_read_tensor_by_tensor_with_its_metadata(tmp_path):
    (path,) = safetensors_io.write(tmp_path, "model", listed(), metadata={"b": "1", "a": "2"})
    file = safetensors_io.open_file(path)
    assert file.metadata == {"format": "pt", "b": "1", "a": "2"}
    assert file.tensors.keys() == STORED.keys()
    for name, tensor in STORED.items():
        read = file.read(name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert read.tobytes() == tensor.tobytes()


def test_equal_content_gives_equal_bytes(tmp_path):
    texts = {f"key {i}": "x" for i in range(20)}
    one, two = (
        safetensors_io.write(tmp_path / name, "model", tensors, metadata=texts)[0].read_bytes()
        for name, tensors in (("a", listed()), ("b", listed()[::-1]))
    )
    assert one == two


def test_cut_and_foreign_files_are_refused(tmp_path):
    (path,) = safetensors_io.write(tmp_path, "model", listed())
    file, whole = safetensors_io.open_file(path), path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors: is cut off or no safetensors file"):
        safetensors_io.open_file(path)
    with pytest.raises(UserError, match="ends within integers; copy it again"):
        file.read("integers")
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="is cut off or no safetensors file"):
        safetensors_io.open_file(path)
    save_file({"a": np.zeros(2, np.int64)}, path)
    with pytest.raises(UserError, match="holds numbers of type I64; known are BF16, F16, F32, I8"):
        safetensors_io.open_file(path)
    with pytest.raises(UserError, match="nothing: no such file"):
        safetensors_io.open_file(tmp_path / "nothing")
