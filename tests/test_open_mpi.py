"""Open MPI in the place of MPICH: the same networks, the same ends; skipped where there is none."""

from __future__ import annotations

import ctypes
import shutil
import sys
from pathlib import Path

import pytest
from support import PROGRAMS, Finished, python, start, succeed, words

LIBRARY = "libmpi.so.40"  # of Open MPI 3 to 5


def _launcher() -> str | None:
    """Open MPI's own, where its library is there too."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    return shutil.which("mpirun.openmpi") or shutil.which("prterun") or shutil.which("orterun")


LAUNCHER = _launcher()
pytestmark = pytest.mark.skipif(LAUNCHER is None, reason="no Open MPI on this machine")
#: more ranks than cores, and root, which is what a container knows
ENVIRONMENT = {
    "MPI4PY_LIBMPI": LIBRARY,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def open_mpi(ranks: int, *arguments: str | Path) -> Finished:
    assert LAUNCHER is not None
    return start([LAUNCHER, "-n", str(ranks), sys.executable, *map(str, arguments)], 60, ENVIRONMENT)


def own_line(finished: Finished) -> str:
    """The one line that is not the launcher's."""
    (line,) = [line for line in finished.err.splitlines() if line.startswith("pdadmm: ")]
    assert "Traceback" not in finished.err
    return line


def test_it_is_open_mpi() -> None:
    code = "from mpi4py import MPI; print(MPI.Get_library_version()[:8], MPI.COMM_WORLD.size)"
    assert succeed(open_mpi(2, "-c", code)).out.splitlines() == ["Open MPI 2"] * 2


@pytest.mark.parametrize("system", ["layers", "graph"])
def test_the_network_is_that_of_one_process(small: Path, tmp_path: Path, system: str) -> None:
    if system == "layers":
        given: list[str | Path] = [small, *words("--layers 6 --hidden 16 --iterations 6 --bits 2")]
        module = "pdadmm.run"
    else:
        prepare = ["-m", "pdadmm.gnn.prepare", "synthetic", "--parts", "3", "--partitioner", "random"]
        succeed(python(*prepare, "--out", tmp_path / "graph.h5"))
        given, module = [tmp_path / "graph.h5", *words("--hidden 16 --epochs 4")], "pdadmm.gnn.run"
    succeed(open_mpi(3, "-m", module, *given, "--quiet", "--out", tmp_path / "many"))
    succeed(python("-m", module, *given, "--quiet", "--out", tmp_path / "one"))
    assert (tmp_path / "many/model.h5").read_bytes() == (tmp_path / "one/model.h5").read_bytes()


def test_shards_have_the_bits_of_one_rank(small: Path, tmp_path: Path) -> None:
    given = [small, *words("--layers 4 --hidden 16 --iterations 6 --as-sharded --quiet")]
    succeed(open_mpi(4, "-m", "pdadmm.run", *given, "--shards", "2", "--out", tmp_path / "many"))
    succeed(python("-m", "pdadmm.run", *given, "--out", tmp_path / "one"))
    assert (tmp_path / "many/model.h5").read_bytes() == (tmp_path / "one/model.h5").read_bytes()


def test_bad_input_is_one_line_and_code_2(small: Path, tmp_path: Path) -> None:
    found = open_mpi(3, "-m", "pdadmm.run", small, "--layers", "2", "--out", tmp_path / "run")
    assert found.code == 2 and "start at most 2 ranks" in own_line(found)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("term", 75, "go on with --resume"),
        ("kill", 137, "rank 1, layers 3-4"),
        ("raise", 1, "ZeroDivisionError"),
        ("nan", 1, "iteration 7"),
    ],
)
def test_a_rank_that_fails_ends_all_in_a_line(
    small: Path, tmp_path: Path, fault: str, code: int, said: str
) -> None:
    given = [
        small,
        *words("--layers 4 --hidden 8 --stages 4 --iterations 40 --quiet"),
        "--out",
        tmp_path / "run",
    ]
    found = open_mpi(2, PROGRAMS / "faulty_rank.py", fault, "1", "7", *given)
    assert found.code == code and said in found.err, found
    if fault != "raise":  # which shows where
        own_line(found)
    if fault == "term":
        succeed(open_mpi(1, "-m", "pdadmm.run", "--resume", "--out", tmp_path / "run", "--quiet"))
        succeed(python("-m", "pdadmm.run", *given[:-1], tmp_path / "whole"))
        assert (tmp_path / "run/model.h5").read_bytes() == (tmp_path / "whole/model.h5").read_bytes()
