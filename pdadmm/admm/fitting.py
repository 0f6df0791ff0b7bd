"""Training on arrays in memory, in the calling process or over all ranks of its job."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pdadmm.admm.command import resolve
from pdadmm.admm.options import Config, check
from pdadmm.admm.trainer import Sizes, Trainer, largest_product
from pdadmm.comm.start import start_mpi
from pdadmm.comm.waiter import Waiter
from pdadmm.comm.where import Where
from pdadmm.errors import InputError, RunError
from pdadmm.files import Record
from pdadmm.inputs.feature_file import FeatureArrays
from pdadmm.runtime.launch import agree
from pdadmm.runtime.threads import set_threads

__all__ = ["Data", "Fitted", "fit"]


@dataclass(frozen=True)
class Data:
    """What is trained on: training rows, then those of validation.

    Attributes
    ----------
    X : float32 (rows, inputs)
    y : int64 (rows,)
        Classes, from 0 to `classes` - 1.
    train : int
        Rows that are trained on.
    classes : int
    """

    X: np.ndarray
    y: np.ndarray
    train: int
    classes: int

    @property
    def sizes(self) -> Sizes:
        rows = {"train": self.train, "val": len(self.X) - self.train, "test": 0}
        return Sizes("arrays", self.X.shape[1], self.X.shape[1], self.classes, rows)

    def features(self) -> FeatureArrays:
        """As the trainer reads them."""
        attributes = {
            "dataset": "arrays",
            "num_classes": self.classes,
            "operators": "powers:0",
            "hops": 0,
            "features_per_hop": self.X.shape[1],
            "num_nodes": len(self.X),
            "nodes": "split",
            **{f"n_{name}": rows for name, rows in self.sizes.rows.items()},
        }
        return FeatureArrays(attributes, self.X, self.y, np.arange(len(self.X)))

    def digest(self, options: Mapping[str, object]) -> str:
        """A hash of the data and the options."""
        found = hashlib.sha256(repr((self.X.shape, self.train, sorted(options.items()))).encode())
        found.update(np.ascontiguousarray(self.X).data)
        found.update(np.ascontiguousarray(self.y).data)
        return found.hexdigest()


@dataclass(frozen=True)
class Fitted:
    """A trained network: W (n_l, n_{l-1}) and b (n_l,) of every layer, and every evaluated iteration."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    history: list[Record]


def fit(data: Data, options: Mapping[str, Any]) -> Fitted:
    """Train; under mpirun collective, with the same data and options on all ranks.

    The layers are spread over the ranks. Of more ranks than layers times shards the last ones do nothing.
    Nothing is written or printed, and signals are left alone.

    Parameters
    ----------
    data : Data
    options
        Of ``pdadmm.run``, as fields of its sections are called: ``{"layers": 4, "z_centre": "linear"}``.

    Returns
    -------
    Fitted
        The same bits on all ranks.

    Raises
    ------
    InputError
        When an option is wrong, the ranks differ in what they give, or there is no MPI library.
    RunError
        When the run diverges.
    """
    try:
        MPI = start_mpi(Where(), 0.0)
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"no MPI library could be loaded ({reason}); pip install 'pdadmm[mpich]'") from None
    config = _config(options)
    waiter = Waiter(MPI.COMM_WORLD)
    ranks = waiter.comm.size
    if ranks > 1:
        digests = waiter.gather(data.digest(options))
        if waiter.broadcast(len(set(digests)) if digests else None) > 1:
            raise InputError("the ranks were given different data or options; give the same to fit on all")
    members = min(ranks, (config.network.layers or ranks) * config.run.shards)
    mine = waiter.comm.rank < members
    comm = MPI.COMM_WORLD.Split(0 if mine else 1, waiter.comm.rank)
    outcome: tuple[Fitted | None, Exception | None] = (None, None)
    try:
        if mine:
            outcome = _train(data, config, Waiter(comm)), None
    except InputError as error:
        outcome = None, error
    except RunError as error:
        if not error.everywhere and ranks > 1:  # the others are still at work
            raise
        outcome = None, error
    comm.Free()
    fitted, problem = waiter.broadcast(outcome)  # rank 0 is always among those that train
    if problem is not None:
        raise problem
    assert fitted is not None
    return fitted


def _config(options: Mapping[str, Any]) -> Config:
    """Of options by name; what is not given has its default.

    Raises
    ------
    InputError
    """
    config = Config()
    config.run.backend = "numpy"
    sections = (config.network, config.training, config.messages, config.run, config.output)
    for name, value in options.items():
        next(section for section in sections if hasattr(section, name)).__setattr__(name, value)
    check(config)
    return config


def _train(data: Data, config: Config, waiter: Waiter) -> Fitted:
    resolve(config, waiter.comm.size)
    if config.run.shards > data.train:
        raise InputError(f"shards={config.run.shards} is more than the {data.train} training rows")
    sizes = data.sizes
    records: list[Record] = []
    # whoever calls has threads of BLAS of its own
    with threadpool_limits(1), np.errstate(all="ignore"):
        threads = set_threads(config.run, waiter.comm, largest_product(config, sizes))
        trainer = agree(
            waiter,
            lambda: Trainer(config, sizes, data.features, waiter, progress=records.append, threads=threads),
        )
        try:
            trainer.run()
        except RunError as error:
            if error.everywhere or waiter.comm.size == 1:  # else the others would not come
                trainer.close()
            raise
        trainer.close()
    first = trainer.grid.shard == 0
    mine = {p: (layer.W, layer.b) for p, layer in trainer.layers.items()} if first else {}
    gathered = waiter.gather(mine)
    layers = {p: arrays for of_rank in gathered or [] for p, arrays in of_rank.items()}
    weights, biases = ([np.asarray(layers[p][i]) for p in sorted(layers)] for i in (0, 1))
    return Fitted(weights, biases, records)
