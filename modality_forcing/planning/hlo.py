"""Parses the text of a compiled XLA program, and counts how often each instruction runs.

The grammar is XLA's own printing of a scheduled `HloModule`, as `compiled.as_text()` returns it.
The parser reads names, shapes, dtypes, opcodes, operands, attributes and, of layouts, only the
memory space. A loop's trip count comes from `known_trip_count` where the backend wrote it
(CPU, GPU), else from its counter: start, step and limit must be constants.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
# Instructions whose result is the number they are given.
TRANSPARENT = {
    *("bitcast", "copy", "convert", "reshape", "copy-start", "copy-done"),
    "optimization-barrier",
}

Number = tuple[int | None, int]  # an element of the loop's tuple, or none, plus a constant

_LEAF = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^\s+(ROOT )?%?([^\s=]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_END = re.compile(r'^\}(, execution_thread="[^"]*")?\s*$')


@dataclass(frozen=True)
class Buffer:
    """One array. Memory space 0 is the device's main memory, 1 a TPU's VMEM."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Elements, without the padding of tiles."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes, without the padding of tiles."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype, int(digits[0]) if digits else 8)
        return self.size * bits // 8


@dataclass(frozen=True)
class Op:
    """One instruction.

    outputs: the leaves of its shape, tuples flattened. inside: the text in its parentheses.
    """

    name: str
    opcode: str
    outputs: tuple[Buffer, ...]
    inside: str
    attributes: str

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands; empty for constants and parameters."""
        return tuple(re.findall(r"%([^\s,()]+)", self.inside))

    @cached_property
    def op_name(self) -> str:
        """Its origin in the traced Python, as jax wrote it; empty for the compiler's own."""
        return self.attribute(r'op_name="([^"]*)"')

    @cached_property
    def target(self) -> str:
        """What a custom call calls; empty for other instructions."""
        if self.opcode != "custom-call":
            return ""
        return self.attribute(r'custom_call_target="([^"]*)"')

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that a fusion, call, conditional or asynchronous start runs once."""
        if self.opcode == "conditional":
            branches = self.attribute(r"branch_computations=\{([^}]*)\}")
            named = re.findall(r"(?:true|false)_computation=%([^\s,]+)", self.attributes)
            return tuple(re.findall(r"%([^\s,]+)", branches) or named)
        # A reduction's to_apply is the sum of two numbers.
        started = self.opcode.endswith("-start") and "reduce" not in self.opcode
        if self.opcode in ("fusion", "call") or started:
            return tuple(re.findall(r"\b(?:calls|to_apply)=%([^\s,]+)", self.attributes)[:1])
        return ()

    def attribute(self, pattern: str) -> str:
        """Returns the first group of a pattern in the attributes, or an empty string."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """Instructions by name in the order they are scheduled."""

    name: str
    ops: dict[str, Op]
    root: str

    @cached_property
    def parameters(self) -> list[Op]:
        """The parameters in the order of the operands that they stand for."""
        parameters = (op for op in self.ops.values() if op.opcode == "parameter")
        return sorted(parameters, key=lambda op: int(op.inside))

    def inputs(self, op: Op) -> list[Buffer]:
        """Returns the buffers of an instruction's operands, tuples flattened."""
        return [leaf for name in op.operands if name in self.ops for leaf in self.ops[name].outputs]


@dataclass(frozen=True)
class Visit:
    """An instruction that runs `count` times a step; a `hidden` one overlaps the main thread."""

    computation: Computation
    op: Op
    count: int
    hidden: bool
    fused: bool


