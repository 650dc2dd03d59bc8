"""Prices of sweeps: FLOPs of each run once, chip-hours, and the columns that a law is fitted to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs import t2i
from modality_forcing.chips import CHIPS
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import flops
from modality_forcing.sweeps.price import cell_columns, price, to_json, to_text
from modality_forcing.sweeps.spec import Records, Run, axis, product, sweep
from tests import tiny


def cell(images: int, seed: int) -> Run:
    init_from = Run("pretraining", tiny.t2i(steps=images // 4)) if images else None
    return Run("forcing", replace(tiny.forcing(), seed=seed), init_from=init_from)


SWEEP = sweep("tiny", product(axis("images", 0, 24), axis("seed", 0, 1)), cell, Records())


def test_shared_run_is_counted_once():
    pretraining, forcing = (
        flops.step_flops(c, base.build(c)).total * 6 for c in (tiny.t2i(), tiny.forcing())
    )
    found = price(SWEEP)
    assert found.flops == pretraining + 4 * forcing
    assert found.flops_unshared == 2 * pretraining + 4 * forcing
    assert len(found.runs) == 5
    assert [run.cells for run in found.runs if run.phase == "pretraining"] == [2]


def test_hours_are_flops_over_peak_and_mfu():
    (chip,) = price(SWEEP, ["v5p"], mfu=0.25).chips
    assert chip.hours == pytest.approx(price(SWEEP).flops / (CHIPS["v5p"].bf16_flops * 0.25) / 3600)
    mfu = {c.chip: c.mfu for c in price(SWEEP, ["v5e", "v5p", "tpu7x"]).chips}
    assert mfu == {"v5e": 0.60, "v5p": 0.50, "tpu7x": 0.40}


def test_text_states_its_assumptions():
    text = to_text(price(SWEEP, ["v5p"]))
    for part in ("MFU, assumed", "50%", "2 cells", "evaluation is not counted"):
        assert part in text
    assert to_json(price(SWEEP))["runs"][0]["params"] > 0


@pytest.mark.parametrize("options", [{"chips": ["abacus"]}, {"mfu": 0.0}, {"mfu": 1.5}])
def test_unknown_chip_and_impossible_mfu_are_refused(options):
    with pytest.raises(UserError, match=r"abacus|MFU"):
        price(SWEEP, **options)


def test_columns_count_images_and_frames_apart():
    scratch, pretrained = cell_columns(SWEEP.cells[0]), cell_columns(SWEEP.cells[2])
    assert (scratch["images"], scratch["frames"]) == (0, 24)
    assert (scratch["seed"], scratch["width"]) == (0, 32)
    assert (pretrained["images"], pretrained["frames"], pretrained["unique_images"]) == (24, 24, 24)
    assert pretrained["flops"] == scratch["flops"] + pretrained["flops_pretraining"]
    assert scratch["params"] == pretrained["params"] < scratch["params_total"]


def test_unique_images_do_not_count_repetitions():
    run = Run("t2i", tiny.t2i(steps=32))  # 128 examples of 64 scenes
    found = sweep("tiny", axis("seed", 0), lambda seed: run, Records())
    assert cell_columns(found.cells[0])["unique_images"] == 64


def test_params_are_those_of_the_paper():
    config = t2i.get_config("size=370m")
    found = sweep("paper", axis("seed", 0), lambda seed: Run("pretraining", config), Records())
    assert price(found).runs[0].params == pytest.approx(0.362e9, rel=2e-3)
