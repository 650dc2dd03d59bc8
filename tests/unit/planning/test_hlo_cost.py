"""Costs of instructions: dilated windows, and fusions that slice or update a stack."""

from __future__ import annotations

import pytest

from modality_forcing.planning import hlo
from modality_forcing.planning.hlo import Buffer
from modality_forcing.planning.hlo_cost import flops, is_free, kernel_name, splash_flops, traffic

STACK, SLICE = 30 * 64 * 4, 64 * 4  # bytes of f32[30,64] and of one row


def entry(lines: str, fused: str = "") -> tuple[hlo.Program, hlo.Computation]:
    """A program of these lines, beside fused computations."""
    program = hlo.parse(
        f"HloModule m\n\n{fused}\nENTRY %main () -> f32[] {{\n{lines.rstrip()}\n}}\n"
    )
    return program, program.computations["main"]


def moved(fused: str, operands: str, shape: str, attributes: str = "") -> list[tuple[float, int]]:
    """What a fusion of this body reads and writes, nothing left out that is not zero."""
    names = ", ".join(f"%x{i}" for i in range(len(operands.split("; "))))
    lines = "\n".join(f"  %x{i} = {s} parameter({i})" for i, s in enumerate(operands.split("; ")))
    program, main = entry(
        f"{lines}\n  ROOT %f = {shape} fusion({names}), kind=kLoop, calls=%fused{attributes}", fused
    )
    return [(size, space) for size, space in traffic(program, main, main.ops["f"]) if size]


@pytest.mark.parametrize(
    ("image", "kernel", "output", "attributes", "products"),
    [
        (
            "bf16[256,1024]",
            "bf16[1024,3072]",
            "f32[256,3072]",
            "dim_labels=bf_io->bf",
            256 * 1024 * 3072,
        ),
        # A batched product [16 2] x [1536 128] x [384 128] as the TPU compiler prints it: batch as
        # a dilated window.
        (
            *("bf16[16,2,1536,128]", "bf16[16,2,384,128]", "bf16[16,2,1536,384]"),
            "window={size=16x2 stride=15x1 lhs_dilate=16x2}, dim_labels=01bf_01oi->01bf",
            16 * 2 * 1536 * 128 * 384,
        ),
        # To and from 8 heads: the head is a window position that otherwise meets padding, and one
        # that is summed over.
        (
            *("bf16[16,384,1024,1]", "bf16[8,128,1024,1]", "bf16[16,384,8,128]"),
            "window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
            16 * 384 * 1024 * 8 * 128,
        ),
        (
            *("bf16[8,128,16,384]", "bf16[1024,8,128,1]", "bf16[16,384,1024,1]"),
            "window={size=1x8}, dim_labels=1f0b_o1i0->0bf1",
            16 * 384 * 1024 * 8 * 128,
        ),
        # A convolution of 3 taps over 5 places, padded: the outer two meet one padding each.
        (
            "f32[4,5,3]",
            "f32[3,3,7]",
            "f32[4,5,7]",
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            4 * 3 * 7 * 13,
        ),
        (
            "f32[4,9,3]",
            "f32[3,3,7]",
            "f32[4,4,7]",
            "window={size=3 stride=2}, dim_labels=b0f_0io->b0f",
            4 * 3 * 7 * 12,
        ),
        # Of 6 features in two groups, the kernel has 3.
        (
            "f32[4,5,6]",
            "f32[1,3,8]",
            "f32[4,5,8]",
            "window={size=1}, dim_labels=b0f_0io->b0f, feature_group_count=2",
            4 * 5 * 3 * 8,
        ),
    ],
)
def test_flops_of_convolutions(image, kernel, output, attributes, products):
    program, main = entry(
        f"  %x = {image} parameter(0)\n  %w = {kernel} parameter(1)\n  ROOT %c = {output} convolution(%x, %w), {attributes}"
    )
    assert flops(program, main, main.ops["c"]) == 2 * products


