"""The curves of a fit as one HTML page without any script: trace, fit and baseline over each other."""

import math
from collections.abc import Callable
from html import escape

from pinchpoint.fitted import Curve, FitQuality

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 300, 56, 40, 16
SERIES = (("trace", "held-back half of the trace", "#1f2937", ""), ("fit", "this fit", "#2563eb", ""))
BASELINE = ("baseline", "Poisson + log-normal", "#dc2626", "5 4")
TICKS = 5
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2937;margin:2rem auto;max-width:1200px;padding:0 1rem;background:#fff}
h1{font-size:1.4rem;margin:0}p{margin:.3rem 0}.dim{color:#6b7280}.grid{display:flex;flex-wrap:wrap;gap:1.5rem}
figure{margin:0}figcaption{font-weight:600}table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.2rem .9rem .2rem 0;text-align:right}td:first-child,th:first-child{text-align:left}
th{color:#6b7280;font-weight:400}
svg text{font:12px system-ui,sans-serif;fill:#6b7280}.key span{margin-right:1.5rem}
.key i{display:inline-block;width:22px;height:0;border-top:3px solid;margin-right:.4rem;vertical-align:middle}
"""


def fit_page(found: FitQuality) -> str:
    """A whole page; all text of the trace's name is escaped."""
    rows = "".join(
        f"<tr><td>{escape(one.name)}{', distance' if one.distance else ''}</td>"
        + "".join(f"<td>{_number(x)}</td>" for x in (one.held, one.fit, one.baseline, one.floor))
        + "</tr>"
        for one in found.matches
    )
    key = "".join(
        f'<span><i style="border-color:{color};{"border-top-style:dashed" if dash else ""}"></i>{label}</span>'
        for _, label, color, dash in (*SERIES, BASELINE)
    )
    figures = "".join(f"<figure><figcaption>{escape(c.name)}</figcaption>{_svg(c)}</figure>" for c in found.curves)
    learnt = "".join(f"<p>{escape(line)}</p>" for line in found.summary)
    notes = "".join(f'<p class="dim">{escape(line)}</p>' for line in found.notes)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Fit of {escape(found.trace)}</title>'
        f"<style>{STYLE}</style><h1>Fit of {escape(found.trace)}</h1>"
        f'<p class="dim">{escape(found.format)}, {found.requests:,} requests; {found.held:,} of them held back</p>'
        f'{learnt}<p class="key">{key}</p><div class="grid">{figures}</div>'
        "<table><tr><th></th><th>held back</th><th>this fit</th><th>Poisson + log-normal</th><th>half to half</th></tr>"
        f"{rows}</table>{notes}</html>\n"
    )


def _svg(curve: Curve) -> str:
    xs = [x for x in curve.x if not curve.log or x > 0]
    low, high = min(xs), max(xs)
    top = max(1.0 if curve.log else 0.0, *curve.trace, *curve.fit, *curve.baseline) or 1.0

    def across(x: float) -> float:
        if curve.log:
            share = (math.log(x) - math.log(low)) / ((math.log(high) - math.log(low)) or 1.0)
        else:
            share = (x - low) / ((high - low) or 1.0)
        return LEFT + share * (WIDTH - LEFT - 10)

    def up(y: float) -> float:
        return TOP + (1 - y / top) * (HEIGHT - TOP - BOTTOM)

    lines = "".join(
        _line(curve.x, getattr(curve, name), across, up, color, dash) for name, _, color, dash in (BASELINE, *SERIES)
    )
    steps = [i / (TICKS - 1) for i in range(TICKS)]
    marks = [low * (high / low) ** s if curve.log else low + (high - low) * s for s in steps]
    below = "".join(
        f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{"end" if x == marks[-1] else "middle"}">'
        f"{_number(x)}</text>"
        for x in marks
    )
    beside = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{up(top * s):.1f}" y2="{up(top * s):.1f}" stroke="#e5e7eb"/>'
        f'<text x="{LEFT - 8}" y="{up(top * s) + 4:.1f}" text-anchor="end">{_number(top * s)}</text>'
        for s in steps
    )
    unit = f'<text x="{WIDTH - 10}" y="{HEIGHT - 6}" text-anchor="end">{escape(curve.unit)}</text>'
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{beside}{below}{unit}{lines}</svg>'


def _line(
    xs: tuple[float, ...],
    ys: tuple[float, ...],
    across: Callable[[float], float],
    up: Callable[[float], float],
    color: str,
    dash: str,
) -> str:
    points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(xs, ys, strict=True))
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline fill="none" stroke="{color}" stroke-width="2"{dashed} points="{points}"/>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
