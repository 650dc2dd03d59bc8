"""Config files: arguments, overrides, and every named config pinned as golden text."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import pytest

from modality_forcing.config import Config, to_dict
from modality_forcing.config_file import (
    _neighbors_importable,
    call,
    check_range,
    choose,
    load,
    parse_arg,
)
from modality_forcing.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
GOLDEN = Path(__file__).parents[1] / "golden"
DEMO = f"{CONFIGS / 'demo.py'}:phase=t2i"

# Every config file with the values of its arguments that change what it says.
ARGUMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "demo": {"phase": ("t2i", "forcing"), "scale": ("short", "hour", "night")},
    "flux2": {
        "size": ("klein-4b", "klein-9b", "tiny"),
        "task": ("forcing", "t2i"),
        "lora": ("0", "16"),
    },
    "folder": {"phase": ("t2i", "forcing"), "distill": ("True", "False")},
    "forcing": {"size": ("370m", "800m", "3b3"), "encoders": ("frozen", "none")},
    "mixtures": {"sets": ("paper", "offline"), "size": ("370m", "demo")},
    "normals": {"resolution": ("32", "64")},
    "t2i": {"size": ("370m", "800m", "3b3"), "encoders": ("frozen", "none")},
}
STEMS = sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))
EXISTING = [stem for stem in STEMS if not stem.startswith("sweep_")]  # sweeps: sweeps/test_spec.py


def cases() -> list[str]:
    named = []
    for stem in EXISTING:
        options = ARGUMENTS[stem]
        for values in itertools.product(*options.values()):
            arguments = (f"{k}={v}" for k, v in zip(options, values, strict=True))
            named.append(f"{stem}:{','.join(arguments)}")
    return named


def golden_file(case: str) -> Path:
    return GOLDEN / (case.replace(":", "-").replace("=", "_").replace(",", "-") + ".json")


@pytest.mark.parametrize("case", cases())
def test_each_config_equals_its_golden_file(case):
    """A changed default shows in review. UPDATE_GOLDEN=1 writes the files anew."""
    config, golden = to_dict(load(case)), golden_file(case)
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(json.dumps(config, indent=1) + "\n")
    assert golden.is_file(), f"no golden text for {case}: run once with UPDATE_GOLDEN=1"
    agreed = json.loads(golden.read_text())
    assert config == agreed and list(config["modalities"]) == list(agreed["modalities"])


@pytest.mark.parametrize("stem", EXISTING)
def test_each_config_documents_its_command(stem):
    assert "mforce " in (CONFIGS / f"{stem}.py").read_text().split('"""')[1]


def test_each_golden_file_has_a_config():
    assert set(GOLDEN.glob("*.json")) == {golden_file(case) for case in cases()}


def test_overrides_reach_every_depth():
    config = load(
        DEMO,
        {
            "name": "2026",
            "train.steps": "50",
            "train.learning_rate": "1",
            "train.distill": "False",
            "train.allow_missing_modalities": "('depth',)",
            "train.init_from": "runs/t2i",
            "modalities.image.noise.timestep_shift": "0.5",
            "model.dtype": "bfloat16",
            "sample.guidance": "{'image': 4}",
            "data.sparsity_patterns": "{'uniform': 1.0}",
        },
    )
    assert (config.name, config.train.steps, config.train.learning_rate) == ("2026", 50, 1.0)
    assert config.train.allow_missing_modalities == ("depth",)
    assert config.train.init_from == "runs/t2i" and config.train.distill is False
    assert config.modalities["image"].noise.timestep_shift == 0.5
    assert config.model.dtype == "bfloat16" and config.sample.guidance == {"image": 4.0}
    assert config.data.sparsity_patterns == {"uniform": 1.0}


def test_override_of_one_guidance_keeps_the_rest():
    assert load(DEMO, {"sample.guidance.image": "3"}).sample.guidance == {"image": 3.0}


def test_without_overrides_nothing_changes():
    assert load(DEMO) == load(DEMO, {})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.stpes", "5", r"unknown config key 'train\.stpes'; did you mean train\.steps\?"),
        ("trian.steps", "5", r"unknown config key 'trian\.steps'; did you mean train\?"),
        ("train.steps.more", "5", r"unknown config key 'train\.steps\.more'; .*nothing below this"),
        ("nonsense", "5", r"unknown config key 'nonsense'; known here: .*train"),
        ("modalities.normals.patch", "8", r"unknown config key 'modalities\.normals\.patch'"),
        ("train.steps", "many", r"train\.steps is 'many'; it must be of type int"),
        ("train.steps", "1.5", r"train\.steps is 1\.5"),
        ("train.steps", "", r"train\.steps is ''"),
        ("train.schedule", "linear", r"choose one of cosine, wsd"),
        ("train.distill", "yes", r"train\.distill is 'yes'"),
        ("train", "5", r"train is 5"),
        ("train.log_every", "0", r"train\.log_every is 0"),
        ("data.resolution", "36", r"not a multiple"),
        ("train.init_from", "__import__('os')", None),
    ],
)
def test_wrong_override_is_one_line(key, value, message):
    if message is None:  # a string is a string, never code
        assert load(DEMO, {key: value}).train.init_from == value
        return
    with pytest.raises(UserError, match=message):
        load(DEMO, {key: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(arg):\n  return (", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("x = 1\nundefined", r":2: NameError"),
        (
            "from modality_forcing.config import *\n\nget_config = lambda _: TrainConfig(stpes=5)",
            r":3: TypeError: .*stpes",
        ),
        ("x = 1", r"no get_config"),
        ("get_config = 5", r"no get_config"),
        ("raise ValueError('boom')", ":1: ValueError: boom"),
        ("def get_config(arg):\n  return 5", "get_config returned a int"),
    ],
)
def test_broken_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"broken\.py.*{message}"):
        load(str(path))


