"""The report is one safe, whole file that shows every number it was given, and only those."""

from __future__ import annotations

import base64
import io
import math
import os
import re
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
    "d2i": {"absrel": 0.15, "absrel_unrelated": 0.45},
    "joint": {"image_first": 0.161, "depth_first": 0.143},
    "checkpoint": "runs/demo/3000",
    "text": {"found": 0.61, "chance": 0.33, "truth": 0.88},
    "no_pretraining": {"absrel": 0.167},
}
CURVES = {
    "t2i/loss_image": [(step, 1 / (1 + step)) for step in range(0, 600, 10)],
    "forcing/loss_image": [(step, 0.1) for step in range(0, 100, 10)],
    "forcing/loss_depth": [(step, 0.5) for step in range(0, 100, 10)],
}
VOID = {"meta", "img", "polyline", "path", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text outside the style sheet."""

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


def page(tmp_path, summary=SUMMARY, curves=CURVES, grids=()):
    write_report(tmp_path / "report.html", summary, curves, grids)
    return Page((tmp_path / "report.html").read_text())


def test_the_headline_comes_first_with_its_comparisons(tmp_path):
    text = page(tmp_path).text
    assert text.index("0.126") < text.index("0.82")
    assert (
        "0.30 of the error of the best constant and 0.70 of the error of the per-row mean" in text
    )
    assert "82% of pixels" in text


@pytest.mark.parametrize(
    "said",
    [
        "off by 12.6% on average",
        "0.30 of its error",
        "0.70 of its error",
        "the pretrained one makes 0.75 of its error",
        "off by 14.3%",
        "off by 16.1%",
        "3.00 times as much",
        "61.0% are found in the picture made from it",
        "33.0% are found",
        "88.0% are found in the true picture",
        "1,934",
        "runs/demo/3000",
        "300 in all",
    ],
)
def test_each_number_has_its_sentence(tmp_path, said):
    assert said in page(tmp_path).text


@pytest.mark.parametrize("gone", sorted(SUMMARY))
def test_any_part_of_the_summary_may_be_missing(tmp_path, gone):
    text = page(tmp_path, {key: value for key, value in SUMMARY.items() if key != gone}).text
    assert "{" not in text
    assert "nan" not in text


def test_an_empty_run_says_so(tmp_path):
    text = page(tmp_path, {}, {}).text
    assert "No image-to-depth score" in text
    assert "Loss" not in text


def test_numbers_that_are_none_are_not_shown_as_scores(tmp_path):
    text = page(tmp_path, {"i2d": {"absrel": math.nan, "delta1": None}, "seconds": 12.0}).text
    assert "No image-to-depth score" in text
    assert "Not a number in this run." in text
    assert "12.0" in text


def test_unknown_keys_are_listed(tmp_path):
    text = page(tmp_path, SUMMARY | {"extra": {"deep": [1, 2]}, "flag": True}).text
    assert "extra.deep [1, 2]" in text
    assert "flag true" in text


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    shown = page(tmp_path, grids=[("a", "b", np.zeros((2, 2, 3), np.uint8))])
    assert not shown.all("script") and not shown.all("link")
    for _, attributes in shown.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in (tmp_path / "report.html").read_text()
    assert any("default-src 'none'" in str(meta.get("content")) for meta in shown.all("meta"))


def test_pictures_are_embedded_unchanged(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    shown = page(tmp_path, grids=[("array", "", image), ("file", "", buffer.getvalue())])
    for attributes in shown.all("img"):
        png = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), image)
    assert len(shown.all("img")) == 2


HOSTILE = "<script>alert('x')</script> & \"red\" 'cone' </table>"


def test_text_is_escaped_wherever_it_stands(tmp_path):
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
    assert shown.all("img")[0]["alt"] == HOSTILE


def test_one_chart_a_phase_with_a_raw_and_a_smooth_line_each(tmp_path):
    shown = page(tmp_path)
    assert [attributes["aria-label"].split(":")[0] for attributes in shown.all("svg")] == [
        "t2i",
        "forcing",
    ]
    assert len(shown.all("polyline")) == 2 * len(CURVES)
    assert "loss_depth 0.500" in shown.text


curve = st.lists(
    st.tuples(st.integers(0, 10**6), st.floats(allow_nan=True, allow_infinity=True, width=32)),
    max_size=60,
).map(lambda points: sorted(points, key=lambda point: point[0]))


@settings(max_examples=150, deadline=None)
@given(curve, curve)
def test_any_curve_is_drawn_inside_its_frame(one, other):
    drawn = "".join(html_report._charts({"p/one": one, "p/other": other}))
    lines = re.findall(r"points='([^']*)'", drawn)
    shown = [
        points for points in (one, other) if any(math.isfinite(v) and v > 0 for _, v in points)
    ]
    assert len(lines) == 2 * len(shown)
    for line in lines:
        for point in line.split():
            x, y = map(float, point.split(","))
            assert html_report._LEFT <= x <= html_report._WIDTH - html_report._RIGHT
            assert html_report._TOP <= y <= html_report._HEIGHT - html_report._BOTTOM


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=200))
def test_smoothing_stays_within_the_values_and_keeps_a_constant(values):
    at = np.arange(len(values))
    smooth = html_report._smooth(np.array(values), at)
    assert len(smooth) == len(values)
    assert smooth.min() >= min(values) * (1 - 1e-9)
    assert smooth.max() <= max(values) * (1 + 1e-9)
    np.testing.assert_allclose(html_report._smooth(np.full(len(values), 3.0), at), 3.0)


@pytest.mark.parametrize("last", [4000.0, 500_000.0, 1_000_000.0])
def test_the_last_tick_is_not_cut_off(last):
    drawn = html_report._axes(0.0, last, -1.0, 1.0)
    labels = [
        (float(x), text)
        for x, text in re.findall(r"<text x=([\d.]+) y=\d+ text-anchor=middle>([\d,]+)<", drawn)
    ]
    assert len(labels) > 2
    assert all(
        x + 3.5 * len(text) <= html_report._WIDTH for x, text in labels
    )  # a digit is about 7 wide


@pytest.mark.parametrize(
    "low, high", [(0.9, 1.1), (0.01, 1.0), (1e-6, 1e6), (3.0, 4.0), (0.301, 0.302)]
)
def test_ticks_are_round_few_and_inside(low, high):
    ticks = html_report._log_ticks(low, high)
    assert 2 <= len(ticks) <= 14
    assert all(low <= tick <= high for tick in ticks)


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    page(tmp_path)
    before = (tmp_path / "report.html").read_text()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_report(tmp_path / "report.html", {}, {}, [])
    assert (tmp_path / "report.html").read_text() == before
    assert os.listdir(tmp_path) == ["report.html"]
