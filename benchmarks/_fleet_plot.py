"""A plot of lines over time as SVG, without a library."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["lines"]

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 860, 400, 64, 74, 48
HUES = ("#c05621", "#975a16", "#6b46c1", "#2f855a", "#2b6cb0")
STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-size: 15px; font-weight: 600 }
.small { font-size: 11px; fill: #666 } .grid { stroke: #ddd } .ground { fill: #fff }
@media (prefers-color-scheme: dark) {
 text { fill: #eee } .small { fill: #aaa } .grid { stroke: #333 } .ground { fill: #161b22 }
}
</style>"""


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
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        STYLE,
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
        f'<text class="small" x="16" y="{TOP - 10}">{escape(up)}</text>',
        f'<text class="small" x="16" y="{HEIGHT - 8}">{escape(across)}</text>',
    ]
    for part in range(5):
        y = top * part / 4
        start, end = place(first, y), place(last, y)
        at = f'x="{LEFT - 8}" y="{float(start.partition(",")[2]) + 4:.1f}"'
        out += [
            f'<path class="grid" d="M{start}L{end}"/>',
            f'<text class="small" {at} text-anchor="end">{y:,.0f}</text>',
        ]
    for part in range(11):
        x = first + (last - first) * part / 10
        column = place(x, 0).partition(",")[0]
        out.append(
            f'<text class="small" x="{column}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>'
        )
    legend = 16
    for number, (name, each) in enumerate(series.items()):
        hue = HUES[number % len(HUES)]
        way = "L".join(place(x, y) for x, y in each)
        out += [
            f'<path d="M{way}" fill="none" stroke="{hue}" stroke-width="2"/>',
            f'<path d="M{legend} 42h18" stroke="{hue}" stroke-width="3"/>',
            f'<text x="{legend + 24}" y="46">{escape(name)}</text>',
        ]
        legend += 48 + 7 * len(name)
    return "\n".join([*out, "</svg>", ""])
