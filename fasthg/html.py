"""HTML pages in one file: inline style, images as data URLs, no scripts, no external files."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bad: #c0392b; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note { opacity: .75; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number, th.number { text-align: right; }
tr:hover { background: var(--soft); }
.wide { overflow-x: auto; margin: 1rem 0; }
.beside { display: grid; gap: 0 2rem; grid-template-columns: minmax(0, 1fr); align-items: start; }
@media (min-width: 70rem) { .beside { grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); } }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
figure { margin: 0; } img { width: 100%; border-radius: 4px; display: block; }
details { margin: .6rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .8rem; background: var(--soft); padding: .8rem; }
figcaption { font-size: .82rem; overflow-wrap: anywhere; padding-top: .3rem; }
"""


class Fixed(float):
    """A number that is written with a fixed number of digits, NaN as a dash."""

    def __new__(cls, value: float, digits: int = 2) -> Fixed:
        """value with `digits` digits after the point."""
        number = super().__new__(cls, value)
        number.digits = digits
        return number

    digits: int

    def __str__(self) -> str:
        return "-" if math.isnan(self) else f"{float(self):.{self.digits}f}"


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; `title` is text, `body` pieces of HTML."""
    name = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """A section's heading."""
    return f"<h2>{html.escape(text)}</h2>"


def note(text: str) -> str:
    """A paragraph."""
    return f'<p class="note">{html.escape(text)}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of text and numbers; numbers stand to the right. On a narrow page it scrolls."""

    def cell(tag: str, value: object, right: bool) -> str:
        kind = ' class="number"' if right else ""
        return f"<{tag}{kind}>{html.escape(str(value))}</{tag}>"

    rows = [list(row) for row in rows]
    right = [
        any(isinstance(row[i], int | float) for row in rows) if rows else False
        for i in range(len(head))
    ]
    lines = ["".join(cell("th", v, r) for v, r in zip(head, right, strict=True))]
    lines += ["".join(cell("td", v, r) for v, r in zip(row, right, strict=True)) for row in rows]
    inside = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n{inside}\n</table></div>'


def beside(left: str, right: str) -> str:
    """Two pieces of HTML side by side where the page is wide, else one below the other."""
    return f'<div class="beside"><div>{left}</div><div>{right}</div></div>'


def pictures(images: Iterable[tuple[bytes, str]], kind: str = "jpeg") -> str:
    """Encoded images with captions, side by side."""
    figures = (
        f'<figure><img alt="" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for data, caption in images
    )
    return '<div class="pictures">\n' + "\n".join(figures) + "\n</div>"


def folded(title: str, text: str) -> str:
    """Preformatted text, folded under a title that opens it."""
    return (
        f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"
    )
