"""Sweeps as expressions: what the combinators make, what tells runs apart, and how cells are
divided.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.errors import UserError
from modality_forcing.sweeps.spec import (
    Records,
    Run,
    Sweep,
    axis,
    chain,
    horizons,
    load,
    partition,
    product,
    sweep,
    zip_axes,
)
from tests import tiny

CONFIGS = Path(__file__).parents[3] / "configs"


def pretraining(phase: str = "pretraining", **train) -> Run:
    return Run(phase, tiny.t2i(**train))


def cell(images: int, seed: int) -> Run:
    before = pretraining(steps=images // 4) if images else None
    return Run("forcing", replace(tiny.forcing(), seed=seed), init_from=before)


def made(*images: int, seeds: int = 2) -> Sweep:
    return sweep(
        "tiny", product(axis("images", *images), axis("seed", *range(seeds))), cell, Records()
    )


def test_the_combinators():
    a, b = axis("a", 1, 2), axis("b", "x", "y")
    assert product(a, b) == (
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    )
    assert zip_axes(a, b) == ({"a": 1, "b": "x"}, {"a": 2, "b": "y"})
    assert chain(a, b) == ({"a": 1}, {"a": 2}, {"b": "x"}, {"b": "y"})
    assert product(zip_axes(a, b), axis("c", 0))[1] == {"a": 2, "b": "y", "c": 0}
    assert product() == ({},)


def test_points_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="the axis 'a'"):
        product(axis("a", 1), axis("a", 2))
    with pytest.raises(UserError, match="2 and 3 points"):
        zip_axes(axis("a", 1, 2), axis("b", 1, 2, 3))


def test_runs_that_cells_share_are_one():
    found = made(0, 24, 48)
    assert len(found.cells) == 6 and len(found.runs()) == 2 + 6
    before = {c.runs()[0].digest for c in found.cells if c.point["images"] == 24}
    assert len(before) == 1
    assert [run.phase for run in found.cells[2].runs()] == ["pretraining", "forcing"]
    assert len(found.groups()) == 4  # two from scratch, one for each pretraining run


def test_a_digest_is_of_all_that_weights_depend_on_and_of_nothing_else():
    run = pretraining()
    assert run.digest == pretraining().digest
    assert run.digest == pretraining(log_every=7, save_every=3, max_to_keep=2).digest
    assert (
        run.digest
        == Run("pretraining", replace(run.config, mesh=replace(run.config.mesh, data=4))).digest
    )
    assert run.digest != pretraining(learning_rate=2e-3).digest
    assert run.digest != Run("pretraining", replace(run.config, seed=9)).digest
    after = Run("forcing", tiny.forcing(), init_from=run)
    assert after.digest != Run("forcing", tiny.forcing()).digest
    assert (
        after.digest
        != Run("forcing", tiny.forcing(), init_from=pretraining(learning_rate=2e-3)).digest
    )


def test_a_cell_depends_on_how_it_is_scored_as_well():
    found, other = (
        made(24),
        sweep("tiny", axis("seed", 0), lambda seed: cell(24, seed), Records(seed=1)),
    )
    assert (
        found.cells[0].run.digest == other.cells[0].run.digest
        and found.cells[0].digest != other.cells[0].digest
    )


def test_train_init_is_where_the_run_before_lies():
    run = cell(24, 0)
    assert (
        run.init_from is not None
        and run.config_in(Path("runs")).train.init_from == f"runs/{run.init_from.folder}"
    )
    assert run.init_from.config_in(Path("runs")) == run.init_from.config
    with pytest.raises(UserError, match=r"train\.init_from is set"):
        Run("forcing", tiny.forcing(init_from="somewhere"))


def test_a_branch_is_the_run_that_it_saves():
    config = tiny.forcing(warmup_fraction=0.25)
    before = pretraining()
    runs = horizons("forcing", config, (16, 64, 160), before)
    short, trunk = runs[16], runs[160]
    assert [run.config.train.steps for run in runs.values()] == [
        4,
        16,
        40,
    ] and trunk.branch_from is None
    assert (short.branch_step, runs[64].branch_step, trunk.branch_step) == (
        3,
        13,
        0,
    )  # where they cool down
    assert short.digest == Run("forcing", short.config, before).digest  # whichever way it is made
    assert short.lineage() == (before, short) and short.dependencies() == (before, trunk, short)
    found = sweep("tiny", axis("frames", 16, 64), lambda frames: runs[frames], Records())
    assert [run.digest for run in found.runs()] == [
        run.digest for run in (before, trunk, short, runs[64])
    ]
    assert len(found.groups()) == 1
    assert found.branch_points(trunk) == (3, 13) and found.branch_points(short) == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"learning_rate": 0.5},
            r"a run of t2i is no branch of its trunk \(train\.learning_rate 0\.001, now 0\.5\)",
        ),
        ({"warmup_fraction": 0.9}, "the trunk warms up for"),
        ({"branch_from": "there"}, r"train\.branch_from is set .*branch_from="),
    ],
)
def test_what_is_no_branch_of_its_trunk_is_refused(changes, told):
    trunk = horizons("t2i", tiny.t2i(), (160,))[160]
    short = replace(
        trunk.config,
        train=replace(trunk.config.train, **{"steps": 8, "warmup_fraction": 0.06, **changes}),
    )
    with pytest.raises(UserError, match=told):
        assert Run("t2i", short, branch_from=trunk).branch_step
    with pytest.raises(UserError, match=r"\(init_from .*, now None\)"):
        Run("t2i", trunk.config, branch_from=Run("t2i", trunk.config, init_from=pretraining()))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: sweep("tiny", (), cell, Records()), "has no cells"),
        (
            lambda: sweep("Tiny!", axis("seed", 0), lambda seed: cell(0, seed), Records()),
            "name is 'Tiny!'",
        ),
        (
            lambda: sweep("tiny", axis("seed", 0, 0), lambda seed: cell(0, seed), Records()),
            "are the same",
        ),
        (
            lambda: sweep("tiny", axis("seed", 0, 1), lambda seed: cell(0, 0), Records()),
            "seed=0 and seed=1 .* are the same",
        ),
        (
            lambda: sweep(
                "tiny",
                axis("seed", 0),
                lambda seed: Run("a", tiny.t2i(), pretraining("a")),
                Records(),
            ),
            "same phase",
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(build, told):
    with pytest.raises(UserError, match=told):
        build()


@pytest.mark.parametrize("of", [1, 2, 3, 9])
def test_parts_have_every_cell_once_and_no_run_in_common(of):
    found = made(0, 24, 48, 96)
    parts = partition(found, of, lambda run: run.examples)
    assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in found.cells)
    runs = [{run.digest for c in part for run in c.runs()} for part in parts]
    assert sum(map(len, runs)) == len(found.runs())
    assert parts == partition(found, of, lambda run: run.examples)


def test_parts_are_about_equally_dear():
    found = made(40, 80, 120, 160, 200, 240)
    parts = partition(found, 2, lambda run: run.examples)
    costs = [
        sum(run.examples for run in {r.digest: r for c in part for r in c.runs()}.values())
        for part in parts
    ]
    assert max(costs) - min(costs) <= 40 + 48


def test_a_name_is_a_file_name():
    found = sweep("tiny", axis("what", "a/b c"), lambda what: cell(0, 0), Records())
    assert found.cells[0].name == "what=a_b_c"


def test_the_sweeps_of_the_tree_load():
    scenes = load(str(CONFIGS / "sweep_scenes.py"))
    assert len(scenes.cells) == 4 * 4 * 3 * 2 and len(scenes.runs()) == 4 * 3 * 2 + 96
    for c in scenes.cells:
        assert c.run.config.sample.task_steps == {"i2d": 1} and c.run.config.eval.examples == 256
        assert (
            (len(c.runs()) == 1)
            == (c.point["images"] == 0)
            == (c.run.config.train.allow_missing_modalities == ())
        )
        seen, batch = sum(run.examples for run in c.runs()[:-1]), c.run.config.train.batch
        assert seen == -(-int(c.point["images"]) // batch) * batch  # whole steps
        assert c.run.examples == c.point["frames"] and c.run.config.data.num_scenes == 4096
        assert (c.run.branch_from is None) == (
            c.point["frames"] == 76_800
        ) and c.run.branch_step in (0, 240, 960)
    assert len(scenes.groups()) == 2 * 4 * 2  # of each seed and width: with pretraining, without
    paper = load(f"{CONFIGS / 'sweep_paper.py'}:widths=paper")
    assert {c.run.config.model.width for c in paper.cells} == {1024, 1536, 3072}
    assert (
        len(paper.cells) == 12 + 8
        and len([run for run in paper.runs() if run.phase == "pretraining"]) == 9
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"has no get_sweep"),
        ("def get_sweep(arg): return 5", "returned a int"),
        ("x =", r"SyntaxError"),
        ("def get_sweep(arg):\n    return unknown", r"s\.py:2: NameError"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, told):
    (tmp_path / "s.py").write_text(text)
    with pytest.raises(UserError, match=told):
        load(str(tmp_path / "s.py"))
