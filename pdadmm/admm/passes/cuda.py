"""The fused passes on a GPU: ``kernels/*.cu``, compiled by CuPy at run time.

Nothing here waits for the device: sums come back as 0-d float64 arrays, lengths of steps may be such
arrays, and NaN or Inf does not raise; :meth:`CudaKernels.require_finite` looks for it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from pdadmm.admm.activations import Activation
from pdadmm.admm.passes import in_place
from pdadmm.admm.passes.reference import HiddenSums, ReferenceKernels
from pdadmm.arrays import DeviceArray as Array
from pdadmm.arrays import Scalar
from pdadmm.arrays.sources import find_source
from pdadmm.codec import Codec, NonFiniteError

__all__ = ["BLOCK", "OPTIONS", "CudaKernels", "source"]

#: threads of a block, 8 warps; kernels/codec.cuh counts on it
BLOCK = 256
_WARPS = BLOCK // 32
#: columns of a tile: what a warp has at a time, and the delta codec's block
_TILE = 128
#: no contraction to FMA, as on the host: codes must be the same bit for bit
OPTIONS = ("--std=c++17", "--fmad=false")
_MOST_BLOCKS = 2048
_MOST_CHUNKS = 256


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
def _module(name: str, device: int) -> Any:
    """A compiled source, loaded once a process and device; CuPy keeps compiled ones between runs."""
    import cupy

    return cupy.RawModule(code=source(name), options=OPTIONS)


class CudaKernels:
    """The passes on CuPy arrays; methods and results as in :class:`ReferenceKernels`.

    Codes and decoded copies equal the host's bit for bit, and sums do not change from run to run.
    Activations other than ReLU and leaky ReLU have no compiled z-update: :meth:`hidden` runs the form
    in CuPy's operations for them. :meth:`exact_weights` and :meth:`inverse_hessian` do so too.
    """

    name = "fused"

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device().id
        self._functions: dict[str, Any] = {}
        self._room: dict[str, Array] = {}
        self._bad = cupy.zeros(1, np.int32)
        self._reference = ReferenceKernels()
        self._codecs: dict[int, tuple[Codec, str, tuple[Any, Any]]] = {}
        #: kernels started so far
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

    def _start(self, file: str, kernel: str, grid: tuple[int, ...], *arguments: Any) -> None:
        function = self._functions.get(kernel)
        if function is None:
            function = self._functions[kernel] = _module(file, self._device).get_function(kernel)
        function(grid, (BLOCK,), arguments)
        self.calls += 1

    def _scratch(self, name: str, size: int, dtype: Any) -> Array:
        """Room that kernels of the same stream take one after the other."""
        room = self._room.get(name)
        if room is None or room.size < size:
            room = self._room[name] = self._cupy.empty(size, dtype)
        return room

    def _with_sums(self, kernel: str, blocks: int, count: int, *arguments: Any) -> Array:
        """Start a pass that ends in `count` sums a block; returns the sums, (count,) float64."""
        partial = self._scratch("partial", _MOST_BLOCKS * 6, np.float64)
        sums = self._cupy.empty(count, np.float64)
        self._start("updates.cu", kernel, (blocks,), *arguments, partial)
        self._start("updates.cu", "finish", (1,), partial, np.int32(blocks), np.int32(count), sums)
        return sums

    def _codec(self, codec: Codec) -> tuple[str, tuple[Any, Any]]:
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
        _check(x)
        return self._with_sums("squared_norm", _flat_blocks(x.size), 1, x, np.int64(x.size)).reshape(())

    def weight_gradient(self, G: Array, W: Array, W_bar: Array | float, nu: float, mu: float) -> Array:
        anchored = not np.isscalar(W_bar)
        _check(G, W, *((W_bar,) if anchored else ()))
        return self._with_sums(
            "weight_gradient_pass", _flat_blocks(G.size), 1,
            G, W, W_bar if anchored else _NULL, np.float32(nu), np.float32(mu), np.int64(G.size),
        ).reshape(())  # fmt: skip

    def subtract(self, M: Array, H: Array, length: Scalar) -> None:
        _check(M, H)
        self._start(
            "updates.cu", "subtract", (_flat_blocks(M.size),), M, H, *_length(length), np.int64(M.size)
        )

    def subtract_mean(self, M: Array, K: Array, length: Scalar) -> Array:
        _check(M, K)
        rounded = self._cupy.empty(M.shape[1], np.float32)
        self._columns(M, K, length, rounded)
        return rounded

    def column_means(self, x: Array) -> Array:
        _check(x)
        return self._columns(x, _NULL, 0.0, _NULL)

    def _columns(self, M: Array, K: Any, length: Scalar, rounded: Any) -> Array:
        rows, cols = M.shape
        chunks = min(-(-rows // (4 * _WARPS)), _MOST_CHUNKS)
        partial = self._scratch("columns", chunks * cols, np.float64)
        mean = self._cupy.empty(cols, np.float64)
        self._start(
            "updates.cu", "column_sums", (-(-cols // _TILE), chunks),
            M, K, *_length(length), np.int64(rows), np.int64(cols), partial,
        )  # fmt: skip
        self._start(
            "updates.cu", "column_means", (-(-cols // BLOCK),),
            partial, np.int64(chunks), np.int64(rows), np.int64(cols), mean, rounded,
        )  # fmt: skip
        return mean

    def residual(self, M: Array, b: Array, z: Array) -> None:
        _check(M, z)
        rows, cols = M.shape
        self._start("updates.cu", "residual", (_row_blocks(rows),), M, b, z, np.int64(rows), np.int64(cols))

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
    ) -> Array:
        _check(G, p, p_hat, q_hat, u)
        rows, cols = G.shape
        ending, grid = self._codec(codec)
        return self._with_sums(
            f"p_gradient_{ending}", _row_blocks(rows), 1,
            G, p, p_hat, q_hat, u, _NULL if message is None else message, np.float32(nu), np.float32(rho),
            np.int64(rows), np.int64(cols), *grid,
        ).reshape(())  # fmt: skip

    def p_step(
        self, p: Array, G: Array, length: Scalar, p_hat: Array, codec: Codec, out: Array, key: int
    ) -> None:
        _check(p, G, p_hat)
        rows, cols = p.shape
        ending, grid = self._codec(codec)
        self._start(
            "updates.cu", f"p_step_{ending}", (_row_blocks(rows),),
            p, G, *_length(length), p_hat, out, np.int64(rows), np.int64(cols), *grid, np.uint32(key),
            self._bad,
        )  # fmt: skip

    def projected_change(self, change: Array, p: Array, G: Array, length: Scalar, codec: Codec) -> Array:
        _check(change, p, G)
        ending, grid = self._codec(codec)
        return self._with_sums(
            f"projected_change_{ending}", _flat_blocks(p.size), 1,
            change, p, G, *_length(length), np.int64(p.size), *grid,
        ).reshape(())  # fmt: skip

    def projected_step(
        self,
        p: Array,
        G: Array,
        norm: Scalar,
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
        return self._reference.exact_weights(p, z, W_bar, nu, mu, gram, work)

    def inverse_hessian(self, W: Array, nu: float, rho: float) -> Array:
        return self._reference.inverse_hessian(W, nu, rho)

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
        _check(M, z, q, p_hat, q_hat, u)
        rows, cols = M.shape
        ending, grid = self._codec(codec)
        blocks = _row_blocks(rows)
        partial = self._scratch("partial", _MOST_BLOCKS * 6, np.float64)
        self._start(
            "updates.cu", f"hidden_{ending}", (blocks,),
            M, mean, z, q, p_hat, q_hat, u, message, out,
            np.float32(nu), np.float32(rho), np.float32(slope), np.int32(fresh),
            np.int64(rows), np.int64(cols), *grid, np.uint32(key), partial, self._bad,
        )  # fmt: skip
        if not measure:
            return None
        sums = self._cupy.empty(6, np.float64)
        self._start("updates.cu", "finish", (1,), partial, np.int32(blocks), np.int32(6), sums)
        return HiddenSums(*(sums[k] for k in range(6)))

    def output(
        self, M: Array, mean: Array, z: Array, y: Array, nu: float, risk: str, fresh: bool = False
    ) -> Array:
        _check(M, z)
        rows, cols = M.shape
        if y.dtype != np.int64:
            y = y.astype(np.int64)
        return self._with_sums(
            "output", _row_blocks(rows), 1,
            M, mean, z, y, np.float32(nu), np.int32(risk == "cross_entropy"), np.int32(fresh),
            np.int64(rows), np.int64(cols), self._scratch("output", M.size, np.float32),
        ).reshape(())  # fmt: skip

    # ---- codecs alone -------------------------------------------------------------------------------

    def encode(self, codec: Codec, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        _check(x, hat)
        rows, cols = x.shape
        ending, grid = self._codec(codec)
        self._start(
            "quantize.cu", f"encode_{ending}", (_row_blocks(rows),),
            x, hat, out, np.int64(rows), np.int64(cols), *grid, np.uint32(key), self._bad,
        )  # fmt: skip

    def decode(self, codec: Codec, message: Array, hat: Array) -> None:
        _check(hat)
        rows, cols = hat.shape
        ending, grid = self._codec(codec)
        self._start(
            "quantize.cu", f"decode_{ending}", (_row_blocks(rows),),
            message, hat, np.int64(rows), np.int64(cols), *grid,
        )  # fmt: skip


#: an address that a kernel takes for a missing array
_NULL = np.uintp(0)


def _length(length: Scalar) -> tuple[np.float64, Any]:
    """A length that the host knows, or the address of one that it does not."""
    if isinstance(length, (float, int, np.floating)):
        return np.float64(length), _NULL
    return np.float64(0), length


def _row_blocks(rows: int) -> int:
    return max(1, min(-(-rows // _WARPS), _MOST_BLOCKS))


def _flat_blocks(size: int) -> int:
    return max(1, min(-(-size // (4 * BLOCK)), _MOST_BLOCKS))


def _check(*arrays: Array) -> None:
    shape = arrays[0].shape
    for x in arrays:
        if x.shape != shape:
            raise ValueError(f"shapes {shape} and {x.shape} differ")
        if x.dtype != np.float32 or not x.flags.c_contiguous or x.data.ptr % 16:
            raise TypeError(
                "the CUDA kernels take C-contiguous float32 arrays that start at a multiple of 16 bytes"
            )
