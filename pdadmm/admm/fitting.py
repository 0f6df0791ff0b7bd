"""Training on arrays in memory, in the calling process or over all ranks of its job."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pdadmm.admm.command import resolve
from pdadmm.admm.options import OPTIONS, Config, check
from pdadmm.admm.start import Start
from pdadmm.admm.trainer import Sizes, Trainer, largest_product
from pdadmm.comm.mpi import MPITransport
from pdadmm.comm.start import start_alone
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError, RunError
from pdadmm.files import Record
from pdadmm.inputs.feature_file import FeatureArrays
from pdadmm.runtime.launch import agree
from pdadmm.runtime.options import fill
from pdadmm.runtime.threads import BLAS_ON_ONE_THREAD, set_threads

if TYPE_CHECKING:
    from mpi4py.MPI import Request

__all__ = ["Data", "Fitted", "Task", "fit"]


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


@dataclass(frozen=True)
class Task:
    """What is trained on, and how.

    Attributes
    ----------
    data : Data
    options
        Of ``pdadmm.run``, as fields of its sections are called: ``{"layers": 4, "z_centre": "linear"}``.
    start
        Whose layers the first stage begins with.
    keep_best
        Whether the network of the evaluated iteration that is best on validation is wanted, not the last one.
    """

    data: Data
    options: Mapping[str, Any]
    start: Start | None = None
    keep_best: bool = False

    def digest(self) -> str:
        """A hash of all of it."""
        data = self.data
        said = data.X.shape, data.train, data.classes, sorted(self.options.items()), self.keep_best
        found = hashlib.sha256(repr(said).encode())
        found.update(np.ascontiguousarray(data.X).data)
        found.update(np.ascontiguousarray(data.y).data)
        if self.start is not None:
            found.update(repr(sorted(self.start.attributes.items())).encode())
            for position in range(1, self.start.depth + 1):
                for array in self.start.layer(position):
                    found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()


@dataclass(frozen=True)
class Fitted:
    """A trained network: W (n_l, n_{l-1}) and b (n_l,) of every layer, and every evaluated iteration."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    history: list[Record]
    first_depth: int  #: hidden layers from this position on began as identities
    shift: np.ndarray | None  #: (classes,) what the biases of the output have more than in training


def fit(task: Task | Exception) -> Fitted:
    """Train; under mpirun collective, with the same task on all ranks.

    The layers are spread over the ranks. Of more ranks than layers times shards, or than a multiple of
    the shards, the last ones do nothing.
    Nothing is written or printed, and signals are left alone.

    Parameters
    ----------
    task
        What is to be trained, or why it cannot be, as this rank has found. That it raises, and the other
        ranks an InputError.

    Returns
    -------
    Fitted
        The same bits on all ranks.

    Raises
    ------
    InputError
        When an option is wrong, the ranks differ in what they give, or there is no MPI library.
    RunError
        When the run diverges, or a rank fails otherwise; the same on all ranks.
    """
    try:
        MPI = start_alone()
    except InputError:
        if isinstance(task, Exception):
            raise task from None
        raise
    waiter = Waiter(MPI.COMM_WORLD)
    ranks = waiter.comm.size
    if ranks > 1:
        _require_same(task, waiter)
    if isinstance(task, Exception):
        raise task
    config = _config(task.options)
    shards = config.run.shards
    members = min(ranks, config.network.layers * shards)
    members -= members % shards if members > shards else 0
    mine = waiter.comm.rank < members
    comm = MPI.COMM_WORLD.Split(0 if mine else 1, waiter.comm.rank)
    try:
        found = _attempt(task, config, Waiter(comm)) if mine else (None, None)
    except BaseException:
        if ranks == 1:  # no message can be under way
            comm.Free()
        raise
    fitted, problem = waiter.broadcast(found)  # rank 0 is always among those that train
    if not isinstance(problem, RunError):
        comm.Free()
    if problem is not None:
        raise problem
    assert fitted is not None
    return fitted


