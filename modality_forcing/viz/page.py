"""Self-contained HTML pages: their style, sections, tables and charts."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

# The policy enforces that a browser fetches nothing, whatever a caption contains.
_PAGE = """<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<meta http-equiv=Content-Security-Policy
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_STYLE = """
:root{color-scheme:light dark;--paper:#fcfcfb;--ink:#1c1c1f;--soft:#66666e;--line:#e2e2e6;
  --own:#2f5fd0;--other:#b9bcc6}
@media(prefers-color-scheme:dark){:root{--paper:#141416;--ink:#e8e8ec;--soft:#9c9ca6;
  --line:#2e2e34;--own:#7aa2ff;--other:#51545e}}
body{margin:0 auto;max-width:860px;padding:2.5rem 1.25rem 4rem;background:var(--paper);
  color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1rem;font-weight:600;color:var(--soft);margin:0 0 1.5rem}
h2{font-size:1.25rem;margin:0 0 .5rem;padding-top:1.5rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.25rem 0 .25rem}
section{margin-top:2.5rem}
.headline{font-size:1.25rem;margin:0}
.headline b{font-size:4rem;line-height:1;letter-spacing:-.03em;margin-right:.25rem}
.lead{font-size:1.125rem;max-width:62ch;margin:.75rem 0 0}
.note,figcaption{color:var(--soft);font-size:.9rem;margin:.25rem 0 .5rem}
table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{text-align:left;vertical-align:top;padding:.4rem .75rem .4rem 0;
  border-bottom:1px solid var(--line)}
th{font-weight:500;white-space:nowrap;color:var(--soft);width:1%}
.value{text-align:right;font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap;
  width:1%}
.plain{overflow-wrap:anywhere}
.bars{margin-bottom:1.25rem}
.bars th{min-width:9.5rem}
.bars td,.bars th{border:0;padding-top:.15rem;padding-bottom:.15rem;vertical-align:middle}
.bar span{display:block;height:.8rem;min-width:2px;border-radius:2px;background:var(--other)}
.ours th{color:var(--ink);font-weight:600}
.ours .bar span{background:var(--own)}
figure{margin:0 0 1.5rem}
.chart{width:100%}
.chart{background:#fff;border-radius:4px}
.wide{overflow-x:auto}
.wide th{width:auto}
.wide td:first-child{white-space:nowrap}
img{max-width:100%;image-rendering:pixelated;border-radius:4px;display:block}
svg{width:100%;height:auto;display:block}
@media(max-width:600px){th{white-space:normal}.headline b{font-size:3rem;display:block}}
"""


def page(title: str, body: str) -> str:
    """Returns a page in the style of all reports, which fetches nothing."""
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def section(title: str, content: str) -> str:
    """Returns a section with its heading; nothing if it has no content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def data_url(media_type: str, content: bytes) -> str:
    """Returns a URL that holds a file's content."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def chart(svg: bytes, alt: str) -> str:
    """Returns an SVG file as an image of the page, with its alternative text."""
    source = data_url("image/svg+xml", svg)
    return f"<img class=chart alt='{escape(alt, quote=True)}' src='{source}'>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of text cells, which scrolls sideways if it is too wide."""
    lines = [_row("th", header), *(_row("td", row) for row in rows)]
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
