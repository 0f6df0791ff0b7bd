"""The compiled passes of graph networks against float64, and against each other bit for bit."""

from __future__ import annotations

import kernel_sides
import numpy as np
import pytest

from pdadmm.arrays import sources
from pdadmm.codec import DeltaCodec, NonFiniteError
from pdadmm.codec.rows import FLOAT32, WIDTHS
from pdadmm.gnn.equations import dropout_keeps
from pdadmm.gnn.passes.host import HostPasses
from pdadmm.gnn.passes.protocol import Drop, Sparse
from pdadmm.gnn.passes.reference import ReferencePasses
from pdadmm.gnn.passes.select import make_passes

pytestmark = pytest.mark.skipif(
    sources.find(sources.HOST_LIBRARY) is None, reason="the library is not built; run: pip install ."
)
COLS = [1, 2, 3, 7, 10, 17, 40, 100, 256, 767]
ROWS = [0, 1, 5, 1000]
DROPS = [Drop(0.0, 1, False), Drop(0.5, 2, False), Drop(0.3, 0xFFFFFFFF, True)]
sizes = pytest.mark.parametrize("size", [(n, m) for n in ROWS for m in COLS], ids=lambda s: f"{s[0]}x{s[1]}")
drops = pytest.mark.parametrize("drop", DROPS, ids=["none", "after", "first"])
REFERENCE = ReferencePasses()


@pytest.fixture(params=[side for side in kernel_sides.graph_sides() if side != "reference"])
def passes(request):
    with kernel_sides.graph_passes(request.param) as found:
        before = found.calls
        yield found
        assert found.calls > before


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def double(*arrays):
    return [x.astype(np.float64) for x in arrays]


def assert_close(found, wanted, scale=1.0, bound=1e-5):
    """Errors of at most `bound` of the largest value, or of `scale` where it is larger."""
    found = found.astype(np.float64)
    assert np.isfinite(found).all()
    scale = np.maximum(scale, np.abs(wanted).max(initial=0))
    assert (np.abs(found - wanted) <= bound * scale).all()


