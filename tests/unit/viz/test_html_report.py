"""The report is one safe, complete file that shows exactly the numbers of the summary."""

from __future__ import annotations

import base64
import io
import math
import os
from html.parser import HTMLParser

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.viz import html_report
from modality_forcing.viz.html_report import write_report

SUMMARY = {
    "seconds": {"t2i": 60.0, "forcing": 240.0},
    "peak_rss_mb": 1934,
    "i2d": {"absrel": 0.126, "delta1": 0.82},
    "constant": {"absrel": 0.42},
    "row_mean": {"absrel": 0.18},
    "d2i": {"absrel": 0.15, "absrel_shuffled": 0.45},
    "joint": {"image_first_absrel": 0.161, "depth_first_absrel": 0.143},
    "checkpoint": "runs/demo/3000",
    "text": {"color_recall": 0.61, "color_recall_chance": 0.33, "color_recall_dataset": 0.88},
    "no_pretraining": {"absrel": 0.167},
}
CURVES = {
    "t2i/loss_image": [(step, 1 / (1 + step)) for step in range(0, 600, 10)],
    "forcing/loss_image": [(step, 0.1) for step in range(0, 100, 10)],
    "forcing/loss_depth": [(step, 0.5) for step in range(0, 100, 10)],
}


class Page(HTMLParser):
    """A parsed page: tags with their attributes, and the text outside the style sheet."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._styling = False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._styling = tag == "style"

    def handle_data(self, data):
        if not self._styling:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page(tmp_path, summary=SUMMARY, curves=None, grids=()):
    write_report(tmp_path / "report.html", summary, curves or {}, grids)
    return Page((tmp_path / "report.html").read_text())


def test_headline_compares_with_baselines(tmp_path):
    text = page(tmp_path).text
    assert text.index("0.126") < text.index("0.82")
    assert (
        "0.30 of the error of the best constant and 0.70 of the error of the per-row mean" in text
    )
    assert "82% of pixels" in text


@pytest.mark.parametrize(
    "said",
    [
        "mean error 12.6%",
        "the model has 0.30 of its error",
        "the model has 0.70 of its error",
        "the pretrained one has 0.75 of its error",
        "depth first: the depth differs by 14.3%",
        "image first: the depth differs by 16.1%",
        "3.00 times as much",
        "its generated image shows: 61.0%",
        "other captions show: 33.0%",
        "its dataset image shows: 88.0%",
        "1,934",
        "runs/demo/3000",
        "300 in total",
    ],
)
def test_known_numbers_are_explained(tmp_path, said):
    assert said in page(tmp_path).text


@pytest.mark.parametrize("gone", sorted(SUMMARY))
def test_any_part_of_the_summary_may_be_missing(tmp_path, gone):
    text = page(tmp_path, {key: value for key, value in SUMMARY.items() if key != gone}).text
    assert "{" not in text
    assert "nan" not in text


def test_empty_summary_is_reported_as_such(tmp_path):
    text = page(tmp_path, {}, {}).text
    assert "no image-to-depth score" in text
    assert "Loss" not in text


def test_missing_scores_are_not_shown(tmp_path):
    text = page(tmp_path, {"i2d": {"absrel": math.nan, "delta1": None}, "seconds": 12.0}).text
    assert "no image-to-depth score" in text
    assert "Not a number in this run." in text
    assert "12.0" in text


def test_unknown_keys_are_listed(tmp_path):
    text = page(tmp_path, SUMMARY | {"extra": {"deep": [1, 2]}, "flag": True}).text
    assert "extra.deep [1, 2]" in text
    assert "flag true" in text


def test_page_fetches_nothing_and_runs_no_script(tmp_path):
    shown = page(tmp_path, curves=CURVES, grids=[("a", "b", np.zeros((2, 2, 3), np.uint8))])
    assert not shown.all("script") and not shown.all("link")
    for _, attributes in shown.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in (tmp_path / "report.html").read_text()
    assert any("default-src 'none'" in str(meta.get("content")) for meta in shown.all("meta"))


def test_images_are_embedded_unchanged(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    shown = page(
        tmp_path, curves=CURVES, grids=[("array", "", image), ("file", "", buffer.getvalue())]
    )
    for attributes in shown.all("img")[-2:]:  # after the charts
        png = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), image)
    assert len(shown.all("img")) == 2 + 2


HOSTILE = "<script>alert('x')</script> & \"red\" 'cone' </table>"


def test_all_text_is_escaped(tmp_path):
    summary = {
        "checkpoint": HOSTILE,
        HOSTILE: [HOSTILE],
        "seconds": {HOSTILE: 1.0},
        "i2d": {"absrel": HOSTILE},
    }
    grids = [(HOSTILE, HOSTILE, np.zeros((2, 2, 3), np.uint8))]
    write_report(
        tmp_path / "r.html",
        summary,
        {f"{HOSTILE}/{HOSTILE}": [(0, 1.0), (1, 2.0)]},
        grids,
        title=HOSTILE,
    )
    shown = Page((tmp_path / "r.html").read_text())
    assert not shown.all("script")
    assert shown.text.count("alert(") >= 8
    assert shown.all("img")[-1]["alt"] == HOSTILE


def test_one_chart_per_phase(tmp_path):
    charts = [
        image for image in page(tmp_path, curves=CURVES).all("img") if image.get("class") == "chart"
    ]
    alts = [str(image["alt"]) for image in charts]
    assert [alt.split(":")[0] for alt in alts] == ["t2i", "forcing"]
    assert "loss_image, loss_depth" in alts[1]
    for chart in charts:
        source = str(chart["src"]).removeprefix("data:image/svg+xml;base64,")
        svg = base64.b64decode(source).decode()
        assert "<svg" in svg and "loss_" in svg and "<script" not in svg


def test_chart_has_a_raw_and_a_smoothed_line_per_loss():
    lines = {"one": np.array([[0, 1.0], [1, 2.0]]), "$x": np.array([[0, 0.5]])}
    figure = html_report.loss_figure(lines)
    (axes,) = figure.axes
    assert len(axes.lines) == 2 * len(lines) and axes.get_yscale() == "log"
    assert [text.get_text() for text in figure.legends[0].texts] == ["one 2.000", r"\$x 0.500"]


curve = st.lists(
    st.tuples(st.integers(0, 10**6), st.floats(allow_nan=True, allow_infinity=True, width=32)),
    max_size=60,
).map(lambda points: sorted(points, key=lambda point: point[0]))


@settings(max_examples=15, deadline=None)
@given(curve, curve)
def test_any_curve_can_be_plotted(one, other):
    charts = html_report._loss_charts({"p/one": one, "p/other": other})
    positive = [any(math.isfinite(v) and v > 0 for _, v in points) for points in (one, other)]
    assert len(charts) == any(positive)


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=200))
def test_smoothing_stays_within_the_values_and_keeps_a_constant(values):
    at = np.arange(len(values))
    smooth = html_report._smooth(np.array(values), at)
    assert len(smooth) == len(values)
    assert smooth.min() >= min(values) * (1 - 1e-9)
    assert smooth.max() <= max(values) * (1 + 1e-9)
    np.testing.assert_allclose(html_report._smooth(np.full(len(values), 3.0), at), 3.0)


def test_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    page(tmp_path)
    before = (tmp_path / "report.html").read_text()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_report(tmp_path / "report.html", {}, {}, [])
    assert (tmp_path / "report.html").read_text() == before
    assert os.listdir(tmp_path) == ["report.html"]
