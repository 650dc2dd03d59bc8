"""Checksums of weights, kept in checkpoints: damage on disk is named, never used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

_SMALL = 2**18  # elements of an array that is hashed on the host
A = TypeVar("A", jax.Array, np.ndarray)


class _Digest(NamedTuple):
    """Two sums of an array's mixed bits modulo 2^32, and whether every value is finite."""

    low: jax.Array | np.ndarray | np.uint32
    high: jax.Array | np.ndarray | np.uint32
    finite: jax.Array | np.ndarray | bool


def checksums(tree: PyTree) -> dict[str, str]:
    """Returns the checksum of each array by its path, 16 hexadecimal digits.

    It is a sum over elements, so that it is the same on any devices and in any number of processes:
    each device sums its own shards, and nothing is copied to the host. One changed element always
    changes it; otherwise two arrays have the same one with a probability of 2^-64.
    """
    return {path: _hex(digest) for path, digest in _digests(tree).items()}


def start(trees: Mapping[str, PyTree]) -> Callable[[], dict[str, dict[str, str]]]:
    """Starts the checksums of trees, whose arrays may be donated afterwards.

    Returns a function that waits for them and gives them by the trees' names, in any thread. On
    accelerators they are computed before the next program; on the CPU of a single process, where
    they would hold that up, in the thread that calls the function.
    """

    def begin(leaf: ArrayLike) -> Callable[[], _Digest]:
        leaf = jnp.asarray(leaf)
        on_host = all(device.platform == "cpu" for device in leaf.sharding.device_set)
        if leaf.is_fully_addressable and on_host:
            view = np.asarray(leaf)  # holds the memory: a donated array's is then not reused
            return lambda: _digest(jnp.asarray(view))
        digest = _digest(leaf)
        return lambda: digest

    begun = {name: {path: begin(x) for path, x in _leaves(tree)} for name, tree in trees.items()}
    return lambda: {
        name: {path: _hex(digest()) for path, digest in tree.items()}
        for name, tree in begun.items()
    }


def changed(tree: PyTree, expected: Mapping[str, str]) -> list[str]:
    """Returns the paths whose arrays are absent, unexpected, or differ from their checksums."""
    found = checksums(tree)
    return sorted(
        path for path in {*found, *expected} if found.get(path, "") != expected.get(path, "")
    )


def not_finite(tree: PyTree) -> list[str]:
    """Returns the paths of the arrays that hold a NaN or an infinity."""
    return [path for path, digest in _digests(tree).items() if not digest.finite]


def _digests(tree: PyTree) -> dict[str, _Digest]:
    digests = {path: _digest(jnp.asarray(leaf)) for path, leaf in _leaves(tree)}
    return jax.device_get(digests)


def _leaves(tree: PyTree) -> list[tuple[str, ArrayLike]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def _digest(x: jax.Array) -> _Digest:
    # Compiling takes longer than hashing a small array here.
    if x.size <= _SMALL and x.is_fully_addressable:
        return _digest_on_host(np.asarray(x))
    return _digest_on_devices(x)


def _digest_on_host(x: np.ndarray) -> _Digest:
    x = np.ascontiguousarray(x).reshape(-1)
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of a NaN
        finite = bool(np.isfinite(x).all()) if jnp.issubdtype(x.dtype, jnp.inexact) else True
    bits = x.view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32)
    low, high = _mix(bits, np.arange(x.size, dtype=np.uint32), np.uint32)
    return _Digest(low.sum(dtype=np.uint32), high.sum(dtype=np.uint32), finite)


@jax.jit
def _digest_on_devices(x: jax.Array) -> _Digest:
    finite = jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.bool_(True)
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    position = jnp.zeros(x.shape, jnp.uint32)  # in the flattened array, modulo 2^32
    for axis, size in enumerate(x.shape):
        position *= jnp.uint32(size)
        position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    low, high = _mix(bits.astype(jnp.uint32), position, jnp.uint32)
    return _Digest(low.sum(dtype=jnp.uint32), high.sum(dtype=jnp.uint32), finite)


def _mix(bits: A, position: A, u32: Callable[[int], A | np.uint32]) -> tuple[A, A]:
    """Returns two hashes of each element.

    Each line is a bijection of the bits at a given position (the finalizer of MurmurHash3). A plain
    weighted sum would miss two flipped sign bits.
    """
    h = bits ^ (position * u32(0x9E3779B1))
    h = (h ^ (h >> u32(16))) * u32(0x85EBCA6B)
    h = (h ^ (h >> u32(13))) * u32(0xC2B2AE35)
    low = h ^ (h >> u32(16))
    high = (low ^ (low >> u32(15)) ^ (position >> u32(3))) * u32(0x2C1B3C6D)
    return low, high ^ (high >> u32(12))


def _hex(digest: _Digest) -> str:
    return f"{int(digest.high):08x}{int(digest.low):08x}"
