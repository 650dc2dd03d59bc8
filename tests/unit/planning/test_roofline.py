"""A compiled step's collectives, kernels and lower bound of its time."""

from __future__ import annotations

import math
import os
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from modality_forcing.planning import hlo, roofline

PEAK, HBM, ICI = 197e12, 819e9, 200e9
DEVICES, D, F, B, STEPS = 4, 512, 1024, 1024, 2  # B: rows of one micro-batch per device

LOOP = """HloModule m, replica_count=1, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}}

{fused}
%body (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {{
  %p = (s32[], f32[64,32]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[64,32] get-tuple-element(%p), index=1
  %shard = bf16[8,32] parameter(1)
{inside}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[64,32]) tuple(%next, %x)
}}

%condition (p: (s32[], f32[64,32])) -> pred[] {{
  %p = (s32[], f32[64,32]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(30)
  ROOT %go = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (x: f32[64,32]) -> f32[64,32] {{
  %x = f32[64,32] parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[64,32]) tuple(%zero, %x)
{outside}
  %while = (s32[], f32[64,32]) while(%first), condition=%condition, body=%body
  ROOT %end = f32[64,32] get-tuple-element(%while), index=1
}}
"""


def looped(inside: str = "", outside: str = "", fused: str = "") -> str:
    """A program with these lines in a loop of 30, before it, and as further computations."""
    return LOOP.format(inside=inside, outside=outside, fused=fused)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={}", 8),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", 2),
    ],
)
def test_gather_in_a_loop_is_multiplied_by_its_trip_count(groups, size):
    line = f'  %g = bf16[64,32] all-gather(%shard), channel_id=7, {groups}, dimensions={{0}}, metadata={{op_name="jit(f)/w"}}'
    (found,) = roofline.collectives(looped(line))
    assert (found.kind, found.dtype, found.shape, found.bytes, found.count) == (
        "all-gather",
        "bf16",
        (64, 32),
        4096,
        30,
    )
    assert (found.group_size, found.channel, found.op_name) == (size, 7, "jit(f)/w")
    assert (found.asynchronous, found.across_slices) == (False, False)
    assert found.wire_bytes == 4096 * (size - 1) / size


def test_gather_split_over_fusions_is_counted_once():
    part = "%{n} (p: bf16[8,32]) -> bf16[64,32] {{\n  %p = bf16[8,32] parameter(0)\n"
    part += "  %g = bf16[64,32] all-gather(%p), channel_id=3\n  ROOT %c = {c}\n}}\n\n"
    start = '(bf16[8,32], bf16[64,32]{1,0:S(1)}, u32[]) custom-call(%g), custom_call_target="AsyncCollectiveStart"'
    fused = part.format(n="begin", c=start) + part.format(
        n="async_collective_fusion", c="(bf16[64,32]{1,0:S(1)}) tuple(%g)"
    )
    fused += part.format(
        n="finish", c='bf16[64,32] custom-call(%g), custom_call_target="AsyncCollectiveDone"'
    )
    lines = """  %f = (bf16[8,32], bf16[64,32]{1,0:S(1)}, u32[]) fusion(%shard), kind=kCustom, calls=%begin
  %g = (bf16[64,32]{1,0:S(1)}) fusion(%shard), kind=kOutput, calls=%async_collective_fusion
  %h = bf16[64,32]{1,0:S(1)} fusion(%shard), kind=kCustom, calls=%finish"""
    (found,) = roofline.collectives(looped(lines, fused=fused))
    # The result lands in VMEM.
    assert (found.count, found.asynchronous, found.hbm_bytes) == (30, True, 512)
    assert roofline.roofline(looped(lines, fused=fused), PEAK, HBM, ICI).exposed_seconds == 0


def test_all_reduce_that_keeps_a_slice_is_a_reduce_scatter():
    fused = """%all-reduce-scatter.1 (p: f32[64,32], q: bf16[64,32]) -> (f32[8,32], bf16[8,32]) {
  %p = f32[64,32] parameter(0)
  %q = bf16[64,32] parameter(1)
  %r = (f32[64,32], bf16[64,32]) all-reduce(%p, %q), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %s = f32[64,32] get-tuple-element(%r), index=0
  %t = bf16[64,32] get-tuple-element(%r), index=1
  %z = s32[] constant(0)
  %u = f32[8,32] dynamic-slice(%s, %z, %z)
  %v = bf16[8,32] dynamic-slice(%t, %z, %z)
  ROOT %w = (f32[8,32], bf16[8,32]) tuple(%u, %v)
}
"""
    text = looped(
        "  %f = (f32[8,32], bf16[8,32]) fusion(%x, %x), kind=kCustom, calls=%all-reduce-scatter.1",
        fused=fused,
    )
    found = roofline.collectives(text)
    assert [(c.kind, c.dtype, c.bytes, c.count, c.hbm_bytes) for c in found] == [
        ("reduce-scatter", "f32", 8192, 30, 8192 + 1024),
        ("reduce-scatter", "bf16", 4096, 30, 4096 + 512),
    ]
    bound = roofline.roofline(text, PEAK, HBM, ICI)
    assert math.isclose(bound.ici_seconds * ICI, 30 * 7 / 8 * (8192 + 4096))
    assert math.isclose(bound.exposed_seconds, bound.ici_seconds)
    # The fusion's memory is counted with the collective; the rest is the loop's counter.
    assert bound.hbm_bytes == pytest.approx(sum(c.hbm_bytes * c.count for c in found), rel=0.01)


