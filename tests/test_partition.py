"""Partitions: balance and cuts against an independent count; vectors of users; the command that cuts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from data_files import ROOT, npz_arrays, write_graphsaint, write_idx, write_npz, write_ogb
from support import python

from pdadmm import prepare
from pdadmm.datasets import from_pyg, load, synthetic_graph
from pdadmm.errors import InputError
from pdadmm.gnn.metis import metis
from pdadmm.gnn.partition import cut, partition
from pdadmm.gnn.prepare import main
from pdadmm.inputs.graph_file import GraphFile

METHODS = ["metis", "blocks", "random"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)


def needs(method: str) -> None:
    if method == "metis":
        pytest.importorskip("pymetis")


def symmetric(edges: Any, nodes: int) -> Any:
    i, j = np.asarray(edges, dtype=np.int64).reshape(-1, 2).T
    a = sp.csr_matrix((np.ones(2 * i.size, np.float32), (np.r_[i, j], np.r_[j, i])), shape=(nodes, nodes))
    a.sum_duplicates()
    a.data[:] = 1
    return a


def grid(side: int) -> Any:
    """A square lattice."""
    number = np.arange(side * side).reshape(side, side)
    across = np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], axis=1)
    down = np.stack([number[:-1].ravel(), number[1:].ravel()], axis=1)
    return symmetric(np.concatenate([across, down]), side * side)


def pieces() -> Any:
    """Isolated nodes, pairs, a star and a clique, in an order that says nothing."""
    edges = [(i, i + 1) for i in range(0, 100, 2)]
    edges += [(200, i) for i in range(201, 260)]
    edges += [(i, j) for i in range(300, 330) for j in range(i) if j >= 300]
    order = np.random.default_rng(0).permutation(400)
    return symmetric(order[np.array(edges)], 400)


GRAPHS = {"grid": lambda: grid(30), "pieces": pieces, "nothing": lambda: symmetric([], 50)}


def count(adjacency: Any, part: Any) -> tuple[int, int]:
    """Edges cut and halo rows, in Python's sets."""
    edges, halo = set(), set()
    coo = adjacency.tocoo()
    for i, j in zip(coo.row.tolist(), coo.col.tolist(), strict=True):
        if part[i] != part[j]:
            edges.add((min(i, j), max(i, j)))
            halo.add((int(part[i]), j))
    return len(edges), len(halo)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("method", METHODS)
def test_parts_are_balanced_and_none_is_empty(method: str, graph: str, parts: int) -> None:
    needs(method)
    adjacency = GRAPHS[graph]()
    part = partition(adjacency, parts, method, seed=1)
    sizes = np.bincount(part, minlength=parts)
    assert part.dtype == np.int32
    assert part.shape == (adjacency.shape[0],)
    assert sizes.size == parts
    assert sizes.min() >= 1
    mean = adjacency.shape[0] / parts
    assert sizes.max() <= max(1.03 * mean, np.ceil(mean))
    np.testing.assert_array_equal(part, partition(adjacency, parts, method, seed=1))


@pytest.mark.parametrize("method", METHODS)
def test_as_many_parts_as_nodes(method: str) -> None:
    needs(method)
    assert sorted(partition(grid(5), 25, method)) == list(range(25))


def test_seeds_differ() -> None:
    adjacency = grid(20)
    for method in ("blocks", "random"):
        assert (partition(adjacency, 4, method, 0) != partition(adjacency, 4, method, 1)).any()