def test_flops_of_dots_in_nested_fusions_and_of_kernels():
    inner = "%inner (a: f32[4,8], b: f32[8,3]) -> f32[4,3] {\n  %a = f32[4,8] parameter(0)\n  %b = f32[8,3] parameter(1)\n"
    inner += (
        "  ROOT %d = f32[4,3] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n}\n"
    )
    outer = "%outer (a: f32[4,8], b: f32[8,3]) -> f32[4,3] {\n  %a = f32[4,8] parameter(0)\n  %b = f32[8,3] parameter(1)\n"
    outer += "  ROOT %g = f32[4,3] fusion(%a, %b), kind=kLoop, calls=%inner\n}\n"
    program, main = entry(
        """  %a = f32[4,8] parameter(0)
  %b = f32[8,3] parameter(1)
  %k.2.remat.1 = f32[4,3] custom-call(%a, %b), custom_call_target="tpu_custom_call"
  ROOT %f = f32[4,3] fusion(%a, %b), kind=kLoop, calls=%outer""",
        inner + "\n" + outer,
    )
    kernel = main.ops["k.2.remat.1"]
    assert flops(program, main, main.ops["f"]) == 2 * 4 * 8 * 3
    assert kernel_name(kernel) == "k"
    assert flops(program, main, kernel) == 0


@pytest.mark.parametrize(
    ("name", "products", "extra"),
    [
        ("splash_mha_fwd_residuals", 2, 0),
        ("splash_mha_dq", 3, 0),
        ("splash_mha_dkv", 4, 0),
        ("splash_mha_dkv", 5, 1),
        ("other", 0, 0),
    ],
)
def test_flops_of_splash_attention(name, products, extra):
    q, k = Buffer("bf16", (2, 8, 384, 128)), Buffer("bf16", (2, 2, 640, 128))
    inputs = [Buffer("s8", (1, 1, 1)), Buffer("s8", (1, 1, 1)), q, k, k]
    outputs = (Buffer("f32", (8, 384, 128)), Buffer("bf16", (2, *[1] * extra, 8, 384, 128)))
    assert splash_flops(name, inputs, outputs) == products * 2 * 2 * 8 * 384 * 640 * 128


HEAD = "%fused (p: f32[30,64], i: s32[]) -> f32[64] {\n  %p = f32[30,64] parameter(0)\n"
HEAD += "  %i = s32[] parameter(1)\n  %z = s32[] constant(0)\n"
OPERANDS = "f32[30,64]; s32[]{:S(6)}"


def test_slice_of_a_stack_reads_only_the_slice():
    body = "  %s = f32[1,64] dynamic-slice(%p, %i, %z)\n  %c = bf16[1,64] convert(%s)\n  ROOT %b = bf16[64] bitcast(%c)\n}\n"
    assert moved(HEAD + body, OPERANDS, "bf16[64]") == [(SLICE, 0), (4, 6), (SLICE / 2, 0)]


def test_cast_before_slices_counts_only_the_slices():
    body = "  %c = bf16[30,64] convert(%p)\n  %s = bf16[1,64] dynamic-slice(%c, %i, %z)\n"
    body += "  %t = bf16[1,64] slice(%c), slice={[3:4], [0:64]}\n  ROOT %r = bf16[1,64] add(%s, %t)\n}\n"
    assert moved(HEAD + body, OPERANDS, "bf16[1,64]{1,0:S(1)}") == [
        (2 * SLICE, 0),
        (4, 6),
        (SLICE / 2, 1),
    ]


UPDATE = "%fused (p: f32[30,64], i: s32[], u: bf16[64]) -> f32[30,64] {\n  %p = f32[30,64] parameter(0)\n  %i = s32[] parameter(1)\n"
UPDATE += "  %z = s32[] constant(0)\n  %u = bf16[64] parameter(2)\n  %c = f32[64] convert(%u)\n  %v = f32[1,64] bitcast(%c)\n"


@pytest.mark.parametrize("through", ["", "fusion"])
def test_in_place_update_writes_only_the_slice(through):
    stack, relayout = "%p", ""
    if through:  # a change of tiles between the parameter and the update, as on tpu7x
        relayout = "%copied (q: f32[30,64]) -> f32[30,64] {\n  %q = f32[30,64] parameter(0)\n  ROOT %w = f32[30,64] copy(%q)\n}\n\n"
        stack = "%t"
    body = UPDATE
    if through:
        body += "  %t = f32[30,64] fusion(%p), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%copied\n"
    body += f"  ROOT %d = f32[30,64] dynamic-update-slice({stack}, %v, %i, %z)\n}}\n"
    assert moved(relayout + body, OPERANDS + "; bf16[64]", "f32[30,64]") == [
        (4, 6),
        (SLICE / 2, 0),
        (SLICE, 0),
    ]


