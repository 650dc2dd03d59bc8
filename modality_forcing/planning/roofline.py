"""A compiled train step's collectives, Pallas kernels, and a lower bound of its time.

All of it is read from `compiled.as_text()`; nothing runs. The bound is optimistic by what the text
does not show:

- how well small or ragged products fill the matrix units, and arithmetic outside products;
- padding of buffers to tiles, operands that one instruction reads more than once, all latency;
- how well transfers overlap with compute: all lanes are assumed to overlap perfectly, collectives
  too (`exposed_seconds` is the time of the collectives that the program waits for);
- the inside of Pallas kernels: attention counts its products, and all their operands and outputs
  once.

Every branch of a conditional is counted, and a loop of unknown length once (`unknown_loops`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from modality_forcing.chips import Chip
from modality_forcing.planning.hlo import Buffer, Op, Program, Visit, parse
from modality_forcing.planning.hlo_cost import COLLECTIVE, flops, is_free, kernel_name, traffic


@dataclass(frozen=True)
class Collective:
    """One buffer that a step moves between devices. A combined collective counts once per buffer.

    `bytes` and `shape` are per device, of the larger side: what is gathered, what is reduced.
    `count` is executions per step. `group_size` is how many devices take part together; of a
    permutation, how many pairs. `asynchronous` is true where the program computes on meanwhile;
    `across_slices` where it leaves the slice through its hosts.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    count: int
    group_size: int
    channel: int | None
    asynchronous: bool
    across_slices: bool
    op_name: str
    hbm_bytes: int  # read and written in main memory by one execution

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device must at least receive in one execution, or send for a `send`."""
        share = (self.group_size - 1) / max(self.group_size, 1)
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "send": 1.0, "recv": 0.0}
        return self.bytes * factor.get(self.kind, share)


@dataclass(frozen=True)
class Roofline:
    """A lower bound of a step's time and its parts, all of one step of one device.

    `seconds` is the largest of four lanes that could overlap perfectly: instructions one after
    another, all bytes of main memory, collectives within slices and those across. `touched_bytes`
    counts VMEM as well, which is what XLA calls accessed.
    """

    seconds: float
    serial_seconds: float
    hbm_seconds: float
    ici_seconds: float
    exposed_seconds: float
    flops: float
    hbm_bytes: float
    touched_bytes: float
    unknown_loops: tuple[str, ...]

    @property
    def warnings(self) -> list[str]:
        """A line of a report if the bound is too low: loops of unknown length count as one pass."""
        if not (count := len(self.unknown_loops)):
            return []
        what = f"{count} loop{'s' * (count > 1)} of unknown length counted once"
        return [f"  warning         {what}: the bound is too low"]


def collectives(text: str) -> list[Collective]:
    """Returns what a step moves between devices, in the order of the program's text.

    Found inside fusions and asynchronous computations too. A gather spread over several fusions to
    overlap with them is counted where it starts; an all-reduce of which each device keeps its
    slice is a reduce-scatter, which is what it runs as.
    """
    return _collectives(parse(text))


def summarize(found: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Returns {"kind dtype": {"distinct", "executions", "bytes"}}, the last two per step."""
    table: dict[str, dict[str, int]] = {}
    for c in sorted(found, key=lambda c: (c.kind, c.dtype)):
        row = table.setdefault(f"{c.kind} {c.dtype}", {"distinct": 0, "executions": 0, "bytes": 0})
        row["distinct"] += 1
        row["executions"] += c.count
        row["bytes"] += c.count * c.bytes
    return table


def kernels(text: str) -> dict[str, int]:
    """Returns how often each Pallas kernel stands in the program's text, by the kernel's name."""
    computations = parse(text).computations.values()
    ops = [op for computation in computations for op in computation.ops.values()]
    return dict(Counter(kernel_name(op) for op in ops if op.target == "tpu_custom_call"))


