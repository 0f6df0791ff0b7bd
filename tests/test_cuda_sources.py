"""The CUDA sources compile for every architecture that is supported, and no kernel spills registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pdadmm.arrays import sources
from pdadmm.kernels import cuda

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100"]
SOURCES = ["quantize.cu", "updates.cu", "graph_passes.cu"]
#: kernels a source must have, by what they are called
EXPECTED = {"quantize.cu": 22, "updates.cu": 57, "graph_passes.cu": 16}


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def knows(compiler: str, architecture: str) -> bool:
    listed = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return architecture in listed.split()


def ptxas(name: str, architecture: str, folder: Path) -> str:
    """What the assembler says of every kernel."""
    compiler = nvcc()
    if compiler is None:
        pytest.skip("neither nvcc nor a GPU: the CUDA sources cannot be compiled")
    if not knows(compiler, architecture):
        pytest.skip(f"this nvcc does not know {architecture}")
    path = folder / name
    path.write_text(cuda.source(name))
    done = subprocess.run(
        [compiler, "-cubin", f"-arch={architecture}", "-Werror", "all-warnings", "-Xptxas", "-v",
         *cuda.OPTIONS, str(path), "-o", str(path.with_suffix(".cubin"))],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", SOURCES)
def test_kernels_compile_without_spills(name: str, architecture: str, tmp_path: Path) -> None:
    report = ptxas(name, architecture, tmp_path)
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", report)
    assert len(kernels) == EXPECTED[name]
    assert {found for _, found in kernels} == {architecture}
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) == len(kernels)
    assert set(spills) == {("0", "0")}
    registers = [int(r) for r in re.findall(r"Used (\d+) registers", report)]
    assert max(registers) <= 128  # two blocks of 256 threads a multiprocessor


def test_source_includes_its_headers_once() -> None:
    text = cuda.source("updates.cu")
    assert '#include "' not in text
    assert text.count("PDADMM_FN u16 half_nearest(") == 1


def test_a_missing_source_is_named() -> None:
    with pytest.raises(sources.LibraryError, match=r"absent\.cu.*pip install"):
        sources.find_source("absent.cu")
