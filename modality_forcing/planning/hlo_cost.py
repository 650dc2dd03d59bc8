"""The cost of one instruction of a compiled program: FLOPs, and bytes by memory space.

Counted as XLA's `HloCostAnalysis` counts them: every operand read once and every output written
once, but of stacks that an instruction slices or updates in place the slice alone. Two
differences: FLOPs are those of matrix products only, since the matrix unit is what a peak is
quoted for; and an asynchronous copy is one read and one write, where XLA adds what its start and
its end name to four sizes. The padding of buffers to tiles is not counted.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping

from modality_forcing.planning.hlo import Buffer, Computation, Op, Program

KINDS = (
    *("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute"),
    *("send", "recv"),
)
COLLECTIVE = {name: kind for kind in KINDS for name in (kind, f"{kind}-start")} | {
    "ragged-all-to-all": "all-to-all"
}
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "optimization-barrier", "add-dependency", "domain"),
}
# Custom calls that are annotations.
BOOKKEEPING = ("AllocateBuffer", "ConcatBitcast", "AsyncCollective", "PrepareAsync", "Sharding")
SLICES = {"dynamic-slice", "slice", "gather"}
# Instructions that change a part of operand 0, and which operand is the new part.
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
VIEWS = {"bitcast", "reshape", "get-tuple-element"}


def is_free(op: Op) -> bool:
    """Returns whether an instruction costs nothing or is counted elsewhere, as loops are."""
    return op.opcode in FREE or op.opcode.endswith(("-done", "-update")) or is_bookkeeping(op)


def is_bookkeeping(op: Op) -> bool:
    """Returns whether a custom call is only an annotation of the compiler."""
    return bool(op.target) and op.target.startswith(BOOKKEEPING)


def kernel_name(op: Op) -> str:
    """Returns an instruction's name without the numbers and words that XLA appends to copies."""
    return re.sub(r"(\.(\d+|clone|remat\d*|cloned|sunk))+$", "", op.name)


def splash_flops(name: str, inputs: list[Buffer], outputs: tuple[Buffer, ...]) -> float:
    """Returns the FLOPs of a splash attention kernel of jax that computes every block.

    Forward has 2 products; backward 3 for dq, 4 for dk and dv. A fused backward kernel,
    known by its dq of one rank more than q, does both in 5. Other kernels count 0.
    """
    if not name.startswith("splash"):
        return 0.0
    # q [.. h n k], k [.. g s k]
    q, k = [b for b in inputs if b.dtype in ("bf16", "f32") and len(b.shape) >= 3][:2]
    if "dkv" in name:
        products = 5 if any(len(b.shape) > len(q.shape) for b in outputs) else 4
    else:
        products = 3 if "dq" in name else 2
    return 2.0 * products * q.size * k.shape[-2]


def flops(program: Program, computation: Computation, op: Op) -> float:
    """Returns the FLOPs of one execution, of the products inside a fusion too."""
    if op.opcode == "fusion":
        inner = program.computations[op.called[0]]
        return sum(flops(program, inner, fused) for fused in inner.ops.values())
    if op.target == "tpu_custom_call":
        return splash_flops(kernel_name(op), computation.inputs(op), op.outputs)
    if op.opcode == "dot":
        left = computation.inputs(op)[0]
        dims = op.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        summed = math.prod(left.shape[int(d)] for d in dims.split(",") if d)
        return 2.0 * op.outputs[0].size * summed
    return _convolution(op, *computation.inputs(op)[:2]) if op.opcode == "convolution" else 0.0


def _convolution(op: Op, image: Buffer, kernel: Buffer) -> float:
    """FLOPs of products whose window position is neither in padding nor in a dilation's hole."""
    image_dims, kernel_dims, output_dims = re.split("_|->", op.attribute(r"dim_labels=(\S+?->\w+)"))
    window = dict(re.findall(r"(\w+)=(\S+)", op.attribute(r"window=\{([^}]*)\}")))

    def field(key, i, default):
        return window[key].split("x")[i] if key in window else default

    positions = 1
    for i in range(sum(c.isdigit() for c in image_dims)):
        size = image.shape[image_dims.index(str(i))]
        outputs = op.outputs[0].shape[output_dims.index(str(i))]
        keys = ("stride", "lhs_dilate", "rhs_dilate")
        stride, hole, step = (int(field(key, i, 1)) for key in keys)
        low = int(field("pad", i, "0_0").split("_")[0])
        taps = range(0, kernel.shape[kernel_dims.index(str(i))] * step, step)
        inputs = (o * stride + tap - low for o in range(outputs) for tap in taps)
        positions *= sum(0 <= p <= (size - 1) * hole and p % hole == 0 for p in inputs)
    groups = int(op.attribute(r"batch_group_count=(\d+)") or 1)
    batch, features = image.shape[image_dims.index("b")], kernel.shape[kernel_dims.index("i")]
    return 2.0 * positions * batch / groups * features * kernel.shape[kernel_dims.index("o")]


