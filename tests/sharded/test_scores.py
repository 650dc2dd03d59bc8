"""Depth scores on one device and on eight are equal, through the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.runs import ROOT, environment


@pytest.mark.parametrize("name", ("moge", "marigold"))
def test_scores_do_not_depend_on_the_number_of_devices(tmp_path, name):
    rng = np.random.default_rng(0)
    target = rng.gamma(2.0, 1.0, (11, 70, 90)).astype("f4") + 0.2  # 11 images over 8 devices
    np.savez(
        tmp_path / "p.npz", depth=target * np.exp(0.2 * rng.normal(size=target.shape)).astype("f4")
    )
    np.savez(tmp_path / "g.npz", depth=target, valid=rng.random(target.shape) < 0.6)
    results = []
    for devices in (1, 8):
        flags = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        )
        command = [
            sys.executable,
            "-m",
            "modality_forcing.cli",
            "evaluate",
            "--pred=p.npz",
            "--target=g.npz",
            "--json",
        ]
        env = {**environment(), "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, f"--protocol={name}"], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(json.loads(done.stdout))
    one, eight = results
    assert one["images"] == eight["images"] == 11 and len(one["rows"]) == len(eight["rows"])
    for ours, theirs in zip(eight["rows"], one["rows"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
