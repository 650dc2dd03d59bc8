"""Every mistake a person can make at the command line: one line, exit code 2, and nothing written."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from modality_forcing import config_file
from modality_forcing.models.surgery import flatten, unflatten
from modality_forcing.train.workdir import claim
from tests import tiny
from tests.runs import CONFIGS, SMALL, Done, contents, process, refused, save

T2I = f"--config={CONFIGS / 'demo.py'}:phase=t2i"
FORCING = f"--config={CONFIGS / 'demo.py'}:phase=forcing"
FOLDER = f"--config={CONFIGS / 'folder.py'}:phase=forcing,distill=False"
Command = Callable[..., Done]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a right and a wrong file of each kind, and beside it room for what a command writes."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    whole = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    depth = draw.uniform(1, 9, (24, 32)).astype(np.float32)
    maps = {
        "depth": depth,
        "with_nan": np.where(depth > 5, np.nan, depth),
        "negative": np.where(depth > 8, -1, depth),
        "all_nan": np.full_like(depth, np.nan),
        "zeros": np.zeros_like(depth),
        "flat": depth.ravel(),
        "words": np.full((24, 32), "far"),
        "edges": np.where(np.arange(32) < 2, depth, 0),
    }
    for name, array in maps.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    counts = (1000 * depth).astype(np.uint16)
    Image.fromarray(counts).save(tmp_path / "depth16.png")
    Image.fromarray((counts // 256).astype(np.uint8)).save(tmp_path / "depth8.png")
    Image.fromarray(np.zeros_like(counts)).save(tmp_path / "zeros16.png")
    (tmp_path / "file").write_text("a file, no folder")
    (tmp_path / "empty").mkdir()
    return tmp_path


def attempt(mforce: Command, desk: Path, told: str, *arguments: object) -> None:
    """Gives a command that is to be refused, and checks that it left everything as it was."""
    before = contents(desk)
    refused(mforce(*arguments), told)
    assert contents(desk) == before


# ---- The command itself

COMMAND = {
    "nothing": ([], r"required: command; see mforce --help"),
    "unknown_command": (["trian"], r"invalid choice: 'trian'"),
    "unknown_option": (["demo", "--quick"], r"unrecognized arguments: --quick"),
    "no_config": (["train", "--workdir", "w"], r"required: --config; see mforce train --help"),
    "override_elsewhere": (["demo", "--config.train.steps=5"], r"--config\.train\.steps is an option of train"),
    "override_without_value": (["train", T2I, "--workdir", "w", "--config.seed"], r"--config\.seed has no value"),
    "override_swallows": (["train", T2I, "--config.seed", "--workdir", "w"], r"--config\.seed has no value"),
    "no_steps": (["demo", "--t2i-steps", "0"], r"--t2i-steps: '0' is not a whole number above 0"),
    "negative_steps": (["demo", "--forcing-steps=-4"], r"'-4' is not a whole number above 0"),
    "half_an_example": (["demo", "--examples", "1.5"], r"'1\.5' is not a whole number above 0"),
    "no_mode": (["sample", "--checkpoint", "c", "--out", "o"], r"required: --mode"),
    "not_a_number": (
        ["sample", "--checkpoint", "c", "--out", "o", "--mode", "joint", "--guidance", "nan"],
        r"'nan' is not a number",
    ),
    "other_format": (["export", "--checkpoint", "c", "--out", "o", "--format", "h5"], r"invalid choice: 'h5'"),
    "other_solver": (
        ["sample", "--checkpoint", "c", "--out", "o", "--mode", "t2i", "--solver", "ddim"],
        r"invalid choice: 'ddim'",
    ),
}


@pytest.mark.parametrize(("arguments", "told"), COMMAND.values(), ids=COMMAND)
def test_command(mforce: Command, tmp_path: Path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    attempt(mforce, tmp_path, told, *arguments)


# ---- Configs

CONFIG = {
    "unknown_key": ([T2I, "--config.train.stpes=5"], r"unknown config key 'train\.stpes'; did you mean train\.steps\?"),
    "unknown_branch": ([T2I, "--config.trian.steps=5"], r"did you mean train\?"),
    "unknown_size": ([f"{T2I},size=7b"], r"unknown model size '7b'; known sizes: demo, 370m"),
    "unknown_argument": ([f"{T2I},colour=red"], r"config argument 'colour=red' is not understood; it takes phase="),
    "unknown_phase": ([f"--config={CONFIGS / 'demo.py'}:phase=t3i"], r"phase='t3i' is unknown; choose one of t2i, forcing"),
    "no_such_file": (["--config=configs/none.py"], r"configs/none\.py: no such config file"),
    "a_folder": ([f"--config={CONFIGS}"], r"no such config file"),
    "wrong_type": ([T2I, "--config.train.steps=many"], r"train\.steps is 'many'; it must be of type int"),
    "no_batch": ([T2I, "--config.train.batch=0"], r"train\.batch is 0; it must be at least 1"),
    "no_steps": ([T2I, "--config.train.steps=0"], r"train\.steps is 0"),
    "negative_steps": ([T2I, "--config.train.steps=-5"], r"train\.steps is -5"),
    "odd_resolution": (
        [T2I, "--config.data.resolution=36"],
        r"data\.resolution 36 is not a multiple of modalities\.image\.patch 8",
    ),
    "negative_rate": ([T2I, "--config.train.learning_rate=-1e-3"], r"train\.learning_rate is -0\.001; it must be above 0"),
    "no_rate": ([T2I, "--config.train.learning_rate=0"], r"train\.learning_rate is 0"),
    "infinite_rate": ([T2I, "--config.train.learning_rate=1e999"], r"train\.learning_rate is inf"),
    "forgetful_ema": ([T2I, "--config.train.ema=1.5"], r"train\.ema is 1\.5; it must be at least 0 and below 1"),
    "clamp_of_zero": ([T2I, "--config.train.t_min=0"], r"train\.t_min is 0"),
    "mu_beyond_floats": ([T2I, "--config.modalities.image.noise.mu=1000"], r"noise\.mu is 1000"),
    "alpha_beyond_floats": ([T2I, "--config.sample.log2_alpha=2000"], r"sample\.log2_alpha is 2000"),
    "large_seed": ([T2I, "--config.seed=99999999999"], r"seed is 99999999999; it must be below 2\*\*32"),
    "guided_nothing": (
        [T2I, "--config.sample.guidance={'depht': 2}"],
        r"sample\.guidance names 'depht'; the modalities are image",
    ),
    "unknown_kind": ([T2I, "--config.modalities.image.kind=images"], r"kind is 'images'; choose one of depth, image"),
    "unknown_pattern": ([FORCING, "--config.data.sparse={'lidra': 1.0}"], r"unknown sparse pattern 'lidra'; known are .*lidar"),
    "weightless_patterns": ([FORCING, "--config.data.sparse={'lidar': 0.0}"], r"sparse pattern weights"),
    "distilled_from_nothing": ([FORCING, "--config.train.distill=True"], r"train\.distill needs train\.init"),
    "distilled_alone": ([T2I, "--config.train.distill=True"], r"train\.distill needs a second modality"),
    "no_text": ([T2I, "--config.text.vocabulary=0"], r"text\.vocabulary is 0"),
    "no_such_init": ([FORCING, "--config.train.init=nowhere"], r"nowhere: no such checkpoint"),
    "scenes_too_small": ([T2I, "--config.modalities.image.patch=4", "--config.data.resolution=4"], r"resolution 4"),
}


@pytest.mark.parametrize(("arguments", "told"), CONFIG.values(), ids=CONFIG)
def test_config(mforce: Command, tmp_path: Path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    attempt(mforce, tmp_path, told, "train", *arguments, *SMALL, "--workdir", tmp_path / "new")


# ---- Workdirs


def test_workdir_of_another_run(mforce: Command, tmp_path: Path, t2i_run: Path):
    shutil.copytree(t2i_run, tmp_path / "run")
    attempt(
        mforce,
        tmp_path,
        r"run: the workdir holds a run with .*; choose another --workdir",
        "train",
        T2I,
        "--workdir",
        tmp_path / "run",
    )


def test_workdir_that_is_a_file(mforce: Command, desk: Path):
    for workdir in (desk / "file", desk / "file" / "below"):
        attempt(mforce, desk, r"file: is a file; choose another --workdir", "train", T2I, "--workdir", workdir)
        attempt(mforce, desk, r"file: is a file; choose another --workdir", "demo", "--workdir", workdir)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_workdir_without_permission(mforce: Command, tmp_path: Path):
    tmp_path.chmod(0o555)
    attempt(mforce, tmp_path, r"may not be written to", "train", T2I, "--workdir", tmp_path / "new")


def test_workdir_with_a_broken_config(mforce: Command, tmp_path: Path):
    for text in ("{", "[1, 2]", "5", "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        attempt(mforce, tmp_path, r"config\.json: is not the config of a run", "train", T2I, "--workdir", tmp_path)


def test_workdir_with_checkpoints_of_nobody(mforce: Command, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    attempt(mforce, tmp_path, r"holds checkpoints without a config\.json", "train", T2I, "--workdir", tmp_path)


def test_demo_workdir_with_broken_phases(mforce: Command, tmp_path: Path):
    for text in ("{", "[1, 2]"):
        (tmp_path / "phases.json").write_text(text)
        attempt(mforce, tmp_path, r"phases\.json: is not a record of phases", "demo", "--workdir", tmp_path)


# ---- Folders of one's own


def lay_out(root: Path, **depth: np.ndarray) -> Path:
    """A folder of pictures named as the depth maps given, 24 x 32; an empty array stands for no depth."""
    (root / "images").mkdir(parents=True)
    (root / "depth").mkdir()
    for name, array in depth.items():
        Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(root / "images" / f"{name}.png")
        if array.size:
            np.save(root / "depth" / f"{name}.npy", array)
    return root


GOOD = np.ones((24, 32), np.float32)
SPOILT = {
    "another_aspect": (np.ones((24, 24)), r"last\.npy: depth has another aspect \(24 x 24, the upright picture 32 x 24\)"),
    "negative": (GOOD - 2, r"last\.npy: depth holds negative values \(down to -1\)"),
    "nothing_valid": (GOOD * np.nan, r"last\.npy: holds no valid depth \(all is 0, NaN or inf\)"),
    "zeros": (GOOD * 0, r"last\.npy: holds no valid depth"),
    "not_a_map": (np.ones(24), r"last\.npy: has shape \(24,\), not \[h w\]"),
}


@pytest.mark.parametrize(("array", "told"), SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("workers", [0, 1])
def test_folder_with_a_wrong_last_file(mforce: Command, tmp_path: Path, array, told, workers):
    root = lay_out(tmp_path / "mine", first=GOOD, last=np.asarray(array, np.float32))
    here = ["--workdir", tmp_path / "new", f"--config.data.workers={workers}", *SMALL]
    attempt(mforce, tmp_path, told, "train", FOLDER, f"--config.data.root={root}", *here)


def test_folder_that_is_wrong_as_a_whole(mforce: Command, desk: Path):
    def train(told: str, root: object, *more: str) -> None:
        attempt(mforce, desk, told, "train", FOLDER, f"--config.data.root={root}", *more, *SMALL, "--workdir", desk / "new")

    train(r"data\.root is empty; name the folder", "")
    train(r"no such folder", desk / "nowhere")
    train(r"no such folder", desk / "file")
    train(r"empty: no picture in this folder", desk / "empty")
    train(r"bare: no picture here has depth; put depth/", lay_out(desk / "bare", one=GOOD[:0]))
    root = lay_out(desk / "counts", one=GOOD)
    (root / "depth/one.npy").unlink()
    shutil.copy(desk / "depth16.png", root / "depth/one.png")
    train(r"one\.png: the unit of its counts is not known; state depth_scale", root)
    train(r"data\.depth_scale is -1", root, "--config.data.depth_scale=-1")
    shutil.copy(desk / "depth8.png", root / "depth/one.png")
    train(r"one\.png: is an 8-bit picture, not 16-bit depth", root, "--config.data.depth_scale=0.001")
    shutil.copy(desk / "truncated.jpg", root / "images/one.jpg")
    (root / "images/one.png").unlink()
    train(r"one\.jpg: cannot be read as a picture", root, "--config.data.depth_scale=0.001")


def test_folder_spoilt_after_the_first_look(mforce: Command, tmp_path: Path):
    """The line then comes out of a loader process; the run goes on once the file is mended."""
    root = lay_out(tmp_path / "mine", first=GOOD, last=GOOD)
    spec, small = f"{CONFIGS / 'folder.py'}:phase=forcing,distill=False", [text.removeprefix("--config.") for text in SMALL]
    overrides = {"data.root": str(root), "train.batch": "2", **dict(text.split("=") for text in small)}
    claim(tmp_path / "run", config_file.load(spec, overrides))  # as killed before its first checkpoint
    np.save(root / "depth/last.npy", -GOOD)
    arguments = [f"--config.{key}={value}" for key, value in overrides.items()]
    done = mforce("train", FOLDER, *arguments, "--workdir", tmp_path / "run")
    refused(done, r"last\.npy: depth holds negative values")


# ---- Samples

OUT = "--out={desk}/out"
I2D = ["--mode=i2d", OUT]
D2I = ["--mode=d2i", OUT]
SAMPLE = {
    "unknown_mode": (["--mode=i2i", OUT], r"unknown mode 'i2i'; choose one of t2i, joint, i2d, d2i, partial"),
    "image_for_joint": (["--mode=joint", OUT, "--image={desk}/photo.jpg"], r"mode joint has no use for --image"),
    "depth_for_i2d": ([*I2D, "--image={desk}/photo.jpg", "--depth={desk}/depth.npy"], r"mode i2d has no use for --depth"),
    "no_image": (I2D, r"mode i2d starts from a file; name it with --image FILE"),
    "no_depth": (["--mode=partial", OUT], r"mode partial starts from a file; name it with --depth FILE"),
    "idle_refine": ([*I2D, "--image={desk}/photo.jpg", "--refine"], r"mode i2d has no use for --refine"),
    "idle_alpha": ([*D2I, "--depth={desk}/depth.npy", "--log2-alpha=2"], r"mode d2i has no use for --log2-alpha"),
    "idle_scale": ([*I2D, "--image={desk}/photo.jpg", "--depth-scale=0.1"], r"mode i2d has no use for --depth-scale"),
    "missing_image": ([*I2D, "--image={desk}/none.jpg"], r"none\.jpg: no such file"),
    "image_is_a_folder": ([*I2D, "--image={desk}/empty"], r"empty: cannot be read as a picture"),
    "truncated_image": ([*I2D, "--image={desk}/truncated.jpg"], r"truncated\.jpg: cannot be read as a picture"),
    "text_image": ([*I2D, "--image={desk}/text.jpg"], r"text\.jpg: cannot be read as a picture"),
    "missing_depth": ([*D2I, "--depth={desk}/none.npy"], r"none\.npy: no such file"),
    "negative_depth": ([*D2I, "--depth={desk}/negative.npy"], r"depth holds negative values \(down to -1\)"),
    "nothing_valid": ([*D2I, "--depth={desk}/all_nan.npy"], r"holds no valid depth"),
    "zeros": ([*D2I, "--depth={desk}/zeros.npy"], r"holds no valid depth"),
    "flat": ([*D2I, "--depth={desk}/flat.npy"], r"has shape \(768,\), not \[h w\]"),
    "words": ([*D2I, "--depth={desk}/words.npy"], r"holds <U3, not numbers of depth"),
    "pickle": ([*D2I, "--depth={desk}/objects.npy"], r"objects\.npy: cannot be read as an array of numbers"),
    "cropped_away": ([*D2I, "--depth={desk}/edges.npy"], r"its centre square holds no valid depth; use --fit stretch"),
    "no_scale": ([*D2I, "--depth={desk}/depth16.png"], r"the unit of its counts is not known; state the depth scale"),
    "wrong_scale": ([*D2I, "--depth={desk}/depth16.png", "--depth-scale=-1"], r"depth scale is -1"),
    "eight_bits": ([*D2I, "--depth={desk}/depth8.png", "--depth-scale=0.001"], r"is an 8-bit picture, not 16-bit depth"),
    "png_of_zeros": ([*D2I, "--depth={desk}/zeros16.png", "--depth-scale=0.001"], r"holds no valid depth"),
    "depth_is_a_photo": ([*D2I, "--depth={desk}/photo.jpg"], r"depth in a \.jpg file is not understood"),
    "out_is_a_file": (["--mode=joint", "--out={desk}/file"], r"file: is a file; choose another --out"),
    "out_below_a_file": (["--mode=joint", "--out={desk}/file/out"], r"file: is a file; choose another --out"),
    "too_many": (["--mode=joint", OUT, "--n=1000000000"], r"1000000000 examples asked for; ask for at most 64"),
    "negative_seed": (["--mode=joint", OUT, "--seed=-1"], r"seed is -1; it must be at least 0"),
    "large_seed": (["--mode=joint", OUT, "--seed=99999999999999999999"], r"it must be below 2\*\*32"),
    "wild_alpha": (["--mode=joint", OUT, "--log2-alpha=5000"], r"sample\.log2_alpha is 5000"),
}


@pytest.mark.parametrize(("arguments", "told"), SAMPLE.values(), ids=SAMPLE)
def test_sample(mforce: Command, desk: Path, forcing_run: Path, arguments, told):
    filled = [argument.replace("{desk}", str(desk)) for argument in arguments]
    attempt(mforce, desk, told, "sample", "--checkpoint", forcing_run, *filled)


@pytest.mark.parametrize("mode", ["joint", "i2d", "d2i", "partial"])
def test_sample_without_depth_in_the_checkpoint(mforce: Command, desk: Path, t2i_run: Path, mode: str):
    given = {
        "i2d": ["--image", desk / "photo.jpg"],
        "d2i": ["--depth", desk / "depth.npy"],
        "partial": ["--depth", desk / "depth.npy"],
    }
    told = rf"mode {mode} needs (depth|a second modality), this checkpoint has image only; use a checkpoint of the forcing phase"
    attempt(mforce, desk, told, "sample", "--checkpoint", t2i_run, "--mode", mode, "--out", desk / "out", *given.get(mode, []))


# ---- Checkpoints

READERS = {
    "sample": ["sample", "--mode=joint", "--out={out}"],
    "evaluate": ["evaluate", "--out={out}"],
    "export": ["export", "--out={out}"],
}


def read_refused(mforce: Command, desk: Path, told: str, run: Path, readers=("sample", "evaluate", "export")) -> None:
    for reader in readers:
        arguments = [argument.replace("{out}", str(desk / "out")) for argument in READERS[reader]]
        attempt(mforce, desk, told, *arguments, "--checkpoint", run)


def test_checkpoint_that_is_none(mforce: Command, desk: Path):
    read_refused(mforce, desk, r"nowhere: no such checkpoint; give a workdir", desk / "nowhere")
    read_refused(mforce, desk, r"empty: holds no checkpoint; give a workdir", desk / "empty")
    read_refused(mforce, desk, r"file: holds no checkpoint", desk / "file")


def changed(weights: dict, change: str) -> dict:
    """Weights with one of them gone, more, or of another shape."""
    flat = flatten(weights)
    path = next(p for p in sorted(flat) if p.startswith("head/image") and flat[p].ndim == 2)
    if change == "missing":
        del flat[path]
    elif change == "extra":
        flat["head/normals/w"] = np.zeros((2, 2), np.float32)
    else:
        flat[path] = np.zeros((3, 5), np.float32)
    return unflatten(flat)


@pytest.mark.parametrize("change", ["missing", "extra", "misshaped"])
def test_checkpoint_of_other_weights(mforce: Command, desk: Path, change: str):
    weights = changed(tiny.network(tiny.forcing())[1], change)
    run = save(desk / "run", tiny.forcing(), tiny.network(tiny.forcing())[1], ema=jax.tree.map(np.asarray, weights))
    told = {
        "missing": r"run: the weights do not fit \(missing: head/image/\S+\)",
        "extra": r"run: the weights do not fit \(extra: head/normals/w\)",
        "misshaped": r"run: the weights do not fit \(misshaped: head/image/\S+ \(3, 5\) instead of",
    }[change]
    read_refused(mforce, desk, told, run)
    if change == "missing":
        again = ["train", FORCING, f"--config.train.init={run}", *SMALL, "--workdir", desk / "new"]
        attempt(mforce, desk, r"run: the weights do not fit", *again)


def test_checkpoint_of_text_to_image_needs_its_new_modalities_named(mforce: Command, desk: Path, t2i_run: Path):
    arguments = ["train", FORCING, f"--config.train.init={t2i_run}", "--config.train.new=()", *SMALL, "--workdir", desk / "new"]
    attempt(mforce, desk, r"the weights do not fit \(missing: ", *arguments)


def damage_meta(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        path = step / "meta/metadata"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def cut_largest(step: Path) -> None:
    largest = max((step / "ema").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[:100])


def remove_arrays(step: Path) -> None:
    for path in (step / "ema").rglob("d/*"):
        path.unlink()


DAMAGE = {
    "no_weights": (lambda step: shutil.rmtree(step / "ema"), r"cannot be read"),
    "no_arrays": (remove_arrays, r"cannot be read"),
    "cut_array": (cut_largest, r"cannot be read"),
    "no_listing": (lambda step: (step / "ema/_METADATA").unlink(), r"cannot be read"),
    "cut_meta": (lambda step: (step / "meta/metadata").write_text('{"format'), r"cannot be read"),
    "meta_of_another_kind": (damage_meta(lambda meta: [1, 2]), r"damaged|cannot be read"),
    "meta_without_config": (damage_meta(lambda meta: {"format": meta["format"]}), r"damaged"),
    "another_format": (damage_meta(lambda meta: meta | {"format": 99}), r"is of format 99, this version reads 1"),
    "unknown_key": (damage_meta(lambda meta: meta | {"config": meta["config"] | {"colour": 1}}), r"unknown config key 'colour'"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGE.values(), ids=DAMAGE)
def test_checkpoint_that_is_damaged(mforce: Command, desk: Path, forcing_run: Path, damage, told):
    run = shutil.copytree(forcing_run, desk / "run")
    damage(run / "checkpoints/0")
    read_refused(mforce, desk, told, run, readers=("sample",))


# ---- Export and evaluate


def test_export_over_something(mforce: Command, desk: Path, forcing_run: Path):
    for out in ("file", "empty"):
        attempt(
            mforce,
            desk,
            rf"{out}: already exists; name a folder that does not",
            "export",
            "--checkpoint",
            forcing_run,
            "--out",
            desk / out,
        )
    attempt(
        mforce,
        desk,
        r"file: is a file; choose another --out",
        "export",
        "--checkpoint",
        forcing_run,
        "--out",
        desk / "file" / "below",
    )


def test_evaluate_what_cannot_be(mforce: Command, desk: Path, forcing_run: Path, t2i_run: Path):
    attempt(mforce, desk, r"mode i2d needs a second modality", "evaluate", "--checkpoint", t2i_run)
    attempt(mforce, desk, r"empty: is a folder; name a file", "evaluate", "--checkpoint", forcing_run, "--out", desk / "empty")
    count = tiny.forcing().data.count
    told = rf"{count + 1} held-out examples asked for, there are {count}"
    attempt(mforce, desk, told, "evaluate", "--checkpoint", forcing_run, "--examples", count + 1)


EVALUATE = {
    "root_missing": (["--benchmark", "nyuv2"], r"--root is missing"),
    "unknown_set": (["--benchmark", "nyu", "--root", "{desk}"], r"did you mean nyuv2\?"),
    "no_set_there": (["--benchmark", "kitti", "--root", "{desk}/empty"], r"empty: holds no \.index\.txt"),
    "no_root": (["--benchmark", "kitti", "--root", "{desk}/none"], r"none: no such folder"),
    "out_is_a_file": (
        ["--benchmark", "kitti", "--root", "{desk}", "--out", "{desk}/file"],
        r"file: is a file; choose another --out",
    ),
    "unknown_view": (["--benchmark", "kitti", "--root", "{desk}", "--view", "big"], r"unknown view 'big'"),
    "two_runs": (["--benchmark", "kitti", "--sweep", "log2_alpha:0..1"], r"two runs"),
    "protocol_for_records": (["--protocol", "moge"], r"--protocol is not for a checkpoint's own records"),
    "sweep_of_something": (["--sweep", "beta:0..1"], r"sweep of 'beta' is not known"),
    "sweep_backwards": (["--sweep", "log2_alpha:5..1"], r"holds no such numbers"),
    "no_judge": (["--estimator", "nobody"], r"neither a folder nor a function"),
    "judge_without_maps": (["--estimator", "{desk}/empty"], r"maps are missing, the first is d2i/0000"),
    "no_module": (["--estimator", "no_such_module:f"], r"no_such_module: cannot be imported"),
    "negative_seed": (["--seed=-1"], r"seed is -1; it must be at least 0"),
}


@pytest.mark.parametrize(("arguments", "told"), EVALUATE.values(), ids=EVALUATE)
def test_evaluate(mforce: Command, desk: Path, forcing_run: Path, arguments, told):
    arguments = [argument.format(desk=desk) for argument in arguments]
    attempt(mforce, desk, told, "evaluate", "--checkpoint", forcing_run, *arguments)


# ---- As a person sees it: in a process of its own, where libraries may have a word too


def test_the_line_is_alone_in_a_process_of_its_own(desk: Path, forcing_run: Path):
    before = contents(desk)
    refused(process("train", T2I, "--config.train.stpes=5", "--workdir", desk / "new"), r"did you mean train\.steps")
    refused(
        process("sample", "--checkpoint", forcing_run, *I2D[:1], f"--out={desk}/out", f"--image={desk}/text.jpg"), r"text\.jpg"
    )
    assert contents(desk) == before
    run = shutil.copytree(forcing_run, desk / "run")
    remove_arrays(run / "checkpoints/0")
    refused(process("sample", "--checkpoint", run, "--mode=joint", f"--out={desk}/out"), r"cannot be read")
    assert not (desk / "out").exists()


def test_unknown_pixels_are_no_mistake(mforce: Command, desk: Path, forcing_run: Path):
    done = mforce("sample", "--checkpoint", forcing_run, "--mode=d2i", f"--out={desk}/out", f"--depth={desk}/with_nan.npy")
    assert done.code == 0, done.err
    assert done.err == ""
    assert re.search(r"d2i_000_image\.png\n", done.out)
    with Image.open(io.BytesIO((desk / "out/d2i_000_image.png").read_bytes())) as opened:
        assert opened.size == (16, 16)
