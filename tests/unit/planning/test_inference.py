"""Plans of sampling: what is kept and counted, and a program of the real TPU compiler."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import pytest

from configs import flux2
from modality_forcing.config import SampleConfig
from modality_forcing.errors import UserError
from modality_forcing.planning import inference
from modality_forcing.planning.compile import get_target
from modality_forcing.planning.inference import Request

pytest.importorskip("libtpu")


def small():
    """FLUX.2 with depth of few weights; compiling the kernel of a TPU would take minutes."""
    c = flux2.get_config("size=tiny")
    model = replace(c.model, width=256, mlp_dim=512, head_dim=128, attention="einsum")
    sample = SampleConfig(steps=4, guidance={"image": 4.0})
    return replace(c, model=model, sample=sample)


@pytest.fixture(scope="module")
def target():
    return get_target("v5e:2x2")


@pytest.fixture(scope="module")
def planned(target):
    return inference.plan(Request(small()), target)


def test_program_of_a_tpu_does_the_work_that_is_counted(planned):
    assert inference.published_dtype(planned.request.config) == "bfloat16"
    assert planned.request.task == "i2d" and planned.batch == 4 and planned.fits
    assert planned.evaluations == 4  # depth is not guided
    # Modulation and embedders are counted for every step, text is embedded once.
    assert planned.bound.flops * 4 / planned.flops == pytest.approx(1, abs=0.1)
    assert planned.rate == pytest.approx(4 / planned.bound.seconds)


def test_weights_are_split_over_the_chips(planned):
    assert planned.weight_bytes == pytest.approx(2 * planned.params / 4, rel=0.1)
    assert "all-gather bf16" in planned.collectives
    written = json.loads(json.dumps(inference.to_json(planned)))
    assert written["weights"] == "bfloat16" and written["mesh"]["fsdp"] == 4
    assert written["size"] == {"width": 32, "height": 32} and written["fits"]
    assert "images a second at most" in inference.to_text(planned)
    endless = replace(planned, bound=replace(planned.bound, unknown_loops=("while",)))
    assert "1 loop of unknown length counted once" in inference.to_text(endless)


@pytest.mark.parametrize(("int8", "gigabytes"), [(False, 24.1), (True, 12.8)])
def test_bytes_of_the_weights_of_modality_forcing(int8, gigabytes):
    """Those of docs/flux2.md, which are of its files."""
    kept = inference.abstract_weights(Request(flux2.get_config("size=klein-9b"), int8=int8))
    count = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
    assert count / 1e9 == pytest.approx(gigabytes, abs=0.1)


def test_evaluations_of_a_task():
    c = small()
    assert inference.evaluations(c, "joint", ["image", "depth"], []) == 8
    heun = replace(c, sample=replace(c.sample, solver="heun"))
    assert inference.evaluations(heun, "joint", ["image", "depth"], []) == 14  # one is Euler's
    weights = {"depth": 2.0, "image": 3.0}  # what is not given has no effect
    guided = replace(c, sample=replace(c.sample, condition_guidance=weights))
    assert inference.evaluations(guided, "d2i", ["image"], ["depth"]) == 12
    assert inference.evaluations(guided, "i2d", ["depth"], ["image"]) == 8


def test_batch_divides_among_the_devices(target):
    with pytest.raises(UserError, match="a batch of 6 does not divide among 4 devices"):
        inference.plan(Request(small(), batch=6), target)
    with pytest.raises(UserError, match="unknown mode 't3i'"):
        inference.plan(Request(small(), "t3i"), target)
