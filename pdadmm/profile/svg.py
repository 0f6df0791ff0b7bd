"""Bar charts as SVG text, with nothing but the standard library: a page of them needs no network.

Colours are CSS variables (``--c0`` and so on) so that the page can offer a light and a dark scheme.
"""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Callable, Sequence

__all__ = ["STYLE", "bars", "standalone", "ticks"]

#: light colours, then dark ones, of the page or file that holds the charts
STYLE = """
:root { --ink: #1d2733; --soft: #5b6876; --line: #dfe4ea; --paper: #ffffff; --card: #f7f9fb;
  --c0: #2f6db5; --c1: #7fb2e5; --c2: #e0a11b; --c3: #b9c2cc; --c4: #d1495b; --c5: #8d99a6;
  --c6: #4f9d69; --c7: #9a6fb0; --c8: #c98b5f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #9dabb9; --line: #303a45;
  --paper: #14191f; --card: #1b222a; --c0: #4f8fdc; --c1: #2c5d92; --c2: #e5b045; --c3: #56616d;
  --c4: #ea6577; --c5: #7b8794; --c6: #62b67f; --c7: #b48aca; --c8: #d9a57e; } }
svg { font: 12px system-ui, sans-serif; }
text { fill: var(--ink); } .tick, .axis { fill: var(--soft); } .value { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--line); }
"""

_WIDTH, _ROW, _GAP = 760, 20, 8
_TOP, _BOTTOM, _RIGHT, _LEGEND = 8, 40, 92, 26


def ticks(top: float, count: int = 5) -> list[float]:
    """About `count` round numbers from 0 to at least `top`."""
    rough = top / count
    if not rough >= sys.float_info.min:  # what is less has no powers of ten to go by
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def standalone(chart: str) -> str:
    """A chart as a file of its own."""
    head, rest = chart.split(">", 1)
    paper = '<rect width="100%" height="100%" style="fill:var(--paper)"/>'
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{paper}{rest}\n'


def bars(
    title: str,
    rows: Sequence[str],
    series: Sequence[tuple[str, Sequence[float | None]]],
    axis: str,
    show: Callable[[float], str],
    stacked: bool,
) -> str:
    """Horizontal bars, a row a label.

    Parameters
    ----------
    title, axis
        Above and below the chart.
    rows
        Labels.
    series
        Name and a value a row; None leaves a gap.
    show
        Text of a value.
    stacked
        One bar a row made of all series, or a bar a series side by side.
    """
    left = 14 + min(260, 7 * max((len(row) for row in rows), default=1))
    thick = _ROW if stacked else max(9, _ROW - 4 * (len(series) - 1))
    pitch = _GAP + (thick if stacked else thick * len(series))
    height = _LEGEND + _TOP + pitch * len(rows) + _BOTTOM
    totals = [
        sum(values[i] or 0.0 for _, values in series)
        if stacked
        else max((values[i] or 0.0 for _, values in series), default=0.0)
        for i in range(len(rows))
    ]
    marks = ticks(max(totals, default=0.0))
    scale = (_WIDTH - left - _RIGHT) / marks[-1]
    out = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(title)}">',
        *_legend([name for name, _ in series], left),
    ]
    base = _LEGEND + _TOP
    foot = base + pitch * len(rows)
    for mark in marks:
        x = left + mark * scale
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{base - 4}" y2="{foot}"/>')
        out.append(_text(x, foot + 14, show(mark), "middle", "tick"))
    out.append(_text(left + (_WIDTH - left - _RIGHT) / 2, foot + 32, axis, "middle", "axis"))
    for i, row in enumerate(rows):
        y = base + i * pitch
        middle = y + (pitch - _GAP) / 2 + 4
        out.append(_text(left - 8, middle, row, "end", "label"))
        x = float(left)
        for k, (name, values) in enumerate(series):
            value = values[i]
            if value is None:
                continue
            length = max(value * scale, 0.0)
            top = y if stacked else y + k * thick
            tip = html.escape(f"{row}, {name}: {show(value)}")
            out.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{length:.1f}" height="{thick - (not stacked)}" '
                f'rx="1.5" style="fill:var(--c{k})"><title>{tip}</title></rect>'
            )
            if stacked:
                x += length
            else:
                out.append(_text(left + length + 5, top + thick - 2, show(value), "start", "value"))
        if stacked:
            out.append(_text(x + 5, middle, show(totals[i]), "start", "value"))
    return "\n".join([*out, "</svg>"])


def _legend(names: Sequence[str], left: float) -> list[str]:
    out, x = [], float(left)
    for k, name in enumerate(names):
        out.append(f'<rect x="{x:.0f}" y="4" width="12" height="12" rx="2" style="fill:var(--c{k})"/>')
        out.append(_text(x + 17, 14, name, "start", "label"))
        x += 34 + 6.6 * len(name)
    return out


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(text)}</text>'
