"""One page from one list of blocks: Markdown for the repository, HTML for the eye.

The HTML holds everything in itself, follows the reader's light or dark theme, and fits a phone:
tables scroll inside their frame, charts stand side by side where there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Heading(NamedTuple):
    text: str


class Text(NamedTuple):
    text: str


class Note(NamedTuple):
    """A statement with a mark: "yes", "no", "cannot tell" or "warning"."""

    mark: str
    text: str


class Table(NamedTuple):
    """Cells as text; columns of words are left-aligned, columns of numbers right-aligned."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


class Figures(NamedTuple):
    """Charts (SVG text) with their titles; Markdown has only `instead`."""

    charts: tuple[tuple[str, str], ...]
    instead: str = ""


class Folded(NamedTuple):
    """Blocks that open on demand."""

    title: str
    blocks: tuple[Block, ...]


Block = Heading | Text | Note | Table | Figures | Folded


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    return f"# {title}\n\n" + "\n".join(_markdown(block) for block in blocks)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}\n"
    if isinstance(block, Text):
        return f"{block.text}\n"
    if isinstance(block, Note):
        return f"- **{block.mark}**: {block.text}\n"
    if isinstance(block, Figures):
        return f"{block.instead}\n" if block.instead else ""
    if isinstance(block, Folded):
        return f"### {block.title}\n\n" + "\n".join(_markdown(inner) for inner in block.blocks)
    lines = [block.header, tuple("---" for _ in block.header), *block.rows]
    table = "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)
    return (f"{block.caption}\n\n" if block.caption else "") + table + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{escape(block.text)}</h2>"
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Note):
        kind = block.mark.replace(" ", "-")
        return (
            f'<div class="note {kind}"><span class="mark">{escape(block.mark)}</span>'
            f"<p>{escape(block.text)}</p></div>"
        )
    if isinstance(block, Figures):
        charts = "\n".join(
            f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"
            for title, svg in block.charts
        )
        return f'<div class="figures">{charts}</div>'
    if isinstance(block, Folded):
        inner = "\n".join(_html(one) for one in block.blocks)
        return f"<details><summary>{escape(block.title)}</summary>\n{inner}\n</details>"
    return _html_table(block)


def _html_table(table: Table) -> str:
    columns = zip(*table.rows, strict=True) if table.rows else ((),) * len(table.header)
    words = [_is_words(column) for column in columns]
    header = "".join(
        f'<th scope="col"{WORDS if is_words else ""}>{escape(cell)}</th>'
        for cell, is_words in zip(table.header, words, strict=True)
    )
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(
            f"<td{WORDS if is_words else ''}>{escape(cell)}</td>"
            for cell, is_words in zip(row[1:], words[1:], strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="table"><table>{caption}<thead><tr>{header}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


WORDS = ' class="words"'


def _is_words(cells: Sequence[str]) -> bool:
    """Whether a column holds more words than numbers."""
    filled = [cell for cell in cells if cell not in ("", "-")]
    return sum(cell[0].isalpha() or cell[0] in "(/" for cell in filled) * 2 > len(filled)


STYLE = """
:root {
  --paper: #ffffff; --ink: #1c2024; --soft: #5c6670; --line: #dde2e6; --panel: #f5f7f8;
  --yes: #12703f; --no: #a52a2a; --open: #7a5c00; --warn: #a52a2a;
  --c0: #1565a8; --c1: #c2560a; --c2: #12805c; --c3: #a64a86; --c4: #7d6600; --c5: #3c8fc0;
  --c6: #5c6670;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #e4e8eb; --soft: #9aa5ae; --line: #31383e; --panel: #1d2226;
    --yes: #59c98d; --no: #f08080; --open: #e0bd4c; --warn: #f08080;
    --c0: #62b0f0; --c1: #f09a55; --c2: #4cc79c; --c3: #dd90c2; --c4: #d6bf45; --c5: #8fd0f5;
    --c6: #9aa5ae;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.4em 0 0.6em; }
h2 { font-size: 1.2rem; margin: 2em 0 0.6em; padding-top: 0.6em;
  border-top: 1px solid var(--line); }
p { max-width: 46em; margin: 0.5em 0; overflow-wrap: anywhere; }
.note { display: flex; gap: 12px; align-items: flex-start; margin: 8px 0; padding: 10px 12px;
  background: var(--panel); border-left: 4px solid var(--soft); border-radius: 4px; }
.note p { margin: 0; }
.mark { flex: 0 0 6em; font-weight: 700; }
.note.yes { border-color: var(--yes); } .note.yes .mark { color: var(--yes); }
.note.no { border-color: var(--no); } .note.no .mark { color: var(--no); }
.note.cannot-tell { border-color: var(--open); } .note.cannot-tell .mark { color: var(--open); }
.note.warning { border-color: var(--warn); } .note.warning .mark { color: var(--warn); }
.table { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 4px 0; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 10em; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
th.words, td.words { text-align: left; }
td.words { white-space: normal; min-width: 12em; max-width: 34em; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr));
  gap: 18px; margin: 12px 0; }
figure { margin: 0; padding: 10px; background: var(--panel); border-radius: 6px; }
figcaption { font-weight: 600; font-size: 0.95rem; margin-bottom: 6px; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink);
  paint-order: stroke; stroke: var(--panel); stroke-width: 3px; }
svg text.axis { fill: var(--soft); font-size: 11px; }
svg text.value { font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .zero { stroke: var(--soft); stroke-width: 1.4; }
svg .curve { fill: none; stroke-width: 2; }
svg .dot { fill: var(--panel); stroke-width: 1.4; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--soft); }
@media (max-width: 560px) {
  .note { flex-direction: column; gap: 2px; } .mark { flex-basis: auto; }
}
"""