def test_auto_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = synthetic_graph(nodes=300)
    monkeypatch.setitem(sys.modules, "pymetis", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cut(graph, 2).attrs["partitioner"] == "blocks"
    with pytest.raises(InputError, match=r"needs pymetis: pip install 'pdadmm\[gnn\]'"):
        cut(graph, 2, "metis")
    monkeypatch.undo()
    needs("metis")
    assert cut(graph, 2).attrs["partitioner"] == "metis"


@pytest.mark.parametrize("method", METHODS)
def test_what_was_cut_is_counted(method: str) -> None:
    needs(method)
    graph = synthetic_graph(nodes=400, degree=6)
    arrays = cut(graph, 5, method, seed=3)
    part = np.empty(400, np.int64)
    for number, (first, last) in enumerate(zip(arrays.part_ptr[:-1], arrays.part_ptr[1:], strict=True)):
        nodes = arrays.node_id(slice(int(first), int(last)))
        assert (np.diff(nodes) > 0).all()
        part[nodes] = number
    np.testing.assert_array_equal(part, partition(graph.adjacency, 5, method, 3))
    assert (arrays.attrs["edge_cut"], arrays.attrs["halo_rows"]) == count(graph.adjacency, part)
    assert (arrays.attrs["partitioner"], arrays.attrs["partition_seed"]) == (method, 3)


def test_blocks_find_what_is_to_be_found() -> None:
    """A lattice's straight cut, if not quite straight, and cliques."""
    assert count(grid(40), partition(grid(40), 2, "blocks"))[0] <= 1.5 * 40
    cliques = symmetric(
        [(10 * k + i, 10 * k + j) for k in range(80) for i in range(10) for j in range(i)]
        + [(10 * k, 10 * (k + 1)) for k in range(79)],
        800,
    )
    assert count(cliques, partition(cliques, 4, "blocks"))[0] <= 6


def test_communities_are_cut_well_by_blocks_and_metis() -> None:
    graph = synthetic_graph(nodes=8000, degree=16, communities=32, features=50, words=3)
    for method in ("blocks", "metis"):
        needs(method)
        for parts in (2, 4):
            # .1 of the edges drawn take no notice of communities, and a part is 16 or 8 of those
            assert cut(graph, parts, method).attrs["edge_cut"] < 1.05 * 0.1 * (1 - 1 / parts) * 64_000


def test_communities_keep_the_homophily_and_leave_other_graphs_alone() -> None:
    plain, same = synthetic_graph(seed=4), synthetic_graph(seed=4, communities=0)
    assert (plain.adjacency != same.adjacency).nnz == 0
    made = synthetic_graph(nodes=20_000, degree=10, communities=50, homophily=0.6, features=50)
    coo = made.adjacency.tocoo()
    assert (
        abs(float((made.labels[coo.row] == made.labels[coo.col]).mean()) - 0.6) < 0.02
    )  # self-loops are dropped
    assert made.adjacency.nnz / 20_000 == pytest.approx(10, rel=0.05)
    again = synthetic_graph(nodes=20_000, degree=10, communities=50, homophily=0.6, features=50)
    assert (made.adjacency != again.adjacency).nnz == 0
    for bad in (-1, 1000):
        with pytest.raises(InputError, match="communities"):
            synthetic_graph(communities=bad)


@pytest.mark.parametrize("name", ["cora", "amazon-computers"])
def test_real_graphs(shared: Path, name: str) -> None:
    graph = load(name, raw=shared / "data" / ("planetoid" if name == "cora" else "npz"))
    blocks = cut(graph, 4, "blocks")
    assert np.diff(blocks.part_ptr).max() <= 1.03 * graph.num_nodes / 4
    assert blocks.attrs["edge_cut"] < 0.2 * blocks.num_edges
    needs("metis")
    assert blocks.attrs["edge_cut"] < 1.4 * cut(graph, 4, "metis").attrs["edge_cut"]


# ----------------------------------------------------------------------------- the user's vector


def test_a_vector_of_the_user(tmp_path: Path) -> None:
    graph = synthetic_graph(nodes=300)
    vector = np.random.default_rng(1).permutation(np.arange(300) % 6)
    for dtype in (np.int64, np.uint8, ">i4"):
        np.save(tmp_path / "mine.npy", vector.astype(dtype))
        arrays = cut(graph, 6, str(tmp_path / "mine.npy"))
        for number in range(6):
            first, last = arrays.part_ptr[number : number + 2]
            np.testing.assert_array_equal(
                arrays.node_id(slice(first, last)), np.flatnonzero(vector == number)
            )
        assert arrays.attrs["partitioner"] == "file"


VECTORS: dict[str, tuple[Any, str]] = {
    "too short": (np.zeros(299, int), "299 parts for 300 nodes"),
    "too long": (np.zeros(301, int), "301 parts for 300 nodes"),
    "negative": (np.full(300, -1), "part -1 is out of range 0 to 1"),
    "too large": (np.arange(300) % 3, "part 2 is out of range 0 to 1; correct it, or --parts"),
    "empty part": (np.zeros(300, int), "part 1 has no node"),
    "fractions": (np.arange(300) / 300, "float64 (300,)"),
    "matrix": (np.zeros((300, 1), int), "int64 (300, 1)"),
    "objects": (np.array([None] * 300), "holds pickled objects, which are not read; save the part"),
}


@pytest.mark.parametrize("case", VECTORS)
def test_bad_vectors(tmp_path: Path, case: str) -> None:
    vector, message = VECTORS[case]
    path = tmp_path / "mine.npy"
    np.save(path, vector)
    with pytest.raises(InputError) as refused:
        partition(symmetric([], 300), 2, str(path))
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)


