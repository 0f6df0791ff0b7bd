"""The training loop: stages of growth, iterations, evaluations, the files a run leaves."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.admm.activations import make_activation
from pdadmm.admm.evaluate import Split, evaluate
from pdadmm.admm.growth import depth_at, identity_layer, random_layer, stage_positions
from pdadmm.admm.layer import IF_IT_DIVERGES, Hyper, Layer, Terms
from pdadmm.admm.monitor import Monitor
from pdadmm.admm.options import Config, Training
from pdadmm.admm.passes import Passes, select_passes
from pdadmm.admm.placement import layer_cost, place
from pdadmm.admm.stage import Plan, Stage
from pdadmm.admm.start import Start
from pdadmm.arrays import copy_into
from pdadmm.arrays.groups import groups_of_shard, rows_of_shard
from pdadmm.codec import Codec, make_codec
from pdadmm.comm.grid import Grid
from pdadmm.comm.transport import Transport
from pdadmm.comm.waiter import Waiter
from pdadmm.datasets.registry import SPLITS
from pdadmm.errors import RunError
from pdadmm.files import Record
from pdadmm.inputs.class_prior import logit_shift, shift_of
from pdadmm.inputs.scaling import normalise_inputs
from pdadmm.runtime import checkpoint
from pdadmm.runtime.checkpoint import Checkpoint, Saved
from pdadmm.runtime.control import CONTINUE, STOP, Control
from pdadmm.runtime.devices import ON_CPUS, Choice, make_backend, make_transport
from pdadmm.trace.choose import make_clock
from pdadmm.trace.collect import Accounts
from pdadmm.trace.offsets import read_offset

if TYPE_CHECKING:  # imports h5py, which only the first and last ranks need
    from pdadmm.inputs.feature_file import Features

__all__ = ["Sizes", "Trainer", "largest_product", "widths_of"]


#: objective over that of a uniform guess from which a run counts as diverging
DIVERGED = 1e4
#: what a summary needs of a record
_IN_SUMMARY = (
    "iteration", "train_accuracy", "val_accuracy", "test_accuracy", "objective", "primal_residual",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Dimensions of the data that every rank needs to know."""

    dataset: str
    inputs: int  #: columns of X
    features_per_hop: int  #: of which an operator has that many
    classes: int
    rows: dict[str, int]  #: nodes of each split
    content: str = ""  #: hash of the data; empty: not known
    operators: str = ""  #: of which X is made; empty: not known

    @classmethod
    def of(cls, features: Features) -> Sizes:
        """Sizes of opened features."""
        rows = dict(zip(SPLITS, (features.n_train, features.n_val, features.n_test), strict=True))
        per_hop = int(features.attrs["features_per_hop"])
        sizes = features.num_features, per_hop, features.num_classes
        return cls(features.dataset, *sizes, rows, features.content_hash(), features.operators)


def hyper_of(training: Training) -> Hyper:
    """Penalties and methods at the start of a run: the options of the same names."""
    return Hyper(**{f.name: getattr(training, f.name) for f in fields(Hyper)})


def widths_of(config: Config, inputs: int, classes: int) -> list[int]:
    """Widths n_0, ..., n_L of the finished network."""
    return [inputs, *[config.network.hidden] * (config.network.layers - 1), classes]


def in_row_space(config: Config, sizes: Sizes) -> bool:
    """Whether layer 1 is kept in the row space of its input, see :mod:`pdadmm.admm.weights`.

    Not without mu, whose share keeps the gradient's norm away from the rounding of its parts where
    equal nodes have different labels.
    """
    t = config.training
    # it wants the products of all nodes with each other
    whole = config.run.shards == 1 and not config.run.as_sharded
    return whole and t.solver == "gradient" and t.mu > 0 and sizes.rows["train"] <= sizes.inputs


def largest_product(config: Config, sizes: Sizes) -> int:
    """Multiply-adds of the largest product of an iteration."""
    nodes, widths = sizes.rows["train"], widths_of(config, sizes.inputs, sizes.classes)
    first = nodes if in_row_space(config, sizes) else sizes.inputs
    return nodes * max(a * b for a, b in itertools.pairwise([first, *widths[1:]]))


