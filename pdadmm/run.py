"""``mpirun -n R python -m pdadmm.run``: train a network, one or more layers a rank."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

import pdadmm
from pdadmm.admm import options as configuration
from pdadmm.admm.growth import default_stages
from pdadmm.admm.options import Config
from pdadmm.admm.passes.select import name_of
from pdadmm.admm.trainer import Sizes, Trainer, largest_product
from pdadmm.comm.waiter import Waiter, ranks_on_node, usable_cores
from pdadmm.errors import InputError
from pdadmm.model import write_model
from pdadmm.runtime.checkpoint import newest, put_aside
from pdadmm.runtime.control import STOPPED_EARLY, Control
from pdadmm.runtime.devices import choose, describe
from pdadmm.runtime.files import write_json, write_text
from pdadmm.runtime.launch import agree, main_under_mpi
from pdadmm.runtime.links import measure_neighbours
from pdadmm.runtime.progress import Progress, final_table
from pdadmm.trace.collect import write_profile
from pdadmm.trace.offsets import read_offset
from pdadmm.trace.timeline import write_timeline

if TYPE_CHECKING:
    from pdadmm.inputs.features import Features

__all__ = ["main"]

#: multiply-adds of a product below which a further BLAS thread costs more than it does: some 0.2 ms
WORK_OF_A_THREAD = 1 << 23


def open_features(path: str) -> Features:
    """The prepared file, or the embedded synthetic data set when `path` is empty."""
    # imported here: SciPy takes long to load, and most ranks read no features
    from pdadmm.datasets.synthetic import synthetic_graph
    from pdadmm.inputs.features import FeatureFile, in_memory

    if path:
        return FeatureFile(path)

    return in_memory(synthetic_graph(), hops=4)


def preset(path: str) -> dict[str, Any]:
    """Options that the registry recommends for the data set in a prepared file."""
    from pdadmm.datasets.registry import REGISTRY
    from pdadmm.inputs.features import FeatureFile

    if not path:
        return dict(REGISTRY["synthetic"].preset)
    with FeatureFile(path) as features:
        known = REGISTRY.get(features.dataset)
    return dict(known.preset) if known else {}


def resolve(config: Config, ranks: int) -> None:
    """Fill in what depends on the number of ranks.

    Raises
    ------
    InputError
    """
    network, training = config.network, config.training
    if not network.layers:
        network.layers = training.stages[-1] if training.stages else (10 if ranks == 1 else ranks)
    if network.layers < ranks:
        raise InputError(
            f"{network.layers} layers cannot occupy {ranks} ranks; start at most {network.layers} ranks "
            f"or give --layers {ranks}"
        )
    if not training.stages:
        training.stages = default_stages(network.layers)
    configuration.check_stages(training.stages, network.layers)
    if config.run.transport == "nccl" and config.run.backend == "numpy":
        raise InputError("--transport nccl needs --backend cupy; use --transport mpi on CPUs")


def prepare_folder(config: Config, dataset: str) -> list[Path]:
    """Make the output folder and see that it can be written to; returns the folders made, deepest first."""
    out = config.output.out or f"runs/{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    config.output.out = out
    folder = Path(out)
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to --out {out}: {error.strerror}; choose another folder") from None
    return made


def set_threads(config: Config, comm: Any, product: float = math.inf) -> int:
    """Limit the BLAS threads of this rank; returns their number.

    Without --threads or OMP_NUM_THREADS a rank takes its share of the node's cores, but no more than
    its largest `product` (multiply-adds) keeps busy.
    """
    from_environment = os.environ.get("OMP_NUM_THREADS") or os.environ.get("OPENBLAS_NUM_THREADS")
    threads = config.run.threads
    if not threads and from_environment and from_environment.isdigit():
        threads = int(from_environment)
    share = max(1, usable_cores() // ranks_on_node(comm))
    threads = threads or int(min(share, max(1, product // WORK_OF_A_THREAD)))
    threadpool_limits(threads)
    return threads


def _train(waiter: Waiter, arguments: list[str]) -> None:
    started = time.monotonic()
    comm = waiter.comm

    made: list[Path] = []

    def check() -> tuple[Config, Sizes] | None:
        if comm.rank:
            return None
        config = configuration.parse(arguments, preset)
        resolve(config, comm.size)
        with open_features(config.features) as features:
            sizes = Sizes.of(features)
        return config, sizes

    def prepare() -> str | None:
        if comm.rank:
            return None
        made.extend(prepare_folder(config, sizes.dataset))
        return config.output.out

    config, sizes = waiter.broadcast(agree(waiter, check))
    waiter.timeout = config.run.timeout
    choice = choose(config.run, waiter)
    config.run.backend, config.run.transport = choice.backend, choice.transport
    config.output.out = waiter.broadcast(agree(waiter, prepare))
    threads = set_threads(config, comm, largest_product(config, sizes))
    folder = Path(config.output.out)
    show = Progress(config, enabled=comm.rank == 0 and not config.output.quiet)

    def record(values: dict[str, Any]) -> None:
        if comm.rank == 0:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(values) + "\n")
        show.update(values)

    o = config.output
    resumed = None
    control = Control(waiter, o.checkpoint_every, o.checkpoint_seconds, o.max_seconds, started, listen=True)
    try:
        trainer = agree(
            waiter,
            lambda: Trainer(
                config,
                sizes,
                lambda: open_features(config.features),
                waiter,
                control,
                record,
                choice,
                threads,
            ),
        )
        if o.resume:
            resumed = newest(folder, waiter, _warn)
            trainer.require_same(resumed.state)
    except InputError:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise
    kernels = name_of(trainer.kernels, config.run.kernels)
    if comm.rank == 0 and not o.quiet:
        line = describe(choice, config.run, comm.size, kernels, threads)
        print(f"pdadmm: {line}", file=sys.stderr, flush=True)
    if comm.rank == 0 and resumed is None and (old := put_aside(folder)):
        _warn(f"starting afresh without --resume; the checkpoints of an earlier run are now in {old}")
    if comm.rank == 0:
        records = resumed.state["records"] if resumed else []
        write_text(folder / "config.toml", config.to_toml())
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    baseline = None
    if o.measure_links:
        ways = [choice.way]
        baseline = measure_neighbours(
            waiter, ways=ways, choice=choice, backend=trainer.backend, run=config.run
        )
    with show:
        finished = trainer.run(folder, resumed)
    trainer.close()
    _write_profile(folder, config, sizes, trainer, threads, baseline)
    if not finished:
        if comm.rank == 0:
            print(
                f"pdadmm: stopped after iteration {trainer.iteration} with a checkpoint; "
                f"go on with --resume --out {folder}",
                file=sys.stderr,
            )
        raise SystemExit(STOPPED_EARLY)
    summary = {
        "version": pdadmm.__version__,
        "dataset": sizes.dataset,
        "nodes_train": sizes.rows["train"],
        "layers": config.network.layers,
        "hidden": config.network.hidden,
        "ranks": comm.size,
        "backend": config.run.backend,
        "transport": config.run.transport,
        "kernels": trainer.kernels.name,
        "precision": config.run.precision,
        "devices": choice.devices,
        "codec": config.messages.codec,
        "bits": config.messages.bits,
        "solver": config.training.solver,
        "step": config.training.step,
        "nu": config.training.nu,
        "rho": config.training.rho,
        "mu": config.training.mu,
        "stages": config.training.stages,
        "seed": config.training.seed,
        "iterations": trainer.iteration,
        **trainer.summary(),
        "threads": threads,
        "placement": [[block.start, block.stop - 1] for block in trainer.blocks],
        "hosts": waiter.gather(platform.node()),
    }
    attributes = {
        "activation": config.network.activation,
        "input_norm": config.network.input_norm,
        "hop_decay": config.network.hop_decay,
        "features_per_hop": sizes.features_per_hop,
        "dataset": sizes.dataset,
        "test_accuracy": summary["test_accuracy"],
    }
    write_model(folder / "model.h5", trainer.layers, trainer.blocks, attributes, waiter)
    if comm.rank == 0:
        summary["seconds_total"] = time.monotonic() - started
        write_json(folder / "summary.json", summary)
        if not config.output.quiet:
            final_table(summary, folder)


def _warn(line: str) -> None:
    print(f"pdadmm: warning: {line}", file=sys.stderr, flush=True)


def _write_profile(
    folder: Path,
    config: Config,
    sizes: Sizes,
    trainer: Trainer,
    threads: int,
    baseline: dict[str, Any] | None,
) -> None:
    """Write profile.json, and trace.json when asked for; collective."""
    waiter = trainer.waiter
    run = {
        "dataset": sizes.dataset,
        "nodes_train": sizes.rows["train"],
        "widths": trainer.widths,
        "layers": config.network.layers,
        "hidden": config.network.hidden,
        "ranks": waiter.comm.size,
        "placement": [[block.start, block.stop - 1] for block in trainer.blocks],
        "codec": config.messages.codec,
        "bits": config.messages.bits,
        "solver": config.training.solver,
        "step": config.training.step,
        "backend": config.run.backend,
        "transport": config.run.transport,
        "kernels": trainer.kernels.name,
        "overlap": config.run.overlap,
        "threads": threads,
    }
    seconds = {"evaluation": trainer.seconds_evaluation, "checkpoint": trainer.seconds_checkpoints}
    timeline = partial(write_timeline, folder / "trace.json") if config.output.trace else None
    write_profile(
        folder, run, trainer.accounts, read_offset(waiter.comm), waiter, seconds, timeline, baseline
    )


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    np.seterr(all="ignore")  # overflow shows as a non-finite gradient, which ends the run with a reason
    return main_under_mpi(_train, arguments)


if __name__ == "__main__":
    sys.exit(main())
