"""Line charts as inline SVG: no script, no font, no network; values appear on hover."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from mmrl.pipelines.palette import LINE, SERIES, SOFT

WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22
LABEL = f'font-size="10" fill="{SOFT}"'
MARKED = 16
"""Series with at most so many points get dots."""

Point = tuple[float, float]


def line_chart(series: Mapping[str, Sequence[Point]]) -> str:
    """`{name: [(x, y), ...]}` to an SVG with axes, grid and a legend below it. Points that are not finite are left
    out; no points at all give an empty string."""
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
        parts.append(f'<path stroke="{LINE}" d="M{LEFT} {y_at(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text text-anchor="end" x="{LEFT - 6}" y="{y_at(y) + 3.5:.1f}" {LABEL}>{y:.4g}</text>')
    parts += [f'<text text-anchor="middle" x="{x_at(x):.1f}" y="{HEIGHT - 6}" {LABEL}>{x:.4g}</text>' for x in x_ticks]
    for ink, (name, points) in zip(SERIES * 9, finite.items(), strict=False):
        line = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{ink}" stroke-width="1.7"/>')
        for x, y in points:
            shown = "" if len(points) <= MARKED else ' opacity="0"'
            where = f'cx="{x_at(x):.1f}" cy="{y_at(y):.1f}"'
            parts.append(f'<circle {where} r="2.4" fill="{ink}"{shown}>')
            parts.append(f"<title>{escape(name)}, step {x:g}: {y:.4g}</title></circle>")
    return "".join([*parts, "</svg>", legend(list(finite)) if len(finite) > 1 else ""])


def legend(names: Sequence[str]) -> str:
    keys = (
        f'<span><i style="background:{ink}"></i>{escape(n)}</span>' for ink, n in zip(SERIES * 9, names, strict=False)
    )
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
