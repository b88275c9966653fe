"""Bars and curves as SVG, without a library."""

from __future__ import annotations

from html import escape
from math import floor, log2, log10
from typing import TYPE_CHECKING

from .outcome import spread

if TYPE_CHECKING:
    from .outcome import Metric, Outcome

__all__ = ["drawn"]

WIDTH, LEFT, RIGHT, STEP = 760, 250, 110, 24
HUES = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568", "#975a16", "#2c7a7b")
STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-size: 15px; font-weight: 600 } .small { font-size: 11px; fill: #666 }
.bar { fill: #a9b6c6 } .ours { fill: #2b6cb0 } .range { stroke: #222 } .grid { stroke: #ddd }
.ground { fill: #fff }
@media (prefers-color-scheme: dark) {
 text { fill: #eee } .small { fill: #aaa } .ground { fill: #161b22 } .grid { stroke: #333 }
 .bar { fill: #56657a } .ours { fill: #4299e1 } .range { stroke: #eee }
}
</style>"""


def drawn(outcome: Outcome) -> str:
    """Draw the first metric as bars; or a curve for each contestant, where there is an x axis."""
    curve = [metric for metric in outcome.metrics if metric.at is not None]
    return _curves(outcome, curve) if curve else _bars(outcome, outcome.metrics[0])


def _bars(outcome: Outcome, metric: Metric) -> str:
    rows = [
        (name, [value * metric.factor for value in spread(found[metric.key])])
        for name, found in outcome.figures.items()
        if found.get(metric.key)
    ]
    # One far beyond all others would flatten them: its bar is cut, its figure is not.
    middles = sorted(middle for _, (middle, _, _) in rows)
    top = middles[-1] if middles else 1.0
    if len(middles) > 3 and top > 3 * middles[len(middles) // 2]:
        top = 2.5 * middles[len(middles) // 2]
    scale = (WIDTH - LEFT - RIGHT) / (top * 1.1 or 1)
    end = WIDTH - RIGHT
    parts = []
    for number, (name, (middle, least, most)) in enumerate(rows):
        y = 62 + number * STEP
        kind = "ours" if name.startswith("ours") else "bar"
        low, mid, high = (min(end, LEFT + value * scale) for value in (least, middle, most))
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{mid - LEFT:.1f}" height="16"/>',
            f'<path class="range" d="M{low:.1f} {y + 8}H{high:.1f}"/>',
            f'<text x="{max(mid, high) + 6:.1f}" y="{y + 12}">'
            f"{middle:,.{metric.digits}f}{' …' if mid >= end else ''}</text>",
        ]
    better = "more is better" if metric.more_is_better else "less is better"
    return _framed(outcome, f"{metric.title}; {better}", 62 + len(rows) * STEP, parts)


def _curves(outcome: Outcome, metrics: list[Metric]) -> str:
    height, top, left, right = 300, 52, 70, 240
    xs = [log2(metric.at or 1) for metric in metrics]
    series = {
        name: [
            (x, spread(found[metric.key])[0] * metric.factor)
            for x, metric in zip(xs, metrics, strict=True)
            if found.get(metric.key)
        ]
        for name, found in outcome.figures.items()
    }
    series = {name: points for name, points in series.items() if points}
    most = max(y for points in series.values() for _, y in points) * 1.1
    span = (max(xs) - min(xs)) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - min(xs)) / span * (WIDTH - left - right),
            top + height - y / most * height,
        )

    parts = []
    step = _round(most / 5)
    for part in range(int(most / step) + 1):
        _, y = place(0, part * step)
        parts += [
            f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - right}"/>',
            f'<text class="small" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{part * step:,g}</text>",
        ]
    for x, metric in zip(xs, metrics, strict=True):
        at, _ = place(x, 0)
        parts.append(
            f'<text class="small" x="{at:.1f}" y="{top + height + 16}" text-anchor="middle">'
            f"{metric.at:g}</text>"
        )
    for number, (name, points) in enumerate(series.items()):
        hue = HUES[number % len(HUES)]
        way = "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in points)
        y = top + 14 + number * 20
        parts += [
            f'<path d="M{way}" fill="none" stroke="{hue}" stroke-width="2"/>',
            *(
                '<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>'.format(*place(*point), hue)
                for point in points
            ),
            f'<path d="M{WIDTH - right + 14} {y - 4}h18" stroke="{hue}" stroke-width="3"/>',
            f'<text x="{WIDTH - right + 38}" y="{y}">{escape(name)}</text>',
        ]
    return _framed(outcome, "", top + height + 24, parts)


def _round(step: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, …"""
    power = 10.0 ** floor(log10(step))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step)


def _framed(outcome: Outcome, subtitle: str, height: float, parts: list[str]) -> str:
    taken = outcome.circumstances.get("taken", "")
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height + 26:.0f}">',
        STYLE,
        f'<rect class="ground" width="{WIDTH}" height="{height + 26:.0f}"/>',
        f'<text class="title" x="16" y="26">{escape(outcome.title)}</text>',
        f'<text class="small" x="16" y="46">{escape(subtitle)}</text>',
    ]
    foot = f'<text class="small" x="16" y="{height + 16:.0f}">{escape(str(taken))}</text>'
    return "\n".join([*head, *parts, foot, "</svg>"]) + "\n"
