"""Scores of arrays through the command, and one error line per invalid file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from modality_forcing import cli
from modality_forcing.evaluation.depth_metrics import METRICS, score
from modality_forcing.evaluation.protocols import Protocol, get_protocol


@pytest.fixture
def arrays(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.gamma(2.0, 1.0, (4, 20, 30)).astype("f4") + 0.2
    pred = (0.5 * target * np.exp(0.1 * rng.normal(size=target.shape)) + 1).astype("f4")
    valid = rng.random(target.shape) < 0.5
    valid[3] = False
    np.savez(tmp_path / "p.npz", depth=pred, disparity=1 / pred)
    np.savez(tmp_path / "g.npz", depth=np.where(valid, target, np.nan), valid=valid)
    return tmp_path, pred, target, valid


def command(folder, *more, pred="p.npz", target="g.npz"):
    return cli.main(["evaluate", f"--pred={folder / pred}", f"--target={folder / target}", *more])


@pytest.mark.parametrize(
    "name, align",
    [("moge", "affine"), ("marigold", "affine"), ("metric", "none"), ("moge", "disparity")],
)
def test_json_has_means_and_a_row_per_image(arrays, capsys, name, align):
    folder, pred, target, valid = arrays
    assert (
        command(
            folder,
            f"--protocol={name}",
            f"--align={align}",
            "--json",
            f"--out={folder / 'scores.json'}",
        )
        == 0
    )
    printed = capsys.readouterr().out
    result = json.loads(printed)
    assert json.loads((folder / "scores.json").read_text()) == result
    expected = score(
        1 / pred if align == "disparity" else pred, target, valid, get_protocol(name, align)
    )
    assert result["images"] == 3 and result["skipped"] == 1 and len(result["rows"]) == 4
    assert Protocol.from_dict(result["protocol"]) == get_protocol(name, align)
    for metric in METRICS:
        assert result[metric] == pytest.approx(
            float(getattr(expected, metric)[:3].mean()), rel=1e-6
        )
        assert [row[metric] for row in result["rows"][:3]] == pytest.approx(
            list(map(float, getattr(expected, metric)[:3]))
        )
    assert result["rows"][3] == {"index": 3, "valid_pixels": 0} | dict.fromkeys(
        (*METRICS, "scale", "shift", "constant_pred", "nonfinite")
    )


def test_table_names_the_protocol_and_counts_skipped_images(arrays, capsys):
    assert command(arrays[0], "--protocol=marigold", "--depth-range=0.1:inf") == 0
    printed = capsys.readouterr().out
    assert (
        "protocol marigold, affine, depth 0.1 to inf; 3 images scored, 1 with nothing to score"
        in printed
    )
    assert all(metric in printed for metric in METRICS)


def test_nonfinite_scores_are_null_in_json(arrays, capsys):
    folder, pred, _, _ = arrays
    np.savez(folder / "nan.npz", depth=np.full_like(pred, np.nan))
    assert command(folder, "--json", pred="nan.npz") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["absrel"] is None and result["delta1"] == 0 and result["images"] == 3
    assert result["nonfinite"] == 3 and result["rows"][1]["nonfinite"] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_without_a_finite_prediction_are_named(arrays, capsys, value):
    folder, pred, _, valid = arrays
    pixels = np.argwhere(valid[1])[:2]
    pred[1][tuple(pixels.T)] = value
    pred[0][~valid[0]] = value  # no valid pixel: of no account
    np.savez(folder / "nan.npz", depth=pred)
    assert command(folder, pred="nan.npz") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(
        "3 images scored, 1 with nothing to score, 1 with a prediction that is not finite at valid"
        f" pixels and counts as AbsRel infinity and delta 0: 1 (2 of {valid[1].sum()} pixels)"
    )
    assert lines[1] == "absrel  inf"


@pytest.mark.parametrize(
    "case, message",
    [
        ("missing", "no such file"),
        ("no_valid", "has no array `valid`"),
        ("shape", "differ"),
        ("flat", "not [n h w]"),
        ("negative", "not finite and positive"),
        ("damaged", "cannot be read"),
        ("text", "not numbers"),
        ("bare", "single array"),
        ("none_valid", "no pixel is valid"),
        ("mask", "values other than 0 and 1"),
    ],
)
def test_invalid_files_are_reported_in_one_line(arrays, capsys, case, message):
    folder, pred, target, valid = arrays
    names = {"pred": "p.npz", "target": "g.npz"}
    if case in ("missing", "shape", "flat", "damaged", "text", "bare"):
        names["pred"] = "q.npz"
        with open(folder / "q.npz", "wb") as file:
            {
                "missing": lambda: None,
                "shape": lambda: np.savez(file, depth=pred[:2]),
                "flat": lambda: np.savez(file, depth=pred[0]),
                "damaged": lambda: file.write(b"PK\x03\x04 nothing"),
                "text": lambda: np.savez(file, depth=np.array(["a"])),
                "bare": lambda: np.save(file, pred),
            }[case]()
        if case == "missing":
            (folder / "q.npz").unlink()
        if case == "flat":
            names["target"] = "h.npz"
            np.savez(folder / "h.npz", depth=target[0], valid=valid[0])
    else:
        names["target"] = "h.npz"
        content = {
            "no_valid": {"depth": target},
            "negative": {"depth": -target, "valid": valid},
            "none_valid": {"depth": target, "valid": np.zeros_like(valid)},
            "mask": {"depth": target, "valid": 255 * valid.astype("u1")},
        }[case]
        np.savez(folder / "h.npz", **content)
    assert command(folder, **names) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to score"),
        (["--pred=p.npz"], "--target is missing"),
        (["--checkpoint=x", "--pred=p.npz"], "nothing to score"),
        (["--checkpoint=x", "--protocol=moge"], "--protocol is not for a checkpoint"),
        (["--pred=p.npz", "--target=g.npz", "--examples=3"], "--examples is not for arrays"),
        (["--pred=p.npz", "--target=g.npz", "--protocol=mogel"], "unknown protocol"),
        (["--pred=p.npz", "--target=g.npz", "--depth-range=5"], "MIN:MAX"),
    ],
)
def test_incompatible_options_are_refused(arrays, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(arrays[0])
    assert cli.main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
