"""Model cards: front matter that the hub reads, and only numbers that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation.protocols import get_protocol
from modality_forcing.export import job
from modality_forcing.export.card import RESULTS, check_license, facts
from modality_forcing.train import checkpoint
from modality_forcing.train.state import params_hash
from modality_forcing.train.weights import open_weights
from tests import runs, tiny
from tests.runs import Command, refused

ROWS = [
    {"step": 0, "loss": 9.0, "loss_depth": 8.0, "grad_norm": 1.0},
    {"step": 0, "loss": 0.123456789, "loss_depth": 0.5, "loss_depth/t0.0-0.2": 0.1},
    {"step": 0, "eval/i2d_absrel": 0.25, "perf/eval_s": 3.0},
    {"step": 0, "elapsed_s": 12.5},
    {"step": 5, "loss": 777.0},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with metrics, and results of its weights and of others."""
    workdir = runs.save(tmp_path_factory.mktemp("run") / "run", tiny.forcing())
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    weights = params_hash(checkpoint.load(workdir)[1])
    folder = workdir / RESULTS
    folder.mkdir()
    for name, (digest, absrel) in {"ours": (weights, 0.0625), "others": ("0", 0.5)}.items():
        result = {
            "title": "NYUv2",
            "official_list": False,
            "protocol": get_protocol("moge", None, strict=False).to_dict(),
            "view": {"name": "square", "size": None, "model_resolution": 16},
            "sampling": {"samples": 1, "ensemble": "scale", "steps": 4, "solver": "euler"}
            | {"seed": 0},
            "checkpoint": {"name": "forcing", "step": "0", "weights": digest},
            "images": 654,
            "absrel": absrel,
            "delta1": None,
        }
        (folder / f"{name}.json").write_text(json.dumps(result))
    (folder / "other.json").write_text("[]")
    (folder / "else.json").write_text('{"checkpoint": 3}')
    return workdir


@pytest.fixture(scope="module")
def card(run: Path, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("out") / "out"
    job.export(run, out, "safetensors", license="cc-by-4.0")
    return out, (out / "README.md").read_text()


def test_front_matter_is_what_the_hub_reads(card):
    _, text = card
    head = re.match(r"---\n(.*?)\n---\n\n# forcing\n", text, re.S)
    assert head is not None
    lines = head[1].splitlines()
    expected = ["license: cc-by-4.0", "library_name: modality_forcing"]
    assert lines[:4] == [*expected, "pipeline_tag: depth-estimation", "tags:"]
    assert {"- depth-estimation", "- jax"} <= set(lines[4:])
    assert all(re.fullmatch(r"- [a-z0-9-]+", line) for line in lines[4:])


def test_numbers_are_those_of_the_run_at_its_step(card, run: Path):
    _, text = card
    assert "| `loss` | 0.1235 |" in text and "| `loss_depth` | 0.5 |" in text
    assert (
        "Evaluation while training, at step 0:" in text and "| `eval/i2d_absrel` | 0.25 |" in text
    )
    assert "**NYUv2** (654 frames, not the official list): AbsRel 0.0625.\nprotocol moge" in text
    count = sum(x.size for x in jax.tree.leaves(checkpoint.load(run)[1]))
    assert f"| parameters | {count:,} (float32) |" in text
    for absent in ("777", "AbsRel 0.5", "elapsed", "perf/", "grad_norm", "t0.0", str(run)):
        assert absent not in text


def test_card_of_an_export_is_equal(card, tmp_path: Path):
    out, text = card
    alone = job.export(out / "weights.safetensors", tmp_path / "again", "safetensors")
    assert (alone / "README.md").read_text() == text
    other = job.export(out, tmp_path / "other", "orbax", license="mit")
    assert (other / "README.md").read_text() == text.replace("cc-by-4.0", "mit")


def test_run_without_metrics_has_no_numbers(t2i_run: Path, tmp_path: Path):
    out = job.export(t2i_run, tmp_path / "out")
    text = (out / "README.md").read_text()
    assert "license: other\nlicense_name: unspecified\n" in text and "ask their owner" in text
    assert "pipeline_tag: text-to-image" in text and "depth" not in text.partition("# t2i")[0]
    assert "No metrics were found" in text and "accuracy is not stated" in text
    assert "--mode=t2i --caption=" in text


def test_damaged_metrics_are_left_out_with_a_note(run: Path, tmp_path: Path, capsys):
    rows = run / "metrics.jsonl"
    whole = rows.read_text()
    rows.write_text("oops\n" + whole)
    try:
        found = open_weights(run)
        known = facts(found, *found.load())
    finally:
        rows.write_text(whole)
    assert "losses" not in known and known["step"] == 0 and len(known["results"]) == 1
    assert "the model card has no metrics" in capsys.readouterr().err


def test_license_is_an_id_of_the_hub(forcing_run: Path, tmp_path: Path, mforce: Command):
    with pytest.raises(UserError, match="--license is 'MIT License'; give an id of the hub"):
        check_license("MIT License")
    command = ("export", f"--checkpoint={forcing_run}", f"--out={tmp_path / 'out'}")
    refused(mforce(*command, "--license=a\nb: c"), "--license is ")
    assert not (tmp_path / "out").exists()
