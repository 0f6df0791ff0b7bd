"""The compiled passes against the NumPy forms: codes bit for bit, values to rounding."""

from __future__ import annotations

import tracemalloc

import kernel_sides
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pdadmm.admm import updates
from pdadmm.admm.activations import LeakyReLU, ReLU, Tanh
from pdadmm.admm.passes import Copies
from pdadmm.admm.passes.host import HostPasses
from pdadmm.admm.passes.reference import ReferencePasses
from pdadmm.admm.weights import DenseWeights
from pdadmm.arrays import sources
from pdadmm.arrays.backend import NUMPY
from pdadmm.bench import iteration as bench_iteration
from pdadmm.codec import AffineCodec, DeltaCodec, Float32Codec, GridCodec, NonFiniteError

needs_library = pytest.mark.skipif(
    sources.find(sources.HOST_LIBRARY) is None, reason="the library is not built; run: pip install ."
)
CODECS = [
    Float32Codec(),
    *(GridCodec(bits, -1.3, 2.1) for bits in (8, 4, 2)),
    *(AffineCodec(bits) for bits in (8, 4, 2)),
    *(DeltaCodec(bits) for bits in (8, 4, 2, 1)),
]
SHAPES = [(1, 1), (7, 1), (1, 129), (7, 100), (140, 100), (7, 300), (140, 129), (600, 300)]
codecs = pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{c.name}{c.bits}")
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")

NU, RHO, MU = 0.37, 1.3, 0.02
REFERENCE = ReferencePasses()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda_on_cpu")


@pytest.fixture(params=kernel_sides.sides())
def kernels(request, monkeypatch, folder):
    shape = request.node.callspec.params.get("shape", (1, 1))
    if request.param == "cuda-on-cpu" and shape[0] * shape[1] > 3000:
        pytest.skip("larger than what the CUDA sources do on a CPU in time")
    return kernel_sides.make(request.param, monkeypatch, folder)


