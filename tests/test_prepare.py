"""The command: its files, its exit codes, its one line of complaint, alone and under mpirun."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from data_files import (
    ROOT,
    mpirun,
    npz_arrays,
    prepare,
    random_graph,
    write_graphsaint,
    write_idx,
    write_npz,
    write_ogb,
    write_planetoid,
)

from pdadmm.datasets import REGISTRY, load
from pdadmm.errors import InputError
from pdadmm.gnn.prepare import main as prepare_graph
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.inputs.write import in_memory
from pdadmm.prepare import main

needs_mpirun = pytest.mark.skipif(mpirun() is None, reason="there is no mpirun")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_npz_becomes_data_stem_h5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(tmp_path / "mine.npz")
    assert main(["mine.npz", "--hops", "2", "--seed", "3"]) == 0
    expected = in_memory(load("mine.npz", seed=3), 2)
    with FeatureFile("data/mine.h5") as file:
        np.testing.assert_array_equal(file.x("all"), expected.x("all"))
        assert (file.dataset, file.attrs["seed"], file.attrs["hops"]) == ("mine", 3, 2)
    out = capsys.readouterr()
    assert re.match(
        r"data/mine\.h5: \d+ rows x 21 columns \(3 x 7 features: powers:2\), 3 classes, [\d.]+ MB\ntrain ",
        out.out,
    )
    assert out.err == "pdadmm.prepare: warning: mine.npz: edges have directions; each is taken both ways\n"
    assert everything(tmp_path) == ["data", "data/mine.h5", "mine.npz"]


def test_options_reach_the_file(tmp_path: Path) -> None:
    write_npz(tmp_path / "mine.npz")
    assert (
        main(["mine.npz", "--out", "o/x.h5", "--hops", "1", "--nodes", "all", "--feature-norm", "row"]) == 0
    )
    with FeatureFile("o/x.h5") as file:
        assert (file.rows, file.attrs["nodes"], file.attrs["feature_norm"]) == (60, "all", "row")


def test_synthetic_takes_its_sizes() -> None:
    options = (
        "--synthetic-nodes 300 --synthetic-classes 3 --synthetic-features 40 --synthetic-train-per-class 10"
    )
    assert main(f"synthetic {options} --out s.h5".split()) == 0
    with FeatureFile("s.h5") as file:
        assert (file.attrs["num_nodes"], file.num_classes, file.num_features, file.n_train) == (
            300,
            3,
            200,
            30,
        )


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cora", write_planetoid),
        ("ogbn-arxiv", write_ogb),
        ("flickr", write_graphsaint),
        ("mnist", lambda folder: write_idx(folder, compress=False)),
    ],
)
def test_every_format_is_prepared(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / "raw")
    assert main([name, "--raw", "raw", "--no-verify"]) == 0
    with FeatureFile(f"data/{name}.h5") as file:
        assert (file.dataset, file.operators) == (
            name,
            "powers:0" if name == "mnist" else REGISTRY[name].operators,
        )
        assert file.attrs["licence"]
        assert file.attrs["citation"]
        assert np.isfinite(file.x("all")).all()


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("marker"),)


def spoil(part: str, content: bytes) -> Any:
    def write(folder: Path) -> None:
        write_planetoid(folder / "raw")
        (folder / "raw" / f"ind.cora.{part}").write_bytes(content)

    return write


def drop(part: str) -> Any:
    def write(folder: Path) -> None:
        write_planetoid(folder / "raw")
        (folder / "raw" / f"ind.cora.{part}").unlink()

    return write


def npz(**changes: Any) -> Any:
    return lambda folder: write_npz(folder / "g.npz", **changes)


def nothing(folder: Path) -> None:
    pass


NAN = np.full(npz_arrays()["attr_data"].size, np.nan)
HUGE = {
    **dict.fromkeys(("attr_data", "attr_indices", "attr_indptr", "attr_shape")),
    "attr_matrix": np.full((60, 7), 3.3e38, np.float32),
}
SPLIT = {"train_idx": np.array([0]), "val_idx": np.zeros(0, int), "test_idx": np.array([2])}
BAD: dict[str, tuple[Any, str, str]] = {
    "unknown dataset": (nothing, "corra", "unknown data set"),
    "missing npz": (nothing, "g.npz", "no such file"),
    "synthetic options of a file": (npz(), "g.npz --synthetic-nodes 10", "do not apply; leave them out"),
    "raw folder missing": (nothing, "cora --raw raw", "no such folder"),
    "raw file missing": (drop("ty"), "cora --raw raw", "lacks ind.cora.ty"),
    "raw file truncated": (spoil("graph", b"\x80\x02cc"), "cora --raw raw --no-verify", "ind.cora.graph"),
    "wrong checksum": (spoil("graph", b""), "cora --raw raw", "checksum differs"),
    "evil pickle": (spoil("graph", pickle.dumps(Evil(), 2)), "cora --raw raw --no-verify", "refused"),
    "labels out of range": (npz(labels=np.full(60, -2)), "g.npz", "label -2 is out of range"),
    "NaN features": (npz(attr_data=NAN), "g.npz", "NaN or Inf"),
    "too many classes": (npz(), f"g.npz --classes 1{'0' * 23}", "too many; give at most 2147483647"),
    "a label beyond int64": (npz(labels=np.full(60, 2**64 - 1, np.uint64)), "g.npz", "out of range"),
    "empty split": (npz(**SPLIT), "g.npz", "val split is empty"),
    "out is a folder": (npz(), "g.npz --out .", "cannot be written"),
    "out below a file": (npz(), "g.npz --out g.npz/x.h5", "cannot be written"),
    "negative hops": (npz(), "g.npz --hops -1", "--hops -1"),
    "negative seed": (npz(), "g.npz --seed -1", "seed -1"),
    "not a number": (npz(), "g.npz --hops two", "invalid int value"),
    "unknown option": (npz(), "g.npz --hop-count 2", "unrecognized arguments"),
    "no name": (nothing, "", "required"),
    "synthetic sizes": (nothing, "synthetic --synthetic-nodes 5", "at least 2 classes"),
    "synthetic options elsewhere": (nothing, "cora --synthetic-nodes 5", "do not apply"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_2_and_nothing_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    write, command, message = BAD[case]
    write(tmp_path)
    before = everything(tmp_path)
    assert main(command.split()) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    assert message in out.err
    assert everything(tmp_path) == before


@pytest.mark.parametrize("ranks", [0, pytest.param(3, marks=needs_mpirun)])
@pytest.mark.parametrize("case", ["evil pickle", "out below a file"])
def test_bad_input_of_the_real_command(tmp_path: Path, case: str, ranks: int) -> None:
    write, command, message = BAD[case]
    write(tmp_path)
    before = everything(tmp_path)
    done = prepare(*command.split(), cwd=tmp_path, ranks=ranks)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert done.stdout == ""
    assert everything(tmp_path) == before


@needs_mpirun
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_writes_the_same_bytes(tmp_path: Path, ranks: int) -> None:
    """150 features make three blocks, so that three ranks all have one."""
    graph = random_graph(80, 150, 4)
    no_attr = dict.fromkeys(("attr_data", "attr_indices", "attr_indptr", "attr_shape"))
    i, j = graph["edges"].T
    a = sp.csr_matrix((np.ones(len(i)), (i, j)), shape=(80, 80))
    a = (a + a.T).tocsr()
    write_npz(
        tmp_path / "g.npz",
        adj_data=a.data,
        adj_indices=a.indices,
        adj_indptr=a.indptr,
        adj_shape=a.shape,
        attr_matrix=graph["features"],
        labels=graph["labels"],
        **no_attr,
    )
    assert main(["g.npz", "--hops", "3", "--out", "one.h5"]) == 0
    done = prepare("g.npz", "--hops", "3", "--out", "many.h5", cwd=tmp_path, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2, "more than one rank spoke"
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "many.h5").read_bytes()
    assert everything(tmp_path) == ["g.npz", "many.h5", "one.h5"]


def run_script(script: str, folder: Path, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    launcher = [str(mpirun()), "-n", str(ranks)] if ranks else []
    return subprocess.run(
        [*launcher, sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("limit", [1000, 1 << 20])
def test_full_disk_is_one_line_and_nothing_left(tmp_path: Path, limit: int) -> None:
    """A file size limit stands for the full disk."""
    done = run_script(
        "import resource, signal, sys; from pdadmm.prepare import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(main('synthetic --nodes all --out f.h5'.split()))\n",
        tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"pdadmm\.prepare: f\.h5: cannot be written \(File too large\); .*\n", done.stderr)
    assert everything(tmp_path) == []


@needs_mpirun
@pytest.mark.parametrize("error", ["OSError(28, 'full')", "RuntimeError('bug')"])
def test_failure_to_write_while_ranks_are_at_work_does_not_hang(tmp_path: Path, error: str) -> None:
    """The writing rank fails while blocks are on their way to it."""
    done = run_script(
        "import sys; from pdadmm.inputs import augment, write as f; from pdadmm.prepare import main\n"
        "augment._PANEL_BYTES = 1; augment._BLOCK_BYTES = 1 << 17; write, left = f.write_at, [2]\n"
        "def failing(*args):\n"
        "    left[0] -= 1\n"
        f"    if left[0] < 0: raise {error}\n"
        "    write(*args)\n"
        "f.write_at = failing\n"
        "sys.exit(main('synthetic --nodes all --out f.h5'.split()))\n",
        tmp_path,
        ranks=3,
    )
    if "OSError" in error:
        assert done.returncode == 2, done.stderr
        assert "f.h5: cannot be written (No space left on device)" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    else:
        assert done.returncode not in (0, 2)
        assert "RuntimeError: bug" in done.stderr
    assert everything(tmp_path) == []


@pytest.mark.parametrize("what", ["raise TypeError('swallowed')", "raise OSError('swallowed')", "pass"])
def test_a_signal_that_compiled_code_swallows_ends_the_command_all_the_same(
    tmp_path: Path, what: str
) -> None:
    """HDF5 calls back into Python, and makes another error of what a signal's handler raises there."""
    done = run_script(
        "import os, signal, sys; from pdadmm import prepare; from pdadmm.inputs import write as f\n"
        "prepare.begin(); create = f._create\n"
        "def interrupted(*args):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"    except BaseException: {what}\n"
        "    return create(*args)\n"
        "f._create = interrupted\n"
        "sys.exit(prepare.main('synthetic --out f.h5'.split()))\n",
        tmp_path,
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stderr == ""
    assert everything(tmp_path) == []


def test_terminated_command_removes_its_temporary_file(tmp_path: Path) -> None:
    command = "synthetic --synthetic-nodes 100000 --synthetic-features 2000 --nodes all --out f.h5"
    process = subprocess.Popen(
        [sys.executable, "-m", "pdadmm.prepare", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        end = time.monotonic() + 60
        while not everything(tmp_path) and time.monotonic() < end:
            time.sleep(0.02)
        assert everything(tmp_path) != []
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert everything(tmp_path) == []


def test_separate_worlds_under_srun_are_noticed(tmp_path: Path) -> None:
    env = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    done = prepare("synthetic", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "srun started 4 tasks, but each sees an MPI world of one rank" in done.stderr
    silent = prepare("synthetic", cwd=tmp_path, env={**env, "SLURM_PROCID": "1"})
    assert (silent.returncode, silent.stderr) == (2, "")
    assert everything(tmp_path) == []
    # within a step of srun somebody may well start mpirun, as pdadmm.run allows, too
    within = prepare("synthetic", "--out", "f.h5", cwd=tmp_path, ranks=1, env=env)
    assert (within.returncode, within.stderr) == (0, "")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    documentation = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", text)) - {"--help", "--version"}
    assert len(options) >= 13
    for option in options:
        assert option in documentation


def test_files_have_their_names_when_their_content_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    sync, replace = os.fsync, os.replace

    def noting_sync(descriptor: int) -> None:
        done.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def noting_replace(source: str, target: str) -> None:
        done.append((Path(target).name, os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "replace", noting_replace)
    small = ["synthetic", "--synthetic-nodes", "60", "--synthetic-classes", "2", "--synthetic-features", "9"]
    assert main([*small, "--hops", "1", "--out", "features.h5"]) == 0
    assert prepare_graph([*small, "--parts", "2", "--out", "graph.h5"]) == 0
    ours = [(name, file) for name, file in done if name.endswith(".h5")]
    assert [name for name, _ in ours] == ["features.h5", "graph.h5"]
    for name, file in ours:
        after = done[done.index((name, file)) :]
        assert ("sync", file) in done[: -len(after)]  # the file, and then its name
        assert ("sync", tmp_path.stat().st_ino) in after


def test_documented_example_of_own_data_runs(tmp_path: Path) -> None:
    documentation = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", documentation, re.S) if "savez" in code]
    exec(compile(example, "docs/data.md", "exec"), {})
    (made,) = tmp_path.glob("*.npz")
    assert main([made.name, "--out", "own.h5"]) == 0


def test_operators_of_samples_without_a_graph_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    write_idx(Path("raw"), compress=False)
    for operators, warned in ((None, False), ("powers:0", False), ("ppr:0.2", True)):
        given = [] if operators is None else ["--operators", operators]
        assert main(["mnist", "--raw", "raw", "--no-verify", *given]) == 0
        said = capsys.readouterr().err
        assert ("no graph" in said) is warned, said


def test_a_good_file_stays_where_sums_over_neighbours_exceed_float32(tmp_path: Path) -> None:
    write_npz(tmp_path / "fine.npz")
    assert main(["fine.npz", "--out", "g.h5"]) == 0
    before = (tmp_path / "g.h5").read_bytes()
    write_npz(tmp_path / "huge.npz", **HUGE)
    assert main(["huge.npz", "--out", "g.h5"]) == 2
    assert (tmp_path / "g.h5").read_bytes() == before
    with pytest.raises(InputError, match=r"huge\.npz: features are so large that sums .*--feature-norm row"):
        in_memory(load("huge.npz"))
    assert main(["huge.npz", "--out", "g.h5", "--feature-norm", "row"]) == 0


def test_names_do_not_reach_the_terminal_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(tmp_path / "g.npz")
    assert main(["g.npz", "--out", "\x1b[2Jg.h5"]) == 0
    assert capsys.readouterr().out.startswith("\\x1b[2Jg.h5: 60 rows")


def test_one_hot_labels_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    arrays = npz_arrays()
    arrays["labels"] = np.eye(arrays["labels"].max() + 1, dtype=np.int64)[arrays["labels"]]
    np.savez("hot.npz", **arrays)
    assert main(["hot.npz"]) == 2
    assert "give the numbers of the classes" in capsys.readouterr().err
