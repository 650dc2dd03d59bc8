"""Checks of a train step's collectives; each entry is a mistake that wasted a pod."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from modality_forcing.planning.roofline import Collective

SMALL = 2**16  # bytes: norms, counters and metrics may be moved in any way


def check_collectives(found: Iterable[Collective], batch: int) -> list[str]:
    """Returns a warning for each kind of collective that a sharded step should not have.

    Weights are gathered in bfloat16, gradients are summed in float32, and no example leaves its
    device. batch: examples per step.
    """
    warnings = []
    for c in found:
        what = f"{c.kind} of {c.dtype}{list(c.shape)} in {c.op_name or 'the step'}"
        if c.kind in ("all-to-all", "collective-permute"):
            warnings.append(f"{what}: a well-sharded step has none")
        elif c.bytes < SMALL:
            continue
        elif c.kind == "all-gather" and len(c.shape) > 1 and c.shape[0] == batch:
            warnings.append(f"{what}: the whole batch on every device")
        elif c.kind == "all-gather" and c.dtype == "f32":
            warnings.append(f"{what}: weights are gathered in float32; cast them first")
        elif c.kind in ("all-reduce", "reduce-scatter") and c.dtype == "bf16":
            warnings.append(
                f"{what}: gradients are rounded before the sum, or a gather is a sum of zeros"
            )
    return [f"{line} ({n} times)" if n > 1 else line for line, n in Counter(warnings).items()]