@pytest.fixture(params=["1thread", "2threads"])
def host_kernels(request, monkeypatch, folder):
    return kernel_sides.make(request.param, monkeypatch, folder)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def normal(rng, shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def assert_ran(kernels, name, before):
    """A kernel ran, and it is not the NumPy form under another name."""
    assert kernels.calls > before
    kernels = getattr(kernels, "kernels", kernels)
    assert getattr(type(kernels), name) is not getattr(ReferencePasses, name)


def assert_close(a, b, bound=4e-6):
    scale = max(1.0, float(np.abs(b).max(initial=0)))
    np.testing.assert_allclose(a, b, rtol=bound, atol=bound * scale)


def coupling(rng, codec, shape):
    """A message with the decoded copy it was made from, as the receiver has it before and after."""
    x, hat = normal(rng, shape), normal(rng, shape, 0.3)
    before, out = hat.copy(), np.zeros(codec.nbytes(*shape), np.uint8)
    codec.encode(x, hat, out, 77)
    return out, before, hat


def test_there_is_a_gpu():
    if not kernel_sides.gpu():
        pytest.skip("no GPU, or no CuPy: the CUDA kernels are compiled, and run on the CPU in small")


# ---- codecs ---------------------------------------------------------------------------------------


@codecs
@shapes
def test_codes_and_decoded_copies_equal_the_numpy_codec(kernels, codec, shape, rng):
    x, start = normal(rng, shape, 2.0), normal(rng, shape)
    x.ravel()[::17] = 0.0
    start.ravel()[::34] = 0.0
    messages, copies = [], []
    before = kernels.calls
    for encode in (codec.encode, lambda *a: kernels.encode(codec, *a)):
        hat, out = start.copy(), np.zeros(codec.nbytes(*shape), np.uint8)
        encode(x, hat, out, 0xFEDCBA98)
        messages.append(out)
        copies.append(hat)
    assert_ran(kernels, "encode", before)
    np.testing.assert_array_equal(*messages)
    np.testing.assert_array_equal(copies[0].view(np.uint32), copies[1].view(np.uint32))
    received = start.copy()
    kernels.decode(codec, messages[0], received)
    np.testing.assert_array_equal(received.view(np.uint32), copies[0].view(np.uint32))


@pytest.fixture(params=kernel_sides.instruction_sets())
def isa_kernels(request):
    """The host's kernels, an instruction set at a time."""
    lib = sources.load()
    best = lib.pdadmm_isa()
    lib.pdadmm_select_isa(request.param.encode())
    yield HostPasses(1)
    lib.pdadmm_select_isa(best)


@codecs
@pytest.mark.parametrize("cols", [1, 2, 3, 7, 8, 9, 31, 127, 128, 129, 131, 255, 256, 257, 500])
def test_codes_of_every_instruction_set_equal_the_numpy_codec(isa_kernels, codec, cols, rng):
    shape = (5, cols)
    nbytes = codec.nbytes(*shape)
    x, start = normal(rng, shape, 2.0), normal(rng, shape)
    x[0, ::3], x[1], start[1, ::2] = -0.0, -(normal(rng, cols) ** 2), 0.0
    x[2], start[2] = x[2, 0], start[2, 0]  # a constant row
    x[3], start[3] = start[3], start[3] + 1e-7  # changes that float16 hardly holds
    room = np.full(nbytes + 128, 0xA5, np.uint8)
    hat, out, own_hat = start.copy(), np.zeros(nbytes, np.uint8), start.copy()
    codec.encode(x, hat, out, 0x89ABCDEF)
    isa_kernels.encode(codec, x, own_hat, room[:nbytes], 0x89ABCDEF)
    np.testing.assert_array_equal(room[:nbytes], out)
    assert (room[nbytes:] == 0xA5).all()
    np.testing.assert_array_equal(own_hat.view(np.uint32), hat.view(np.uint32))
    isa_kernels.decode(codec, out, start)
    np.testing.assert_array_equal(start.view(np.uint32), hat.view(np.uint32))


@pytest.mark.parametrize("groups", [3, 16, -1])
def test_other_numbers_of_groups_are_refused(groups: int) -> None:
    with pytest.raises(ValueError, match=f"{groups} groups; the kernels take a power of two of at most 8"):
        HostPasses(1, groups)


@codecs
def test_every_instruction_set_finds_nan_anywhere(isa_kernels, codec, rng):
    shape = (3, 300)
    out = np.zeros(codec.nbytes(*shape), np.uint8)
    for value in (np.nan, -np.float32(np.nan), np.inf, -np.inf):
        for column in (0, 1, 127, 128, 255, 256, 299):
            for sign in (1, -1):  # next to entries of one sign too
                x = sign * np.abs(normal(rng, shape))
                x[1, column] = value
                with pytest.raises(NonFiniteError):
                    isa_kernels.encode(codec, x, np.zeros_like(x), out)
    x = np.full(shape, 3e38, np.float32)
    isa_kernels.encode(codec, x, x.copy() if codec.lossless else -x, out)  # x is finite, x - hat is not


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 7, 10, 15, 16, 17, 40, 50])
def test_newton_gives_a_node_the_same_bits_alone(isa_kernels, classes, rng):
    shape = (37, classes)
    M, z, mean = normal(rng, shape, 3.0), normal(rng, shape, 3.0), normal(rng, classes)
    y = rng.integers(0, classes, shape[0])
    together = [M.copy(), z.copy()]
    isa_kernels.output(together[0], mean, together[1], y, 0.01, "cross_entropy")
    for i in range(shape[0]):
        alone = [M[i : i + 1].copy(), z[i : i + 1].copy()]
        isa_kernels.output(alone[0], mean, alone[1], y[i : i + 1].copy(), 0.01, "cross_entropy")
        for ours, theirs in zip(alone, together, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[i])


@pytest.mark.parametrize("isa", kernel_sides.instruction_sets())
@codecs
def test_every_instruction_set_gives_the_same_bits(isa, codec, rng):
    shape = (37, 300)
    lib = sources.load()
    best = lib.pdadmm_isa()
    kernels = HostPasses(1)
    arrays_ = {name: normal(rng, shape) for name in ("M", "z", "q", "p_hat", "q_hat", "u")}
    mean = normal(rng, shape[1])
    message, _, _ = coupling(rng, codec, shape)
    y = rng.integers(0, shape[1], shape[0])
    results = []
    try:
        for name in (b"portable", isa.encode()):
            assert lib.pdadmm_select_isa(name)
            a = {k: v.copy() for k, v in arrays_.items()}
            out = np.zeros(codec.nbytes(*shape), np.uint8)
            end = Copies(codec, a["q"], a["q_hat"], a["p_hat"], a["u"])
            sums = kernels.hidden(a["M"], mean, a["z"], end, message, out, 3, ReLU(), NU, RHO, True)
            kernels.output(a["M"], mean, a["z"], y, NU, "cross_entropy")
            results.append((out, a, sums))
    finally:
        lib.pdadmm_select_isa(best)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for name in arrays_:
        np.testing.assert_array_equal(results[0][1][name], results[1][1][name], err_msg=name)
    assert results[0][2] == results[1][2]


