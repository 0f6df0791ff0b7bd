"""What a run says of itself: while it trains, in its files, and in the table at its end."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pdadmm
from pdadmm.errors import one_line
from pdadmm.files import Record
from pdadmm.inputs import class_prior
from pdadmm.runtime.console import print_results
from pdadmm.runtime.progress import Progress

if TYPE_CHECKING:
    from pdadmm.admm.trainer import Sizes, Trainer

__all__ = ["describe_run", "final_table", "in_profile", "show", "summarise"]

#: what profile.json says of a run, in its order
_PROFILE = (
    "dataset", "nodes_train", "widths", "layers", "hidden", "ranks", "shards", "placement", "codec", "bits",
    "solver",
    "step", "backend", "transport", "kernels", "overlap", "threads",
)  # fmt: skip
#: what summary.json begins with
_SUMMARY = (
    "dataset", "operators", "nodes_train", "layers", "hidden", "ranks", "shards", "backend", "transport",
    "kernels", "precision",
    "devices", "codec", "bits", "solver", "step", "nu", "rho", "mu", "class_prior", "start", "stages",
    "seed",
)  # fmt: skip


def show(progress: Progress, record: Record, per_stage: int) -> None:
    """Show the record of an evaluated iteration; a line at the end of a stage of `per_stage` iterations."""
    text = (
        f"{record['layers']} layers  objective {record['objective']:.4g}  residual "
        f"{record['primal_residual']:.2g}  "
        f"val {record['val_accuracy']:.3f}  test {record['test_accuracy']:.3f}"
    )
    ends = record["stage_iteration"] == per_stage
    progress.update(record["iteration"], text, f"stage {record['stage']}: {text}" if ends else None)


def describe_run(trainer: Trainer, sizes: Sizes, threads: int) -> Record:
    """All that is known of a run but its results: the summary and the profile each say a part of it."""
    c = trainer.config
    return {
        "dataset": sizes.dataset,
        "operators": sizes.operators,
        "nodes_train": sizes.rows["train"],
        "widths": trainer.widths,
        "layers": c.network.layers,
        "hidden": c.network.hidden,
        "ranks": trainer.waiter.comm.size,
        "shards": c.run.shards,
        "placement": [[block.start, block.stop - 1] for block in trainer.blocks],
        "backend": c.run.backend,
        "transport": c.run.transport,
        "kernels": trainer.passes.name,
        "precision": c.run.precision,
        "devices": trainer.choice.devices,
        "overlap": c.run.overlap,
        "threads": threads,
        "codec": c.messages.codec,
        "bits": c.messages.bits,
        "solver": c.training.solver,
        "step": c.training.step,
        "nu": c.training.nu,
        "rho": c.training.rho,
        "mu": c.training.mu,
        "class_prior": c.training.class_prior,
        "stages": c.training.stages,
        "start": c.training.start,
        "seed": c.training.seed,
    }


def in_profile(run: Record) -> Record:
    """Head of profile.json."""
    return {name: run[name] for name in _PROFILE}


def summarise(run: Record, trainer: Trainer) -> Record:
    """summary.json but for the seconds of the whole; collective."""
    return {
        "version": pdadmm.__version__,
        **{name: run[name] for name in _SUMMARY},
        "iterations": trainer.iteration,
        **trainer.summary(),
        "threads": run["threads"],
        "placement": run["placement"],
        "hosts": trainer.waiter.gather(platform.node()),
    }


def final_table(summary: Record, folder: Path) -> None:
    """Print the results of a run."""
    sent, plain = summary["bytes_per_iteration"], summary["float32_bytes_per_iteration"]
    layers = summary["layers_at_best_val"]
    at_best = "" if layers == summary["layers"] else f" (of {layers} layers)"
    title = f"{summary['dataset']}: {summary['layers']} layers on {summary['ranks']} ranks"
    rows = [
        ("accuracy: train", f"{summary['train_accuracy']:.3f}"),
        ("validation", f"{summary['val_accuracy']:.3f}"),
        ("test", f"{summary['test_accuracy']:.3f}"),
        ("test at best validation", f"{summary['test_accuracy_at_best_val']:.3f}{at_best}"),
        *class_prior.rows_of_results(summary["class_prior"]),
        ("operators of the inputs", one_line(summary["operators"])),
        ("objective", f"{summary['objective']:.5g}"),
        ("primal residual", f"{summary['primal_residual']:.3g}"),
        ("codec", f"{summary['codec']}, {summary['bits']} bits"),
        ("bytes an iteration", f"{sent:,} ({sent / plain:.1%} of float32's {plain:,})" if plain else "0"),
        ("bytes saved", f"{1 - sent / plain:.1%}" if plain else "none: a single layer sends nothing"),
        *(
            [("sums over shards, bytes an iteration", f"{summary['reduction_bytes_per_iteration']:,}")]
            if summary["shards"] > 1
            else []
        ),
        ("seconds: all", f"{summary['seconds_total']:.2f}"),
        ("iterations", f"{summary['seconds_iterations']:.2f} for {summary['iterations']}"),
        ("evaluation", f"{summary['seconds_evaluation']:.2f}"),
        ("exposed communication, mean of ranks", f"{summary['seconds_exposed_communication']:.2f}"),
        ("results in", one_line(folder)),
    ]
    print_results(title, rows)
