"""Messages of rows, in NumPy and compiled: unbiased, of the published variance, for values of any size."""

from __future__ import annotations

import kernel_sides
import numpy as np
import pytest

from pdadmm.codec import NonFiniteError
from pdadmm.codec.rows import FLOAT32, WIDTHS, decode_rows, encode_rows, row_message_bytes, spans
from pdadmm.gnn.equations import variance_of_row
from pdadmm.gnn.passes.reference import ReferencePasses

widths = pytest.mark.parametrize("bits", sorted(WIDTHS))
all_widths = pytest.mark.parametrize("bits", [1, 2, 4, 8, FLOAT32])
KEYS = 4096


@pytest.fixture(params=kernel_sides.graph_sides())
def passes(request):
    with kernel_sides.graph_passes(request.param) as found:
        before = getattr(found, "calls", 0)
        yield found
        # a compiled side has not run NumPy's form under another name
        assert isinstance(found, ReferencePasses) or found.calls > before


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def every(X):
    return np.arange(len(X), dtype=np.int32)


def message_of(passes, X, bits, key=0, rows=None):
    rows = every(X) if rows is None else rows
    out = np.full(row_message_bytes(len(rows), X.shape[1], bits), 0xA5, np.uint8)
    passes.encode_rows(X, rows, bits, key, out)
    return out


def round_trip(passes, X, bits, key=0):
    """The message of all rows, and what its receiver has."""
    message = message_of(passes, X, bits, key)
    received = np.full_like(X, np.nan)
    passes.decode_rows(message, bits, every(X), received)
    return message, received


def heads_of(message, rows):
    """Power of two, minima and scales of the rows, as the message's form has them."""
    up = 2.0 ** int(message[:4].view(np.int32)[0])
    return up, *message[4 : 4 + 4 * rows].view(np.float16).astype(np.float64).reshape(2, rows, 1) * up


def assert_within_a_step(X, message, received):
    assert np.isfinite(received).all()
    up, _, step = heads_of(message, len(X))
    error, size = np.abs(received.astype(np.float64) - X), np.abs(X).max(axis=1, keepdims=True)
    # and the rounding of the sum of a minimum and its steps in float32, whose range ends at 2^-149
    assert (error <= step + 3e-7 * (size + step) + 2.0**-149 * max(up, 1)).all()


# ---- what rounding does on average ----------------------------------------------------------------


@widths
def test_messages_are_unbiased(passes, bits, rng):
    X = rng.standard_normal((4, 6), np.float32) * np.float32([[1], [1e-3], [50], [0.2]])
    total, rows, received = np.zeros(X.shape), every(X), np.empty_like(X)
    message = np.empty(row_message_bytes(*X.shape, bits), np.uint8)
    for key in range(KEYS):
        passes.encode_rows(X, rows, bits, key * 0x9E3779B1 & 0xFFFFFFFF, message)
        passes.decode_rows(message, bits, rows, received)
        total += received
    _, least, step = heads_of(message, len(X))
    above = (X - least) / step % 1  # the probability of the code above
    # of an event too rare for all the keys no deviation is seen: it counts for one in as many
    deviation = step * np.sqrt(np.maximum(above * (1 - above), 1 / KEYS) / KEYS)
    off = (total / KEYS - X) / (deviation + 1e-6 * np.abs(X).max(axis=1, keepdims=True))
    assert np.abs(off).max() <= 4
    assert np.abs(off).mean() <= 1.3  # a bias that all share would show here


@widths
def test_the_variance_is_the_published_one(passes, bits, rng):
    rows, cols = 60, 4000
    X = rng.random((rows, cols), np.float32) * np.exp(rng.standard_normal((rows, 1))).astype(np.float32)
    message, received = round_trip(passes, X, bits, 17)
    found = ((received.astype(np.float64) - X) ** 2).sum(axis=1)
    wanted = variance_of_row(cols, spans(message, rows, bits)) / (2**bits - 1) ** 2
    assert (found / wanted).mean() == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(wanted, cols * heads_of(message, rows)[2][:, 0] ** 2 / 6)


# ---- values of any size -----------------------------------------------------------------------------


@widths
def test_no_row_at_its_extremes_is_off_by_more_than_a_step(passes, bits, rng):
    rows = 1 << 20
    ends = np.sort(rng.standard_normal((rows, 2), np.float32) * np.float32(3), axis=1)
    ends[::3] *= np.float32(1e-4)
    X = np.stack([ends[:, 0], ends[:, 1], ends[:, 0]], axis=1)
    message, received = round_trip(passes, X, bits, 5)
    assert_within_a_step(X, message, received)


SIZES = {"constant": 0.3, "negative": -7.7, "zero": 0.0, "tiny": 1e-30, "huge": 3e38, "smallest": 1e-45}


def row_of(size: float, cols: int, rng) -> np.ndarray:
    """A row with entries of both signs up to a size."""
    row = rng.uniform(-1, 1, cols) * size
    row[0], row[-1] = size, -size
    return row.astype(np.float32)


@widths
@pytest.mark.parametrize("name", SIZES)
def test_rows_of_any_size_alone(passes, bits, name, rng):
    size = SIZES[name]
    constant = np.full((1, 37), size, np.float32)
    message, received = round_trip(passes, constant, bits)
    assert_within_a_step(constant, message, received)
    if size == 0:
        np.testing.assert_array_equal(received, constant)
    elif size > 1e-38:  # a float16 head has 11 bits
        np.testing.assert_allclose(received, constant, rtol=2.0**-9)
    X = row_of(size, 37, rng)[None, :]
    message, received = round_trip(passes, X, bits)
    assert_within_a_step(X, message, received)
    if size > 1e-38:
        np.testing.assert_allclose(spans(message, 1, bits), 2 * abs(size), rtol=2.0**-8)