@needs_library
@codecs
@settings(max_examples=60, deadline=None)
@given(
    x=arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 140)),
        elements=st.floats(-(2.0**66), 2.0**66, width=32) | st.floats(-1, 1, width=32) | st.just(0.0),
    )
)
def test_codes_are_equal_for_any_finite_values(codec, x):
    kernels = HostPasses(1)
    hats = [np.zeros_like(x), np.zeros_like(x)]
    outs = [np.zeros(codec.nbytes(*x.shape), np.uint8) for _ in hats]
    with np.errstate(all="ignore"):
        codec.encode(x, hats[0], outs[0], 1)
    kernels.encode(codec, x, hats[1], outs[1], 1)
    np.testing.assert_array_equal(*outs)
    np.testing.assert_array_equal(*hats)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@codecs
def test_non_finite_values_are_refused(kernels, codec, value, rng):
    shape = (20, 131)
    x = normal(rng, shape)
    out = np.zeros(codec.nbytes(*shape), np.uint8)
    x[13, 130] = value
    with pytest.raises(NonFiniteError):
        kernels.encode(codec, x, np.zeros_like(x), out)
    p = normal(rng, shape)
    end = Copies(codec, p, np.zeros_like(x), np.zeros_like(x), np.zeros_like(x))
    with pytest.raises(NonFiniteError):
        kernels.p_step(end, x, 1.0, out, 0)


# ---- passes ---------------------------------------------------------------------------------------


@shapes
def test_squared_norm_is_float64_exact(kernels, shape, rng):
    x = normal(rng, shape, 1e3)
    before = kernels.calls
    squares = x * x
    assert kernels.squared_norm(x) == pytest.approx(float(squares.astype(np.float64).sum()), rel=1e-13)
    assert_ran(kernels, "squared_norm", before)


@pytest.mark.parametrize("anchor", ["zero", "array"])
@shapes
def test_weight_gradient(kernels, shape, anchor, rng):
    Mp, W = normal(rng, shape), normal(rng, shape)
    W_bar = normal(rng, shape) if anchor == "array" else 0.0
    G = [Mp.copy(), Mp.copy()]
    before = kernels.calls
    norms = [k.weight_gradient(g, W, W_bar, NU, MU) for k, g in zip((REFERENCE, kernels), G, strict=True)]
    assert_ran(kernels, "weight_gradient", before)
    assert_close(G[1], G[0])
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)


@shapes
def test_subtract_and_mean(kernels, shape, rng):
    M, K = normal(rng, shape), normal(rng, shape)
    ours, theirs = M.copy(), M.copy()
    before = kernels.calls
    kernels.subtract(ours, K, 0.3)
    REFERENCE.subtract(theirs, K, 0.3)
    assert_close(ours, theirs)
    sums = kernels.subtract_mean(ours, K, 0.1)
    assert_ran(kernels, "subtract_mean", before + 1)
    assert sums.dtype == np.float64  # unrounded: other shards' sums are added before the mean is taken
    np.testing.assert_allclose(sums, ours.astype(np.float64).sum(axis=0), rtol=1e-12, atol=1e-12)
    assert_close(sums / shape[0], REFERENCE.subtract_mean(theirs, K, 0.1) / shape[0])
    assert_close(ours, theirs)
    b, mean = normal(rng, shape[1]), np.empty(shape[1], np.float32)
    wanted = (sums / 3).astype(np.float32)
    their_b = b - wanted
    before = kernels.calls
    kernels.bias_step(sums.copy(), 3, b, mean)
    np.testing.assert_array_equal(mean, wanted)
    np.testing.assert_array_equal(b, their_b)


