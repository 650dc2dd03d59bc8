"""The device mesh, and which of its axes shard which dimension of weights, moments and EMA.

The batch is sharded over ("data", "fsdp"). Weights, Adam's moments and the EMA are replicated along
"data" and sharded along "fsdp". "tensor" shards heads and MLP. A preset is one set of rules.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from modality_forcing import distributed
from modality_forcing.config import MeshConfig, ModelConfig, TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.models.layout import spec

AXES = ("data", "fsdp", "tensor")
AnyMesh = Mesh | AbstractMesh
Shardings = Callable[[PyTree], PyTree]  # from arrays or their shapes to their shardings
Axis = str | tuple[str, ...] | None
Spec = tuple[Axis, ...]


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each kind of weight, one per dimension (the letters after the underscore).

    Matrices are sharded along the first of their two dimensions where possible, because a TPU pads
    the last one to 128 lanes. Stacked layers have a leading dimension that is never sharded: the
    scan runs over it.

    keep_gathered: keep gathered weights from forward to backward. Otherwise they are gathered twice
    a step. Raises ValueError if one axis would shard two dimensions of a weight.
    """

    q_dh: Spec = ("fsdp", "tensor")
    kv_dg: Spec = ("fsdp", "tensor")
    out_hd: Spec = (("tensor", "fsdp"), None)
    gate_up_df: Spec = ("fsdp", "tensor")
    down_fd: Spec = (("tensor", "fsdp"), None)
    linear_io: Spec = ("fsdp", None)
    low_rank_ro: Spec = (None, "fsdp")  # the second matrix of a low-rank update
    table_we: Spec = ("fsdp", None)  # word embeddings
    vector_e: Spec = (None,)
    scalar: Spec = ()
    keep_gathered: bool = True

    def specs(self) -> dict[str, Spec]:
        """Returns the rules by name."""
        return {name: rule for name, rule in vars(self).items() if name != "keep_gathered"}

    def __post_init__(self):
        for name, rule in self.specs().items():
            axes = [axis for entry in rule for axis in _axes(entry)]
            if len(axes) != len(set(axes)):
                raise ValueError(f"{name} {rule} splits two dimensions by one axis")


def _axes(entry: Axis) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _tensor_only(rule: Spec) -> Spec:
    return tuple("tensor" if "tensor" in _axes(entry) else None for entry in rule)


_SHARDED = ShardingRules()
PRESETS: Mapping[str, ShardingRules] = {
    # Data parallel with sharded weights, gradients, moments and EMA. A block's gathered bfloat16
    # weights stay from forward to backward: PyTorch's SHARD_GRAD_OP, ZeRO stage 2.
    "zero2": _SHARDED,
    # The same shards. The backward pass gathers again, so that a device holds few blocks' weights.
    "fsdp": dataclasses.replace(_SHARDED, keep_gathered=False),
    # Every device holds everything: nothing to gather, no memory saved.
    "replicated": ShardingRules(
        **{name: _tensor_only(rule) for name, rule in _SHARDED.specs().items()}, keep_gathered=False
    ),
}

# The rule of a weight, by the last part of its path. `w` belongs to a Linear.
PARAM_RULES = {
    "q": "q_dh",
    "k": "kv_dg",
    "v": "kv_dg",
    "gate": "gate_up_df",
    "up": "gate_up_df",
    "out": "out_hd",
    "down": "down_fd",
    "w": "linear_io",
    "a": "linear_io",
    "b": "low_rank_ro",
    "table": "table_we",
    "offset": "vector_e",
    "q_scale": "vector_e",
    "k_scale": "vector_e",
    "padding": "vector_e",
}


