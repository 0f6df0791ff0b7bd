"""A report as tables: in the terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pdadmm.files import write_json
from pdadmm.profile.figures import Figures
from pdadmm.profile.simulate import Outcome
from pdadmm.profile.units import rate, seconds, share, size
from pdadmm.runtime.console import plain_console

__all__ = ["QUANTITIES", "print_report", "title_of", "write_csv", "write_report_json"]

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
    ("parallel_efficiency", "parallel efficiency", "1", share, False),
)


def title_of(figures: Figures) -> str:
    """A line that says what a run was."""
    run = figures.run
    overlap = "" if run["overlap"] else ", no overlap"
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
    if predictions:
        _predictions(runs[0], predictions, console)


def _summary(runs: Sequence[Figures], console: Console) -> None:
    table = Table(title=title_of(runs[0]) if len(runs) == 1 else "last stage, warm-up dropped")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    first = runs[0]
    for attribute, text, _, show, compared in QUANTITIES:
        cells = []
        for run in runs:
            value, base = getattr(run, attribute), getattr(first, attribute)
            cell = show(value)
            if compared and run is not first and base:
                cell += f" ({value / base:.3g} x)"
            cells.append(cell)
        table.add_row(text, *cells)
    table.add_row("slowest rank", *(str(run.slowest_rank) for run in runs))
    table.add_row("slowest link", *(run.slowest_link or "none" for run in runs))
    table.add_row("iterations measured", *(str(run.iterations) for run in runs))
    console.print(table)


def _ranks(run: Figures, console: Console) -> None:
    table = Table(title=f"{run.name}: ranks, an iteration")
    for column in ("rank", "host", "layers"):
        table.add_column(column)
    columns = (
        "products",
        "updates",
        "send",
        "late sender",
        "exposed wait",
        "other",
        "eval.*",
        "saving*",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for rank in run.ranks:
        layers = f"{rank.layers[0]}-{rank.layers[-1]}" if len(rank.layers) > 1 else str(rank.layers[0])
        p = rank.phases
        values = (
            p["products"],
            p["updates"],
            p["send"],
            rank.late_sender,
            max(p["wait"] - rank.late_sender, 0.0),
            p["other"],
            rank.evaluation,
            rank.checkpoint,
        )
        table.add_row(str(rank.rank), rank.host, layers, *map(seconds, values))
    table.caption = (
        "* evaluation and checkpoints, of the whole run; encode and decode are part of the updates"
    )
    console.print(table)


def _links(run: Figures, console: Console) -> None:
    table = Table(title=f"{run.name}: links, a message")
    table.add_column("link")
    for column in ("bytes", "of float32", "bandwidth", "baseline", "waited for", "late sender", "exposed"):
        table.add_column(column, justify="right")
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
        )
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


def write_csv(path: Path, runs: Sequence[Figures]) -> None:
    """Write every number as a line: run, scope, item, quantity, unit, value."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("run", "scope", "item", "quantity", "unit", "value"))
        for run in runs:
            for attribute, _, unit, _, _ in QUANTITIES:
                lines.writerow((run.name, "run", "", attribute, unit, getattr(run, attribute)))
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
                    lines.writerow(
                        (run.name, "link", link.name, quantity, unit, "" if value is None else value)
                    )


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
