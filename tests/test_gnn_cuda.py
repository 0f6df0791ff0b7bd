"""The CUDA passes of graph networks, on a GPU or their sources run on the CPU, against the host's passes.

Results of a row have the host's bits; sums over rows are float64 in another order.
"""

from __future__ import annotations

import re

import kernel_sides
import numpy as np
import pytest

from pdadmm.arrays import sources
from pdadmm.codec import NonFiniteError
from pdadmm.codec.rows import FLOAT32, WIDTHS, row_message_bytes
from pdadmm.gnn.passes.cuda import CudaPasses
from pdadmm.gnn.passes.host import HostPasses
from pdadmm.gnn.passes.protocol import Drop, Sparse
from pdadmm.gnn.passes.reference import ReferencePasses

pytestmark = pytest.mark.skipif(
    sources.find(sources.HOST_LIBRARY) is None, reason="the library is not built; run: pip install ."
)
REFERENCE = ReferencePasses()
# beside and at the ends of the kernels' pieces: 4, 16, 32 and 128 columns, 16 and 64 rows
SIZES = [(0, 5), (1, 1), (5, 3), (17, 16), (16, 20), (65, 33), (40, 64), (23, 130), (130, 7)]
DROPS = [Drop(0.0, 1, False), Drop(0.5, 2, False), Drop(0.3, 0xFFFFFFFF, True)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
drops = pytest.mark.parametrize("drop", DROPS, ids=["none", "after", "first"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(params=["cuda-on-cpu", *(["cuda"] if kernel_sides.gpu() else [])])
def device(request, monkeypatch, folder):
    return kernel_sides.on_device(CudaPasses, request.param, monkeypatch, folder)


@pytest.fixture
def host():
    return HostPasses()


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def assert_ran(passes, run, kernels):
    """What `run` returns; it must have started that many kernels."""
    before = passes.calls
    result = run()
    assert passes.calls - before == kernels
    return result


def matrix_of(rng, rows, columns):
    """Empty rows, a long one, and entries before the first."""
    lengths = rng.integers(0, 9, rows)
    if rows > 3:
        lengths[1], lengths[3] = 0, 2 * columns
    indptr = 3 + np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    entries = int(indptr[-1]) + 2
    return Sparse(indptr, rng.integers(0, columns, entries).astype(np.int32), normal(rng, entries))


@sizes
def test_aggregate_has_the_host_s_bits(device, host, size, rng):
    rows, cols = size
    matrix, X = matrix_of(rng, rows, 30), normal(rng, 30, cols)
    found, wanted = normal(rng, rows, cols), np.empty((rows, cols), np.float32)
    assert_ran(device, lambda: device.aggregate(matrix, X, found), int(rows > 0))
    host.aggregate(matrix, X, wanted)
    np.testing.assert_array_equal(found, wanted)
    device.aggregate(matrix, X, found, True)
    host.aggregate(matrix, X, wanted, True)
    np.testing.assert_array_equal(found, wanted)


@drops
@sizes
def test_hidden_layers_have_the_host_s_bits(device, host, size, drop, rng):
    rows, cols = size
    Z, G = 3 * normal(rng, *size) + 1, normal(rng, *size)
    bias, gamma, beta = (normal(rng, cols) for _ in range(3))
    nodes = rng.integers(0, 1 << 32, rows)
    both = []
    for passes in (device, host):
        N, inverse, H = Z.copy(), np.empty(rows, np.float32), np.empty_like(Z)
        passes.hidden(N, bias, gamma, beta, nodes, drop, N, inverse, H)
        back, sums = G.copy(), np.ones((3, cols))
        passes.hidden_backward(back, N, inverse, gamma, beta, nodes, drop, sums)
        both.append((N, inverse, H, back, sums))
    assert device.calls == (3 if rows else 0)
    for found, wanted in zip(both[0][:4], both[1][:4], strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(both[0][4], both[1][4], rtol=1e-12, atol=1e-11)


def test_nan_stays(device):
    one, zero = np.ones(20, np.float32), np.zeros(20, np.float32)
    Z = np.ones((3, 20), np.float32)
    Z[1, 7] = np.nan
    inverse, H = np.empty(3, np.float32), np.empty_like(Z)
    device.hidden(Z, zero, one, zero, np.arange(3), DROPS[0], Z, inverse, H)
    assert np.isnan(H[1]).all() and np.isfinite(H[[0, 2]]).all()


@sizes
def test_column_sums_are_added(device, size, rng):
    G, sums = normal(rng, *size), np.full(size[1], 2.0)
    device.column_sums(G, sums)
    np.testing.assert_allclose(sums, 2 + G.sum(axis=0, dtype=np.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", [FLOAT32, *WIDTHS])
@sizes
def test_messages_have_the_bytes_of_the_codec(device, host, size, bits, rng):
    count, cols = size
    X = normal(rng, 150, cols) * np.float32(10.0) ** rng.integers(-9, 5, (150, 1)).astype(np.float32)
    X[::7] = 0.25  # constant rows
    rows = rng.permutation(150)[:count].astype(np.int32)
    nbytes = row_message_bytes(count, cols, bits)
    found, wanted = (np.full(nbytes, 255, np.uint8) for _ in range(2))
    kernels = 0 if not count else 1 if bits == FLOAT32 else 2
    assert_ran(device, lambda: device.encode_rows(X, rows, bits, 0xFEDCBA98, found), kernels)
    host.encode_rows(X, rows, bits, 0xFEDCBA98, wanted)
    np.testing.assert_array_equal(found, wanted)
    if count:
        reference = np.empty_like(wanted)
        REFERENCE.encode_rows(X, rows, bits, 0xFEDCBA98, reference)
        np.testing.assert_array_equal(found, reference)
    Y, Y_host = (np.full_like(X, np.nan) for _ in range(2))
    assert_ran(device, lambda: device.decode_rows(found, bits, rows, Y), int(count > 0))
    host.decode_rows(wanted, bits, rows, Y_host)
    np.testing.assert_array_equal(Y, Y_host)


@pytest.mark.parametrize("bits", WIDTHS)
def test_variances_are_the_host_s(device, host, bits, rng):
    X = normal(rng, 50, 33) * np.float32(10.0) ** rng.integers(-9, 5, (50, 1)).astype(np.float32)
    X[3] = 0.25
    rows, columns = np.arange(0, 50, 2, dtype=np.int32), rng.permutation(60)[:25].astype(np.int32) + 100
    message = np.empty(row_message_bytes(25, 33, bits), np.uint8)
    host.encode_rows(X, rows, bits, 7, message)
    found, wanted, by_definition = (np.full(60, 2.0) for _ in range(3))
    assert_ran(device, lambda: device.add_variances(message, bits, columns, 100, 33, found), 1)
    host.add_variances(message, bits, columns, 100, 33, wanted)
    np.testing.assert_array_equal(found, wanted)
    by_definition[columns - 100] += 33 / 6 * np.ptp(X[rows], axis=1).astype(np.float64) ** 2
    np.testing.assert_allclose(found, by_definition, rtol=0.01)


@pytest.mark.parametrize("bits", [FLOAT32, 8, 1])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-9, 1e30, 3e38])
def test_messages_of_any_size(device, host, bits, scale, rng):
    X = rng.uniform(-1, 1, (9, 37)).astype(np.float32) * np.float32(scale)
    rows = np.arange(9, dtype=np.int32)
    found, wanted = (np.empty(row_message_bytes(9, 37, bits), np.uint8) for _ in range(2))
    device.encode_rows(X, rows, bits, 5, found)
    host.encode_rows(X, rows, bits, 5, wanted)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("bits", [FLOAT32, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_noticed(device, bits, value, rng):
    X, rows = normal(rng, 40, 9), np.arange(0, 40, 2, dtype=np.int32)
    message = np.empty(row_message_bytes(20, 9, bits), np.uint8)
    X[7, 3] = value  # not sent
    device.encode_rows(X, rows, bits, 0, message)
    X[38, 8] = value
    with pytest.raises(NonFiniteError):
        device.encode_rows(X, rows, bits, 0, message)


@sizes
def test_softmax_loss_has_the_host_s_gradient(device, host, size, rng):
    rows, classes = size
    Z, bias = 4 * normal(rng, *size), normal(rng, classes)
    labels = rng.integers(-1, classes, rows)
    if rows > 4 and classes > 2:
        Z[2], labels[2] = -bias, 1  # equal entries: the first is the answer
        Z[3], Z[3, 0], labels[3] = -90.0, 90.0, 2
        Z[4] *= 1e4
    both = []
    for passes in (device, host):
        z, G = Z.copy(), np.full_like(Z, np.nan)
        both.append((*passes.softmax_loss(z, bias, labels, 0.5, G), z, G))
    assert both[0][0] == pytest.approx(both[1][0], rel=1e-12, abs=1e-12)
    for found, wanted in zip(both[0][1:], both[1][1:], strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("size", [0, 1, 700])
def test_adam_has_the_host_s_bits(device, host, size, decay, rng):
    start = [normal(rng, size), normal(rng, size), np.zeros(size, np.float32), np.zeros(size, np.float32)]
    both = []
    for passes in (device, host):
        x, gradient, first, second = (a.copy() for a in start)
        for step in range(1, 4):
            passes.adam(x, gradient, first, second, step, 0.01, decay)
        both.append((x, first, second))
    for found, wanted in zip(*both, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_arguments_that_the_kernels_cannot_take_are_refused(device, rng):
    X, rows, vector = normal(rng, 6, 8), np.arange(6, dtype=np.int32), np.ones(8, np.float32)
    out, message = np.empty((6, 8), np.float32), np.zeros(76, np.uint8)
    matrix = matrix_of(rng, 6, 6)
    with pytest.raises(ValueError, match="columns"):
        device.aggregate(matrix, X[:, :4].copy(), out)
    with pytest.raises(ValueError, match=re.escape("where (6,)")):
        device.aggregate(matrix, X, out[:5])
    with pytest.raises(TypeError, match="float64"):
        device.aggregate(matrix, X.astype(np.float64), out)
    with pytest.raises(TypeError, match="int64"):
        device.encode_rows(X, rows.astype(np.int64), 8, 0, message)
    with pytest.raises(ValueError, match="which takes 76"):
        device.decode_rows(message[:-4].copy(), 8, rows, X)
    with pytest.raises(ValueError, match="3-bit"):
        device.encode_rows(X, rows, 3, 0, message)
    with pytest.raises(ValueError, match="shape"):
        device.softmax_loss(X, vector[:7].copy(), np.zeros(6, np.int64), 1.0, out)
    assert device.calls == 0
