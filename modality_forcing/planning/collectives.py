"""What should not be among a train step's collectives; each entry is a mistake that cost somebody
a pod.
"""

from __future__ import annotations

from collections.abc import Iterable

from modality_forcing.planning.roofline import Collective

SMALL = 2**16  # bytes: norms, counters and metrics are welcome to travel as they like


def check_collectives(found: Iterable[Collective], batch: int) -> list[str]:
    """Returns a line for each collective that a sharded step should not have; batch: examples of a
    whole step.

    Weights are to be gathered in bfloat16, gradients added up in float32, examples to stay where
    they are.
    """
    told = []
    for c in found:
        what = f"{c.kind} of {c.dtype}{list(c.shape)} in {c.op_name or 'the step'}"
        if c.kind in ("all-to-all", "collective-permute"):
            told.append(f"{what}: nothing has to change places between devices")
        elif c.bytes < SMALL:
            continue
        elif c.kind == "all-gather" and len(c.shape) > 1 and c.shape[0] == batch:
            told.append(f"{what}: the whole batch on every device")
        elif c.kind == "all-gather" and c.dtype == "f32":
            told.append(
                f"{what}: weights travel at twice their size; cast before they are gathered"
            )
        elif c.kind in ("all-reduce", "reduce-scatter") and c.dtype == "bf16":
            told.append(
                f"{what}: gradients rounded before they are added up, or a gather done as a sum of zeros"
            )
    return told
