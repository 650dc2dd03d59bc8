"""Parsing of compiled programs: shapes, memory spaces, broken lines, trip counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from modality_forcing.planning import hlo
from modality_forcing.planning.hlo import Buffer


def loop(
    limit: str = "constant(7)",
    start: str = "constant(0)",
    step: str = "constant(1)",
    direction: str = "LT",
    sides: str = "%i, %n",
):
    """The text of a program whose one loop counts from `start` by `step`, and carries its limit
    when that is `gte`.
    """
    carried = "get-tuple-element(%p), index=1"
    return f"""HloModule m, replica_count=1, num_partitions=4

%body (p: (s32[], s32[])) -> (s32[], s32[]) {{
  %p = (s32[]{{:T(128)}}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %kept = s32[] {carried}
  %one = s32[] {step}
  %next = s32[]{{:T(128)S(6)}} add(%i, %one)
  ROOT %out = (s32[], s32[]) tuple(%next, %kept)
}}

%condition (p: (s32[], s32[])) -> pred[] {{
  %p = (s32[], s32[]) parameter(0)
  %n = s32[] {carried if limit == "gte" else limit}
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %go = pred[] compare({sides}), direction={direction}
}}

ENTRY %main () -> s32[] {{
  %start.1 = s32[] {start}
  %start = s32[] copy(%start.1)
  %limit = s32[] constant(5)
  %first = (s32[], /*index=1*/s32[]) tuple(%start, %limit)
  %while.1 = (s32[], s32[]) while(%first), condition=%condition, body=%body
  ROOT %end = s32[] get-tuple-element(%while.1), index=0
}}
"""


def trips(text: str) -> int | None:
    program = hlo.parse(text)
    visit = next(v for v in program.walk() if v.op.opcode == "while")
    assert (program.unknown_loops() == ["while.1"]) == (
        program.trips(visit.computation, visit.op) is None
    )
    return program.trips(visit.computation, visit.op)


@pytest.mark.parametrize(
    ("how", "times"),
    [
        ({}, 7),
        ({"start": "constant(2)"}, 5),
        ({"step": "constant(2)"}, 4),
        ({"direction": "LE"}, 8),
        ({"direction": "NE"}, 7),
        ({"limit": "gte"}, 5),
        ({"sides": "%n, %i", "direction": "GT"}, 7),
        (
            {
                "start": "constant(9)",
                "limit": "constant(-1)",
                "step": "constant(-3)",
                "direction": "GT",
            },
            4,
        ),
        (
            {
                "start": "constant(9)",
                "limit": "constant(0)",
                "step": "constant(-3)",
                "direction": "GE",
            },
            4,
        ),
        ({"start": "constant(9)"}, 0),
        ({"limit": "parameter(1)"}, None),
        ({"start": "partition-id()"}, None),
        ({"step": "partition-id()"}, None),
        ({"direction": "EQ"}, None),
        ({"step": "constant(-1)"}, None),
        ({"step": "constant(2)", "direction": "NE"}, None),
    ],
)
def test_trip_count_follows_the_loop_counter(how, times):
    assert trips(loop(**how)) == times


def test_known_trip_count_wins_and_nested_loops_multiply():
    text = loop().replace(
        "body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"3"},"x":"9"}\n'
    )
    assert trips(text) == 3

    def nested(w, x):
        def inner(x, w):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0]

        return jax.lax.scan(lambda x, w: (inner(x, w), None), x, w)[0]

    compiled = jax.jit(nested).lower(jnp.zeros((5, 8, 8)), jnp.zeros((4, 8))).compile()
    program = hlo.parse(compiled.as_text())
    counts = [v.count for v in program.walk(fusions=True) if v.op.opcode == "tanh"]
    assert counts == [15]


def test_shapes_with_memory_spaces_and_less_than_a_byte():
    f32, s4 = hlo.buffers("(bf16[1,640]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/(s4[3]{0}, token[]))")[
        :2
    ]
    assert f32 == Buffer("bf16", (1, 640), 1)
    assert (f32.bytes, s4.bytes) == (1280, 1)
    assert [
        b.bytes for b in hlo.buffers("(pred[], f8e4m3fn[2,3], u32[2]{0:S(2)}, token[], c64[2])")
    ] == [1, 6, 8, 0, 16]


def test_instructions_of_every_form():
    program = hlo.parse(
        """HloModule m, num_partitions=8

%fused.1 (p: f32[2]) -> f32[2] {
  ROOT %p = f32[2]{0} parameter(0)
}

%aside (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %n = f32[2]{0} negate(%p)
}, execution_thread="sparsecore"

ENTRY %main.2 (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %table = f32[2,2]{1,0} constant({ { 1, 2 }, { 3, 4 } })
  %kernel.3 = (f32[2]{0}, f32[2]{0}) custom-call(%x, %table), custom_call_target="tpu_custom_call", attributes={metadata={

}}, metadata={op_name="jit(f)/a/pallas_call" stack_frame_id=1}, backend_config={"estimated_cycles":"5"}
  %started = ((f32[2]), f32[2]{0}, u32[]) call-start(%x), to_apply=%aside
  %sum-start = f32[2]{0} all-reduce-start(%x), to_apply=%fused.1
  %x.2 = f32[2]{0} get-tuple-element(%kernel.3), index=1
  ROOT %fusion = f32[2]{0} fusion(%x.2), kind=kLoop, calls=%fused.1
}
"""
    )
    main = program.computations["main.2"]
    kernel = main.ops["kernel.3"]
    assert (program.devices, main.root, kernel.operands, kernel.target) == (
        8,
        "fusion",
        ("x", "table"),
        "tpu_custom_call",
    )
    assert (
        kernel.op_name,
        kernel.attribute(r'"estimated_cycles":"(\d+)'),
        len(kernel.outputs),
    ) == ("jit(f)/a/pallas_call", "5", 2)
    assert main.ops["table"].operands == ()
    assert main.inputs(kernel)[1].shape == (2, 2)
    # Nothing of the all-reduce's sum.
    assert [
        (v.op.name, v.hidden, v.fused)
        for v in program.walk(fusions=True)
        if v.op.name in ("n", "p")
    ] == [("p", True, False), ("n", True, False), ("p", False, True)]


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("module @jit_f {}")