@shapes
def test_columns_may_have_lengths_of_their_own(kernels, shape, rng):
    M, K = normal(rng, shape), normal(rng, shape)
    ours, theirs, lengths = M.copy(), M.copy(), rng.random(shape[1])
    before = kernels.calls
    sums = kernels.subtract_mean(ours, K, lengths).copy()
    assert_ran(kernels, "subtract_mean", before)
    assert_close(sums / shape[0], REFERENCE.subtract_mean(theirs, K, lengths) / shape[0])
    assert_close(ours, theirs)
    before = kernels.calls
    squares = kernels.column_squares(ours)
    assert_ran(kernels, "column_squares", before)
    np.testing.assert_allclose(squares, (ours.astype(np.float64) ** 2).sum(axis=0), rtol=1e-6)


@shapes
def test_weight_line_search(kernels, shape, rng):
    W, G = normal(rng, shape), normal(rng, shape)
    G[0] = 0.0
    images = rng.random(shape[0]) * 50
    sides = []
    before = kernels.calls
    for k in (REFERENCE, kernels):
        own, lengths = W.copy(), np.empty(shape[0])
        decrease = k.weight_line_search(own, G, images, NU, MU, lengths)
        sides.append((own, np.array(lengths), np.array(float(decrease))))
    assert_ran(kernels, "weight_line_search", before)
    np.testing.assert_array_equal(sides[1][0][0], W[0])
    for theirs, ours in zip(*sides, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    norms = (G.astype(np.float64) ** 2).sum(axis=1)
    wanted = np.where(norms > 0, 1 / (MU + NU * images / np.where(norms > 0, norms, 1)), 0)
    np.testing.assert_allclose(sides[1][1], wanted, rtol=1e-5)


@shapes
def test_column_sums_are_float64_exact(kernels, shape, rng):
    x = normal(rng, shape, 1e3)
    before = kernels.calls
    sums = kernels.column_sums(x)
    assert_ran(kernels, "column_sums", before)
    scale = np.abs(x).astype(np.float64).sum(axis=0)
    np.testing.assert_array_less(np.abs(sums - x.astype(np.float64).sum(axis=0)), 1e-13 * scale + 1e-300)


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@codecs
@shapes
def test_p_gradient(kernels, codec, shape, first, rng):
    message, q_hat, _ = coupling(rng, codec, shape)
    names = ("G", "p", "p_hat", "q_hat", "u")
    start = {name: normal(rng, shape) for name in names} | {"q_hat": q_hat}
    sides = []
    before = kernels.calls
    for k in (REFERENCE, kernels):
        a = {name: value.copy() for name, value in start.items()}
        end = Copies(codec, a["p"], a["p_hat"], a["q_hat"], a["u"])
        norm = k.p_gradient(a["G"], end, None if first else message, NU, RHO)
        sides.append((a, norm))
    assert_ran(kernels, "p_gradient", before)
    (theirs, norm), (ours, our_norm) = sides
    np.testing.assert_array_equal(ours["q_hat"], theirs["q_hat"])
    np.testing.assert_array_equal(ours["u"], theirs["u"])  # both ends must agree, whatever they run
    assert_close(ours["G"], theirs["G"])
    assert our_norm == pytest.approx(norm, rel=1e-6)


@codecs
@shapes
def test_p_step(kernels, codec, shape, rng):
    p, G, p_hat = normal(rng, shape), normal(rng, shape), normal(rng, shape)
    sides = []
    before = kernels.calls
    for k in (REFERENCE, kernels):
        own, out = p.copy(), np.zeros(codec.nbytes(*shape), np.uint8)
        hat = own if codec.lossless else p_hat.copy()
        k.p_step(Copies(codec, own, hat, p_hat, p_hat), G, 0.21, out, 9)
        sides.append((own, hat, out))
    assert_ran(kernels, "p_step", before)
    for theirs, ours in zip(*sides, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "codec", [c for c in CODECS if c.span is None], ids=lambda c: f"{c.name}{c.bits}"
)  # the steps of those with a grid are tested at projected points, one length for all nodes
@shapes
@pytest.mark.parametrize("outputs", [3, 130])
def test_p_line_search(kernels, codec, shape, outputs, rng):
    p, G, p_hat = normal(rng, shape), normal(rng, shape), normal(rng, shape)
    G[-1] = 0.0
    M, H = normal(rng, (shape[0], outputs)), normal(rng, (shape[0], outputs))
    before = kernels.calls
    sides = []
    for k in (REFERENCE, kernels):
        own, moved, out = p.copy(), M.copy(), np.zeros(codec.nbytes(*shape), np.uint8)
        hat = own if codec.lossless else p_hat.copy()
        end = Copies(codec, own, hat, p_hat, p_hat)
        sides.append((own, moved, hat, out, k.p_line_search(end, G, H, moved, NU, RHO, out, 9)))
    assert_ran(kernels, "p_line_search", before)
    (theirs, their_M, _, _, decrease), (ours, our_M, hat, out, our_decrease) = sides
    assert_close(ours, theirs)
    assert_close(our_M, their_M)
    assert float(our_decrease) == pytest.approx(float(decrease), rel=1e-5)
    # norms differ in their last bits, so that codes may: what was sent is the code of what was found
    wanted, own_hat = np.zeros_like(out), p_hat.copy()
    REFERENCE.encode(codec, ours, ours.copy() if codec.lossless else own_hat, wanted, 9)
    np.testing.assert_array_equal(out, wanted)
    if not codec.lossless:
        np.testing.assert_array_equal(hat, own_hat)
    # against the equations in float64
    g, h = G.astype(np.float64), H.astype(np.float64)
    norms, images = (g**2).sum(axis=1), (h**2).sum(axis=1)
    lengths = np.where(norms > 0, 1 / (RHO + NU * images / np.where(norms > 0, norms, 1)), 0)[:, None]
    np.testing.assert_allclose(ours, p - lengths * g, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(our_M, M - lengths * h, rtol=1e-4, atol=1e-5)


@codecs
def test_a_line_search_meets_nan(kernels, codec, rng):
    p, G, M = normal(rng, (9, 20)), normal(rng, (9, 20)), normal(rng, (9, 4))
    G[5, 3] = np.nan
    out, hat = np.zeros(codec.nbytes(9, 20), np.uint8), p if codec.lossless else p.copy()
    end = Copies(codec, p, hat, p, p)
    with pytest.raises(NonFiniteError):
        kernels.p_line_search(end, G, M.copy(), M, NU, RHO, out, 9)


@pytest.mark.parametrize("bits", [8, 4, 2])
@shapes
def test_projected_change(kernels, bits, shape, rng):
    codec = GridCodec(bits, -1.3, 2.1)
    p, G = codec.project(normal(rng, shape)), normal(rng, shape)
    changes = [np.empty_like(p), np.empty_like(p)]
    before = kernels.calls
    end = Copies(codec, p, p, p, p)
    moved = [
        k.projected_change(change, end, G, 0.4)
        for k, change in zip((REFERENCE, kernels), changes, strict=True)
    ]
    assert_ran(kernels, "projected_change", before)
    np.testing.assert_array_equal(changes[1], changes[0])
    assert moved[1] == pytest.approx(moved[0], rel=1e-6)
    G[0, 0] = np.nan
    if hasattr(kernels, "kernels"):  # on a device NaN does not raise, it shows in the sum
        assert np.isnan(kernels.projected_change(changes[1], end, G, 0.4))
    else:
        with pytest.raises(NonFiniteError):
            kernels.projected_change(changes[1], end, G, 0.4)


@pytest.mark.parametrize("f", [ReLU(), LeakyReLU(0.1)], ids=lambda f: f.name)
@pytest.mark.parametrize("measure", [False, True], ids=["plain", "measured"])
@codecs
@shapes
def test_hidden(kernels, codec, shape, measure, f, rng):
    message, p_hat, _ = coupling(rng, codec, shape)
    names = ("M", "z", "q", "p_hat", "q_hat", "u")
    start = {name: normal(rng, shape) for name in names} | {"p_hat": p_hat}
    mean = normal(rng, shape[1], 0.1)
    sides = []
    before = kernels.calls
    for k in (REFERENCE, kernels):
        a = {name: value.copy() for name, value in start.items()}
        if codec.lossless:
            a["q_hat"] = a["q"]
        out = np.zeros(codec.nbytes(*shape), np.uint8)
        end = Copies(codec, a["q"], a["q_hat"], a["p_hat"], a["u"])
        sums = k.hidden(a["M"], mean, a["z"], end, message, out, 9, f, NU, RHO, measure)
        sides.append((a, out, sums))
    assert_ran(kernels, "hidden", before)
    (theirs, their_out, their_sums), (ours, our_out, our_sums) = sides
    np.testing.assert_array_equal(our_out, their_out)
    for name in names:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    if measure:
        for name, value in vars(their_sums).items():
            assert vars(our_sums)[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    else:
        assert our_sums is their_sums is None


def test_hidden_runs_other_activations_in_numpy(kernels, rng):
    shape, codec = (9, 12), Float32Codec()
    arrays_ = [normal(rng, shape) for _ in range(6)]
    out = np.zeros(codec.nbytes(*shape), np.uint8)
    message = np.zeros_like(out)
    mean = np.zeros(12, np.float32)
    M, z, q, p_hat, q_hat, u = arrays_
    end = Copies(codec, q, q_hat, p_hat, u)
    kernels.hidden(M, mean, z, end, message, out, 0, Tanh(), NU, RHO, False)
    np.testing.assert_array_equal(out.view(np.float32), q.ravel())


@pytest.mark.parametrize("nu", [1e-4, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 1), (140, 7), (300, 40)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_newton_of_the_output_layer_ends_as_low_as_the_reference(kernels, shape, nu, rng):
    rows, classes = shape
    M, z, mean = normal(rng, shape, 3.0), normal(rng, shape, 3.0), normal(rng, classes)
    y = rng.integers(0, classes, rows).astype(np.int32)
    a = (M.astype(np.float64) - mean) + z
    exact = updates.z_last_cross_entropy(a, y, z.astype(np.float64), nu, tolerance=1e-12, iterations=200)

    def objective(z):
        top = z.max(axis=1, keepdims=True)
        risk = np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - z[np.arange(rows), y]
        return risk + 0.5 * nu * ((z - a) ** 2).sum(axis=1)

    found = {}
    before = kernels.calls
    for k in (REFERENCE, kernels):
        own_M, own_z = M.copy(), z.copy()
        change = k.output(own_M, mean, own_z, y, nu, "cross_entropy")
        found[k.name] = objective(own_z.astype(np.float64))
        assert change == pytest.approx(float(((own_z - z).astype(np.float64) ** 2).sum()), rel=1e-5, abs=1e-9)
        assert_close(own_M, a - own_z, 2e-6 * max(1, np.abs(a).max()))
    assert_ran(kernels, "output", before)
    best = objective(exact)
    slack = 1e-6 * np.maximum(1, np.abs(best)) / min(nu, 1)
    assert (found["fused"] <= best + slack).all()
    assert found["fused"].sum() <= found["reference"].sum() * (1 + 1e-6) + 1e-6


def test_least_squares_output(kernels, rng):
    M, z, mean = normal(rng, (140, 7)), normal(rng, (140, 7)), normal(rng, 7)
    y = rng.integers(0, 7, 140)
    sides = []
    for k in (REFERENCE, kernels):
        own_M, own_z = M.copy(), z.copy()
        k.output(own_M, mean, own_z, y, NU, "least_squares")
        sides.append((own_M, own_z))
    assert_close(sides[1][0], sides[0][0])
    assert_close(sides[1][1], sides[0][1])


# ---- threads, arguments ---------------------------------------------------------------------------


@needs_library
def test_results_do_not_depend_on_the_number_of_threads(rng):
    shape, codec = (1500, 129), DeltaCodec(4)
    start = [normal(rng, shape) for _ in range(6)]
    mean = normal(rng, shape[1])
    message, _, _ = coupling(rng, codec, shape)
    results = []
    for threads in (1, 2, 3, 5):
        kernels = HostPasses(threads)
        M, z, q, p_hat, q_hat, u = (x.copy() for x in start)
        out = np.zeros(codec.nbytes(*shape), np.uint8)
        end = Copies(codec, q, q_hat, p_hat, u)
        sums = kernels.hidden(M, mean, z, end, message, out, 1, ReLU(), NU, RHO, True)
        results.append((vars(sums), kernels.squared_norm(M), kernels.subtract_mean(M, z, 0.1).tobytes()))
    assert all(result == results[0] for result in results)


def test_arrays_that_the_kernels_cannot_take_are_refused(host_kernels):
    kernels = host_kernels
    x = np.zeros((6, 8), np.float32)
    with pytest.raises(TypeError, match="float64"):
        kernels.squared_norm(x.astype(np.float64))
    with pytest.raises(TypeError, match="contiguous"):
        kernels.squared_norm(x[:, ::2])
    with pytest.raises(ValueError, match="differ"):
        kernels.subtract(x, x[:3], 1.0)
    with pytest.raises(ValueError, match="bytes"):
        kernels.encode(DeltaCodec(8), x, x.copy(), np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match="blocks of 128"):
        kernels.encode(DeltaCodec(8, 64), x, x.copy(), np.zeros(DeltaCodec(8, 64).nbytes(6, 8), np.uint8))
    with pytest.raises(ValueError, match="labels"):
        kernels.output(x, x[0].copy(), x.copy(), np.full(6, 8), 1.0, "cross_entropy")


@needs_library
@pytest.mark.parametrize(
    ("solver", "codec", "step"),
    [("gradient", Float32Codec(), "exact"), ("gradient", DeltaCodec(4), "exact"),
     ("gradient", DeltaCodec(4), "row"), ("gradient", GridCodec(8, -0.5, 3.0), "exact"),
     ("gradient", AffineCodec(8), "exact"), ("exact", DeltaCodec(8), "exact")],
    ids=lambda v: getattr(v, "name", v),
)  # fmt: skip
def test_an_iteration_allocates_nothing_of_the_size_of_p(solver, codec, step):
    nodes, hidden = 4000, 64
    variant = bench_iteration.Variant("fused", codec.name, codec.bits, solver, step)
    stage = bench_iteration.make_stage(variant, nodes, hidden, 3, 2, hidden, np.random.default_rng(0))
    for i in range(3):
        stage.iterate(i, False)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        stage.iterate(3, False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 0.5 * nodes * hidden * 4


@needs_library
@pytest.mark.parametrize(("solver", "step"), [("gradient", "exact"), ("gradient", "row"), ("exact", "exact")])
@pytest.mark.parametrize("shape", [(140, 100, 700), (600, 50, 50), (60, 100, 100)], ids=str)
def test_iterates_differ_from_the_reference_by_rounding(solver, step, shape):
    nodes, hidden, inputs = shape
    codec = Float32Codec()  # the others turn a rounding into a step of theirs
    terms = []
    for kernels in ("reference", "fused"):
        variant = bench_iteration.Variant(kernels, codec.name, codec.bits, solver, step)
        stage = bench_iteration.make_stage(variant, nodes, hidden, 4, 2, inputs, np.random.default_rng(0))
        stage.layers[1].weights = DenseWeights(stage.layers[1].W, np.eye(hidden, dtype=np.float32), NUMPY)
        for i in range(8):
            stage.iterate(i, False)
        terms.append(stage.iterate(8, True))
    for position, theirs in terms[0].items():
        for name, value in vars(theirs).items():
            ours = vars(terms[1][position])[name]
            assert ours == pytest.approx(value, rel=2e-3, abs=1e-3), (position, name)


def test_addresses_are_forgotten_with_their_arrays(host_kernels, rng):
    kernels = host_kernels
    known = len(kernels._addresses)
    for i in range(50):
        x = np.full((30, 3), float(i), np.float32)
        assert kernels.squared_norm(x) == pytest.approx(90.0 * i * i)
        del x
    assert len(kernels._addresses) <= known + 1


@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=lambda f: f.name)
@pytest.mark.parametrize("codec", [Float32Codec(), DeltaCodec(4), AffineCodec(2)], ids=lambda c: c.name)
def test_fresh_products_instead_of_the_residual(kernels, codec, activation, rng):
    shape = (20, 130)
    message, p_hat, _ = coupling(rng, codec, shape)
    b, product = normal(rng, shape[1]), normal(rng, shape)
    z, q, q_hat, u = (normal(rng, shape) for _ in range(4))
    sides = []
    for k, M, mean, fresh in (
        (REFERENCE, (product + b) - z, np.zeros_like(b), False),
        (kernels, product.copy(), -b, True),
    ):
        own_z, *a = [x.copy() for x in (z, q, q_hat, p_hat, u)]
        out = np.zeros(codec.nbytes(*shape), np.uint8)
        k.hidden(M, mean, own_z, Copies(codec, *a), message, out, 3, activation, NU, RHO, False, fresh)
        sides.append((M, own_z))
    for theirs, ours in zip(*sides, strict=True):
        assert_close(ours, theirs, 1e-5)
    y = rng.integers(0, 130, 20)
    M, own_z = product.copy(), z.copy()
    kernels.output(M, -b, own_z, y, NU, "least_squares", True)
    assert_close(M + own_z, product + b)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(sources, "HOST_LIBRARY", "libabsent.so")
    with pytest.raises(sources.LibraryError, match=r"libabsent\.so.*pip install"):
        sources.load.__wrapped__()
