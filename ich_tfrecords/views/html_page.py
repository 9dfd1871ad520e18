"""The skeleton of every HTML page: one file without scripts and without a request to anywhere.

Everything that comes in as text is escaped; what is named a body is HTML already.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from ich_tfrecords import NOT_A_DEVICE

_MAX_CELL_CHARS = 160


def escape(text: object) -> str:
    """The text as HTML, quotes too."""
    return html.escape(str(text))


def page(title: str, body: str) -> str:
    """A whole page. Its policy lets a browser show what the file holds and nothing else."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'\"><style>{_STYLE}</style></head><body><main>{body}"
        f"<footer>{escape(NOT_A_DEVICE)}</footer></main></body></html>\n"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A framed part of the page; `note` says how to read it."""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{words}{body}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Table of plain texts; the first `words` columns are text, the rest numbers set to the right."""
    kinds = ["text" if number < words else "number" for number in range(len(head))]
    top = "".join(f'<th scope="col" class="{kind}">{escape(cell)}</th>' for kind, cell in zip(kinds, head, strict=True))
    lines = (
        "".join(f'<td class="{kind}">{escape(_short(cell))}</td>' for kind, cell in zip(kinds, row, strict=True))
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CELL_CHARS else f"{text[: _MAX_CELL_CHARS - 3]}..."


def tiles(facts: Mapping[str, str]) -> str:
    """Headline numbers side by side: the value large, its name under it."""
    shown = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in facts.items())
    return f'<div class="tiles">{shown}</div>'


def image(data: bytes, kind: str, alt: str, width_px: int | None = None) -> str:
    """An image inside the page; `kind` is `png` or `svg+xml`, `alt` says what it shows."""
    wide = f' width="{width_px}"' if width_px else ""
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(alt)}"{wide}>'


_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#f3f5f7;color:#1b1f24;font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 20px}
header,section{background:#fff;border:1px solid #d8dee4;border-radius:8px;padding:18px 24px;margin-bottom:16px;
overflow-x:auto}
h1{margin:0;font-size:28px}
h2{margin:0 0 6px;font-size:19px}
h3{margin:18px 0 8px;font-size:15px}
h3 small,.note,figcaption span{color:#59636e;font-weight:400}
p{margin:0 0 10px}
code,pre{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{margin:0;white-space:pre-wrap}
.tiles{display:flex;flex-wrap:wrap;gap:12px 40px;margin-top:12px}
.tiles b{display:block;font-size:24px;line-height:1.2;font-variant-numeric:tabular-nums}
.tiles span{color:#59636e}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;max-width:100%}
th,td{padding:4px 12px;border-bottom:1px solid #d8dee4;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;overflow-wrap:normal}
td:first-child{white-space:nowrap}
.number{text-align:right;overflow-wrap:normal}
.heat td{min-width:104px;border:1px solid #fff;padding:6px 12px}
.heat small{display:block;font-size:12px}
.heat .own{background:#eceff2}
svg{display:block;width:100%;height:auto;font-family:inherit}
.pictures{display:flex;flex-wrap:wrap;gap:14px 16px}
figure{margin:0;max-width:100%;break-inside:avoid}
img{max-width:100%;height:auto}
figure img{display:block;background:#000;border-radius:3px}
figcaption{font-size:13px;line-height:1.35;margin-top:4px}
footer{color:#59636e;text-align:center;padding:4px}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
@media print{body{background:#fff;font-size:11px}main{max-width:none;padding:0}
header,section{border:0;border-radius:0;padding:6px 0;margin:0 0 10px;overflow:visible}
th,td,.heat td{padding:2px 7px;min-width:0}.heat small{font-size:9px}code,pre{font-size:9px}
svg,tr,h2,h3,figure{break-inside:avoid}h2,h3,section>p{break-after:avoid}
figure img{max-width:340px}figcaption{font-size:10px}pre{columns:3}}
"""