@dataclass(frozen=True)
class Program:
    """Computations by name, the one that starts, and over how many devices a step runs."""

    computations: dict[str, Computation]
    entry: str
    devices: int

    def walk(self, fusions: bool = False) -> Iterator[Visit]:
        """Yields each instruction that runs, with `fusions` the fused ones as well.

        Every branch of a conditional is visited as if it ran. A loop without a known trip count is
        taken as run once: `unknown_loops` names them.
        """
        yield from self._walk(self.computations[self.entry], 1, False, False, fusions)

    def _walk(
        self, computation: Computation, count: int, hidden: bool, fused: bool, fusions: bool
    ) -> Iterator[Visit]:
        for op in computation.ops.values():
            yield Visit(computation, op, count, hidden, fused)
            if op.opcode == "while":
                body = self.computations[op.attribute(r"\bbody=%([^\s,]+)")]
                times = count * (self.trips(computation, op) or 1)
                yield from self._walk(body, times, hidden, fused, fusions)
            elif op.opcode != "fusion" or fusions:
                aside = hidden or op.opcode.endswith("-start")
                inner = fused or op.opcode == "fusion"
                for name in op.called:
                    yield from self._walk(self.computations[name], count, aside, inner, fusions)

    def unknown_loops(self) -> list[str]:
        """Returns the names of loops whose trip count is not in the text."""
        visits = (v for v in self.walk() if v.op.opcode == "while")
        return sorted({v.op.name for v in visits if self.trips(v.computation, v.op) is None})

    def trips(self, computation: Computation, loop: Op) -> int | None:
        """Returns the trip count of a loop, or None if it depends on data or is not understood."""
        known = loop.attribute(r"known_trip_count[^\d}]*(\d+)")
        if known:
            return int(known)
        body = self.computations[loop.attribute(r"\bbody=%([^\s,]+)")]
        condition = self.computations[loop.attribute(r"\bcondition=%([^\s,]+)")]
        direction, counter, limit = self._test(condition)
        if counter is None or limit is None or counter[0] is None:
            return None

        def start(i):
            return self._value(computation, loop.operands[0], None, i)

        def after(i):
            return self._value(body, body.root, None, i)

        if limit[0] is not None:  # carried through the loop: a constant if nothing changes it
            limit = start(limit[0]) if after(limit[0]) == limit else None
        first, second = start(counter[0]), after(counter[0])
        if limit is None or limit[0] is not None or first is None or first[0] is not None:
            return None
        if second is None or second[0] != counter[0] or (step := second[1]) == 0:
            return None
        span, upwards = limit[1] - counter[1] - first[1], step > 0
        if direction == "NE":
            return span // step if span % step == 0 and span // step >= 0 else None
        if direction not in (("LT", "LE") if upwards else ("GT", "GE")):
            return None
        return max(0, math.ceil(((span if upwards else -span) + (direction[1] == "E")) / abs(step)))

    def _test(self, condition: Computation) -> tuple[str, Number | None, Number | None]:
        """Returns what a loop's condition compares: (direction, counter, limit)."""
        inner, test, arguments = condition, condition.ops[condition.root], None
        if test.called:  # the comparison alone in a fusion
            arguments = [self._value(condition, name, None) for name in test.operands]
            inner = self.computations[test.called[0]]
            test = inner.ops[inner.root]
        if test.opcode != "compare":
            return "", None, None
        left, right = (self._value(inner, name, arguments) for name in test.operands)
        direction = test.attribute(r"direction=(\w+)")
        if left is not None and left[0] is None:  # limit > counter is counter < limit
            return direction.translate(str.maketrans("LG", "GL")), right, left
        return direction, left, right

    def _value(
        self,
        computation: Computation,
        name: str,
        arguments: list[Number | None] | None,
        index: int | None = None,
    ) -> Number | None:
        """Returns an integer, None if it is not known.

        index: of an element, for a tuple. arguments: those of the fusion that is read.
        """
        op = computation.ops.get(name)
        if op is None:
            return None

        def again(n, i=None):
            return self._value(computation, n, arguments, i)

        if op.opcode == "constant":
            return (None, int(op.inside)) if re.fullmatch(r"-?\d+", op.inside) else None
        if op.opcode == "parameter":
            if arguments is None:
                return None if index is None else (index, 0)
            return arguments[int(op.inside)]
        if op.opcode == "tuple" and index is not None:
            return again(op.operands[index])
        if op.opcode == "get-tuple-element":
            return again(op.operands[0], int(op.attribute(r"index=(\d+)")))
        if op.opcode == "fusion":
            inner = self.computations[op.called[0]]
            return self._value(inner, inner.root, [again(n) for n in op.operands], index)
        if op.opcode in TRANSPARENT:
            return again(op.operands[0])
        if op.opcode in ("add", "subtract"):
            left, right = (again(n) for n in op.operands)
            if op.opcode == "subtract" and right is not None:
                right = (None, -right[1]) if right[0] is None else None
            if left is not None and right is not None and None in (left[0], right[0]):
                return (right[0] if left[0] is None else left[0], left[1] + right[1])
        return None


def buffers(shape: str) -> tuple[Buffer, ...]:
    """Returns the arrays of a printed shape, tuples flattened."""
    found = []
    for dtype, dims, layout in _LEAF.findall(shape):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
        found.append(Buffer(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


@lru_cache(1)  # collectives, kernels and bound are read from one program
def parse(text: str) -> Program:
    """Returns the program that a text prints; raises ValueError where there is none."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    lines: list[str] = []
    for line in text.splitlines():
        head = _COMPUTATION.match(line) if not name else None
        if head:
            name, entry = head[2], head[2] if head[1] else entry
        elif name and _END.match(line):
            ops = [_op(line) for line in lines]
            printed = zip(ops, lines, strict=True)
            roots = [op.name for op, text in printed if text.lstrip().startswith("ROOT ")]
            root = roots[0] if roots else ops[-1].name
            computations[name] = Computation(name, {op.name: op for op in ops}, root)
            name, lines = "", []
        elif name and _HEAD.match(line):
            lines.append(line)
        elif name and lines:  # attributes of Pallas kernels hold line breaks
            lines[-1] += line
    if entry not in computations:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    header = text[: text.find("\n")]
    sizes = [int(n) for n in re.findall(r"(?:replica_count|num_partitions)=(\d+)", header)]
    return Program(computations, entry, math.prod(sizes))


def _op(line: str) -> Op:
    head = _HEAD.match(line)
    assert head is not None
    start = head.end()
    end = _close(line, start) if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _close(line, opening)
    opcode, inside = line[end:opening].strip(), line[opening + 1 : closing - 1]
    return Op(head[2], opcode, buffers(line[start:end]), inside, line[closing:])


def _close(line: str, start: int) -> int:
    """Returns the index after the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(line, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"unbalanced parentheses in {line[:80]!r}")
