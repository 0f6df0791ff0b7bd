"""Graph files: against the graph they were made of, bit for bit again, and refused when they are damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from data_files import dense_adjacency, random_graph

from pdadmm.datasets.graph import Graph, as_csr, clean_adjacency
from pdadmm.errors import InputError
from pdadmm.gnn.partition import cut
from pdadmm.inputs import graph_file, write_graph
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.inputs.graph_file import GraphFile, GraphSource
from pdadmm.inputs.write import write_features

NODES, FEATURES, CLASSES = 90, 23, 4


def make(kind: str = "sparse", edges: int | None = None) -> tuple[Graph, Any, Any]:
    """A graph, its adjacency and its features as dense arrays."""
    raw = random_graph(NODES, FEATURES, CLASSES, seed=3, edges=edges)
    i, j = raw["edges"].T
    adjacency = clean_adjacency(sp.coo_matrix((np.ones(len(i)), (i, j)), shape=(NODES, NODES)), "test")
    rng = np.random.default_rng(5)
    labels, x = raw["labels"], np.asarray(raw["features"], np.float32)
    if kind == "multilabel":
        labels = (rng.random((NODES, CLASSES)) < 0.4).astype(np.uint8)
    if kind == "dense":
        x = rng.standard_normal((NODES, FEATURES)).astype(np.float32)
    features = as_csr(sp.csr_matrix(x)) if kind != "dense" else x
    order = rng.permutation(NODES)
    train, val, test = (np.sort(ids) for ids in (order[:20], order[20:40], order[45:80]))
    graph = Graph("test", adjacency, features, labels, train, val, test, CLASSES)
    return graph, dense_adjacency(raw["edges"], NODES), x


def everything(source: GraphSource) -> dict[str, Any]:
    """All of a graph in dense arrays, in the order of its nodes, read in slices of parts."""
    nodes = source.num_nodes
    ends = [(int(a), int(b)) for a, b in zip(source.part_ptr[:-1], source.part_ptr[1:], strict=True)]
    order = np.concatenate([source.node_id(slice(*end)) for end in ends])
    assert sorted(order) == list(range(nodes))
    a = np.zeros((nodes, nodes))
    for first, last in ends:
        indptr, indices = source.adjacency(first, last)
        assert (indptr.dtype, indices.dtype) == (np.int64, np.int32)
        assert indptr[0] == 0 and indptr.shape == (last - first + 1,)
        for row in range(last - first):
            neighbours = indices[indptr[row] : indptr[row + 1]]
            assert (np.diff(neighbours) > 0).all()
            a[order[first + row], order[neighbours]] = 1
    back = np.argsort(order)

    def slices(read: Callable[[int, int], Any]) -> Any:
        found = [read(*end) for end in ends]
        if sp.issparse(found[0]):
            assert all(f.dtype == np.float32 and f.has_sorted_indices for f in found)
            found = [f.toarray() for f in found]
        return np.concatenate(found)[back]

    return {
        "adjacency": a,
        "x": slices(source.features),
        "y": slices(source.labels),
        "split": slices(source.split),
        "degree": source.degree(slice(None))[back],
    }


@pytest.mark.parametrize("parts", [1, 3, NODES])
@pytest.mark.parametrize("kind", ["sparse", "dense", "multilabel"])
def test_a_file_holds_the_graph_and_is_what_memory_holds(tmp_path: Path, kind: str, parts: int) -> None:
    graph, a, x = make(kind)
    arrays = cut(graph, parts, "random", 2)
    write_graph.write_graph(tmp_path / "g.h5", arrays)
    with GraphFile(tmp_path / "g.h5") as file:
        found, same = everything(file), everything(arrays)
        assert file.attrs == arrays.attrs
        assert (file.num_nodes, file.num_features, file.num_classes) == (NODES, FEATURES, CLASSES)
        assert (file.num_edges, file.parts) == (int(a.sum()) // 2, parts)
        assert (file.dataset, file.multilabel, file.sparse) == ("test", kind == "multilabel", kind != "dense")
        assert file.sizes == {"train": 20, "val": 20, "test": 35}
        file.check_symmetry()
    split = np.zeros(NODES)
    for code, ids in enumerate((graph.train, graph.val, graph.test), 1):
        split[ids] = code
    expected = {"adjacency": a, "x": x, "y": graph.labels, "split": split, "degree": a.sum(axis=1)}
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, name)
        np.testing.assert_array_equal(same[name], values, name)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_rows_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, block: int) -> None:
    graph, a, x = make(kind)
    arrays = cut(graph, 4, "random")
    write_graph.write_graph(tmp_path / "g.h5", arrays)
    monkeypatch.setattr(graph_file, "_BLOCK_BYTES", 4 * FEATURES * block)
    monkeypatch.setattr(graph_file, "_BLOCK_ROWS", block)
    with GraphFile(tmp_path / "g.h5") as file:
        for source in (file, arrays):
            for ids in (np.arange(0), np.array([0, 1, 7, 30, 31, 89]), np.arange(NODES)):
                nodes = source.node_id(ids)
                rows = source.features_of(ids)
                rows = rows.toarray() if sp.issparse(rows) else rows
                assert rows.dtype == np.float32
                np.testing.assert_array_equal(rows, x[nodes])
                np.testing.assert_array_equal(source.degree(ids), a.sum(axis=1)[nodes])
            shuffled = np.array([50, 3, 88, 3])
            np.testing.assert_array_equal(source.degree(shuffled), a.sum(axis=1)[source.node_id(shuffled)])


@pytest.mark.parametrize("kind", ["sparse", "dense", "multilabel"])
def test_the_same_bytes_again_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    graph, _, _ = make(kind)
    told: list[tuple[str, int, int]] = []
    for name, size in (("a", None), ("b", None), ("c", 5000)):
        if size is not None:
            monkeypatch.setattr(write_graph, "_BLOCK_BYTES", size)
            monkeypatch.setattr(graph_file, "_BLOCK_BYTES", size // 10)
        write_graph.write_graph(tmp_path / name, cut(graph, 3, "random"), lambda *step: told.append(step))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert len(told) > 4
    assert told[-1] == ("rows", NODES, NODES)


def test_content_is_of_the_data_and_not_of_the_parts() -> None:
    graph, _, _ = make()
    assert cut(graph, 2, "random").attrs["content"] == cut(graph, 5, "random").attrs["content"]
    changed = []
    for what in ("label", "feature", "split", "edge"):
        other, _, _ = make(edges=60 if what == "edge" else None)
        if what == "label":
            other.labels[3] = (other.labels[3] + 1) % CLASSES
        elif what == "feature":
            other.features.data[7] += 1
        elif what == "split":
            other.train, other.val = other.val, other.train
        changed.append(cut(other, 2, "random").attrs["content"])
    assert len({cut(graph, 2, "random").attrs["content"], *changed}) == 5


def test_features_are_stored_in_the_form_that_is_smaller(tmp_path: Path) -> None:
    """Whatever the form that they come in."""
    graph, _, x = make("dense")
    few = np.where(np.random.default_rng(0).random(x.shape) < 0.1, x, 0).astype(np.float32)
    for values, sparse in ((x, False), (few, True)):
        for given in (values, sp.csr_matrix(values)):
            graph.features = given
            arrays = cut(graph, 2, "random")
            write_graph.write_graph(tmp_path / "g.h5", arrays)
            with GraphFile(tmp_path / "g.h5") as file:
                assert file.sparse == arrays.sparse == sparse
                np.testing.assert_array_equal(everything(file)["x"], values)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_rows_are_normalised(kind: str) -> None:
    graph, _, x = make(kind)
    sums = np.abs(x.astype(np.float64)).sum(axis=1, keepdims=True)
    expected = x / np.where(sums > 0, sums, 1)
    found = everything(cut(graph, 3, "random", feature_norm="row"))["x"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_edges_and_no_features_that_are_not_zero(tmp_path: Path) -> None:
    graph, _, _ = make(edges=0)
    graph.features = sp.csr_matrix((NODES, FEATURES), dtype=np.float32)
    write_graph.write_graph(tmp_path / "g.h5", cut(graph, 4))
    with GraphFile(tmp_path / "g.h5") as file:
        assert (file.num_edges, file.attrs["edge_cut"], file.attrs["halo_rows"]) == (0, 0, 0)
        found = everything(file)
        file.check_symmetry()
    assert not found["adjacency"].any() and not found["x"].any()


# ----------------------------------------------------------------------------- bad files


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files by the form of their features."""
    folder = tmp_path_factory.mktemp("good")
    for kind in ("sparse", "dense"):
        write_graph.write_graph(folder / kind, cut(make(kind)[0], 3, "random"))
    return {kind: folder / kind for kind in ("sparse", "dense")}


