"""Safetensors files by name: loading, and messages for invalid files."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from modality_forcing.encoders import weights
from modality_forcing.encoders.weights import Checkpoint, Tensor, load_module, open_checkpoint
from modality_forcing.errors import UserError
from tests import damage

RNG = np.random.default_rng(0)
ROWS = {f"layer.{i}.weight": RNG.normal(size=(5, 4)).astype(ml_dtypes.bfloat16) for i in range(3)}
STORED = {
    **ROWS,
    "conv": RNG.normal(size=(3, 2, 1, 1)).astype(np.float32),
    "vector": np.arange(7, dtype=np.float32),
}
TENSORS = {
    "inner.stack": Tensor(tuple(ROWS), "oi->io", stacked=True),
    "inner.conv": Tensor(("conv",), "oi11->io"),
    "vector": Tensor(("vector",)),
}


class Inner(nnx.Module):
    def __init__(self):
        self.stack = nnx.Param(jnp.zeros((3, 4, 5), jnp.bfloat16))
        self.conv = nnx.Param(jnp.zeros((2, 3)))


class Network(nnx.Module):
    def __init__(self):
        self.inner = Inner()
        self.vector = nnx.Param(jnp.zeros(7, jnp.bfloat16))


def saved(
    folder: Path, stored: dict[str, np.ndarray] = STORED, name: str = "model.safetensors"
) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    save_file(stored, folder / name)
    return folder


def indexed(folder: Path) -> Path:
    """Two files with an index, as large models are published."""
    files = {
        "model-00001-of-00002.safetensors": dict(ROWS),
        "model-00002-of-00002.safetensors": {k: STORED[k] for k in ("conv", "vector")},
    }
    for name, stored in files.items():
        saved(folder, stored, name)
    listed = {key: name for name, stored in files.items() for key in stored}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    return folder


def check(network: Network) -> None:
    np.testing.assert_array_equal(
        network.inner.stack[...], np.stack([rows.T for rows in ROWS.values()])
    )
    np.testing.assert_array_equal(network.inner.conv[...], STORED["conv"][:, :, 0, 0].T)
    np.testing.assert_array_equal(network.vector[...], STORED["vector"].astype(ml_dtypes.bfloat16))
    assert network.inner.stack[...].dtype == network.vector[...].dtype == jnp.bfloat16


def test_module_loads_from_a_file_a_folder_or_an_index(tmp_path):
    one = saved(tmp_path / "one")
    for location in (one, one / "model.safetensors", str(one), indexed(tmp_path / "several")):
        check(load_module(Network, TENSORS, open_checkpoint(location)))


def test_arrays_have_the_given_sharding(tmp_path):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    seen = {}

    def place(path: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
        seen[path] = shape
        return device

    network = load_module(Network, TENSORS, open_checkpoint(saved(tmp_path)), sharding=place)
    check(network)
    assert seen == {"inner.stack": (3, 4, 5), "inner.conv": (2, 3), "vector": (7,)}
    assert network.vector[...].sharding == device


def parts(length: int) -> st.SearchStrategy[slice]:
    ends = st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)
    return ends.map(lambda ends: slice(*sorted(ends)))


@given(st.tuples(parts(3), parts(4), parts(5)))
def test_only_the_requested_part_is_read(tmp_path_factory, index):
    checkpoint = open_checkpoint(saved(tmp_path_factory.mktemp("part")))
    table = np.stack([rows.T for rows in ROWS.values()])
    read = []

    class Watched(Checkpoint):
        def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
            read.append(super().read(name, index))
            return read[-1]

    wanted = jax.ShapeDtypeStruct(table.shape, np.float32)
    recorded = Watched(checkpoint.where, checkpoint.files)
    part = weights._read_part(recorded, TENSORS["inner.stack"], wanted, index)
    np.testing.assert_array_equal(part, table[index])
    assert sum(one.size for one in read) == part.size  # nothing else is read


def test_digest_depends_on_every_byte(tmp_path):
    several = open_checkpoint(indexed(tmp_path / "several"))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in several.files]
    assert several.digest == hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
    changed = {**STORED, "vector": np.arange(7, dtype=np.float32)[::-1].copy()}
    assert (
        open_checkpoint(saved(tmp_path / "a")).digest
        != open_checkpoint(saved(tmp_path / "b", changed)).digest
    )


def test_config_beside_the_file_is_read(tmp_path):
    checkpoint = open_checkpoint(saved(tmp_path / "without"))
    assert checkpoint.config == {} and checkpoint.folder == tmp_path / "without"
    (saved(tmp_path / "with") / "config.json").write_text('{"model_type": "umt5"}')
    assert open_checkpoint(tmp_path / "with").config == {"model_type": "umt5"}


def without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in STORED.items() if key != name}


@pytest.mark.parametrize(
    "stored, message",
    [
        (without("conv"), "lacks conv;"),
        (without("conv") | {f"more.{i}": np.zeros(1) for i in range(5)}, "lacks conv;"),
        (
            STORED | {f"more.{i}": np.zeros(1) for i in range(5)},
            "has more.0, more.1, more.2 and 2 more beyond this model",
        ),
        (
            STORED | {"conv": np.zeros((3, 2, 2, 1))},
            r"conv is \[3, 2, 2, 1\], which does not fit \[2, 3\]",
        ),
        (
            STORED | {"layer.1.weight": np.zeros((4, 5))},
            r"layer.1.weight is \[4, 5\], which does not fit \[4, 5\]",
        ),
        (STORED | {"vector": np.zeros(8)}, r"vector is \[8\], which does not fit \[7\]"),
        (STORED | {"vector": np.zeros((7, 1))}, "vector is"),
    ],
)
def test_misfitting_tensors_are_named(tmp_path, stored, message):
    with pytest.raises(UserError, match=message):
        load_module(Network, TENSORS, open_checkpoint(saved(tmp_path, stored)))


def test_unused_tensors_are_allowed(tmp_path):
    more = {"decoder.a": np.zeros(1), "decoder.b": np.zeros(2), "step": np.zeros(1)}
    checkpoint = open_checkpoint(saved(tmp_path, STORED | more))
    check(load_module(Network, TENSORS, checkpoint, unused=("decoder.", "step")))
    with pytest.raises(UserError, match="has step beyond this model"):
        load_module(Network, TENSORS, checkpoint, unused=("decoder.",))


def test_damaged_files_are_one_line(tmp_path):
    content = (saved(tmp_path / "complete") / "model.safetensors").read_bytes()
    for name, damaged in {
        "short": content[:-3],
        "text": b"hello",
        "header": b"\xff" * 64,
        "empty": b"",
    }.items():
        (path := tmp_path / f"{name}.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="is truncated or no safetensors file") as caught:
            open_checkpoint(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_folders_without_a_checkpoint_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no \.safetensors file"):
        open_checkpoint(tmp_path)
    folder = indexed(tmp_path / "several")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"lacks model-00002-of-00002\.safetensors; download the rest"
    ):
        open_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(UserError, match="lists no files"):
        open_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match="is not a JSON object"):
        open_checkpoint(folder)
    (folder / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="several indices"):
        open_checkpoint(folder)
    saved(tmp_path / "twice", name="a.safetensors")
    with pytest.raises(UserError, match=r"holds .* and so does another file"):
        open_checkpoint(saved(tmp_path / "twice", name="b.safetensors"))


@pytest.mark.parametrize(
    "location, repo, patterns, revision",
    [
        ("google/umt5-small", "google/umt5-small", "*.safetensors", None),
        (
            "Wan-AI/Wan2.1-Diffusers/text_encoder@main",
            "Wan-AI/Wan2.1-Diffusers",
            "text_encoder/*.safetensors",
            "main",
        ),
        ("a/b@refs/pr/1", "a/b", "*.safetensors", "refs/pr/1"),
    ],
)
def test_hub_id_is_downloaded_and_its_commit_recorded(
    tmp_path, monkeypatch, location, repo, patterns, revision
):
    asked = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns[0]))
        saved(tmp_path / "0123abc" / (allow_patterns[0].rpartition("/")[0]))
        return str(tmp_path / "0123abc")

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download)
    )
    checkpoint = open_checkpoint(location)
    assert (
        asked == [(repo, revision, patterns)]
        and checkpoint.revision == "0123abc"
        and checkpoint.where == location
    )
    check(load_module(Network, TENSORS, checkpoint))


def test_unreachable_hub_is_one_line(monkeypatch):
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host\nand many lines of advice")

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=unreachable)
    )
    reason = r"^google/umt5-small: cannot be fetched \(no route to host\)"
    with pytest.raises(UserError, match=rf"{reason}; give a folder that is there$"):
        open_checkpoint("google/umt5-small")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install 'modality_forcing"):
        open_checkpoint("google/umt5-small")


@pytest.fixture(scope="module")
def spare(tmp_path_factory) -> Path:
    """A checkpoint that every example of the fuzz test damages and repairs."""
    return saved(tmp_path_factory.mktemp("spare")) / "model.safetensors"


@given(st.data())
@damage.examples(100)
def test_damaged_header_is_one_line_or_another_network(spare, data):
    """The format has no checksum: a changed number is a number, a changed header never a crash."""
    before = spare.read_bytes()
    header = 8 + int.from_bytes(before[:8], "little")
    spare.write_bytes(data.draw(damage.of(before[:header])) + before[header:])
    try:
        load_module(Network, TENSORS, open_checkpoint(spare))
    except UserError as error:
        assert str(spare) in str(error) and "\n" not in str(error)
    finally:
        spare.write_bytes(before)


@pytest.mark.parametrize("dtype", (np.float32, np.float16, ml_dtypes.bfloat16))
@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_tensor_that_is_not_finite_is_named(tmp_path, dtype, value):
    array = np.zeros((3, 4), dtype)
    array[2, 1] = value
    save_file({"good": np.full(3, -7, dtype), "bad": array}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.read("good").tolist() == [-7, -7, -7]
    assert not checkpoint.read("bad", (slice(0, 2), slice(0, 4))).any()  # what is read is checked
    with pytest.raises(UserError, match="bad holds NaN or inf; download it again"):
        checkpoint.read("bad")


@given(st.lists(st.floats(width=32), max_size=9))
def test_is_finite_is_that_of_numpy(values):
    for dtype in (np.float32, np.float16):
        with np.errstate(over="ignore"):
            array = np.array(values, np.float32).astype(dtype)
        assert weights.is_finite(array) == np.isfinite(array).all()
