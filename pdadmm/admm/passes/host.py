"""The fused passes on CPUs: calls into the compiled library of ``kernels/``.

A call packs its arguments into one C struct (``kernels/passes.h``) and passes its address; the
addresses of arrays are kept, since small networks are bound by the cost of a call.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from typing import Any

import numpy as np

from pdadmm.admm.activations import Activation
from pdadmm.admm.passes import in_place
from pdadmm.admm.passes.reference import HiddenSums, ReferenceKernels
from pdadmm.arrays import Array, sources
from pdadmm.codec import Codec, NonFiniteError

__all__ = ["HostKernels"]

_KINDS = {"float32": 0, "grid": 1, "affine": 2, "delta": 3}
_CODING = "2q2d"
#: columns of the delta codec's block; kernels/packing.h has them too
_BLOCK = 128
_DTYPES = (np.dtype(np.float32), np.dtype(np.uint8))

_SQUARED_NORM = struct.Struct("=3q").pack
_WEIGHT_GRADIENT = struct.Struct("=5q2d").pack
_SUBTRACT = struct.Struct("=4qd").pack
_SUBTRACT_MEAN = struct.Struct("=4qdq").pack
_COLUMN_SUMS = struct.Struct("=4q").pack
_RESIDUAL = struct.Struct("=5q").pack
_P_GRADIENT = struct.Struct("=8q2d" + _CODING).pack
_P_STEP = struct.Struct("=6qdq" + _CODING).pack
_PROJECTED_CHANGE = struct.Struct("=5qd" + _CODING).pack
_HIDDEN = struct.Struct("=11q3d4q" + _CODING).pack
_OUTPUT = struct.Struct("=6qd2q").pack
_ENCODE = struct.Struct("=6q" + _CODING).pack
_DECODE = struct.Struct("=4q" + _CODING).pack


class HostKernels:
    """The compiled passes; methods and results as in :class:`ReferenceKernels`.

    Results do not depend on the number of threads. Codes and decoded copies equal the NumPy codecs'
    bit for bit, sums differ from the reference by rounding. Activations other than ReLU and leaky
    ReLU have no compiled z-update: :meth:`hidden` runs the NumPy form for them.

    Parameters
    ----------
    threads
        Threads of a pass; those of the whole process.

    Raises
    ------
    pdadmm.arrays.sources.LibraryError
        When the library is missing.
    """

    name = "fused"

    def __init__(self, threads: int = 1) -> None:
        lib = sources.load()
        self._library = lib
        lib.pdadmm_set_threads(threads)

        def function(name: str, result: Any) -> Any:
            found = lib[f"pdadmm_{name}"]  # an object of its own, unlike the attribute
            found.argtypes = [ctypes.c_char_p]
            found.restype = result
            return found

        integer, real = ctypes.c_int, ctypes.c_double
        self._squared_norm = function("squared_norm", real)
        self._weight_gradient = function("weight_gradient", real)
        self._subtract = function("subtract", integer)
        self._subtract_mean = function("subtract_mean", integer)
        self._column_sums = function("column_sums", integer)
        self._residual = function("residual", integer)
        self._p_gradient = function("p_gradient", real)
        self._p_step = function("p_step", integer)
        self._projected_change = function("projected_change", real)
        self._hidden = function("hidden", integer)
        self._output = function("output", real)
        self._encode = function("encode", integer)
        self._decode = function("decode", integer)
        self._sums = np.zeros(6)
        self._sums_address = self._sums.ctypes.data
        self._addresses: dict[int, tuple[int, Any]] = {}
        self._codecs: dict[int, tuple[Codec, tuple[Any, ...]]] = {}
        self._labels: dict[int, tuple[Array, Any]] = {}
        self._reference = ReferenceKernels()

    @property
    def calls(self) -> int:
        """Passes that the library has run in this process."""
        return int(self._library.pdadmm_calls())

    @property
    def instruction_set(self) -> str:
        """``avx512``, ``avx2`` or ``portable``."""
        return str(self._library.pdadmm_isa().decode())

    # ---- arguments ----------------------------------------------------------------------------------

    def _address(self, x: Array) -> int:
        entry = self._addresses.get(id(x))
        return entry[0] if entry is not None else self._register(x)

    def _register(self, x: Array) -> int:
        if not isinstance(x, np.ndarray) or x.dtype not in _DTYPES or not x.flags.c_contiguous:
            kind = f"{x.dtype}, strides {x.strides}" if isinstance(x, np.ndarray) else type(x).__name__
            raise TypeError(
                f"the compiled kernels take C-contiguous float32 arrays (uint8 messages), not {kind}"
            )
        key, addresses = id(x), self._addresses
        address: int = x.ctypes.data
        # the id may be another array's once this one is gone
        addresses[key] = (address, weakref.ref(x, lambda _: addresses.pop(key, None)))
        return address

    def _coding(self, codec: Codec) -> tuple[Any, ...]:
        entry = self._codecs.get(id(codec))
        if entry is not None:
            return entry[1]
        if getattr(codec, "block", _BLOCK) != _BLOCK:
            raise ValueError(f"the compiled kernels take delta blocks of {_BLOCK} columns")
        coding = (
            _KINDS[codec.name],
            codec.bits,
            float(getattr(codec, "low", 0.0)),
            float(getattr(codec, "step", 0.0)),
        )
        self._codecs[id(codec)] = (codec, coding)  # holds the codec, so that its id stays its own
        return coding

    def _require_size(self, message: Array, codec: Codec, rows: int, cols: int) -> None:
        if message.nbytes != codec.nbytes(rows, cols):
            raise ValueError(
                f"a message of {message.nbytes} bytes for a {rows} x {cols} matrix, which takes "
                f"{codec.nbytes(rows, cols)} with codec {codec.name}"
            )

    # ---- sums and steps -----------------------------------------------------------------------------

    def squared_norm(self, x: Array) -> float:
        """Sum of squares, accumulated in float64."""
        norm: float = self._squared_norm(_SQUARED_NORM(x.size, 1, self._address(x)))
        return norm

    def weight_gradient(self, G: Array, W: Array, W_bar: Array | float, nu: float, mu: float) -> float:
        rows, cols = G.shape
        _same_shape(G, W)
        if isinstance(W_bar, np.ndarray):
            _same_shape(G, W_bar)
            anchor = self._address(W_bar)
        else:
            if W_bar:
                raise ValueError(f"the anchor W_bar is an array or 0, not {W_bar}")
            anchor = 0
        norm: float = self._weight_gradient(
            _WEIGHT_GRADIENT(rows, cols, self._address(G), self._address(W), anchor, nu, mu)
        )
        return norm

    def subtract(self, M: Array, H: Array, length: float) -> None:
        _same_shape(M, H)
        self._subtract(_SUBTRACT(M.size, 1, self._address(M), self._address(H), length))

    def subtract_mean(self, M: Array, K: Array, length: float) -> Array:
        rows, cols = M.shape
        _same_shape(M, K)
        mean = np.empty(cols, np.float32)
        self._subtract_mean(
            _SUBTRACT_MEAN(rows, cols, self._address(M), self._address(K), length, self._address(mean))
        )
        return mean

    def column_means(self, x: Array) -> Array:
        rows, cols = x.shape
        sums = np.empty(cols)
        self._column_sums(_COLUMN_SUMS(rows, cols, self._address(x), sums.ctypes.data))
        sums /= rows
        return sums

    def residual(self, M: Array, b: Array, z: Array) -> None:
        rows, cols = M.shape
        _same_shape(M, z)
        at = self._address
        self._residual(_RESIDUAL(rows, cols, at(M), at(b), at(z)))

    # ---- the update of p ----------------------------------------------------------------------------

    def p_gradient(
        self,
        G: Array,
        p: Array,
        p_hat: Array,
        q_hat: Array,
        u: Array,
        codec: Codec,
        message: Array | None,
        nu: float,
        rho: float,
    ) -> float:
        rows, cols = G.shape
        _same_shape(G, p, p_hat, q_hat, u)
        at = self._address
        if message is not None:
            self._require_size(message, codec, rows, cols)
        norm: float = self._p_gradient(
            _P_GRADIENT(
                rows, cols, at(G), at(p), at(p_hat), at(q_hat), at(u),
                0 if message is None else at(message), nu, rho, *self._coding(codec),
            )
        )  # fmt: skip
        return norm

    def p_step(
        self, p: Array, G: Array, length: float, p_hat: Array, codec: Codec, out: Array, key: int
    ) -> None:
        rows, cols = p.shape
        _same_shape(p, G, p_hat)
        self._require_size(out, codec, rows, cols)
        at = self._address
        if self._p_step(
            _P_STEP(rows, cols, at(p), at(G), at(p_hat), at(out), length, key, *self._coding(codec))
        ):
            raise NonFiniteError

    def projected_change(self, change: Array, p: Array, G: Array, length: float, codec: Codec) -> float:
        rows, cols = p.shape
        _same_shape(p, G, change)
        at = self._address
        moved: float = self._projected_change(
            _PROJECTED_CHANGE(rows, cols, at(change), at(p), at(G), length, *self._coding(codec))
        )
        if not np.isfinite(moved):
            raise NonFiniteError
        return moved

    def projected_step(
        self,
        p: Array,
        G: Array,
        norm: float,
        W: Array,
        nu: float,
        rho: float,
        step: str,
        codec: Codec,
        change: Array,
        image: Array,
    ) -> tuple[Array, Array, float]:
        return in_place.projected_step(p, G, norm, W, nu, rho, step, codec, change, image, self)

    def exact_weights(
        self, p: Array, z: Array, W_bar: Array | float, nu: float, mu: float, gram: Array | None, work: Any
    ) -> tuple[Array, Array]:
        return in_place.exact_weights(p, z, W_bar, nu, mu, gram, work, self)

    def inverse_hessian(self, W: Array, nu: float, rho: float) -> Array:
        return in_place.inverse_hessian(W, nu, rho)

    # ---- the updates of z, q and u ------------------------------------------------------------------

    def hidden(
        self,
        M: Array,
        mean: Array,
        z: Array,
        q: Array,
        p_hat: Array,
        q_hat: Array,
        u: Array,
        codec: Codec,
        message: Array,
        out: Array,
        key: int,
        f: Activation,
        nu: float,
        rho: float,
        measure: bool,
        fresh: bool = False,
    ) -> HiddenSums | None:
        if f.name == "relu":
            slope = 0.0
        elif f.name == "leaky_relu":
            slope = f.slope  # type: ignore[attr-defined]
        else:
            return self._reference.hidden(
                M, mean, z, q, p_hat, q_hat, u, codec, message, out, key, f, nu, rho, measure, fresh
            )
        rows, cols = M.shape
        _same_shape(M, z, q, p_hat, q_hat, u)
        self._require_size(message, codec, rows, cols)
        self._require_size(out, codec, rows, cols)
        at = self._address
        if self._hidden(
            _HIDDEN(
                rows, cols, at(M), at(mean), at(z), at(q), at(p_hat), at(q_hat), at(u), at(message), at(out),
                nu, rho, slope, key, measure, fresh, self._sums_address, *self._coding(codec),
            )
        ):  # fmt: skip
            raise NonFiniteError
        return HiddenSums(*self._sums.tolist()) if measure else None

    def output(
        self, M: Array, mean: Array, z: Array, y: Array, nu: float, risk: str, fresh: bool = False
    ) -> float:
        rows, cols = M.shape
        _same_shape(M, z)
        at = self._address
        change: float = self._output(
            _OUTPUT(
                rows, cols, at(M), at(mean), at(z), self._label_address(y, rows, cols), nu,
                risk == "cross_entropy", fresh,
            )
        )  # fmt: skip
        return change

    def _label_address(self, y: Array, rows: int, classes: int) -> int:
        entry = self._labels.get(id(y))
        if entry is None:
            labels = np.array(y, np.int64)  # a copy: nobody may change it after the check
            if labels.shape != (rows,) or (rows and not 0 <= labels.min() <= labels.max() < classes):
                raise ValueError(f"labels must be {rows} numbers from 0 to {classes - 1}")
            key, known = id(y), self._labels
            entry = known[key] = (labels, weakref.ref(y, lambda _: known.pop(key, None)))
        if entry[0].shape != (rows,):
            raise ValueError(f"{len(entry[0])} labels for {rows} nodes")
        return int(entry[0].ctypes.data)

    # ---- codecs alone -------------------------------------------------------------------------------

    def encode(self, codec: Codec, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        rows, cols = x.shape
        _same_shape(x, hat)
        self._require_size(out, codec, rows, cols)
        at = self._address
        if self._encode(_ENCODE(rows, cols, at(x), at(hat), at(out), key, *self._coding(codec))):
            raise NonFiniteError

    def decode(self, codec: Codec, message: Array, hat: Array) -> None:
        rows, cols = hat.shape
        self._require_size(message, codec, rows, cols)
        self._decode(_DECODE(rows, cols, self._address(message), self._address(hat), *self._coding(codec)))


def _same_shape(first: Array, *others: Array) -> None:
    shape = first.shape
    for other in others:
        if other.shape != shape:
            raise ValueError(f"shapes {shape} and {other.shape} differ")