def put(name: str, place: int, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][place] = value

    return change


def note(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def exchange(name: str, like: Callable[[Any], Any], **layout: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        values = like(file[name][...])
        del file[name]
        file.create_dataset(name, data=values, **layout)

    return change


def forget(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file.attrs[name]

    return change


def drop(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


#: what is wrong, what the line says of it; found when the file is opened
AT_OPEN: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "foreign": (forget("schema"), "no schema"),
    "other schema": (note("schema", "else"), "schema 'else'"),
    "features": (note("schema", "pdadmm-features"), "a feature file, not a graph file; make one with"),
    "version": (note("schema_version", 2), "schema version 2"),
    "no parts noted": (forget("parts"), "lacks the attribute parts"),
    "parts not a number": (note("parts", "three"), "attribute parts is 'three'"),
    "no parts": (note("parts", 0), "parts is 0"),
    "other parts": (note("parts", 4), "/part_ptr is"),
    "more parts than nodes": (note("parts", 1 << 40), "more parts than nodes"),
    "more nodes": (note("num_nodes", 1 << 40), "/node_id is"),
    "more edges": (note("num_edges", 1 << 50), "/indices is"),
    "more features": (note("num_features", 1 << 50), ""),
    "one class": (note("num_classes", 1), "num_classes is 1"),
    "no training nodes": (note("n_train", 0), "/split is not of the sizes"),
    "fewer than none": (note("n_train", -1), "n_train is -1"),
    "other sizes": (note("n_train", 21), "/split is not of the sizes"),
    "sizes beyond nodes": (note("n_test", 1000), "more nodes than the graph"),
    "multilabel": (note("multilabel", 1), "/y is"),
    "multilabel twice": (note("multilabel", 2), "multilabel is 2"),
    "features in no form": (note("features", "blob"), "'blob'"),
    "cut beyond edges": (note("edge_cut", 1 << 40), "more edges are cut"),
    "lacks an array": (drop("degree"), "lacks /degree"),
    "other type": (exchange("y", lambda y: y.astype(np.float64)), "/y is float64"),
    "shorter": (exchange("split", lambda split: split[:-1]), "/split is int8 (89,)"),
    "chunked": (exchange("indices", lambda values: values, chunks=(16,)), "/indices is chunked"),
    "compressed": (exchange("split", lambda v: v, chunks=(16,), compression="gzip"), "/split is chunked"),
    "empty part": (put("part_ptr", 1, 0), "a part is empty"),
    "parts fall": (put("part_ptr", 1, 80), "a part is empty"),
    "parts begin late": (put("part_ptr", 0, 1), "does not go from 0"),
    "parts end early": (put("part_ptr", -1, 80), "does not go from 0"),
    "pointers end early": (put("indptr", -1, 5), "/indptr does not go from 0"),
    "pointers begin late": (put("indptr", 0, 1), "/indptr does not go from 0"),
    "split 4": (put("split", 3, 4), "/split is out of range"),
    "split -1": (put("split", 3, -1), "/split is out of range"),
}  # fmt: skip


@pytest.mark.parametrize("case", AT_OPEN)
def test_bad_files_are_refused_when_they_are_opened(tmp_path: Path, good: dict[str, Path], case: str) -> None:
    change, message = AT_OPEN[case]
    path = tmp_path / "bad.h5"
    shutil.copy(good["sparse" if case != "more features" else "dense"], path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError) as refused:
        GraphFile(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


#: what is wrong, the form of features, what the line says; found when rows are read
AT_READING: dict[str, tuple[Callable[[h5py.File], None], str, str]] = {
    "neighbour too large": (put("indices", 5, NODES), "sparse", "/indices is out of range 0 to 89"),
    "neighbour negative": (put("indices", 5, -1), "sparse", "/indices is out of range"),
    "neighbours repeat": (lambda f: put("indices", 1, f["indices"][0])(f), "sparse", "does not ascend"),
    "pointers fall": (put("indptr", 10, 0), "sparse", "/indptr does not rise"),
    "pointers far away": (put("indptr", 10, 1 << 60), "sparse", "/indptr does not rise"),
    "pointers negative": (put("indptr", 10, -(1 << 62)), "sparse", "/indptr does not rise"),
    "pointers moved": (lambda f: put("indptr", 10, f["indptr"][10] + 1)(f), "sparse", "prepare the file"),
    "another degree": (put("degree", 10, 77), "sparse", "/degree is not"),
    "self-loop": (lambda f: loop(f), "sparse", "self-loop"),
    "label too large": (put("y", 3, CLASSES), "sparse", "a label is out of range 0 to 3"),
    "label negative": (put("y", 3, -1), "dense", "a label is out of range"),
    "node too large": (put("node_id", 3, NODES), "dense", "/node_id is out of range"),
    "NaN": (put("x", (7, 2), np.nan), "dense", "NaN or Inf in row 7;"),
    "Inf": (lambda f: put("x/data", int(f["x/indptr"][7]), np.inf)(f), "sparse", "NaN or Inf in row 7;"),
    "column too large": (put("x/indices", 3, FEATURES), "sparse", "/x/indices is out of range"),
    "pointers of x fall": (put("x/indptr", 3, -1), "sparse", "/x/indptr does not rise"),
}  # fmt: skip


def loop(file: h5py.File) -> None:
    """Make the only neighbour of a row, or its last, the row itself."""
    indptr, indices = file["indptr"][...], file["indices"]
    for row in range(NODES):
        end = int(indptr[row + 1]) - 1
        alone = indptr[row] == end or int(indices[end - 1]) < row
        if indptr[row] <= end and alone:
            indices[end] = row
            return
    raise AssertionError("no such row")


@pytest.mark.parametrize("case", AT_READING)
def test_bad_rows_are_refused_when_they_are_read(tmp_path: Path, good: dict[str, Path], case: str) -> None:
    change, kind, message = AT_READING[case]
    path = tmp_path / "bad.h5"
    shutil.copy(good[kind], path)
    with h5py.File(path, "r+") as file:
        change(file)
    with GraphFile(path) as file, pytest.raises(InputError) as refused:
        everything(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_adjacency_that_is_not_symmetric_is_found(tmp_path: Path, good: dict[str, Path]) -> None:
    path = tmp_path / "bad.h5"
    shutil.copy(good["sparse"], path)
    with h5py.File(path, "r+") as file:
        for place in range(file["indices"].shape[0]):
            others = file["indices"][...]
            others[place] += 1
            row = int(np.searchsorted(file["indptr"][...], place, side="right")) - 1
            first, last = file["indptr"][row : row + 2]
            if others[place] < NODES and others[place] != row and (np.diff(others[first:last]) > 0).all():
                file["indices"][...] = others
                break
    with GraphFile(path) as file:
        file.adjacency(0, NODES)
        with pytest.raises(InputError, match="not symmetric"):
            file.check_symmetry()


def test_a_node_in_two_rows_is_found(tmp_path: Path, good: dict[str, Path]) -> None:
    path = tmp_path / "bad.h5"
    shutil.copy(good["sparse"], path)
    with GraphFile(path) as file:
        file.cut()
    with h5py.File(path, "r+") as file:
        file["node_id"][3] = file["node_id"][4]
    with GraphFile(path) as file, pytest.raises(InputError, match="node_id does not have every node once"):
        file.cut()


def test_missing_truncated_and_foreign_files(tmp_path: Path, good: dict[str, Path]) -> None:
    content = good["sparse"].read_bytes()
    path = tmp_path / "bad.h5"
    with pytest.raises(InputError, match=r"no such file; make it with python -m pdadmm\.gnn\.prepare"):
        GraphFile(path)
    for length in (0, 10, 600, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"bad\.h5: .*prepare it again"):
            GraphFile(path)
    path.write_bytes(b"no HDF5 at all " * 100)
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        GraphFile(path)


def test_feature_and_graph_files_are_told_apart(tmp_path: Path, good: dict[str, Path]) -> None:
    from pdadmm.inputs.augment import Augmentation

    features = tmp_path / "features.h5"
    write_features(features, Augmentation(make()[0], 1))
    with pytest.raises(InputError, match="a feature file, not a graph file; make one with"):
        GraphFile(features)
    with pytest.raises(InputError, match="a graph file, not a feature file; make one with"):
        FeatureFile(good["sparse"])


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    arrays = cut(make()[0], 2, "random")
    own = tmp_path / "notes.txt"
    own.write_text("mine")
    features = tmp_path / "features.h5"
    with h5py.File(features, "w") as file:
        file.attrs["schema"] = "pdadmm-features"
    before = features.read_bytes()
    for path, reason in (
        (own, "is no graph file, so it stays"),
        (features, "so it stays"),
        (tmp_path, "it is a folder"),
    ):
        with pytest.raises(InputError, match=reason):
            write_graph.write_graph(path, arrays)
    assert own.read_text() == "mine"
    assert features.read_bytes() == before
    write_graph.write_graph(tmp_path / "g.h5", arrays)
    (tmp_path / "link.h5").symlink_to("g.h5")
    write_graph.write_graph(tmp_path / "link.h5", cut(make()[0], 5, "random"))
    with GraphFile(tmp_path / "g.h5") as file:
        assert file.parts == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["features.h5", "g.h5", "link.h5", "notes.txt"]
