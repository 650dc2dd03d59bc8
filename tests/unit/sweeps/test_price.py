"""Prices of sweeps: FLOPs of each run once, hours by hand, and the columns that a law is fitted to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs import t2i
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import flops
from modality_forcing.planning.hardware import CHIPS
from modality_forcing.sweeps.price import cell_columns, price, to_json, to_text
from modality_forcing.sweeps.spec import Records, Run, axis, product, sweep
from tests import tiny


def cell(images: int, seed: int) -> Run:
    before = Run("pretraining", tiny.t2i(steps=images // 4)) if images else None
    return Run("forcing", replace(tiny.forcing(), seed=seed), init_from=before)


SWEEP = sweep("tiny", product(axis("images", 0, 24), axis("seed", 0, 1)), cell, Records())


def test_a_shared_run_is_paid_once():
    before, after = (
        flops.step_flops(c, base.build(c)).total * 6 for c in (tiny.t2i(), tiny.forcing())
    )
    found = price(SWEEP)
    assert found.flops == before + 4 * after and found.flops_unshared == 2 * before + 4 * after
    assert len(found.runs) == 5 and [
        run.cells for run in found.runs if run.phase == "pretraining"
    ] == [2]


def test_hours_are_flops_over_what_a_chip_does_in_one():
    (chip,) = price(SWEEP, ["v5p"], mfu=0.25).chips
    assert chip.hours == pytest.approx(price(SWEEP).flops / (CHIPS["v5p"].bf16_flops * 0.25) / 3600)
    stated = {c.chip: c.mfu for c in price(SWEEP, ["v5e", "v5p", "tpu7x"]).chips}
    assert stated == {"v5e": 0.60, "v5p": 0.50, "tpu7x": 0.40}


def test_the_table_states_what_it_assumes():
    text = to_text(price(SWEEP, ["v5p"]))
    assert (
        "MFU, assumed" in text
        and "50%" in text
        and "2 cells" in text
        and "evaluation is not counted" in text
    )
    assert to_json(price(SWEEP))["runs"][0]["params"] > 0


@pytest.mark.parametrize("given", [{"chips": ["abacus"]}, {"mfu": 0.0}, {"mfu": 1.5}])
def test_what_cannot_be_priced_is_refused(given):
    with pytest.raises(UserError, match=r"abacus|MFU"):
        price(SWEEP, **given)


def test_columns_tell_images_from_frames():
    scratch, pretrained = cell_columns(SWEEP.cells[0]), cell_columns(SWEEP.cells[2])
    assert (scratch["images"], scratch["frames"], scratch["seed"], scratch["width"]) == (
        0,
        24,
        0,
        32,
    )
    assert (pretrained["images"], pretrained["frames"], pretrained["unique_images"]) == (24, 24, 24)
    assert pretrained["flops"] == scratch["flops"] + pretrained["flops_pretraining"]
    assert scratch["params"] == pretrained["params"] < scratch["params_total"]


def test_records_seen_twice_are_not_two():
    config = tiny.t2i(steps=32)  # 128 examples of 64 scenes
    assert (
        cell_columns(
            sweep("tiny", axis("seed", 0), lambda seed: Run("t2i", config), Records()).cells[0]
        )["unique_images"]
        == 64
    )


def test_params_are_those_of_the_paper():
    config = t2i.get_config("size=370m")
    found = sweep("paper", axis("seed", 0), lambda seed: Run("pretraining", config), Records())
    assert price(found).runs[0].params == pytest.approx(0.362e9, rel=2e-3)