def test_damaged_vectors(tmp_path: Path) -> None:
    path = tmp_path / "mine.npy"
    graph = symmetric([], 300)
    with pytest.raises(InputError, match="no such file"):
        partition(graph, 2, str(path))
    np.save(path, np.arange(300) % 2)
    content = path.read_bytes()
    header = b"\x93NUMPY\x01\x00" + b"v\x00" + b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d,), }"
    for bad in (b"", content[:40], content[:-1], b"text", (header % (1 << 50)).ljust(127) + b"\n"):
        path.write_bytes(bad)
        with pytest.raises(InputError, match="damaged"):
            partition(graph, 2, str(path))


def test_bad_arguments() -> None:
    graph = symmetric([], 30)
    for parts, method, message in (
        (0, "auto", "--parts 0 is too few; give 1 or more"),
        (-3, "random", "--parts -3"),
        (31, "blocks", "--parts 31 is more than the 30 nodes"),
        (2, "spectral", "--partitioner spectral is unknown; choose auto, metis, blocks, random or name"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            partition(graph, parts, method)


# ----------------------------------------------------------------------------- the command


def undirected(**changes: Any) -> dict[str, Any]:
    """Arrays of a graph of 60 nodes with both directions of its edges."""
    arrays = npz_arrays()
    a = sp.csr_matrix(
        (arrays["adj_data"], arrays["adj_indices"], arrays["adj_indptr"]), shape=arrays["adj_shape"]
    )
    a = (a + a.T).tocsr()
    return {"adj_data": a.data, "adj_indices": a.indices, "adj_indptr": a.indptr, **changes}


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_the_command_as_users_start_it(tmp_path: Path) -> None:
    write_npz(tmp_path / "mine.npz", **undirected())
    done = python("-m", "pdadmm.gnn.prepare", "mine.npz", "--parts", "3", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert everything(tmp_path) == ["data", "data/mine-3parts.h5", "mine.npz"]
    first, second, third = done.out.splitlines()
    assert re.fullmatch(
        r"data/mine-3parts\.h5: 60 rows, \d+ edges, 7 features \((csr|dense)\), 3 classes, [\d.]+ MB", first
    )
    assert re.fullmatch(
        r"3 parts \((metis|blocks)\) of \d+ to \d+ rows, balance 1\.\d{3}; edge cut \d+ \([\d.]+%\); "
        r"halo rows \d+ \([\d.]+ a node\)",
        second,
    )
    assert re.match(r"train \d+, val \d+, test \d+ nodes drawn from seed 0; ", third)
    bad = python("-m", "pdadmm.gnn.prepare", "mine.npz", "--parts", "0", "--out", "x.h5", cwd=tmp_path)
    assert (bad.code, bad.out) == (2, "")
    assert bad.err == "pdadmm.gnn.prepare: --parts 0 is too few; give 1 or more\n"


@pytest.mark.parametrize("after", [0.0, 0.05, 0.2])
def test_sigterm_while_metis_works_ends_the_command_as_at_any_other_moment(after: float) -> None:
    """METIS itself would jump out of what it does, and leave the process hanging or crashing now and then.

    It is started past Python's buffers: one that a signal interrupts while it is emptied, is emptied again.
    """
    needs("metis")
    code = (
        "import os, numpy as np, scipy.sparse as sp\n"
        "from pdadmm.gnn.partition import partition\n"
        "from pdadmm.process import begin\n"
        "from pdadmm.runtime.preparing import answer, listen\n"
        "begin()\n"
        "i, j = np.random.default_rng(0).integers(0, 60_000, (2, 600_000))\n"
        "a = sp.csr_matrix((np.ones(i.size, np.float32), (i, j)), (60_000, 60_000))\n"
        "a = (a + a.T).tocsr()\n"
        "def work(report):\n"
        "    listen(); os.write(1, b'.'); partition(a, 8, 'metis', 0); print('done', flush=True)\n"
        "raise SystemExit(answer('x', work))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.read(1)
    time.sleep(after)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + signal.SIGTERM, "", "")


def test_metis_makes_the_same_parts_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs("metis")
    adjacency = synthetic_graph(nodes=3000, features=20, communities=9, seed=0).adjacency
    found = []
    for few in (0, 1 << 40):
        monkeypatch.setattr("pdadmm.gnn.metis._FEW", few)
        monkeypatch.chdir(tmp_path)  # from wherever it is started
        found.append(metis(adjacency, 5, 3))
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0].dtype == np.int32 and np.bincount(found[0]).size == 5
    monkeypatch.setattr("pdadmm.gnn.metis._FEW", 0)
    for program, error in (
        ("raise ValueError('broken')", InputError),
        ("import os; os.kill(os.getpid(), 9)", MemoryError),
    ):
        monkeypatch.setattr("pdadmm.gnn.metis._PROGRAM", program)
        said = r"broken\); give --partitioner blocks" if error is InputError else None
        with pytest.raises(error, match=said):
            metis(adjacency, 5, 3)


def test_under_mpirun_one_rank_speaks(tmp_path: Path, mpirun: Any) -> None:
    arguments = [
        "-m",
        "pdadmm.gnn.prepare",
        "synthetic",
        "--parts",
        "2",
        "--partitioner",
        "random",
        "--out",
        "g.h5",
    ]
    done = mpirun(2, *arguments, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 3
    assert everything(tmp_path) == ["g.h5"]


def test_directions_are_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "g.npz")
    assert main(["g.npz", "--parts", "2", "--out", "a.h5"]) == 0
    err = capsys.readouterr().err
    assert err == "pdadmm.gnn.prepare: warning: g.npz: edges have directions; each is taken both ways\n"
    write_npz(tmp_path / "g.npz", **undirected())
    assert main(["g.npz", "--parts", "2", "--out", "b.h5"]) == 0
    assert capsys.readouterr().err == ""
    with GraphFile("a.h5") as a, GraphFile("b.h5") as b:
        assert a.attrs["content"] == b.attrs["content"]
        a.check_symmetry()


def test_options_reach_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "g.npz", **undirected())
    np.save("mine.npy", np.arange(60) % 4)
    options = "--seed 5 --feature-norm row --split random --fractions .5,.25,.25"
    assert main(f"g.npz --parts 4 --partitioner mine.npy {options}".split()) == 0
    with GraphFile("data/g-4parts.h5") as file:
        expected = {"seed": 5, "feature_norm": "row", "split": "random", "fractions": "0.5,0.25,0.25"}
        assert {name: file.attrs[name] for name in expected} == expected
        assert (file.attrs["partitioner"], file.attrs["partition_seed"]) == ("file", 5)
        assert file.sizes == {"train": 30, "val": 15, "test": 15}
        np.testing.assert_array_equal(file.node_id(slice(0, 15)), np.arange(0, 60, 4))
        sums = abs(file.features(0, 60)).sum(axis=1)
        np.testing.assert_allclose(sums[sums > 0], 1, rtol=1e-6)


def test_random_splits_are_of_labelled_nodes(shared: Path, tmp_path: Path) -> None:
    raw = shared / "data" / "planetoid"
    graph = load("citeseer", raw=raw)
    assert graph.unlabelled.size == 15
    assert main(f"citeseer --raw {raw} --parts 2 --split random --out {tmp_path / 'g.h5'}".split()) == 0
    with GraphFile(tmp_path / "g.h5") as file:
        assert file.sizes == {"train": 1987, "val": 663, "test": 662}
        none = file.node_id(np.flatnonzero(file.split(0, 3327) == 0))
        assert set(none) == set(graph.unlabelled)


@pytest.mark.parametrize(("name", "write"), [("ogbn-arxiv", write_ogb), ("flickr", write_graphsaint)])
def test_published_formats(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / "raw")
    arguments = f"{name} --raw {tmp_path / 'raw'} --no-verify --parts 3 --out {tmp_path / 'g.h5'}"
    assert main(arguments.split()) == 0
    with GraphFile(tmp_path / "g.h5") as file:
        assert (file.dataset, file.num_nodes) == (name, 12)
        assert file.attrs["citation"]


def test_several_labels_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a user's file and in GraphSAINT's folder; feature files hold one."""
    monkeypatch.chdir(tmp_path)
    labels = (np.random.default_rng(0).random((60, 5)) < 0.3).astype(np.float64)
    write_npz(tmp_path / "g.npz", **undirected(labels=labels))
    assert main(["g.npz", "--parts", "2", "--out", "g.h5"]) == 0
    with GraphFile("g.h5") as file:
        assert (file.multilabel, file.num_classes) == (True, 5)
        assert file.sizes == {"train": 36, "val": 12, "test": 12}
        found = file.labels(0, 60)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, labels[file.node_id(slice(None))])
    capsys.readouterr()
    assert prepare.main(["g.npz", "--out", "f.h5"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "several labels a node, which python -m pdadmm.gnn.prepare takes" in err
    assert not Path("f.h5").exists()

    write_graphsaint(tmp_path / "raw")
    several = labels[:12].astype(int)
    class_map = {str(node): row for node, row in enumerate(several.tolist())}
    (tmp_path / "raw" / "class_map.json").write_text(json.dumps(class_map))
    graph = load("flickr", raw="raw", verify=False)
    np.testing.assert_array_equal(graph.labels, several)
    assert graph.multilabel and graph.num_classes == 5


def test_rows_of_one_label_are_several_labels_of_a_graph_to_predict_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few nodes may have one each by chance; to train on, they are a way to write one label."""
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "g.npz", **undirected(labels=np.eye(3, dtype=int)[np.arange(60) % 3]))
    assert main(["g.npz", "--parts", "2", "--out", "g.h5"]) == 2
    assert "give the numbers of the classes" in capsys.readouterr().err
    assert main(["g.npz", "--parts", "2", "--classes", "3", "--out", "g.h5"]) == 0
    with GraphFile("g.h5") as file:
        assert file.multilabel and file.sizes == {"train": 0, "val": 0, "test": 60}
    alone = {"edge_index": np.zeros((2, 0), int), "x": np.ones((1, 2), np.float32), "y": np.eye(3)[:1]}
    graph = from_pyg(SimpleNamespace(**alone), classes=3)
    assert graph.multilabel and graph.labels.tolist() == [[1, 0, 0]]


