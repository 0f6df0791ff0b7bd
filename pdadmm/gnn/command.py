"""The command that trains a graph network: from a command line to the files of a run, on all ranks."""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError
from pdadmm.files import Record, write_json
from pdadmm.gnn.fit import network_of, require_start
from pdadmm.gnn.model_file import ModelRoom, reserved
from pdadmm.gnn.options import Config, parse
from pdadmm.gnn.report import final_table, in_profile, show, summarise
from pdadmm.gnn.trainer import Facts, Trainer
from pdadmm.inputs.class_prior import noted
from pdadmm.inputs.graph_file import GraphFile, GraphSource
from pdadmm.runtime.checkpoint import Checkpoint, last_state, newest
from pdadmm.runtime.console import warn
from pdadmm.runtime.control import Control, stop_early
from pdadmm.runtime.devices import Choice, choose, describe
from pdadmm.runtime.folder import RunFolder, begin_files, run_folder
from pdadmm.runtime.launch import agree
from pdadmm.runtime.metrics import Metrics
from pdadmm.runtime.progress import Progress
from pdadmm.runtime.threads import set_threads, too_many
from pdadmm.trace.collect import write_profile

__all__ = ["choose_arrays", "configure", "make_trainer", "open_graph", "train"]


def train(waiter: Waiter, arguments: list[str]) -> None:
    """Train as a command line says; collective.

    Raises
    ------
    InputError
        On all ranks.
    SystemExit
        With code STOPPED_EARLY when the run was told to stop, or its time was over, and saved itself.
    """
    started = time.monotonic()
    np.seterr(all="ignore")  # overflow shows as NaN in a message or the loss, which ends the run in words
    config, facts = configure(waiter, arguments)
    choice = choose_arrays(config, waiter)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(run_folder(waiter, config.output, facts.dataset, warn))
        threads = set_threads(config.run, waiter.comm)
        crowded = too_many(config.run, waiter.comm)
        if crowded and waiter.comm.rank == 0:
            warn(crowded)
        metrics = Metrics(folder.path / "metrics.jsonl", folder.require)
        progress = _progress(config, waiter)
        record = partial(_record, metrics, progress, config, waiter)
        o = config.output
        control = Control(
            waiter, o.checkpoint_every, o.checkpoint_seconds, o.max_seconds, started, listen=True
        )
        with waiter.patient():
            trainer = agree(
                waiter, lambda: make_trainer(config, facts, waiter, threads, choice, control, record)
            )
        resumed = newest(folder.path, waiter, warn, trainer.fits) if o.resume else None
        with waiter.patient():
            rooms = agree(waiter, lambda: _begin_files(stack, folder, trainer, metrics, resumed))
        _announce(trainer, threads)
        baseline = _measure_links(trainer)
        with progress:
            finished = trainer.run(folder.path, resumed, metrics.mark)
        trainer.close()
        with waiter.patient():
            folder.require()
            summary = _write_results(folder.path, trainer, rooms, threads) if finished else None
            _write_profile(folder.path, trainer, threads, baseline)
        if not finished:
            stop_early(waiter, f"epoch {trainer.epoch}", folder.path)
        elif summary is not None and not config.output.quiet:
            final_table(summary, folder.path, facts.multilabel)


# ---- getting ready ----------------------------------------------------------------------------------


def configure(waiter: Waiter, arguments: list[str]) -> tuple[Config, Facts]:
    """Options and facts of the graph, read on rank 0, on all ranks."""

    @waiter.limit("reading the options and the graph")
    def check() -> tuple[Config, Facts] | None:
        if waiter.comm.rank:
            return None
        config = parse(arguments, network_of, warn)
        _require_known(config)
        with open_graph(config.graph, _parts(config, waiter.comm.size)) as source:
            facts = Facts.of(source)
            _require_splits(config.graph, facts)
            if config.training.class_prior != "train" and facts.multilabel:
                raise InputError(
                    f"--class-prior {config.training.class_prior} needs one class a node, but those of "
                    f"{config.graph} have several; leave it out"
                )
            if config.training.start and not config.output.resume:
                require_start(config, source)
            if isinstance(source, GraphFile):
                source.check_symmetry()
        if facts.parts < waiter.comm.size:
            remedy = f", or prepare the graph with --parts {waiter.comm.size}" if config.graph else ""
            raise InputError(
                f"{facts.parts} parts cannot occupy {waiter.comm.size} ranks; start at most {facts.parts} "
                f"ranks{remedy}"
            )
        return config, facts

    with waiter.patient():
        config, facts = waiter.broadcast(agree(waiter, check))
    waiter.timeout = config.run.timeout
    return config, facts


def _require_splits(path: str, facts: Facts) -> None:
    """Refuse a graph that is for predictions."""
    empty = [name for name, size in facts.sizes.items() if not size]
    if empty:
        raise InputError(
            f"{path} has no {' and no '.join(empty)} nodes; prepare it with labels, without --classes"
        )


def _require_known(config: Config) -> None:
    """Refuse shared options that graph networks do not heed."""
    run, measured = config.run, config.assigns and config.messages.links == "measured"
    if run.transport == "nccl" and run.backend == "numpy":
        raise InputError("--transport nccl needs --backend cupy; use --transport mpi on CPUs")
    if run.transport == "nccl" and (run.kernels == "reference" or measured):
        given = "--kernels reference" if run.kernels == "reference" else "--links measured"
        raise InputError(f"--transport nccl is between GPUs, on which there is no {given}; leave one out")
    if run.backend != "numpy" and run.kernels == "reference":
        if run.backend == "cupy":
            raise InputError("--kernels reference: graph networks have none on GPUs; use --backend numpy")
        run.backend = "numpy"
    if run.backend != "numpy" and measured:
        if run.backend == "cupy":
            raise InputError("--links measured tells times by the host's clock; use --backend numpy")
        run.backend = "numpy"


