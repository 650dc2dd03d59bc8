"""User errors of sample, export and evaluate: one line, exit code 2, nothing written."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from tests import tiny
from tests.runs import CONFIGS, Command, attempt, contents, process, refused

FORCING = f"--config={CONFIGS / 'demo.py'}:phase=forcing"

# ---- Samples

OUT = "--out={sample_dir}/out"
I2D = ["--mode=i2d", OUT]
D2I = ["--mode=d2i", OUT]
SAMPLE = {
    "unknown_mode": (
        ["--mode=i2i", OUT],
        r"unknown mode 'i2i'; choose one of t2i, joint, i2d, d2i, partial",
    ),
    "image_for_joint": (
        ["--mode=joint", OUT, "--image={sample_dir}/photo.jpg"],
        r"mode joint does not take --image",
    ),
    "depth_for_i2d": (
        [*I2D, "--image={sample_dir}/photo.jpg", "--depth={sample_dir}/depth.npy"],
        r"mode i2d does not take --depth",
    ),
    "no_image": (I2D, r"mode i2d needs an input; name it with --image FILE, or a folder"),
    "no_depth": (
        ["--mode=partial", OUT],
        r"mode partial needs an input; name it with --depth FILE, or a folder",
    ),
    "idle_refine": (
        [*I2D, "--image={sample_dir}/photo.jpg", "--refine"],
        r"mode i2d does not take --refine",
    ),
    "idle_alpha": (
        [*D2I, "--depth={sample_dir}/depth.npy", "--log2-alpha=2"],
        r"mode d2i does not take --log2-alpha",
    ),
    "idle_scale": (
        [*I2D, "--image={sample_dir}/photo.jpg", "--depth-scale=0.1"],
        r"mode i2d does not take --depth-scale",
    ),
    "idle_maximum": (
        [*I2D, "--image={sample_dir}/photo.jpg", "--depth-max=9"],
        r"mode i2d does not take --depth-max",
    ),
    "negative_maximum": (
        [*D2I, "--depth={sample_dir}/depth16.png", "--depth-scale=0.001", "--depth-max=-9"],
        r"it must be a positive number, in units of depth",
    ),
    "missing_image": ([*I2D, "--image={sample_dir}/none.jpg"], r"none\.jpg: no such file"),
    "image_is_a_folder": (
        [*I2D, "--image={sample_dir}/empty"],
        r"empty: no file to work on; known kinds are \.jpg",
    ),
    "truncated_image": (
        [*I2D, "--image={sample_dir}/truncated.jpg"],
        r"truncated\.jpg: cannot be read as an image",
    ),
    "text_image": (
        [*I2D, "--image={sample_dir}/text.jpg"],
        r"text\.jpg: cannot be read as an image",
    ),
    "missing_depth": ([*D2I, "--depth={sample_dir}/none.npy"], r"none\.npy: no such file"),
    "negative_depth": (
        [*D2I, "--depth={sample_dir}/negative.npy"],
        r"depth holds negative values \(down to -1\)",
    ),
    "nothing_valid": ([*D2I, "--depth={sample_dir}/all_nan.npy"], r"holds no valid depth"),
    "zeros": ([*D2I, "--depth={sample_dir}/zeros.npy"], r"holds no valid depth"),
    "flat": ([*D2I, "--depth={sample_dir}/flat.npy"], r"has shape \(768,\), not \[h w\]"),
    "words": ([*D2I, "--depth={sample_dir}/words.npy"], r"holds <U3, not numbers of depth"),
    "pickle": (
        [*D2I, "--depth={sample_dir}/objects.npy"],
        r"objects\.npy: cannot be read as a .npy of numbers",
    ),
    "cropped_away": (
        [*D2I, "--depth={sample_dir}/edges.npy", "--fit=crop"],
        r"edges\.npy: its center holds no valid depth; use another fit, such as letterbox",
    ),
    "no_scale": (
        [*D2I, "--depth={sample_dir}/depth16.png"],
        r"the unit of its counts is not known; state the depth scale",
    ),
    "wrong_scale": (
        [*D2I, "--depth={sample_dir}/depth16.png", "--depth-scale=-1"],
        r"depth scale is -1",
    ),
    "eight_bits": (
        [*D2I, "--depth={sample_dir}/depth8.png", "--depth-scale=0.001"],
        r"is an 8-bit image, not 16-bit depth",
    ),
    "png_of_zeros": (
        [*D2I, "--depth={sample_dir}/zeros16.png", "--depth-scale=0.001"],
        r"holds no valid depth",
    ),
    "depth_is_a_photo": (
        [*D2I, "--depth={sample_dir}/photo.jpg"],
        r"depth in a \.jpg file is not understood",
    ),
    "out_is_a_file": (
        ["--mode=joint", "--out={sample_dir}/file"],
        r"file: is a file; choose another --out",
    ),
    "out_below_a_file": (
        ["--mode=joint", "--out={sample_dir}/file/out"],
        r"file: is a file; choose another --out",
    ),
    "too_many": (
        ["--mode=joint", OUT, "--n=1000000000"],
        r"1000000000 examples asked for; ask for at most 64",
    ),
    "negative_seed": (["--mode=joint", OUT, "--seed=-1"], r"seed is -1; it must be at least 0"),
    "large_seed": (
        ["--mode=joint", OUT, "--seed=99999999999999999999"],
        r"it must be below 2\*\*32",
    ),
    "wild_alpha": (["--mode=joint", OUT, "--log2-alpha=5000"], r"sample\.log2_alpha is 5000"),
}


@pytest.mark.parametrize(("arguments", "message"), SAMPLE.values(), ids=SAMPLE)
def test_sample(mforce: Command, sample_dir: Path, forcing_run: Path, arguments, message):
    filled = [argument.replace("{sample_dir}", str(sample_dir)) for argument in arguments]
    attempt(mforce, sample_dir, message, "sample", "--checkpoint", forcing_run, *filled)


@pytest.mark.parametrize("mode", ["joint", "i2d", "d2i", "partial"])
def test_sample_needs_depth_in_the_checkpoint(
    mforce: Command, sample_dir: Path, t2i_run: Path, mode: str
):
    given = {
        "i2d": ["--image", sample_dir / "photo.jpg"],
        "d2i": ["--depth", sample_dir / "depth.npy"],
        "partial": ["--depth", sample_dir / "depth.npy"],
    }
    needs = rf"mode {mode} needs (depth|a second modality), this network has image only"
    message = f"{needs}; use a checkpoint of the forcing phase"
    attempt(
        mforce,
        sample_dir,
        message,
        "sample",
        "--checkpoint",
        t2i_run,
        "--mode",
        mode,
        "--out",
        sample_dir / "out",
        *given.get(mode, []),
    )


# ---- Export and evaluate


def test_export_over_an_existing_folder_is_refused(
    mforce: Command, sample_dir: Path, forcing_run: Path
):
    for out in ("file", "empty"):
        attempt(
            mforce,
            sample_dir,
            rf"{out}: already exists; name a folder that does not",
            "export",
            "--checkpoint",
            forcing_run,
            "--out",
            sample_dir / out,
        )
    attempt(
        mforce,
        sample_dir,
        r"file: is a file; choose another --out",
        "export",
        "--checkpoint",
        forcing_run,
        "--out",
        sample_dir / "file" / "below",
    )


def test_impossible_evaluations_are_refused(
    mforce: Command, sample_dir: Path, forcing_run: Path, t2i_run: Path
):
    attempt(
        mforce, sample_dir, r"mode i2d needs a second modality", "evaluate", "--checkpoint", t2i_run
    )
    attempt(
        mforce,
        sample_dir,
        r"empty: is a folder; name a file",
        "evaluate",
        "--checkpoint",
        forcing_run,
        "--out",
        sample_dir / "empty",
    )
    count = tiny.forcing().data.num_scenes
    message = rf"{count + 1} held-out examples requested, {count} available"
    attempt(
        mforce,
        sample_dir,
        message,
        "evaluate",
        "--checkpoint",
        forcing_run,
        "--examples",
        count + 1,
    )


SWEEP = "--trajectory-sweep=log2_alpha:"
EVALUATE = {
    "root_missing": (["--benchmark", "nyuv2"], r"--root is missing"),
    "unknown_set": (["--benchmark", "nyu", "--root", "{sample_dir}"], r"did you mean nyuv2\?"),
    "no_set_there": (
        ["--benchmark", "kitti", "--root", "{sample_dir}/empty"],
        r"empty: contains no \.index\.txt",
    ),
    "no_root": (["--benchmark", "kitti", "--root", "{sample_dir}/none"], r"none: no such folder"),
    "out_is_a_file": (
        ["--benchmark", "kitti", "--root", "{sample_dir}", "--out", "{sample_dir}/file"],
        r"file: is a file; choose another --out",
    ),
    "unknown_view": (
        ["--benchmark", "kitti", "--root", "{sample_dir}", "--view", "big"],
        r"unknown view 'big'",
    ),
    "two_runs": (["--benchmark", "kitti", SWEEP + "0..1"], "cannot be combined with --trajec"),
    "protocol_for_records": (
        ["--protocol", "moge"],
        r"--protocol is not for a checkpoint's own records",
    ),
    "unknown_sweep": (["--trajectory-sweep=beta:0..1"], r"cannot sweep 'beta'"),
    "falling_sweep": ([SWEEP + "5..1"], r"is not a rising range or a list of numbers"),
    "unknown_estimator": (["--estimator", "nobody"], r"neither a folder nor a function"),
    "estimator_without_maps": (
        ["--estimator", "{sample_dir}/empty"],
        r"maps are missing, the first is d2i/0000",
    ),
    "no_module": (["--estimator", "no_such_module:f"], r"no_such_module: cannot be imported"),
    "negative_seed": (["--seed=-1"], r"seed is -1; it must be at least 0"),
}


@pytest.mark.parametrize(("arguments", "message"), EVALUATE.values(), ids=EVALUATE)
def test_evaluate(mforce: Command, sample_dir: Path, forcing_run: Path, arguments, message):
    arguments = [argument.format(sample_dir=sample_dir) for argument in arguments]
    attempt(mforce, sample_dir, message, "evaluate", "--checkpoint", forcing_run, *arguments)


# ---- In a new process, where libraries may print too


def test_error_is_one_line_in_a_real_process(sample_dir: Path, forcing_run: Path):
    before = contents(sample_dir)
    refused(
        process("train", FORCING, "--config.train.stpes=5", "--workdir", sample_dir / "new"),
        r"did you mean train\.steps",
    )
    refused(
        process(
            "sample",
            "--checkpoint",
            forcing_run,
            *I2D[:1],
            f"--out={sample_dir}/out",
            f"--image={sample_dir}/text.jpg",
        ),
        r"text\.jpg",
    )
    assert contents(sample_dir) == before


def test_invalid_pixels_are_accepted(mforce: Command, sample_dir: Path, forcing_run: Path):
    done = mforce(
        "sample",
        "--checkpoint",
        forcing_run,
        "--mode=d2i",
        f"--out={sample_dir}/out",
        f"--depth={sample_dir}/with_nan.npy",
    )
    assert done.code == 0, done.err
    assert done.err == ""
    assert re.search(r"with_nan_image\.png\n", done.out)
    with Image.open(io.BytesIO((sample_dir / "out/with_nan_image.png").read_bytes())) as opened:
        assert opened.size == (32, 24)
