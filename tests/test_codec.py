"""What every codec promises: error bounds, saturation, exact sizes, equal copies at both ends."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import CODECS, PROGRAMS, message_bytes, records_of, succeed, summary_of, without_times

from pdadmm.codec import CODECS as CODECS_BY_NAME
from pdadmm.codec import (
    AffineCodec,
    Codec,
    DeltaCodec,
    Float32Codec,
    GridCodec,
    NonFiniteError,
    make_codec,
    pack,
    uniform_hash,
    unpack,
)
from pdadmm.errors import InputError

LOW, HIGH = -1.25, 2.5
EPS16, EPS32 = 2.0**-10, 2.0**-23


def make(name: str, bits: int) -> Codec:
    if name == "float32":
        return Float32Codec()
    if name == "grid":
        return GridCodec(bits, LOW, HIGH)
    return AffineCodec(bits) if name == "affine" else DeltaCodec(bits)


def matrices(limit: float, most: int = 40) -> st.SearchStrategy[Any]:
    """Float32 matrices of any small shape, some wider than a block of the delta codec."""
    sizes = st.one_of(st.integers(1, most), st.sampled_from([127, 128, 129, 257]))
    values = st.floats(-limit, limit, width=32, allow_subnormal=False)
    return st.tuples(st.integers(1, 5), sizes).flatmap(
        lambda shape: arrays(np.float32, shape, elements=values, fill=st.just(0.0))
    )


def send(codec: Codec, x: Any, hat: Any, key: int = 0) -> Any:
    """Encode into a buffer with guards on both sides; returns the message."""
    size = codec.nbytes(*x.shape)
    buffer = np.full(size + 32, 0xA5, np.uint8)
    message = buffer[16 : 16 + size]
    before = x.copy()
    codec.encode(x, hat, message, key)
    np.testing.assert_array_equal(x, before)
    assert (buffer[:16] == 0xA5).all() and (buffer[16 + size :] == 0xA5).all()  # it stays in its bytes
    return message


def sent(codec: Codec, x: Any, hat: Any = None, key: int = 0) -> Any:
    """The receiver's copy after one message; the sender's must be the same, bit for bit."""
    mine = np.zeros_like(x) if hat is None else hat.copy()
    theirs = mine.copy()
    message = send(codec, x, mine, key).copy()
    codec.decode(message, theirs)
    assert mine.tobytes() == theirs.tobytes()
    return theirs


quick = settings(deadline=None, max_examples=50, derandomize=True)
every_codec = pytest.mark.parametrize(("name", "bits"), CODECS, ids=lambda v: str(v))


# ---- the wire -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@quick
@given(data=st.data(), rows=st.integers(1, 4), cols=st.integers(1, 70))
def test_unpacking_undoes_packing(bits: int, data: st.DataObject, rows: int, cols: int) -> None:
    codes = data.draw(arrays(np.uint8, (rows, cols), elements=st.integers(0, 2**bits - 1)))
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-cols * bits // 8)) and packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack(packed, cols, bits), codes)


@every_codec
@quick
@given(rows=st.integers(1, 300), cols=st.integers(1, 600))
@example(rows=3_000_000, cols=4096)
def test_message_size_is_known_from_the_shape_in_64_bits(name: str, bits: int, rows: int, cols: int) -> None:
    assert make(name, bits).nbytes(rows, cols) == message_bytes(name, bits, rows, cols)


@pytest.mark.parametrize("cols", [128, 100])
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.26), (4, 0.135), (2, 0.075), (1, 0.045)])
def test_delta_messages_are_small(bits: int, bound: float, cols: int) -> None:
    share = DeltaCodec(bits).nbytes(140, cols) / Float32Codec().nbytes(140, cols)
    assert bits / 32 < share <= bound


@every_codec
@quick
@given(x=matrices(1e4), data=st.data())
def test_both_ends_hold_the_same_copy_after_every_message(
    name: str, bits: int, x: Any, data: st.DataObject
) -> None:
    codec = make(name, bits)
    mine = data.draw(arrays(np.float32, x.shape, elements=st.floats(-9, 9, width=32), fill=st.just(1.0)))
    theirs = mine.copy()
    for key in range(4):
        message = send(codec, x, mine, key).copy()
        codec.decode(message, theirs)
        assert mine.tobytes() == theirs.tobytes()
        x = np.float32(0.7) * x + np.float32(key)


@pytest.mark.parametrize(("name", "bits"), CODECS[:4])
def test_a_lossless_codec_needs_no_copy_of_its_own(name: str, bits: int) -> None:
    codec = make(name, bits)
    assert codec.lossless
    x = np.random.default_rng(0).standard_normal((5, 11)).astype(np.float32)
    if isinstance(codec, GridCodec):
        x = codec.project(x)
    hat, received = x, np.zeros_like(x)
    codec.decode(send(codec, x, hat), received)
    np.testing.assert_array_equal(received, x)


# ---- errors ---------------------------------------------------------------------------------------


@quick
@given(x=matrices(2.0**100))
def test_float32_arrives_unchanged(x: Any) -> None:
    assert sent(make("float32", 32), x).tobytes() == x.tobytes()


@pytest.mark.parametrize("bits", [8, 4, 2])
@quick
@given(x=matrices(10.0))
def test_grid_sends_the_nearest_value(bits: int, x: Any) -> None:
    grid = np.linspace(LOW, HIGH, 2**bits)
    found = sent(GridCodec(bits, LOW, HIGH), x)
    nearest = np.abs(grid[:, None] - x.astype(np.float64).ravel()).min(axis=0).reshape(x.shape)
    assert np.all(np.abs(found.astype(np.float64) - x) <= nearest + 1e-5)
    distance = np.abs(grid[:, None] - found.astype(np.float64).ravel()).min(axis=0)
    assert distance.max() <= 1e-6  # and nothing between the values
    again = sent(GridCodec(bits, LOW, HIGH), found)
    assert again.tobytes() == found.tobytes()  # once on the grid, nothing is lost


@pytest.mark.parametrize("bits", [8, 4, 2])
@quick
@given(x=matrices(6e4), key=st.integers(0, 2**32 - 1))
def test_affine_is_off_by_less_than_a_level(bits: int, x: Any, key: int) -> None:
    found = sent(AffineCodec(bits), x, key=key)
    low, high = (f(x.astype(np.float64), axis=1, keepdims=True) for f in (np.min, np.max))
    # the minimum is rounded down and the width of a level up, both to float16
    level = (high - low + EPS16 * np.abs(low) + 2.0**-24) / (2**bits - 1) * (1 + EPS16) + 2.0**-24
    error = np.abs(found.astype(np.float64) - x)
    assert np.all(error <= level * (1 + 1e-4) + 4 * EPS32 * np.maximum(np.abs(low), np.abs(high)))


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@quick
@given(x=matrices(6e4), data=st.data())
def test_delta_is_off_by_less_than_half_a_level_of_the_change(bits: int, x: Any, data: st.DataObject) -> None:
    start = data.draw(arrays(np.float32, x.shape, elements=st.floats(-99, 99, width=32), fill=st.just(2.0)))
    found = sent(DeltaCodec(bits), x, start)
    change = np.abs(x.astype(np.float64) - start)
    error = np.abs(found.astype(np.float64) - x)
    for first in range(0, x.shape[1], 128):
        c, e = change[:, first : first + 128], error[:, first : first + 128]
        most, mean = c.max(axis=1, keepdims=True), c.mean(axis=1, keepdims=True)
        if bits == 1:
            bound = np.abs(c - mean) + EPS16 * mean  # the sign is right, the size the mean
        elif bits == 2:
            scale = np.minimum(most, 3 * mean)
            bound = np.maximum(scale / 3, c - scale) + EPS16 * scale
        else:
            bound = most / (2 ** (bits - 1) - 1) / 2 + EPS16 * most
        slack = 2.0**-24 + 4 * EPS32 * (np.abs(x[:, first : first + 128]) + 100)
        assert np.all(e <= bound * (1 + 1e-4) + slack)


@every_codec
@quick
@given(x=matrices(float(np.finfo(np.float32).max)))
def test_huge_values_saturate_and_never_wrap(name: str, bits: int, x: Any) -> None:
    with np.errstate(over="ignore"):
        found = sent(make(name, bits), x)
    assert np.isfinite(found).all()
    # saturating can shorten a value but not turn its sign; affine has the row's minimum as its zero
    if name == "delta":
        assert np.all((np.sign(found) * np.sign(x) >= 0) | (np.abs(x) <= 1e-6 * np.abs(x).max()))
        assert np.abs(found).max() <= 65504 * 1.001
    if name == "grid":
        assert found.min() >= LOW and found.max() <= HIGH * (1 + 1e-6)
        assert np.all(found[x > HIGH] > HIGH - 1e-5) and np.all(found[x < LOW] == np.float32(LOW))
    if name == "affine":
        order = np.argsort(x, axis=1, kind="stable")
        assert np.abs(found).max() <= 65504.0 * 256
        lowest, highest = (np.take_along_axis(found, order[:, [i]], axis=1) for i in (0, -1))
        assert np.all(lowest <= highest)


@every_codec
@pytest.mark.parametrize("sign", [-1, 1])
def test_values_beyond_the_scale_take_the_last_code(name: str, bits: int, sign: int) -> None:
    x = np.full((2, 9), sign * 3e38, np.float32)
    with np.errstate(over="ignore"):
        found = sent(make(name, bits), x)
    wanted = {
        "float32": sign * 3e38,
        "grid": HIGH if sign > 0 else LOW,
        "affine": found[0, 0] if sign > 0 else -65504.0,  # above: checked below
        "delta": sign * 65504.0,
    }[name]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert np.all(np.sign(found) == sign)


@every_codec
@pytest.mark.parametrize("value", [0.0, 1.0, -0.375, 1024.0, 3.0517578125e-05])
@pytest.mark.parametrize("cols", [1, 3, 100, 128, 131])
def test_zero_and_constant_blocks_are_exact(name: str, bits: int, value: float, cols: int) -> None:
    """Constants that float16 holds; a grid must hold them itself."""
    x = np.full((3, cols), value, np.float32)
    codec: Any = make(name, bits)
    if name == "grid":
        codec = GridCodec(bits, value, value + 2) if value else GridCodec(bits, 0, 2)
    for key in (0, 77):
        np.testing.assert_array_equal(sent(codec, x, key=key), x)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_delta_sends_no_change_as_no_change(bits: int) -> None:
    x = np.random.default_rng(1).standard_normal((4, 130)).astype(np.float32)
    np.testing.assert_array_equal(sent(DeltaCodec(bits), x, x), x)


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 130)])
def test_nonfinite_values_are_refused(name: str, bits: int, bad: float, place: tuple[int, int]) -> None:
    codec = make(name, bits)
    x = np.ones((3, 131), np.float32)
    x[place] = bad
    with pytest.raises(NonFiniteError):
        codec.encode(x, np.zeros_like(x), np.zeros(codec.nbytes(3, 131), np.uint8), 0)


@pytest.mark.parametrize(
    ("kind", "bits"), [("grid", 1), ("grid", 3), ("affine", 1), ("delta", 3), ("delta", 16)]
)
def test_bits_that_a_codec_lacks_are_refused(kind: str, bits: int) -> None:
    with pytest.raises(InputError, match=f"{kind} has no {bits}-bit form"):
        make(kind, bits)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        GridCodec(8, 1.0, 1.0)


# ---- over many messages ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_stochastic_rounding_is_unbiased(bits: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((6, 37)).astype(np.float32)
    codec = AffineCodec(bits)
    draws = np.array([sent(codec, x, key=int(key)) for key in rng.integers(0, 2**32, 3000)], np.float64)
    level = (x.max(axis=1, keepdims=True) - x.min(axis=1, keepdims=True)) / (2**bits - 1)
    # the standard deviation of a draw is at most half a level: five standard errors
    assert np.all(np.abs(draws.mean(axis=0) - x) <= 5 * 0.51 * level / np.sqrt(3000))
    assert (draws.std(axis=0) > 0.05 * level).mean() > 0.5  # it does draw


def test_the_hash_is_uniform_and_depends_on_key_and_index_alone() -> None:
    draws = np.concatenate([uniform_hash(key, 5000) for key in range(40)]).astype(np.float64)
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    chi2 = ((counts - len(draws) / 100) ** 2 / (len(draws) / 100)).sum()
    assert chi2 < 160  # 99 degrees of freedom: p = 1e-4
    np.testing.assert_array_equal(uniform_hash(7, 5000)[:10], uniform_hash(7, 10))
    assert abs(np.corrcoef(uniform_hash(7, 5000), uniform_hash(8, 5000))[0, 1]) < 0.06


def errors_standing_still(bits: int, messages: int) -> list[float]:
    """Relative error of the copy after each message of a matrix that does not change."""
    x = np.random.default_rng(3).standard_normal((20, 100)).astype(np.float32)
    codec, hat = DeltaCodec(bits), np.zeros_like(x)
    errors = [1.0]
    for _ in range(messages):
        send(codec, x, hat)
        errors.append(float(np.linalg.norm(x - hat) / np.linalg.norm(x)))
    return errors


@pytest.mark.parametrize(("bits", "factor"), [(8, 0.01), (4, 0.15), (2, 0.5)])
def test_delta_reaches_a_matrix_that_stands_still_geometrically(bits: int, factor: float) -> None:
    errors = errors_standing_still(bits, 20)
    assert all(b <= factor * a for a, b in itertools.pairwise(errors) if b > 1e-6)
    assert errors[-1] < 1e-6


def test_one_bit_gets_nearer_to_a_matrix_that_stands_still_with_every_message() -> None:
    errors = errors_standing_still(1, 40)
    assert all(b < a for a, b in itertools.pairwise(errors))
    assert errors[3] < 0.3 and errors[-1] < 0.05


# ---- names, and a codec of one's own ----------------------------------------------------------------


def test_unknown_codecs_and_widths_are_refused() -> None:
    with pytest.raises(InputError, match="--codec huffman is unknown; there are float32, grid"):
        make_codec("huffman", 4, (0.0, 1.0))
    with pytest.raises(InputError, match="codec affine has no 1-bit form; --bits takes 8, 4, 2"):
        make_codec("affine", 1, (0.0, 1.0))
    with pytest.raises(InputError, match="empty"):
        make_codec("grid", 8, (1.0, 1.0))


def test_only_a_codec_with_a_range_asks_for_it() -> None:
    def span() -> tuple[float, float]:
        raise AssertionError("asked for the range")

    for name, entry in CODECS_BY_NAME.items():
        if name == "grid":
            with pytest.raises(AssertionError, match="asked"):
                make_codec(name, entry.bits[0], span)
        else:
            assert make_codec(name, entry.bits[0], span).name == name


def test_a_codec_of_ones_own_is_one_class_and_one_name(mpirun: Any, small: Path, tmp_path: Path) -> None:
    """It trains on any ranks, around the compiled kernels, and the run says that it has none there."""
    options = [
        "--layers",
        "4",
        "--stages",
        "2,4",
        "--hidden",
        "20",
        "--iterations",
        "30",
        "--eval-every",
        "10",
    ]
    for codec, ranks in (("half", 1), ("half", 3), ("float32", 3)):
        out = tmp_path / f"{codec}-{ranks}"
        program = PROGRAMS / "own_codec.py"
        found = succeed(mpirun(ranks, program, small, *options, "--codec", codec, "--out", out))
        said = "codec half has no compiled form" in found.err
        if "fused kernels" in found.err:  # where the host library is installed
            assert said == (codec == "half")
    a, b, plain = (tmp_path / name for name in ("half-1", "half-3", "float32-3"))
    assert [without_times(r) for r in records_of(a)] == [without_times(r) for r in records_of(b)]
    half, whole = summary_of(b), summary_of(plain)
    assert (half["codec"], half["bits"]) == ("half", 16)
    assert (
        half["bytes_per_iteration"] * 2 == whole["bytes_per_iteration"] == half["float32_bytes_per_iteration"]
    )
    assert half["objective"] == pytest.approx(whole["objective"], rel=0.02)
