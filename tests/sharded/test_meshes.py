"""The same step on one device and on eight: equal noise, losses, gradients; the expected layout.

Simulated devices need a process that was started with them: tests/sharded/meshes.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runs import ROOT, environment
from tests.sharded.meshes import FRESH, MESHES

OTHERS = [name for name in MESHES if name != "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    env = {
        **environment(),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, "-m", "tests.sharded.meshes", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def results(folder) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(folder / f"{name}.npz"))


@pytest.mark.parametrize("name", OTHERS)
def test_noise_levels_noise_and_text_are_equal_on_every_mesh(folder, name):
    ours, one = arrays(folder, f"{name}-samples"), arrays(folder, "1-samples")
    assert set(ours) == {"t_image", "t_depth", "eps_image", "eps_depth", "text"}
    for key in one:
        np.testing.assert_array_equal(ours[key], one[key], err_msg=key)
    # Of 16 examples: sampled per example, not repeated on every device.
    assert np.unique(one["t_image"]).size > 8


@pytest.mark.parametrize("name", [name for name in FRESH if name != "1"])
def test_initial_weights_do_not_depend_on_the_mesh(folder, name):
    ours, one = arrays(folder, f"{name}-fresh"), arrays(folder, "1-fresh")
    for key in one:
        np.testing.assert_array_equal(ours[key], one[key], err_msg=key)


@pytest.mark.parametrize("name", OTHERS)
def test_losses_of_five_steps_agree_on_every_mesh(results, name):
    for ours, one in zip(results[name]["losses"], results["1"]["losses"], strict=True):
        assert ours == pytest.approx(one, rel=1e-5)
    first, last = results["1"]["losses"][0]["loss"], results["1"]["losses"][-1]["loss"]
    assert abs(first - last) > 1e-3  # the loss changed, so agreement is not trivial


@pytest.mark.parametrize("name", OTHERS)
def test_gradient_agrees_on_every_mesh(folder, name):
    ours, one = arrays(folder, f"{name}-moment"), arrays(folder, "1-moment")
    for key in one:
        np.testing.assert_allclose(
            ours[key], one[key], rtol=0, atol=1e-5 * max(np.abs(one[key]).max(), 1e-6), err_msg=key
        )


def test_step_keeps_the_shardings_of_the_state(results):
    assert all(run["kept"] for run in results.values())


def test_no_device_holds_more_than_its_shard(results):
    """Checked on the stacked matrices, after initialization."""
    share = {name: run["largest"] for name, run in results.items()}
    assert share["1"] == 1 and share["8, replicated"] == 1
    assert share["2x2, two micro-batches, full remat"] == share["4x2"] == 1 / 2
    assert share["8"] == 1 / 8
    assert share["2x2x2"] == 1 / 4  # half along fsdp, and half of that along tensor


@pytest.mark.parametrize("devices", [2, 1])
def test_checkpoint_of_eight_devices_resumes_on_fewer(folder, devices):
    saved, restored = arrays(folder, "saved"), arrays(folder, f"restored-{devices}")
    assert set(saved) == set(restored)
    for key in saved:
        np.testing.assert_array_equal(restored[key], saved[key], err_msg=key)


@pytest.mark.parametrize("name", ["2x2", "8"])
def test_frozen_weights_of_flux2_do_not_move_and_the_others_agree(folder, name):
    one, ours = arrays(folder, "frozen-1"), arrays(folder, f"frozen-{name}")
    frozen = {key.removeprefix("before/") for key in one if key.startswith("before/")}
    assert len(frozen) == 18 and all(
        key.startswith(("double/layers/image/", "double/layers/text/")) for key in frozen
    )
    for key in frozen:
        np.testing.assert_array_equal(one[key], one[f"before/{key}"])
        np.testing.assert_array_equal(ours[key], one[key])
    for key in set(one) - frozen:
        np.testing.assert_allclose(ours[key], one[key], atol=1e-4, rtol=0, err_msg=key)


def test_low_rank_updates_agree_on_eight_devices_and_their_base_does_not_move(folder):
    one, eight = arrays(folder, "lora-1"), arrays(folder, "lora-8")
    frozen = {key.removeprefix("before/") for key in one if key.startswith("before/")}
    trained = {key for key in one if not key.startswith("before/")} - frozen
    assert len(trained) == 14 and all("/lora/" in key for key in trained)
    for key in frozen:
        np.testing.assert_array_equal(one[key], one[f"before/{key}"])
        np.testing.assert_array_equal(eight[key], one[key])
    for key in trained:
        np.testing.assert_allclose(eight[key], one[key], atol=1e-5, rtol=0, err_msg=key)
