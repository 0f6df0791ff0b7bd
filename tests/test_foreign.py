"""Graphs of PyTorch Geometric, OGB and NetworkX, as objects in memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import scipy.sparse as sp
from support import python, succeed, summary_of

from pdadmm.datasets import Graph, from_networkx, from_pyg, load, synthetic_graph, write_npz
from pdadmm.errors import InputError
from pdadmm.prepare import main as prepare


class Tensor:
    """What is used of a torch.Tensor that needs its gradient and lies on a device."""

    def __init__(self, values: Any) -> None:
        self._values, self._ready = np.asarray(values), [False, False]

    def detach(self) -> Tensor:
        self._ready[0] = True
        return self

    def cpu(self) -> Tensor:
        self._ready[1] = True
        return self

    def numpy(self) -> np.ndarray:
        assert all(self._ready)
        return self._values


class BFloat16(Tensor):
    """One whose numbers NumPy does not have."""

    dtype = "torch.bfloat16"

    def float(self) -> Tensor:
        made = Tensor(self._values)
        made._ready = self._ready
        return made

    def numpy(self) -> np.ndarray:
        raise TypeError("Got unsupported ScalarType BFloat16")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return synthetic_graph(nodes=300, features=40, classes=3, seed=1)


def test_features_in_bfloat16_are_taken(graph: Graph) -> None:
    found = from_pyg(planetoid(graph, x=BFloat16(graph.features.toarray())))
    np.testing.assert_array_equal(found.features, graph.features.toarray())


@pytest.mark.parametrize("split", [3, None, "random", ([0], [1], [2])])
def test_a_split_that_would_not_count_is_refused(graph: Graph, split: Any) -> None:
    none = dict.fromkeys(("train_mask", "val_mask", "test_mask"))
    with pytest.raises(InputError, match="has no masks"):
        from_pyg(planetoid(graph, **none), split=split)
    with pytest.raises(InputError, match="the masks are one split"):
        from_pyg(planetoid(graph), split=split)


def test_a_drawn_split_is_drawn_again_from_a_file(graph: Graph, tmp_path: Path) -> None:
    none = dict.fromkeys(("train_mask", "val_mask", "test_mask"))
    drawn = from_pyg(planetoid(graph, **none), seed=3)
    write_npz(tmp_path / "g.npz", drawn)
    for seed, same_split in ((3, True), (4, False)):
        found = load(str(tmp_path / "g.npz"), seed=seed)
        assert found.drawn and np.array_equal(found.train, drawn.train) is same_split
    write_npz(tmp_path / "g.npz", from_pyg(planetoid(graph)))
    assert np.array_equal(load(str(tmp_path / "g.npz"), seed=4).train, graph.train)


def test_graphs_to_predict_on_need_no_labels(graph: Graph) -> None:
    networkx = pytest.importorskip("networkx")
    data = planetoid(graph, y=None, train_mask=None, val_mask=None, test_mask=None)
    with pytest.raises(InputError, match="has no y"):
        from_pyg(data)
    theirs = networkx.Graph()
    theirs.add_nodes_from((i, {"x": row}) for i, row in enumerate(dense(graph)))
    theirs.add_edges_from(zip(*graph.adjacency.nonzero(), strict=True))
    with pytest.raises(InputError, match="no attribute 'y'"):
        from_networkx(theirs)
    for found in (from_pyg(data, classes=5), from_networkx(theirs, classes=5)):
        assert (found.num_classes, found.unlabelled.size, found.test.size) == (5, 300, 0)
        assert (found.adjacency != graph.adjacency).nnz == 0
        np.testing.assert_array_equal(found.features, dense(graph))


def mask(graph: Graph, split: str) -> np.ndarray:
    return np.isin(np.arange(graph.num_nodes), graph.split(split))


def dense(graph: Graph) -> np.ndarray:
    return graph.features.toarray() if hasattr(graph.features, "toarray") else graph.features


def planetoid(graph: Graph, **others: Any) -> SimpleNamespace:
    """As ``torch_geometric.datasets.Planetoid(...)[0]`` has it."""
    data = SimpleNamespace(
        x=Tensor(dense(graph)),
        edge_index=Tensor(np.array(graph.adjacency.nonzero())),
        y=Tensor(graph.labels),
        **{f"{split}_mask": Tensor(mask(graph, split)) for split in ("train", "val", "test")},
    )
    data.__dict__.update(others)
    return data


def same(a: Graph, b: Graph) -> bool:
    arrays = [(dense(a), dense(b)), (a.labels, b.labels)]
    arrays += [(a.split(split), b.split(split)) for split in ("train", "val", "test")]
    return (a.adjacency != b.adjacency).nnz == 0 and all(np.array_equal(x, y) for x, y in arrays)


def test_a_planetoid_is_taken_over(graph: Graph) -> None:
    found = from_pyg(planetoid(graph), name="mine")
    assert same(found, graph)
    assert (found.name, found.directed, found.num_classes) == ("mine", False, 3)


def test_sparse_features_stay_sparse(graph: Graph) -> None:
    words = sp.random(graph.num_nodes, 9, 0.2, "coo", np.float32, np.random.default_rng(0))
    for x in (words, words.tocsc()):
        found = from_pyg(planetoid(graph, x=x)).features
        assert sp.issparse(found) and (found != words.tocsr()).nnz == 0
    torch = pytest.importorskip("torch", reason="there is no PyTorch")
    whole = torch.from_numpy(words.toarray())
    for x in (whole.to_sparse_coo(), whole.to_sparse_csr()):
        found = from_pyg(planetoid(graph, x=x)).features
        assert sp.issparse(found) and (found != words.tocsr()).nnz == 0


def test_weights_of_edges_are_noticed_and_edges_that_are_there_twice_are_none(
    graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = np.array(graph.adjacency.nonzero())
    assert not from_pyg(planetoid(graph, edge_index=np.concatenate([twice, twice], axis=1))).weighted
    assert prepare(["synthetic", "--out", str(tmp_path / "x.h5")]) == 0 and not capsys.readouterr().err
    write_npz(tmp_path / "g.npz", graph)
    with np.load(tmp_path / "g.npz") as file:
        arrays = dict(file)
    arrays["adj_data"] = arrays["adj_data"] * np.float32(0.5)
    np.savez(tmp_path / "g.npz", **arrays)
    assert load(str(tmp_path / "g.npz")).weighted
    assert prepare([str(tmp_path / "g.npz"), "--out", str(tmp_path / "x.h5")]) == 0
    said = f"pdadmm.prepare: warning: {tmp_path / 'g.npz'}: edges have weights; each counts as 1\n"
    assert capsys.readouterr().err == said


def test_a_graph_is_shown_in_a_line(graph: Graph) -> None:
    assert repr(graph).startswith("<Graph 'synthetic': 300 nodes, ") and "\n" not in repr(graph)
    assert len(repr(graph)) < 150


@pytest.mark.parametrize("mark", [-1, np.nan])
def test_nodes_without_a_label_are_in_no_split(graph: Graph, tmp_path: Path, mark: float) -> None:
    y = graph.labels.astype(np.float64)
    y[[3, 8, 200]] = mark
    none = {f"{split}_mask": None for split in ("train", "val", "test")}
    found = from_pyg(planetoid(graph, y=Tensor(y), **none))
    write_npz(tmp_path / "g.npz", found)
    again = load(str(tmp_path / "g.npz"))
    assert same(found, again)
    for taken in (found, again):
        assert taken.unlabelled.tolist() == [3, 8, 200]
        for split in ("train", "val", "test"):
            assert not set(taken.split(split)) & {3, 8, 200}
    np.testing.assert_array_equal(np.delete(again.labels, [3, 8, 200]), np.delete(graph.labels, [3, 8, 200]))
    y[graph.train[0]] = mark
    with pytest.raises(
        InputError, match=f"node {graph.train[0]} of the train split has no label; take it out"
    ):
        from_pyg(planetoid(graph, y=Tensor(y)))


def test_masks_in_a_file_are_its_split(graph: Graph, tmp_path: Path) -> None:
    write_npz(tmp_path / "g.npz", graph)
    with np.load(tmp_path / "g.npz") as arrays:
        others = {name: arrays[name] for name in arrays if not name.endswith("_idx")}
    masks = {f"{split}_mask": mask(graph, split) for split in ("train", "val", "test")}
    np.savez(tmp_path / "masks.npz", **others, **masks)
    assert same(load(str(tmp_path / "masks.npz")), graph)


def test_one_of_several_splits_and_ogb_s_ids(graph: Graph) -> None:
    masks = {
        f"{split}_mask": Tensor(np.stack([np.roll(mask(graph, split), i) for i in (5, 0)], axis=1))
        for split in ("train", "val", "test")
    }
    assert same(from_pyg(planetoid(graph, **masks), split=1), graph)
    assert same(from_pyg(planetoid(graph, **masks), split=cast(Any, np.int64(1))), graph)
    ids = {
        name: graph.split(split) for name, split in (("train", "train"), ("valid", "val"), ("test", "test"))
    }
    ogb = planetoid(graph, y=Tensor(graph.labels[:, None]), train_mask=None, val_mask=None, test_mask=None)
    assert same(from_pyg(ogb, split=ids), graph)
    drawn = from_pyg(ogb, seed=3)
    assert not set(drawn.train) & set(drawn.test)
    assert len(drawn.train) == 60


def test_directions_are_dropped_and_several_labels_kept(graph: Graph, tmp_path: Path) -> None:
    upper = np.array(graph.adjacency.nonzero())
    upper = upper[:, upper[0] < upper[1]]
    found = from_pyg(planetoid(graph, edge_index=upper))
    assert same(found, graph)
    assert found.directed
    several = (np.arange(300 * 4).reshape(300, 4) % 3 == 0).astype(np.float32)
    taken = from_pyg(planetoid(graph, y=several))
    assert np.array_equal(taken.labels, several)
    write_npz(tmp_path / "several.npz", taken)
    assert same(load(str(tmp_path / "several.npz")), taken)


def test_networkx(graph: Graph) -> None:
    networkx = pytest.importorskip("networkx")
    theirs = networkx.Graph()
    for i in range(graph.num_nodes):
        masks = {f"{split}_mask": bool(mask(graph, split)[i]) for split in ("train", "val", "test")}
        theirs.add_node(f"node {i}", words=list(dense(graph)[i]), topic=int(graph.labels[i]), **masks)
    rows, columns = graph.adjacency.nonzero()
    theirs.add_edges_from((f"node {i}", f"node {j}") for i, j in zip(rows, columns, strict=True) if i < j)
    found = from_networkx(theirs, features="words", label="topic")
    assert same(found, graph)
    assert not found.directed
    del theirs.nodes["node 7"]["topic"]
    with pytest.raises(InputError, match="node 'node 7' has no attribute 'topic'"):
        from_networkx(theirs, features="words", label="topic")
    theirs.nodes["node 7"]["topic"] = [1, 2]
    with pytest.raises(InputError, match=r"\(topic\): its rows are of different lengths"):
        from_networkx(theirs, features="words", label="topic")
    theirs.nodes["node 7"]["train_mask"] = [True, False]
    with pytest.raises(InputError, match=r"\(train_mask\): its rows are of different lengths"):
        from_networkx(theirs, features="words", label="topic")
    several = networkx.MultiDiGraph([(0, 1), (0, 1), (2, 1), (2, 3), (3, 0)])
    networkx.set_node_attributes(several, {i: i % 2 for i in range(4)}, "y")
    networkx.set_node_attributes(several, {i: float(i) for i in range(4)}, "x")
    networkx.set_node_attributes(several, {i: i < 2 for i in range(4)}, "train_mask")
    networkx.set_node_attributes(several, {i: i == 2 for i in range(4)}, "val_mask")
    networkx.set_node_attributes(several, {i: i == 3 for i in range(4)}, "test_mask")
    found = from_networkx(several)
    assert found.directed
    assert found.adjacency.toarray().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]


@pytest.mark.parametrize("sparse", [False, True])
def test_from_an_object_to_a_trained_network(graph: Graph, sparse: bool, tmp_path: Path) -> None:
    found = from_pyg(planetoid(graph))
    if sparse:
        found.features = sp.csr_matrix(found.features)
    path = tmp_path / "mine.npz"
    write_npz(path, found)
    assert same(load(path), graph)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.npz"]
    succeed(python("-m", "pdadmm.prepare", path, "--hops", "2", "--out", tmp_path / "mine.h5"))
    options = ["--layers", "2", "--iterations", "30", "--out", tmp_path / "run", "--quiet"]
    succeed(python("-m", "pdadmm.run", tmp_path / "mine.h5", *options))
    assert summary_of(tmp_path / "run")["test_accuracy"] > 0.5
    succeed(python("-m", "pdadmm.gnn.prepare", path, "--parts", "2", "--out", tmp_path / "parts.h5"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": None}, "has no x"),
        ({"edge_index": np.ones((3, 4), int)}, "integers \\(2, E\\)"),
        ({"edge_index": np.array([[0], [300]])}, "node 300 or 0 of 300"),
        ({"y": np.linspace(0, 1, 300)}, "whole number"),
        ({"val_mask": None}, "all three or none"),
        ({"x": np.ones(300)}, "nodes, features"),
        ({"train_mask": np.ones(10, bool)}, r"\(train_mask\): is bool \(10,\); a mask is true or false"),
        ({"test_mask": np.arange(300)}, r"\(test_mask\): is int64 \(300,\); a mask is true or false"),
        ({"val_mask": np.full(300, 0.5)}, r"\(val_mask\): is float64"),
        ({"edge_index": [[0, 1], [1]]}, r"\(edge_index\): its rows are of different lengths"),
        ({"x": [[0.0], [1.0, 2.0]]}, r"\(x\): its rows are of different lengths"),
        ({"y": [[0], [1, 2]]}, r"\(y\): its rows are of different lengths"),
    ],
)
def test_what_is_no_graph_is_refused(graph: Graph, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        from_pyg(planetoid(graph, **change))


def test_what_cannot_be_written_leaves_nothing(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.npz"):
        write_npz(tmp_path / "mine.gz", graph)
    with pytest.raises(OSError, match="nowhere"):
        write_npz(tmp_path / "nowhere" / "mine.npz", graph)
    with pytest.raises(InputError, match="seed -1 is negative"):
        from_pyg(planetoid(graph), seed=-1)
    with pytest.raises(InputError, match=r"classes is 3\.0; give a whole number"):
        from_pyg(planetoid(graph), classes=cast(Any, 3.0))
    with pytest.raises(InputError, match="no split '0'"):
        from_pyg(planetoid(graph, train_mask=np.ones((300, 2), bool)), split="0")
    with pytest.raises(InputError, match="no split 3"):
        from_pyg(planetoid(graph, train_mask=np.ones((300, 2), bool)), split=3)
    assert list(tmp_path.iterdir()) == []
