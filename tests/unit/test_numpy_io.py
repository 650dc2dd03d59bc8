"""Arrays are read as stored; any damage is one line, and no other array where a checksum is."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing import numpy_io
from modality_forcing.errors import UserError
from tests import damage

HINT = "write {} again"
ARRAYS = {
    "plain": np.arange(12, dtype=np.float32).reshape(3, 4),
    "big": np.arange(6, dtype=">f8"),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "mask": np.array([[True, False]]),
    "scalar": np.float16(2.5),
    "empty": np.zeros((0, 3), np.uint16),
    "long": np.array([1.5], np.longdouble),
}


def saved(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def same(one: np.ndarray, other: np.ndarray) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read_as_stored_and_may_be_written_to(tmp_path: Path, name: str):
    array = np.asarray(ARRAYS[name])
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", **{name: array, "other": np.ones(2)})
    for read in (
        numpy_io.read_npy(tmp_path / "a.npy", HINT),
        numpy_io.read_npz(tmp_path / "a.npz", [name], HINT)[name],
    ):
        same(read, array)
        assert read.flags.writeable
    assert numpy_io.npy_dtype(tmp_path / "a.npy") == array.dtype
    if array.size:
        same(numpy_io.map_npy(tmp_path / "a.npy", HINT), array)


def test_wrong_contents_are_named(tmp_path: Path):
    path = tmp_path / "a.npz"

    def refused(content: bytes, message: str, *names: str) -> None:
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{path}: {message}"):
            numpy_io.read_npz(path, names or ("depth",), HINT)

    whole = saved(depth=np.ones(3))
    refused(saved(a=np.ones(1), b=np.ones(1)), "has no array `depth`, but a, b; write depth again")
    refused(saved(depth=np.array(["x"])), "`depth` has type <U1, not numbers")
    refused(saved(depth=np.array([{}])), r".* \(it holds Python objects, not numbers\); write dep")
    buffer = io.BytesIO()
    np.save(buffer, np.ones(2))
    refused(buffer.getvalue(), "is a single array, not an .npz")
    unknown = "cannot be read as a .npz of numbers "
    refused(b"", unknown + r"\(damaged, or another format\)")
    at = whole.index(b"PK\x01\x02")
    method = whole[: at + 10] + b"\x09" + whole[at + 11 :]
    refused(method, unknown + r"\(compressed by an unknown method, 9\)")
    encrypted = whole[: at + 8] + b"\x01" + whole[at + 9 :]
    refused(encrypted, unknown + r"\(it is encrypted\)")
    with pytest.raises(UserError, match=r"a\.npy: cannot be read as a \.npy of numbers"):
        path.with_suffix(".npy").write_bytes(whole)
        numpy_io.read_npy(path.with_suffix(".npy"), HINT)
    for read in (numpy_io.read_npy, numpy_io.map_npy):
        with pytest.raises(UserError, match="none: no such file; write"):
            read(tmp_path / "none", HINT)
    assert numpy_io.npy_dtype(tmp_path / "none") is None


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "long"])
def test_written_bytes_are_those_of_numpy(name: str, tmp_path: Path):
    np.save(tmp_path / "a.npy", ARRAYS[name])
    assert numpy_io.npy_bytes(np.asarray(ARRAYS[name])) == (tmp_path / "a.npy").read_bytes()


def test_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**20)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UserError, match="cut short"):
        numpy_io.read_npy(path, HINT)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("depth.npy", path.read_bytes())
    with pytest.raises(UserError, match="cut short"):
        numpy_io.read_npz(tmp_path / "a.npz", ["depth"], HINT)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A file that every example of a fuzz test writes."""
    return tmp_path_factory.mktemp("fuzz") / "a.bin"


SMALL = {"depth": np.arange(40, dtype="f4").reshape(5, 8), "valid": np.eye(5, dtype=bool)}
WHOLE = saved(**SMALL)
LONE = io.BytesIO()
np.save(LONE, SMALL["depth"])


@given(damage.of(WHOLE))
@damage.examples(150)
def test_damaged_npz_is_one_line_or_the_same_arrays(path: Path, content: bytes):
    path.write_bytes(content)
    try:
        arrays = numpy_io.read_npz(path, [*SMALL], HINT)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        for name, array in SMALL.items():
            same(arrays[name], array)


@given(st.one_of(damage.of(LONE.getvalue()), st.binary(max_size=200)))
@damage.examples(150)
@pytest.mark.filterwarnings("ignore")
def test_damaged_npy_is_one_line_or_an_array(path: Path, content: bytes):
    path.write_bytes(content)
    for read in (numpy_io.read_npy, numpy_io.map_npy):
        try:
            assert isinstance(read(path, HINT), np.ndarray)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    numpy_io.npy_dtype(path)
