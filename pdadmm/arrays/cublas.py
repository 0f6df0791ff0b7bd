"""cuBLAS's matrix product, called as in C: CuPy's binding refuses to be captured into a CUDA graph."""

from __future__ import annotations

import ctypes
from types import ModuleType

import numpy as np

from pdadmm.arrays.helpers import DeviceArray

__all__ = [
    "BFLOAT16",
    "COMPUTE_FLOAT32",
    "COMPUTE_TF32",
    "DEFAULT",
    "FLOAT32",
    "PLAIN",
    "TRANSPOSED",
    "Binding",
    "Cublas",
    "find",
]

#: of cublas_api.h and library_types.h
PLAIN, TRANSPOSED = 0, 1
FLOAT32, BFLOAT16 = 0, 14
COMPUTE_FLOAT32, COMPUTE_TF32 = 68, 77
DEFAULT = -1

#: what cuBLAS itself takes on the largest devices
_WORKSPACE = 32 << 20
_SIZE, _INT, _POINTER = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p


class Binding:
    """CuPy's own, for want of the library.

    Attributes
    ----------
    captures
        Whether products can be captured.
    """

    def __init__(self, cupy: ModuleType) -> None:
        self._cuda = cupy.cuda
        self.captures: bool = getattr(cupy.cuda.cublas, "captures", False)

    def gemm(self, *arguments: int) -> None:
        """``cublasGemmEx`` but for the handle, on the current stream."""
        self._cuda.cublas.gemmEx(self._cuda.device.get_cublas_handle(), *arguments)


class Cublas:
    """A handle of the library that CuPy has loaded, with a workspace that stays where it is.

    Parameters
    ----------
    library
        The library.
    cupy
        CuPy, whose current device and streams count.
    """

    captures = True

    def __init__(self, library: ctypes.CDLL, cupy: ModuleType) -> None:
        self._cuda = cupy.cuda
        self._library = library
        self._call = library.cublasGemmEx
        self._call.argtypes = [
            _POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER, _POINTER, _INT, _INT, _POINTER, _INT, _INT,
            _POINTER, _POINTER, _INT, _INT, _INT, _INT,
        ]  # fmt: skip
        library.cublasSetStream_v2.argtypes = [_POINTER, _POINTER]
        library.cublasSetWorkspace_v2.argtypes = [_POINTER, _POINTER, _SIZE]
        self._handle = ctypes.c_void_p()
        _require(library.cublasCreate_v2(ctypes.byref(self._handle)))
        self._workspace: DeviceArray = cupy.empty(_WORKSPACE, np.uint8)
        self._stream: int | None = None

    def gemm(self, *arguments: int) -> None:
        """As :meth:`Binding.gemm`."""
        stream = self._cuda.get_current_stream().ptr
        if stream != self._stream:
            _require(self._library.cublasSetStream_v2(self._handle, stream))
            # which has taken the workspace away
            _require(self._library.cublasSetWorkspace_v2(self._handle, self._workspace.data.ptr, _WORKSPACE))
            self._stream = stream
        _require(self._call(self._handle, *arguments))


def find(cupy: ModuleType) -> Cublas | Binding:
    """The library that CuPy uses, or its binding where the library has another name."""
    cupy.cuda.device.get_cublas_handle()  # loads it
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    try:
        library = ctypes.CDLL(f"libcublas.so.{major}")
    except OSError:
        return Binding(cupy)
    return Cublas(library, cupy)


def _require(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS failed with status {status}")
