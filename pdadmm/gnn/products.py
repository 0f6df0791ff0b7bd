"""Products of graph networks where a backend computes."""

from __future__ import annotations

from pdadmm.arrays import Array
from pdadmm.arrays.backend import Backend, NumpyBackend
from pdadmm.arrays.cupy_backend import CupyBackend
from pdadmm.arrays.products import Products

__all__ = ["DeviceProducts", "Products", "make_products"]


class DeviceProducts(Products):
    """On a GPU, in the precision of its backend."""

    def __init__(self, backend: CupyBackend) -> None:
        super().__init__()
        self._backend = backend

    def rows(self, A: Array, B: Array, out: Array, add: bool = False) -> None:
        if add:
            self._backend.add_product(A, B, out)
        else:
            self._backend.matmul(A, B, out=out)

    def over_rows(self, G: Array, A: Array, out: Array) -> None:
        self._backend.matmul(G.T, A, out=out)


def make_products(backend: Backend) -> Products:
    """Products where a backend computes."""
    if isinstance(backend, NumpyBackend):
        return backend.products
    assert isinstance(backend, CupyBackend)
    return DeviceProducts(backend)
