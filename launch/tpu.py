"""TPU slices as GKE, xpk and Cloud TPU name them: `v5p:4x4x4` is 64 chips on 16 hosts."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from modality_forcing.planning.hardware import TOPOLOGIES  # needs Python alone

# Per generation: dimensions; GKE's label; prefix of the names in xpk and Cloud TPU; TensorCores a
# chip, which these names count; runtime of a TPU VM, if any (tpu7x is available through GKE only);
# most chips in a slice. From xpk 1.16 (core/system_characteristics.py) and Google's tables of TPU
# topologies and runtime versions.
_GENERATIONS = {
    "v5e": (2, "tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite", 256),
    "v5p": (3, "tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5", 8960),
    "v6e": (2, "tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e", 256),
    "tpu7x": (3, "tpu7x", "tpu7x", 2, "", 9216),
}
_FLAT = TOPOLOGIES["v5e"]
_SMALL = tuple(s for s in TOPOLOGIES["v5p"] if s.startswith("2"))  # not built of 4x4x4 cubes


@dataclass(frozen=True)
class Slice:
    """Chips connected to each other, with the names that the tools use."""

    generation: str
    shape: str  # "4x4x4"

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.shape.split("x")))

    @property
    def hosts(self) -> int:
        """Hosts of a slice in GKE: four chips each, or a single chip."""
        return max(self.chips // 4, 1)

    @property
    def vm_hosts(self) -> int:
        """Hosts of a slice of TPU VMs: v5e and v6e have up to eight chips on one."""
        return 1 if _GENERATIONS[self.generation][0] == 2 and self.chips <= 8 else self.hosts

    @property
    def gke_accelerator(self) -> str:
        """The node label cloud.google.com/gke-tpu-accelerator."""
        return _GENERATIONS[self.generation][1]

    @property
    def xpk_type(self) -> str:
        """The name in xpk: by shape, since several shapes may have the same number of chips."""
        return f"{_GENERATIONS[self.generation][2]}-{self.shape}"

    @property
    def accelerator_type(self) -> str:
        """The name in Cloud TPU: by the number of TensorCores."""
        _, _, prefix, cores, _, _ = _GENERATIONS[self.generation]
        return f"{prefix}-{self.chips * cores}"

    @property
    def runtime(self) -> str:
        """The software version of a TPU VM; empty if this generation has none."""
        return _GENERATIONS[self.generation][4]


def topology(text: str) -> Slice:
    """Reads a topology as `mforce plan` takes it, GENERATION:AxB or GENERATION:AxBxC.

    Raises:
      ArgumentTypeError: there is no such slice.
    """
    generation, _, shape = text.partition(":")
    if generation not in _GENERATIONS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one of {', '.join(_GENERATIONS)} with a shape, as v5p:4x4x4"
        )
    dimensions, *_, most = _GENERATIONS[generation]
    if dimensions == 2:
        if shape not in _FLAT:
            raise argparse.ArgumentTypeError(
                f"{generation} has no slice {shape!r}, but {', '.join(_FLAT)}"
            )
        return Slice(generation, shape)
    sides = [int(side) if side.isdecimal() else 0 for side in shape.split("x")]
    cubes = (
        len(sides) == 3
        and min(sides) > 0
        and not any(side % 4 for side in sides)
        and sides == sorted(sides)
    )
    if shape not in _SMALL and not (cubes and math.prod(sides) <= most):
        rule = (
            f"but {', '.join(_SMALL)}, and sides that are multiples of 4 in rising order, "
            f"of at most {most} chips"
        )
        raise argparse.ArgumentTypeError(f"{generation} has no slice {shape!r}, {rule}")
    return Slice(generation, shape)
