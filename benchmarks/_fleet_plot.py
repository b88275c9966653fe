"""A plot of lines over time as SVG, without a library."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["lines"]

COLOURS = ("#b3261e", "#c77700", "#7a5195", "#1a7f37", "#0b57d0")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 860, 400, 64, 70, 48


def lines(
    title: str, across: str, up: str, series: Mapping[str, Sequence[tuple[float, float]]]
) -> str:
    """Return a picture of several series of points.

    Args:
        title: Above it.
        across: What the horizontal axis shows.
        up: What the vertical axis shows; it starts at 0.
        series: Points by name, from left to right.
    """
    points = [point for each in series.values() for point in each]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    top = max(y for _, y in points) or 1.0
    bottom = HEIGHT - BOTTOM

    def place(x: float, y: float) -> str:
        column = LEFT + (WIDTH - LEFT - 16) * (x - first) / (last - first)
        return f"{column:.1f},{bottom - (bottom - TOP) * y / top:.1f}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for part in range(5):
        y = top * part / 4
        start, end = place(first, y), place(last, y)
        out.append(f'<polyline points="{start} {end}" stroke="#dddddd"/>')
        row = start.partition(",")[2]
        out.append(f'<text x="{LEFT - 8}" y="{row}" dy="4" text-anchor="end">{y:,.0f}</text>')
    for part in range(11):
        x = first + (last - first) * part / 10
        column = place(x, 0).partition(",")[0]
        out.append(f'<text x="{column}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>')
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(across)}</text>')
    out.append(f'<text x="{LEFT}" y="{TOP - 8}" fill="#555555">{escape(up)}</text>')
    legend = LEFT
    for colour, (name, each) in zip(COLOURS, series.items(), strict=False):
        path = " ".join(place(x, y) for x, y in each)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        out.append(f'<text x="{legend}" y="44" fill="{colour}">{escape(name)}</text>')
        legend += 24 + 7 * len(name)
    return "\n".join([*out, "</svg>", ""])
