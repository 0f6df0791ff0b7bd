"""What a run shows: a progress bar while it trains, a table at the end. Rank 0 only."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from pdadmm.admm.options import Config

__all__ = ["Progress", "final_table"]


class Progress:
    """Progress bar on a terminal, a line a stage elsewhere; silent when not enabled."""

    def __init__(self, config: Config, enabled: bool) -> None:
        self._console = Console(stderr=True)
        self._lines = enabled and not self._console.is_terminal
        self._per_stage = config.training.iterations
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=len(config.training.stages) * self._per_stage)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, record: dict[str, Any]) -> None:
        """Show the record of an evaluated iteration."""
        text = (
            f"{record['layers']} layers  objective {record['objective']:.4g}  residual "
            f"{record['primal_residual']:.2g}  "
            f"val {record['val_accuracy']:.3f}  test {record['test_accuracy']:.3f}"
        )
        self._bar.update(self._task, completed=record["iteration"], description=text)
        if self._lines and record["stage_iteration"] == self._per_stage:
            print(f"stage {record['stage']}: {text}", file=sys.stderr, flush=True)


def final_table(summary: dict[str, Any], folder: Path) -> None:
    """Print the results of a run."""
    sent, plain = summary["bytes_per_iteration"], summary["float32_bytes_per_iteration"]
    table = Table(
        show_header=False,
        title=f"{summary['dataset']}: {summary['layers']} layers on {summary['ranks']} ranks",
    )
    rows = [
        ("accuracy: train", f"{summary['train_accuracy']:.3f}"),
        ("validation", f"{summary['val_accuracy']:.3f}"),
        ("test", f"{summary['test_accuracy']:.3f}"),
        ("test at best validation", f"{summary['test_accuracy_at_best_val']:.3f}"),
        ("objective", f"{summary['objective']:.5g}"),
        ("primal residual", f"{summary['primal_residual']:.3g}"),
        ("codec", f"{summary['codec']}, {summary['bits']} bits"),
        ("bytes an iteration", f"{sent:,} ({sent / plain:.1%} of float32's {plain:,})" if plain else "0"),
        ("bytes saved", f"{1 - sent / plain:.1%}" if plain else "none: a single layer sends nothing"),
        ("seconds: all", f"{summary['seconds_total']:.2f}"),
        ("iterations", f"{summary['seconds_iterations']:.2f} for {summary['iterations']}"),
        ("evaluation", f"{summary['seconds_evaluation']:.2f}"),
        ("exposed communication, mean of ranks", f"{summary['seconds_exposed_communication']:.2f}"),
        ("results in", str(folder)),
    ]
    for name, value in rows:
        table.add_row(name, value)
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