def test_each_start_done_pair_is_counted_once():
    aside = "%aside (p: f32[64,32]) -> f32[8,32] {\n  %p = f32[64,32] parameter(0)\n"
    aside += "  ROOT %r = f32[8,32] reduce-scatter(%p), channel_id=4, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add\n}\n"
    lines = """  %a = (bf16[8,32], bf16[64,32]) all-gather-start(%shard), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %b = bf16[64,32] all-gather-done(%a)
  %c = f32[64,32] all-reduce-start(%x), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
  %d = f32[64,32] all-reduce-done(%c)
  %e = (f32[64,32], f32[64,32], u32[], u32[]) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,2},{2,0}}
  %f = f32[64,32] collective-permute-done(%e)
  %g = ((f32[64,32]), f32[8,32], u32[]) async-start(%x), calls=%aside
  %h = f32[8,32] async-done(%g)"""
    text = looped(outside=lines.replace("%shard", "%x"), fused=aside)
    found = roofline.collectives(text)
    assert [(c.kind, c.bytes, c.group_size, c.count) for c in found] == [
        ("all-gather", 8192, 8, 1),
        ("all-reduce", 8192, 4, 1),
        ("collective-permute", 8192, 3, 1),
        ("reduce-scatter", 8192, 8, 1),
    ]
    assert all(c.asynchronous for c in found)
    assert [c.wire_bytes / 8192 for c in found] == [7 / 8, 2 * 3 / 4, 1, 7 / 8]


def test_traffic_between_slices_has_its_own_lane():
    mark = 'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}'
    lines = f"""  %t = token[] after-all()
  %s = (f32[64,32], u32[], token[]) send(%x, %t), channel_id=1, {mark}
  %sd = token[] send-done(%s), channel_id=1, {mark}
  %r = (f32[64,32], u32[], token[]) recv(%t), channel_id=2, {mark}
  %rd = (f32[64,32], token[]) recv-done(%r), channel_id=2, {mark}"""
    found = roofline.collectives(looped(lines))
    assert [(c.kind, c.bytes, c.count, c.across_slices) for c in found] == [
        ("send", 8192, 30, True),
        ("recv", 8192, 30, True),
    ]
    bound = roofline.roofline(looped(lines), PEAK, HBM, ICI, dcn_bandwidth=1e6)
    assert bound.ici_seconds == 0 and bound.seconds == pytest.approx(30 * 8192 / 1e6)


def test_summary_is_by_kind_and_dtype():
    lines = "\n".join(
        f"  %g{i} = bf16[64,32] all-gather(%shard), channel_id={i}, dimensions={{0}}"
        for i in range(3)
    )
    once = "  %r = f32[64,32] all-reduce(%x), channel_id=9, to_apply=%add"
    assert roofline.summarize(roofline.collectives(looped(lines, once))) == {
        "all-gather bf16": {"distinct": 3, "executions": 90, "bytes": 90 * 4096},
        "all-reduce f32": {"distinct": 1, "executions": 1, "bytes": 8192},
    }
    assert roofline.summarize([]) == {}


KERNEL = '  %{name} = f32[4,64,32] custom-call(%q, %q), custom_call_target="tpu_custom_call", metadata={{op_name="jit(f)/{name}"}}'


def test_kernels_are_counted_and_their_flops_multiplied_by_executions():
    q = "  %q = f32[4,64,32] bitcast(%x)"
    names = ("splash.1", "splash.2.remat", "other")
    text = looped(
        "\n".join([q, *(KERNEL.format(name=n) for n in names)]),
        "\n".join([q, KERNEL.format(name="splash")]),
    )
    assert roofline.kernels(text) == {"splash": 3, "other": 1}
    bound = roofline.roofline(text, PEAK, HBM, ICI)
    assert bound.flops == (2 * 30 + 1) * 2 * (2 * 4 * 64 * 32 * 64)


def test_lanes_overlap_and_instructions_do_not():
    lines = """  %n = f32[64,32]{1,0:S(1)} negate(%x)
  %c = (f32[64,32]{1,0:S(1)}, f32[64,32], u32[]) copy-start(%x)
  %d = f32[64,32]{1,0:S(1)} copy-done(%c)
  %e = f32[64,32]{1,0:S(1)} exponential(%d)
  %w = f32[64,32] multiply(%x, %e)"""
    bound = roofline.roofline(looped(lines), PEAK, HBM, ICI)
    # The copy, negate's operand, multiply's operand and output; and the loop's counter.
    assert bound.hbm_bytes == pytest.approx(30 * 4 * 8192, rel=0.01)
    assert bound.touched_bytes == pytest.approx(30 * 9 * 8192, rel=0.01)
    assert bound.serial_seconds == pytest.approx(30 * 3 * 8192 / HBM, rel=0.01)
    assert bound.seconds == bound.hbm_seconds == bound.hbm_bytes / HBM


