"""A report as tables: in the terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pdadmm.files import Record, write_json, write_text
from pdadmm.profile.figures import Figures
from pdadmm.profile.simulate import Outcome
from pdadmm.profile.units import rate, seconds, share, size
from pdadmm.runtime.console import plain_console
from pdadmm.trace.clock import PHASES

__all__ = [
    "CSV_COLUMNS",
    "QUANTITIES",
    "assignments_of",
    "print_report",
    "shares_of_time",
    "title_of",
    "write_csv",
    "write_report_json",
]

#: attribute, text, unit, how it is shown, whether ratios to the first run are
QUANTITIES: tuple[tuple[str, str, str, Callable[[float], str], bool], ...] = (
    ("iteration", "iteration", "s", seconds, True),
    ("bytes_per_iteration", "bytes an iteration", "bytes", size, True),
    ("float32_bytes_per_iteration", "as float32", "bytes", size, True),
    ("reduction", "bytes saved", "1", share, False),
    ("exposed_share", "exposed communication", "1", share, False),
    ("wait_share", "all waiting", "1", share, False),
    ("load_balance", "load balance", "1", share, False),
    ("communication_efficiency", "communication efficiency", "1", share, False),
    ("serialisation_efficiency", "of it serialisation", "1", share, False),
    ("transfer_efficiency", "of it transfer", "1", share, False),
    ("parallel_efficiency", "parallel efficiency", "1", share, False),
)

#: phases in the head of a narrow column
_SHORT = {"aggregation": "sparse", "reduction": "sums"}


def title_of(figures: Figures) -> str:
    """A line that says what a run was."""
    run = figures.run
    overlap = "" if run["overlap"] else ", no overlap"
    if run.get("system") == "graph":
        return (
            f"{figures.name}: {run['dataset']}, {run['model']} of {run['layers']} layers x {run['hidden']}, "
            f"{run['parts']} parts on {run['ranks']} ranks, {run['messages']}{overlap}"
        )
    return (
        f"{figures.name}: {run['dataset']}, {run['layers']} layers x {run['hidden']} on {run['ranks']} "
        f"ranks, {run['codec']} {run['bits']} bit{overlap}"
    )


def print_report(runs: Sequence[Figures], predictions: Sequence[tuple[str, Outcome]] = ()) -> None:
    """Print the tables of one run, or several runs side by side."""
    console = plain_console(110)
    _summary(runs, console)
    for run in runs:
        _ranks(run, console)
        if run.links:
            _links(run, console)
        if run.run.get("assignments"):
            _assignments(run, console)
    if predictions:
        _predictions(runs[0], predictions, console)


def _summary(runs: Sequence[Figures], console: Console) -> None:
    title = title_of(runs[0]) if len(runs) == 1 else "last stage, warm-up dropped"
    table = Table(title=title, min_width=len(title))  # a title is cut to the width of its table
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    first = runs[0]
    for attribute, text, _, show, compared in QUANTITIES:
        cells = []
        for run in runs:
            value, base = getattr(run, attribute), getattr(first, attribute)
            cell = "-" if value is None else show(value)
            if compared and run is not first and base:
                cell += f" ({value / base:.3g} x)"
            cells.append(cell)
        table.add_row(text, *cells)
    table.add_row("slowest rank", *(str(run.slowest_rank) for run in runs))
    table.add_row("slowest link", *(run.slowest_link or "none" for run in runs))
    table.add_row("iterations measured", *(str(run.iterations) for run in runs))
    console.print(table)


def _ranks(run: Figures, console: Console) -> None:
    parts = shares_of_time(run)
    padding = 0 if len(parts) > 7 else 1  # more columns than fit
    table = Table(title=f"{run.name}: ranks, an iteration", padding=(0, padding))
    of_graph = run.run.get("system") == "graph"  # of which every rank has all layers
    for column in ("rank", "host") if of_graph else ("rank", "host", "layers"):
        table.add_column(column)
    for column in (*parts, "eval.*", "saving*"):
        table.add_column(_SHORT.get(column, column), justify="right")
    for place, rank in enumerate(run.ranks):
        layers = f"{rank.layers[0]}-{rank.layers[-1]}" if len(rank.layers) > 1 else str(rank.layers[0])
        values = [*(of_ranks[place] for of_ranks in parts.values()), rank.evaluation, rank.checkpoint]
        head = (str(rank.rank), rank.host) if of_graph else (str(rank.rank), rank.host, layers)
        table.add_row(*head, *map(seconds, values))
    table.caption = "* evaluation and checkpoints, of the whole run"
    if "codec" not in parts:
        table.caption += "; encode and decode are part of the updates"
    console.print(table)


def shares_of_time(run: Figures) -> dict[str, list[float]]:
    """Seconds an iteration of every rank by what they went into; phases that the system has not left out."""
    found = {phase: [rank.phases[phase] for rank in run.ranks] for phase in PHASES if phase != "wait"}
    found = {
        phase: of_ranks
        for phase, of_ranks in found.items()
        if phase not in ("aggregation", "codec", "reduction") or any(of_ranks)
    }
    other = found.pop("other")
    found["late sender"] = [rank.late_sender for rank in run.ranks]
    found["exposed wait"] = [max(rank.phases["wait"] - rank.late_sender, 0.0) for rank in run.ranks]
    return {**found, "other": other}


def by_width(facts: Record) -> str:
    """Rows of a link by their bits."""
    return ", ".join(f"{bits}: {rows}" for bits, rows in facts.get("widths", {}).items())


def _links(run: Figures, console: Console) -> None:
    table = Table(title=f"{run.name}: links, a message")
    table.add_column("link")
    for column in ("bytes", "of float32", "bandwidth", "baseline", "waited for", "late sender", "exposed"):
        table.add_column(column, justify="right")
    has_widths = any("widths" in link.facts for link in run.links)
    if has_widths:
        table.add_column("rows by bits")
    for link in run.links:
        bandwidth = "-" if link.bandwidth is None else rate(link.bandwidth)
        table.add_row(
            link.name,
            size(link.bytes),
            share(link.bytes / link.float32_bytes),
            ("≥ " if link.waited < 0.5 else "") + bandwidth,
            "-" if link.baseline_bandwidth is None else rate(link.baseline_bandwidth),
            share(link.waited),
            seconds(link.late_sender),
            seconds(link.exposed),
            *([by_width(link.facts)] if has_widths else []),
        )
    console.print(table)


def assignments_of(run: Figures) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of the assignments of widths: mean bits of a row in every slot."""
    found = run.run["assignments"]
    slots = list(dict.fromkeys(slot for assigned in found for slot in assigned["widths"]))
    rows = []
    for assigned in found:
        cells = [str(assigned["epoch"]), seconds(assigned["seconds"])]
        for slot in slots:
            counts = {int(bits): rows for bits, rows in assigned["widths"].get(slot, {}).items()}
            of_slot = sum(counts.values())
            mean = sum(bits * count for bits, count in counts.items()) / of_slot if of_slot else None
            cells.append("-" if mean is None else f"{mean:.3g}")
        rows.append(cells)
    return ["before epoch", "took", *slots], rows


