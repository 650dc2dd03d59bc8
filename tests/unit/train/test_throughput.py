"""Rates of steps and memory: the convention of MFU, and what is left out where it is unknown."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from modality_forcing.chips import CHIPS
from modality_forcing.modalities import base
from modality_forcing.models import flops
from modality_forcing.train import throughput
from tests import tiny


def devices(kind: str, count: int = 1, stats=None) -> list[SimpleNamespace]:
    return [SimpleNamespace(device_kind=kind, memory_stats=lambda: stats) for _ in range(count)]


def test_cpu_has_rates_and_no_mfu():
    config = tiny.forcing()
    row = throughput.step_cost(config).rates(2.0)
    # 3 tokens of text, 4 of the image and 16 of depth, in a batch of 4.
    assert row == {"perf/step_s": 2.0, "perf/examples_per_s": 2.0, "perf/tokens_per_s": 46.0}


@pytest.mark.parametrize("kind, chip, share", [("TPU v5", "v5p", 1), ("TPU7x", "tpu7x", 2)])
def test_mfu_is_counted_flops_over_the_peak_of_all_devices(monkeypatch, kind, chip, share):
    monkeypatch.setattr(jax, "devices", lambda: devices(kind, 8))
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    config = tiny.forcing()
    peak = 8 * CHIPS[chip].bf16_flops / share
    count = flops.step_flops(config, base.build(config)).total
    assert throughput.step_cost(config).rates(0.5)["perf/mfu"] == pytest.approx(count / 0.5 / peak)


def test_mixed_devices_have_no_mfu(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: devices("TPU v4") + devices("TPU v5"))
    assert throughput.step_cost(tiny.t2i()).peak_flops is None


def test_memory_of_the_fullest_device(monkeypatch):
    full = {"bytes_in_use": 3 * 2**30, "peak_bytes_in_use": 5 * 2**30}
    less = {"bytes_in_use": 2**30}
    monkeypatch.setattr(jax, "local_devices", lambda: devices("x", 1, less) + devices("x", 1, full))
    row = throughput.memory()
    assert (row["memory/device_gib"], row["memory/device_peak_gib"]) == (3, 5)
    assert 0.05 < row["memory/host_gib"] < 64


def test_what_a_platform_does_not_report_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(throughput, "_PROCESSES", tmp_path)
    assert throughput.memory() == {}  # a CPU device has no statistics
