"""Line charts as inline SVG: no script, no font, no network; values appear on hover.

Colours are CSS variables with a fallback, so that a page may have a dark side. Each line is drawn three times, raw and
smoothed a little and much, as classes `s0`, `s1`, `s2`; a page shows one, and without its style only the raw one shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from mmrl.pipelines.palette import LINE, SERIES, SOFT

WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 54, 8, 8, 22
LABEL = f'font-size="10" fill="var(--soft, {SOFT})"'
MARKED = 16
"""Series with at most so many points get dots."""
MOST_POINTS, MOST_DOTS = 400, 120
"""Drawn of a series, evenly spread, the last always among them; dots hold the values that appear on hover."""
SMOOTHING = (0.0, 0.6, 0.9)
"""What a smoothed line keeps of what came before."""
DASHES = ("", "7 3", "2 3", "9 3 2 3")
"""Lines that lie on each other are all seen."""

Point = tuple[float, float]


def line_chart(series: Mapping[str, Sequence[Point]]) -> str:
    """`{name: [(x, y), ...]}` to an SVG with axes, grid and a legend below it. Points that are not finite are left
    out; no points at all give an empty string. A series without points leaves the others their colours."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    everything = [point for points in finite.values() for point in points]
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    x_ticks = [x for x in ticks(first, last, whole=True) if first <= x <= last] or [first]
    y_ticks = ticks(min(y for _, y in everything), max(y for _, y in everything))
    x_at = _scale(first, last, LEFT + 6, WIDTH - RIGHT - 6)
    y_at = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(", ".join(finite))} over steps">']
    for y in y_ticks:
        parts.append(f'<path stroke="var(--line, {LINE})" d="M{LEFT} {y_at(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text text-anchor="end" x="{LEFT - 6}" y="{y_at(y) + 3.5:.1f}" {LABEL}>{y:.4g}</text>')
    parts += [f'<text text-anchor="middle" x="{x_at(x):.1f}" y="{HEIGHT - 6}" {LABEL}>{x:.4g}</text>' for x in x_ticks]
    numbers = {name: number for number, name in enumerate(series) if name in finite}
    for name, points in finite.items():
        parts.append(_series(numbers[name], name, points, lambda x, y: (f"{x_at(x):.1f}", f"{y_at(y):.1f}")))
    return "".join([*parts, "</svg>", legend(numbers) if len(series) > 1 else ""])


def _series(number: int, name: str, points: Sequence[Point], at: Callable[[float, float], tuple[str, str]]) -> str:
    """One line at each smoothing, and its dots."""
    parts = []
    for level, keep in enumerate(SMOOTHING):
        line = " ".join(",".join(at(x, y)) for x, y in thinned(smoothed(points, keep), MOST_POINTS))
        hidden = ' style="display:none"' if level else ""
        dash = DASHES[number % len(DASHES)]
        parts.append(
            f'<polyline class="s{level}"{hidden} points="{line}" fill="none" stroke="{ink(number)}" stroke-width="1.7" '
            f'stroke-dasharray="{dash}"/>'
        )
    shown = "" if len(points) <= MARKED else ' opacity="0"'
    for x, y in thinned(points, MOST_DOTS):
        cx, cy = at(x, y)
        parts.append(f'<circle cx="{cx}" cy="{cy}" r="2.4" fill="{ink(number)}"{shown}>')
        parts.append(f"<title>{escape(name)}, step {x:g}: {y:.4g}</title></circle>")
    return "".join(parts)


def ink(number: int) -> str:
    """The colour of a series."""
    place = number % len(SERIES)
    return f"var(--series-{place}, {SERIES[place]})"


def smoothed(points: Sequence[Point], keep: float) -> list[Point]:
    """An exponential mean, unbiased at its start: each point counts `keep` times less for every later one."""
    out, total, weight = [], 0.0, 0.0
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        out.append((x, total / weight))
    return out


def thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    if len(points) <= most:
        return points
    last = len(points) - 1
    return [points[round(i * last / (most - 1))] for i in range(most)]


def legend(numbers: Mapping[str, int]) -> str:
    keys = (f'<span><i style="background:{ink(n)}"></i>{escape(name)}</span>' for name, n in numbers.items())
    return f'<div class="legend">{"".join(keys)}</div>'


def ticks(low: float, high: float, *, whole: bool = False, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers around [low, high]; a single value gets room on both sides."""
    if low == high:
        low, high = (low, low + 1) if whole or low == 0 else (low - abs(low) / 2, high + abs(low) / 2)
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    step = max(1.0, math.ceil(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float):
    return lambda value: start + (value - low) / ((high - low) or 1) * (end - start)
