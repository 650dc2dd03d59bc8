"""`mforce plan` answers one question at a time, and says which options belong to which."""

from __future__ import annotations

import json

import pytest

from modality_forcing.cli import main

RUN = ["plan", "--config=configs/demo.py"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (
            ["plan"],
            "a plan is of one thing; give one of --config, --encode, --sweep and --coord-check",
        ),
        ([*RUN, "--encode=text", "--topology=v5e:2x2"], "a plan is of one thing"),
        (["plan", "--sweep=x.py", "--encode=text"], "a plan is of one thing"),
        (["plan", "--sweep=x.py", "--coord-check"], "a plan is of one thing"),
        (RUN, "--topology is missing; name the chips of one slice"),
        (["plan", "--encode=text"], "--topology is missing"),
        ([*RUN, "--topology=v5e:2x2", "--chip", "v5e"], "--config has no use for --chip"),
        (
            ["plan", "--sweep=configs/sweep_scenes.py", "--topology=v5e:2x2"],
            "--sweep has no use for --topology",
        ),
        (["plan", "--coord-check", "--json"], "--coord-check has no use for --json"),
        (
            ["plan", "--encode=text", "--topology=v5e:2x2", "--config.seed=1"],
            "--config.seed changes a config, and there is none",
        ),
        (["plan", "--sweep=configs/sweep_scenes.py", "--chip", "v9"], "unknown chip 'v9'"),
        (["plan", "--sweep=configs/demo.py"], "get_sweep"),
    ],
)
def test_what_does_not_go_together_is_one_line(capsys, arguments, told):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_a_sweep_is_priced(capsys):
    assert (
        main(["plan", "--sweep=configs/sweep_scenes.py", "--chip", "v5e", "--mfu=0.5", "--json"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["cells"] == 96 and [chip["chip"] for chip in told["chips"]] == ["v5e"]
    assert told["chips"][0]["hours"] == pytest.approx(told["flops"] / (0.5 * 197e12) / 3600)


def test_the_coordinate_check_says_by_its_code_whether_all_is_flat(monkeypatch, tmp_path):
    from modality_forcing.train import coord_check

    asked = []
    monkeypatch.setattr(
        coord_check, "run", lambda config, out: asked.append((config, out)) or len(asked) == 1
    )
    assert main(["plan", "--coord-check", f"--out={tmp_path}"]) == 0
    assert (
        main(
            [
                "plan",
                "--coord-check",
                "--config=configs/demo.py",
                "--config.train.learning_rate=9e-3",
            ]
        )
        == 1
    )
    assert asked[0] == (coord_check.DEFAULT, tmp_path)
    assert asked[1][0].train.learning_rate == 9e-3 and asked[1][1] is None
