"""The check of collectives warns of each known mistake and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modality_forcing.planning.collectives import check_collectives
from modality_forcing.planning.roofline import Collective

WEIGHTS = Collective(
    kind="all-gather", dtype="bf16", shape=(1, 1024, 3072), bytes=2 * 1024 * 3072, count=30, group_size=16, channel=1,
    asynchronous=False, across_slices=False, op_name="mlp", hbm_bytes=0,
)  # fmt: skip
GRADIENT = replace(WEIGHTS, kind="reduce-scatter", dtype="f32", bytes=4 * 1024 * 3072)
NORM = replace(WEIGHTS, kind="all-reduce", dtype="f32", shape=(), bytes=4)


def test_step_without_mistakes_has_no_warnings():
    assert (
        check_collectives(
            [WEIGHTS, GRADIENT, NORM, replace(GRADIENT, kind="all-reduce")], batch=512
        )
        == []
    )


@pytest.mark.parametrize(
    ("collective", "warning"),
    [
        (replace(WEIGHTS, dtype="f32"), "weights are gathered in float32"),
        (replace(WEIGHTS, shape=(512, 640, 1024)), "the whole batch on every device"),
        (replace(GRADIENT, dtype="bf16"), "gradients are rounded before the sum"),
        (replace(WEIGHTS, kind="all-to-all"), "a well-sharded step has none"),
        (replace(NORM, kind="collective-permute"), "a well-sharded step has none"),
    ],
)
def test_each_mistake_is_named_with_its_operation(collective, warning):
    lines = check_collectives([WEIGHTS, collective, GRADIENT], batch=512)
    assert len(lines) == 1 and warning in lines[0] and "in mlp" in lines[0]
    (again,) = check_collectives([collective, WEIGHTS, collective], batch=512)
    assert again == f"{lines[0]} (2 times)"