def test_loop_of_unknown_length_is_reported():
    text = looped("  %n = f32[64,32] negate(%x)").replace("constant(30)", "partition-id()")
    bound = roofline.roofline(text, PEAK, HBM, ICI)
    assert bound.unknown_loops == ("while",)
    assert bound.hbm_bytes == pytest.approx(2 * 8192, rel=0.01)
    assert roofline.roofline(looped(), PEAK, HBM, ICI).unknown_loops == ()


@cache
def compiled(layers: int, scan: bool = True, devices: int = DEVICES):
    """A training step of residual MLPs for v5e, weights sharded over the devices, gradients summed
    over micro-batches.
    """
    pytest.importorskip("libtpu")
    # No cloud to ask for metadata, and other processes may hold the library's lock.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[:devices]
    mesh = Mesh(np.array(chips), ("fsdp",))

    def put(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    def shape(s, dtype, *axes):
        return jax.ShapeDtypeStruct(s, dtype, sharding=put(*axes))

    weights: Any = [shape((layers, *s), jnp.float32, None, "fsdp") for s in ((D, F), (F, D))]
    if not scan:
        weights = [[shape(s, jnp.float32, "fsdp") for s in ((D, F), (F, D))] for _ in range(layers)]
    x = shape((STEPS, B * devices, D), jnp.bfloat16, None, "fsdp")

    def layer(x, w):
        up, down = (a.astype(x.dtype) for a in w)
        return x + jax.nn.silu(x @ up) @ down

    def loss(weights, x):
        if scan:
            x = jax.lax.scan(lambda x, w: (layer(x, w), None), x, weights)[0]
        else:
            for w in weights:
                x = layer(x, w)
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    def step(weights, x):
        def add(total, x):
            return (jax.tree.map(jnp.add, total, jax.grad(loss)(weights, x)), None)

        zeros = jax.tree.map(jnp.zeros_like, weights)
        grads = jax.lax.scan(add, zeros, x)[0] if scan else add(zeros, x[0])[0]
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads)

    flags = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
    return jax.jit(step, donate_argnums=0).lower(weights, x).compile(compiler_options=flags)


PRODUCT = 2 * B * D * F


def bound_of(*arguments, **named) -> roofline.Roofline:
    return roofline.roofline(compiled(*arguments, **named).as_text(), PEAK, HBM, ICI)


def test_bound_of_a_scanned_step_grows_with_depth():
    bounds = {n: bound_of(n) for n in (2, 4)}
    # Three products for each of two weights, forward and backward, in each of the micro-batches.
    assert {n: b.flops for n, b in bounds.items()} == {n: n * STEPS * 6 * PRODUCT for n in bounds}
    assert all(b.unknown_loops == () for b in bounds.values())
    assert 1.6 < bounds[4].touched_bytes / bounds[2].touched_bytes < 2.1
    for b in bounds.values():
        assert b.flops / PEAK <= b.serial_seconds <= b.seconds
        assert b.hbm_bytes <= b.touched_bytes
        assert b.seconds < 3 * max(b.flops / PEAK, b.ici_seconds)
    # Each layer's two weights are gathered, and their gradients reduced, in each direction and
    # micro-batch.
    gathered = roofline.summarize(roofline.collectives(compiled(4).as_text()))
    assert (
        sum(row["bytes"] for kind, row in gathered.items() if kind.startswith("all-gather bf16"))
        >= 4 * STEPS * 2 * D * F * 2
    )
    assert (
        sum(row["bytes"] for kind, row in gathered.items() if "reduce" in kind)
        >= 4 * STEPS * 2 * D * F * 2
    )


def test_cost_of_an_unrolled_step_equals_xla_cost_analysis():
    step = compiled(2, scan=False, devices=1)
    read, analysis = hlo.parse(step.as_text()), step.cost_analysis()
    assert isinstance(analysis, dict)
    bound = bound_of(2, scan=False, devices=1)
    # XLA counts sums and exponentials too.
    assert bound.flops == pytest.approx(analysis["flops"], rel=0.02)
    assert bound.flops == (2 * 6 - 1) * PRODUCT  # the first layer's input needs no gradient
    # XLA counts what copies and slices aside name where they start and where they end: two sizes
    # more, and one.
    more = {"copy-start": 2, "slice-done": 1}
    named = sum(more.get(v.op.opcode, 0) * v.op.outputs[0].bytes for v in read.walk())
    assert bound.touched_bytes + named == pytest.approx(analysis["bytes accessed"], rel=0.02)
    assert bound.ici_seconds == 0


def test_scanned_and_unrolled_steps_have_equal_product_costs():
    scanned, unrolled = bound_of(2, devices=1), bound_of(2, scan=False, devices=1)
    assert scanned.flops / STEPS - unrolled.flops == PRODUCT
    # Scanning stores activations in stacks and takes them out again, and may not keep them in VMEM.
    assert unrolled.touched_bytes < scanned.touched_bytes / STEPS < 2 * unrolled.touched_bytes
