"""Draw charts as inline SVG: no script, no extra file, colours that follow light and dark mode.

Every chart is drawn about 400 units wide, so that its text stays legible on a telephone. matplotlib
computes the ticks; its own SVG has fixed colours and draws text as paths, which neither follow the
page from light to dark nor can be read aloud.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 40
COLOURS = 8  # the page defines --c0 to --c7


@dataclass
class Series:
    """Describe a line of a chart.

    Attributes:
        name: what the legend calls it.
        x, y: its points; those with a None or NaN are left out and the line breaks there.
        colour: index of the page's colour (default: its place in the chart).
        faint: draw it thin and pale, and leave it out of the legend.
        strength: opacity of the line; those of an ordered family share a colour and differ in it.
        named: whether the legend names it.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int | None = None
    faint: bool = False
    strength: float = 1.0
    named: bool = True


def number(value: float | None, digits: int = 4) -> str:
    """Format a figure for readers: 0.8312, 12,345, 1e-05; an en dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    log: bool = False,
    markers: bool = False,
    legend_of_one: bool = False,
) -> Markup:
    """Draw lines over a common axis, with a legend below where there are several.

    Args:
        series: the lines.
        title: caption, also for screen readers.
        x_label, y_label: names of the axes, with units.
        y_limits: limits of the y axis (default: those of the data).
        log: make the y axis logarithmic; points at zero or below are left out.
        markers: mark each point with a dot, which shows its value under the pointer.
        legend_of_one: draw a legend for a single line too.
    """
    clean = [(s, _points(s, log)) for s in series]
    points = [point for _, parts in clean for part in parts for point in part]
    if not points:
        return Markup()
    xs = [x for x, _ in points]
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_low, y_high = y_limits or (min(y for _, y in points), max(y for _, y in points))
    if log:
        y_ticks = [t for t in LogLocator(numticks=6).tick_values(y_low, y_high) if t > 0]
        y_low, y_high = min(y_low, y_high * 0.9), max(y_high, y_low * 1.1)
        y_ticks = [t for t in y_ticks if y_low <= t <= y_high]
        if len(y_ticks) < 2:  # less than a decade
            y_ticks = [t for t in MaxNLocator(4).tick_values(y_low, y_high) if y_low <= t <= y_high]
    else:
        if y_low == y_high:
            spread = abs(y_low) * 0.1 or 1.0
            y_low, y_high = y_low - spread, y_high + spread
        y_ticks = list(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(y_low, y_high))
        if y_limits is None:
            y_low, y_high = y_ticks[0], y_ticks[-1]
        y_ticks = [t for t in y_ticks if y_low - 1e-12 <= t <= y_high + 1e-12]
    locator = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=x_high - x_low > 2)
    x_ticks = [t for t in locator.tick_values(x_low, x_high) if x_low <= t <= x_high]

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        if log:
            y, low, high = math.log(y), math.log(y_low), math.log(y_high)
        else:
            low, high = y_low, y_high
        share = min(max((y - low) / (high - low), 0), 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in y_ticks:
        y = down(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{_tick(tick)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for tick in x_ticks:
        x = across(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 17}" class="mid">{_tick(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" class="mid label">{escape(x_label)}</text>')
    height = (TOP + base) / 2
    parts.append(
        f'<text transform="translate(11 {height}) rotate(-90)" class="mid label">'
        f"{escape(y_label)}</text>"
    )
    legend = []
    for place, (line, pieces) in enumerate(clean):
        colour = (place if line.colour is None else line.colour) % COLOURS
        if not pieces:
            continue
        # Beyond the page's colours the lines repeat them, dashed.
        dash = ' stroke-dasharray="5 3"' if place >= COLOURS and line.colour is None else ""
        pale = f' opacity="{line.strength:.2f}"' if line.strength < 1 else ""
        kind = f"line faint c{colour}" if line.faint else f"line c{colour}"
        for piece in pieces:
            path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in piece)
            if len(piece) > 1:
                parts.append(
                    f'<polyline class="{kind}"{dash}{pale} points="{path}">'
                    f"<title>{escape(line.name)}</title></polyline>"
                )
            if markers or len(piece) == 1:
                parts += [
                    f'<circle class="dot c{colour}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="3">'
                    f"<title>{escape(line.name)}: {number(y)} at {number(x)}</title></circle>"
                    for x, y in piece
                ]
        if line.named and not line.faint:
            mark = "key dashed" if dash else "key"
            tint = f' style="opacity:{line.strength:.2f}"' if pale else ""
            legend.append(f'<li><i class="{mark} c{colour}"{tint}></i>{escape(line.name)}</li>')
    keys = (
        f'<ul class="legend">{"".join(legend)}</ul>'
        if len(legend) > (0 if legend_of_one else 1)
        else ""
    )
    return _figure(title, WIDTH, HEIGHT, parts, keys)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float]],
    hovers: Sequence[Sequence[str]],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> Markup:
    """Draw a matrix of shares in [0, 1] as shaded squares labelled in per cent.

    Args:
        rows, columns: names.
        shares: one row of values for each of `rows`.
        hovers: text of each cell under the pointer.
        title: caption.
        x_label, y_label: what columns and rows are.
    """
    side = 34 if len(columns) <= 12 else 22
    longest = max(len(name) for name in (*rows, *columns))
    left = min(16 + 6.2 * min(longest, 18), 128) + 16
    top = min(10 + 4.6 * min(longest, 18), 96) + 18
    width = left + side * len(columns) + 40
    height = top + side * len(rows) + 6
    parts = [
        f'<text x="{left}" y="12" class="label">{escape(x_label)} →</text>',
        f'<text transform="translate(11 {top + side * len(rows) / 2}) rotate(-90)" '
        f'class="mid label">← {escape(y_label)}</text>',
    ]
    for j, name in enumerate(columns):
        x = left + side * (j + 0.5)
        parts.append(
            f'<text transform="translate({x:.1f} {top - 6:.1f}) rotate(-40)">{_short(name)}</text>'
        )
    for i, name in enumerate(rows):
        y = top + side * i
        parts.append(
            f'<text x="{left - 6:.1f}" y="{y + side / 2 + 4:.1f}" class="end">{_short(name)}</text>'
        )
        for j, share in enumerate(shares[i]):
            x = left + side * j
            parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{side - 1}" '
                f'height="{side - 1}" fill-opacity="{max(share, 0.04):.2f}">'
                f"<title>{escape(hovers[i][j])}</title></rect>"
            )
            if side > 30 and share >= 0.005:
                ink = "in" if share > 0.55 else "mid"
                parts.append(
                    f'<text class="mid {ink}" x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}">'
                    f"{share * 100:.0f}</text>"
                )
    return _figure(title, width, height, parts, "", scroll=True)


def _points(series: Series, log: bool) -> list[list[tuple[float, float]]]:
    """Return unbroken runs of points that can be drawn."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if y is None or not math.isfinite(y) or (log and y <= 0):
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _tick(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def _short(name: str) -> str:
    return escape(name if len(name) <= 18 else f"{name[:17]}…")


def _figure(
    title: str, width: float, height: float, parts: list[str], legend: str, scroll: bool = False
) -> Markup:
    size = f' style="width:{width:.0f}px"' if scroll else ""
    box = ' class="scroll"' if scroll else ""
    return Markup(
        f'<figure><figcaption>{escape(title)}</figcaption><div{box}><svg{size} role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></div>{legend}</figure>"
    )
