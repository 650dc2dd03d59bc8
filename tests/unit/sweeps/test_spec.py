"""Sweeps as expressions: points, identity of runs and cells, and the division into parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.errors import UserError
from modality_forcing.sweeps.price import run_flops
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
from modality_forcing.train.throughput import step_flops
from tests import tiny

CONFIGS = Path(__file__).parents[3] / "configs"


def pretraining(phase: str = "pretraining", **train) -> Run:
    return Run(phase, tiny.t2i(**train))


def cell(images: int, seed: int) -> Run:
    init_from = pretraining(steps=images // 4) if images else None
    return Run("forcing", replace(tiny.forcing(), seed=seed), init_from=init_from)


def sweep_of(*images: int, seeds: int = 2) -> Sweep:
    points = product(axis("images", *images), axis("seed", *range(seeds)))
    return sweep("tiny", points, cell, Records())


def test_combinators_make_points():
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


def test_points_that_do_not_fit_together_are_refused():
    with pytest.raises(UserError, match="the axis 'a'"):
        product(axis("a", 1), axis("a", 2))
    with pytest.raises(UserError, match="2 and 3 points"):
        zip_axes(axis("a", 1, 2), axis("b", 1, 2, 3))


def test_cells_share_equal_runs():
    found = sweep_of(0, 24, 48)
    assert len(found.cells) == 6 and len(found.runs()) == 2 + 6
    assert len({c.runs()[0].digest for c in found.cells if c.point["images"] == 24}) == 1
    assert [run.phase for run in found.cells[2].runs()] == ["pretraining", "forcing"]
    assert len(found.groups()) == 4  # two from scratch, one for each pretraining run


def test_digest_depends_on_all_that_weights_depend_on_and_on_nothing_else():
    run, other_rate = pretraining(), pretraining(learning_rate=2e-3)
    assert run.digest == pretraining().digest
    assert run.digest == pretraining(log_every=7, save_every=3, max_to_keep=2).digest
    sharded = replace(run.config, mesh=replace(run.config.mesh, data=4))
    assert run.digest == Run("pretraining", sharded).digest
    assert run.digest != other_rate.digest
    assert run.digest != Run("pretraining", replace(run.config, seed=9)).digest
    forcing = Run("forcing", tiny.forcing(), init_from=run)
    assert forcing.digest != Run("forcing", tiny.forcing()).digest
    assert forcing.digest != Run("forcing", tiny.forcing(), init_from=other_rate).digest


def test_digest_depends_on_where_records_are_and_not_on_the_spelling():
    def reading(root: str) -> Run:
        config = tiny.t2i()
        data = replace(config.data, source="prepared", root=root)
        text = replace(config.text, vocab_size=0, encoder=f"umt5:{root}")
        return Run("pretraining", replace(config, data=data, text=text))

    digest = reading("folder").digest
    assert {reading(root).digest for root in ("folder/", "./folder", "a/../folder")} == {digest}
    assert digest not in (reading("other").digest, pretraining().digest)


def test_digest_of_a_cell_depends_on_its_evaluation():
    first = sweep_of(24).cells[0]
    other = sweep("tiny", axis("seed", 0), lambda seed: cell(24, seed), Records(seed=1)).cells[0]
    assert first.run.digest == other.run.digest and first.digest != other.digest


def test_init_from_becomes_the_workdir_of_the_earlier_run():
    run = cell(24, 0)
    assert run.init_from is not None
    assert run.config_in(Path("runs")).train.init_from == f"runs/{run.init_from.folder}"
    assert run.init_from.config_in(Path("runs")) == run.init_from.config
    with pytest.raises(UserError, match=r"train\.init_from is set"):
        Run("forcing", tiny.forcing(init_from="somewhere"))


def test_branch_equals_the_run_from_step_0():
    config, earlier = tiny.forcing(warmup_fraction=0.25), pretraining()
    runs = horizons("forcing", config, (16, 64, 160), earlier)
    short, middle, trunk = runs.values()
    assert [run.config.train.steps for run in runs.values()] == [4, 16, 40]
    assert trunk.branch_from is None
    # Branches leave the trunk where their learning rate starts to decay.
    assert (short.branch_step, middle.branch_step, trunk.branch_step) == (3, 13, 0)
    assert short.digest == Run("forcing", short.config, earlier).digest
    assert short.lineage() == (earlier, short)
    assert short.dependencies() == (earlier, trunk, short)
    found = sweep("tiny", axis("frames", 16, 64), lambda frames: runs[frames], Records())
    digests = [run.digest for run in (earlier, trunk, short, middle)]
    assert [run.digest for run in found.runs()] == digests
    assert len(found.groups()) == 1
    assert found.branch_points(trunk) == (3, 13) and found.branch_points(short) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rate": 0.5},
            r"a run of t2i is no branch of its trunk \(train\.learning_rate 0\.001, now 0\.5\)",
        ),
        ({"warmup_fraction": 0.9}, "the trunk warms up for"),
        ({"branch_from": "there"}, r"train\.branch_from is set .*branch_from="),
    ],
)
def test_run_that_is_no_branch_of_its_trunk_is_refused(changes, message):
    trunk = horizons("t2i", tiny.t2i(), (160,))[160]
    loop = replace(trunk.config.train, **{"steps": 8, "warmup_fraction": 0.06, **changes})
    short = replace(trunk.config, train=loop)
    with pytest.raises(UserError, match=message):
        assert Run("t2i", short, branch_from=trunk).branch_step
    with pytest.raises(UserError, match=r"\(init_from .*, now None\)"):
        Run("t2i", trunk.config, branch_from=Run("t2i", trunk.config, init_from=pretraining()))


SEED = axis("seed", 0)


@pytest.mark.parametrize(
    ("name", "points", "run", "message"),
    [
        ("tiny", (), cell, "has no cells"),
        ("Tiny!", SEED, lambda seed: cell(0, seed), "name is 'Tiny!'"),
        ("tiny", SEED + SEED, lambda seed: cell(0, seed), "are the same"),
        ("tiny", axis("seed", 0, 1), lambda seed: cell(0, 0), "seed=0 and seed=1 .* are the same"),
        ("tiny", SEED, lambda seed: Run("a", tiny.t2i(), pretraining("a")), "same phase"),
    ],
)
def test_inconsistent_sweep_is_refused(name, points, run, message):
    with pytest.raises(UserError, match=message):
        sweep(name, points, run, Records())


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_parts_have_every_cell_once_and_no_run_in_common(count):
    found = sweep_of(0, 24, 48, 96)
    parts = partition(found, count, lambda run: run.examples)
    assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in found.cells)
    runs = [{run.digest for c in part for run in c.runs()} for part in parts]
    assert sum(map(len, runs)) == len(found.runs())
    assert parts == partition(found, count, lambda run: run.examples)


def test_parts_have_about_the_same_cost():
    parts = partition(sweep_of(40, 80, 120, 160, 200, 240), 2, lambda run: run.examples)
    runs = [{run.digest: run for c in part for run in c.runs()}.values() for part in parts]
    costs = [sum(run.examples for run in part) for part in runs]
    assert max(costs) - min(costs) <= 40 + 48


def test_name_of_a_cell_is_a_file_name():
    found = sweep("tiny", axis("what", "a/b c"), lambda what: cell(0, 0), Records())
    assert found.cells[0].name == "what=a_b_c"


def test_sweep_configs_of_the_repository_load():
    scenes = load(str(CONFIGS / "sweep_scenes.py"))
    assert len(scenes.cells) == 3 * 3 * 3 * 2 and len(scenes.runs()) == 3 * 2 * 2 + 54
    for c in scenes.cells:
        config, images, frames = c.run.config, c.point["images"], c.point["frames"]
        assert config.sample.task_steps == {"i2d": 1} and config.eval.examples == 256
        from_scratch = images == 0
        assert (len(c.runs()) == 1) == from_scratch
        assert (config.train.allow_missing_modalities == ()) == from_scratch
        seen, batch = sum(run.examples for run in c.runs()[:-1]), config.train.batch
        assert seen == -(-int(images) // batch) * batch  # a whole number of steps
        assert c.run.examples == frames and config.data.num_scenes == 4096
        assert (c.run.branch_from is None) == (frames == 76_800)
        assert c.run.branch_step in (0, 240, 960)
    # One group for each seed and width, with and without pretraining.
    assert len(scenes.groups()) == 2 * 3 * 2
    paper = load(f"{CONFIGS / 'sweep_paper.py'}:widths=paper")
    assert {c.run.config.model.width for c in paper.cells} == {1024, 1536, 3072}
    assert len(paper.cells) == 12 + 8
    assert sum(run.phase == "pretraining" for run in paper.runs()) == 9


def test_cells_of_a_budget_spend_the_same_flops():
    split = load(str(CONFIGS / "sweep_split.py"))
    assert len(split.cells) == 2 * 3 * 5 and len(split.runs()) == 2 * 12 + 30
    for c in split.cells:
        runs = c.runs()
        each = step_flops(runs[-1].config)
        spent = [run_flops(run) for run in runs]
        assert sum(spent) == pytest.approx(c.point["budget"] * each, abs=each)
        assert spent[-1] / sum(spent) == pytest.approx(1 - c.point["share"], abs=2e-3)
        assert len(runs) == (2 if c.point["share"] else 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no get_sweep"),
        ("def get_sweep(arg): return 5", "returned a int"),
        ("x =", r"SyntaxError"),
        ("def get_sweep(arg):\n    return unknown", r"s\.py:2: NameError"),
    ],
)
def test_broken_sweep_file_is_refused_with_one_line(tmp_path, text, message):
    (tmp_path / "s.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "s.py"))
