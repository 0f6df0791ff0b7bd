"""The command that trains: from a command line to the files of a run, on all ranks together."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.admm.growth import default_stages
from pdadmm.admm.memory import require_memory
from pdadmm.admm.model_file import ModelSpace, Prepared, read_prepared, reserved, write_model
from pdadmm.admm.options import Config, check_stages, parse
from pdadmm.admm.passes import passes_in_words
from pdadmm.admm.report import describe_run, final_table, in_profile, show, summarise
from pdadmm.admm.start import Start
from pdadmm.admm.trainer import Sizes, Trainer, largest_product
from pdadmm.comm.waiter import Waiter
from pdadmm.datasets.registry import SPLITS
from pdadmm.errors import InputError
from pdadmm.files import Record, write_json
from pdadmm.files.given import sha256_of
from pdadmm.inputs.class_prior import noted
from pdadmm.runtime.checkpoint import Checkpoint, newest
from pdadmm.runtime.console import warn
from pdadmm.runtime.control import Control, stop_early
from pdadmm.runtime.devices import Choice, choose, describe
from pdadmm.runtime.folder import RunFolder, begin_files, run_folder
from pdadmm.runtime.launch import agree
from pdadmm.runtime.metrics import Metrics
from pdadmm.runtime.progress import Progress
from pdadmm.runtime.threads import set_threads, too_many
from pdadmm.trace.collect import write_profile

if TYPE_CHECKING:
    from pdadmm.inputs.feature_file import Features

__all__ = ["open_again", "open_features", "preset", "require_same", "resolve", "train"]


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
    np.seterr(all="ignore")  # overflow shows as a non-finite gradient, which ends the run with a reason
    config, sizes, digest, prepared = _configure(waiter, arguments)
    choice = _choose_devices(config, waiter)
    if config.run.backend == "numpy":
        require_memory(config, sizes, waiter)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(run_folder(waiter, config.output, sizes.dataset, warn))
        threads = set_threads(config.run, waiter.comm, largest_product(config, sizes))
        crowded = too_many(config.run, waiter.comm)
        if crowded and waiter.comm.rank == 0:
            warn(crowded)
        features = partial(open_again, config.features, sizes)
        control = _control(config, waiter, started)
        progress = _progress(config, waiter)
        metrics = Metrics(folder.path / "metrics.jsonl", folder.require)
        record = partial(_record, metrics, progress, config, waiter)
        with waiter.patient():
            trainer = agree(
                waiter,
                lambda: Trainer(
                    config,
                    sizes,
                    features,
                    waiter,
                    control,
                    record,
                    choice,
                    threads,
                    start_of(config),
                    keep_best=True,
                ),
            )
        if digest:
            with waiter.patient():
                agree(waiter, lambda: require_same(config.training.start, digest))
        resumed = _checkpoint(folder.path, trainer)
        with waiter.patient():
            models = agree(
                waiter, lambda: _begin_files(stack, folder, trainer, sizes, prepared, metrics, resumed)
            )
        _announce(trainer, threads)
        baseline = _measure_links(trainer)
        with progress:
            finished = trainer.run(folder.path, resumed, metrics.mark)
        trainer.close()
        with waiter.patient():
            folder.require()
            run = describe_run(trainer, sizes, threads)
            summary = _write_results(folder.path, run, trainer, models) if finished else None
            _write_profile(folder.path, run, trainer, baseline)
        if summary is None:
            stop_early(waiter, f"iteration {trainer.iteration}", folder.path)
        elif waiter.comm.rank == 0 and not config.output.quiet:
            final_table(summary, folder.path)


# ---- getting ready ----------------------------------------------------------------------------------


def _configure(waiter: Waiter, arguments: list[str]) -> tuple[Config, Sizes, str, Prepared | None]:
    """Options, dimensions of the data and SHA-256 of --start, read on rank 0, on all ranks.

    On rank 0 also how the data were prepared.
    """
    prepared: list[Prepared] = []

    @waiter.limit("reading the options and the sizes of the features")
    def check() -> tuple[Config, Sizes, str] | None:
        if waiter.comm.rank:
            return None
        config = parse(arguments, preset, lambda path: Start.of_file(path).options, waiter.comm.size)
        start = start_of(config)
        digest = sha256_of(config.training.start) if start is not None else ""
        resolve(config, waiter.comm.size, start)
        with open_features(config.features) as features:
            sizes = Sizes.of(features)
            prepared.append(Prepared(features.operators, features.norm))
            if start is not None:
                where = config.features or "the embedded graph"
                start.check_data(sizes.inputs, sizes.features_per_hop, sizes.classes, where)
                before = read_prepared(config.training.start)
                if before is not None:
                    before.check(features, where, config.training.start)
        if config.run.shards > max(sizes.rows["train"], 1):
            raise InputError(
                f"--shards {config.run.shards} is more than the {sizes.rows['train']} training nodes"
            )
        return config, sizes, digest

    with waiter.patient():
        config, sizes, digest = waiter.broadcast(agree(waiter, check))
    waiter.timeout = config.run.timeout
    return config, sizes, digest, prepared[0] if prepared else None


def open_features(path: str) -> Features:
    """The prepared file, or the embedded synthetic data set when `path` is empty.

    Raises
    ------
    InputError
        When the file is none, or there is nothing to train on.
    """
    # imported here: most ranks read no features, and SciPy takes long to load
    if path:
        from pdadmm.inputs.feature_file import FeatureFile

        features = FeatureFile(path)
        for split, rows in zip(SPLITS, (features.n_train, features.n_val, features.n_test), strict=True):
            if not rows:
                features.close()
                raise InputError(
                    f"{path}: the {split} split is empty, so that it is for predictions alone; "
                    "prepare the graph with labels and splits, without --classes"
                )
        return features

    from pdadmm.datasets import synthetic_graph
    from pdadmm.inputs.write import in_memory

    return in_memory(synthetic_graph(), hops=4)


def open_again(path: str, sizes: Sizes) -> Features:
    """The features that rank 0 has had the sizes of, on a rank that reads them.

    Raises
    ------
    InputError
        When others have taken their place since.
    """
    features = open_features(path)
    if Sizes.of(features) != sizes:
        features.close()
        raise InputError(f"{path} was replaced while the run started; start it again")
    return features


def require_same(path: str | os.PathLike[str], digest: str) -> None:
    """Refuse a network to start from that took the place of rank 0's while the ranks read their layers.

    Raises
    ------
    InputError
    """
    try:
        same = sha256_of(path) == digest
    except OSError:
        same = False
    if not same:
        raise InputError(f"{path} was replaced while the run started; start it again")


def preset(path: str) -> Record:
    """Options that the registry recommends for the data set in a prepared file."""
    from pdadmm.datasets.registry import REGISTRY
    from pdadmm.inputs.feature_file import FeatureFile

    if not path:
        return dict(REGISTRY["synthetic"].preset)
    with FeatureFile(path) as features:
        known = REGISTRY.get(features.dataset)
        operators = features.operators
        sizes = features.attrs["num_nodes"], features.attrs["features_per_hop"], features.num_classes
    # a user's own graph may have the name of a published one
    if not known or sizes != (known.nodes, known.features, known.classes):
        return {}
    return known.preset_for(operators)


def start_of(config: Config) -> Start | None:
    """The network that a run starts from; one that goes on from a checkpoint has its own.

    Raises
    ------
    InputError
        When it is none.
    """
    path = config.training.start
    return Start.of_file(path) if path and not config.output.resume else None


def resolve(config: Config, ranks: int, start: Start | None = None) -> None:
    """Fill in what depends on the number of ranks, and on the network that is started from.

    Raises
    ------
    InputError
    """
    network, training, shards = config.network, config.training, config.run.shards
    if start is not None:
        start.check(config)
        if not network.layers and not training.stages:
            network.layers = start.depth
    if ranks % shards:
        raise InputError(
            f"--shards {shards} does not divide the {ranks} ranks; start a multiple of {shards} ranks"
        )
    blocks = ranks // shards
    if not network.layers:
        network.layers = training.stages[-1] if training.stages else (10 if blocks == 1 else blocks)
    if network.layers < blocks:
        of = "ranks" if shards == 1 else "blocks of ranks"
        raise InputError(
            f"{network.layers} layers cannot occupy {blocks} {of}; start at most {network.layers * shards} "
            f"ranks or give --layers {blocks}"
        )
    if not training.stages:
        training.stages = default_stages(network.layers, 2 if start is None else start.depth)
    check_stages(training.stages, network.layers)
    if config.run.transport == "nccl" and config.run.backend == "numpy":
        raise InputError("--transport nccl needs --backend cupy; use --transport mpi on CPUs")


def _choose_devices(config: Config, waiter: Waiter) -> Choice:
    """Backend and transport, in the options too."""
    choice = choose(config.run, waiter)
    config.run.backend, config.run.transport = choice.backend, choice.transport
    if config.run.as_sharded and choice.backend == "cupy":
        raise InputError("--as-sharded is for CPUs only; leave it out, or give --backend numpy")
    return choice


def _control(config: Config, waiter: Waiter, started: float) -> Control:
    o = config.output
    return Control(waiter, o.checkpoint_every, o.checkpoint_seconds, o.max_seconds, started, listen=True)


def _progress(config: Config, waiter: Waiter) -> Progress:
    total = len(config.training.stages) * config.training.iterations
    return Progress("training", total, enabled=waiter.comm.rank == 0 and not config.output.quiet)


def _record(metrics: Metrics, progress: Progress, config: Config, waiter: Waiter, values: Record) -> None:
    """Show the record of an evaluated iteration, and add it to metrics.jsonl."""
    if waiter.comm.rank == 0:
        metrics.add(values)
    show(progress, values, config.training.iterations)


def _checkpoint(folder: Path, trainer: Trainer) -> Checkpoint | None:
    """What --resume goes on from."""
    if not trainer.config.output.resume:
        return None
    return newest(folder, trainer.waiter, warn, trainer.fits)


def _announce(trainer: Trainer, threads: int) -> None:
    """Say what the run takes."""
    run, comm = trainer.config.run, trainer.waiter.comm
    if comm.rank == 0 and not trainer.config.output.quiet:
        messages = trainer.config.messages
        kernels = passes_in_words(trainer.passes, run.kernels, messages.codec, messages.bits)
        line = describe(trainer.choice, run, comm.size, kernels, threads)
        if run.shards > 1:
            grid = trainer.grid
            line += f"; {grid.blocks} block{'s' if grid.blocks > 1 else ''} of layers x {run.shards} shards"
        print(f"pdadmm: {line}", file=sys.stderr, flush=True)


def _begin_files(
    stack: contextlib.ExitStack,
    folder: RunFolder,
    trainer: Trainer,
    sizes: Sizes,
    prepared: Prepared | None,
    metrics: Metrics,
    resumed: Checkpoint | None,
) -> list[ModelSpace] | None:
    """Room for model.h5 and model_best.h5, and the files that a run begins with, on rank 0."""
    if trainer.waiter.comm.rank:
        return None
    n = trainer.config.network
    attributes = {
        "activation": n.activation,
        "input_norm": n.input_norm,
        "hop_decay": n.hop_decay,
        "features_per_hop": sizes.features_per_hop,
        **noted(trainer.config.training.class_prior, trainer.shift),
        "dataset": sizes.dataset,
        "first_depth": (resumed.state.get("first_depth") if resumed else 0) or trainer.first_depth,
    }

    trainer.config.run.kernels = trainer.passes.name

    def reserve() -> list[ModelSpace]:
        return [
            stack.enter_context(reserved(folder.path / name, trainer.widths, attributes, prepared))
            for name in ("model.h5", "model_best.h5")
        ]

    return begin_files(folder, trainer.config, metrics, resumed, "features", warn, reserve)


def _measure_links(trainer: Trainer) -> Record | None:
    """The links that the run's messages take, where --measure-links asks for it; on rank 0."""
    if not trainer.config.output.measure_links:
        return None
    from pdadmm.runtime.links import measure_neighbours

    choice = trainer.choice
    return measure_neighbours(
        trainer.waiter,
        ways=[choice.way],
        choice=choice,
        backend=trainer.backend,
        run=trainer.config.run,
        pairs=trainer.grid.neighbours,
    )