def npz(**changes: Any) -> Any:
    return lambda folder: write_npz(folder / "g.npz", **undirected(**changes))


def vector(folder: Path) -> None:
    npz()(folder)
    np.save(folder / "mine.npy", np.zeros(60, int))


def idx(folder: Path) -> None:
    write_idx(folder / "raw", compress=False)


def nothing(folder: Path) -> None:
    pass


def several(nodes: int) -> np.ndarray:
    """Labels of 3 classes, several a node."""
    return np.random.default_rng(0).integers(0, 2, (nodes, 3))


NAN = np.full(npz_arrays()["attr_data"].size, np.nan)
BAD: dict[str, tuple[Any, str, str]] = {
    "no parts": (npz(), "g.npz", "required: --parts"),
    "parts not a number": (npz(), "g.npz --parts two", "invalid int value"),
    "no such data set": (nothing, "corra --parts 2", "unknown data set"),
    "no graph": (idx, "mnist --raw raw --no-verify --parts 2", "without a graph"),
    "too many parts": (npz(), "g.npz --parts 61", "more than the 60 nodes"),
    "no such partitioner": (npz(), "g.npz --parts 2 --partitioner best", "--partitioner best is unknown"),
    "no such vector": (npz(), "g.npz --parts 2 --partitioner other.npy", "no such file"),
    "vector": (vector, "g.npz --parts 2 --partitioner mine.npy", "mine.npy: part 1 has no node"),
    "no such split": (npz(), "g.npz --parts 2 --split best", "invalid choice"),
    "fractions alone": (npz(), "g.npz --parts 2 --fractions .6,.2,.2", "needs --split random"),
    "two fractions": (npz(), "g.npz --parts 2 --split random --fractions .6,.4", "--fractions 0.6,0.4: give"),
    "their sum": (npz(), "g.npz --parts 2 --split random --fractions .6,.2,.3", "with the sum 1"),
    "a zero": (npz(), "g.npz --parts 2 --split random --fractions .8,.2,0", "three positive numbers"),
    "no number": (npz(), "g.npz --parts 2 --split random --fractions a,b,c", "--fractions"),
    "NaN fraction": (npz(), "g.npz --parts 2 --split random --fractions .8,nan,.2", "--fractions"),
    "tiny fraction": (npz(), "g.npz --parts 2 --split random --fractions .5,.499,.001", "a split is empty"),
    "NaN features": (npz(attr_data=NAN), "g.npz --parts 2", "NaN or Inf"),
    "labels beyond 1": (npz(labels=np.full((60, 3), 2)), "g.npz --parts 2", "a matrix of 0 and 1 is needed"),
    "one class": (npz(), "g.npz --parts 2 --classes 1", "--classes 1 is too few"),
    "fewer classes": (npz(), "g.npz --parts 2 --classes 2", "label 2 is out of range; labels must be 0 to 1"),
    "other columns": (npz(labels=several(60)), "g.npz --parts 2 --classes 2", "3 classes, not the 2 asked"),
    "its own labels": (nothing, "synthetic --parts 2 --classes 7", "--classes is for a graph of yours"),
    "negative seed": (npz(), "g.npz --parts 2 --seed -1", "seed -1"),
    "a foreign file": (vector, "g.npz --parts 2 --out mine.npy", "exists and is no graph file, so it stays"),
    "the graph itself": (npz(), "g.npz --parts 2 --out g.npz", "is the file to read"),
    "a target before work": (vector, "cora --raw no --parts 2 --out mine.npy", "exists and is no graph file"),
    "a folder": (npz(), "g.npz --parts 2 --out .", "cannot be written"),
    "below a file": (npz(), "g.npz --parts 2 --out g.npz/x.h5", "cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_2_and_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    write, command, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    before = {name: Path(name).read_bytes() for name in everything(tmp_path) if Path(name).is_file()}
    assert main(command.split()) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    assert message in out.err
    after = {name: Path(name).read_bytes() for name in everything(tmp_path) if Path(name).is_file()}
    assert after == before


@pytest.mark.parametrize("command", [prepare.main, main], ids=["features", "graph"])
def test_a_graph_may_have_a_name_that_is_no_unicode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"b\xff\n.npz")
    os.rename(write_npz(tmp_path / "g.npz", **undirected()), name)
    assert command([name, "--out", "o.h5", *(["--parts", "2"] if command is main else [])]) == 0
    with h5py.File("o.h5") as file:
        assert (file.attrs["dataset"], file.attrs["title"]) == ("b", r"b\udcff\n")


@pytest.mark.parametrize("several", [False, True])
def test_a_class_that_is_not_in_training_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], several: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.arange(60) % 3
    if several:
        labels = np.eye(3, dtype=np.int64)[labels]
        labels[9] = 1
    ids = {"train_idx": np.array([0, 1, 3]), "val_idx": np.array([2]), "test_idx": np.array([5, 8])}
    write_npz(tmp_path / "g.npz", **undirected(labels=labels, **ids))
    assert main(["g.npz", "--parts", "2"]) == 0
    assert capsys.readouterr().err == "pdadmm.gnn.prepare: warning: no training node of class 2\n"


