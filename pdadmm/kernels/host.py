"""The compiled kernels on CPUs: calls into the host library of ``kernels/``.

A call packs its arguments into one C struct (``kernels/passes.h``) and passes its address; the
addresses of arrays are kept, since small networks are bound by the cost of a call.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Callable

import numpy as np

from pdadmm.arrays import Array, sources
from pdadmm.arrays.groups import MOST_GROUPS
from pdadmm.codec import Codec, NonFiniteError
from pdadmm.codec.base import require_size

__all__ = ["CODING", "Coding", "HostKernels", "HostLibrary", "doubles", "same_shape"]

#: kind, bits, lowest value and step of a codec, as every struct with a codec ends
Coding = tuple[int, int, float, float]
CODING = "2q2d"
_KINDS = {"float32": 0, "grid": 1, "affine": 2, "delta": 3}
#: columns of the delta codec's block; kernels/packing.h has them too
_BLOCK = 128
_DTYPES = (np.dtype(np.float32), np.dtype(np.uint8))

_SQUARED_NORM = struct.Struct("=4q").pack
_SUBTRACT = struct.Struct("=4qd").pack
_COLUMN_SUMS = struct.Struct("=5q").pack
_ENCODE = struct.Struct("=6q" + CODING).pack
_DECODE = struct.Struct("=4q" + CODING).pack


class HostLibrary:
    """The library, its functions, and the addresses that they take.

    Results do not depend on the number of threads.

    Parameters
    ----------
    threads
        Threads of a kernel; those of the whole process. None leaves them as they are.

    Raises
    ------
    pdadmm.arrays.sources.LibraryError
        When the library is missing.
    """

    name = "fused"

    def __init__(self, threads: int | None = 1) -> None:
        self._library = sources.load()
        if threads is not None:
            self._library.pdadmm_set_threads(threads)
        self._addresses: dict[int, tuple[int, weakref.ref[Array]]] = {}
        self._columns: dict[int, tuple[Array, int]] = {}

    def _function(
        self, name: str, result: type[ctypes.c_int] | type[ctypes.c_double]
    ) -> Callable[[bytes], float]:
        found = self._library[f"pdadmm_{name}"]  # an object of its own, unlike the attribute
        found.argtypes = [ctypes.c_char_p]
        found.restype = result
        return found

    @property
    def calls(self) -> int:
        """Passes that the library has run in this process."""
        return int(self._library.pdadmm_calls())

    @property
    def instruction_set(self) -> str:
        """``avx512``, ``avx2`` or ``portable``."""
        return str(self._library.pdadmm_isa().decode())

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

    def _column_room(self, cols: int) -> tuple[Array, int]:
        """Room for float64 sums of columns, and its address; the next call of a kernel writes over it."""
        entry = self._columns.get(cols)
        if entry is None:
            sums = np.empty(cols)
            entry = self._columns[cols] = sums, sums.ctypes.data
        return entry


class HostKernels(HostLibrary):
    """Codecs and sums, compiled; methods and results as in :class:`pdadmm.kernels.plain.PlainKernels`.

    Codes and decoded copies equal the NumPy codecs' bit for bit, sums differ from NumPy's by rounding.
    Codecs that the library does not know run in NumPy.

    Parameters
    ----------
    threads
        Of a kernel.
    groups
        Of the rows, by which sums over them are formed (:mod:`pdadmm.arrays.groups`): a power of two of at
        most `MOST_GROUPS`; 0: none.

    Raises
    ------
    ValueError
        When there are other numbers of groups.
    """

    def __init__(self, threads: int = 1, groups: int = 0) -> None:
        super().__init__(threads)
        if groups and (groups > MOST_GROUPS or groups & (groups - 1)):
            raise ValueError(f"{groups} groups; the kernels take a power of two of at most {MOST_GROUPS}")
        self.groups = groups
        integer, real = ctypes.c_int, ctypes.c_double
        self._squared_norm = self._function("squared_norm", real)
        self._subtract = self._function("subtract", integer)
        self._column_sums = self._function("column_sums", integer)
        self._column_squares = self._function("column_squares", integer)
        self._encode = self._function("encode", integer)
        self._decode = self._function("decode", integer)
        self._codecs: dict[int, tuple[Codec, Coding | None]] = {}

    def fuses(self, codec: Codec) -> bool:
        """Whether a codec is compiled here."""
        return codec.name in _KINDS

    def require_finite(self) -> None:
        """Nothing to look for: encoding raises at once."""

    # ---- arguments ----------------------------------------------------------------------------------

    def _coding(self, codec: Codec) -> Coding | None:
        """What the structs say of a codec; None for one that is not compiled."""
        entry = self._codecs.get(id(codec))
        if entry is not None:
            return entry[1]
        coding = None
        if self.fuses(codec):
            if getattr(codec, "block", _BLOCK) != _BLOCK:
                raise ValueError(f"the compiled kernels take delta blocks of {_BLOCK} columns")
            low, step = float(getattr(codec, "low", 0.0)), float(getattr(codec, "step", 0.0))
            coding = _KINDS[codec.name], codec.bits, low, step
        self._codecs[id(codec)] = (codec, coding)  # holds the codec, so that its id stays its own
        return coding

    # ---- sums and steps -----------------------------------------------------------------------------

    def squared_norm(self, x: Array) -> float:
        """Sum of squares, accumulated in float64."""
        rows, cols = x.shape
        norm: float = self._squared_norm(_SQUARED_NORM(rows, cols, self._address(x), self.groups))
        return norm

    def subtract(self, M: Array, H: Array, length: float) -> None:
        same_shape(M, H)
        self._subtract(_SUBTRACT(M.size, 1, self._address(M), self._address(H), length))

    def column_sums(self, x: Array) -> Array:
        rows, cols = x.shape
        sums, address = self._column_room(cols)
        self._column_sums(_COLUMN_SUMS(rows, cols, self._address(x), address, self.groups))
        return sums

    def column_squares(self, x: Array) -> Array:
        rows, cols = x.shape
        sums, address = self._column_room(cols)
        self._column_squares(_COLUMN_SUMS(rows, cols, self._address(x), address, self.groups))
        return sums

    # ---- codecs -------------------------------------------------------------------------------------

    def encode(self, codec: Codec, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        coding = self._coding(codec)
        if coding is None:
            codec.encode(x, hat, out, key)
            return
        rows, cols = x.shape
        same_shape(x, hat)
        require_size(out, codec, rows, cols)
        at = self._address
        if self._encode(_ENCODE(rows, cols, at(x), at(hat), at(out), key, *coding)):
            raise NonFiniteError

    def decode(self, codec: Codec, message: Array, hat: Array) -> None:
        coding = self._coding(codec)
        if coding is None:
            codec.decode(message, hat)
            return
        rows, cols = hat.shape
        require_size(message, codec, rows, cols)
        self._decode(_DECODE(rows, cols, self._address(message), self._address(hat), *coding))


def same_shape(first: Array, *others: Array) -> None:
    """Refuse arrays of different shapes, with ValueError."""
    shape = first.shape
    for other in others:
        if other.shape != shape:
            raise ValueError(f"shapes {shape} and {other.shape} differ")


def doubles(x: Array, count: int) -> int:
    """Address of so many float64 numbers; ValueError for anything else."""
    if x.shape != (count,) or x.dtype != np.float64 or not x.flags.c_contiguous:
        raise ValueError(f"{count} float64 numbers are wanted, not an array {x.shape} of {x.dtype}")
    return int(x.ctypes.data)
