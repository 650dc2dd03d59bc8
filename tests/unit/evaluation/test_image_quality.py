"""Scores of generated images, with random features in place of the published networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.evaluation import image_quality
from modality_forcing.evaluation.heldout import load_held_out
from modality_forcing.evaluation.image_distances import cmmd, frechet_distance, kernel_distance
from modality_forcing.generator import Generator
from modality_forcing.train import inputs
from modality_forcing.viz.images import to_u8
from tests import frozen
from tests.runs import refused


def features(images: np.ndarray) -> np.ndarray:
    """Random projections of the first pixels."""
    first = images[:, :8, :8].reshape(len(images), -1).astype(np.float32) / 255
    return first @ np.random.default_rng(0).normal(size=(first.shape[1], 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def opened(monkeypatch) -> list[tuple[str, str]]:
    calls = []

    def stub(kind: str, where: str):
        calls.append((kind, where))
        return features

    def stub_texts(where: str):
        calls.append(("texts", where))
        return lambda texts: np.array([[len(x), 1, 2, 3, 4, 5] for x in texts], np.float32)

    monkeypatch.setattr(image_quality, "open_features", stub)
    monkeypatch.setattr(image_quality, "open_texts", stub_texts)
    return calls


def write(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


IMAGES = np.random.default_rng(1).integers(0, 256, (2, 5, 12, 16, 3), np.uint8)


def test_images_of_a_checkpoint_are_compared_with_its_records(mforce, forcing_run: Path, opened):
    options = ["--metrics", "fid,kid,cmmd", "--kid-subset", 3, "--inception", "i", "--json"]
    done = mforce("evaluate", "--checkpoint", forcing_run, "--steps", 2, *options)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert opened == [("clip", image_quality.CLIP), ("inception", "i")]
    generator = Generator.from_checkpoint(forcing_run, sample={"steps": 2})
    data = load_held_out(generator.config)
    batch = {"depth": data.depth, "valid": data.valid}
    run = {"batch": batch, "seed": generator.config.seed}
    made = features(to_u8(generator.run("d2i", data.captions, **run).images["image"]))
    real = features(data.image)
    kid, std = kernel_distance(made, real, subset_size=3)
    expected = {"fid": frechet_distance(made, real), "kid": kid, "kid_std": std}
    expected["cmmd"] = cmmd(made, real)
    assert result["metrics"] == pytest.approx(expected, rel=0.02)  # batches of 2 round otherwise
    assert (result["mode"], result["images"], result["size"]) == ("d2i", 4, 16)
    assert result["sampling"]["steps"] == 2 and result["reference"] == "the records"


def test_a_folder_is_the_reference_at_the_size_of_the_network(
    mforce, t2i_run: Path, tmp_path: Path
):
    folder = write(tmp_path / "real" / "below", IMAGES[0])
    options = ["--mode", "t2i", "--metrics", "fid", "--inception", "i", "--reference", tmp_path]
    done = mforce("evaluate", "--checkpoint", t2i_run, "--steps", 1, *options)
    assert done.code == 0 and "fid" in done.out and "compare equal numbers" in done.out
    files = image_quality.image_files(tmp_path)
    assert files == sorted(folder.iterdir())
    (batch,) = image_quality.read_folder(files, 16)
    assert batch.shape == (5, 16, 16, 3)


def test_records_are_those_of_a_folder_or_of_a_prepared_data_set(
    mforce, forcing_run: Path, tmp_path: Path
):
    folder = write(tmp_path / "folder" / "images", np.concatenate(IMAGES))
    prepared = frozen.prepared(tmp_path / "prepared", count=5)
    options = ["--metrics", "fid", "--inception", "i", "--mode", "joint", "--steps", 1, "--json"]
    base = ["evaluate", "--checkpoint", forcing_run, *options]
    for records, count in ((folder.parent, 10), (prepared, 5)):
        done = mforce(*base, "--records", records, "--examples", count)
        assert done.code == 0, done.err
        assert json.loads(done.out)["images"] == count
        done = mforce(*base, "--records", records, "--examples", count + 1)
        refused(done, f"{count + 1} held-out examples requested, {count} available")
    refused(mforce(*base, "--records", tmp_path / "none"), "none: no such")
    done = mforce(*base, "--mode", "d2i", "--records", folder.parent, "--examples", 10)
    refused(done, "has no depth; choose another --mode")


def test_two_folders_are_compared_as_they_are(mforce, tmp_path: Path):
    one, two = (write(tmp_path / name, x) for name, x in zip("ab", IMAGES, strict=True))
    base = ["evaluate", "--metrics", "fid", "--inception", "i", "--json", "--pred", one]
    done = mforce(*base, "--target", two)
    expected = frechet_distance(features(IMAGES[0]), features(IMAGES[1]))
    assert json.loads(done.out)["metrics"] == pytest.approx({"fid": expected})
    same = json.loads(mforce(*base, "--target", one).out)["metrics"]["fid"]
    assert same == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "fid,is"], "unknown metric 'is'; choose from fid, kid, cmmd"),
        (["--metrics", "fid", "--clip", "x"], "no metric of fid needs --clip"),
        (["--metrics", "fid", "--kid-subset", "5"], "--kid-subset is for kid"),
        (["--metrics", "kid"], "KID takes subsets of 1000 images, a set has 5"),
        (["--metrics", "fid", "--mode", "t2i"], "--mode is not for folders of images"),
        (["--metrics", "fid", "--benchmark", "nyuv2"], "cannot be combined with --benchmark"),
        (["--metrics", "fid", "--target", "{empty}"], "empty: no images; known kinds are .jpg"),
        (["--metrics", "fid", "--target", "{none}"], "none: no such"),
        (["--metrics", "fid", "--target", "{odd}"], "has 16 x 8 pixels, .*16 x 12"),
        (["--inception", "i"], "--inception is not for arrays"),
    ],
)
def test_wrong_requests_are_one_line(mforce, tmp_path: Path, options: list[str], message: str):
    one = write(tmp_path / "a", IMAGES[0])
    odd = write(tmp_path / "odd", IMAGES[1])
    Image.fromarray(IMAGES[0, 0, :8]).save(odd / "9.png")
    (tmp_path / "empty").mkdir()
    folders = {"empty": tmp_path / "empty", "none": tmp_path / "none", "odd": odd}
    more = [option.format(**folders) for option in options]
    refused(mforce("evaluate", "--pred", one, "--target", one, *more), message)


def test_what_cannot_be_scored_is_refused_before_an_image_is_made(forcing_run: Path, monkeypatch):
    generator = Generator.from_checkpoint(forcing_run)
    monkeypatch.setattr(generator, "run", None)  # it is not called
    with pytest.raises(UserError, match="KID takes subsets of 1000 images, a set has 4"):
        metrics = image_quality.open_metrics("kid", "i")
        image_quality.evaluate_checkpoint(generator, "d2i", metrics)
    metrics = image_quality.open_metrics("fid", "i")
    with pytest.raises(UserError, match="mode 'i2d' makes no image to score; choose t2i"):
        image_quality.evaluate_checkpoint(generator, "i2d", metrics)


def test_images_that_are_not_finite_are_named(forcing_run: Path, monkeypatch):
    generator = Generator.from_checkpoint(forcing_run, sample={"steps": 1})
    run = generator.run

    def broken(*arguments, **options):
        made = run(*arguments, **options)
        return replace(made, images={n: x * np.nan for n, x in made.images.items()})

    monkeypatch.setattr(generator, "run", broken)
    with pytest.raises(
        UserError, match=r"held-out record \d+ \(.*\): mode \w+ generates image with .* not finite"
    ):
        image_quality.evaluate_checkpoint(
            generator, "joint", image_quality.open_metrics("fid", "i")
        )


def test_clip_score_compares_images_with_their_captions(mforce, t2i_run: Path, opened):
    options = ["--metrics", "clip_score", "--clip", "c", "--mode", "t2i", "--json"]
    done = mforce("evaluate", "--checkpoint", t2i_run, "--steps", 1, *options)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert opened == [("clip", "c"), ("texts", "c")]
    assert result["reference"] == "the captions" and result["features"] == {"clip": "c"}
    generator = Generator.from_checkpoint(t2i_run, sample={"steps": 1})
    captions = [inputs.open_source(generator.config, "eval")[i].caption for i in range(4)]
    made = generator.run("t2i", captions, seed=generator.config.seed).images["image"]
    a = features(to_u8(made)).astype(np.float64)
    b = np.array([[len(x), 1, 2, 3, 4, 5] for x in captions], np.float64)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    expected = 100 * np.maximum(cosines, 0).mean()
    assert result["metrics"] == {"clip_score": pytest.approx(expected, rel=0.02)}


def test_clip_score_without_captions_is_refused(mforce, t2i_run: Path, tmp_path: Path):
    folder = write(tmp_path / "a", IMAGES[0])
    pair = ["--pred", folder, "--target", folder]
    done = mforce("evaluate", *pair, "--metrics", "clip_score")
    refused(done, "clip_score needs captions, and folders of images have none; leave it out")
    more = ["--mode", "t2i", "--metrics", "clip_score", "--reference", folder]
    refused(mforce("evaluate", "--checkpoint", t2i_run, *more), "does not take --reference")
