"""Arrays on one GPU, by CuPy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.arrays import cublas
from pdadmm.arrays.backend import PRECISIONS, Wait
from pdadmm.arrays.helpers import DeviceArray as Array
from pdadmm.arrays.helpers import Scalar
from pdadmm.arrays.sources import find_source
from pdadmm.arrays.streams import new_event

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["CupyBackend", "device_name"]


class CupyBackend:
    """Arrays on one GPU; see :class:`Backend`.

    The compute stream is CuPy's current stream. Arrays come from CuPy's memory pool, which after a
    stage's first iteration holds all that an iteration needs.

    Parameters
    ----------
    device
        Number of the device among those this process sees; it becomes the current one.
    precision
        ``float32``; ``tf32``: cuBLAS rounds the factors to 10 bits of mantissa; ``bf16x3``: each factor
        is split into two bfloat16 parts and three products of parts are added, about 16 bits.
    """

    name = "cupy"
    on_device = True
    groups = 0

    def __init__(self, device: int = 0, precision: str = "float32") -> None:
        import cupy

        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision}; it must be one of {', '.join(PRECISIONS)}")
        self._cupy = cupy
        self.device = device
        self.precision = precision
        cupy.cuda.Device(device).use()
        source = find_source("split_bfloat16.cu").read_text()
        self._split = cupy.RawKernel(source, "split_bfloat16", ("--std=c++14", "--fmad=false"))
        self._parts: dict[tuple[str, tuple[int, ...]], tuple[Array, Array]] = {}
        # factors that cuBLAS reads on the host
        self._one, self._zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        self._blas = cublas.find(cupy)
        #: whether products can be captured into a CUDA graph
        self.captures: bool = self._blas.captures

    @property
    def description(self) -> str:
        name, uuid = device_name(self.device)
        return f"{name} {uuid}"

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
        return self._cupy.empty(shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
        return self._cupy.zeros(shape, dtype)

    def asarray(self, x: np.ndarray) -> Array:
        return self._cupy.asarray(x)

    def to_host(self, x: Array) -> np.ndarray:
        return self._cupy.asnumpy(x)

    # ---- products -----------------------------------------------------------------------------------

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        if out is None:
            out = self._cupy.empty((a.shape[0], b.shape[1]), np.float32)
        if not out.size:
            return out
        if out.dtype != np.float32:  # sums of the exact solver over few nodes
            return self._cupy.matmul(a, b, out=out)
        return self._product(a, b, out, self._zero)

    def rows(self, A: Array, B: Array, out: Array) -> Array:
        return self.matmul(A, B, out)

    def over_rows(self, G: Array, A: Array, out: Array) -> Array:
        return self.matmul(G.T, A, out)

    def add_product(self, a: Array, b: Array, out: Array) -> None:
        """``out += a b``, as :meth:`matmul` computes it."""
        if out.size:
            self._product(a, b, out, self._one)

    def _product(self, a: Array, b: Array, out: Array, beta: np.ndarray) -> Array:
        """``out = a b + beta out``."""
        if not a.shape[1]:
            if beta is self._zero:
                out.fill(0)
            return out
        plain = cublas.COMPUTE_FLOAT32
        if self.precision != "bf16x3":
            compute = cublas.COMPUTE_TF32 if self.precision == "tf32" else plain
            self._gemm(a, b, out, cublas.FLOAT32, compute, beta)
            return out
        parts = cublas.BFLOAT16
        (a_high, a_low), (b_high, b_low) = self._split_parts(a, "a"), self._split_parts(b, "b")
        # small terms first
        self._gemm(a_low, b_high, out, parts, plain, beta)
        self._gemm(a_high, b_low, out, parts, plain, self._one)
        self._gemm(a_high, b_high, out, parts, plain, self._one)
        return out

    def _gemm(self, a: Array, b: Array, out: Array, kind: int, compute: int, beta: np.ndarray) -> None:
        """``out = a b + beta out`` by cuBLAS, which sees row-major matrices as their transposes."""
        (m, k), n = a.shape, b.shape[1]
        b_op, b_lead = _layout(b)
        a_op, a_lead = _layout(a)
        self._blas.gemm(
            b_op, a_op, n, m, k,
            self._one.ctypes.data, b.data.ptr, kind, b_lead, a.data.ptr, kind, a_lead,
            beta.ctypes.data, out.data.ptr, cublas.FLOAT32, n, compute, cublas.DEFAULT,
        )  # fmt: skip

    def _split_parts(self, x: Array, side: str) -> tuple[Array, Array]:
        """High and low bfloat16 parts (as uint16) of a matrix, in its layout."""
        _layout(x)  # refuses other strides
        stored = x if x.flags.c_contiguous else x.T
        key = (side, stored.shape)
        if key not in self._parts:
            self._parts[key] = (
                self._cupy.empty(stored.shape, np.uint16),
                self._cupy.empty(stored.shape, np.uint16),
            )
        high, low = self._parts[key]
        blocks = min(-(-stored.size // 256), 65535)
        self._split((blocks,), (256,), (stored, high, low, np.int64(stored.size)))
        return (high, low) if stored is x else (high.T, low.T)

    # ---- numbers ------------------------------------------------------------------------------------

    def floats(self, values: Sequence[Scalar], wait: Wait) -> list[float]:
        cupy = self._cupy
        there = [i for i, value in enumerate(values) if not isinstance(value, (float, int))]
        found = [0.0 if i in there else float(value) for i, value in enumerate(values)]
        if there:
            gathered = cupy.stack([values[i].reshape(()).astype(np.float64) for i in there])
            self.settle(wait)
            for i, value in zip(there, gathered.get().tolist(), strict=True):
                found[i] = value
        return found

    def settle(self, wait: Wait) -> None:
        event = new_event(timed=False)
        event.record(self._cupy.cuda.get_current_stream())
        wait(lambda: event.done, f"{self.description} to finish its work")


def _layout(x: Array) -> tuple[int, int]:
    """cuBLAS's operation and leading dimension for a C-contiguous matrix, or the transpose of one."""
    if x.flags.c_contiguous:
        return cublas.PLAIN, x.shape[1]
    if not x.flags.f_contiguous:
        raise ValueError(f"a factor with strides {x.strides} is neither C-contiguous nor such a transpose")
    return cublas.TRANSPOSED, x.shape[0]


def device_name(device: int) -> tuple[str, str]:
    """Name and UUID of a GPU, as nvidia-smi shows them."""
    import cupy

    found = cupy.cuda.runtime.getDeviceProperties(device)
    raw = (_uuid_of_driver(device) or bytes(found["uuid"])).ljust(16, b"\0").hex()
    parts = (raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:32])
    return found["name"].decode(), "GPU-" + "-".join(parts)


def _uuid_of_driver(device: int) -> bytes | None:
    """UUID from the driver, since CuPy's properties cut it at its first zero byte; None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        get = getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid
    except (OSError, AttributeError):
        return None
    handle, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device) or get(raw, handle)
    return None if failed else bytes(raw)