def test_missing_file_is_one_line_that_lists_the_names(tmp_path):
    with pytest.raises(UserError, match=r"none\.py: no such config file; .* one of demo, flux2,"):
        load(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="no such config file"):
        load(str(tmp_path))
    with pytest.raises(UserError, match=r"^dmeo: no such config file; .* one of (?!.*sweep_)"):
        load("dmeo:phase=t2i")
    with pytest.raises(
        UserError, match=r"no such sweep file; .* one of sweep_paper, sweep_scenes, sweep_split$"
    ):
        call("scenes", "get_sweep", object)


def test_config_is_found_by_name_or_path(tmp_path, monkeypatch):
    assert load("demo:phase=t2i") == load(DEMO)
    monkeypatch.chdir(tmp_path)
    assert load("demo") == load(str(CONFIGS / "demo.py"))
    text = "from my_configs import base\n\nget_config = base.get_config"
    base = "from modality_forcing.config_file import load\n\nget_config = lambda arg: load('demo')"
    (tmp_path / "my_configs").mkdir()
    (tmp_path / "my_configs/base.py").write_text(base)
    (tmp_path / "my_configs/mine.py").write_text(text)
    assert load("my_configs/mine.py") == load("demo")


def test_config_may_be_at_the_root_of_the_file_system():
    with _neighbors_importable(Path("/config.py")):
        assert sys.path[-1] == "/"


def test_wrong_argument_is_one_line():
    with pytest.raises(UserError, match=r"phase='t3i' is unknown; choose one of t2i, forcing"):
        load("demo:phase=t3i")
    with pytest.raises(UserError, match=r"'pase=t2i' is not understood; it takes phase=forcing"):
        load("demo:pase=t2i")


def test_arguments_have_the_types_of_their_defaults():
    defaults = {"size": "demo", "resolution": 32, "rate": 0.5, "on": True, "rest": None}
    parsed = parse_arg("size=3b3,resolution=64,rate=1,on=false", **defaults)
    assert parsed == {"size": "3b3", "resolution": 64, "rate": 1.0, "on": False, "rest": None}
    assert type(parsed["rate"]) is float
    assert parse_arg("", size="demo") == {"size": "demo"}
    assert parse_arg("size=64", size="demo") == {"size": "64"}


@pytest.mark.parametrize(
    "argument", ["resolution=big", "resolution=1.5", "on=1", "resolution=true"]
)
def test_argument_of_the_wrong_type_is_refused(argument):
    with pytest.raises(UserError, match=f"'{argument}' is not of type"):
        parse_arg(argument, resolution=32, on=True)


@pytest.mark.parametrize("argument", ["resolution", "other=1", "=1", ",", "resolution=1,"])
def test_malformed_argument_is_refused(argument):
    with pytest.raises(UserError, match=r"not understood; it takes resolution=32"):
        parse_arg(argument, resolution=32)


def test_argument_given_twice_is_refused():
    with pytest.raises(UserError, match="config argument resolution is given twice; leave one"):
        parse_arg("resolution=1,on=true,resolution=2", resolution=32, on=True)


@pytest.mark.parametrize(
    ("value", "high", "named"), [(0, None, "at least 1"), (101, 100, "between 1 and 100")]
)
def test_number_out_of_range_is_refused(value, high, named):
    check_range("shorter", 1, 1, high)
    check_range("shorter", 100, 1, high)
    with pytest.raises(UserError, match=f"config argument shorter={value} is not {named}$"):
        check_range("shorter", value, 1, high)


def test_choose_accepts_known_values_only():
    assert choose("phase", "a", ("a", "b")) == "a"
    with pytest.raises(UserError, match="choose one of a, b"):
        choose("phase", "c", ("a", "b"))


def test_overrides_keep_the_order_of_keys():
    """The first modality is the primary one; ConfigDict sorts its keys."""
    overrides = {"sample.guidance": "{'depth': 1, 'image': 2}", "train.steps": "5"}
    config = load("demo:phase=forcing", overrides)
    assert list(config.modalities) == ["image", "depth"]
    assert list(to_dict(config)) == list(to_dict(Config()))


def test_names_of_a_list_need_no_quotes():
    def targets(text: str) -> tuple[str, ...]:
        return load("flux2:size=tiny", {"train.lora_targets": text}).train.lora_targets

    assert targets("q, k,down") == targets("['q', 'k', 'down']") == ("q", "k", "down")
    assert targets("q") == targets("q,") == ("q",)
    assert targets("") == ()