def traffic(program: Program, computation: Computation, op: Op) -> list[tuple[float, int]]:
    """Returns (bytes, memory space) of everything that one execution reads or writes."""
    operands = [computation.ops[n].outputs for n in op.operands if n in computation.ops]
    kind = op.opcode.removesuffix("-start")
    if op.opcode == "copy-start":
        return [(b.bytes, b.space) for b in op.outputs[:2]]  # where to, where from
    results = op.outputs
    if op.opcode.endswith("-start"):  # its outputs begin with its operands
        results = op.outputs[sum(map(len, operands)) :][:1]
    if kind in SLICES:
        return [(results[0].bytes, b.space) for b in (operands[0][0], results[0])]
    if kind in UPDATES:  # a scatter adds to what it finds there
        update = operands[UPDATES[kind]][0]
        touched = (update, results[0], *results[: kind == "scatter"])
        return [(update.bytes, b.space) for b in touched]
    if op.opcode != "fusion":
        read = [b for leaves in operands for b in leaves]
        return [(b.bytes, b.space) for b in (*read, *results)]
    inner = program.computations[op.called[0]]
    written = {name: _written(inner, name) for name in _outputs(inner)}
    read = zip(_read(program, inner, written), operands, strict=True)
    writes = [written[name] for name in _outputs(inner) for _ in inner.ops[name].outputs]
    moved = [(share * b.bytes, b.space) for share, leaves in read for b in leaves]
    return moved + [(share * b.bytes, b.space) for share, b in zip(writes, op.outputs, strict=True)]


def _outputs(computation: Computation) -> tuple[str, ...]:
    root = computation.ops[computation.root]
    return root.operands if root.opcode == "tuple" else (root.name,)


def _source(computation: Computation, name: str, through: set[str] = VIEWS) -> Op:
    """The instruction that produces a value in a fusion, skipping those that leave it in place.

    A change of tiles (tpu7x) is a fusion of its own.
    """
    op = computation.ops[name]
    while op.opcode in through or (
        op.opcode == "fusion" and "output_to_operand_aliasing={{}: (0, {})}" in op.attributes
    ):
        op = computation.ops[op.operands[0]]
    return op


def _written(computation: Computation, output: str) -> float:
    """The share of an output that a fusion writes.

    1, or the share changed in place, or 0 for a value that passes through.
    """
    op, origin = _source(computation, output), _source(computation, output, VIEWS | SLICES)
    if op.opcode == "parameter" or origin.opcode in COLLECTIVE or is_bookkeeping(origin):
        return 0.0
    if op.opcode in UPDATES and _source(computation, op.operands[0]).opcode == "parameter":
        update = computation.ops[op.operands[UPDATES[op.opcode]]].outputs[0]
        return min(1.0, update.size / op.outputs[0].size)
    return 1.0


def _read(program: Program, computation: Computation, written: Mapping[str, float]) -> list[float]:
    """The share of each parameter that a fusion reads to make its outputs."""
    need: defaultdict[str, float] = defaultdict(float, written)
    updated = {_source(computation, name).name for name, share in written.items() if share < 1.0}
    for op in reversed(computation.ops.values()):
        share = min(1.0, need[op.name])
        if not share or op.opcode in COLLECTIVE or is_bookkeeping(op):
            continue
        parts = [share] * len(op.operands)
        if op.opcode == "fusion":
            inner = program.computations[op.called[0]]
            parts = _read(program, inner, dict.fromkeys(_outputs(inner), share))
        elif op.opcode in ("dot", "convolution"):
            parts = [1.0] * len(op.operands)
        elif op.opcode in UPDATES:
            untouched = op.opcode == "dynamic-update-slice" and op.name in updated
            parts = [0.0 if untouched else share] + [1.0] * (len(op.operands) - 1)
        for i, (name, part) in enumerate(zip(op.operands, parts, strict=True)):
            if op.opcode in SLICES and i == 0:  # different slices of one stack add up
                stack = computation.ops[name].outputs[0]
                need[name] += part * op.outputs[0].size / max(stack.size, 1)
            else:
                need[name] = max(need[name], part)
    return [min(1.0, need[p.name]) for p in computation.parameters]
