"""Graph networks against PyTorch: gradients and steps against autograd and torch's Adam, exported models.

The network is written down in torch on a dense adjacency, from the papers' formulae. All but the names of
an exported model needs torch (`make test-torch` installs it, with PyG).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from graph_networks import Copies, Source, network_of, weights_of
from mpi4py import MPI
from support import Finished, python, succeed, words
from test_gnn_gradients import SHAPES, summed
from test_gnn_run import PREPARE

from pdadmm.comm.waiter import Waiter
from pdadmm.gnn.equations import dropout_keeps, softmax_cross_entropy
from pdadmm.gnn.export import state_dict
from pdadmm.gnn.layer import Network, Shape
from pdadmm.gnn.model_file import read_model
from pdadmm.gnn.optimiser import Parameters
from pdadmm.gnn.part import Part
from pdadmm.gnn.passes.protocol import Drop
from pdadmm.gnn.passes.reference import ReferencePasses
from pdadmm.gnn.products import Products
from pdadmm.inputs.graph_file import GraphFile

RATE = 0.4
MPIRun = Callable[..., Finished]


def dense_weights(source: Source, model: str) -> np.ndarray:
    """What a layer aggregates with, (n, n) float64, in the numbering of the data set."""
    A = source.original.toarray()
    if model == "gcn":
        A = A + np.eye(len(A))
        scale = 1 / np.sqrt(A.sum(axis=1))
        return A * scale[:, None] * scale[None, :]
    return A / np.maximum(A.sum(axis=1, keepdims=True), 1)


class Autograd:
    """The network in torch, all nodes at once."""

    def __init__(self, source: Source, shape: Shape, weights: dict[int, dict[str, np.ndarray]]) -> None:
        self.torch = torch = pytest.importorskip("torch")
        self.shape = shape
        as_tensor = torch.from_numpy
        self.A = as_tensor(dense_weights(source, shape.model))
        self.x = as_tensor(source.x_original.astype(np.float64))
        self.y = as_tensor(source.y_original.astype(np.int64))
        self.train = as_tensor(source.split_original == 1)
        self.weights = {
            layer: {name: as_tensor(np.array(w, np.float64)).requires_grad_() for name, w in named.items()}
            for layer, named in weights.items()
        }
        self.nodes = np.arange(source.num_nodes)

    def output(self, keys: dict[int, int]) -> object:
        torch, H = self.torch, self.x
        for layer, w in self.weights.items():
            if self.shape.model == "gcn":
                Z = self.A @ H @ w["W"].T + w["b"]
            else:
                Z = H @ w["W_self"].T + (self.A @ H) @ w["W_neighbours"].T + w["b"]
            if layer == self.shape.layers:
                return Z
            kept = dropout_keeps(RATE, keys[layer], self.nodes, Z.shape[1]).astype(np.float64)
            mask = torch.from_numpy(kept) / (1 - RATE)
            normalise = torch.nn.functional.layer_norm
            if self.shape.dropped_first:
                H = torch.relu(normalise(Z * mask, Z.shape[1:], w["gamma"], w["beta"]))
            else:
                H = torch.relu(normalise(Z, Z.shape[1:], w["gamma"], w["beta"])) * mask
        raise AssertionError("no layers")

    def loss(self, keys: dict[int, int]) -> object:
        output = self.output(keys)
        return self.torch.nn.functional.cross_entropy(
            output[self.train], self.y[self.train], reduction="sum"  # type: ignore[index]
        )  # fmt: skip


def keys_of(epoch: int) -> dict[int, int]:
    return {layer: 1000 * epoch + layer for layer in range(1, 4)}


def backward(
    source: Source,
    network: Network,
    parts: dict[int, Part],
    shape: Shape,
    epoch: int,
    ready: Callable[[int], None],
) -> float:
    """Summed loss of an epoch; gradients are in the network's arrays then."""
    drops = {
        layer: Drop(RATE, key, shape.dropped_first)
        for layer, key in keys_of(epoch).items()
        if layer < shape.layers
    }
    halos = Copies(parts)
    network.forward(halos, drops)
    total = 0.0
    for number, part in parts.items():
        ids = source.id[part.rows]
        train = source.split_original[ids] == 1
        losses, G = softmax_cross_entropy(network.output(number), source.y_original[ids])
        total += float(losses[train].sum())
        network.output_gradient(number)[:] = G * train[:, None]
    network.backward(halos, drops, ready)
    return total


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_autograd(shape: Shape, parts: int) -> None:
    source, weights = Source(parts), weights_of(shape)
    reference = Autograd(source, shape, weights)
    expected = reference.loss(keys_of(1))
    expected.backward()  # type: ignore[attr-defined]
    network, cut, gradients = network_of(source, shape, weights)
    found = backward(source, network, cut, shape, 1, lambda layer: None)
    assert found == pytest.approx(float(expected.detach()), rel=1e-10)  # type: ignore[attr-defined]
    for layer, named in reference.weights.items():
        for name, tensor in named.items():
            wanted = tensor.grad.numpy()  # type: ignore[union-attr]
            error = np.abs(summed(gradients, layer, name) - wanted).max()
            assert error <= 1e-5 * np.abs(wanted).max() + 1e-12, (layer, name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ten_steps_equal_those_of_torch(shape: Shape) -> None:
    """The float32 program against float64 torch: weights after 10 steps of Adam."""
    parts_number, rate, decay = 3, 0.01, 5e-4
    source = Source(parts_number)
    owners = [range(parts_number)]
    passes = ReferencePasses()
    parameters = Parameters(shape, owners[0], owners, Waiter(MPI.COMM_SELF), passes, seed=3)
    reference = Autograd(source, shape, {k: dict(v) for k, v in parameters.weights.items()})
    tensors = [w for named in reference.weights.values() for w in named.values()]
    optimiser = reference.torch.optim.Adam(tensors, lr=rate, weight_decay=decay)
    network, parts, _ = network_of(source, shape, parameters.weights, np.float32)
    network = Network(
        shape, parts, network._inputs, network._own, parameters.weights, parameters.gradients, passes,
        Products(), np.float32,
    )  # fmt: skip
    examples = int((source.split_original == 1).sum())
    start = {k: {n: w.copy() for n, w in v.items()} for k, v in parameters.weights.items()}
    for epoch in range(1, 11):
        backward(source, network, parts, shape, epoch, parameters.ready)
        parameters.update(examples, rate, decay)
        optimiser.zero_grad()
        (reference.loss(keys_of(epoch)) / examples).backward()  # type: ignore[operator]
        optimiser.step()
    for layer, named in reference.weights.items():
        for name, tensor in named.items():
            wanted, found = tensor.detach().numpy(), parameters.weights[layer][name]
            assert np.abs(found - wanted).max() <= 1e-4 * max(np.abs(wanted).max(), 1e-2), (layer, name)
            assert np.abs(wanted - start[layer][name]).max() > 0.01  # it has moved


# ---- export -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gcn", "sage"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A graph and a run on it."""
    folder = tmp_path_factory.mktemp(f"export-{request.param}")
    graph, run = folder / "g.h5", folder / "run"
    options = words(f"synthetic --parts 2 --partitioner blocks {PREPARE}")
    succeed(python("-m", "pdadmm.gnn.prepare", *options, "--out", graph))
    options = words(f"--model {request.param} --epochs 20 --hidden 12 --quiet")
    succeed(python("-m", "pdadmm.gnn.run", graph, *options, "--out", run))
    return graph, run


def test_exported_tensors_have_pyg_s_names_and_shapes(trained: tuple[Path, Path]) -> None:
    shape, weights, *_ = read_model(trained[1] / "model.h5")
    found = state_dict(shape, weights)
    of_gcn = shape.model == "gcn"
    convolutions = ["bias", "lin.weight"] if of_gcn else ["lin_l.bias", "lin_l.weight", "lin_r.weight"]
    assert set(found) == {f"convs.{i}.{name}" for i, name in itertools.product(range(3), convolutions)} | {
        f"norms.{i}.{name}" for i, name in itertools.product(range(2), ("weight", "bias"))
    }
    with h5py.File(trained[1] / "model.h5") as file:
        first = file["layer_0001"]
        weight = "lin.weight" if of_gcn else "lin_l.weight"
        np.testing.assert_array_equal(found[f"convs.0.{weight}"], first["W" if of_gcn else "W_neighbours"])
        np.testing.assert_array_equal(found["norms.0.weight"], first["gamma"])


def test_an_exported_model_scores_as_predict_does(trained: tuple[Path, Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torch_geometric.nn")
    graph, run = trained
    out = tmp_path / "model.pt"
    said = succeed(python("-m", "pdadmm.gnn.export", run, "--out", out)).out
    # the line that the command prints, as a user would take it over
    expression = said.strip().split("torch_geometric.nn.", 1)[1]
    network = eval(expression, {"GCN": models.GCN, "GraphSAGE": models.GraphSAGE})
    network.load_state_dict(torch.load(out), strict=True)
    network.eval()
    succeed(python("-m", "pdadmm.gnn.predict", run, graph, "--out", tmp_path / "p.h5"))
    with GraphFile(str(graph)) as source:
        n = source.num_nodes
        indptr, indices = source.adjacency(0, n)
        x = sp.csr_matrix(source.features(0, n)).toarray().astype(np.float32)
        nodes = source.node_id(slice(0, n))
    edges = np.stack([np.asarray(indices, np.int64), np.repeat(np.arange(n), np.diff(indptr))])
    with torch.no_grad():
        scores = network(torch.from_numpy(x), torch.from_numpy(edges)).numpy()
    with h5py.File(tmp_path / "p.h5") as file:
        wanted = file["scores"][:][nodes]
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_export_replaces_nothing_and_refuses_what_is_no_run(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    mine = tmp_path / "mine.pt"
    mine.write_text("mine")
    for arguments in ([trained[1], "--out", mine], [tmp_path, "--out", tmp_path / "new.pt"],
                      [trained[1], "--out", tmp_path / "no" / "such.pt"]):  # fmt: skip
        found = python("-m", "pdadmm.gnn.export", *arguments)
        assert found.code == 2 and len(found.err.strip().splitlines()) == 1
    assert mine.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["mine.pt"]


def test_export_without_torch_says_what_to_install(trained: tuple[Path, Path], tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from pdadmm.gnn.export import main; sys.exit(main())"
    found = python("-c", program, trained[1], "--out", tmp_path / "m.pt")
    assert found.code == 2 and "pip install torch" in found.err and not list(tmp_path.iterdir())


def test_a_safetensors_file_needs_no_torch(trained: tuple[Path, Path], tmp_path: Path) -> None:
    safe = pytest.importorskip("safetensors")
    program = "import sys; sys.modules['torch'] = None; from pdadmm.gnn.export import main; sys.exit(main())"
    out = tmp_path / "m.safetensors"
    said = succeed(python("-c", program, trained[1], "--out", out)).out
    shape, weights, *_ = read_model(trained[1] / "model.h5")
    wanted = state_dict(shape, weights)
    with safe.safe_open(out, "numpy") as file:
        assert set(file.keys()) == set(wanted)
        for name in file.keys():  # noqa: SIM118  (it is no mapping)
            np.testing.assert_array_equal(file.get_tensor(name), wanted[name])
        assert file.metadata()["model"] in said
    program = program.replace("'torch'", "'safetensors.numpy'")
    found = python("-c", program, trained[1], "--out", tmp_path / "n.safetensors")
    assert found.code == 2 and "pip install 'pdadmm[safetensors]'" in found.err
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
