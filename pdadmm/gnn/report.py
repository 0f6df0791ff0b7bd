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
    from pdadmm.gnn.trainer import Trainer

__all__ = ["final_table", "in_profile", "show", "summarise"]


def show(progress: Progress, record: Record, epochs: int) -> None:
    """Show the record of an evaluation; a line at the end of `epochs`."""
    text = (
        f"epoch {record['epoch']}  loss {record['loss']:.4g}  "
        f"val {record['val_accuracy']:.3f}  test {record['test_accuracy']:.3f}"
    )
    progress.update(record["epoch"], text, text if record["epoch"] == epochs else None)


def summarise(trainer: Trainer, threads: int) -> Record:
    """summary.json but for the seconds of the whole; collective."""
    c, f = trainer.config, trainer.facts
    return {
        "version": pdadmm.__version__,
        "dataset": f.dataset,
        "nodes": f.nodes,
        "edges": f.edges,
        "parts": f.parts,
        "ranks": trainer.waiter.comm.size,
        "partitioner": f.partitioner,
        "edge_cut": f.edge_cut,
        "halo_rows": f.halo_rows,
        "model": c.network.model,
        "layers": c.network.layers,
        "hidden": c.network.hidden,
        "dropout": c.network.dropout,
        "order": c.network.order,
        "messages": c.messages.messages,
        "forward": c.messages.forward,
        "backward": c.messages.backward,
        "bits": c.messages.bits,
        "lambda": c.messages.lambda_,
        "reassign": c.messages.reassign,
        "epochs": trainer.epoch,
        "lr": c.training.lr,
        "weight_decay": c.training.weight_decay,
        "class_prior": c.training.class_prior,
        "seed": c.training.seed,
        "backend": c.run.backend,
        "transport": c.run.transport,
        "kernels": trainer.passes.name,
        "precision": c.run.precision,
        "devices": trainer.choice.devices,
        "overlap": c.run.overlap,
        "threads": threads,
        **trainer.summary(),
        "hosts": trainer.waiter.gather(platform.node()),
    }


def in_profile(trainer: Trainer, threads: int) -> Record:
    """Head of profile.json; collective."""
    c, f = trainer.config, trainer.facts
    traffic = trainer.traffic()
    return {
        "system": "graph",
        "dataset": f.dataset,
        "model": c.network.model,
        "widths": list(trainer.shape.widths),
        "layers": c.network.layers,
        "hidden": c.network.hidden,
        "parts": f.parts,
        "ranks": trainer.waiter.comm.size,
        "messages": c.messages.messages,
        **{
            name: traffic[name]
            for name in (
                "mean_bits_forward",
                "mean_bits_backward",
                "reduction_bytes_per_epoch",
                "evaluation_bytes_per_evaluation",
            )
        },
        "assignments": trainer.assigned,
        "backend": c.run.backend,
        "transport": c.run.transport,
        "kernels": trainer.passes.name,
        "overlap": c.run.overlap,
        "threads": threads,
    }


def final_table(summary: Record, folder: Path, several: bool) -> None:
    """Print the results of a run; `several`: labels a node."""
    sent, plain = summary["bytes_per_epoch"], summary["float32_bytes_per_epoch"]
    s = summary
    title = f"{s['dataset']}: {s['model']}, {s['layers']} layers, {s['parts']} parts on {s['ranks']} ranks"
    bits = f"{s['mean_bits_forward']:.2f} forward, {s['mean_bits_backward']:.2f} back"
    rows = [
        (f"{'micro-F1' if several else 'accuracy'}: train", f"{s['train_accuracy']:.3f}"),
        ("validation", f"{s['val_accuracy']:.3f}"),
        ("test", f"{s['test_accuracy']:.3f}"),
        ("test at best validation", f"{s['test_accuracy_at_best_val']:.3f}"),
        *class_prior.rows_of_results(s["class_prior"]),
        ("loss", f"{s['loss']:.4g}"),
        ("halo rows", f"{s['halo_rows']:,} of {s['nodes']:,} nodes ({s['partitioner']})"),
        ("messages", s["messages"]),
        ("mean bits an entry", bits if plain else "none: no part borders on another"),
        ("bytes an epoch", f"{sent:,} ({sent / plain:.1%} of float32's {plain:,})" if plain else "0"),
        ("bytes saved", f"{1 - sent / plain:.1%}" if plain else "none: no part borders on another"),
        ("reductions, bytes an epoch", f"{s['reduction_bytes_per_epoch']:,}"),
        ("seconds: all", f"{s['seconds_total']:.2f}"),
        ("epochs", f"{s['seconds_epochs']:.2f} for {s['epochs']}"),
        ("evaluation", f"{s['seconds_evaluation']:.2f}"),
        ("assignment of widths", f"{s['seconds_assignment']:.2f}"),
        ("exposed communication, mean of ranks", f"{s['seconds_exposed_communication']:.2f}"),
        ("results in", one_line(folder)),
    ]
    print_results(title, rows)
