"""Whole commands over damaged files: one line, or what the undamaged files give."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modality_forcing.paths import write_file
from modality_forcing.sweeps import run as sweep_run
from modality_forcing.sweeps.score import Score
from modality_forcing.train.checkpoint import META
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import init_state
from modality_forcing.train.workdir import write_config
from tests import bundles, damage, frozen, runs, tiny
from tests.runs import Command

CONFIG = """
from tests import tiny

def get_config(arg):
    return tiny.t2i()
"""
SWEEP = """
from dataclasses import replace
from modality_forcing.sweeps.spec import Records, Run, axis, sweep
from tests import tiny

def get_sweep(arg):
    def run(width):
        config = tiny.forcing()
        return Run("forcing", replace(config, model=replace(config.model, width=width)))
    return sweep("tiny", axis("width", 32, 64), run, Records())
"""
FUZZED_ONLY = pytest.mark.skipif(
    "FUZZ_FACTOR" not in os.environ, reason="compiles for many examples; tests/fuzz.py runs it"
)
SIZES = (1e6, 3e6, 9e6, 3e7, 1e8, 3e8)  # of runs
PREPARE = ("prepare", "--dataset=folder", "--option=depth_scale=0.001", "--resolution=8")
PREPARE += ("--shard-size=2", "--max-errors=1")


@dataclass(frozen=True)
class Case:
    """Files that are damaged, and commands that read them.

    patterns: of the files, in the folder. has_checksums: damage is refused or changes nothing that
    is printed.
    """

    patterns: tuple[str, ...]
    commands: tuple[tuple[object, ...], ...]
    has_checksums: bool = False


def photos(folder: Path) -> Path:
    """Three images with depth of two kinds, captions and intrinsics."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, suffix in enumerate(("png", "jpg", "webp")):
        image = rng.integers(0, 256, (8, 10, 3), np.uint8)
        Image.fromarray(image).save(folder / f"images/{i}.{suffix}")
        depth = rng.integers(500, 3000, (8, 10)).astype(np.uint16)
        if i:
            Image.fromarray(depth).save(folder / f"depth/{i}.png")
        else:
            np.save(folder / f"depth/{i}.npy", depth.astype(np.float32) / 1000)
    captions = {str(i): [f"number {i}", "an image"] for i in range(3)}
    (folder / "captions.json").write_text(json.dumps(captions))
    camera = {"fx": 9.0, "fy": 9.0, "cx": 5.0, "cy": 4.0, "width": 10, "height": 8}
    (folder / "intrinsics.json").write_text(json.dumps(camera))
    return folder


def records_to_prepare(folder: Path, mforce: Command) -> Case:
    root = photos(folder / "photos")
    command = (*PREPARE, f"--root={root}", f"--out={folder / 'out'}")
    return Case(("photos/*", "photos/*/*"), (command,))


def resumed_prepare(folder: Path, mforce: Command) -> Case:
    command = (*PREPARE, f"--root={photos(folder / 'photos')}", f"--out={folder / 'out'}")
    assert mforce(*command).code == 0
    inspect = ("inspect", folder / "out", "--verify")
    return Case(("out/*", "out/*/*"), (command, inspect), has_checksums=True)


def prepared_records(folder: Path, mforce: Command) -> Case:
    frozen.prepared(folder, count=3, shard_size=2)
    inspect = ("inspect", folder, f"--sheet={folder / 'sheet.png'}", "--records=3")
    return Case(("manifest*", "*.array_record*"), (inspect,), has_checksums=True)


def table_of_runs(folder: Path, mforce: Command) -> Case:
    rows = [(n, 2e8, 1.5 + 9 / n**0.3, run) for run, n in enumerate(SIZES)]
    lines = [f"{n:g},{d:g},{loss:.3f},{run}" for n, d, loss, run in rows]
    (folder / "runs.csv").write_text("\n".join(["N,D,loss,run", *lines]) + "\n")
    return Case(("*",), (fit(folder / "runs.csv", "--columns=x=N,loss=loss", "--group=run"),))


def table_of_sweep(folder: Path, mforce: Command) -> Case:
    rows = [{"params": n, "loss": 1.5 + 9 / n**0.3, "axes": {}} for n in SIZES]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "columns.json").write_text('{"x": "params", "loss": "loss"}')
    return Case(("*",), (fit(folder),))


def fit(table: Path, *more: str) -> tuple[object, ...]:
    return "fit", f"--table={table}", "--form=power", "--bootstrap=100", "--json", *more


def arrays(folder: Path, mforce: Command) -> Case:
    depth = np.random.default_rng(0).uniform(1, 2, (1, 4, 4)).astype(np.float32)
    np.savez(folder / "pred.npz", depth=depth**2)
    np.savez_compressed(folder / "target.npz", depth=depth, valid=np.ones((1, 4, 4), np.bool_))
    files = (f"--pred={folder / 'pred.npz'}", f"--target={folder / 'target.npz'}")
    return Case(("*",), (("evaluate", *files, "--json"),), has_checksums=True)