def roofline(
    text: str,
    peak_flops: float,
    hbm_bandwidth: float,
    ici_bandwidth: float,
    *,
    dcn_bandwidth: float = math.inf,
) -> Roofline:
    """Returns the bound of a compiled step for a device's peak FLOP/s and bandwidths in bytes/s.

    ici_bandwidth is that of all links together, in one direction.

    An instruction takes the longer of its FLOPs at peak and its bytes of main memory at full
    bandwidth. FLOPs are those of matrix products (convolutions by their valid positions, as XLA
    counts them, since batch dimensions are printed as dilated windows) and of attention kernels. Of
    stacks that a fusion slices or updates in place, only the slice counts. VMEM costs nothing.
    """
    program = parse(text)
    moved = _collectives(program)
    work, memory, serial, touched = [], [], [], 0.0
    for v in program.walk():
        starts_others = v.op.opcode.endswith("-start") and v.op.called
        if is_free(v.op) or v.op.opcode in COLLECTIVE or starts_others:
            continue
        buffers = traffic(program, v.computation, v.op)
        touched += v.count * sum(size for size, _ in buffers)
        bytes_ = sum(size for size, space in buffers if space == 0)
        products = flops(program, v.computation, v.op)
        work.append(products * v.count)
        memory.append(bytes_ * v.count)
        if not (v.hidden or v.op.opcode.endswith("-start")):  # else a copy beside the others
            serial.append(max(products / peak_flops, bytes_ / hbm_bandwidth) * v.count)
    wires = {False: ici_bandwidth, True: dcn_bandwidth}

    def wire_seconds(far):
        return sum(c.wire_bytes / wires[far] * c.count for c in moved if c.across_slices is far)

    hbm_bytes = sum(memory + [c.hbm_bytes * c.count for c in moved])
    waits = (c.wire_bytes * c.count / wires[c.across_slices] for c in moved if not c.asynchronous)
    lanes = (sum(serial), hbm_bytes / hbm_bandwidth, wire_seconds(False))
    return Roofline(
        max(*lanes, wire_seconds(True)),
        *lanes,
        exposed_seconds=sum(waits),
        flops=sum(work),
        hbm_bytes=hbm_bytes,
        touched_bytes=touched,
        unknown_loops=tuple(program.unknown_loops()),
    )


def roofline_on(chip: Chip, text: str) -> Roofline | None:
    """Returns the bound of a compiled step on a device of a chip; None for an empty program."""
    if not text:
        return None
    rate = chip.per_device
    return roofline(
        text,
        rate(chip.bf16_flops),
        rate(chip.hbm_bandwidth),
        rate(chip.ici_bandwidth),
        dcn_bandwidth=rate(chip.dcn_bandwidth),
    )


def _collectives(program: Program) -> list[Collective]:
    visits = [v for v in program.walk(fusions=True) if v.op.opcode in COLLECTIVE]
    targets = {
        name: {op.target for op in c.ops.values()} for name, c in program.computations.items()
    }

    def starts(v):
        return "AsyncCollectiveStart" in targets[v.computation.name]

    started = {(v.op.opcode, v.op.attribute(r"channel_id=(\d+)")) for v in visits if starts(v)}
    found = []
    for v in visits:
        channel = v.op.attribute(r"channel_id=(\d+)")
        if v.fused and (v.op.opcode, channel) in started and not starts(v):
            continue  # the middle or the end of one that has been counted
        kind, async_op = COLLECTIVE[v.op.opcode], v.op.opcode.endswith("-start")
        if kind == "all-reduce" and v.computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        inputs = [b for b in v.computation.inputs(v.op) if b.dtype != "token"]
        n, size = len(inputs), _group_size(v.op, program.devices)
        outputs = v.op.outputs[n : 2 * n] if async_op and kind != "all-reduce" else v.op.outputs[:n]
        pairs = zip(inputs, outputs or inputs, strict=False)
        for source, result in pairs if inputs else [(b, b) for b in v.op.outputs[:1]]:
            large = max(source, result, key=lambda b: b.bytes)
            ends = [source] if kind in ("send", "recv") else [source, *_landing(v, result, size)]
            found.append(
                Collective(
                    kind,
                    large.dtype,
                    large.shape,
                    large.bytes,
                    v.count,
                    size,
                    int(channel) if channel else None,
                    asynchronous=async_op or v.hidden or starts(v) or kind in ("send", "recv"),
                    across_slices="xla_megascale_runtime" in v.op.attributes,
                    op_name=v.op.op_name,
                    hbm_bytes=sum(b.bytes for b in ends if b.space == 0),
                )
            )
    return found


def _landing(visit: Visit, result: Buffer, size: int) -> list[Buffer]:
    """Returns the buffer that a result ends in.

    Inside a fusion this is the output of its size or, for an all-reduce, of its shard's.
    """
    if not visit.fused:
        return [result]
    outputs = visit.computation.ops[visit.computation.root].outputs
    leaves = [b for b in outputs if b.dtype == result.dtype]
    shard = result.size // size if visit.op.opcode == "all-reduce" else 0
    return [b for wanted in (result.size, shard) for b in leaves if b.size == wanted][:1]


def _group_size(op: Op, devices: int) -> int:
    """Returns the devices per group; XLA prints groups as lists, an iota or axes of a mesh."""
    if "source_target_pairs=" in op.attributes:
        return op.attribute(r"source_target_pairs=\{(.*?)\}\}").count("{")
    iota = op.attribute(r"replica_groups=\[\d+,(\d+)\]")
    mesh = re.search(r"replica_groups=@?mesh\[(.*?)\] *\{(.*?)\}", op.attributes)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    first = op.attribute(r"replica_groups=\{\{([^}]*)\}")
    return int(iota) if iota else len(first.split(",")) if first else devices
