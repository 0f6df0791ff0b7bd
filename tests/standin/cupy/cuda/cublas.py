"""gemmEx on host memory."""

import ctypes
from typing import Any

import numpy as np

#: what CuPy's own cannot
captures = True
CUBLAS_OP_N, CUBLAS_OP_T = 0, 1


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
        # seen by rows, as NumPy's product of the same matrices: so it has the same bits
        out = cupy._column_major(C, Ctype, m, n, ldc).T
        a, b = factor(B, Btype, transb, k, n, ldb).T, factor(A, Atype, transa, m, k, lda).T
        assert number(alpha) == 1 and number(beta) in (0, 1)
        if number(beta):
            out += a @ b
        else:
            np.matmul(a, b, out=out)

    cupy._do(work)