def choose_arrays(config: Config, waiter: Waiter) -> Choice:
    """Backend and transport, in the options too; collective."""
    choice = choose(config.run, waiter)
    config.run.backend, config.run.transport = choice.backend, choice.transport
    return choice


def _parts(config: Config, ranks: int) -> int:
    """Parts of the embedded graph: the ranks', or those that the run which goes on has had."""
    if not config.output.resume:
        return ranks
    before = last_state(Path(config.output.out)).get("parts")
    return before if type(before) is int and before > 0 else ranks


def open_graph(path: str, parts: int, partitioner: str = "auto") -> GraphSource:
    """The prepared file, or the embedded synthetic graph, cut into `parts`, when `path` is empty."""
    if path:
        return GraphFile(path)
    from pdadmm.datasets.synthetic import synthetic_graph
    from pdadmm.gnn.partition import cut

    return cut(synthetic_graph(), parts, partitioner)


def make_trainer(
    config: Config,
    facts: Facts,
    waiter: Waiter,
    threads: int,
    choice: Choice,
    control: Control | None,
    record: Callable[[Record], None],
) -> Trainer:
    """A trainer of this rank's parts of the graph."""
    with open_graph(config.graph, facts.parts, facts.partitioner) as source:
        if not facts.fit(source):
            raise InputError(
                f"{config.graph or 'the embedded graph'} is another graph, or cut otherwise, on "
                f"{platform.node()} than for rank 0; give a file that all nodes share"
            )
        return Trainer(config, facts, source, waiter, threads, choice, control, record)


def _progress(config: Config, waiter: Waiter) -> Progress:
    enabled = waiter.comm.rank == 0 and not config.output.quiet
    return Progress("training", config.training.epochs, enabled=enabled)


def _record(metrics: Metrics, progress: Progress, config: Config, waiter: Waiter, values: Record) -> None:
    """Show the record of an evaluation, and add it to metrics.jsonl."""
    if waiter.comm.rank == 0:
        metrics.add(values)
    show(progress, values, config.training.epochs)


def _begin_files(
    stack: contextlib.ExitStack,
    folder: RunFolder,
    trainer: Trainer,
    metrics: Metrics,
    resumed: Checkpoint | None,
) -> list[ModelRoom] | None:
    """Room for the models of the last and the best epoch, and the files that a run begins with, on rank 0."""
    if trainer.waiter.comm.rank:
        return None

    trainer.config.run.kernels = trainer.passes.name

    def rooms() -> list[ModelRoom]:
        attributes, norm = _attributes(trainer, 0.0), trainer.facts.norm
        return [
            stack.enter_context(reserved(folder.path / name, trainer.shape, attributes, norm))
            for name in ("model.h5", "model_best.h5")
        ]

    epochs = trainer.config.training.epochs
    return begin_files(folder, trainer.config, metrics, resumed, "graph", warn, rooms, epochs)


def _attributes(trainer: Trainer, test_accuracy: float) -> Record:
    """Of a model."""
    return {
        "dataset": trainer.facts.dataset,
        "order": trainer.config.network.order,
        "multilabel": int(trainer.facts.multilabel),
        **noted(trainer.config.training.class_prior, trainer.shift),
        "feature_norm": trainer.facts.norm.name,
        "test_accuracy": test_accuracy,
    }


def _announce(trainer: Trainer, threads: int) -> None:
    """Say what the run takes."""
    comm = trainer.waiter.comm
    if comm.rank == 0 and not trainer.config.output.quiet:
        kernels = f"{trainer.passes.name} kernels"
        line = describe(trainer.choice, trainer.config.run, comm.size, kernels, threads)
        print(f"pdadmm: {line}, {trainer.facts.parts} parts", file=sys.stderr, flush=True)


def _measure_links(trainer: Trainer) -> Record | None:
    """The links that the run's messages take, where --measure-links asks for it; on rank 0."""
    if not trainer.config.output.measure_links:
        return None
    from pdadmm.runtime.links import measure_neighbours

    return measure_neighbours(
        trainer.waiter,
        ways=[trainer.choice.way],
        choice=trainer.choice,
        backend=trainer.backend,
        run=trainer.config.run,
        pairs=trainer.pairs(),
    )


# ---- what it leaves ---------------------------------------------------------------------------------


def _write_profile(folder: Path, trainer: Trainer, threads: int, baseline: Record | None) -> None:
    """Write profile.json, and trace.json when asked for; collective."""
    seconds = {"evaluation": trainer.seconds_evaluation, "checkpoint": trainer.seconds_checkpoints}
    write_profile(folder, in_profile(trainer, threads), trainer.accounts, trainer.waiter, seconds, baseline)


def _write_results(
    folder: Path, trainer: Trainer, rooms: list[ModelRoom] | None, threads: int
) -> Record | None:
    """Write the models and summary.json, which rank 0 returns; collective."""
    summary = summarise(trainer, threads)
    if trainer.waiter.comm.rank:
        return None
    assert rooms is not None
    found = [
        (trainer.parameters.vectors, summary["test_accuracy"]),
        (trainer.best_vectors, summary["test_accuracy_at_best_val"]),
    ]
    for room, (vectors, accuracy) in zip(rooms, found, strict=True):
        if vectors is not None:
            room.write(
                trainer.shape, trainer.weights(vectors), _attributes(trainer, accuracy), trainer.facts.norm
            )
        else:
            room.path.unlink(missing_ok=True)  # of before the run was resumed
    summary["seconds_total"] = trainer.seconds_total
    write_json(folder / "summary.json", summary)
    return summary
