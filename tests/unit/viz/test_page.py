"""Pages: text is escaped, files are embedded."""

from __future__ import annotations

import base64

from modality_forcing.viz import page

HOSTILE = "<script>alert('x')</script>"


def test_titles_and_cells_are_escaped():
    body = page.section(HOSTILE, page.table([HOSTILE], [[HOSTILE, "b"], ["c"]]))
    text = page.page(HOSTILE, body + page.chart(b"<svg/>", HOSTILE))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 5


def test_section_without_content_is_empty():
    assert page.section("Loss", "") == ""


def test_chart_embeds_its_file():
    source = page.chart(b"<svg/>", "a").partition("src='data:image/svg+xml;base64,")[2]
    assert base64.b64decode(source.partition("'")[0]) == b"<svg/>"
