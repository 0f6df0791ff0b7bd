"""The ways to run the fused passes that this machine has, all called with NumPy arrays."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest

from pdadmm.admm.passes import Copies, HiddenSums
from pdadmm.arrays import sources
from pdadmm.gnn.passes.host import HostPasses
from pdadmm.gnn.passes.protocol import Passes, Sparse
from pdadmm.gnn.passes.reference import ReferencePasses


def gpu() -> bool:
    """Whether CuPy is installed and finds a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    try:
        return bool(cupy.cuda.runtime.getDeviceCount())
    except Exception:  # CuPy has its own error for a missing driver
        return False


def instruction_sets() -> list[str]:
    """Those of the host library that this machine can run; none without the library."""
    if sources.find(sources.HOST_LIBRARY) is None:
        return []
    lib = sources.load()
    best = lib.pdadmm_isa()
    found = [isa for isa in ("portable", "avx2", "avx512") if lib.pdadmm_select_isa(isa.encode())]
    lib.pdadmm_select_isa(best)
    return found


def sides() -> list[str]:
    """The host with 1 and 2 threads, the CUDA sources run on the CPU, and a GPU where there is one."""
    return ["1thread", "2threads", "cuda-on-cpu", *(["cuda"] if gpu() else [])]


class OnDevice:
    """Moves the arrays of a call to the device and back, and raises for NaN or Inf."""

    def __init__(self, kernels: Any, cupy: Any) -> None:
        self.kernels, self.cupy = kernels, cupy
        self.name = kernels.name

    @property
    def calls(self) -> int:
        return int(self.kernels.calls)

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Any:
            moved: dict[int, tuple[Any, Any]] = {}

            def move(a: Any) -> Any:
                if isinstance(a, Copies):
                    return Copies(*(move(value) for value in vars(a).values()))
                if isinstance(a, Sparse):
                    return Sparse(*(move(value) for value in vars(a).values()))
                if not isinstance(a, np.ndarray):
                    return a
                return moved.setdefault(id(a), (a, self.cupy.asarray(a)))[1]

            result = getattr(self.kernels, method)(*map(move, arguments))
            for here, there in moved.values():
                here[...] = self.cupy.asnumpy(there)
            self.kernels.require_finite()
            return self._back(result)

        return call

    def _back(self, result: Any) -> Any:
        if isinstance(result, HiddenSums):
            return HiddenSums(*(float(value) for value in vars(result).values()))
        if result is None or isinstance(result, float):
            return result
        if isinstance(result, tuple):
            return tuple(self._back(value) for value in result)
        result = self.cupy.asnumpy(result)
        return float(result) if result.ndim == 0 else result


def make(side: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Kernels of a side; skips the test where the machine has none."""
    if side.endswith(("thread", "threads")):
        if sources.find(sources.HOST_LIBRARY) is None:
            pytest.skip(f"{sources.HOST_LIBRARY} is not built; run: pip install .")
        from pdadmm.admm.passes.host import HostPasses as AdmmPasses

        return AdmmPasses(int(side[0]))
    from pdadmm.admm.passes.cuda import CudaPasses

    return on_device(CudaPasses, side, monkeypatch, folder)


def on_device(
    passes: Callable[[], Any], side: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> OnDevice:
    """CUDA passes on a GPU, side ``cuda``, or their sources run on the CPU; skips the test without g++."""
    from pdadmm.kernels import cuda

    if side == "cuda-on-cpu":
        cupy: Any = cuda_on_cpu.stand_in(folder)
        if cupy is None:
            pytest.skip("g++ is missing, with which the CUDA sources run on the CPU")
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(
            cuda, "_module", lambda name, device: cupy.RawModule(cuda.source(name), cuda.OPTIONS)
        )
        return OnDevice(passes(), cupy)
    import cupy

    return OnDevice(passes(), cupy)


def graph_sides() -> list[str]:
    """The passes of graph networks: the reference, every instruction set on a thread, the best on 2 and 3."""
    found = instruction_sets()
    return ["reference", *found, *(f"{threads}threads" for threads in (2, 3) if found)]


@contextlib.contextmanager
def graph_passes(side: str) -> Iterator[Passes]:
    """Passes of a side of :func:`graph_sides`."""
    if side == "reference":
        yield ReferencePasses()
        return
    library = sources.load()
    best = library.pdadmm_isa()
    threads = int(side[0]) if side.endswith("threads") else 1
    try:
        if threads == 1:
            assert library.pdadmm_select_isa(side.encode())
        yield HostPasses(threads)
    finally:
        library.pdadmm_select_isa(best)
