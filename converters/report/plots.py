"""The plots of a report as inline SVG. Colours are CSS classes of the report's page, so that they follow its
light and dark themes and print."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 320, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 44


def error_by_candidates(title: str, errors: Sequence[tuple[int, float]], tolerance: float) -> str:
    """Largest absolute error for each number of candidates, on a logarithmic axis with the tolerance."""
    seen = [e for _, e in errors if e > 0 and math.isfinite(e)] + [tolerance]
    low, high = math.floor(math.log10(min(seen))) - 1, math.ceil(math.log10(max(seen)) + 0.3)
    y = _Axis(low, high, HEIGHT - _BOTTOM, _TOP)
    step = (WIDTH - _LEFT - _RIGHT) / max(len(errors), 1)
    marks = [
        _grid(y, [(e, "0" if e == low else f"1e{e}") for e in range(low, high + 1)]),
        f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(math.log10(tolerance)):.1f}" '
        f'y2="{y(math.log10(tolerance)):.1f}"/>',
        _text(WIDTH - _RIGHT - 2, y(math.log10(tolerance)) - 4, f"tolerance {tolerance:.0e}", "end", "limit"),
    ]
    points = []
    for i, (rows, error) in enumerate(errors):
        x = _LEFT + step * (i + 0.5)
        top = y(math.log10(error) if error > 0 and math.isfinite(error) else low if error == 0 else high)
        points.append((x, top))
        marks.append(_text(x, HEIGHT - _BOTTOM + 16, f"{rows:,}", "middle"))
    path = " ".join(f"{x:.1f},{top:.1f}" for x, top in points)
    marks.append(f'<polyline class="line" points="{path}"/>')
    for (x, top), (rows, error) in zip(points, errors, strict=True):
        tip = f"{rows:,} candidates: {error:.2e}"
        marks.append(f'<circle class="dot" cx="{x:.1f}" cy="{top:.1f}" r="4"><title>{tip}</title></circle>')
    return _figure(title, "candidates of a request", marks)


def scatter(title: str, expected: Sequence[float], found: Sequence[float]) -> str:
    """Our score against TensorFlow's; equal scores lie on the diagonal."""
    values = [*expected, *found] or [0.0]
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
    x = _Axis(low - margin, high + margin, _LEFT, WIDTH - _RIGHT)
    y = _Axis(low - margin, high + margin, HEIGHT - _BOTTOM, _TOP)
    ticks = [low, (low + high) / 2, high] if high > low else [low]
    marks = [_grid(y, [(t, f"{t:.3g}") for t in ticks])]
    marks += [_text(x(t), HEIGHT - _BOTTOM + 16, f"{t:.3g}", "middle") for t in ticks]
    marks.append(
        f'<line class="limit" x1="{x(low - margin):.1f}" y1="{y(low - margin):.1f}" '
        f'x2="{x(high + margin):.1f}" y2="{y(high + margin):.1f}"/>'
    )
    marks += [
        f'<circle class="point" cx="{x(e):.1f}" cy="{y(f):.1f}" r="2.5"/>'
        for e, f in zip(expected, found, strict=True)
    ]
    return _figure(title, "TensorFlow's score", marks)


def error_histogram(title: str, exact: int, errors: Sequence[int], edges: Sequence[float]) -> str:
    """Values by the size of their error; the first bar has those without one."""
    bars = [exact, *errors]
    # Bars that hold nothing at the large end only take room from those that do.
    last = max([i for i, count in enumerate(bars) if count], default=0)
    shown = bars[: min(max(last + 2, 5), len(bars))]
    total = max(sum(bars), 1)
    top = max(max(shown), 1) / total
    y = _Axis(0.0, top, HEIGHT - _BOTTOM, _TOP)
    step = (WIDTH - _LEFT - _RIGHT) / len(shown)
    marks = [_grid(y, [(t, f"{t:.0%}") for t in (0.0, top / 2, top)])]
    names = ["0", f"<{edges[0]:.0e}", *(f"{e:.0e}" for e in edges)]
    for i, count in enumerate(shown):
        x, above = _LEFT + step * i, y(count / total)
        tip = f"{count:,} values, error {names[i]}{' and more' if i > 1 else ''}"
        marks.append(
            f'<rect class="bar" x="{x + 1.5:.1f}" y="{above:.1f}" width="{step - 3:.1f}" '
            f'height="{max(HEIGHT - _BOTTOM - above, 0):.1f}"><title>{escape(tip)}</title></rect>'
        )
        label = names[i].replace("e-0", "e-").replace("1e+00", "1")
        marks.append(_text(x + step / 2, HEIGHT - _BOTTOM + 14, label, "middle", "small"))
    return _figure(title, "error (absolute up to 1, relative beyond)", marks)


class _Axis:
    """Maps values linearly to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def _grid(y: _Axis, ticks: Sequence[tuple[float, str]]) -> str:
    lines = []
    for value, label in ticks:
        at = y(value)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(_text(_LEFT - 6, at + 4, label, "end"))
    return "".join(lines)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, x_label: str, marks: Sequence[str]) -> str:
    axis = _text(_LEFT + (WIDTH - _LEFT - _RIGHT) / 2, HEIGHT - 8, x_label, "middle")
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">{"".join(marks)}{axis}</svg>'
        "</figure>"
    )