def _assignments(run: Figures, console: Console) -> None:
    head, rows = assignments_of(run)
    table = Table(title=f"{run.name}: assignments of widths, mean bits by slot")
    for column in head:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _predictions(run: Figures, predictions: Sequence[tuple[str, Outcome]], console: Console) -> None:
    table = Table(title=f"predicted from {run.name}")
    for column in ("scenario", "iteration", "of measured", "exposed communication", "load balance"):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    for name, outcome in predictions:
        busy = outcome.compute
        table.add_row(
            name,
            seconds(outcome.iteration),
            f"{outcome.iteration / run.iteration:.3g} x",
            share(outcome.exposed_share),
            share(sum(busy) / len(busy) / max(busy) if max(busy) else 1.0),
        )
    console.print(table)


CSV_COLUMNS = ("run", "scope", "item", "quantity", "unit", "value")


def write_csv(path: Path, runs: Sequence[Figures]) -> None:
    """Write every number as a line: run, scope, item, quantity, unit, value."""
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(CSV_COLUMNS)
    for run in runs:
        for attribute, _, unit, _, _ in QUANTITIES:
            value = getattr(run, attribute)
            lines.writerow((run.name, "run", "", attribute, unit, "" if value is None else value))
        for rank in run.ranks:
            values = {**rank.phases, "useful": rank.useful, "late_sender": rank.late_sender}
            values |= {"exposed": rank.exposed, "iteration": rank.iteration}
            for quantity, value in values.items():
                lines.writerow((run.name, "rank", rank.rank, quantity, "s", value))
        for link in run.links:
            for quantity, unit in (
                ("bytes", "bytes"),
                ("float32_bytes", "bytes"),
                ("bandwidth", "bytes/s"),
                ("baseline_bandwidth", "bytes/s"),
                ("wait", "s"),
                ("late_sender", "s"),
                ("exposed", "s"),
            ):
                value = getattr(link, quantity)
                lines.writerow((run.name, "link", link.name, quantity, unit, "" if value is None else value))
    write_text(path, text.getvalue())


def write_report_json(
    path: Path, runs: Sequence[Figures], predictions: Sequence[tuple[str, Outcome]] = ()
) -> None:
    """Write everything as JSON."""
    predicted = [
        {
            "scenario": name,
            "iteration": outcome.iteration,
            "exposed_share": outcome.exposed_share,
            "compute": outcome.compute,
            "late_sender": outcome.late_sender,
            "exposed": outcome.exposed,
        }
        for name, outcome in predictions
    ]
    write_json(path, {"runs": [run.table() for run in runs], "predictions": predicted})