def _require_same(task: Task | Exception, waiter: Waiter) -> None:
    """Raise on all ranks when one of them has no task or another one; collective."""
    if isinstance(task, Task):
        mine = "", task.digest()
    else:
        mine = f"{type(task).__name__}: {task}".partition("\n")[0], ""
    gathered = waiter.gather(mine)
    reason = ""
    for rank, (problem, _) in enumerate(gathered or []):
        if problem:
            reason = f"rank {rank} cannot train: {problem}"
            break
    if gathered and not reason and len(set(gathered)) > 1:
        reason = "the ranks were given different data or options; give the same to fit on all"
    reason = waiter.broadcast(reason)
    if reason and isinstance(task, Task):
        raise InputError(reason)


class _Alarm:
    """Tells the ranks that wait for messages that one of them has failed; collective to make."""

    def __init__(self, waiter: Waiter) -> None:
        self._comm = waiter.comm.Dup()
        self._sent: list[Request] = []
        waiter.background = self._listen

    def _listen(self) -> None:
        if self._comm.Iprobe():
            raise RunError(self._comm.recv(), everywhere=True)

    def ring(self, reason: str) -> None:
        others = set(range(self._comm.size)) - {self._comm.rank}
        self._sent = [self._comm.isend(reason, other) for other in others]

    def close(self) -> None:
        """All has gone well; collective."""
        self._comm.Free()


#: of runs over several ranks that failed: messages may still arrive in their buffers
_abandoned: list[object] = []


def _attempt(task: Task, config: Config, waiter: Waiter) -> tuple[Fitted | None, Exception | None]:
    """Train; what goes wrong on one rank comes to all of them."""
    alarm = _Alarm(waiter) if waiter.comm.size > 1 else None
    trainers: list[Trainer] = []
    try:
        fitted = _train(task, config, waiter, trainers)
    except InputError as error:  # all ranks have agreed on it
        if alarm is not None:
            alarm.close()
        return None, error
    except Exception as error:
        if alarm is None:
            raise
        for trainer in trainers:
            if isinstance(trainer.transport, MPITransport):
                trainer.transport.abandon()
        _abandoned.append((alarm, waiter, trainers))
        if isinstance(error, RunError) and error.everywhere:
            return None, error
        reason = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        alarm.ring(reason)
        return None, RunError(reason, everywhere=True)
    if alarm is not None:
        alarm.close()
    return fitted, None


def _config(options: Mapping[str, Any]) -> Config:
    """Of options by name; what is not given has its default.

    Raises
    ------
    InputError
    """
    config = Config()
    config.run.backend = "numpy"
    fill(config, OPTIONS.named(options))
    check(config)
    if config.network.layers < 1:  # the command's default, which the number of ranks decides
        raise InputError("layers is 0; give the network 1 or more")
    return config


def _train(task: Task, config: Config, waiter: Waiter, trainers: list[Trainer]) -> Fitted:
    """Train; `trainers` takes the trainer, which outlives a failure."""
    data, start = task.data, task.start
    resolve(config, waiter.comm.size, start)
    if config.run.shards > data.train:
        raise InputError(f"shards={config.run.shards} is more than the {data.train} training rows")
    sizes = data.sizes
    if start is not None:
        start.check_data(sizes.inputs, sizes.features_per_hop, sizes.classes, "X")
    records: list[Record] = []
    # whoever calls has threads of BLAS of its own
    with BLAS_ON_ONE_THREAD, np.errstate(all="ignore"):
        threads = set_threads(config.run, waiter.comm, largest_product(config, sizes))
        trainer = agree(
            waiter,
            lambda: Trainer(
                config,
                sizes,
                data.features,
                waiter,
                progress=records.append,
                threads=threads,
                start=start,
                keep_best=task.keep_best,
            ),
        )
        trainers.append(trainer)
        trainer.run()
        trainer.close()
    mine = trainer.best_weights
    if mine is None:
        first = trainer.grid.shard == 0
        mine = {p: (layer.W, layer.b) for p, layer in trainer.layers.items()} if first else {}
    gathered = waiter.gather(trainer.predicting(mine))
    layers = {p: arrays for of_rank in gathered or [] for p, arrays in of_rank.items()}
    weights, biases = ([np.asarray(layers[p][i]) for p in sorted(layers)] for i in (0, 1))
    return Fitted(weights, biases, records, trainer.first_depth, trainer.shift)
