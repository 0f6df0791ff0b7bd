"""A stand-in for CuPy on machines without a GPU: NumPy arrays, and the CUDA kernels run on the CPU.

It runs the sources and the calls of :class:`pdadmm.kernels.cuda.CudaKernels` as they are, with the
threads of a block as fibers (``programs/cuda_on_cpu.h``). It is slow, and no substitute for a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import types
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).parent / "programs" / "cuda_on_cpu.h"


class Array(np.ndarray):
    """A NumPy array that tells its address as CuPy's arrays do."""

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.ctypes.data)


def asarray(x: Any) -> Array:
    return np.array(x).view(Array)


class Function:
    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._launch = library.launch
        self._name = name.encode()

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        values = [
            np.uintp(a.ctypes.data) if isinstance(a, np.ndarray) and a.flags.c_contiguous else a
            for a in arguments
        ]
        held = [np.array(v) for v in values]
        pointers = (ctypes.c_void_p * len(held))(*(v.ctypes.data for v in held))
        grid_y = grid[1] if len(grid) > 1 else 1
        if not self._launch(self._name, grid[0], grid_y, block[0], pointers):
            raise KeyError(self._name)


class RawModule:
    """Compiles a CUDA source for the CPU, once a source and folder."""

    folder: Path

    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        assert "--fmad=false" in options
        self._library = self._build(code)

    def _build(self, code: str) -> ctypes.CDLL:
        library = self.folder / f"{hashlib.sha256(code.encode()).hexdigest()[:16]}.so"
        if library.exists():
            return ctypes.CDLL(str(library))
        # the source's own mentions of a kernel: in full, or as the NAME_##codec of a macro
        names = re.findall(r"PDADMM_KERNEL (\w+)\(", code)
        macros = re.findall(r"\b(\w+_)##name\(", code)
        grids = re.findall(r"\b(\w+)##BITS\(", code)
        codecs = re.findall(r"what\((\w+), [A-Z]", code)
        lanes = re.findall(r"^PDADMM_AGGREGATE\((\d+)\)", code, re.MULTILINE)
        names = [n for n in names if not n.endswith("_") and n + "##" not in code]
        names += [m + c for m in macros for c in codecs]
        names += [g + bits for g in grids for bits in "842"]
        names += [f"aggregate{count}" for count in lanes]
        table = "".join(f'static bool add_{n} = fibers::add("{n}", {n});\n' for n in dict.fromkeys(names))
        path = self.folder / f"{library.stem}.{os.getpid()}.cpp"
        path.write_text(f'#include "{HEADER}"\n{code}\n{table}')
        made = path.with_suffix(".so")
        command = [
            "g++",
            "-std=c++17",
            "-O1",
            "-fPIC",
            "-shared",
            "-w",
            "-ffp-contract=off",
            "-U_FORTIFY_SOURCE",
        ]
        subprocess.run([*command, str(path), "-o", str(made)], check=True)
        made.replace(library)  # ranks build side by side
        return ctypes.CDLL(str(library))

    def get_function(self, name: str) -> Function:
        return Function(self._library, name)


def stand_in(folder: Path) -> types.ModuleType | None:
    """A module to put in place of ``cupy``; None without g++."""
    if shutil.which("g++") is None:
        return None
    RawModule.folder = folder
    module = types.ModuleType("cupy")
    names: dict[str, Any] = {
        "RawModule": RawModule,
        "empty": lambda shape, dtype=np.float32: np.empty(shape, dtype).view(Array),
        "zeros": lambda shape, dtype=np.float32: np.zeros(shape, dtype).view(Array),
        "asarray": asarray,
        "asnumpy": lambda x: np.array(x),
        "cuda": types.SimpleNamespace(Device=lambda: types.SimpleNamespace(id=0)),
        "get_array_module": lambda x: np,
    }
    for name, value in names.items():
        setattr(module, name, value)
    return module


Array.get = lambda self: np.array(self)  # type: ignore[attr-defined]
