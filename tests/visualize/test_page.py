"""Pages and charts: well-formed, complete in themselves, and drawn to scale."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from predet.visualize.page import (
    Figures,
    Folded,
    Heading,
    Note,
    Table,
    Text,
    to_html,
    to_markdown,
)
from predet.visualize.svg import CurveLine, IntervalRow, curve_chart, interval_chart

NAN = float("nan")
VOID = {"meta", "br", "img", "link", "input", "hr"}
ROWS = (
    IntervalRow("one < two", 2.0, 1.0, 3.0, 1.5, 2.5, dots=(1.8, 2.2)),
    IntervalRow("three", -4.0, NAN, NAN),
)
LINE = CurveLine("a curve", ((10, 5.0, 4.0, 6.0), (20, 8.0, 7.0, 10.0)), 1, dashed=True)


class Checker(HTMLParser):
    """Keeps what was opened and closed, what is loaded from elsewhere, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.loaded: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    return checker


def blocks() -> list:
    table = Table(
        ("arm", "AP", "why"), (("a|b <i>", "1.5", "words"), ("c", "-", "more")), "Caption"
    )
    return [
        Heading("Results & more"),
        Text("Plain < text"),
        Note("cannot tell", "needs 3 seeds"),
        table,
        Figures((("chart", interval_chart(ROWS, title="t")),), "see the HTML"),
        Folded("Rest", (table, Text("inside"))),
    ]


def test_html_is_well_formed_and_complete_in_itself() -> None:
    html = to_html("A <title>", blocks())
    page = parsed(html)
    text = "".join(page.words)
    for expected in ("A <title>", "Results & more", "Plain < text", "a|b <i>", "one < two"):
        assert expected in text
    assert page.counts["table"] == 2
    assert page.counts["svg"] == 1
    assert "i" not in page.counts  # text stays text
    assert not page.loaded
    assert not re.search(r"url\(|@import|<script|<link", html)
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html


def test_columns_of_words_are_left_aligned() -> None:
    html = to_html("", blocks())
    assert '<td class="words">words</td>' in html
    assert "<td>1.5</td>" in html


def test_markdown_has_the_same_content() -> None:
    text = to_markdown("Title", blocks())
    assert text.startswith("# Title\n")
    assert "| a\\|b <i> | 1.5 | words |" in text
    assert "- **cannot tell**: needs 3 seeds" in text
    assert text.count("| --- | --- | --- |") == 2
    assert "see the HTML" in text
    assert "<svg" not in text


def elements(svg: str, tag: str) -> list[dict[str, str]]:
    root = ElementTree.fromstring(svg)  # raises on what is not well-formed
    return [e.attrib for e in root.iter() if e.tag.endswith(tag)]


def test_intervals_are_drawn_to_scale() -> None:
    svg = interval_chart(ROWS, title="a & b", zero=True)
    zero = next(e for e in elements(svg, "line") if e.get("class") == "zero")
    means = [float(e["cx"]) for e in elements(svg, "circle") if e["r"] == "4.5"]
    dots = [float(e["cx"]) for e in elements(svg, "circle") if e["r"] == "3"]
    unit = (means[0] - float(zero["x1"])) / 2.0
    assert means[1] == pytest.approx(float(zero["x1"]) - 4 * unit, abs=0.3)
    assert dots == [pytest.approx(float(zero["x1"]) + v * unit, abs=0.3) for v in (1.8, 2.2)]
    ends = [(float(e["x1"]), float(e["x2"])) for e in elements(svg, "line") if "stroke" in e]
    assert len(ends) == 2  # the second row has no interval to draw
    assert ends[0] == pytest.approx((means[0] - unit, means[0] + unit), abs=0.3)
    assert ends[1] == pytest.approx((means[0] - unit / 2, means[0] + unit / 2), abs=0.3)
    assert "nan" not in svg


def test_curves_are_drawn_to_scale() -> None:
    svg = curve_chart([LINE], title="curve")
    (line,) = elements(svg, "polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line["points"].split())
    assert x1 > x0
    assert y1 < y0  # better is higher
    band = elements(svg, "polygon")[0]["points"].split()
    heights = [float(point.split(",")[1]) for point in band]
    per_point = (y0 - y1) / 3  # from 5 to 8
    assert heights == pytest.approx(
        [y0 - per_point, y1 - 2 * per_point, y1 + per_point, y0 + per_point], abs=0.3
    )
    assert line["stroke-dasharray"]


def test_a_chart_of_one_value_is_drawn() -> None:
    assert elements(interval_chart([IntervalRow("x", 0.0, NAN, NAN)], title=""), "circle")
