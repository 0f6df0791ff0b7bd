"""Weights of layer 1 in the row space of X: the same iterates as written out, in fewer operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from support import python, records_of, succeed, weights_of

from pdadmm.admm import command, trainer, updates
from pdadmm.admm.options import parse
from pdadmm.admm.passes.reference import ReferencePasses
from pdadmm.admm.trainer import Sizes, Trainer
from pdadmm.admm.weights import DenseWeights, RowSpaceWeights
from pdadmm.arrays import squared_norm
from pdadmm.arrays.backend import NUMPY
from pdadmm.arrays.workspace import Workspace
from pdadmm.comm.waiter import Waiter


def gradient(rows: RowSpaceWeights, M: Any, inputs: Any, nu: float, mu: float, passes: Any, work: Any) -> Any:
    total = rows.gradient_share(M, inputs, work)
    return rows.gradient(total, inputs, nu, mu, passes, work, lambda phase: None)


@pytest.mark.parametrize("step", ["exact", "doubling"])
@pytest.mark.parametrize(("V", "n_in"), [(20, 70), (40, 40), (1, 3)])
@pytest.mark.parametrize("mu", [0.0, 0.01, 0.5])
def test_steps_are_those_of_the_written_out_weights(V: int, n_in: int, step: str, mu: float) -> None:
    """Against float64 and the plain updates, over steps that go on until the gradient is small."""
    rng = np.random.default_rng(V)
    n_out, nu = 6, 0.3
    X = rng.standard_normal((V, n_in)) + 0.5
    W = rng.standard_normal((n_out, n_in)) * np.sqrt(2 / n_in)
    z = rng.standard_normal((V, n_out))
    rows = RowSpaceWeights(X.astype(np.float32), W.astype(np.float32), NUMPY)
    trained = rows.inputs_of(X.astype(np.float32))
    passes, work = ReferencePasses(), Workspace()
    first = None
    for _ in range(150):
        z = z + 0.02 * rng.standard_normal(z.shape)
        M = X @ W.T - z
        G = updates.weight_gradient(M.T @ X, W, 0.0, nu, mu)
        norm, image = squared_norm(G), squared_norm(X @ G.T)
        length = updates.step_length(mu, nu, image, norm, step)
        found, K = gradient(rows, M.astype(np.float32), trained, nu, mu, passes, work)
        first = first or norm
        assert found == pytest.approx(norm, rel=1e-3, abs=1e-6 * first)
        np.testing.assert_allclose(K, X @ G.T, atol=1e-4 * np.sqrt(first))
        rows.step(length, passes)
        W = W - length * G
    assert norm < 0.2 * first
    np.testing.assert_allclose(rows.written_out(), W, rtol=1e-3, atol=2e-4)
    assert rows.penalty() == pytest.approx((W * W).sum(), rel=1e-4)
    x = rng.standard_normal((7, n_in))
    np.testing.assert_allclose(rows.linear(rows.inputs_of(x.astype(np.float32))), x @ W.T, atol=2e-3)


@pytest.mark.parametrize("mu", [0.0, 0.01])
def test_every_neuron_may_have_a_length_of_its_own(mu: float) -> None:
    rng = np.random.default_rng(3)
    V, n_in, n_out, nu = 20, 70, 6, 0.3
    X = rng.standard_normal((V, n_in)) + 0.5
    W = rng.standard_normal((n_out, n_in)) * np.sqrt(2 / n_in)
    z = rng.standard_normal((V, n_out)) * np.arange(1, n_out + 1)
    rows = RowSpaceWeights(X.astype(np.float32), W.astype(np.float32), NUMPY, lines=True)
    again = RowSpaceWeights(X.astype(np.float32), W.astype(np.float32), NUMPY, lines=True)
    trained = rows.inputs_of(X.astype(np.float32))
    passes, work, lengths = ReferencePasses(), Workspace(), np.empty(n_out)
    for _ in range(60):
        M = X @ W.T - z
        G = updates.weight_gradient(M.T @ X, W, 0.0, nu, mu)
        norms, images = (G**2).sum(axis=1), ((X @ G.T) ** 2).sum(axis=0)
        wanted = updates.line_lengths(mu, nu, images, norms)
        norm, K = gradient(rows, M.astype(np.float32), trained, nu, mu, passes, work)
        assert norm == pytest.approx(norms.sum(), rel=1e-2)
        decrease = rows.line_search(passes.column_squares(K), nu, lengths, passes)
        np.testing.assert_allclose(lengths, wanted, rtol=1e-2)
        assert decrease == pytest.approx(wanted @ norms, rel=2e-2)
        W = W - wanted[:, None] * G
    np.testing.assert_allclose(rows.written_out(), W, rtol=1e-2, atol=2e-3)
    assert rows.penalty() == pytest.approx((W * W).sum(), rel=1e-3)
    again.restore(rows.state())
    np.testing.assert_array_equal(again.written_out(), rows.written_out())


def trained(path: Path, options: str) -> tuple[Trainer, list[dict[str, Any]]]:
    config = parse([str(path), *options.split(), "--eval-every", "10"])
    command.resolve(config, 1)
    with command.open_features(str(path)) as features:
        sizes = Sizes.of(features)
    records: list[dict[str, Any]] = []
    waiter = Waiter(MPI.COMM_SELF)
    found = Trainer(config, sizes, lambda: command.open_features(str(path)), waiter, progress=records.append)
    found.run()
    return found, records


@pytest.mark.parametrize("codec", ["float32", "delta"])
def test_a_run_is_that_of_the_written_out_weights(
    codec: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = f"--layers 4 --stages 2,4 --hidden 30 --iterations 40 --codec {codec}"
    kept, records = trained(small, options)
    assert kept.in_row_space
    monkeypatch.setattr(trainer, "in_row_space", lambda *_: False)
    plain, plain_records = trained(small, options)
    assert not plain.in_row_space and isinstance(plain.layers[1].weights, DenseWeights)

    def same(name: str, **tolerance: Any) -> None:
        a, b = ([r[name] for r in found] for found in (records, plain_records))
        np.testing.assert_allclose(a, b, **tolerance)

    same("objective", rtol=1e-3)
    same("train_loss", rtol=2e-3)
    same("val_accuracy", atol=0.011)
    np.testing.assert_allclose(kept.layers[1].W, plain.layers[1].W, atol=2e-3)


def test_more_nodes_than_inputs_the_exact_solver_and_mu_of_0_write_them_out(small: Path) -> None:
    config = parse([str(small), "--layers", "2"])
    wide = Sizes("x", 100, 50, 3, {"train": 100, "val": 1, "test": 1})
    tall = Sizes("x", 99, 99, 3, {"train": 100, "val": 1, "test": 1})
    assert trainer.in_row_space(config, wide) and not trainer.in_row_space(config, tall)
    config.run.as_sharded = True
    assert not trainer.in_row_space(config, wide)
    config.run.as_sharded = False
    config.training.solver = "exact"
    assert not trainer.in_row_space(config, wide)
    config.training.solver, config.training.mu = "gradient", 0.0
    assert not trainer.in_row_space(config, wide)


def test_equal_nodes_with_different_targets_stay_with_the_written_out_weights() -> None:
    """The residual ends in the null space of X X^T, where its image is rounding."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 60))
    X[10:] = X[:10]
    W, z, nu, mu = rng.standard_normal((4, 60)) * 0.2, rng.standard_normal((20, 4)), 0.01, 0.001
    rows = RowSpaceWeights(X.astype(np.float32), W.astype(np.float32), NUMPY)
    trained = rows.inputs_of(X.astype(np.float32))
    passes, work = ReferencePasses(), Workspace()
    for _ in range(3000):
        M = rows.linear(trained) - z.astype(np.float32)
        norm, K = gradient(rows, M, trained, nu, mu, passes, work)
        rows.step(updates.step_length(mu, nu, squared_norm(K), norm, "exact"), passes)
        G = updates.weight_gradient((X @ W.T - z).T @ X, W, 0.0, nu, mu)
        image = squared_norm(X @ G.T)
        W = W - updates.step_length(mu, nu, image, squared_norm(G), "exact") * G
    np.testing.assert_allclose(rows.written_out(), W, atol=1e-3)


def test_iterates_do_not_depend_on_the_ranks_with_more_nodes_than_inputs(mpirun: Any, tmp_path: Path) -> None:
    data = tmp_path / "tall.h5"
    shape = "--synthetic-nodes 400 --synthetic-features 30 --synthetic-train-per-class 20 --hops 1"
    succeed(python("-m", "pdadmm.prepare", "synthetic", *shape.split(), "--out", data))
    options = "--layers 3 --stages 2,3 --hidden 20 --iterations 15 --quiet --eval-every 5"
    for ranks in (1, 3):
        succeed(mpirun(ranks, "-m", "pdadmm.run", data, *options.split(), "--out", tmp_path / str(ranks)))
    for a, b in zip(*(weights_of(tmp_path / r / "model.h5") for r in ("1", "3")), strict=True):
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    lines = [[r["objective"] for r in records_of(tmp_path / r)] for r in ("1", "3")]
    assert lines[0] == lines[1]
