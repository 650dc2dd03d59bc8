"""A plan as text, JSON and a row; tests/sharded/test_compiled.py reports a compiled program."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from modality_forcing.chips import CHIPS, GIB
from modality_forcing.config import MeshConfig
from modality_forcing.planning import hardware, report
from modality_forcing.planning.analysis import NOT_MODELED
from modality_forcing.planning.compile import Bytes, Target
from modality_forcing.planning.roofline import Roofline
from modality_forcing.planning.search import Plan
from tests import tiny


def plan(chip: str = "v5e", slices: int = 1, **changed: Any) -> Plan:
    """A plan of 8 devices on 2 hosts, each with 4 GiB of 12 in state."""
    devices = tuple(SimpleNamespace(process_index=i // 4) for i in range(8))
    config = tiny.forcing(batch=32, grad_accum_steps=2)
    mesh = MeshConfig(data=2, fsdp=4 // slices, slices=slices)
    made = Plan(
        config=replace(config, name="tiny", mesh=mesh),
        target=Target(f"{chip}:2x4", slices, CHIPS[chip], (2, 4), devices),
        params=1_500_000_000,
        tokens_per_step=4_000_000,
        flops=10**15,
        bytes=Bytes(6 * GIB, 5 * GIB, 4 * GIB, 4 * GIB, GIB),
        state_bytes=4 * GIB,
        fits=True,
        compile_seconds=12.345,
        collectives={"all-gather bf16": {"distinct": 2, "executions": 30, "bytes": 3 * GIB}},
        kernels={"splash_fwd": 4, "splash_dkv": 2},
        bound=Roofline(2.0, 1.5, 0.75, 0.5, 0.25, 1e15, 1.0, 1.0, unknown_loops=()),
        collective_warnings=["all-gather of a batch"],
        replicated={"trunk/scale": 2**20, "b": 2**19, "c": 0, "d": 0},
    )
    return replace(made, **changed)


def test_text_has_the_numbers_of_the_plan():
    lines = report.to_text(plan()).splitlines()
    assert lines[0] == "tiny on v5e:2x4, 8 chips, 2 hosts: fits"
    parts = {line[2:18].strip(): line[18:] for line in lines[1:] if line[2:18].strip()}
    assert parts["parameters"] == "1.500 B"
    assert parts["layout"].endswith("; mesh data 2, fsdp 4, tensor 1")
    assert parts["batch"] == "32 in 2 micro-batches, 4,000,000 tokens"
    assert parts["analytic FLOPs"] == "1,000.0 T a step"
    assert parts["GiB a chip"] == (
        "12.00 of 15.75: arguments 6.00 (state 4.00), temporaries 5.00, output 4.00,"
        " of it in place 4.00, code 1.00"
    )
    assert parts["host at save"] == "16.0 GiB of the state on each host"
    assert parts["not sharded"] == "1.50 MiB: trunk/scale, b, c"
    assert parts["compile"] == "12 s"
    assert parts["all-gather bf16"] == "30 a step, 3.00 GiB a device"
    assert parts["kernels"] == "splash_fwd x4, splash_dkv x2"
    assert parts["roofline"] == (
        "2000.0 ms a step at least: instructions 1500.0, all memory traffic 750.0,"
        " collectives 500.0 (without overlap they add 250.0)"
    )
    assert parts["MFU at most"] == f"{1e15 / (2 * 8 * 197e12):.1%}"
    assert parts["warning"] == "all-gather of a batch"
    assert "--config.mesh.fsdp=4 " in parts["run with"] and "train.batch=32" in parts["run with"]
    assert f"LIBTPU_INIT_ARGS='{hardware.libtpu_init_args(CHIPS['v5e'])}'" in lines[-2]
    assert lines[-1] == f"  {NOT_MODELED}"


def test_loops_of_unknown_length_are_a_warning():
    bound = plan().bound
    assert bound and "of unknown length" not in report.to_text(plan())
    for names, what in ((("a",), "1 loop"), (("a", "b"), "2 loops")):
        lines = report.to_text(plan(bound=replace(bound, unknown_loops=names)))
        expected = f"  warning         {what} of unknown length counted once: the bound is too low"
        assert expected in lines.splitlines()


def test_few_tokens_a_chip_are_a_warning():
    # In two micro-batches on 8 chips; C / W of v5e is 985.
    short, long = (report.to_text(plan(tokens_per_step=8 * 2 * n)) for n in (984, 985))
    assert "  warning         984 tokens a chip: below 985, collectives take longer" in short
    assert "tokens a chip" not in long


def test_chip_of_two_devices_has_the_bytes_of_both():
    written = json.loads(json.dumps(report.to_json(plan("tpu7x"))))
    assert (written["chips"], written["mesh"]["fsdp"]) == (4, 4)
    assert written["bytes_per_chip"] == {
        name: size * 2 * GIB
        for name, size in {
            "arguments": 6,
            "temporaries": 5,
            "output": 4,
            "alias": 4,
            "code": 1,
            "total": 12,
        }.items()
    }
    assert written["hbm_bytes"] == pytest.approx(2 * 94.74 * GIB, abs=1)
    assert "GiB a chip      24.00 of 189.48" in report.to_text(plan("tpu7x"))
    assert " | 24.0 | 189.5 | " in report.row(plan("tpu7x"), "large")


def test_plan_of_two_slices_is_written_as_json():
    written = json.loads(json.dumps(report.to_json(plan(slices=2))))
    expected = {"config": "tiny", "topology": "v5e:2x4", "slices": 2, "params": 1_500_000_000}
    expected |= {"tokens_per_step": 4_000_000, "flops_per_step": 10**15, "fits": True}
    expected |= {"compile_seconds": 12.3, "roofline_seconds": 2.0, "batch": 32, "micro_batch": 2}
    expected |= {"exposed_collective_seconds": 0.25, "grad_accum_steps": 2, "preset": "zero2"}
    expected |= {"replicated_bytes": 3 * 2**19, "host_bytes_at_save": 16 * GIB}
    expected |= {"collective_warnings": ["all-gather of a batch"], "not_modeled": NOT_MODELED}
    assert {name: written[name] for name in expected} == expected
    assert written["mfu_bound"] == pytest.approx(1e15 / (2 * 8 * 197e12))
    assert "parallel_all_reduce" in written["libtpu_init_args"]
    first = report.to_text(plan(slices=2)).splitlines()[0]
    assert first == "tiny on v5e:2x4 x 2 slices, 8 chips, 2 hosts: fits"


def test_row_has_a_cell_for_each_column():
    def cells(made: Plan) -> dict[str, str]:
        found = report.row(made, "small").strip("| ").split(" | ")
        return dict(zip(report.COLUMNS, found, strict=True))

    row = cells(plan(slices=2))
    assert (row["config"], row["topology"], row["batch"]) == ("small", "v5e:2x4 x2", "32")
    assert (row["GiB a chip"], row["of"]) == ("12.0", "15.8")
    assert (row["TFLOP a step"], row["bound, ms"], row["MFU bound"]) == ("1,000", "2000", "0.32")
    assert (row["ICI, ms"], row["host GiB at save"], row["compile, s"]) == ("500", "16.0", "12")
    large = report.row(plan(fits=False, bound=None), "large")
    assert "| 15.8 **does not fit** | 1,000 |  |  |  | 16.0 | 12 |" in large


def test_plan_that_does_not_fit_names_the_cause():
    huge = plan(state_bytes=2**35, fits=False, bound=None)
    text = report.to_text(huge)
    assert text.startswith("tiny on v5e:2x4, 8 chips, 2 hosts: does not fit")
    assert text.endswith(
        "too large: the state alone, 32.0 GiB a chip: shard it over more devices (mesh.fsdp)"
    )
    activations = replace(plan().bytes, temporaries=2**36)
    wide = plan(bytes=activations, fits=False, bound=None)
    cause = "67.0 GiB a chip beside 4.0 of state: take a smaller batch, remat=full or"
    assert f"activations and gathered weights, {cause} mesh.preset=fsdp" in report.to_text(wide)
    mesh = replace(wide.config.mesh, preset="fsdp")
    sharded = replace(wide, config=replace(wide.config, mesh=mesh))
    assert f"activations, {cause}" in report.to_text(sharded)
    assert report.to_json(wide)["roofline_seconds"] is None
