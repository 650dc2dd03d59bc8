"""How a run is laid out over devices: the mesh, and which of its axes split which dimension of what is kept between steps.

The batch is split over ("data", "fsdp"). Along "data" weights are repeated; along "fsdp" the weights, the optimiser's
moments and the EMA are sharded; "tensor" splits heads and FFN. A preset says how weights are kept and gathered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from modality_forcing.config import MeshConfig, TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.models.layout import spec

AXES = ("data", "fsdp", "tensor")
Spec = tuple[str | tuple[str, ...] | None, ...]


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each kind of weight, one per dimension; the letters after the underscore are the dimensions.

    Shards lie along the first of a matrix's two dimensions wherever that is possible: the last one is padded to 128 lanes
    on a TPU. Stacked layers have one more dimension in front, never split: the scan takes it apart.

    Raises ValueError if one axis would split two dimensions of the same weight.
    """

    q_dh: Spec = ("fsdp", "tensor")
    kv_dg: Spec = ("fsdp", "tensor")
    out_hd: Spec = (("tensor", "fsdp"), None)
    gate_up_df: Spec = ("fsdp", "tensor")
    down_fd: Spec = (("tensor", "fsdp"), None)
    linear_io: Spec = ("fsdp", None)
    table_we: Spec = ("fsdp", None)  # rows of the word table
    vector_e: Spec = (None,)
    scalar: Spec = ()
    keep_gathered: bool = (
        True  # for the backward pass; else weights are gathered twice a step and never stay
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.name != "keep_gathered":
                axes = [
                    a
                    for entry in getattr(self, field.name)
                    for a in ((entry,) if isinstance(entry, str) else entry or ())
                ]
                if len(axes) != len(set(axes)):
                    raise ValueError(
                        f"{field.name} {getattr(self, field.name)} splits two dimensions by one axis"
                    )


def _whole(spec: Spec) -> Spec:
    return tuple(
        "tensor" if entry == "tensor" or (isinstance(entry, tuple) and "tensor" in entry) else None
        for entry in spec
    )


_SHARDED = ShardingRules()
_WEIGHTS = [
    field.name for field in dataclasses.fields(ShardingRules) if field.name != "keep_gathered"
]

PRESETS: Mapping[str, ShardingRules] = {
    # Data parallel, with weights, moments and EMA in shards; a block's whole bfloat16 weights stay from forward to backward.
    "zero2": _SHARDED,
    # The same shards; weights are gathered again in the backward pass, so that a device holds those of few blocks only.
    "fsdp": dataclasses.replace(_SHARDED, keep_gathered=False),
    # Everything whole on every device: nothing to gather, nothing saved.
    "replicated": ShardingRules(
        **{name: _whole(getattr(_SHARDED, name)) for name in _WEIGHTS}, keep_gathered=False
    ),
}

# Which rule a weight falls under, by the last part of its path; `w` belongs to a Linear.
PARAM_RULES = {
    "q": "q_dh",
    "k": "kv_dg",
    "v": "kv_dg",
    "gate": "gate_up_df",
    "up": "gate_up_df",
    "out": "out_hd",
    "down": "down_fd",
    "w": "linear_io",
    "table": "table_we",
    "offset": "vector_e",
    "q_scale": "vector_e",
    "k_scale": "vector_e",
    "padding": "vector_e",
}


def make_mesh(c: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of a config over the given devices, by default all there are.

    Axes within a slice follow its interconnect; slices lie along "data", over the data-centre network.
    Raises UserError if the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(c, len(devices))
    if c.slices > 1:
        found = len({getattr(d, "slice_index", 0) for d in devices})
        if found != c.slices:
            raise UserError(
                f"mesh.slices is {c.slices}, the devices are of {found}",
                hint="set it to the slices there are",
            )
        grid = mesh_utils.create_hybrid_device_mesh(
            sizes, (c.slices, 1, 1), devices=devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _sizes(c: MeshConfig, devices: int) -> tuple[int, int, int]:
    """Returns (data, fsdp, tensor) of one slice."""
    each, sizes = devices // c.slices, [c.data, c.fsdp, c.tensor]
    rest = sizes.count(-1)
    if rest > 1:
        raise UserError(
            "mesh.data and mesh.fsdp are both -1", hint="leave one of them to take what is left"
        )
    known = math.prod(size for size in sizes if size != -1)
    if devices % c.slices or each % known or (not rest and each != known):
        told = f"mesh data={c.data} fsdp={c.fsdp} tensor={c.tensor} slices={c.slices} does not fit {devices} devices"
        raise UserError(told, hint="set mesh.fsdp=-1 to take all devices that are left")
    data, fsdp, tensor = (each // known if size == -1 else size for size in sizes)
    return data, fsdp, tensor


def check_batch(c: TrainConfig, mesh: Mesh) -> None:
    """Raises UserError if the batch does not divide among the devices that share it and the micro-batches of a step."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * c.grad_accum_steps
    if c.batch % parts:
        told = f"train.batch {c.batch} does not divide among {parts} micro-batches"
        hint = f"make it a multiple of {parts}: devices along mesh.data and mesh.fsdp, times train.grad_accum_steps"
        raise UserError(told, hint=hint)


def rule_for_param(path: tuple[str, ...], rank: int) -> str:
    """Returns the name of the rule of a weight; raises KeyError for one that the table does not know."""
    if rank == 0:
        return "scalar"
    return PARAM_RULES[path[-1]]


def param_spec(
    rules: ShardingRules, path: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    """Returns how a weight is kept, from its path in the network and its shape.

    An axis that does not divide its dimension leaves it whole: `replicated_params` lists it.
    """
    if not shape:
        return PartitionSpec()
    entries = getattr(rules, rule_for_param(path, len(shape)))
    if "layers" in path:
        entries = (None, *entries)
    if len(entries) != len(shape):
        raise ValueError(f"{'/'.join(path)} {shape} has not the dimensions of its rule {entries}")
    count = lambda e: math.prod(mesh.shape[a] for a in ((e,) if isinstance(e, str) else e or ()))
    fitting = [e if size % count(e) == 0 else None for e, size in zip(entries, shape, strict=True)]
    while fitting and fitting[-1] is None:
        fitting.pop()
    return PartitionSpec(*fitting)


def tree_shardings(tree: Any, rules: ShardingRules, mesh: Mesh) -> Any:
    """Returns the sharding of every leaf of a tree of weights, or of anything that repeats it such as optimiser state.

    A leaf is known by the dictionary keys of its path; what has none (counters) is whole everywhere.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        names = tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        return NamedSharding(
            mesh, param_spec(rules, names, leaf.shape, mesh) if names else PartitionSpec()
        )

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Returns the sharding of every leaf of a batch: examples over "data" and "fsdp"."""
    return jax.tree.map(lambda _: NamedSharding(mesh, spec("b")), batch)


def replicated_params(params: Any, rules: ShardingRules, mesh: Mesh) -> dict[str, int]:
    """Returns {path: bytes} of the weights that lie whole on every device of the "fsdp" axis, the largest first."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(str(key.key) for key in path)
        if mesh.shape["fsdp"] > 1 and "fsdp" not in str(param_spec(rules, names, leaf.shape, mesh)):
            found["/".join(names)] = leaf.size * leaf.dtype.itemsize
    return dict(sorted(found.items(), key=lambda item: -item[1]))
