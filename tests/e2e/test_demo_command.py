"""`mforce demo` end to end with few steps: files, resumption after a kill, a second run."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from modality_forcing.generator import Generator
from modality_forcing.train import checkpoint
from modality_forcing.train.metrics import read_metrics
from tests.runs import SMALL, TINY_DEMO, contents, killed, process, refused

pytestmark = pytest.mark.slow


@pytest.fixture
def workdir(demo_run) -> Path:
    return demo_run[0]


@pytest.fixture
def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def test_killed_demo_resumes(demo_run):
    _, first, second = demo_run
    assert first.code == -9, first.err
    assert "t2i: started" in first.err and "forcing: started" in first.err
    assert "evaluate" not in first.err
    assert second.code == 0, second.err
    assert "t2i: already done" in second.err and "t2i: started" not in second.err
    assert "forcing: started" in second.err and "evaluate: started" in second.err


def test_stderr_has_only_its_own_lines(demo_run):
    """Libraries print no warnings."""
    own = r"(t2i|forcing|evaluate): (started|already done)$|(t2i|forcing)  \d+/4  "
    for line in demo_run[2].err.splitlines():
        assert re.match(own, line), line


def test_progress_has_phase_step_and_losses(demo_run):
    losses = r"loss \S+  loss_depth \S+  loss_image \S+"
    # The only report of so short a run, so that it has no rate (tests/unit/test_progress.py).
    assert re.search(rf"^forcing  4/4  {losses}", demo_run[2].err, re.M)
    parameters = r"^forcing: \d+\.\d\d M parameters in \d+ arrays$"
    assert re.search(parameters, demo_run[2].out, re.M)


def test_summary_is_complete(summary: dict):
    asked = {
        "i2d": ("absrel", "delta1"),
        "constant": ("absrel",),
        "row_mean": ("absrel",),
        "d2i": ("absrel", "absrel_shuffled"),
        "joint": ("image_first_absrel", "depth_first_absrel"),
        "seconds": ("t2i", "forcing", "evaluate", "total"),
        "cpu_seconds": ("t2i", "forcing", "evaluate", "total"),
    }
    for name, keys in asked.items():
        for key in keys:
            value = summary[name][key]
            assert type(value) is float and 0 < value < math.inf, f"{name}.{key} is {value!r}"
    assert summary["i2d"]["delta1"] <= 1
    assert summary["i2d"]["images"] + summary["i2d"]["skipped"] == 8
    phases = [seconds for phase, seconds in summary["seconds"].items() if phase != "total"]
    assert summary["seconds"]["total"] == pytest.approx(sum(phases), abs=0.02)
    assert 100 < summary["peak_rss_mb"] < 6000


def test_checkpoint_of_the_summary_generates(summary: dict):
    generator = Generator.from_checkpoint(Path(summary["checkpoint"]))
    assert list(generator.modalities) == ["image", "depth"] and generator.config.train.steps == 4


def events(folder: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of every scalar in a folder's event files."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        assert at == len(data), "a record is cut short"
    return found


@pytest.mark.parametrize("phase", ["t2i", "forcing"])
def test_events_equal_the_rows(workdir: Path, phase: str):
    logged = {(step, tag): value for step, tag, value in events(workdir / phase / "events")}
    rows = {
        (row["step"], name): value
        for row in read_metrics(workdir / phase)
        for name, value in row.items()
        if name != "step"
    }
    assert rows and logged == pytest.approx(rows, rel=1e-6)
    names = {name for _, name in rows}
    assert {"loss", "loss_image", "grad_norm", "data_wait_fraction", "elapsed_s"} <= names
    assert ("loss_depth" in names) == (phase == "forcing")


class References(HTMLParser):
    """The addresses that a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in ((name, value or "") for name, value in attrs):
            inner = name == "href" and value.startswith("#")
            if name in ("src", "srcset", "poster", "data", "href") and not inner:
                self.fetched.append(value)


def test_report_is_self_contained(workdir: Path):
    html = (workdir / "report.html").read_text()
    page = References()
    page.feed(html)
    assert len(page.fetched) >= 4, "a grid for each mode"
    assert all(value.startswith("data:image/") for value in page.fetched)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(\s*['\"]?(?!data:|#)", html)
    for word in ("loss_image", "loss_depth", "Image to depth", "Depth to image", "Joint"):
        assert word in html, word


def test_second_run_changes_nothing(workdir: Path, mforce, tmp_path: Path):
    before = contents(workdir)
    done = mforce("demo", "--workdir", workdir, *TINY_DEMO)
    assert done.code == 0, done.err
    phases = ("t2i", "forcing", "evaluate")
    assert done.err.splitlines() == [f"{phase}: already done" for phase in phases]
    after = contents(workdir)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == []


def test_other_steps_in_the_same_workdir_are_refused(workdir: Path, mforce):
    before = contents(workdir)
    steps = ["--workdir", workdir, "--t2i-steps", "4", "--forcing-steps", "5", "--examples", "8"]
    refused(
        mforce("demo", *steps),
        r"forcing: the workdir holds a run with train\.steps=4, not 5; choose another --workdir",
    )
    assert contents(workdir) == before


def test_ablation_adds_the_run_without_pretraining(
    workdir: Path, summary: dict, mforce, tmp_path: Path
):
    copy = shutil.copytree(workdir, tmp_path / "run")
    done = mforce("demo", "--workdir", copy, "--ablate", *TINY_DEMO)
    assert done.code == 0, done.err
    result = json.loads((copy / "summary.json").read_text())
    assert 0 < result["no_pretraining"]["absrel"] < 10
    assert result["no_pretraining"]["absrel"] != result["i2d"]["absrel"]
    assert "no_pretraining" in result["seconds"]
    for name in ("i2d", "constant", "row_mean", "d2i", "joint"):
        assert result[name] == summary[name]
    own = json.loads((copy / "no_pretraining/config.json").read_text())
    forcing = json.loads((copy / "forcing/config.json").read_text())
    assert own["train"].pop("init_from") == ""
    assert forcing["train"].pop("init_from").endswith("t2i")
    assert own["train"].pop("allow_missing_modalities") == []
    assert forcing["train"].pop("allow_missing_modalities") == ["depth"]
    assert own.pop("name") != forcing.pop("name")
    assert own == forcing


def test_killed_training_resumes_and_logs_it(tmp_path: Path):
    workdir = tmp_path / "run"
    steps = [f"--config.train.{k}" for k in ("steps=40", "save_every=2", "log_every=2", "batch=2")]
    size = [*SMALL, "--config.data.resolution=16"]
    arguments = ["train", "--config=demo:phase=t2i", "--workdir", workdir, *size, *steps]

    def has_checkpoint() -> bool:
        return any(workdir.glob(f"checkpoints/*/{checkpoint.META}"))

    first = killed(*arguments, when=has_checkpoint)
    assert first.code == -9, first.err
    second = process(*arguments)
    assert second.code == 0, second.err
    resumed = re.search(r"^t2i: resuming from step (\d+) of 40 in ", second.out, re.MULTILINE)
    assert resumed and 2 <= int(resumed[1]) < 40
    steps = [row["step"] for row in read_metrics(workdir) if "loss" in row]
    assert steps == list(range(2, 41, 2)), "each row is logged once"
