"""The search for a layout, with a fake compiler: what it tries, takes and reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs import forcing
from modality_forcing.config import MeshConfig
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.planning import search as planning
from modality_forcing.planning.compile import Bytes, Compiled, get_target
from modality_forcing.planning.search import (
    estimate,
    min_tokens_per_chip,
    plan,
    search,
    with_batch,
    with_sizes,
)
from modality_forcing.train.state import abstract_model

pytest.importorskip("libtpu")
CONFIG = replace(forcing.get_config("size=370m"), name="family")
WEIGHTS = abstract_model(CONFIG, base.build(CONFIG))[1]


@pytest.fixture(scope="module")
def target():
    return get_target("v5e:8x8")


@pytest.fixture
def compiler(monkeypatch):
    """A compiler whose programs take so many times what was estimated; returns what it was asked
    to compile.
    """

    def installed(factor):
        asked = []

        def compile_step(config, target):
            asked.append(config)
            used = int(factor(config) * estimate(config, target, WEIGHTS))
            return Compiled(Bytes(used, 0, 0, 0), used <= target.chip.usable_bytes, 1.0, "")

        monkeypatch.setattr(planning, "compile_step", compile_step)
        monkeypatch.setattr(planning, "MICRO_BATCHES", (1, 4, 16))  # fewer to go through
        return asked

    return installed


def test_first_layout_that_fits_with_enough_tokens_is_compiled_once(target, compiler):
    asked = compiler(lambda config: 0.95)
    found = search(CONFIG, target)
    assert len(asked) == 1 and found.fits
    assert (found.config.mesh.preset, found.config.model.remat) == planning.LAYOUTS[0][:2]
    # Along one ring of the torus, repeated along the other.
    assert found.config.mesh.data == 8 and found.config.mesh.fsdp == 8
    assert (
        found.micro_batch * 640 >= min_tokens_per_chip(target)
        and found.config.train.batch == found.micro_batch * 64
    )


def test_axes_that_are_left_out_are_resolved():
    config = replace(CONFIG, mesh=MeshConfig(data=2, fsdp=-1, slices=2))
    found = with_sizes(config, {"data": 4, "fsdp": 8, "tensor": 1})
    assert found.mesh == MeshConfig(data=2, fsdp=8, slices=2)
    assert with_sizes(found, {"data": 4, "fsdp": 8, "tensor": 1}) is found


def test_a_plan_says_what_its_mesh_resolves_to(target, compiler):
    compiler(lambda config: 0.95)
    config = replace(with_batch(CONFIG, target, 64), mesh=MeshConfig(fsdp=-1))
    assert planning.describe(plan(config, target)).startswith("zero2 over 64 devices, ")


def test_batch_shrinks_until_the_program_fits(target, compiler):
    asked = compiler(lambda config: 3.0)
    found = search(CONFIG, target)
    sizes = [config.train.batch for config in asked]
    assert len(sizes) > 1 and sizes == sorted(sizes, reverse=True) and found.fits
    assert found.config is asked[-1]


def test_later_layouts_are_tried_if_the_first_does_not_fit(target, compiler):
    asked = compiler(lambda config: 1.0 if config.model.remat == "full" else 1000.0)
    found = search(CONFIG, target)
    assert found.fits and found.config.model.remat == "full"
    assert asked[0].model.remat == "elementwise"


def test_if_nothing_fits_the_smallest_layout_is_returned(target, compiler):
    compiler(lambda config: 1000.0)
    found = search(CONFIG, target)
    assert not found.fits and found.micro_batch == 1
    assert (found.config.mesh.preset, found.config.model.remat) == planning.LAYOUTS[-1][:2]


def test_mesh_of_the_config_is_kept(target, compiler):
    asked = compiler(lambda config: 0.9)
    search(replace(CONFIG, mesh=MeshConfig(data=16, fsdp=4)), target)
    assert {(config.mesh.data, config.mesh.fsdp) for config in asked} == {(16, 4)}


def test_given_batch_is_planned_unchanged(target, compiler):
    asked = compiler(lambda config: 0.9)
    found = plan(with_batch(CONFIG, target, 128), target)
    assert asked[0].train.batch == 128 and found.micro_batch == 2 and asked[0].model == CONFIG.model
    with pytest.raises(
        UserError,
        match=r"train\.batch 100 does not divide among 64 micro-batches; make it a multiple of 64",
    ):
        plan(with_batch(CONFIG, target, 100), target)


def test_chip_of_two_devices_needs_an_example_for_each(compiler):
    compiler(lambda config: 0.9)
    target = get_target("tpu7x:2x2x1")
    with pytest.raises(UserError, match=r"train\.batch 4 does not divide among 8 micro-batches"):
        plan(with_batch(CONFIG, target, 4), target)


def test_estimate_grows_with_model_and_batch(target):
    start = with_batch(CONFIG, target, 512)

    def of(**model):
        return estimate(replace(start, model=replace(CONFIG.model, **model)), target, WEIGHTS)

    assert of(remat="none") > of(remat="elementwise") > of(remat="full")
    assert of(num_layers=60) > of(num_layers=30) and of(width=2048) > of(width=1024)
    assert estimate(with_batch(CONFIG, target, 1024), target, WEIGHTS) > of()
