"""The assignment of widths against every assignment there is, and against a solver of integer programs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from pdadmm.gnn.bits import Link, Message, assign, exact, objective

BITS = (1, 2, 4, 8)


def messages_of(sizes, cols, seed, spread=2.0):
    rng = np.random.default_rng(seed)
    return [
        Message(
            rng.lognormal(0, spread, size),
            cols,
            Link(rng.uniform(0, 50), rng.uniform(0.5, 2)),
            rng.uniform(0, 30),
        )
        for size in sizes
    ]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_all_but_a_row_of_the_best_of_all_assignments(seed, share):
    messages = messages_of([8], 64, seed)
    # every one of the 4^8 at once, from the statement of the problem
    all_of_them = np.array(list(itertools.product(BITS, repeat=8)))
    (message,) = messages
    variance = (message.weights / (2.0**all_of_them - 1) ** 2).sum(axis=1)
    nbytes = (64 * all_of_them // 8).sum(axis=1)
    seconds = np.maximum(message.link.latency + message.link.seconds_per_byte * nbytes - message.hidden, 0)
    values = share * (variance - variance.min()) / np.ptp(variance)
    values += (1 - share) * (seconds - seconds.min()) / np.ptp(seconds)
    best = all_of_them[values.argmin()]
    assert objective(messages, [best], BITS, share) == pytest.approx(values.min(), abs=1e-12)
    found = assign(messages, BITS, share)[0]
    if share in (0.0, 1.0):  # many are the best: the value says it
        assert objective(messages, [found], BITS, share) == pytest.approx(values.min(), abs=1e-12)
    else:
        assert np.count_nonzero(found != best) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_within_a_thousandth_of_the_exact_solution(seed):
    messages = messages_of([400, 100, 500], 100, seed)
    found, best = assign(messages, BITS, 0.5), exact(messages, BITS, 0.5)
    at_best = objective(messages, best, BITS, 0.5)
    # the solver itself stops within a ten-thousandth
    assert at_best * (1 - 1e-3) <= objective(messages, found, BITS, 0.5) <= at_best * (1 + 1e-3)


@pytest.mark.parametrize(("rows", "cols"), [(400, 10), (100, 40)])
def test_the_exact_solution_does_not_depend_on_the_unit_of_time(rows, cols):
    """Links within a machine take some 1e-10 seconds a byte, which the solver would take for nothing."""
    slow = [replace(m, link=Link(3e4, 1.0), hidden=0.0) for m in messages_of([rows, rows], cols, 0)]
    fast = [replace(m, link=Link(3e-6, 1e-10)) for m in slow]
    found, best = (exact(messages, BITS, 0.5) for messages in (fast, slow))
    at_best = objective(slow, best, BITS, 0.5)
    assert objective(slow, found, BITS, 0.5) == pytest.approx(at_best, rel=1e-3)
    assert at_best <= objective(slow, assign(slow, BITS, 0.5), BITS, 0.5) * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_messages_of_a_port_share_its_time(seed):
    alone = messages_of([120, 60, 90, 30], 100, seed)
    ports = [0, 1, 0, 0]
    messages = [replace(m, port=port) for m, port in zip(alone, ports, strict=True)]
    found, best = assign(messages, BITS, 0.5), exact(messages, BITS, 0.5)
    at_best = objective(messages, best, BITS, 0.5)
    assert at_best * (1 - 1e-3) <= objective(messages, found, BITS, 0.5) <= at_best * (1 + 5e-3)

    def longest(sizes):
        """Of both ports, by the statement of the problem."""
        times = [m.link.latency + m.link.seconds_per_byte * n for m, n in zip(messages, sizes, strict=True)]
        hidden = min(messages[i].hidden for i in (0, 2, 3))
        return max(times[0] + times[2] + times[3] - hidden, times[1] - messages[1].hidden)

    def seconds(bits):
        return longest([len(m.weights) * -(-100 * bits // 8) for m in messages])

    taken = longest([sum(-(-100 * int(b) // 8) for b in w) for w in found])
    assert objective(messages, found, BITS, 0.0) == pytest.approx(
        (taken - seconds(1)) / (seconds(8) - seconds(1))
    )


def test_widths_follow_the_weights():
    (message,) = messages_of([5000], 256, 0)
    (widths,) = assign([message], BITS, 0.5)
    order = np.argsort(message.weights)
    assert (np.diff(widths[order].astype(int)) >= 0).all()
    assert len(set(widths.tolist())) > 2
    # spread widely, so that all four widths are taken
    (message,) = messages_of([5000], 256, 0, spread=4.0)
    (widths,) = assign([message], BITS, 0.999)
    assert spearmanr(message.weights, widths).statistic > 0.9


def test_a_message_behind_work_is_free():
    weights = np.ones(100)
    free = Message(weights, 64, Link(0, 1.0), hidden=1e9)
    assert (assign([free], BITS, 0.5)[0] == 8).all()


def test_rows_without_weight_get_the_least():
    message = Message(np.array([0.0, 1.0, 0.0]), 256)
    assert assign([message], BITS, 1.0)[0].tolist() == [1, 8, 1]


def test_no_rows_at_all():
    assert [len(w) for w in assign([Message(np.zeros(0), 8)], BITS, 0.5)] == [0]