def test_a_graph_of_ones_own_is_not_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "Cora.npz", **undirected())
    assert main(["Cora.npz", "--parts", "2"]) == 0
    with GraphFile("data/Cora.npz-2parts.h5") as file:
        assert (file.dataset, file.attrs["citation"]) == ("Cora.npz", "")


def test_too_little_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pdadmm.gnn.partition.cut", full)
    assert main(["synthetic", "--parts", "2"]) == 2
    assert capsys.readouterr().err.startswith("pdadmm.gnn.prepare: not enough memory")


def test_a_full_disk_is_one_line_and_nothing_left(tmp_path: Path) -> None:
    """A file size limit stands for the full disk."""
    script = (
        "import resource, signal, sys; from pdadmm.gnn.prepare import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "sys.exit(main('synthetic --parts 2 --partitioner random --out f.h5'.split()))\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.code == 2
    assert re.fullmatch(r"pdadmm\.gnn\.prepare: f\.h5: cannot be written \(File too large\); .*\n", done.err)
    assert everything(tmp_path) == []


def test_a_signal_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pdadmm.gnn import prepare; from pdadmm.inputs import write_graph as f\n"
        "prepare.begin(); create = f._create\n"
        "def interrupted(*args):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except BaseException: pass\n"
        "    return create(*args)\n"
        "f._create = interrupted\n"
        "sys.exit(prepare.main('synthetic --parts 2 --partitioner random --out f.h5'.split()))\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert (done.code, done.err) == (128 + 15, "")
    assert everything(tmp_path) == []


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    documentation = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", text)) - {"--help", "--version"}
    assert len(options) >= 16
    assert [option for option in options if option not in documentation] == []


def test_documented_attributes_and_arrays(tmp_path: Path) -> None:
    assert main(f"synthetic --parts 2 --partitioner random --out {tmp_path / 'g.h5'}".split()) == 0
    documentation = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("### The file")[1]
    names = set(re.findall(r"`([a-z_]+)`", documentation))
    with h5py.File(tmp_path / "g.h5") as file:
        assert set(file.attrs) <= names
        assert {f"/{name}" for name in file if name != "x"} <= set(re.findall(r"`(/[a-z_]+)`", documentation))
