"""The kernels on a GPU: ``kernels/*.cu``, compiled by CuPy at run time.

Nothing here waits for the device: sums come back as 0-d float64 arrays, lengths of steps may be such
arrays, and NaN or Inf does not raise; :meth:`CudaKernels.require_finite` looks for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.arrays import DeviceArray as Array
from pdadmm.arrays import Scalar
from pdadmm.arrays.sources import find_source
from pdadmm.codec import Codec, NonFiniteError
from pdadmm.codec.base import require_size

if TYPE_CHECKING:
    import numpy.typing as npt
    from cupy.cuda import Module

__all__ = [
    "BLOCK",
    "MOST_BLOCKS",
    "NULL",
    "OPTIONS",
    "CudaKernels",
    "CudaLibrary",
    "check",
    "flat_blocks",
    "length_arguments",
    "row_blocks",
    "source",
]

#: threads of a block, 8 warps; kernels/codec.cuh counts on it
BLOCK = 256
_WARPS = BLOCK // 32
#: columns of a tile: what a warp has at a time, and the delta codec's block
_TILE = 128
#: no contraction to FMA, as on the host: codes must be the same bit for bit
OPTIONS = ("--std=c++17", "--fmad=false")
MOST_BLOCKS = 2048
_MOST_CHUNKS = 256
#: bytes before a kept kernel: its SHA-256
_CHECKSUM = 32


def source(name: str) -> str:
    """A CUDA source with its headers written into it.

    CuPy's cache then knows of a change in a header too, and NVRTC needs no search path.
    """
    lines: list[str] = []
    seen: set[str] = set()

    def add(name: str) -> None:
        for line in find_source(name).read_text().splitlines():
            if line.startswith('#include "'):
                header = line.split('"')[1]
                if header not in seen:
                    seen.add(header)
                    add(header)
            elif line != "#pragma once":
                lines.append(line)

    add(name)
    return "\n".join(lines) + "\n"


@functools.cache
def _module(name: str, device: int) -> Module:
    """A compiled source, loaded once a process and device; compiled ones are kept between runs.

    ``cupy.RawModule`` would flush numbers below 1.2e-38 to zero, whatever the options say, and the host
    does not.
    """
    from cupy.cuda import Device, Module, compiler, driver, nvrtc

    text = source(name)
    made_by = (*OPTIONS, Device(device).compute_capability, nvrtc.getVersion())
    digest = hashlib.sha256(repr((text, made_by)).encode()).hexdigest()[:40]
    kept = Path(os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache").expanduser() / f"pdadmm_{digest}"
    with contextlib.suppress(OSError, driver.CUDADriverError):  # not there, or not for this driver
        content = kept.read_bytes()
        compiled = content[_CHECKSUM:]
        # a driver would read past the end of half a file
        if hashlib.sha256(compiled).digest() == content[:_CHECKSUM]:
            module = Module()
            module.load(compiled)
            return module
    compiled, _ = compiler.compile_using_nvrtc(text, OPTIONS, filename=name)
    module = Module()
    module.load(compiled)
    with contextlib.suppress(OSError):  # another run compiles it again
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_name(f"{kept.name}.{os.urandom(8).hex()}")  # ranks of one number may share it
        try:
            beside.write_bytes(hashlib.sha256(compiled).digest() + compiled)
            beside.replace(kept)
        finally:
            beside.unlink(missing_ok=True)
    return module


class CudaLibrary:
    """Starts kernels on the current device, and knows whether one has met NaN or Inf.

    Attributes
    ----------
    calls
        Kernels started so far.
    """

    name = "fused"

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device().id
        self._functions: dict[tuple[str, str], Callable[..., None]] = {}
        self._room: dict[str, Array] = {}
        self._bad = cupy.zeros(1, np.int32)
        self.calls = 0

    def require_finite(self) -> None:
        """Wait for the device and raise if it has encoded NaN or Inf since the last look.

        Raises
        ------
        NonFiniteError
        """
        if int(self._bad.get()[0]):
            self._bad[...] = 0
            raise NonFiniteError

    # ---- starting kernels ---------------------------------------------------------------------------

    def _start(self, file: str, kernel: str, grid: tuple[int, ...], *arguments: object) -> None:
        function = self._functions.get((file, kernel))
        if function is None:
            function = self._functions[file, kernel] = _module(file, self._device).get_function(kernel)
        function(grid, (BLOCK,), arguments)
        self.calls += 1

    def _scratch(self, name: str, size: int, dtype: npt.DTypeLike) -> Array:
        """Room that kernels of the same stream take one after the other."""
        room = self._room.get(name)
        if room is None or room.size < size:
            room = self._room[name] = self._cupy.empty(size, dtype)
        return room


#: codecs with kernels; NumPy's forms run in CuPy's operations for others
_FUSED = ("float32", "grid", "affine", "delta")


class CudaKernels(CudaLibrary):
    """Codecs and sums on CuPy arrays; methods and results as in :class:`pdadmm.kernels.plain.PlainKernels`.

    Codes and decoded copies equal the host's bit for bit, and sums do not change from run to run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._codecs: dict[int, tuple[Codec, str, tuple[np.float32, np.float32]]] = {}

    def fuses(self, codec: Codec) -> bool:
        """Whether a codec has kernels."""
        return codec.name in _FUSED

    def _with_sums(self, kernel: str, blocks: int, count: int, *arguments: object) -> Array:
        """Start a pass that ends in `count` sums a block; returns the sums, (count,) float64."""
        partial = self._scratch("partial", MOST_BLOCKS * 6, np.float64)
        sums = self._cupy.empty(count, np.float64)
        self._start("updates.cu", kernel, (blocks,), *arguments, partial)
        self._start("updates.cu", "finish", (1,), partial, np.int32(blocks), np.int32(count), sums)
        return sums

    def _codec(self, codec: Codec) -> tuple[str, tuple[np.float32, np.float32]]:
        """Ending of the codec's kernels, and the grid's lowest value and step."""
        entry = self._codecs.get(id(codec))
        if entry is None:
            if getattr(codec, "block", _TILE) != _TILE:
                raise ValueError(f"the CUDA kernels take delta blocks of {_TILE} columns")
            ending = codec.name if codec.name == "float32" else f"{codec.name}{codec.bits}"
            grid = np.float32(getattr(codec, "low", 0.0)), np.float32(getattr(codec, "step", 0.0))
            entry = self._codecs[id(codec)] = (codec, ending, grid)
        return entry[1], entry[2]

    # ---- sums and steps -----------------------------------------------------------------------------

    def squared_norm(self, x: Array) -> Array:
        check(x)
        return self._with_sums("squared_norm", flat_blocks(x.size), 1, x, np.int64(x.size)).reshape(())

    def subtract(self, M: Array, H: Array, length: Scalar) -> None:
        check(M, H)
        self._start(
            "updates.cu", "subtract", (flat_blocks(M.size),),
            M, H, *length_arguments(length), np.int64(M.size),
        )  # fmt: skip

    def column_sums(self, x: Array) -> Array:
        check(x)
        return self._columns(x, NULL, 0.0)

    def column_squares(self, x: Array) -> Array:
        check(x)
        return self._columns(x, NULL, 0.0, squares=True)

    def _columns(self, M: Array, K: Array, length: Scalar | Array, squares: bool = False) -> Array:
        """Sums of the columns of M, or of their squares, after ``M -= length K`` where K is given."""
        each = getattr(length, "ndim", 0) == 1
        if each and (length.shape != M.shape[1:] or length.dtype != np.float64):
            raise ValueError(f"a length a column is float64, not {length.shape} of {length.dtype}")
        rows, cols = M.shape
        if not M.size:
            return self._cupy.zeros(cols, np.float64)
        chunks = min(-(-rows // (4 * _WARPS)), _MOST_CHUNKS)
        partial = self._scratch("columns", chunks * cols, np.float64)
        sums = self._cupy.empty(cols, np.float64)
        self._start(
            "updates.cu", "column_sums", (-(-cols // _TILE), chunks),
            M, K, *length_arguments(length), np.int32(each), np.int32(squares), np.int64(rows),
            np.int64(cols), partial,
        )  # fmt: skip
        self._start(
            "updates.cu", "column_totals", (-(-cols // BLOCK),),
            partial, np.int64(chunks), np.int64(cols), sums,
        )  # fmt: skip
        return sums

    # ---- codecs -------------------------------------------------------------------------------------

    def encode(self, codec: Codec, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        if not self.fuses(codec):
            codec.encode(x, hat, out, key)
            return
        check(x, hat)
        rows, cols = x.shape
        require_size(out, codec, rows, cols)
        ending, grid = self._codec(codec)
        self._start(
            "quantize.cu", f"encode_{ending}", (row_blocks(rows),),
            x, hat, out, np.int64(rows), np.int64(cols), *grid, np.uint32(key), self._bad,
        )  # fmt: skip

    def decode(self, codec: Codec, message: Array, hat: Array) -> None:
        if not self.fuses(codec):
            codec.decode(message, hat)
            return
        check(hat)
        rows, cols = hat.shape
        require_size(message, codec, rows, cols)
        ending, grid = self._codec(codec)
        self._start(
            "quantize.cu", f"decode_{ending}", (row_blocks(rows),),
            message, hat, np.int64(rows), np.int64(cols), *grid,
        )  # fmt: skip


#: an address that a kernel takes for a missing array
NULL = np.uintp(0)


def length_arguments(length: Scalar) -> tuple[np.float64, Array]:
    """A length that the host knows, or the address of one that it does not."""
    if isinstance(length, (float, int, np.floating)):
        return np.float64(length), NULL
    return np.float64(0), length


def row_blocks(rows: int) -> int:
    """Blocks for a warp a row."""
    return max(1, min(-(-rows // _WARPS), MOST_BLOCKS))


def flat_blocks(size: int) -> int:
    """Blocks for four entries a thread."""
    return max(1, min(-(-size // (4 * BLOCK)), MOST_BLOCKS))


def check(*arrays: Array) -> None:
    """Refuse arrays of different shapes, and those that the kernels cannot read."""
    shape = arrays[0].shape
    for x in arrays:
        if x.shape != shape:
            raise ValueError(f"shapes {shape} and {x.shape} differ")
        if x.dtype != np.float32 or not x.flags.c_contiguous or x.data.ptr % 16:
            raise TypeError(
                "the CUDA kernels take C-contiguous float32 arrays that start at a multiple of 16 bytes"
            )
