"""The train step compiled by the real TPU compiler for v5e:2x2, without a TPU."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from configs import forcing
from modality_forcing.modalities import base
from modality_forcing.planning import report, roofline
from modality_forcing.planning.collectives import check_collectives
from modality_forcing.planning.compile import compile_step, get_target
from modality_forcing.planning.search import Plan, estimate, plan, with_batch
from modality_forcing.train.state import abstract_model
from tests.runs import process, refused

pytest.importorskip("libtpu")

KEYS = {
    *(
        "params",
        "flops_per_step",
        "bytes_per_chip",
        "hbm_bytes",
        "fits",
        "collectives",
        "compile_seconds",
    ),
    *("roofline_seconds", "mfu_bound", "micro_batch", "remat", "preset"),
}


def small():
    """The family's shape, 640 tokens and all, but narrow and shallow."""
    c = forcing.get_config("size=370m")
    modalities = {**c.modalities, "depth": replace(c.modalities["depth"], detokenizer_layers=1)}
    model = replace(
        c.model, width=256, mlp_dim=512, num_layers=2, heads=2, kv_heads=1, remat="elementwise"
    )
    return replace(c, model=model, modalities=modalities, text=replace(c.text, channels=128))


@pytest.fixture(scope="module")
def target():
    return get_target("v5e:2x2")


@pytest.fixture(scope="module")
def compiled(target):
    return compile_step(with_batch(small(), target, 8), target)


@pytest.fixture(scope="module")
def planned(target, compiled, monkeypatch_module) -> Plan:
    monkeypatch_module.setattr(
        "modality_forcing.planning.search.compile_step", lambda config, at: compiled
    )
    return plan(with_batch(small(), target, 8), target)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_program_contains_the_attention_kernel_forward_and_backward(compiled):
    kernels = roofline.kernels(compiled.text)
    assert any("fwd" in name for name in kernels) and any("dkv" in name for name in kernels), (
        kernels
    )
    assert all(name.startswith("splash") for name in kernels)


def test_program_has_only_the_expected_collectives(compiled):
    found = roofline.collectives(compiled.text)
    assert check_collectives(found, batch=8) == []
    gathers = [c for c in found if c.kind == "all-gather" and c.bytes > 2**16]
    sums = [c for c in found if c.kind in ("reduce-scatter", "all-reduce") and c.bytes > 2**16]
    # zero2: each of a block's seven matrices once a step and block, in the two blocks of the trunk
    # and the one of the detokenizer
    in_blocks = [c for c in gathers if "while" in c.op_name or "closed_call" in c.op_name]
    assert sum(c.count for c in in_blocks) >= 3 * 5  # k and v may be below 64 KiB
    assert {c.dtype for c in gathers} == {"bf16"} and {c.dtype for c in sums} == {"f32"}
    assert max(c.count for c in gathers) == 2  # blocks of the trunk: the loop was counted


def test_plan_report_is_complete(planned):
    written = json.loads(json.dumps(report.to_json(planned)))
    assert set(written) >= KEYS
    size = dict(written["bytes_per_chip"])
    assert size.pop("total") == sum(size.values()) - 2 * size["alias"]
    assert set(size) == {"arguments", "temporaries", "output", "alias", "code"} and size["code"] > 0
    assert written["fits"] and written["bytes_per_chip"]["total"] < written["hbm_bytes"]
    assert written["micro_batch"] == 2 and written["preset"] == "zero2" and written["chips"] == 4
    assert 0 < written["mfu_bound"] < 1 and written["flops_per_step"] > 0
    text = report.to_text(planned)
    assert "v5e:2x2, 4 chips" in text and ": fits" in text and "not modeled" in text
    assert report.row(planned, "small").count("|") == len(report.COLUMNS) + 1


def test_state_is_sharded_and_donated(planned):
    weights = 4 * planned.params
    # Weights, two moments and EMA, over four chips.
    assert planned.state_bytes == pytest.approx(4 * weights / 4, rel=0.05)
    assert planned.bytes.alias == pytest.approx(planned.state_bytes, rel=0.01)
    assert planned.bytes.output - planned.bytes.alias < 2**16


def test_memory_estimate_is_close_to_the_compiled_program(planned):
    """Loops and buffers weigh more here than in the family, where the error is about 10%."""
    weights = abstract_model(planned.config, base.build(planned.config))[1]
    assert 0.3 < estimate(planned.config, planned.target, weights) / planned.bytes.total < 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5p:3x3x3"], r"unknown shape '3x3x3' .*these work: .*v5p:4x4x4"),
        (["--topology=b200:8"], r"unknown TPU 'b200' .*known: .*v5e.*v6e"),
        (
            ["--topology=v5e:2x2", "--batch=3"],
            r"train\.batch 3 does not divide among 4 micro-batches; make it a multiple of 4",
        ),
        (
            ["--topology=v5e:2x2", "--batch=4", "--config.model.head_dim=64"],
            r"model\.head_dim is 64: the TPU attention kernel takes multiples of 128",
        ),
        (
            ["--topology=v5e:2x2", "--batch=4", "--config.mesh.fsdp=3"],
            r"does not fit 4 devices; set mesh\.fsdp=-1",
        ),
    ],
)
def test_wrong_inputs_are_refused(arguments, message):
    refused(process("plan", "--config=configs/forcing.py", *arguments), message)