# ---- what it leaves ---------------------------------------------------------------------------------


def _write_profile(folder: Path, run: Record, trainer: Trainer, baseline: Record | None) -> None:
    """Write profile.json, and trace.json when asked for; collective."""
    seconds = {"evaluation": trainer.seconds_evaluation, "checkpoint": trainer.seconds_checkpoints}
    write_profile(folder, in_profile(run), trainer.accounts, trainer.waiter, seconds, baseline)


def _write_results(folder: Path, run: Record, trainer: Trainer, models: list[ModelSpace] | None) -> Record:
    """Write the models and summary.json, which is returned; collective."""
    summary, waiter = summarise(run, trainer), trainer.waiter
    space, best_space = models or (None, None)
    last = {position: (layer.W, layer.b) for position, layer in trainer.layers.items()}
    write_model(space, trainer.predicting(last), trainer.owned, summary["test_accuracy"], waiter)
    if trainer.best_weights is not None:
        positions = trainer.positions_at_best
        owned = [[position for position in block if position in positions] for block in trainer.owned]
        if best_space is not None:
            best_space = best_space.of_widths([*trainer.widths[: len(positions)], trainer.widths[-1]])
        best = trainer.predicting(trainer.best_weights)
        write_model(best_space, best, owned, summary["test_accuracy_at_best_val"], waiter)
    elif best_space is not None:
        best_space.path.unlink(missing_ok=True)  # of before the run was resumed
    if trainer.waiter.comm.rank == 0:
        summary["seconds_total"] = trainer.seconds_total
        write_json(folder / "summary.json", summary)
    return summary