def make_mesh(c: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of a config over the given devices, by default over all.

    Axes within a slice follow its interconnect; "data" also runs over slices, across the
    data-center network. Raises UserError if the axes do not multiply to the number of devices.
    """
    devices = list(distributed.devices() if devices is None else devices)
    sizes = _sizes(c, len(devices))
    if c.slices > 1:
        found = len({getattr(d, "slice_index", 0) for d in devices})
        if found != c.slices:
            what = f"mesh.slices is {c.slices}, the devices are of {found}"
            raise UserError(what, hint="set it to the slices there are")
        grid = mesh_utils.create_hybrid_device_mesh(
            sizes, (c.slices, 1, 1), devices=devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def local_mesh(tensor: int = 1) -> Mesh | None:
    """Returns a mesh of this process's devices that shards weights over all; None for one.

    tensor: devices that share an example. Raises UserError if they do not divide the devices.
    """
    devices = distributed.local_devices()
    if len(devices) % tensor:
        what = f"{tensor} devices cannot share an example: here are {len(devices)}"
        raise UserError(what, hint="choose a divisor of that, or leave --tensor out")
    more = len(devices) > 1 or tensor > 1
    return make_mesh(MeshConfig(tensor=tensor), devices) if more else None


def check_heads(c: ModelConfig, mesh: Mesh) -> None:
    """Raises UserError if a mesh cannot split the heads of a network."""
    if c.heads % mesh.shape["tensor"] or c.kv_heads % mesh.shape["tensor"]:
        what = f"{mesh.shape['tensor']} devices cannot share {c.heads} heads, {c.kv_heads} of kv"
        raise UserError(what, hint="let a number of devices share an example that divides both")


def _sizes(c: MeshConfig, devices: int) -> tuple[int, int, int]:
    """Returns (data, fsdp, tensor) of one slice."""
    each, sizes = devices // c.slices, [c.data, c.fsdp, c.tensor]
    rest = sizes.count(-1)
    if rest > 1:
        hint = "leave one of them to take what is left"
        raise UserError("mesh.data and mesh.fsdp are both -1", hint=hint)
    known = math.prod(size for size in sizes if size != -1)
    if devices % c.slices or each % known or (not rest and each != known):
        axes = f"mesh data={c.data} fsdp={c.fsdp} tensor={c.tensor} slices={c.slices}"
        hint = "set mesh.fsdp=-1 to take all devices that are left"
        raise UserError(f"{axes} does not fit {devices} devices", hint=hint)
    data, fsdp, tensor = (each // known if size == -1 else size for size in sizes)
    return data, fsdp, tensor


def check_batch(c: TrainConfig, mesh: Mesh) -> None:
    """Raises UserError if the batch does not divide among devices and micro-batches."""
    parts = batch_devices(mesh) * c.grad_accum_steps
    if c.batch % parts:
        what = f"train.batch {c.batch} does not divide among {parts} micro-batches"
        devices = "devices along mesh.data and mesh.fsdp, times train.grad_accum_steps"
        raise UserError(what, hint=f"make it a multiple of {parts}: {devices}")


def rule_for_param(path: tuple[str, ...], rank: int) -> str:
    """Returns the name of a weight's rule; raises KeyError for an unknown weight."""
    return PARAM_RULES[path[-1]] if rank else "scalar"


def param_spec(
    rules: ShardingRules, path: tuple[str, ...], shape: tuple[int, ...], mesh: AnyMesh
) -> PartitionSpec:
    """Returns the partition of a weight, from its path in the network and its shape.

    A dimension that its axes do not divide stays unsharded: `replicated_params` lists it.
    """
    if not shape:
        return PartitionSpec()
    entries = getattr(rules, rule_for_param(path, len(shape)))
    if "layers" in path:
        entries = (None, *entries)
    if len(entries) != len(shape):
        raise ValueError(f"{'/'.join(path)} {shape} has not the dimensions of its rule {entries}")
    fitting = [
        entry if size % math.prod(mesh.shape[axis] for axis in _axes(entry)) == 0 else None
        for entry, size in zip(entries, shape, strict=True)
    ]
    while fitting and fitting[-1] is None:
        fitting.pop()
    return PartitionSpec(*fitting)


def tree_shardings(tree: PyTree, rules: ShardingRules, mesh: AnyMesh) -> PyTree:
    """Returns the sharding of every leaf of a tree of weights, or of a tree with copies of it.

    A leaf is identified by the dictionary keys in its path, so that optimizer moments are sharded
    as their weights are. A leaf without such keys (a counter) is replicated.
    """

    def sharding(path: PyTree, leaf: PyTree) -> NamedSharding:
        names = tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        found = param_spec(rules, names, leaf.shape, mesh) if names else PartitionSpec()
        return NamedSharding(mesh, found)  # pyright: ignore[reportArgumentType]

    return jax.tree_util.tree_map_with_path(sharding, tree)


def abstract(tree: PyTree, shardings: PyTree) -> PyTree:
    """Returns the shapes and dtypes of a tree, real or abstract, with these shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def on_first_device() -> Shardings:
    """Returns the shardings of weights that one device holds; raises UserError without a device."""
    first = jax.sharding.SingleDeviceSharding(distributed.local_devices()[0])
    return functools.partial(jax.tree.map, lambda _: first)


def sharded_over(mesh: AnyMesh) -> Shardings:
    """Returns the shardings of weights that are split over a mesh as far as its axes divide."""
    return functools.partial(tree_shardings, rules=PRESETS["fsdp"], mesh=mesh)


def batch_shardings(batch: PyTree, mesh: Mesh) -> PyTree:
    """Returns the sharding of every leaf of a batch, examples over "data" and "fsdp"."""
    return jax.tree.map(lambda _: NamedSharding(mesh, spec("b")), batch)


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Puts a batch that every process has in full on the mesh, split by examples.

    The examples must divide among the devices of `batch_devices`.
    """
    by_example = NamedSharding(mesh, spec("b"))

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, by_example, lambda index: x[index])

    return jax.tree.map(put, batch)


def batch_devices(mesh: AnyMesh) -> int:
    """Returns the number of parts into which a mesh splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def traced_on(call: Callable[..., PyTree], mesh: Mesh | None) -> Callable[..., PyTree]:
    """Returns the call for `jit`, with the mesh that models/layout.py reads while it is traced."""
    if mesh is None:
        return call

    @functools.wraps(call)
    def on_mesh(*args: object, **kwargs: object) -> PyTree:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return call(*args, **kwargs)

    return on_mesh


def replicated_params(params: PyTree, rules: ShardingRules, mesh: AnyMesh) -> dict[str, int]:
    """Returns {path: bytes} of the weights that "fsdp" does not shard, the largest first."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(str(key.key) for key in path)
        if mesh.shape["fsdp"] > 1 and "fsdp" not in str(param_spec(rules, names, leaf.shape, mesh)):
            found["/".join(names)] = leaf.size * leaf.dtype.itemsize
    return dict(sorted(found.items(), key=lambda item: -item[1]))
