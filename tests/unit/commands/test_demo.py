"""The demo's phase cache and configs; the complete demo runs in tests/e2e/test_demo_command.py."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.commands import demo
from modality_forcing.config_file import load
from modality_forcing.data.in_memory import InMemory
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import flops
from modality_forcing.train import inputs
from modality_forcing.train.workdir import write_config
from tests import damage


def options(workdir: Path, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_options(parser)
    return parser.parse_args([f"--workdir={workdir}", *arguments])


def test_finished_phase_is_not_repeated(tmp_path: Path, capsys):
    calls = []

    def work() -> dict[str, float]:
        calls.append(1)
        return {"absrel": 0.5}

    for _ in range(2):  # the second pass acts as a restart
        assert demo.PhaseCache(tmp_path / "phases.json").run("evaluate", work) == {"absrel": 0.5}
    assert len(calls) == 1
    assert capsys.readouterr().err == "evaluate: started\nevaluate: already done\n"


def test_failed_phase_is_repeated(tmp_path: Path):
    def fail() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        demo.PhaseCache(tmp_path / "phases.json").run("t2i", fail)
    assert demo.PhaseCache(tmp_path / "phases.json").run("t2i", lambda: 5) == 5


def test_seconds_of_all_attempts_are_added(tmp_path: Path):
    ledger = demo.PhaseCache(tmp_path / "phases.json")
    # The time that the run counted, including killed attempts.
    ledger.run("t2i", lambda: {"seconds": 100.0})
    ledger.run("evaluate", lambda: None)
    again = demo.PhaseCache(tmp_path / "phases.json")
    assert again.seconds["t2i"] == 100.0
    assert again.seconds["total"] == pytest.approx(100.0 + again.seconds["evaluate"], abs=0.02)
    assert again.peak_rss_mb == ledger.peak_rss_mb > 10


def test_cpu_seconds_are_those_of_the_process_and_its_children(tmp_path: Path):
    ledger = demo.PhaseCache(tmp_path / "phases.json")
    script = "import time\nwhile time.process_time() < 0.2: pass"
    ledger.run("idle", lambda: time.sleep(0.1))
    ledger.run("busy", lambda: subprocess.run([sys.executable, "-c", script], check=True) and None)
    seconds = demo.PhaseCache(tmp_path / "phases.json").cpu_seconds
    assert seconds["idle"] < 0.1 < 0.2 <= seconds["busy"]
    assert seconds["total"] == pytest.approx(seconds["idle"] + seconds["busy"])


@pytest.fixture(scope="module")
def phases(tmp_path_factory) -> Path:
    """Finished phases, whose file every example of the fuzz test damages and repairs."""
    path = tmp_path_factory.mktemp("phases") / "phases.json"
    demo.PhaseCache(path).run("evaluate", lambda: {"absrel": 0.5})
    return path


@given(st.data())
@damage.examples(60)
def test_damaged_phases_are_one_line_or_unchanged(phases: Path, data):
    before = phases.read_bytes()
    want = demo.PhaseCache(phases)
    phases.write_bytes(data.draw(damage.of(before)))
    try:
        found = demo.PhaseCache(phases)
    except UserError as error:
        assert str(phases) in str(error) and "\n" not in str(error)
    else:
        assert found.run("evaluate", lambda: None) == {"absrel": 0.5}
        assert (found.seconds, found.peak_rss_mb) == (want.seconds, want.peak_rss_mb)
    finally:
        phases.write_bytes(before)


def test_two_phases_fit(tmp_path: Path):
    t2i, forcing = demo.configs(
        options(tmp_path, "--t2i-steps=5", "--forcing-steps=7", "--examples=9")
    )
    assert (t2i.name, forcing.name) == ("t2i", "forcing")
    assert (t2i.train.steps, forcing.train.steps, forcing.eval.examples) == (5, 7, 9)
    assert forcing.train.init_from == str(
        tmp_path / "t2i"
    ) and forcing.train.allow_missing_modalities == ("depth",)
    assert list(t2i.modalities) == ["image"]
    assert list(forcing.modalities) == ["image", "depth"], (
        "the image leads: it is what text-to-image generates"
    )
    assert t2i.data.sparsity_patterns == {} and forcing.data.sparsity_patterns
    assert t2i.model == forcing.model and t2i.text == forcing.text


def test_scale_sparse_only_and_seed(tmp_path: Path):
    short, hour, night = (
        demo.configs(options(tmp_path, f"--scale={name}"))[1] for name in ("short", "hour", "night")
    )
    assert demo.configs(options(tmp_path))[1] == short and short.seed == 0
    tokens = [c.train.steps * c.train.batch * flops.tokens(c, base.build(c)) for c in (short, hour)]
    assert 4 < tokens[1] / tokens[0] < 8
    assert night.model.width > hour.model.width
    assert 0 < short.data.sparsity_patterns["dense"] < 1
    t2i, sparse = demo.configs(options(tmp_path, "--sparse-only", "--seed=3"))
    assert "dense" not in sparse.data.sparsity_patterns and sparse.seed == t2i.seed == 3
    for run in (t2i, sparse):
        assert run.data.world == "plain"


def test_scenes_of_every_scale_fit_into_memory():
    for scale in ("short", "hour", "night"):
        scenes = InMemory(inputs.open_source(load(f"demo:scale={scale}")), demo.SCENES_MB)
        scenes[0]
        (one,) = scenes._bytes
        assert one * len(scenes) < demo.SCENES_MB * 2**20


@pytest.mark.parametrize("name", ["report.html", "checkpoints/1"])
def test_folder_of_others_is_refused_and_kept(tmp_path: Path, name: str):
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("theirs")
    message = f"holds {name.partition('/')[0]}, and no phases.json of a demo; choose another --wor"
    with pytest.raises(UserError, match=message):
        demo.main(options(tmp_path))
    assert theirs.read_text() == "theirs" and len(list(tmp_path.iterdir())) == 1


def test_demo_of_other_options_names_them(tmp_path: Path):
    _, forcing = demo.configs(options(tmp_path))
    write_config(tmp_path / "forcing", forcing)
    with pytest.raises(UserError, match=r"another --workdir, or give that demo's --scale, --spars"):
        demo.main(options(tmp_path, "--sparse-only"))


def test_last_lines_report_the_numbers(tmp_path: Path):
    scores = {"i2d": (0.1, 0.9), "constant": (0.4, 0.3), "row_mean": (0.2, 0.5)}
    summary = {
        name: {"absrel": absrel, "delta1": delta1} for name, (absrel, delta1) in scores.items()
    }
    summary |= {
        "d2i": {"absrel": 0.15, "absrel_shuffled": 0.45},
        "seconds": {"total": 61.0},
        "cpu_seconds": {"total": 93.0},
        "peak_rss_mb": 900.0,
    }
    text = demo.format_summary(json.loads(json.dumps(summary)), tmp_path)
    for part in (
        "0.100",
        "0.900",
        "constant 0.400",
        "row mean 0.200",
        "0.150",
        "0.450",
        "61 s",
        "900 MB",
        "report.html",
    ):
        assert part in text