@widths
def test_rows_of_any_size_in_one_message(passes, bits, rng):
    rows = [row_of(size, 37, rng) for size in SIZES.values()]
    rows += [np.full(37, size, np.float32) for size in SIZES.values()]
    X = np.stack(rows)
    message, received = round_trip(passes, X, bits)
    assert_within_a_step(X, message, received)
    np.testing.assert_array_equal(received[len(SIZES) + list(SIZES).index("zero")], 0)


@widths
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_spans_are_the_true_ones_but_for_the_rounding_of_heads(passes, bits, size, rng):
    X = (rng.standard_normal((300, 20)) * size * rng.uniform(0.01, 1, (300, 1))).astype(np.float32)
    message, received = round_trip(passes, X, bits)
    true = X.max(axis=1).astype(np.float64) - X.min(axis=1)
    found = spans(message, len(X), bits)
    # the minimum is rounded down and the scale up, each by less than a unit of 2^-10 of it
    assert (found >= true * (1 - 1e-6)).all()
    assert (found <= true * (1 + 2.0**-9) + 2.0**-9 * np.abs(X).max(axis=1)).all()
    # so that steps of gradients are as fine as those of activations
    assert (np.abs(received.astype(np.float64) - X) <= 1.01 * true[:, None] / (2**bits - 1)).all()


# ---- messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "cols", "bits", "wanted"),
    [(0, 10, 2, 0), (0, 10, FLOAT32, 0), (3, 10, 2, 28), (3, 10, 1, 24), (1, 1, 1, 12), (5, 256, 8, 1304),
     (5, 7, 4, 44), (5, 7, FLOAT32, 140)],
)  # fmt: skip
def test_sizes_of_messages(rows, cols, bits, wanted):
    assert row_message_bytes(rows, cols, bits) == wanted


def test_float32_travels_as_it_is(passes, rng):
    X = rng.standard_normal((20, 33), np.float32)
    X[3, ::2], X[4], X[5, 0] = -0.0, 3e38, 1e-45
    _, received = round_trip(passes, X, FLOAT32)
    np.testing.assert_array_equal(received.view(np.uint32), X.view(np.uint32))


@all_widths
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(passes, bits, value, rng):
    for cols, column in ((1, 0), (19, 0), (19, 18), (300, 255), (300, 299)):
        X = rng.standard_normal((9, cols), np.float32)
        X[6, column] = value
        with pytest.raises(NonFiniteError):
            message_of(passes, X, bits)
        message_of(passes, X, bits, rows=np.array([0, 5, 7], np.int32))  # a row that does not travel


@all_widths
@pytest.mark.parametrize("cols", [1, 3, 7, 10, 16, 17, 33, 40, 64, 65, 100, 127, 128, 129, 256, 767])
def test_all_sides_write_and_read_the_same_message(passes, bits, cols, rng):
    X = rng.standard_normal((50, cols), np.float32) * np.exp(3 * rng.standard_normal((50, 1))).astype(
        np.float32
    )
    X[3], X[4, ::2], X[5], X[6] = 0.0, -0.0, -np.abs(X[5]), X[6, 0]
    rows = rng.permutation(50)[:31].astype(np.int32)
    size = row_message_bytes(31, cols, bits)
    wanted = np.empty(size, np.uint8)
    encode_rows(X, rows, bits, 0xFEDCBA98, wanted)
    room = np.full(size + 64, 0xA5, np.uint8)
    passes.encode_rows(X, rows, bits, 0xFEDCBA98, room[:size])
    np.testing.assert_array_equal(room[:size], wanted)
    assert (room[size:] == 0xA5).all()
    received, theirs = np.full_like(X, 7.0), np.full_like(X, 7.0)
    passes.decode_rows(room[:size], bits, rows, received)
    decode_rows(wanted, bits, rows, theirs)
    np.testing.assert_array_equal(received.view(np.uint32), theirs.view(np.uint32))
    assert (received[np.setdiff1d(np.arange(50), rows)] == 7).all()


@widths
def test_long_messages_are_the_same_on_all_sides(passes, bits, rng):
    X = rng.standard_normal((3000, 70), np.float32)
    wanted = np.empty(row_message_bytes(*X.shape, bits), np.uint8)
    encode_rows(X, every(X), bits, 9, wanted)
    np.testing.assert_array_equal(message_of(passes, X, bits, 9), wanted)


@widths
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1.2e-38, 1e-36, 1.0, 16384.0, 3e38])
def test_messages_of_any_exponent_are_the_same_on_all_sides(passes, bits, size, rng):
    X = np.stack([row_of(size, 21, rng), row_of(size * 1e-3, 21, rng), np.full(21, size, np.float32)])
    wanted, theirs = np.empty(row_message_bytes(*X.shape, bits), np.uint8), np.empty_like(X)
    encode_rows(X, every(X), bits, 4, wanted)
    decode_rows(wanted, bits, every(X), theirs)
    message, received = round_trip(passes, X, bits, 4)
    np.testing.assert_array_equal(message, wanted)
    np.testing.assert_array_equal(received.view(np.uint32), theirs.view(np.uint32))
