"""The widths that a network's own messages are given: that they follow the variance, and that it helps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graph_networks import Source, network_of, weights_of
from mpi4py import MPI
from scipy.stats import spearmanr

from pdadmm.comm.waiter import Waiter
from pdadmm.gnn.assignment import Traces
from pdadmm.gnn.bits import Link
from pdadmm.gnn.equations import softmax_cross_entropy
from pdadmm.gnn.halo import Exchange, uniform_widths
from pdadmm.gnn.layer import Shape, slots_of
from pdadmm.gnn.links import LinkModel, Times
from pdadmm.gnn.passes.protocol import Drop
from pdadmm.gnn.passes.reference import ReferencePasses

SHAPES = {model: Shape(model, (12, 64, 64, 48)) for model in ("gcn", "sage")}
BITS = (1, 2, 4, 8)
PARTS = 3


class Case:
    """A network on a graph with hubs, whose messages go through the codec."""

    def __init__(self, model: str) -> None:
        self.shape = SHAPES[model]
        self.source = Source(PARTS, 240, 12, 48, seed=3, skew=1.0)
        self.network, self.parts, self.gradients = network_of(
            self.source, self.shape, weights_of(self.shape, dtype=np.float32), np.float32
        )
        self.slots = slots_of(self.shape)
        self.waiter = Waiter(MPI.COMM_SELF)

    def exchange(self, widths, seed=0):
        return Exchange(self.parts, PARTS, self.slots, widths, None, 1, 0, ReferencePasses(), seed)

    def uniform(self, bits):
        return uniform_widths(self.parts, self.slots, bits)

    def gradient(self, exchange, epoch):
        """All parameters' gradients as a vector."""
        drops = {layer: Drop(0.3, layer, False) for layer in range(1, self.shape.layers)}
        exchange.begin(epoch)
        self.network.forward(exchange, drops)
        for number, part in self.parts.items():
            ids = self.source.id[part.rows]
            train = self.source.split_original[ids] == 1
            _, G = softmax_cross_entropy(self.network.output(number), self.source.y_original[ids])
            self.network.output_gradient(number)[:] = G * train[:, None]
        self.network.backward(exchange, drops, lambda layer: None)
        return np.concatenate(
            [
                sum(of_part[layer][name] for of_part in self.gradients.values()).ravel()
                for layer in range(1, self.shape.layers + 1)
                for name in self.shape.parameters(layer)
            ]
        )

    def traces(self):
        """Of an epoch at 8 bits."""
        exchange = self.exchange(self.uniform(8))
        self.gradient(exchange, 1)
        traces = Traces(self.parts, self.slots, ReferencePasses())
        traces.note(exchange)
        return traces

    def variance(self, widths, repeats):
        """Of the gradient, over as many draws of the rounding."""
        exchange = self.exchange(widths)
        drawn = np.array([self.gradient(exchange, 1 + epoch) for epoch in range(repeats)])
        return float(drawn.var(axis=0, ddof=1).sum())


def nbytes(exchange):
    return sum(end.channel.nbytes for end in exchange.outgoing)


@pytest.mark.parametrize("model", SHAPES)
def test_widths_follow_what_a_row_adds_to_the_variance(model):
    case = Case(model)
    traces = case.traces()
    widths = traces.assign(case.waiter, BITS, 0.5, "greedy")
    found = []
    for slot in case.slots:
        betas, bits = [], []
        for number, part in case.parts.items():
            # beta by its definition, from rows that have not been rounded and the weights of the edges
            matrix = part.backward if slot.back else part.forward
            reach = np.zeros(part.extent)
            np.add.at(reach, matrix.indices, matrix.values.astype(np.float64) ** 2)
            for other, columns in part.receives.items():
                sender = case.network._at[slot.layer][other]
                X = (sender.back if slot.back else sender.forward)[case.parts[other].sends[number]]
                betas.append(reach[columns] * slot.cols / 6 * np.ptp(X, axis=1) ** 2)
                bits.append(widths[slot.name, other, number])
        beta, bits = np.concatenate(betas), np.concatenate(bits)
        assert len(set(bits.tolist())) > 2
        # few widths tie many rows: the best that as many rows of each width can do
        best = np.empty_like(bits)
        best[np.argsort(beta)] = np.sort(bits)
        found.append(spearmanr(beta, bits).statistic / spearmanr(beta, best).statistic)
    assert min(found) > 0.98, found


@pytest.mark.parametrize("model", SHAPES)
def test_assigned_widths_beat_uniform_ones_of_as_many_bytes(model):
    case = Case(model)
    traces = case.traces()
    uniform = case.uniform(2)
    budget = nbytes(case.exchange(uniform))
    # the share of the variance that spends no more than uniform widths do
    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        widths = traces.assign(case.waiter, BITS, share, "greedy")
        low, high = (share, high) if nbytes(case.exchange(widths)) <= budget else (low, share)
    assigned = traces.assign(case.waiter, BITS, low, "greedy")
    assert nbytes(case.exchange(assigned)) <= budget
    of_uniform = case.variance(uniform, 60)
    of_assigned = case.variance(assigned, 60)
    assert of_assigned < 0.8 * of_uniform


def test_rows_of_a_slow_link_get_fewer_bits_and_hidden_time_is_free():
    case = Case("gcn")
    traces = case.traces()
    fast, slow = Link(0.0, 1e-9), Link(0.0, 1e-6)
    model = LinkModel({(0, 1): fast, (0, 2): slow, (1, 2): fast}, [0, 1, 2])

    def widths(hidden, owner=(0, 1, 2)):
        of_parts = LinkModel(model.links, list(owner))
        found = traces.assign(case.waiter, BITS, 0.5, "greedy", True, of_parts, hidden)
        return {(a, b): found["F2", a, b].mean() for a, b in itertools.permutations(range(PARTS), 2)}

    exposed = widths({})
    assert exposed[0, 2] < exposed[0, 1]
    hidden = {(slot.name, part): 1.0 for slot in case.slots for part in case.parts}
    assert set(widths(hidden).values()) == {8.0}
    # within a rank bytes are free
    together = widths({}, owner=(0, 0, 1))
    assert together[0, 1] == together[1, 0] == 8.0
    assert min(together.values()) < 8


def test_hidden_time_is_that_from_sending_to_waiting(monkeypatch):
    clock = iter([10.0, 10.5, 20.0, 22.0, 30.0, 30.1])
    monkeypatch.setattr("pdadmm.gnn.links.time.perf_counter", lambda: next(clock))
    times = Times()
    for _ in range(3):
        times.sent("F2")
        times.waits("F2", 1)
    assert times.seconds() == {("F2", 1): pytest.approx(0.5)}  # the median
    assert times.seconds() == {}  # a new cycle
