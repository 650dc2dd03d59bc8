"""User errors without a checkpoint: one line, exit code 2, nothing written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing import config_file
from modality_forcing.train.workdir import write_config
from tests.runs import CONFIGS, SMALL, Command, attempt, refused

T2I = "--config=demo:phase=t2i"
FORCING = "--config=demo:phase=forcing"
FOLDER = "--config=folder:phase=forcing,distill=False"
OTHER = "; choose another --workdir"


# ---- The command itself

COMMAND = {
    "nothing": ([], r"required: command; see mforce --help"),
    "unknown_command": (["trian"], r"invalid choice: 'trian'"),
    "unknown_option": (["demo", "--quick"], r"unrecognized arguments: --quick"),
    "no_config": (["train", "--workdir", "w"], r"required: --config; see mforce train --help"),
    "override_elsewhere": (
        ["demo", "--config.train.steps=5"],
        r"--config\.train\.steps is an option of train",
    ),
    "override_without_value": (
        ["train", T2I, "--workdir", "w", "--config.seed"],
        r"--config\.seed has no value",
    ),
    "override_swallows": (
        ["train", T2I, "--config.seed", "--workdir", "w"],
        r"--config\.seed has no value",
    ),
    "no_steps": (["demo", "--t2i-steps", "0"], r"--t2i-steps: '0' is not a whole number above 0"),
    "negative_steps": (["demo", "--forcing-steps=-4"], r"'-4' is not a whole number above 0"),
    "half_an_example": (["demo", "--examples", "1.5"], r"'1\.5' is not a whole number above 0"),
    "no_mode": (["sample", "--checkpoint", "c", "--out", "o"], r"required: --mode"),
    "not_a_number": (
        ["sample", "--checkpoint", "c", "--out", "o", "--mode", "joint", "--guidance", "nan"],
        r"'nan' is not a number",
    ),
    "other_format": (
        ["export", "--checkpoint", "c", "--out", "o", "--format", "h5"],
        r"invalid choice: 'h5'",
    ),
    "other_solver": (
        ["sample", "--checkpoint", "c", "--out", "o", "--mode", "t2i", "--solver", "ddim"],
        r"invalid choice: 'ddim'",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), COMMAND.values(), ids=COMMAND)
def test_command(mforce: Command, tmp_path: Path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    attempt(mforce, tmp_path, message, *arguments)


# ---- Configs

CONFIG = {
    "unknown_key": (
        [T2I, "--config.train.stpes=5"],
        r"unknown config key 'train\.stpes'; did you mean train\.steps\?",
    ),
    "unknown_branch": ([T2I, "--config.trian.steps=5"], r"did you mean train\?"),
    "unknown_size": ([f"{T2I},size=7b"], r"unknown model size '7b'; known sizes: demo, 370m"),
    "unknown_argument": (
        [f"{T2I},colour=red"],
        r"config argument 'colour=red' is not understood; it takes phase=",
    ),
    "unknown_phase": (["--config=demo:phase=t3i"], r"'t3i' is unknown; choose one of t2i, forcing"),
    "unknown_name": (["--config=dmeo"], r"dmeo: no such config file; .* one of demo, flux2"),
    "renamed_key": ([T2I, "--config.train.init=x"], r"train\.init is now train\.init_from"),
    "no_such_file": (["--config=configs/none.py"], r"configs/none\.py: no such config file"),
    "a_folder": ([f"--config={CONFIGS}"], r"no such config file"),
    "wrong_type": (
        [T2I, "--config.train.steps=many"],
        r"train\.steps is 'many'; it must be of type int",
    ),
    "no_batch": ([T2I, "--config.train.batch=0"], r"train\.batch is 0; it must be at least 1"),
    "no_steps": ([T2I, "--config.train.steps=0"], r"train\.steps is 0"),
    "negative_steps": ([T2I, "--config.train.steps=-5"], r"train\.steps is -5"),
    "odd_resolution": (
        [T2I, "--config.data.resolution=36"],
        r"data\.resolution 36 is not a multiple of modalities\.image\.patch 8",
    ),
    "negative_rate": (
        [T2I, "--config.train.learning_rate=-1e-3"],
        r"train\.learning_rate is -0\.001; it must be above 0",
    ),
    "no_rate": ([T2I, "--config.train.learning_rate=0"], r"train\.learning_rate is 0"),
    "infinite_rate": ([T2I, "--config.train.learning_rate=1e999"], r"train\.learning_rate is inf"),
    "forgetful_ema": (
        [T2I, "--config.train.ema_decay=1.5"],
        r"train\.ema_decay is 1\.5; it must be at least 0 and below 1",
    ),
    "clamp_of_zero": ([T2I, "--config.train.t_min=0"], r"train\.t_min is 0"),
    "clamp_of_sampling": (
        [T2I, "--config.sample.t_min=0.3"],
        r"sample\.t_min is 0\.3.*at most 0\.05",
    ),
    "mu_beyond_floats": (
        [T2I, "--config.modalities.image.noise.timestep_shift=1000"],
        r"noise\.timestep_shift is 1000",
    ),
    "alpha_beyond_floats": (
        [T2I, "--config.sample.log2_alpha=2000"],
        r"sample\.log2_alpha is 2000",
    ),
    "large_seed": (
        [T2I, "--config.seed=99999999999"],
        r"seed is 99999999999; it must be below 2\*\*32",
    ),
    "guided_nothing": (
        [T2I, "--config.sample.guidance={'depht': 2}"],
        r"sample\.guidance names 'depht', which is not a modality; the modalities are image",
    ),
    "guided_by_nothing": (
        [T2I, "--config.sample.condition_guidance={'depht': 2}"],
        r"sample\.condition_guidance names 'depht', which is not a modality; the modalities are",
    ),
    "unknown_kind": (
        [T2I, "--config.modalities.image.kind=images"],
        r"kind is 'images'; choose one of depth, image",
    ),
    "unknown_pattern": (
        [FORCING, "--config.data.sparsity_patterns={'lidra': 1.0}"],
        r"unknown sparse pattern 'lidra'; known are .*lidar",
    ),
    "weightless_patterns": (
        [FORCING, "--config.data.sparsity_patterns={'lidar': 0.0}"],
        r"sparse pattern weights",
    ),
    "distilled_from_nothing": (
        [FORCING, "--config.train.distill=True"],
        r"train\.distill needs train\.init_from",
    ),
    "distilled_alone": (
        [T2I, "--config.train.distill=True"],
        r"train\.distill needs a second modality",
    ),
    "no_text": ([T2I, "--config.text.vocab_size=0"], "states of a text encoder, and none"),
    "no_such_init": ([FORCING, "--config.train.init_from=nowhere"], r"nowhere: no such checkpoint"),
    "scenes_too_small": (
        [T2I, "--config.modalities.image.patch=4", "--config.data.resolution=4"],
        r"resolution 4",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), CONFIG.values(), ids=CONFIG)
def test_config(mforce: Command, tmp_path: Path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    attempt(mforce, tmp_path, message, "train", *arguments, *SMALL, "--workdir", tmp_path / "new")


# ---- Workdirs


def test_workdir_of_another_run(mforce: Command, tmp_path: Path, t2i_run: Path):
    shutil.copytree(t2i_run, tmp_path / "run")
    message = rf"run: the workdir holds a run with .*{OTHER}"
    attempt(mforce, tmp_path, message, "train", T2I, "--workdir", tmp_path / "run")


def test_workdir_that_is_a_file(mforce: Command, sample_dir: Path):
    for workdir in (sample_dir / "file", sample_dir / "file" / "below"):
        for command in (["train", T2I], ["demo"]):
            attempt(mforce, sample_dir, rf"file: is a file{OTHER}", *command, "--workdir", workdir)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_workdir_without_permission(mforce: Command, tmp_path: Path):
    tmp_path.chmod(0o555)
    attempt(mforce, tmp_path, r"may not be written to", "train", T2I, "--workdir", tmp_path / "new")


def test_workdir_with_a_broken_config(mforce: Command, tmp_path: Path):
    for text in ("{", "[1, 2]", "5", "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        message = r"config\.json: is not (the config of a run|text in UTF-8)"
        attempt(mforce, tmp_path, message, "train", T2I, "--workdir", tmp_path)


def test_workdir_with_checkpoints_but_no_config(mforce: Command, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    message = r"holds checkpoints without a config\.json"
    attempt(mforce, tmp_path, message, "train", T2I, "--workdir", tmp_path)


def test_demo_workdir_with_broken_phases(mforce: Command, tmp_path: Path):
    for text in ("{", "[1, 2]"):
        (tmp_path / "phases.json").write_text(text)
        message = r"phases\.json: is not a record of phases"
        attempt(mforce, tmp_path, message, "demo", "--workdir", tmp_path)


# ---- User folders


def write_folder(root: Path, **depth: np.ndarray) -> Path:
    """Writes 24 x 32 images named like the depth maps; an empty array means no depth."""
    (root / "images").mkdir(parents=True)
    (root / "depth").mkdir()
    for name, array in depth.items():
        Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(root / "images" / f"{name}.png")
        if array.size:
            np.save(root / "depth" / f"{name}.npy", array)
    return root


GOOD = np.ones((24, 32), np.float32)
DAMAGED = {
    "another_aspect": (
        np.ones((24, 24)),
        r"last\.npy: depth has another aspect \(24 x 24, the upright image 32 x 24\)",
    ),
    "negative": (GOOD - 2, r"last\.npy: depth holds negative values \(down to -1\)"),
    "nothing_valid": (GOOD * np.nan, r"last\.npy: holds no valid depth \(all is 0, NaN or inf\)"),
    "zeros": (GOOD * 0, r"last\.npy: holds no valid depth"),
    "not_a_map": (np.ones(24), r"last\.npy: has shape \(24,\), not \[h w\]"),
}


@pytest.mark.parametrize(("array", "message"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("workers", [0, 1])
def test_folder_with_a_wrong_last_file(mforce: Command, tmp_path: Path, array, message, workers):
    root = write_folder(tmp_path / "mine", first=GOOD, last=np.asarray(array, np.float32))
    here = ["--workdir", tmp_path / "new", f"--config.data.workers={workers}", *SMALL]
    attempt(mforce, tmp_path, message, "train", FOLDER, f"--config.data.root={root}", *here)


def test_invalid_folder(mforce: Command, sample_dir: Path):
    def train(message: str, root: object, *more: str) -> None:
        options = [f"--config.data.root={root}", *more, *SMALL, "--workdir", sample_dir / "new"]
        attempt(mforce, sample_dir, message, "train", FOLDER, *options)

    train(r"data\.root is empty; name the folder", "")
    train(r"no such folder", sample_dir / "nowhere")
    train(r"no such folder", sample_dir / "file")
    train(r"empty: no image in this folder", sample_dir / "empty")
    train(
        r"bare: no image here has depth; put depth/",
        write_folder(sample_dir / "bare", one=GOOD[:0]),
    )
    root = write_folder(sample_dir / "counts", one=GOOD)
    (root / "depth/one.npy").unlink()
    shutil.copy(sample_dir / "depth16.png", root / "depth/one.png")
    train(r"one\.png: the unit of its counts is not known; state depth_scale", root)
    train(r"data\.depth_scale is -1", root, "--config.data.depth_scale=-1")
    shutil.copy(sample_dir / "depth8.png", root / "depth/one.png")
    train(r"one\.png: is an 8-bit image, not 16-bit depth", root, "--config.data.depth_scale=0.001")
    shutil.copy(sample_dir / "truncated.jpg", root / "images/one.jpg")
    (root / "images/one.png").unlink()
    train(r"one\.jpg: cannot be read as an image", root, "--config.data.depth_scale=0.001")


def test_file_damaged_after_the_first_check(mforce: Command, tmp_path: Path):
    """A loader process reports the error; the run resumes after the file is repaired."""
    root = write_folder(tmp_path / "mine", first=GOOD, last=GOOD)
    overrides = dict(text.removeprefix("--config.").split("=") for text in SMALL)
    overrides |= {"data.root": str(root), "train.batch": "2"}
    config = config_file.load(FOLDER.removeprefix("--config="), overrides)
    write_config(tmp_path / "run", config)  # as if killed before its first checkpoint
    np.save(root / "depth/last.npy", -GOOD)
    arguments = [f"--config.{key}={value}" for key, value in overrides.items()]
    done = mforce("train", FOLDER, *arguments, "--workdir", tmp_path / "run")
    refused(done, r"last\.npy: depth holds negative values")
