"""Small charts as SVG text, to stand inside an HTML page: as wide as a phone, light and dark.

Colours are CSS variables of the page (`--ink`, `--line`, `--accent`, `--c0` to `--c6`), so a chart
follows its theme. Text is never smaller than 11 units at a width of 360.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH = 360
MARGIN = 10
ROW = 40
NUM_COLORS = 7


class IntervalRow(NamedTuple):
    """A line of `interval_chart`. Ends that are NaN are not drawn."""

    label: str
    mean: float
    low: float
    high: float
    inner_low: float = math.nan
    inner_high: float = math.nan
    dots: tuple[float, ...] = ()
    color: int = 0


class CurveLine(NamedTuple):
    """A line of `curve_chart`: (x, mean, lowest, highest) at each point."""

    label: str
    points: tuple[tuple[float, float, float, float], ...]
    color: int
    dashed: bool = False


def interval_chart(rows: Sequence[IntervalRow], *, title: str, zero: bool = False) -> str:
    """Rows of a mean with one or two intervals and the values that it is the mean of.

    Args:
        zero: include 0 and draw a line there.
    """
    values = [v for r in rows for v in (r.mean, r.low, r.high, r.inner_low, r.inner_high, *r.dots)]
    scale = _Scale.over([*values, 0.0] if zero else values, MARGIN, WIDTH - MARGIN)
    height = ROW * len(rows) + 34
    parts = [_grid_x(scale, height - 28)]
    if zero:
        x = scale(0.0)
        parts.append(f'<line class="zero" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 28}"/>')
    for index, row in enumerate(rows):
        parts.append(_interval_row(row, scale, ROW * index + 6))
    parts.append(_text(WIDTH - MARGIN, height - 2, "AP", "end", "axis"))
    return _svg(parts, height, title)


def curve_chart(lines: Sequence[CurveLine], *, title: str) -> str:
    """AP over updates: curves with a band from lowest to highest value; the legend stands below."""
    xs = [point[0] for line in lines for point in line.points]
    ys = [value for line in lines for point in line.points for value in point[1:]]
    top, bottom, left = 18, 210, 34
    x_scale = _Scale.over([0.0, *xs], left, WIDTH - MARGIN)
    y_scale = _Scale.over([0.0, *ys], bottom, top)
    parts = []
    for tick in y_scale.ticks:
        y = y_scale(tick)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(left - 5, y + 4, _number(tick), "end", "axis"))
    for tick in x_scale.ticks:
        anchor = "end" if tick == x_scale.ticks[-1] else "middle"
        parts.append(_text(x_scale(tick), bottom + 15, _number(tick), anchor, "axis"))
    parts.append(_text(left, 11, "AP", "start", "axis"))
    parts.append(_text(WIDTH - MARGIN, bottom + 30, "updates", "end", "axis"))
    parts += [_band(line, x_scale, y_scale) for line in lines]
    parts += [_curve(line, x_scale, y_scale) for line in lines]
    height = bottom + 44
    for line in lines:
        style = f'stroke="var(--c{line.color % NUM_COLORS})"' + _dash(line)
        parts.append(
            f'<line class="curve" x1="{left}" x2="{left + 26}" y1="{height - 4}" '
            f'y2="{height - 4}" {style}/>'
        )
        parts.append(_text(left + 33, height, line.label, "start", "label"))
        height += 18
    return _svg(parts, height - 8, title)


class _Scale(NamedTuple):
    """Linear, from values to places, with round ticks."""

    first: float
    last: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        if high - low < 1e-9:
            low, high = low - 1, high + 1
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step) * step, math.ceil(high / step) * step
        count = round((last - first) / step)
        return cls(first, last, start, end, tuple(first + step * k for k in range(count + 1)))

    def __call__(self, value: float) -> float:
        share = (value - self.first) / (self.last - self.first)
        return self.start + share * (self.end - self.start)


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, at least `step`."""
    power = 10 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)


def _interval_row(row: IntervalRow, scale: _Scale, top: float) -> str:
    color = f"var(--c{row.color % NUM_COLORS})"
    y = top + 25
    value = f"{row.mean:+.1f}" if math.isfinite(row.inner_low) else f"{row.mean:.1f}"
    parts = [
        _text(MARGIN, top + 12, row.label, "start", "label"),
        _text(WIDTH - MARGIN, top + 12, value, "end", "value"),
    ]
    for low, high, width in ((row.low, row.high, 2.5), (row.inner_low, row.inner_high, 7)):
        if math.isfinite(low) and math.isfinite(high):
            opacity = 1 if width < 5 else 0.35
            parts.append(
                f'<line x1="{scale(low):.1f}" x2="{scale(high):.1f}" y1="{y}" y2="{y}" '
                f'stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity}" '
                'stroke-linecap="round"/>'
            )
    for dot in row.dots:
        parts.append(f'<circle class="dot" cx="{scale(dot):.1f}" cy="{y}" r="3" stroke="{color}"/>')
    x = scale(row.mean)
    parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="4.5" fill="{color}"/>')
    return "".join(parts)


def _grid_x(scale: _Scale, bottom: float) -> str:
    parts = []
    for tick in scale.ticks:
        x = scale(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>')
        anchor = "middle"
        if x - scale.start < 8:
            anchor = "start"
        if scale.end - x < 8:
            anchor = "end"
        parts.append(_text(x, bottom + 13, _number(tick), anchor, "axis"))
    return "".join(parts)


def _curve(line: CurveLine, x_scale: _Scale, y_scale: _Scale) -> str:
    places = [(x_scale(x), y_scale(mean)) for x, mean, _, _ in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    color = f"var(--c{line.color % NUM_COLORS})"
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>' for x, y in places)
    return f'<polyline class="curve" points="{path}" stroke="{color}"{_dash(line)}/>{dots}'


def _band(line: CurveLine, x_scale: _Scale, y_scale: _Scale) -> str:
    upper = [f"{x_scale(x):.1f},{y_scale(high):.1f}" for x, _, _, high in line.points]
    lower = [f"{x_scale(x):.1f},{y_scale(low):.1f}" for x, _, low, _ in reversed(line.points)]
    color = f"var(--c{line.color % NUM_COLORS})"
    return f'<polygon points="{" ".join(upper + lower)}" fill="{color}" fill-opacity="0.13"/>'


def _dash(line: CurveLine) -> str:
    return ' stroke-dasharray="5 4"' if line.dashed else ""


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 10 else f"{value:g}"


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, True)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