def finished_run(folder: Path, mforce: Command) -> Case:
    """A run at its last step, which resuming reads in full."""
    config, workdir = tiny.t2i(), folder / "run"
    (folder / "config.py").write_text(CONFIG)
    write_config(workdir, config)
    state = init_state(config, tiny.network(config)[1])
    checkpoints = Checkpoints(workdir / "checkpoints")
    metadata = {"data_state": {"batches": 6}, "elapsed_s": 2.0}
    checkpoints.save(state._replace(step=jnp.int32(6)), config, metadata)
    checkpoints.close()
    rows = [{"step": 3, "loss": 0.5}, {"step": 6, "loss": 0.25}, {"step": 6, "elapsed_s": 2.0}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("train", f"--config={folder / 'config.py'}", f"--workdir={workdir}")
    return Case(("config.py", "run/*", "run/checkpoints/**/*"), (command,))


def encoded_cache(folder: Path, mforce: Command) -> Case:
    """A finished cache, whose command reads the encoders and what is there."""
    text, records = frozen.text_folder(folder / "text"), frozen.prepared(folder / "records", 3)
    command = ("encode", f"--source={records}", f"--out={folder / 'out'}", f"--text=umt5:{text}")
    return Case(("out/*", "out/*/*", "text/*"), ((*command, f"--tokens={frozen.TOKENS}"),))


def benchmark(folder: Path, mforce: Command) -> Case:
    """A benchmark whose predictions are stored."""
    run, out = runs.save(folder / "run", tiny.forcing()), folder / "out"
    command = ("evaluate", f"--checkpoint={run}", "--benchmark=spring", f"--out={out}", "--json")
    command = (*command, f"--root={bundles.write_bundle(folder / 'data')}", "--steps=1")
    assert mforce(*command).code == 0
    return Case(("data/Spring/**/*", "data/Spring/.index.txt", "out/predictions/**/*"), (command,))


def exported_run(folder: Path, mforce: Command) -> Case:
    """A checkpoint, whose averaged weights and description are read."""
    run = runs.save(folder / "run", tiny.t2i())
    command = ("export", f"--checkpoint={run}", f"--out={folder / 'out'}", "--format=safetensors")
    return Case(("run/config.json", "run/checkpoints/**/*"), (command,), has_checksums=True)


def sweep_folder(folder: Path, mforce: Command) -> Case:
    """A sweep whose cells are done; `stub_training` takes the place of training and scoring."""
    config, workdir = folder / "sweep.py", folder / "run"
    config.write_text(SWEEP)
    command = ("sweep", f"--config={config}", f"--workdir={workdir}")
    assert mforce(*command).code == 0
    patterns = ("sweep.py", "run/*", "run/cells/*", "run/timing/*", "run/runs/*/*")
    return Case(patterns, ((*command, "--status"), command, (*command, "--dry-run")))


CASES = (
    records_to_prepare,
    resumed_prepare,
    prepared_records,
    table_of_runs,
    table_of_sweep,
    arrays,
    finished_run,
    encoded_cache,
    pytest.param(benchmark, marks=FUZZED_ONLY),
    pytest.param(exported_run, marks=FUZZED_ONLY),
    sweep_folder,
)


@pytest.fixture
def stub_training(monkeypatch) -> None:
    """Replaces training and scoring by stubs that write the same files."""

    def train(config, workdir: Path, records, **_):
        write_config(workdir, config)
        write_file(workdir / "checkpoints" / str(config.train.steps) / META, "{}")
        rows = '{"step": 6, "loss": 0.5}\n{"step": 6, "elapsed_s": 2.0}\n'
        (workdir / "metrics.jsonl").write_text(rows)

    class StubScorer:
        def __init__(self, folder: Path):
            pass

        def check(self, cells) -> None:
            pass

        def __call__(self, cell, workdirs) -> Score:
            return Score({"i2d_absrel": 0.25}, "moge, affine", "seed 0")

    monkeypatch.setattr(sweep_run, "train", train)
    monkeypatch.setattr(sweep_run, "Scorer", StubScorer)


def run_all(case: Case, mforce: Command) -> str | None:
    """Returns what the commands print, None if one is refused in one line."""
    printed = ""
    for command in case.commands:
        done = mforce(*command)
        assert "Traceback" not in done.err, done.err
        if done.code:
            assert done.code == 2, (done.code, done.err)
            assert done.err.endswith("\n"), done.err
            assert done.err.splitlines()[-1].startswith("mforce"), done.err
            return None
        printed += done.out
    return printed


@pytest.mark.hypothesis  # for tests/fuzz.py, which does not see the one inside
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_damaged_file_of_a_command_is_one_line_or_harmless(
    make, tmp_path: Path, mforce: Command, stub_training
):
    folder, whole = tmp_path / "used", tmp_path / "whole"
    folder.mkdir()
    case = make(folder, mforce)
    shutil.copytree(folder, whole)
    expected = run_all(case, mforce)
    assert expected is not None
    found = sorted({path for pattern in case.patterns for path in whole.glob(pattern)})
    files = [path.relative_to(whole) for path in found if path.is_file()]

    @given(st.data())
    @damage.examples(4)
    def try_damage(data):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        name = data.draw(st.sampled_from(files))
        before = (whole / name).read_bytes()
        edited = name.suffix in (".json", ".jsonl") and data.draw(st.booleans())
        (folder / name).write_bytes(data.draw((damage.of_json if edited else damage.of)(before)))
        printed = run_all(case, mforce)
        assert edited or not case.has_checksums or printed in (None, expected)

    try_damage()