def test_update_of_a_new_buffer_writes_all_of_it():
    body = UPDATE.replace(
        "constant(0)",
        "constant(0)\n  %o = f32[] constant(0)\n  %n = f32[30,64] broadcast(%o), dimensions={}",
    )
    body += "  ROOT %d = f32[30,64] dynamic-update-slice(%n, %v, %i, %z)\n}\n"
    assert moved(body, OPERANDS + "; bf16[64]", "f32[30,64]") == [
        (4, 6),
        (SLICE / 2, 0),
        (STACK, 0),
    ]


def test_operands_passed_through_an_asynchronous_gather_are_free():
    body = """%fused (p: f32[8,64], q: f32[64,64], x: f32[4,8]) -> (f32[8,64], f32[64,64], f32[4,64]) {
  %p = f32[8,64] parameter(0)
  %q = f32[64,64] parameter(1)
  %x = f32[4,8] parameter(2)
  %w = f32[8,64] parameter(3)
  %g = f32[64,64] all-gather(%p), channel_id=1, dimensions={0}
  %c = f32[4,64] convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %t = (f32[8,64], f32[64,64], f32[4,64]) tuple(%p, %g, %c)
}
"""
    found = moved(
        body, "f32[8,64]; f32[64,64]; f32[4,8]; f32[8,64]", "(f32[8,64], f32[64,64], f32[4,64])"
    )
    assert found == [(4 * 8 * 4, 0), (8 * 64 * 4, 0), (4 * 64 * 4, 0)]


def test_nested_fusion_of_bitcasts_reads_its_operand():
    body = (
        "%view (q: f32[30,64]) -> f32[1920] {\n  %q = f32[30,64] parameter(0)\n  ROOT %w = f32[1920] bitcast(%q)\n}\n\n"
        + HEAD
    )
    body += "  %t = f32[1920] fusion(%p), kind=kLoop, calls=%view\n  ROOT %n = f32[1920] negate(%t)\n}\n"
    assert moved(body, OPERANDS, "f32[1920]") == [(STACK, 0), (STACK, 0)]


def test_scatter_reads_and_writes_its_updated_rows():
    body = "%fused (p: f32[100,64], i: s32[5], u: f32[5,64]) -> f32[100,64] {\n  %p = f32[100,64] parameter(0)\n"
    body += "  %i = s32[5] parameter(1)\n  %u = f32[5,64] parameter(2)\n"
    body += "  ROOT %s = f32[100,64] scatter(%p, %i, %u), to_apply=%add\n}\n"
    rows = 5 * 64 * 4
    assert moved(body, "f32[100,64]; s32[5]; f32[5,64]", "f32[100,64]") == [
        (rows, 0),
        (20, 0),
        (rows, 0),
        (rows, 0),
    ]


def test_asynchronous_copies_and_slices():
    program, main = entry("""  %x = f32[30,64] parameter(0)
  %i = s32[] parameter(1)
  %u = f32[1,64]{1,0:S(1)} parameter(2)
  %c = (f32[30,64]{1,0:S(1)}, f32[30,64], u32[]{:S(2)}) copy-start(%x)
  %s = ((f32[30,64]), f32[1,64]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[2:3], [0:64]}
  %d = f32[30,64] dynamic-update-slice(%x, %u, %i, %i)
  %done = f32[30,64]{1,0:S(1)} copy-done(%c)
  ROOT %a = f32[30,64] custom-call(), custom_call_target="AllocateBuffer"
""")
    assert traffic(program, main, main.ops["c"]) == [(STACK, 1), (STACK, 0)]
    assert traffic(program, main, main.ops["s"]) == [(SLICE, 0), (SLICE, 1)]
    assert traffic(program, main, main.ops["d"]) == [(SLICE, 1), (SLICE, 0)]
    assert [op.name for op in main.ops.values() if is_free(op)] == ["x", "i", "u", "done", "a"]
