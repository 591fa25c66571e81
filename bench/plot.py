"""Draws docs/plots/*.svg from `bench/results`: throughput against segment size, latency percentiles (bench).

`python bench/report.py measure && python bench/plot.py`. Plain SVG: nothing to install, and a drawing changes only with
its numbers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.report import SEGMENTS, load

PLOTS: Final = Path(__file__).resolve().parent.parent / "docs" / "plots"
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 80, 150, 46, 56
COLOURS: Final = ("#0b62a4", "#c0392b", "#2e8b57", "#8e5ea2", "#b8860b", "#555555")


@dataclass(frozen=True, slots=True)
class Series:
    """A line of points, in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, logarithmic, with ticks at `ticks` labelled as in `labels`."""

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    labels: Sequence[str]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))


def chart(title: str, note: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """The whole SVG."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return LEFT + x.place(point[0]) * (right - LEFT), bottom - y.place(point[1]) * (bottom - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 20, title, size=15),
        _text(LEFT, 36, note, colour="#666"),
        _text((LEFT + right) / 2, HEIGHT - 14, x.title, anchor="middle"),
        _text(18, (TOP + bottom) / 2, y.title, anchor="middle", turned=True),
    ]
    for tick, label in zip(x.ticks, x.labels, strict=True):
        across, _ = at((tick, y.low))
        parts += [_line(across, TOP, across, bottom), _text(across, bottom + 18, label, anchor="middle")]
    for tick, label in zip(y.ticks, y.labels, strict=True):
        _, down = at((x.low, tick))
        parts += [_line(LEFT, down, right, down), _text(LEFT - 8, down + 4, label, anchor="end")]
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(point) for point in one.points]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in places]
        parts.append(_text(right + 12, TOP + 14 + 20 * number, one.name, colour=colour))
    return "\n".join([*parts, "</svg>", ""])


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#222", turned: bool = False
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    look = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}{turn}>{escape(text)}</text>'


def _values(title: str, series: Sequence[Series]) -> Axis:
    """A logarithmic axis around all y values, with ticks at 1, 2 and 5."""
    values = [y for one in series for _, y in one.points]
    ticks = [digit * 10.0**power for power in range(-1, 8) for digit in (1, 2, 5)]
    low = max(tick for tick in ticks if tick <= min(values))
    high = min(tick for tick in ticks if tick >= max(values))
    shown = [tick for tick in ticks if low <= tick <= high]
    return Axis(title, low, high, shown, [f"{tick:,g}" for tick in shown])


def segments() -> str | None:
    """Throughput of one stream against the segment size, beside the C limit; TLS has no segments of that kind."""
    found = {size: result for size in SEGMENTS if (result := load(f"segment-{size}")) is not None}
    if not found:
        return None
    series = [Series("ours", [(size, result["ours"]) for size, result in found.items()])]
    limit = [(size, value) for size, result in found.items() if (value := result["peers"]["c-limit"])]
    series += [Series("c-limit", limit)] if limit else []
    stream = load("stream")
    if stream is not None and (tls := stream["peers"].get("uvloop-tls")):
        series.append(Series("uvloop-tls", [(min(found), tls), (max(found), tls)]))
    x = Axis("payload bytes of a segment", min(found), max(found), list(found), [f"{size:,}" for size in found])
    date = next(iter(found.values()))["machine"]["date"][:10]
    note = f"loopback, both ends pinned to a core of their own, medians, {date}"
    return chart("Throughput against segment size", note, x, _values("MB/s", series), series)


def percentiles() -> str | None:
    """Round trips of 64 bytes at p50, p90, p99 and p99.9."""
    result = load("echo")
    if result is None:
        return None
    names = list(result["percentiles"]["ours"])
    beyond = [1 / (1 - float(name[1:]) / 100) for name in names]
    series = [
        Series(subject, list(zip(beyond, spread.values(), strict=True)))
        for subject, spread in result["percentiles"].items()
    ]
    x = Axis("percentile", beyond[0], beyond[-1], beyond, names)
    note = f"loopback, both ends pinned to a core of their own, {result['machine']['date'][:10]}"
    return chart("Echo of 64 bytes", note, x, _values("microseconds", series), series)


DRAWINGS: Final = {"segments": segments, "latency": percentiles}


def main() -> None:
    """Writes what there are results for."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        if (drawing := draw()) is not None:
            (PLOTS / f"{name}.svg").write_text(drawing)
            print(PLOTS / f"{name}.svg")


if __name__ == "__main__":
    main()
