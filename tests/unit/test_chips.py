"""Peaks by the exact names of devices."""

from __future__ import annotations

from modality_forcing import chips


def test_device_kinds_are_known_by_their_exact_name():
    assert chips.by_device_kind("TPU v5 lite") is chips.CHIPS["v5e"]
    assert chips.by_device_kind("TPU v5") is chips.CHIPS["v5p"]
    assert chips.by_device_kind("NVIDIA H200") is chips.CHIPS["h200"]
    # Slower than the module whose peak we know.
    assert chips.by_device_kind("NVIDIA H100 PCIe") is None
    assert chips.by_device_kind("cpu") is None


def test_numbers_of_a_chip_are_split_between_its_two_devices():
    chip = chips.CHIPS["tpu7x"]
    assert chip.per_device(chip.bf16_flops) == 2307e12 / 2
    assert chip.usable_bytes < chip.per_device(chip.hbm_bytes)  # already a device's
