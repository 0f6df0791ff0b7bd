"""The graph networks' equations against differences, the dense forms and the published ones, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pdadmm.gnn import equations, measure

STEP = 1e-5


def differences(f: Callable[[], float], x: np.ndarray) -> np.ndarray:
    """Gradient of f by central differences in every entry of x, which is put back."""
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        before = x[i]
        x[i] = before + STEP
        above = f()
        x[i] = before - STEP
        gradient[i] = (above - f()) / (2 * STEP)
        x[i] = before
    return gradient


def assert_is_gradient(found: np.ndarray, f: Callable[[], float], x: np.ndarray) -> None:
    wanted = differences(f, x)
    assert np.abs(found - wanted).max() <= 1e-6 * max(np.abs(wanted).max(), 1.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.mark.parametrize("drop", ["none", "after", "first"])
def test_hidden_backward_is_the_gradient_of_hidden(drop, rng):
    n, m = 6, 9
    Z, direction = rng.standard_normal((n, m)), rng.standard_normal((n, m))
    gamma, beta = rng.standard_normal(m), rng.standard_normal(m)
    kept = None if drop == "none" else (rng.random((n, m)) > 0.4) / 0.6
    first = drop == "first"

    def along() -> float:
        return float((equations.hidden(Z, gamma, beta, kept, first)[2] * direction).sum())

    N, inverse, _ = equations.hidden(Z, gamma, beta, kept, first)
    G_Z, g_gamma, g_beta = equations.hidden_backward(direction, N, inverse, gamma, beta, kept, first)
    for found, x in ((G_Z, Z), (g_gamma, gamma), (g_beta, beta)):
        assert_is_gradient(found, along, x)


def test_the_norm_is_that_of_its_definition(rng):
    Z = rng.standard_normal((4, 50)) * 3 + 2
    N, inverse, H = equations.hidden(Z, np.ones(50), np.zeros(50), None, False)
    for row, n, i in zip(Z, N, inverse, strict=True):
        np.testing.assert_allclose(i, 1 / np.sqrt(row.var() + 1e-5))
        np.testing.assert_allclose(n, (row - row.mean()) / np.sqrt(row.var() + 1e-5))
    np.testing.assert_array_equal(H, np.where(N > 0, N, 0))


def test_softmax_cross_entropy(rng):
    Z, labels = rng.standard_normal((5, 7)) * 3, rng.integers(0, 7, 5)
    losses, gradient = equations.softmax_cross_entropy(Z, labels)
    shares = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(losses, -np.log(shares[np.arange(5), labels]))
    assert_is_gradient(gradient, lambda: float(equations.softmax_cross_entropy(Z, labels)[0].sum()), Z)
    large, _ = equations.softmax_cross_entropy(Z + 1e4, labels)
    np.testing.assert_allclose(large, losses, atol=1e-9)


def test_sigmoid_cross_entropy(rng):
    Z, labels = rng.standard_normal((5, 7)) * 3, rng.integers(0, 2, (5, 7)).astype(float)
    losses, gradient = equations.sigmoid_cross_entropy(Z, labels)
    share = 1 / (1 + np.exp(-Z))
    np.testing.assert_allclose(losses, -np.log(np.where(labels == 1, share, 1 - share)).sum(axis=1))
    assert_is_gradient(gradient, lambda: float(equations.sigmoid_cross_entropy(Z, labels)[0].sum()), Z)
    known = np.array(labels, float)
    known[1] = np.nan  # takes no part
    written = np.full_like(gradient, 7.0)
    equations.sigmoid_gradient(Z, known, written)
    np.testing.assert_array_equal(written[1], 0.0)
    others = np.arange(len(Z)) != 1
    np.testing.assert_allclose(written[others], gradient[others], rtol=1e-14)
    losses, gradient = equations.sigmoid_cross_entropy(np.array([[-2000.0, 2000.0]]), np.array([[1.0, 1.0]]))
    np.testing.assert_allclose(losses, [2000.0])
    np.testing.assert_allclose(gradient, [[-1.0, 0.0]])


@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_adam_is_the_published_one(decay, rng):
    x = rng.standard_normal(20)
    ours, moments = x.copy(), equations.Moments(np.zeros(20), np.zeros(20))
    m, v = np.zeros(20), np.zeros(20)
    for step in range(1, 8):
        gradient = rng.standard_normal(20)
        equations.adam(ours, gradient, moments, step, 0.02, decay)
        g = gradient + decay * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - 0.02 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(ours, x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_has_its_rate_everywhere(rate):
    nodes, cols = 2000, 256
    keeps = equations.dropout_keeps(rate, 12345, np.arange(nodes), cols)
    for share, count in (
        (keeps.mean(), keeps.size),
        *((part.mean(), part.size) for part in (keeps[0], keeps[:, 7])),
    ):
        assert abs(share - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / count)
    # neighbours along rows and columns agree as often as independent draws
    agree = rate**2 + (1 - rate) ** 2
    for a, b in ((keeps[1:], keeps[:-1]), (keeps[:, 1:], keeps[:, :-1])):
        assert abs((a == b).mean() - agree) < 4 * np.sqrt(agree * (1 - agree) / a.size)


def test_dropout_of_a_node_does_not_depend_on_the_others():
    nodes = np.array([5, 2**31, 0, 2**32 - 1, 17])
    keeps = equations.dropout_keeps(0.5, 3, nodes, 64)
    order = np.array([3, 0, 4])
    np.testing.assert_array_equal(equations.dropout_keeps(0.5, 3, nodes[order], 64), keeps[order])
    np.testing.assert_array_equal(equations.dropout_keeps(0.5, 3, nodes, 10), keeps[:, :10])
    agree = equations.dropout_keeps(0.5, 4, np.arange(1000), 64) == equations.dropout_keeps(
        0.5, 3, np.arange(1000), 64
    )
    assert abs(agree.mean() - 0.5) < 4 * 0.5 / np.sqrt(agree.size)
    assert equations.dropout_keeps(0.0, 3, nodes, 64).all()


def test_weights_of_edges_are_those_of_the_dense_matrices(rng):
    A = np.triu(rng.random((8, 8)) < 0.5, 1).astype(float)
    A += A.T
    A[3] = A[:, 3] = 0
    loops = A + np.eye(8)
    degrees = loops.sum(axis=1)
    rows, neighbours = np.nonzero(loops)
    dense = np.diag(degrees**-0.5) @ loops @ np.diag(degrees**-0.5)
    np.testing.assert_allclose(
        equations.gcn_weights(degrees[rows], degrees[neighbours]), dense[rows, neighbours]
    )
    mean = equations.mean_weights(A.sum(axis=1))
    assert mean[3] == 0
    np.testing.assert_allclose((A * mean[:, None]).sum(axis=1), np.arange(8) != 3)


def test_weights_start_within_their_bound(rng):
    W = equations.xavier_uniform(300, 200, rng)
    bound = np.sqrt(6 / 500)
    assert W.shape == (300, 200) and W.dtype == np.float32
    assert np.abs(W).max() <= bound
    assert W.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("block", [1, 40, 1 << 24])
def test_outputs_are_measured_in_blocks_of_rows(
    multilabel: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_BLOCK_BYTES", block)
    random = np.random.default_rng(0)
    Z = random.normal(size=(23, 4)).astype(np.float32)
    labels = random.integers(0, 2, (23, 4)) if multilabel else random.integers(0, 4, 23)
    targets = measure.Targets(labels, np.arange(23) % 4)
    rows = targets.rows("val")
    wide = Z[rows].astype(np.float64)
    if multilabel:
        chances, said = 1 / (1 + np.exp(-wide)), wide > 0
        loss = -np.log(np.where(labels[rows] == 1, chances, 1 - chances)).sum()
        hits, tries = 2 * (said & (labels[rows] == 1)).sum(), said.sum() + labels[rows].sum()
    else:
        loss = (np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(rows)), labels[rows]]).sum()
        hits, tries = (wide.argmax(axis=1) == labels[rows]).sum(), len(rows)
    assert targets.loss(Z, rows) == pytest.approx(loss, rel=1e-5)
    assert measure._counts(targets, Z, rows) == (hits, tries)
    assert targets.loss(Z, rows[:0]) == 0 and measure._counts(targets, Z, rows[:0]) == (0, 0)
