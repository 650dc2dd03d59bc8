"""`mforce plan` makes one plan at a time and rejects options of another."""

from __future__ import annotations

import json

import pytest

from modality_forcing.cli import main
from tests.runs import refused

RUN = ["plan", "--config=configs/demo.py"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["plan"],
            "give exactly one of --config, --checkpoint, --encode, --sweep and --coord-check",
        ),
        ([*RUN, "--encode=text", "--topology=v5e:2x2"], "give exactly one of"),
        (["plan", "--sweep=x.py", "--encode=text"], "give exactly one of"),
        (["plan", "--sweep=x.py", "--coord-check"], "give exactly one of"),
        (RUN, "--topology is missing; name the chips of one slice"),
        (["plan", "--encode=text"], "--topology is missing"),
        ([*RUN, "--topology=v5e:2x2", "--chip", "v5e"], "--config does not take --chip"),
        (
            ["plan", "--sweep=configs/sweep_scenes.py", "--topology=v5e:2x2"],
            "--sweep does not take --topology",
        ),
        ([*RUN, "--int8"], "--int8 is for a plan of sampling; name a mode of mforce sample"),
        ([*RUN, "--checkpoint=runs/mf"], "give exactly one of"),
        (["plan", "--checkpoint=runs/mf"], "--topology is missing"),
        (["plan", "--encode=text", "--size=512"], "--encode does not take --size"),
        (["plan", "--coord-check", "--json"], "--coord-check does not take --json"),
        (
            ["plan", "--encode=text", "--topology=v5e:2x2", "--config.seed=1"],
            "--config.seed changes a config, and there is none",
        ),
        (["plan", "--sweep=configs/sweep_scenes.py", "--chip", "v9"], "unknown chip 'v9'"),
        (["plan", "--sweep=configs/demo.py"], "get_sweep"),
    ],
)
def test_conflicting_options_fail_with_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_sweep_is_priced(capsys):
    arguments = ["--sweep=configs/sweep_scenes.py", "--chip", "v5e", "--mfu=0.5", "--json"]
    assert main(["plan", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["cells"] == 54 and [chip["chip"] for chip in printed["chips"]] == ["v5e"]
    assert printed["chips"][0]["hours"] == pytest.approx(printed["flops"] / (0.5 * 197e12) / 3600)


def test_overrides_do_not_change_the_network_of_a_checkpoint(mforce, t2i_run):
    pytest.importorskip("libtpu")
    arguments = ["plan", f"--checkpoint={t2i_run}", "--topology=v5e:2x2"]
    message = "make another network than the checkpoint's; plan them with --config"
    refused(mforce(*arguments, "--config.model.width=16"), message)


def test_exit_code_of_coordinate_check_is_0_only_if_all_is_flat(monkeypatch, tmp_path):
    from modality_forcing.train import coord_check

    calls = []
    monkeypatch.setattr(
        coord_check, "check", lambda config, out: calls.append((config, out)) or len(calls) == 1
    )
    assert main(["plan", "--coord-check", f"--out={tmp_path}"]) == 0
    assert main([*RUN, "--coord-check", "--config.train.learning_rate=9e-3"]) == 1
    assert calls[0] == (coord_check.DEFAULT, tmp_path)
    assert calls[1][0].train.learning_rate == 9e-3 and calls[1][1] is None