def assert_same_bits(side, other):
    for a, b in zip(side, other, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def on_all_sides(run):
    """What every side returns has the same bits."""
    results = []
    for side in kernel_sides.graph_sides():
        if side != "reference":
            with kernel_sides.graph_passes(side) as passes:
                results.append(run(passes))
    for result in results[1:]:
        assert_same_bits(result, results[0])


# ---- aggregation ------------------------------------------------------------------------------------


def sparse(rng, rows, columns, start=0):
    """Rows of any length, empty ones and a long one; other entries before the first."""
    lengths = rng.integers(0, min(columns, 12), rows)
    if rows > 3:
        lengths[1], lengths[3] = 0, columns
    indptr = start + np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    entries = int(indptr[-1]) + 5
    indices = rng.integers(0, columns, entries).astype(np.int32)
    return Sparse(indptr, indices, normal(rng, entries))


def in_stored_order(matrix, X):
    """Sums in float32, entry after entry."""
    out = np.zeros((matrix.rows, X.shape[1]), np.float32)
    for row in range(matrix.rows):
        for e in range(matrix.indptr[row], matrix.indptr[row + 1]):
            out[row] += matrix.values[e] * X[matrix.indices[e]]
    return out


@sizes
def test_aggregate_adds_in_stored_order(passes, size, rng):
    rows, cols = min(size[0], 60), size[1]
    matrix, X = sparse(rng, rows, 50, start=9), normal(rng, 50, cols)
    room = np.full((rows + 2) * cols, np.nan, np.float32)
    out = room[cols:-cols].reshape(rows, cols)
    passes.aggregate(matrix, X, out)
    wanted = in_stored_order(matrix, X)
    np.testing.assert_array_equal(out, wanted)
    passes.aggregate(matrix, X, out, add=True)
    np.testing.assert_array_equal(out, wanted + wanted)
    assert np.isnan(room[:cols]).all() and np.isnan(room[-cols:]).all()


@pytest.mark.parametrize("cols", [1, 40, 256])
def test_aggregate_of_a_row_depends_on_the_row_alone(passes, cols, rng):
    matrix, X = sparse(rng, 5000, 900), normal(rng, 900, cols)
    out, parts = np.empty((5000, cols), np.float32), np.empty((5000, cols), np.float32)
    passes.aggregate(matrix, X, out)
    for first, last in ((0, 1), (1, 1300), (1300, 1300), (1300, 5000)):
        passes.aggregate(matrix.between(first, last), X, parts[first:last])
    np.testing.assert_array_equal(parts, out)
    narrow = np.empty((5000, 1), np.float32)
    passes.aggregate(matrix, X[:, -1:].copy(), narrow)
    np.testing.assert_array_equal(narrow[:, 0], out[:, -1])
    wanted = np.zeros((5000, cols))
    REFERENCE.aggregate(Sparse(matrix.indptr, matrix.indices, *double(matrix.values)), *double(X), wanted)
    assert_close(out, wanted)


def test_aggregate_of_a_matrix_without_entries(passes, rng):
    nothing = Sparse(np.zeros(8, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    out = normal(rng, 7, 5)
    before = out.copy()
    passes.aggregate(nothing, normal(rng, 3, 5), out, add=True)
    np.testing.assert_array_equal(out, before)
    passes.aggregate(nothing, normal(rng, 3, 5), out)
    np.testing.assert_array_equal(out, 0)


# ---- hidden layers ----------------------------------------------------------------------------------


def layer(rng, rows, cols):
    """Z, bias, gamma, beta, nodes."""
    nodes = rng.integers(0, 1 << 32, rows)
    return 3 * normal(rng, rows, cols) + 1, normal(rng, cols), normal(rng, cols), normal(rng, cols), nodes


def hidden_of(passes, Z, bias, gamma, beta, nodes, drop):
    N, inverse, H = np.empty_like(Z), np.empty(len(Z), Z.dtype), np.empty_like(Z)
    passes.hidden(Z.copy(), bias, gamma, beta, nodes, drop, N, inverse, H)
    return N, inverse, H


@drops
@sizes
def test_hidden(passes, size, drop, rng):
    Z, bias, gamma, beta, nodes = layer(rng, *size)
    found = hidden_of(passes, Z, bias, gamma, beta, nodes, drop)
    wanted = hidden_of(REFERENCE, *double(Z, bias, gamma, beta), nodes, drop)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs)
    in_place, inverse, H = Z.copy(), np.empty_like(found[1]), np.empty_like(Z)
    passes.hidden(in_place, bias, gamma, beta, nodes, drop, in_place, inverse, H)
    assert_same_bits((in_place, inverse, H), found)


@pytest.mark.parametrize("mean", [100.0, -3000.0])
def test_hidden_of_rows_with_a_large_mean(passes, mean, rng):
    Z = normal(rng, 200, 256) + np.float32(mean)
    one, zero, nodes = np.ones(256, np.float32), np.zeros(256, np.float32), np.arange(200)
    found = hidden_of(passes, Z, zero, one, zero, nodes, DROPS[0])
    wanted = hidden_of(REFERENCE, *double(Z, zero, one, zero), nodes, DROPS[0])
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs)


def test_hidden_of_constant_rows_and_of_nan(passes):
    one, zero = np.ones(20, np.float32), np.zeros(20, np.float32)
    Z = np.zeros((5, 20), np.float32)
    Z[1], Z[2], Z[3] = 0.1, 1e9, -1e15
    Z[4, 7] = np.nan
    N, inverse, H = hidden_of(passes, Z, zero, one, zero, np.arange(5), DROPS[0])
    np.testing.assert_allclose(N[:2], 0, atol=1e-5)
    assert np.isfinite(N[:4]).all() and np.isfinite(inverse[:4]).all() and np.isfinite(H[:4]).all()
    assert np.isnan(N[4]).all() and np.isnan(H[4]).all()


@pytest.mark.parametrize("cols", [1, 17, 256])
def test_dropout_is_the_hash_of_node_and_column(passes, cols, rng):
    nodes = rng.integers(0, 1 << 32, 300)
    zero, one = np.zeros(cols, np.float32), np.ones(cols, np.float32)
    keeps = dropout_keeps(0.37, 77, nodes, cols)
    *_, H = hidden_of(passes, normal(rng, 300, cols), zero, zero, one, nodes, Drop(0.37, 77, False))
    np.testing.assert_array_equal(H, np.where(keeps, np.float32(1 / 0.63), 0))
    G, N, inverse = normal(rng, 300, cols), normal(rng, 300, cols), np.ones(300, np.float32)
    sums = np.zeros((3, cols))
    before = G.copy()
    passes.hidden_backward(G, N, inverse, zero, one, nodes, Drop(0.37, 77, False), sums)
    np.testing.assert_allclose(sums[1], (keeps * (before.astype(np.float64) / 0.63)).sum(axis=0), atol=1e-4)
    # before the norm: what is dropped has the gradient 0
    G = before.copy()
    passes.hidden_backward(G, N, inverse, one, one, nodes, Drop(0.37, 77, True), sums)
    if cols > 2:
        np.testing.assert_array_equal(G != 0, keeps)


@drops
@sizes
def test_hidden_backward(passes, size, drop, rng):
    rows, cols = size
    Z, bias, gamma, beta, nodes = layer(rng, rows, cols)
    N, inverse, _ = hidden_of(passes, Z, bias, gamma, beta, nodes, drop)
    G = normal(rng, rows, cols)
    found, wanted = G.copy(), G.astype(np.float64)
    sums, wanted_sums = np.ones((3, cols)), np.ones((3, cols))
    passes.hidden_backward(found, N, inverse, gamma, beta, nodes, drop, sums)
    REFERENCE.hidden_backward(wanted, *double(N, inverse, gamma, beta), nodes, drop, wanted_sums)
    # entries of few columns nearly cancel: what they are made of is the scale
    scale = 4 * inverse.max(initial=0) * np.abs(G).max(initial=0) * np.abs(gamma).max()
    assert_close(found, wanted, scale)
    assert_close(sums, wanted_sums, max(1, rows) * (1 + scale), 1e-6)
    np.testing.assert_allclose(sums[2] - 1, found.sum(axis=0, dtype=np.float64), rtol=1e-9, atol=1e-9)


@sizes
def test_column_sums_are_added(passes, size, rng):
    G, sums = normal(rng, *size), np.full(size[1], 2.0)
    passes.column_sums(G, sums)
    np.testing.assert_allclose(sums, 2 + G.sum(axis=0, dtype=np.float64), rtol=1e-12, atol=1e-12)


def test_an_empty_message_is_of_no_bytes(passes, rng):
    X, nothing, message = normal(rng, 4, 5), np.empty(0, np.int32), np.empty(0, np.uint8)
    before = X.copy()
    for bits in (FLOAT32, *WIDTHS):
        passes.encode_rows(X, nothing, bits, 0, message)
        passes.decode_rows(message, bits, nothing, X)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("bits", WIDTHS)
def test_changes_have_the_bits_of_their_codec(bits, rng):
    """Both ends, over several epochs, and the library and not NumPy writes and reads them."""
    host, codec = HostPasses(2), DeltaCodec(bits)
    rows = np.array([5, 0, 7, 30, 31], np.int32)
    sides = []
    for passes in (host, REFERENCE):
        X, hat, other = normal(np.random.default_rng(1), 40, 300), *np.zeros((2, 5, 300), np.float32)
        taken, messages, before = np.zeros_like(X), [], host.calls
        for _ in range(3):
            message = np.zeros(codec.nbytes(5, 300), np.uint8)
            passes.encode_change(X, rows, codec, hat, message)
            passes.decode_change(message, rows[::-1].copy(), codec, other, taken)
            messages.append(message)
            X *= np.float32(1.25)
        assert host.calls - before == (6 if passes is host else 0)
        sides.append((*messages, hat, other, taken))
    assert_same_bits(*sides)
    np.testing.assert_array_equal(sides[0][3], sides[0][4])
    X[5, 3] = np.nan
    with pytest.raises(NonFiniteError):
        host.encode_change(X, rows, codec, sides[0][3], sides[0][0])


# ---- loss and Adam ----------------------------------------------------------------------------------


@sizes
def test_softmax_loss(passes, size, rng):
    rows, classes = size
    Z, bias = 4 * normal(rng, rows, classes), normal(rng, classes)
    labels = rng.integers(-1, classes, rows)
    if rows > 4 and classes > 2:
        Z[2], labels[2] = -bias, 1  # equal entries: the first is the answer
        Z[3], Z[3, 0], labels[3] = -90.0, 90.0, 2
        Z[4] *= 1e4
    ours, theirs = Z.copy(), Z.astype(np.float64)
    G, wanted_G = np.full_like(Z, np.nan), np.empty((rows, classes))
    loss, hits = passes.softmax_loss(ours, bias, labels, 0.5, G)
    wanted, wanted_hits = REFERENCE.softmax_loss(theirs, *double(bias), labels, 0.5, wanted_G)
    part = labels >= 0
    np.testing.assert_array_equal(ours[~part], Z[~part])
    np.testing.assert_array_equal(ours[part], Z[part] + bias)
    assert loss == pytest.approx(wanted, rel=1e-5, abs=1e-6 * rows)
    # float32 sums may tie where float64 ones do not
    assert hits == int((ours[part].argmax(axis=1) == labels[part]).sum())
    assert abs(hits - wanted_hits) <= 1
    assert_close(G, wanted_G, bound=1e-4 if rows > 4 and classes > 2 else 1e-5)
    np.testing.assert_array_equal(G[~part], 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_softmax_loss_of_what_is_not_finite_is_nan(passes, value, rng):
    Z, labels = normal(rng, 5, 11), np.array([1, 2, -1, 3, 4])
    Z[2, 0] = value
    G, zero = np.empty_like(Z), np.zeros(11, np.float32)
    assert np.isfinite(passes.softmax_loss(Z, zero, labels, 1.0, G)[0])
    Z[3, 7] = value
    assert np.isnan(passes.softmax_loss(Z, zero, labels, 1.0, G)[0])


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("size", [0, 1, 17, 1000, 70001])
def test_adam_has_the_bits_of_the_array_form(passes, size, decay, rng):
    start = [normal(rng, size), normal(rng, size), np.zeros(size, np.float32), np.zeros(size, np.float32)]
    sides = []
    for side in (passes, REFERENCE):
        x, gradient, first, second = (a.copy() for a in start)
        for step in range(1, 5):
            side.adam(x, gradient, first, second, step, 0.01, decay)
            gradient *= -0.7
        sides.append((x, first, second))
    assert_same_bits(*sides)


# ---- the same everywhere ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(1, 1), (33, 7), (900, 10), (700, 40), (500, 100), (300, 256), (90, 767)], ids=str
)
def test_threads_and_instruction_sets_give_the_same_bits(size, rng):
    rows, cols = size
    matrix, X = sparse(rng, rows, 120), normal(rng, 120, cols)
    Z, bias, gamma, beta, nodes = layer(rng, rows, cols)
    G, labels = normal(rng, rows, cols), rng.integers(-1, cols, rows)

    def run(passes):
        results = [np.empty((rows, cols), np.float32)]
        passes.aggregate(matrix, X, results[0])
        for drop in DROPS:
            N, inverse, H = hidden_of(passes, Z, bias, gamma, beta, nodes, drop)
            back, sums = G.copy(), np.zeros((3, cols))
            passes.hidden_backward(back, N, inverse, gamma, beta, nodes, drop, sums)
            results += [N, inverse, H, back, sums]
        column = np.zeros(cols)
        passes.column_sums(G, column)
        logits, gradient = Z.copy(), np.empty_like(Z)
        results += [column, *passes.softmax_loss(logits, bias, labels, 0.3, gradient), logits, gradient]
        return results

    on_all_sides(run)


# ---- arguments --------------------------------------------------------------------------------------


def test_arguments_that_the_kernels_cannot_take_are_refused(passes, rng):
    X, rows = normal(rng, 6, 8), np.arange(6, dtype=np.int32)
    out, message = np.empty((6, 8), np.float32), np.zeros(76, np.uint8)
    matrix = sparse(rng, 6, 6)
    passes.aggregate(matrix, X, out)
    with pytest.raises(ValueError, match="numbers from"):
        passes.aggregate(matrix, X[:3].copy(), out)
    with pytest.raises(ValueError, match="ascending"):
        passes.aggregate(Sparse(matrix.indptr[::-1].copy(), matrix.indices, matrix.values), X, out)
    with pytest.raises(ValueError, match="numbers from"):
        passes.aggregate(Sparse(matrix.indptr + 10, matrix.indices, matrix.values), X, out)
    with pytest.raises(ValueError, match="int32"):
        passes.aggregate(Sparse(matrix.indptr, matrix.indices.astype(np.int64), matrix.values), X, out)
    with pytest.raises(TypeError, match="float64"):
        passes.aggregate(matrix, X.astype(np.float64), out)
    with pytest.raises(TypeError, match="contiguous"):
        passes.aggregate(matrix, X[:, ::2], out[:, :4].copy())
    with pytest.raises(ValueError, match="columns"):
        passes.aggregate(matrix, X[:, :4].copy(), out)
    with pytest.raises(ValueError, match="numbers from"):
        passes.encode_rows(X[:5], rows, 8, 0, message)
    with pytest.raises(ValueError, match="which takes 76"):
        passes.decode_rows(message[:-4], 8, rows, X)
    with pytest.raises(ValueError, match="3-bit"):
        passes.encode_rows(X, rows, 3, 0, message)
    vector, inverse, nodes = X[0].copy(), X[:, 0].copy(), np.arange(6)
    with pytest.raises(ValueError, match="vector"):
        passes.hidden(X, inverse, vector, vector, nodes, DROPS[0], X, inverse, out)
    with pytest.raises(ValueError, match="numbers from"):
        passes.hidden(X, vector, vector, vector, nodes - 1, DROPS[0], X, inverse, out)
    with pytest.raises(ValueError, match="numbers from"):
        passes.softmax_loss(X, vector, nodes + 3, 1.0, out)
    with pytest.raises(ValueError, match="differ"):
        passes.adam(vector, inverse, vector, vector, 1, 0.1, 0.0)


def test_what_is_known_of_arrays_is_forgotten_with_them(passes):
    G = np.ones((4, 3), np.float32)
    zero = np.zeros(3, np.float32)
    for i in range(40):
        labels = np.full(4, i % 3)
        assert passes.softmax_loss(G, zero, labels, 1.0, np.empty_like(G))[1] == (4 if i % 3 == 0 else 0)
        del labels
    assert len(passes._integers) <= 1


def test_the_choice_of_passes(monkeypatch):
    assert isinstance(make_passes("auto", 1), HostPasses)
    assert isinstance(make_passes("fused", 2), HostPasses)
    assert isinstance(make_passes("reference", 1), ReferencePasses)
    with pytest.raises(ValueError, match="cupy"):
        make_passes("reference", 1, "cupy")
    monkeypatch.setattr(sources, "HOST_LIBRARY", "libabsent.so")
    assert isinstance(make_passes("auto", 1), ReferencePasses)
    sources.load.cache_clear()
    with pytest.raises(sources.LibraryError, match="pip install"):
        make_passes("fused", 1)
    sources.load.cache_clear()
