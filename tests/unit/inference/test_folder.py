"""Folders of photographs: awkward files, interrupted jobs, bad files, limits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.inference import folder as jobs
from modality_forcing.inference import one_file
from modality_forcing.inference.folder import Summary, run_job
from modality_forcing.inference.job import Job
from modality_forcing.inference.metric import ScaleSource
from modality_forcing.inference.photos import PHOTO_SUFFIXES, find_items
from modality_forcing.inference.pipeline import Pipeline
from modality_forcing.paths import list_dir, read_bytes, write_file
from tests.runs import contents

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 10, 3), np.uint8)
SIZES = {f"exif{i}.jpg": (6, 10) if i < 5 else (10, 6) for i in range(1, 9)}


@pytest.fixture(scope="module")
def pipeline(forcing_run: Path) -> Pipeline:
    return Pipeline.from_pretrained(forcing_run, batch=4)


@pytest.fixture
def job(pipeline: Pipeline, tmp_path: Path) -> Job:
    return Job("i2d", tmp_path / "out", pipeline.sampling("i2d", steps=1), formats=("npy",))


def run(pipeline: Pipeline, photos: Path, job: Job) -> Summary:
    return run_job(pipeline, find_items([photos], PHOTO_SUFFIXES, "--image", job.out), job)


def photos(root: Path, count: int) -> Path:
    root.mkdir()
    for i in range(count):
        pixels = RNG.integers(0, 256, (5 + i, 9, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"p{i}.png")
    return root


def awkward(root: Path) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Fills a folder; returns the sizes of the maps of good files, and the names of bad ones."""
    (root / "nested/deeper").mkdir(parents=True)
    image, good = Image.fromarray(PHOTO), dict(SIZES)
    for i in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = i
        image.save(root / f"exif{i}.jpg", exif=exif)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image.convert(mode).save(root / f"mode {mode}.png")
        good[f"mode {mode}.png"] = (6, 10)
    transparent = image.convert("P")
    transparent.save(root / "mode P0.png", transparency=0)
    Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257).save(root / "mode I16.png")
    image.convert("CMYK").save(root / "cmyk.jpg")
    image.convert("L").save(root / "gray.JPEG")
    image.save(root / "photo.webp", lossless=True)
    image.save(root / "photo.tiff")
    image.convert("CMYK").save(root / "cmyk.tif")
    image.save(root / "photo.bmp")
    image.convert("P").save(root / "photo.gif")
    image.save(root / "größe ☃ 1.png")
    image.save(root / " spaces  in it .png")
    image.save(root / "nested/photo.png")
    image.save(root / "nested/deeper/UPPER.PNG")
    plain = ("mode P0.png", "mode I16.png", "cmyk.jpg", "gray.JPEG", "photo.webp", "photo.tiff")
    plain += ("cmyk.tif", "photo.bmp", "photo.gif", "größe ☃ 1.png", " spaces  in it .png")
    good |= dict.fromkeys((*plain, "nested/photo.png", "nested/deeper/UPPER.PNG"), (6, 10))
    for name, size in {"portrait": (40, 4), "1x1": (1, 1), "long": (20, 30000)}.items():
        Image.new("RGB", size[::-1]).save(root / f"{name}.png")
        good[f"{name}.png"] = size
    (root / "link.jpg").symlink_to("exif1.jpg")  # that photograph once more, which is taken once
    (root / "nested/up").symlink_to("..")
    content = (root / "exif1.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (root / "text.jpg").write_text("not an image")
    (root / "empty.png").write_bytes(b"")
    (root / "nothing.png").symlink_to("none.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(root / "floats.tif")
    (root / "notes.txt").write_text("no image, no error")
    return good, {"truncated.jpg", "text.jpg", "empty.png", "nothing.png", "floats.tif"}


def test_a_folder_of_awkward_files(pipeline: Pipeline, job: Job, tmp_path: Path, capsys):
    good, bad = awkward(tmp_path / "in")
    assert len(good) + len(bad) + 2 >= 37
    summary = run(pipeline, tmp_path / "in", job)
    assert (summary.done, summary.before, len(summary.failed)) == (len(good), 0, len(bad))
    entries = [json.loads(x) for x in (job.out / "manifest.jsonl").read_text().splitlines()]
    by_file = {os.path.relpath(entry["file"], tmp_path / "in"): entry for entry in entries}
    assert set(by_file) == good.keys() | bad
    for name, size in good.items():
        (path,) = by_file[name]["outputs"]
        assert np.load(job.out / path).shape == size, name
        assert by_file[name]["size"] == [size[1], size[0]]
    lines = capsys.readouterr().err.splitlines()
    for name in bad:
        assert by_file[name]["status"] == "failed"
        assert len([x for x in lines if x.startswith("skipped ") and f"/{name}: " in x]) == 1


def test_turned_photos_have_the_depth_of_the_upright_one(
    pipeline: Pipeline, job: Job, tmp_path: Path
):
    upright = np.repeat(np.repeat(PHOTO, 4, axis=0), 4, axis=1)
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda x: x,
        3: lambda x: x[::-1, ::-1],
        6: lambda x: np.rot90(x, 1),
        8: lambda x: np.rot90(x, -1),
    }
    (tmp_path / "in").mkdir()
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
        stored.save(tmp_path / f"in/{orientation}.png", exif=exif)
    run(pipeline, tmp_path / "in", job)
    maps = [np.load(job.out / f"{orientation}_depth.npy") for orientation in turns]
    for values in maps[1:]:
        np.testing.assert_array_equal(values, maps[0])


class _Killed(Exception):
    pass


@pytest.fixture
def killed_after(monkeypatch) -> Iterator[Callable[[int], None]]:
    """Ends a job by an exception when so many files are written."""
    write = jobs.write_file

    def limit(count: int) -> None:
        left = count

        def written(path, content):
            nonlocal left
            left -= 1
            if left < 0:
                raise _Killed
            write(path, content)

        monkeypatch.setattr(jobs, "write_file", written)

    yield limit


def test_a_killed_job_leaves_the_same_bytes(
    pipeline: Pipeline, job: Job, tmp_path: Path, killed_after, monkeypatch
):
    root = photos(tmp_path / "in", 10)
    (root / "p3.png").write_text("bad")
    whole = replace(job, out=tmp_path / "whole")
    run(pipeline, root, whole)
    for count in (1, 5):
        killed_after(count)
        with pytest.raises(_Killed):
            run(pipeline, root, job)
    monkeypatch.undo()
    with (job.out / "manifest.jsonl").open("a") as torn:
        torn.write('{"name": "p')
    (job.out / ".p5_depth.npy.x1y2z3").write_bytes(b"half of a file")
    summary = run(pipeline, root, job)
    assert summary.done == 9 and 0 < summary.before < 9
    assert contents(job.out) == contents(whole.out)


def test_only_what_changed_is_done_again(pipeline: Pipeline, job: Job, tmp_path: Path):
    root = photos(tmp_path / "in", 5)
    run(pipeline, root, job)
    before = contents(job.out)
    assert run(pipeline, root, job).outputs == () and contents(job.out) == before
    (job.out / "p1_depth.npy").unlink()
    Image.fromarray(PHOTO).save(root / "p4.png")
    again = run(pipeline, root, job)
    assert [path.name for path in again.outputs] == ["p1_depth.npy", "p4_depth.npy"]
    assert (job.out / "p1_depth.npy").read_bytes() == before["p1_depth.npy"]
    assert np.load(job.out / "p4_depth.npy").shape == (6, 10)
    other = run(pipeline, root, replace(job, fit="crop"))
    assert other.before == 0 and len(other.outputs) == 5


def test_a_folder_gives_what_single_files_give(pipeline: Pipeline, job: Job, tmp_path: Path):
    root = photos(tmp_path / "in", 6)
    run(pipeline, root, job)
    alone = replace(job, out=tmp_path / "alone")
    run(pipeline, root / "p4.png", alone)
    one, listed = (np.load(out / "p4_depth.npy") for out in (alone.out, job.out))
    np.testing.assert_allclose(one, listed, rtol=1e-3)
    direct = pipeline.image_to_depth([root / "p4.png"], steps=1)[0]
    np.testing.assert_array_equal(direct.depth, listed)


def test_too_many_bad_files_end_the_job(pipeline: Pipeline, job: Job, tmp_path: Path):
    root = photos(tmp_path / "in", 4)
    for i in (1, 3):
        (root / f"p{i}.png").write_text("bad")
    with pytest.raises(UserError, match="2 of 4 files could not be used, more than --max-errors=0"):
        run(pipeline, root, replace(job, max_errors=0.25))
    assert run(pipeline, root, job).done == 2
    for i in (0, 2):
        (root / f"p{i}.png").write_text("bad")
    with pytest.raises(UserError, match="none of 4 files could be used; each has its line above"):
        run(pipeline, root, job)
    with pytest.raises(UserError, match=r"p0\.png: cannot be read as an image"):
        run(pipeline, root / "p0.png", job)


def test_large_photos_are_read_again(pipeline: Pipeline, job: Job, tmp_path: Path, monkeypatch):
    root = photos(tmp_path / "in", 3)
    job = replace(job, formats=("npy", "side"), geometry="ply")
    run(pipeline, root, job)
    before = contents(job.out)
    monkeypatch.setattr(one_file, "LARGE", 50)
    run(pipeline, root, replace(job, out=tmp_path / "large"))
    assert contents(tmp_path / "large") == before


def test_metric_depth_in_a_folder(pipeline: Pipeline, job: Job, tmp_path: Path, capsys):
    root = photos(tmp_path / "in", 3)
    run(pipeline, root, job)
    relative = {i: np.load(job.out / f"p{i}_depth.npy") for i in range(3)}
    (tmp_path / "points.csv").write_text(
        "file,x,y,depth\n"
        + "".join(f"p{i}.png,3,2,{1000**i * (i + 2) * relative[i][2, 3]}\n" for i in range(2))
    )
    source = ScaleSource(tmp_path / "points.csv", job.depth_form)
    summary = run(pipeline, root, replace(job, scale=source))
    (failed,) = summary.failed
    assert "has no row with file p2.png: the column holds p0.png, p1.png" in str(failed)
    lines = capsys.readouterr().err.splitlines()
    doubted = [x for x in lines if "the measurements look like millimeters" in x]
    assert len(doubted) == 1 and doubted[0].startswith(f"{root / 'p1.png'}: ")
    for name, scale in (("p0.png", "2"), ("p1.png", "3e+03")):
        fit = f"{root / name}: meters = {scale} * depth + 0, measurements: 1, "
        assert f"{fit}mean relative error: 0.0%" in lines
    for i in range(2):
        metric = np.load(job.out / f"p{i}_depth.npy")
        np.testing.assert_allclose(metric, 1000**i * (i + 2) * relative[i], rtol=1e-5)
    entry = json.loads((job.out / "manifest.jsonl").read_text().splitlines()[0])
    assert entry["unit"] == "metric" and entry["scaling"]["count"] == 1


def test_changed_measurements_of_a_folder_are_used(pipeline, job, tmp_path):
    root, measured = photos(tmp_path / "in", 2), tmp_path / "measured"
    job = replace(job, scale=ScaleSource(measured, job.depth_form))
    for i in range(2):
        paths.write_file(measured / f"p{i}.csv", "x,y,depth\n3,2,2\n")
    run(pipeline, root, job)
    assert run(pipeline, root, job).before == 2
    paths.write_file(measured / "p1.csv", "x,y,depth\n3,2,40\n")
    assert [path.name for path in run(pipeline, root, job).outputs] == ["p1_depth.npy"]
    assert np.load(job.out / "p1_depth.npy")[2, 3] == pytest.approx(40)


def test_depth_maps_become_images(pipeline: Pipeline, job: Job, tmp_path: Path, capsys):
    (tmp_path / "in").mkdir()
    for i in range(2):
        depth = RNG.uniform(1, 5, (24, 36)).astype(np.float32)
        depth[:, :6] = 65.535
        np.save(tmp_path / f"in/d{i}.npy", depth)
    job = replace(job, mode="d2i", sampling=pipeline.sampling("d2i", steps=1), formats=("side",))
    items = find_items([tmp_path / "in"], (".npy",), "--depth")
    summary = run_job(pipeline, items, replace(job, captions=("a", "b")))
    names = [f"d{i}_00{k}_{kind}.png" for i in (0, 1) for k in (0, 1) for kind in ("image", "side")]
    assert [path.name for path in summary.outputs] == names
    note = "65.535 fills 17% of it; if it marks missing depth, set --depth-invalid"
    assert note in capsys.readouterr().err
    with Image.open(job.out / "d0_001_image.png") as opened:
        assert opened.size == (36, 24)


def test_results_of_earlier_settings_do_not_stay(pipeline, job, tmp_path):
    source = photos(tmp_path / "in", 2)
    run(pipeline, source, replace(job, formats=("npy", "color"), ensemble=2))
    (job.out / "p0_notes.txt").write_text("of the user")
    run(pipeline, source, job)
    left = {path.name for path in job.out.iterdir()}
    assert left == {"manifest.jsonl", "p0_depth.npy", "p1_depth.npy", "p0_notes.txt"}


def test_edited_manifest_deletes_nothing_else(pipeline, job, tmp_path):
    source = photos(tmp_path / "in", 2)
    run(pipeline, source, job)
    (tmp_path / "p0_kept").write_text("elsewhere")
    (job.out / "other.npy").write_text("another file")
    path = job.out / "manifest.jsonl"
    entry = json.loads(path.read_text().splitlines()[0])
    entry |= {"settings": "", "outputs": ["../p0_kept", "p0_x/../../p0_kept", "other.npy"]}
    path.write_text(json.dumps(entry))
    run(pipeline, source, job)
    assert (tmp_path / "p0_kept").exists() and (job.out / "other.npy").exists()


def test_batch_is_no_larger_than_the_files(pipeline, job, tmp_path):
    items = find_items([photos(tmp_path / "in", 2)], PHOTO_SUFFIXES, "--image", job.out)
    huge = Pipeline(pipeline.generator, batch=10**6)
    assert jobs._Run(huge, items, job).batch == 8
    assert jobs._Run(pipeline, items, job).batch == 4


def test_a_folder_of_a_bucket(pipeline: Pipeline, job: Job, gs_path: Path, tmp_path: Path):
    local = photos(tmp_path / "in", 3)
    (local / "p1.png").write_text("bad")
    for path in local.iterdir():
        write_file(gs_path / "in/nested" / path.name, path.read_bytes())
    run(pipeline, local, replace(job, out=tmp_path / "local"))
    job = replace(job, out=gs_path / "out")
    summary = run(pipeline, gs_path / "in", job)
    assert (summary.done, summary.before, len(summary.failed)) == (2, 0, 1)
    for i in (0, 2):
        made = read_bytes(job.out / f"nested/p{i}_depth.npy")
        assert made == (tmp_path / f"local/p{i}_depth.npy").read_bytes()
    assert [path.name for path in list_dir(job.out)] == ["manifest.jsonl", "nested"]
    paths.remove(job.out / "nested/p2_depth.npy")
    again = run_job(pipeline, find_items([gs_path / "in/*/*.png"], (".png",), "--image"), job)
    assert (again.before, again.outputs) == (1, (job.out / "nested/p2_depth.npy",))
