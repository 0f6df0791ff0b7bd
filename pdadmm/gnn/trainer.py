"""The training loop of a graph network: epochs, evaluations, assignments, the files a run leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from pdadmm.arrays import Array
from pdadmm.arrays.backend import Backend
from pdadmm.codec import NonFiniteError
from pdadmm.codec.rows import FLOAT32, WIDTHS
from pdadmm.comm.channel import Incoming, Outgoing
from pdadmm.comm.transport import Transport
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError, RunError
from pdadmm.files import Record
from pdadmm.gnn import saved
from pdadmm.gnn.assignment import Traces
from pdadmm.gnn.equations import sigmoid_gradient
from pdadmm.gnn.halo import Exchange, Hats, Slot, Widths, advice, rounds_of, uniform_widths
from pdadmm.gnn.laps import Laps, timed
from pdadmm.gnn.layer import Network, Shape, slots_of
from pdadmm.gnn.links import LinkModel, Times, measure_links
from pdadmm.gnn.measure import Targets, measure
from pdadmm.gnn.model_file import read_model
from pdadmm.gnn.optimiser import Parameters
from pdadmm.gnn.options import CHANGE_BITS, Config
from pdadmm.gnn.part import Part, parts_of_rank
from pdadmm.gnn.passes.protocol import Drop
from pdadmm.gnn.passes.select import make_passes
from pdadmm.gnn.products import make_products
from pdadmm.gnn.reading import read_inputs
from pdadmm.inputs.class_prior import logit_shift, shift_of
from pdadmm.runtime import checkpoint
from pdadmm.runtime.checkpoint import Checkpoint
from pdadmm.runtime.control import CONTINUE, STOP, Control
from pdadmm.runtime.devices import Choice, make_backend, make_transport
from pdadmm.runtime.launch import agree
from pdadmm.trace.choose import make_clock
from pdadmm.trace.collect import Accounts
from pdadmm.trace.offsets import read_offset

if TYPE_CHECKING:
    from pdadmm.inputs.feature_norm import FeatureNorm
    from pdadmm.inputs.graph_file import GraphSource

__all__ = ["Facts", "Trainer"]

#: training loss over that of a uniform guess from which a run counts as diverging
DIVERGED = 1e3


@dataclass(frozen=True)
class Facts:
    """What every rank needs to know of the graph."""

    dataset: str
    nodes: int
    edges: int
    features: int
    classes: int
    multilabel: bool
    parts: int
    partitioner: str
    edge_cut: int
    halo_rows: int
    sizes: dict[str, int]  #: nodes of each split
    content: str  #: hash of the graph, whatever its parts; empty where none is noted
    cut: str  #: hash of its parts
    norm: FeatureNorm  #: what preparing did to the features

    @classmethod
    def of(cls, source: GraphSource) -> Facts:
        """Facts of an opened graph.

        Raises
        ------
        InputError
            When it is damaged.
        """
        return cls(
            source.dataset,
            source.num_nodes,
            source.num_edges,
            source.num_features,
            source.num_classes,
            source.multilabel,
            source.parts,
            str(source.attrs["partitioner"]),
            int(source.attrs["edge_cut"]),
            int(source.attrs["halo_rows"]),
            dict(source.sizes),
            str(source.attrs.get("content", "")),
            source.cut(),
            source.norm,
        )

    def fit(self, source: GraphSource) -> bool:
        """Whether they are those of a graph, as far as a glance tells."""
        return (
            (self.nodes, self.edges, self.parts) == (source.num_nodes, source.num_edges, source.parts)
            and self.content == str(source.attrs.get("content", ""))
            and self.edge_cut == source.attrs["edge_cut"]
            and self.halo_rows == source.attrs["halo_rows"]
        )


def shape_of(config: Config, facts: Facts) -> Shape:
    """The layers of a configuration."""
    n, scheme = config.network, config.scheme
    widths = (facts.features, *[n.hidden] * (n.layers - 1), facts.classes)
    order, changes = n.order == "adaqp", config.messages.forward == "delta"
    return Shape(n.model, widths, order, scheme.exact_inputs, scheme.narrow, scheme.eager, changes)


class Trainer:
    """Trains the parts of one rank together with the other ranks.

    Parameters
    ----------
    config
        Complete and checked, the same on all ranks.
    facts
        Of the graph, the same on all ranks.
    source
        The graph; read here, and not needed any more afterwards.
    waiter
        Waits for MPI; holds the communicator.
    threads
        Of this rank, on the host.
    choice
        Arrays and way of the messages.
    control
        Says when to save and to stop.
    progress
        Called with the record of every evaluation, on all ranks.
    """

    def __init__(
        self,
        config: Config,
        facts: Facts,
        source: GraphSource,
        waiter: Waiter,
        threads: int,
        choice: Choice,
        control: Control | None = None,
        progress: Callable[[Record], None] | None = None,
    ) -> None:
        self.config, self.facts, self.waiter, self.choice = config, facts, waiter, choice
        ranks, rank = waiter.comm.size, waiter.comm.rank
        self.backend = backend = make_backend(choice, rank, config.run.precision, threads)
        self.clock = make_clock(backend, config.output.trace)
        self._laps = laps = Laps(self.clock)
        on_host = make_passes(config.run.kernels, threads)  # reads the inputs
        passes = make_passes(config.run.kernels, threads, backend.name) if backend.on_device else on_host
        self.passes, self.products = timed(passes, laps), timed(make_products(backend), laps)
        owners = [parts_of_rank(facts.parts, ranks, r) for r in range(ranks)]
        self.shape = shape_of(config, facts)
        self.parts = {number: Part.of(source, number, config.network.model) for number in owners[rank]}
        self.targets = {number: Targets.of(source, number, part.rows) for number, part in self.parts.items()}
        self.parameters = Parameters(
            self.shape, owners[rank], owners, waiter, self.passes, config.training.seed, laps, backend
        )
        #: (classes,) what logits have more in predictions than in training
        self.shift = _shift_for(config.training.class_prior, source)
        if config.training.start and not config.output.resume:
            _, given, attributes, _ = read_model(config.training.start)
            of_start = shift_of(attributes)
            if of_start is not None:
                given[self.shape.layers]["b"] -= of_start
            self.parameters.take(given)
        inputs, own = read_inputs(source, self.parts, self.shape, on_host, backend)
        self.network = Network(
            self.shape,
            self.parts,
            inputs,
            own,
            self.parameters.weights,
            self.parameters.gradients,
            self.passes,
            self.products,
            laps=laps,
            backend=backend,
        )
        self._train_labels = {number: _train_labels(t, backend) for number, t in self.targets.items()}
        self._no_bias = backend.zeros(facts.classes)  # the network has added it
        self.slots = slots_of(self.shape)
        m = config.messages
        codec = {slot: m.backward if slot.back else m.forward for slot in self.slots}
        self._affine = [slot for slot in self.slots if codec[slot] == "affine"]
        self._changes = [slot for slot in self.slots if codec[slot] == "delta"]
        self.widths = self._start_widths()
        self.traces = Traces(self.parts, self._affine, self.passes, backend) if config.assigns else None
        self._hats: Hats = {}  # of the messages that travel as changes, from a checkpoint
        self._progress = progress
        self.control = control or Control(waiter, 0, 0.0, 0.0, 0.0)
        self.last: Record | None = None
        self.best: Record | None = None
        #: parameters when `best` was measured; None where an older checkpoint does not know them
        self.best_vectors: dict[int, Array] | None = None
        self.epoch = 0
        self.message_bytes = 0
        #: epoch after which they are counted: other parts than now may have sent those before
        self.bytes_since = 0
        self.bytes_before = 0  # of all ranks, until then
        self.bits_sent = {"forward": 0.0, "backward": 0.0}
        self.entries_sent = {"forward": 0.0, "backward": 0.0}
        self.seconds_epochs = 0.0
        self.seconds_evaluation = 0.0
        self.seconds_exposed = 0.0
        self.seconds_assignment = 0.0
        self.seconds_checkpoints = 0.0
        self._seconds_before = 0.0  # all that earlier starts took
        self.evaluation_bytes = 0
        self.accounts: Accounts
        self.assigned: list[Record] = []  #: epoch, seconds and rows by width of every assignment
        self._links: LinkModel | None = None
        self._transport: Transport | None = None
        measured = config.assigns and m.links == "measured"
        self._times = Times() if measured else None
        self._since = 0  # epochs since the exchange was opened

    def _start_widths(self) -> Widths:
        """Of the first epochs."""
        m, scheme = self.config.messages, self.config.scheme
        first = scheme.first_bits if scheme.first_bits != FLOAT32 else 8
        bits = first if m.bits == "auto" else int(m.bits)
        of_changes = CHANGE_BITS if m.bits == "auto" else int(m.bits)
        return {
            **uniform_widths(self.parts, self.slots, FLOAT32),
            **uniform_widths(self.parts, self._affine, bits),
            **uniform_widths(self.parts, self._changes, of_changes),
        }

    # ---- the run ------------------------------------------------------------------------------------

    def run(
        self,
        folder: Path | None = None,
        resumed: Checkpoint | None = None,
        mark: Callable[[], Record] | None = None,
    ) -> bool:
        """Train through all epochs; collective.

        Parameters
        ----------
        folder
            Where checkpoints go; None: nowhere.
        resumed
            Checkpoint to go on from.
        mark
            Where metrics.jsonl ends, for a checkpoint; called on rank 0.

        Returns
        -------
        bool
            Whether the run came to its end; False when it saved and stopped early.
        """
        comm = self.waiter.comm
        if resumed is not None:
            with self.waiter.patient():
                self._restore(resumed)
                self.waiter.barrier()
        # collective, so not in the constructor, where one rank may find its data unusable
        self.accounts = Accounts(self.clock, read_offset(self.waiter))
        forward = [Slot(s.name, len(self.slots) + s.index, s.layer, s.cols) for s in self.slots if not s.back]
        if comm.size > 1:
            stages = [
                rounds_of(self.parts, self.facts.parts, slots, comm.size, comm.rank)
                for slots in (self.slots, forward)
            ]
            self._transport = make_transport(self.choice, self.backend, self.waiter, self.config.run, stages)
        self._open_cycle()
        self._exact = self._open(forward, uniform_widths(self.parts, forward, FLOAT32))
        self.control.expect(self._bytes_saved())
        epochs = self.config.training.epochs
        while self.epoch < epochs:
            self.epoch += 1
            self.waiter.where.set_iteration(self.epoch)
            if self._assigns_before(self.epoch):
                self._assign()
            self.control.before()
            evaluates = self.epoch % self.config.output.eval_every == 0 or self.epoch == epochs
            exposed, start = self.waiter.seconds, time.perf_counter()
            self._train()
            if evaluates:
                self.waiter.settle(self.backend)
            seconds = time.perf_counter() - start
            if evaluates or self.epoch == 1:  # which has advice of its own
                self._require_finite(self.epoch)
            self.seconds_epochs += seconds
            if self.clock.counts(self._since):
                self.accounts.iterated(seconds)
            self._since += 1
            self.seconds_exposed += self.waiter.seconds - exposed
            if evaluates:
                self.seconds_exposed += self._device_waited()
                with self.clock.span("evaluation"):
                    self._evaluate()
                self._device_waited()  # those of the evaluation are no part of the epochs
            verdict = self.control.after(self.epoch)
            if verdict != CONTINUE and self.epoch < epochs:
                with self.clock.span("checkpoint"):
                    self._save(folder, mark)
                if verdict == STOP:
                    break
        self._close_cycle()
        return self.epoch == epochs

    # ---- checkpoints --------------------------------------------------------------------------------

    def fingerprint(self) -> Record:
        """What must be the same for a checkpoint to be gone on from."""
        c, f = self.config, self.facts
        cut = {"parts": f.parts, "edge_cut": f.edge_cut, "halo_rows": f.halo_rows}
        cut = cut if self._coded else {}
        data = {"dataset": f.dataset, "widths": list(self.shape.widths), **cut}
        training = asdict(c.training)
        training["start"] = os.path.abspath(c.training.start) if c.training.start else ""
        del training["epochs"]  # no epoch depends on how many come after it
        return {**data, **asdict(c.network), **training, **asdict(c.messages)}

    @property
    def _coded(self) -> bool:
        """Whether messages are coded, so that what arrives depends on the parts."""
        return bool(self._affine or self._changes)

    def fits(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that this run cannot go on from; see :func:`pdadmm.gnn.saved.check`."""
        sizes = {layer: len(vector) for layer, vector in self.parameters.vectors.items()}
        cut = self.facts.cut if self._coded else ""
        saved.check(checkpoint, self.fingerprint(), self.facts.content, cut, sizes)
        reached, wanted = saved.state_of(checkpoint).epoch, self.config.training.epochs
        if reached >= wanted:
            raise InputError(
                f"--resume: the checkpoint is of epoch {reached}, --epochs is {wanted}; "
                f"give more than {reached}"
            )

    def _save(self, folder: Path | None, mark: Callable[[], Record] | None) -> None:
        if folder is None:
            return
        start = time.perf_counter()
        w, size = self.waiter, self.waiter.comm.size
        sums = w.sum(
            np.array(
                [
                    self.message_bytes,
                    self.seconds_exposed,
                    *self.bits_sent.values(),
                    *self.entries_sent.values(),
                ]
            )
        ).tolist()
        # of all ranks together, so that another number of them can go on
        state = {
            "epoch": self.epoch,
            "step": self.parameters.step,
            "assigned": self.assigned,
            "message_bytes": int(sums[0]),
            "bits_forward": sums[2],
            "bits_backward": sums[3],
            "entries_forward": sums[4],
            "entries_backward": sums[5],
            "best": self.best,
            "metrics": mark() if mark is not None and w.comm.rank == 0 else None,
            "data": self.facts.content,
            "seconds_epochs": self.seconds_epochs,
            "seconds_evaluation": self.seconds_evaluation,
            "seconds_exposed": sums[1] / size,
            "seconds_assignment": self.seconds_assignment,
            "seconds_checkpoints": self.seconds_checkpoints,
            "seconds_total": self.seconds_total,
            "parts": self.facts.parts,
            "cut": self.facts.cut,
            "bytes_since": self.bytes_since,
            "bytes_before": self.bytes_before,
            "fingerprint": self.fingerprint(),
        }
        arrays = saved.arrays_of(
            self.parameters,
            self.best_vectors,
            self.parts,
            self._affine,
            self.widths,
            self.traces,
            self.exchange.hats(),
            w.comm.rank,
            self.backend,
        )
        checkpoint.write(folder, self.epoch, state, arrays, w)
        self.control.saved()
        self.seconds_checkpoints += time.perf_counter() - start

    @property
    def seconds_total(self) -> float:
        """Since the run first began, without the time between a stop and the next start."""
        return self._seconds_before + self.control.seconds()

    def _bytes_saved(self) -> int:
        """Of a checkpoint, by the rank that writes most; collective."""
        vectors = 4 * sum(vector.nbytes for vector in self.parameters.vectors.values())
        hats = sum(hat.nbytes for key, hat in self.exchange.hats().items() if key[2] in self.parts)
        return int(max(self.waiter.gather(vectors * (self.waiter.comm.rank == 0) + hats) or [0]))

    def _restore(self, resumed: Checkpoint) -> None:
        state, rank, layers = saved.state_of(resumed), self.waiter.comm.rank, self.shape.layers
        self.widths = agree(
            self.waiter,
            lambda: saved.restore(
                resumed, self.parameters, self.parts, self._affine, self.widths, self.traces
            ),
        )
        self._hats = agree(
            self.waiter, lambda: saved.restore_hats(resumed, self.parts, self._changes, layers)
        )
        self.epoch, self.best = state.epoch, state.best
        self.best_vectors = saved.best_of(resumed, layers)
        self.assigned = msgspec.to_builtins(state.assigned)
        self.parameters.step = state.step
        same_parts = state.parts in (0, self.facts.parts)
        # what other parts sent says nothing of these
        self.bytes_since = state.bytes_since if same_parts else state.epoch
        self.bytes_before = state.bytes_before + (0 if same_parts else state.message_bytes)
        if rank == 0:
            self.message_bytes = state.message_bytes if same_parts else 0
            self.bits_sent = {"forward": state.bits_forward, "backward": state.bits_backward}
            self.entries_sent = {"forward": state.entries_forward, "backward": state.entries_backward}
        self.seconds_epochs, self.seconds_evaluation = state.seconds_epochs, state.seconds_evaluation
        self.seconds_exposed, self.seconds_assignment = state.seconds_exposed, state.seconds_assignment
        self.seconds_checkpoints, self._seconds_before = state.seconds_checkpoints, state.seconds_total

    # ---- an epoch -----------------------------------------------------------------------------------

    def _device_waited(self) -> float:
        """Seconds that a device stood still for messages since this was asked for last; it has settled."""
        return self._transport.waited() if self._transport is not None else 0.0

    def _open(self, slots: list[Slot], widths: Widths, times: Times | None = None) -> Exchange:
        comm = self.waiter.comm
        return Exchange(
            self.parts,
            self.facts.parts,
            slots,
            widths,
            self._transport,
            comm.size,
            comm.rank,
            self.passes,
            self.config.training.seed,
            self.backend,
            laps=self._laps,
            changes=frozenset(slot.name for slot in self._changes if slot in slots),
            hats=self._hats,
            times=times,
        )

    def _drops(self, rate: float) -> Mapping[int, Drop]:
        """Dropout of this epoch's hidden layers."""
        found = {}
        for layer in range(1, self.shape.layers):
            key = np.random.SeedSequence((self.config.training.seed, self.epoch, layer)).generate_state(1)
            found[layer] = Drop(rate, int(key[0]), self.shape.dropped_first)
        return found

    def _train(self) -> None:
        """An epoch."""
        self._laps.begin(self._since)
        t, drops = self.config.training, self._drops(self.config.network.dropout)
        self.exchange.begin(self.epoch)
        self.network.forward(self.exchange, drops)
        for number in self.parts:
            self._loss_gradient(number)
        self.network.backward(self.exchange, drops, self.parameters.ready)
        self.parameters.update(self.facts.sizes["train"], t.lr, t.weight_decay)
        if self.traces is not None:
            self.traces.note(self.exchange)
        self.message_bytes += sum(end.channel.nbytes for end in self.exchange.outgoing)
        for way, (bits, entries) in self._in_an_epoch.items():
            self.bits_sent[way] += bits
            self.entries_sent[way] += entries
        self._laps.end()

    def _bits_of_widths(self) -> dict[str, tuple[float, int]]:
        """Bits and entries that this rank's parts send in an epoch, by way."""
        found = {"forward": (0.0, 0), "backward": (0.0, 0)}
        for slot in self.slots:
            way = "backward" if slot.back else "forward"
            for part in self.parts.values():
                for other in part.sends:
                    widths = self.widths[slot.name, part.number, other]
                    bits, entries = found[way]
                    bits += slot.cols * float(widths.sum(dtype=np.float64))
                    found[way] = bits, entries + slot.cols * len(widths)
        return found

    def _loss_gradient(self, number: int) -> None:
        """Gradient of the summed loss of a part's training nodes."""
        Z, G, targets = (
            self.network.output(number),
            self.network.output_gradient(number),
            self.targets[number],
        )
        labels = self._train_labels[number]
        if targets.multilabel:
            sigmoid_gradient(Z, labels, G)
        else:
            self.passes.softmax_loss(Z, self._no_bias, labels, 1.0, G)

    def _assigns_before(self, epoch: int) -> bool:
        if self.traces is None:
            return False
        first = self.config.scheme.first_epochs
        every = self.config.messages.reassign
        return epoch > 1 and ((epoch - 1) % every == 0 or epoch - 1 == min(first or every, every))

    def _assign(self) -> None:
        """New widths from the epochs since the last time; collective."""
        assert self.traces is not None
        start, m = time.perf_counter(), self.config.messages
        scheme = self.config.scheme
        widths = scheme.widths or (2, 4, 8)
        with self.waiter.patient():  # rank 0 may have an integer program to solve
            found = self.traces.assign(
                self.waiter,
                widths,
                m.lambda_,
                m.assignment,
                scheme.every_byte,
                self._link_model(),
                self._times.seconds() if self._times is not None else None,
            )
        self.widths = {**self.widths, **found}
        self._close_cycle()
        self.exchange.close()
        self._hats = self.exchange.hats()
        self._open_cycle()
        self.traces.forget()
        seconds = time.perf_counter() - start
        self.seconds_assignment += seconds
        self.assigned.append({"epoch": self.epoch, "seconds": seconds, "widths": self._rows_by_width()})

    def _link_model(self) -> LinkModel | None:
        """The links between the ranks, measured when they are first needed; None where bytes count."""
        if self._times is None:
            return None
        if self._links is None:
            ranks = self.waiter.comm.size
            owner = [r for r in range(ranks) for _ in parts_of_rank(self.facts.parts, ranks, r)]
            self._links = LinkModel(measure_links(self.waiter, self.pairs()), owner)
        return self._links

    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of ranks between which messages go, the lower one first; collective, the same on all."""
        ranks, rank = self.waiter.comm.size, self.waiter.comm.rank
        owners = [parts_of_rank(self.facts.parts, ranks, r) for r in range(ranks)]
        others = {other for part in self.parts.values() for other in part.sends}
        mine = [(min(rank, r), max(rank, r)) for r in range(ranks) if r != rank and others & set(owners[r])]
        gathered = self.waiter.gather(mine)
        return self.waiter.broadcast(sorted({pair for of_rank in gathered or [] for pair in of_rank}))

    def _rows_by_width(self) -> Record:
        """By slot, how many rows of all parts have each width; collective."""
        names, bits = [slot.name for slot in self.slots], (FLOAT32, *WIDTHS)
        counts = np.zeros((len(names), len(bits)))
        for facts in self.exchange.facts.values():
            if facts["sender_part"] in self.parts:
                for width, rows in facts["widths"].items():
                    counts[names.index(facts["slot"]), bits.index(int(width))] += rows
        total = self.waiter.sum(counts.reshape(-1)).reshape(counts.shape)
        return {
            name: {str(b): int(rows) for b, rows in zip(bits, of_slot, strict=True) if rows}
            for name, of_slot in zip(names, total, strict=True)
        }

    def _open_cycle(self) -> None:
        """Begin to exchange messages of the widths that were assigned."""
        self.exchange = self._open(self.slots, self.widths, self._times)
        self._hats = {}  # it has copies of its own
        self._in_an_epoch = self._bits_of_widths()
        self.clock.begin_stage(self.shape.layers)
        self._since = 0

    def _close_cycle(self) -> None:
        """End the accounts of these widths; those too short to have any are left out."""
        if self.accounts.stages and not self.clock.iterations:
            return
        self.accounts.shorten()  # an assignment follows the other, with thousands of messages each
        ends: list[Outgoing | Incoming] = [*self.exchange.outgoing, *self.exchange.incoming]
        facts = {**self.exchange.facts, **self.parameters.facts()}
        layers = range(1, self.shape.layers + 1)
        self.accounts.end_stage(len(layers), layers, ends, self.exchange.float32_bytes(), facts)

    def _evaluate(self) -> None:
        """Measure the network as it is, without dropout and with exact messages; collective."""
        start = time.perf_counter()
        self._exact.begin(self.epoch + 1)  # which would begin with these weights
        self.network.forward(self._exact, self._drops(0.0))
        self.waiter.settle(self.backend)
        self._require_finite(self.epoch + 1)
        outputs = {number: self.backend.to_host(self.network.output(number)) for number in self.parts}
        found = measure(outputs, self.targets, self.facts.parts, self.facts.classes, self.waiter, self.shift)
        self.evaluation_bytes = sum(end.channel.nbytes for end in self._exact.outgoing)
        self.seconds_evaluation += time.perf_counter() - start
        so_far = self.waiter.sum(np.array([self.seconds_exposed, self.message_bytes]))
        record: Record = {
            "epoch": self.epoch,
            **found,
            "seconds": self.seconds_epochs,
            "seconds_exposed": float(so_far[0]) / self.waiter.comm.size,
            "bytes": self.bytes_before + int(so_far[1]),
        }
        self.last = record
        if self.best is None or record["val_accuracy"] >= self.best["val_accuracy"]:
            self.best = record
            self.best_vectors = {layer: v.copy() for layer, v in self.parameters.vectors.items()}
        bound = DIVERGED * (np.log(self.facts.classes) if not self.facts.multilabel else self.facts.classes)
        if not record["loss"] < bound:
            raise RunError(
                f"the loss is {record['loss']:.3g} after epoch {self.epoch}; the run diverges; "
                f"{self._advice(self.epoch + 1)}",
                everywhere=True,
            )
        if self._progress is not None:
            self._progress(record)

    def _require_finite(self, epoch: int) -> None:
        """Raise for NaN or Inf in a message of `epoch`, which a device does not tell at once."""
        try:
            self.passes.require_finite()
        except NonFiniteError:
            raise RunError(f"NaN or Inf in a message; {self._advice(epoch)}") from None

    def _advice(self, epoch: int) -> str:
        return advice(epoch, self._coded and self.facts.halo_rows > 0)

    def weights(self, vectors: Mapping[int, Array]) -> dict[int, dict[str, np.ndarray]]:
        """Parameters of the layers' vectors by layer and name, on the host, as predictions take them."""
        host = self.backend.to_host
        found = {
            layer: {name: host(x) for name, x in self.parameters.named(layer, vector).items()}
            for layer, vector in vectors.items()
        }
        if self.shift is not None:
            output = found[self.shape.layers]
            output["b"] = output["b"] + self.shift
        return found

    def close(self) -> None:
        """Free what the messages took; collective."""
        self.exchange.close()
        self._exact.close()
        if self._transport is not None:
            self._transport.close()
        self.products.close()

    def traffic(self) -> Record:
        """Bytes and bits of all ranks, and seconds waited for them, mean of the ranks; collective."""
        plain = sum(
            4 * width * len(rows)
            for width in self._plain_columns()
            for part in self.parts.values()
            for rows in part.sends.values()
        )
        mine = [
            float(self.message_bytes), float(plain), float(self.evaluation_bytes),
            float(self.parameters.bytes_sent), self.seconds_exposed,
            self.bits_sent["forward"], self.entries_sent["forward"],
            self.bits_sent["backward"], self.entries_sent["backward"],
        ]  # fmt: skip
        total = self.waiter.sum(np.array(mine)).tolist()
        sent, plain_sent, evaluation, reduction, exposed = total[:5]
        return {
            "mean_bits_forward": total[5] / total[6] if total[6] else 0.0,
            "mean_bits_backward": total[7] / total[8] if total[8] else 0.0,
            "bytes_per_epoch": round(sent / max(self.epoch - self.bytes_since, 1)),
            "float32_bytes_per_epoch": round(plain_sent),
            "evaluation_bytes_per_evaluation": round(evaluation),
            "reduction_bytes_per_epoch": round(reduction),
            "seconds_exposed_communication": exposed / self.waiter.comm.size,
        }

    def summary(self) -> Record:
        """Results of the whole run, the same on all ranks; collective."""
        last, best = self.last, self.best
        assert last is not None and best is not None  # the last epoch is evaluated
        measured = {
            name: last[name] for name in last if name.endswith(("_accuracy", "_auc")) or name == "loss"
        }
        return {
            **measured,
            "best_val_accuracy": best["val_accuracy"],
            "test_accuracy_at_best_val": best["test_accuracy"],
            **self.traffic(),
            "seconds_epochs": self.seconds_epochs,
            "seconds_evaluation": self.seconds_evaluation,
            "seconds_assignment": self.seconds_assignment,
        }

    def _plain_columns(self) -> list[int]:
        """Columns of a row in every message of the scheme `float32`."""
        inputs = self.shape.widths[:-1]
        return [*inputs, *inputs[1:]]


def _shift_for(prior: str, source: GraphSource) -> np.ndarray | None:
    """What `--class-prior` adds to the logits, (classes,), by the nodes of all parts."""
    if prior == "train":
        return None
    counts = np.zeros((2, source.num_classes), np.int64)
    for number in range(source.parts):
        targets = Targets.of(source, number)
        for of_split, name in zip(counts, ("train", prior), strict=True):
            of_split += np.bincount(targets.labels[targets.rows(name)], minlength=source.num_classes)
    return logit_shift(*counts)


def _train_labels(targets: Targets, backend: Backend) -> Array:
    """Labels of the training nodes where they are compared: (n,), -1 for others, or (n, classes), NaN."""
    train = targets.split == 1
    if targets.multilabel:
        labels = np.where(train[:, None], targets.labels, np.nan).astype(np.float32)
    else:
        labels = np.where(train, targets.labels, -1).astype(np.int64)
    return backend.asarray(labels)