class Trainer:
    """Trains the layers of one rank together with the other ranks.

    Parameters
    ----------
    config
        Complete and checked, the same on all ranks.
    sizes
        Dimensions of the data, the same on all ranks.
    open_features
        Opens the data; called only on the ranks of the first and the last layer.
    waiter
        Waits for MPI; holds the communicator.
    control
        Says when to save and to stop.
    progress
        Called with the record of every evaluated iteration, on all ranks.
    choice
        Arrays and way of the messages.
    threads
        Of this rank's products and compiled kernels.
    start
        Whose layers the first stage begins with; None: with random ones.
    keep_best
        Whether to keep the weights that are best on validation.

    Attributes
    ----------
    first_depth
        Hidden layers from this position on began as identities.
    """

    def __init__(
        self,
        config: Config,
        sizes: Sizes,
        open_features: Callable[[], Features],
        waiter: Waiter,
        control: Control | None = None,
        progress: Callable[[Record], None] | None = None,
        choice: Choice = ON_CPUS,
        threads: int = 1,
        start: Start | None = None,
        keep_best: bool = False,
    ) -> None:
        self.config = config
        self.choice = choice
        self.waiter = waiter
        self.rank = waiter.comm.rank
        self.layers_total = config.network.layers
        self.dataset, self.content = sizes.dataset, sizes.content
        self.widths = widths_of(config, sizes.inputs, sizes.classes)
        nodes = sizes.rows["train"]
        self.in_row_space = in_row_space(config, sizes)
        costs = [
            layer_cost(nodes, self.widths[i], self.widths[i + 1], i == 0, self.in_row_space)
            for i in range(self.layers_total)
        ]
        self.grid = Grid(waiter, config.run.shards, config.run.as_sharded)
        self.blocks = place(costs, self.grid.blocks)
        #: layers of every rank, those of a block with its first shard
        self.owned = [
            self.blocks[rank // self.grid.shards] if rank % self.grid.shards == 0 else range(0)
            for rank in range(waiter.comm.size)
        ]
        self.mine = self.blocks[self.grid.block]
        waiter.where.set_layers(self.mine.start, self.mine.stop - 1)
        self.hyper = hyper_of(config.training)
        groups = groups_of_shard(nodes, self.grid.shards, config.run.as_sharded)
        self.backend = make_backend(choice, self.rank, config.run.precision, threads, groups)
        self.grid.compute_on(self.backend)
        name = self.backend.name
        self.passes: Passes = select_passes(config.run.kernels, threads, name, self.backend.groups)
        self.transport: Transport | None = None
        self.layers: dict[int, Layer] = {}
        #: (classes,) what logits have more in predictions than in training, here and in the network that is
        #: started from; on the ranks of the output layer
        #: (classes,) what logits have more in predictions than in training; on rank 0 and where labels are
        self.shift: np.ndarray | None = None
        self._shift_of_start = None if start is None else shift_of(start.attributes)
        self.splits = self._read(sizes, open_features)
        self.monitor = Monitor(self.layers_total, dict(sizes.rows))
        self._rows = dict(sizes.rows)  # of all shards
        first = config.training.stages[0]
        self.first_depth = first if start is None else start.first_depth
        self._given = {}
        if start is not None:
            for i, position in enumerate(stage_positions(first, self.layers_total), 1):
                if position in self.mine:
                    self._given[position] = start.layer(i)
        self._progress = progress
        self.control = control or Control(waiter, 0, 0.0, 0.0, 0.0)
        self.clock = make_clock(self.backend, config.output.trace)
        self.accounts: Accounts
        #: the last evaluated iteration and the one of best validation accuracy, as far as a summary needs
        self.last: Record | None = None
        self.best: Record | None = None
        self._keeps_best = keep_best
        #: gives W and b of this rank's layers, by position, when `best` was measured, and then these
        self._best_layers: dict[int, Callable[[], tuple[np.ndarray, np.ndarray]]] = {}
        self._best_weights: dict[int, tuple[np.ndarray, np.ndarray]] | None = None
        self.iteration = 0
        self.seconds_iterations = 0.0
        self.seconds_evaluation = 0.0
        self.seconds_exposed = 0.0
        self.seconds_checkpoints = 0.0
        self._seconds_before = 0.0  # all that earlier starts took
        self.reduction_bytes = 0  # in the iterations of the stage
        self._losses: list[float] = []

    def _read(self, sizes: Sizes, open_features: Callable[[], Features]) -> dict[str, Split]:
        """Features on the rank of layer 1, labels on the output layer's rank; nothing elsewhere."""
        first, last = 1 in self.mine, self.layers_total in self.mine
        ours = {name: self._shard_of(rows) for name, rows in sizes.rows.items()}
        if not first and not last:
            return {name: Split(stop - start, None, None) for name, (start, stop) in ours.items()}
        device = self.backend.asarray
        n = self.config.network

        def scaled(X: np.ndarray) -> np.ndarray:
            return normalise_inputs(X, sizes.features_per_hop, n.input_norm, n.hop_decay)

        with self.waiter.limit(f"reading the features of {self.dataset}"), open_features() as features:
            prior = self.config.training.class_prior
            if prior != "train":
                labels = features.y("train"), features.y(prior)
                self.shift = logit_shift(*(np.bincount(y, minlength=sizes.classes) for y in labels))
            return {
                name: Split(
                    stop - start,
                    device(scaled(features.x(name, start, stop))) if first else None,
                    device(np.asarray(features.y(name, start, stop), np.int64)) if last else None,
                )
                for name, (start, stop) in ours.items()
            }

    def _shard_of(self, rows: int) -> tuple[int, int]:
        """First and past-the-last of so many nodes that are in this rank's shard."""
        return rows_of_shard(rows, self.grid.shard, self.grid.shards)

    # ---- the run ------------------------------------------------------------------------------------

    def run(
        self,
        folder: Path | None = None,
        resumed: Checkpoint | None = None,
        mark: Callable[[], Record | None] | None = None,
    ) -> bool:
        """Train through all stages.

        Parameters
        ----------
        folder
            Where checkpoints go; None: nowhere.
        resumed
            Checkpoint to go on from; it :meth:`fits`.
        mark
            Called on rank 0 for what a checkpoint is to say of metrics.jsonl.

        Returns
        -------
        bool
            Whether the run came to its end; False when it saved and stopped early.
        """
        self._folder, self._mark = folder, mark
        stages = self.config.training.stages
        first, done = 0, 0
        if resumed is not None:
            first, done = self._restore(resumed)
        # collective, so not in the constructor, where one rank may find its data unusable
        self.accounts = Accounts(self.clock, read_offset(self.waiter))
        rounds = [self._plan(depth).rounds() for depth in stages]
        self.transport = make_transport(self.choice, self.backend, self.waiter, self.config.run, rounds)
        for index in range(first, len(stages)):
            if not self._run_stage(index, done, resumed):
                return False
            done, resumed = 0, None
        return True

    def _run_stage(self, index: int, done: int, resumed: Checkpoint | None) -> bool:
        """Iterations `done` + 1 to the last of a stage; False when stopped early."""
        t = self.config.training
        plan = self._plan(t.stages[index])
        stage = self._open_stage(plan, resumed)
        self.clock.begin_stage(plan.depth)
        self.reduction_bytes = 0
        saved = [array for layer in stage.layers for array in layer.state().values()]
        if self._keeps_best:
            saved += [array for layer in stage.layers for array in (layer.W, layer.b)]
        self.control.expect(sum(array.nbytes for array in saved))
        if not done:
            self._losses = []
            self.monitor.begin_stage()
        verdict = CONTINUE
        self._begun = done
        for i in range(done, t.iterations):
            self._iterate(stage, index, i)
            verdict = self.control.after(self.iteration)
            if verdict != CONTINUE and not self._is_last(index, i):
                with self.clock.span("checkpoint"):
                    self._save(stage, index, i + 1)
                if verdict == STOP:
                    break
        self._account(stage)
        stage.finish()
        self.accounts.end_stage(plan.depth, plan.mine, stage.traffic, stage.float32_bytes, stage.facts)
        return verdict != STOP or self.iteration == t.iterations * len(t.stages)

    def _open_stage(self, plan: Plan, resumed: Checkpoint | None) -> Stage:
        """A stage of this rank's layers, ready to iterate, from a forward pass or from a checkpoint."""
        t = self.config.training
        saved = resumed.layers if resumed is not None else {}
        for position in plan.mine:
            if position not in self.layers:
                self.layers[position] = self._new_layer(position)
            if position in saved:
                copy_into(self.layers[position].W, saved[position]["W"])
                copy_into(self.layers[position].b, saved[position]["b"])
        if resumed is not None:
            self._all_have_read()
        train = self.splits["train"]
        first = self.layers.get(1)
        if first is not None and self.in_row_space:
            assert train.x is not None
            first.keep_in_row_space(train.x, lines=t.step == "row")
        stage = Stage(
            plan,
            [self.layers[p] for p in plan.mine],
            self.waiter,
            self.clock,
            transport=self.transport,
            backend=self.backend,
            nodes=self.grid.nodes,
        )
        before, _ = self._shard_of(self._rows["train"])
        stage.start(train.x, train.y, train.rows, self._codec, self.hyper, self.passes, t.seed, before)
        if resumed is not None:
            for layer in stage.layers:
                place = plan.positions.index(layer.position)
                around = [0, *plan.positions, 0][place : place + 3]
                own, below, above = (self._rows_of(saved.get(around[i])) for i in (1, 0, 2))
                assert own is not None
                layer.restore(own, below, above)
            self._all_have_read()
        return stage

    def _is_last(self, index: int, i: int) -> bool:
        """Whether iteration `i` of a stage, both from 0, is the last of the run."""
        t = self.config.training
        return i + 1 == t.iterations and index + 1 == len(t.stages)

    def _iterate(self, stage: Stage, index: int, i: int) -> None:
        """Iteration `i` of a stage, both from 0, timed, and the evaluation after it."""
        self.iteration += 1
        self.waiter.where.set_iteration(self.iteration, index + 1)
        measure = (i + 1) % self.config.output.eval_every == 0 or i + 1 == self.config.training.iterations
        self.control.before()
        exposed = self.waiter.seconds + self.grid.nodes.seconds
        sent = self.grid.nodes.bytes
        start = time.perf_counter()
        terms = stage.iterate(i, measure)
        seconds = time.perf_counter() - start
        self.seconds_iterations += seconds
        if self.clock.counts(i):
            self.accounts.iterated(seconds)
        self.seconds_exposed += self.waiter.seconds + self.grid.nodes.seconds - exposed
        self.reduction_bytes += self.grid.nodes.bytes - sent
        if self._is_last(index, i) and 1 in self.layers:
            self.layers[1].write_out()  # what is evaluated in the end is what the model holds
        if measure:
            self.seconds_exposed += stage.transport.waited()
            with self.clock.span("evaluation"):
                self._evaluate(stage, terms, index, i + 1)
            stage.transport.waited()  # those of the evaluation are no part of the iterations

    def _plan(self, depth: int) -> Plan:
        return Plan(depth, self.layers_total, self.blocks, self.grid.block, self.grid.rank_of)

    def _new_layer(self, position: int) -> Layer:
        t, n = self.config.training, self.widths
        last = position == self.layers_total
        activation = None if last else make_activation(self.config.network.activation)
        if not last and position >= self.first_depth:
            layer = identity_layer(position, n[position], activation, t.anchor == "identity")
        else:
            layer = random_layer(position, n[position - 1], n[position], activation, t.seed)
        if position in self._given:
            W, b = self._given.pop(position)
            copy_into(layer.W, W)
            copy_into(layer.b, b if not last or self._shift_of_start is None else b - self._shift_of_start)
        return layer.to(self.backend)

    # ---- checkpoints --------------------------------------------------------------------------------

    def _save(self, stage: Stage, index: int, stage_iteration: int) -> None:
        if self._folder is None:
            return
        start = time.perf_counter()
        exposed = self.waiter.sum(np.array([self.seconds_exposed]))[0] / self.waiter.comm.size
        state = {
            "stage": index,
            "stage_iteration": stage_iteration,
            "iteration": self.iteration,
            "nu": self.hyper.nu,
            "rho": self.hyper.rho,
            "losses": self._losses,
            "smallest_change": self.monitor.smallest_change,
            "last": self.last,
            "best": self.best,
            "metrics": self._mark() if self._mark is not None and self.rank == 0 else None,
            "data": self.content,
            "seconds_iterations": self.seconds_iterations,
            "seconds_evaluation": self.seconds_evaluation,
            "seconds_exposed": float(exposed),
            "seconds_checkpoints": self.seconds_checkpoints,
            "seconds_total": self.seconds_total,
            "fingerprint": self.fingerprint(),
            "first_depth": self.first_depth,
        }
        arrays = {layer.position: layer.state() for layer in stage.layers}
        best = self.best_weights
        if best:
            from pdadmm.admm.saved import with_best

            arrays = with_best(arrays, best)
        if self.grid.shards > 1:
            from pdadmm.admm.saved import pieces

            first, _ = self._shard_of(self._rows["train"])
            arrays = {position: pieces(found, first, self.grid.nodes) for position, found in arrays.items()}
        checkpoint.write(self._folder, self.iteration, state, arrays, self.waiter)
        self.control.saved()
        self.seconds_checkpoints += time.perf_counter() - start

    def _rows_of(self, saved: Saved | None) -> Mapping[str, np.ndarray] | None:
        """A layer's saved arrays as this rank's shard has them."""
        if saved is None:
            return None
        from pdadmm.admm.saved import RowsOf

        return RowsOf(saved, *self._shard_of(self._rows["train"]), self.grid.shard == 0)

    def fits(self, saved: Checkpoint) -> None:
        """Refuse a checkpoint of other options or data, or that no run can have saved.

        Raises
        ------
        InputError, ValueError
        """
        from pdadmm.admm.saved import Going, check  # only a run that goes on needs it

        nodes, fingerprint = self._rows["train"], self.fingerprint()
        going = Going(self.config, self.widths, nodes, self.in_row_space, self.content, fingerprint)
        check(saved, going)

    def _restore(self, saved: Checkpoint) -> tuple[int, int]:
        """Take over the state of a checkpoint; its stage, from 0, and how many iterations of it are done."""
        from pdadmm.admm.saved import best_of, state_of

        state = state_of(saved)
        self.in_row_space = self.in_row_space and "rows/coefficients" in saved.layers[1]
        self.hyper.nu, self.hyper.rho = state.nu, state.rho
        self.first_depth = state.first_depth or self.first_depth
        self._losses = state.losses
        self.monitor.smallest_change = state.smallest_change
        self.last, self.best = saved.state["last"], saved.state["best"]
        if self._keeps_best:
            mine = self.mine if self.grid.shard == 0 else range(0)
            self._best_weights = best_of(saved, self.positions_at_best, mine)
        self.iteration = state.iteration
        self.seconds_iterations = state.seconds_iterations
        self.seconds_evaluation = state.seconds_evaluation
        self.seconds_exposed = state.seconds_exposed
        self.seconds_checkpoints = state.seconds_checkpoints
        self._seconds_before = state.seconds_total
        return state.stage, state.stage_iteration

    @property
    def seconds_total(self) -> float:
        """Since the run first began, without the time between a stop and the next start."""
        return self._seconds_before + self.control.seconds()

    def fingerprint(self) -> Record:
        """What must be the same for a checkpoint to be gone on from."""
        c = self.config
        rows = {f"nodes_{name}": rows for name, rows in self._rows.items()}
        data = {"dataset": self.dataset, "widths": self.widths, **rows}
        training = asdict(c.training)
        training["start"] = os.path.abspath(c.training.start) if c.training.start else ""
        if c.training.schedule != "constant":  # it looks at what is evaluated
            training["eval_every"] = c.output.eval_every
        return {**data, **asdict(c.network), **training, **asdict(c.messages)}

    def _all_have_read(self) -> None:
        """Wait for the ranks that read their part of a checkpoint for longer than this one."""
        with self.waiter.patient():
            self.waiter.barrier()

    # ---- measuring ----------------------------------------------------------------------------------

    def _codec(self, span: Callable[[], tuple[float, float]]) -> Codec:
        m = self.config.messages
        given = None if m.grid_low is None or m.grid_high is None else (m.grid_low, m.grid_high)
        return make_codec(m.codec, m.bits, given or (lambda: with_margin(*span())))

    def _account(self, stage: Stage) -> None:
        """Bytes and times of the stage that ends."""
        iterations = self.config.training.iterations
        self.message_bytes = sum(end.outgoing_end.bytes for end in stage.couplings)
        self.float32_bytes = sum(end.float32_bytes for end in stage.couplings) * iterations

    def _evaluate(self, stage: Stage, terms: dict[int, Terms], index: int, stage_iteration: int) -> None:
        start = time.perf_counter()
        shift = None if self.shift is None else self.backend.asarray(self.shift)
        # what is said of the training nodes, whose loss a schedule looks at, is said of training
        shifts = {"train": None, "val": shift, "test": shift}
        counts = {name: evaluate(stage, self.splits[name], shifts[name]) for name in SPLITS}
        if self.grid.shard:  # every shard has the sums over all of them
            terms, counts = {}, {}
        total = self.waiter.sum(self.monitor.pack(terms, counts))
        record: Record = {
            "iteration": self.iteration,
            "stage": index + 1,
            "layers": self.config.training.stages[index],
            "stage_iteration": stage_iteration,
            "nu": self.hyper.nu,
            "rho": self.hyper.rho,
            **self.monitor.unpack(total, self.hyper, stage_iteration),
            "seconds": self.seconds_iterations,
        }
        self._follow_schedule(record["train_loss"])
        self.last = {name: record[name] for name in _IN_SUMMARY}
        if self.best is None or record["val_accuracy"] >= self.best["val_accuracy"]:
            self.best = self.last
            if self._keeps_best:
                layers = stage.layers if self.grid.shard == 0 else []
                self._best_layers = {layer.position: layer.snapshot() for layer in layers}
                self._best_weights = {}
        bound = DIVERGED * max(self._rows["train"], 1) * np.log(self.widths[-1] + 1)
        if not record["objective"] < bound:
            raise RunError(
                f"the objective is {record['objective']:.3g}, above the bound of {bound:.3g}; the run "
                f"diverges; {IF_IT_DIVERGES}",
                everywhere=True,
            )
        for name in ("val", "test"):
            if self._rows[name] and not np.isfinite(record[f"{name}_loss"]):
                raise RunError(
                    f"the loss of {name} nodes is {record[f'{name}_loss']}; features of theirs are too large "
                    "for the network, look for placeholders of missing values",
                    everywhere=True,
                )
        self.seconds_evaluation += time.perf_counter() - start
        if self._progress is not None:
            self._progress(record)

    def _follow_schedule(self, loss: float) -> None:
        """The authors' rule: nu and rho grow tenfold, up to 1, when the loss twice fell by less than .001."""
        if self.config.training.schedule != "authors":
            return
        self._losses = [*self._losses[-2:], loss]
        if len(self._losses) == 3:
            a, b, c = self._losses
            if c > b - 0.001 and b > a - 0.001:
                self.hyper.nu = max(self.hyper.nu, min(10 * self.hyper.nu, 1.0))
                self.hyper.rho = max(self.hyper.rho, min(10 * self.hyper.rho, 1.0))

    @property
    def layers_at_best(self) -> int:
        """Layers of the network when `best` was measured, which may have been in an earlier stage."""
        t = self.config.training
        return depth_at(self.best["iteration"], t.stages, t.iterations) if self.best else 0

    @property
    def positions_at_best(self) -> list[int]:
        """Positions of these layers."""
        return stage_positions(self.layers_at_best, self.layers_total) if self.best else []

    @property
    def best_weights(self) -> dict[int, tuple[np.ndarray, np.ndarray]] | None:
        """W and b of this rank's layers, by position, when `best` was measured, on the host.

        Those of shards are on the first. None where they are not kept, or a checkpoint of before does not
        know them.
        """
        if self._best_layers:
            self._best_weights = {position: made() for position, made in self._best_layers.items()}
            self._best_layers = {}
        return self._best_weights

    def predicting(
        self, layers: Mapping[int, tuple[np.ndarray, np.ndarray]]
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """W and b of layers of this rank, by position, as a network has them whose logits need no shift."""
        found = dict(layers)
        if self.shift is not None and self.layers_total in found:
            W, b = found[self.layers_total]
            found[self.layers_total] = W, b + self.shift
        return found

    def close(self) -> None:
        """Copy the weights to the host, close the transport; collective."""
        self._best_weights = self.best_weights  # made of arrays that may be on a device
        for layer in self.layers.values():
            layer.to_host()
        if self.transport is not None:
            self.transport.close()
        self.grid.close()

    def summary(self) -> Record:
        """Results of the whole run, the same on all ranks."""
        t = self.config.training
        last, best = self.last, self.best
        assert last is not None and best is not None  # the last iteration of a stage is evaluated
        mine = [float(self.message_bytes), float(self.float32_bytes), self.seconds_exposed]
        mine.append(float(self.reduction_bytes))
        sent, plain, exposed, reduced = self.waiter.sum(np.array(mine)).tolist()
        return {
            "train_accuracy": last["train_accuracy"],
            "val_accuracy": last["val_accuracy"],
            "test_accuracy": last["test_accuracy"],
            "best_val_accuracy": best["val_accuracy"],
            "test_accuracy_at_best_val": best["test_accuracy"],
            "iteration_at_best_val": best["iteration"],
            "layers_at_best_val": self.layers_at_best,
            "objective": last["objective"],
            "primal_residual": last["primal_residual"],
            "bytes_per_iteration": round(sent / t.iterations),
            "float32_bytes_per_iteration": round(plain / t.iterations),
            "reduction_bytes_per_iteration": round(reduced / max(t.iterations - self._begun, 1)),
            "seconds_iterations": self.seconds_iterations,
            "seconds_evaluation": self.seconds_evaluation,
            "seconds_exposed_communication": exposed / self.waiter.comm.size,
            "seconds_checkpoints": self.seconds_checkpoints,
        }


def with_margin(low: float, high: float) -> tuple[float, float]:
    """Range of the grid from that of the activations of the stage's first forward pass."""
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin
