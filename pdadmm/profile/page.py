"""A report as one HTML page that needs nothing else: tables, and plots as inline SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from pdadmm.files import write_text
from pdadmm.profile.figures import Figures
from pdadmm.profile.report import QUANTITIES, assignments_of, shares_of_time, title_of
from pdadmm.profile.simulate import Outcome
from pdadmm.profile.svg import STYLE, bars
from pdadmm.profile.units import rate, seconds, share, size

__all__ = ["write_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: .95rem; color: var(--soft); font-weight: 600; margin-bottom: .3rem; }
p { color: var(--soft); max-width: 46rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
figure { margin: 1rem 0; padding: .8rem 1rem; background: var(--card); border-radius: 8px; overflow-x: auto; }
svg { width: 100%; min-width: 34rem; height: auto; }
"""


def write_page(path: Path, runs: Sequence[Figures], predictions: Sequence[tuple[str, Outcome]] = ()) -> None:
    """Write the report of one run, or of several side by side with ratios against the first."""
    body = ["<h1>pdadmm: communication profile</h1>", _about(), _comparison(runs)]
    if len(runs) > 1:
        body.append(_compared(runs))
    for run in runs:
        body.append(_section(run))
    if predictions:
        body.append(_predicted(runs[0], predictions))
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>pdadmm profile</title><style>{STYLE}{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n",
    )


def _about() -> str:
    return (
        "<p>Times are means of an iteration of the last stage, warm-up iterations dropped. Efficiencies are "
        "those of the POP Centre of Excellence. A wait is the sender's fault until the message is sent and "
        "exposed communication from then on.</p>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def _figure(title: str, chart: str) -> str:
    return f"<figure><h3>{html.escape(title)}</h3>{chart}</figure>"


def _comparison(runs: Sequence[Figures]) -> str:
    rows = []
    for attribute, text, _, show, compared in QUANTITIES:
        base = getattr(runs[0], attribute)
        cells = []
        for run in runs:
            value = getattr(run, attribute)
            ratio = f" ({value / base:.3g} ×)" if compared and run is not runs[0] and base else ""
            cells.append("-" if value is None else show(value) + ratio)
        rows.append([text, *cells])
    rows.append(["slowest rank", *(str(run.slowest_rank) for run in runs)])
    rows.append(["slowest link", *(run.slowest_link or "none" for run in runs)])
    return _table(["", *(run.name for run in runs)], rows)


def _compared(runs: Sequence[Figures]) -> str:
    names = [run.name for run in runs]
    time = bars(
        "iteration time", names, [("iteration", [r.iteration for r in runs])], "seconds", seconds, False
    )
    series = [
        (text, [getattr(run, name) for run in runs])
        for name, text in (
            ("load_balance", "load balance"),
            ("communication_efficiency", "communication efficiency"),
            ("parallel_efficiency", "parallel efficiency"),
        )
    ]
    efficiency = bars("efficiencies", names, series, "share", share, False)
    return _figure("Iteration time", time) + _figure("Efficiencies", efficiency)


def _section(run: Figures) -> str:
    parts = [f"<h2>{html.escape(title_of(run))}</h2>"]
    names = [f"rank {rank.rank}" for rank in run.ranks]
    series = list(shares_of_time(run).items())
    chart = bars("where an iteration goes", names, series, "an iteration", seconds, True)
    parts.append(_figure("Where an iteration goes", chart))
    if run.links:
        links = [link.name for link in run.links]
        sizes = [
            ("sent", [link.bytes for link in run.links]),
            ("as float32", [link.float32_bytes for link in run.links]),
        ]
        chart = bars("bytes a link", links, sizes, "bytes an iteration", size, False)
        parts.append(_figure("Bytes an iteration and link", chart))
        speeds: list[tuple[str, list[float | None]]] = [
            ("in the run", [link.bandwidth for link in run.links]),
        ]
        if any(link.baseline_bandwidth for link in run.links):
            speeds.append(("measured baseline", [link.baseline_bandwidth for link in run.links]))
        chart = bars("bandwidth of the links", links, speeds, "from send to receipt", rate, False)
        parts.append(_figure("Effective bandwidth (a lower bound where nothing waited)", chart))
    if run.run.get("assignments"):
        parts.append("<h3>Assignments of widths, mean bits by slot</h3>" + _table(*assignments_of(run)))
    return "\n".join(parts)


def _predicted(run: Figures, predictions: Sequence[tuple[str, Outcome]]) -> str:
    names = [name for name, _ in predictions]
    ranks = [len(outcome.compute) for _, outcome in predictions]
    series = [
        (text, [sum(getattr(o, part)) / n for (_, o), n in zip(predictions, ranks, strict=True)])
        for text, part in (("computing", "compute"), ("late sender", "late_sender"), ("exposed", "exposed"))
    ]
    chart = bars("predictions", names, series, "an iteration, mean of ranks", seconds, True)
    rows = [
        [name, seconds(o.iteration), f"{o.iteration / run.iteration:.3g} ×", share(o.exposed_share)]
        for name, o in predictions
    ]
    table = _table(["scenario", "iteration", "of measured", "exposed communication"], rows)
    return f"<h2>Predicted from {html.escape(run.name)}</h2>" + table + _figure("Predictions", chart)
