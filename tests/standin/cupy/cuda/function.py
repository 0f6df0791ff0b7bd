"""CUDA sources run on the CPU, see tests/cuda_on_cpu.py, with the arrays of this stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cupy.cuda import driver


class Function:
    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        import cupy

        taken = []
        for argument in arguments:
            assert isinstance(argument, (cupy.ndarray, np.generic)), type(argument)
            assert not isinstance(argument, cupy.ndarray) or argument.flags.c_contiguous
            taken.append(argument._a if isinstance(argument, cupy.ndarray) else argument)
        cupy.counts["launches"] += 1
        cupy._do(lambda: self._function(grid, block, tuple(taken)))


class Module:
    def load(self, source: bytes) -> None:
        sys.path.append(str(Path(__file__).parents[3]))
        import cuda_on_cpu

        cuda_on_cpu.RawModule.folder = Path(os.environ["CUPY_CACHE_DIR"])
        cuda_on_cpu.RawModule.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._module = cuda_on_cpu.RawModule(source.decode(), ("--fmad=false",))
        except subprocess.CalledProcessError as error:
            raise driver.CUDADriverError("CUDA_ERROR_INVALID_IMAGE") from error

    def get_function(self, name: str) -> Function:
        return Function(self._module.get_function(name))
