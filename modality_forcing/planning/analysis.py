"""What every plan says of a compiled program: its memory, collectives and a bound of its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modality_forcing.chips import GIB
from modality_forcing.planning.compile import Bytes, Compiled, Target
from modality_forcing.planning.roofline import Roofline, collectives, roofline_on, summarize
from modality_forcing.tree import JsonObject

NOT_MODELED = (
    "not modeled: the real time of kernels, how well matrix units are filled, "
    "how well transfers overlap with compute; the bound assumes all of these are perfect"
)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """A compiled program on a target; FLOPs and collectives are of one execution."""

    target: Target
    params: int
    flops: int  # counted from the config
    bytes: Bytes  # of one device
    fits: bool
    compile_seconds: float
    collectives: Mapping[str, Mapping[str, int]]
    bound: Roofline | None  # None where it does not fit: there is no program

    @property
    def mfu_bound(self) -> float | None:
        """The share of peak that is reached if it takes no longer than the roofline."""
        return self.target.mfu(self.flops, self.bound.seconds) if self.bound else None

    def chip_gib(self, size: float) -> float:
        """Returns bytes of one device as GiB of a chip."""
        return size * self.target.chip.devices / GIB

    def collective_lines(self, unit: str) -> list[str]:
        """Returns a line of a report for each kind of collective; unit: of an execution."""
        return [
            f"  {kind:15} {v['executions']} a {unit}, {v['bytes'] / GIB:.2f} GiB a device"
            for kind, v in self.collectives.items()
        ]

    def bound_json(self) -> JsonObject:
        """Returns the bound as JSON values."""
        return {
            "roofline_seconds": self.bound.seconds if self.bound else None,
            "exposed_collective_seconds": self.bound.exposed_seconds if self.bound else None,
        }


def analyze(target: Target, compiled: Compiled, params: int, flops: int) -> dict[str, Any]:
    """Returns the fields of an `Analysis`."""
    return {
        "target": target,
        "params": params,
        "flops": flops,
        "bytes": compiled.bytes,
        "fits": compiled.fits,
        "compile_seconds": compiled.seconds,
        "collectives": summarize(collectives(compiled.text) if compiled.text else []),
        "bound": roofline_on(target.chip, compiled.text),
    }
