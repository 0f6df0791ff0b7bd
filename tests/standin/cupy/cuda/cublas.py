"""gemmEx on host memory."""

import ctypes
from typing import Any

import numpy as np

CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 77
CUBLAS_GEMM_DEFAULT = -1


def gemmEx(handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int,
           lda: int, B: int, Btype: int, ldb: int, beta: int, C: int, Ctype: int, ldc: int,
           computeType: int, algo: int) -> None:  # fmt: skip
    import cupy

    def factor(ptr: int, kind: int, op: int, rows: int, cols: int, lead: int) -> Any:
        stored = cupy._column_major(ptr, kind, *((rows, cols) if op == CUBLAS_OP_N else (cols, rows)), lead)
        values = cupy._widen(stored) if kind == 14 else stored
        return values if op == CUBLAS_OP_N else values.T

    def number(ptr: int) -> float:
        return ctypes.c_float.from_address(ptr).value

    def work() -> None:
        out = cupy._column_major(C, Ctype, m, n, ldc)
        product = factor(A, Atype, transa, m, k, lda) @ factor(B, Btype, transb, k, n, ldb)
        np.copyto(out, number(alpha) * product + (number(beta) * out if number(beta) else 0))

    cupy._do(work)
