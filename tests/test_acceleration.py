"""Damping, momentum and the centre of the z-update, seen at the layers of a stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pdadmm.admm import updates
from pdadmm.admm.activations import ReLU
from pdadmm.admm.growth import random_layer
from pdadmm.admm.layer import Hyper, Layer
from pdadmm.admm.passes import select_passes
from pdadmm.admm.stage import Plan, Stage
from pdadmm.arrays.backend import NUMPY
from pdadmm.codec import Float32Codec
from pdadmm.comm.mpi import MPITransport
from pdadmm.trace.clock import Clock

NU, RHO, MU = 0.02, 0.1, 0.3


@pytest.fixture(params=["reference", "fused"])
def kernels(request: pytest.FixtureRequest) -> Any:
    return select_passes(request.param, 1, "numpy")


def layers_of(
    kernels: Any,
    iterations: int,
    solver: str = "exact",
    *,
    mean: float = 1.0,
    spread: float = 1.0,
    inputs: int = 9,
    mu: float = MU,
    **options: Any,
) -> list[Layer]:
    """Layers of a stage of three after some iterations, on 60 nodes."""
    widths = [inputs, 8, 8, 4]
    layers = [
        random_layer(i, widths[i - 1], widths[i], ReLU() if i < 3 else None, 0).to(NUMPY) for i in range(1, 4)
    ]
    nobody: Any = None
    stage = Stage(Plan(3, 3, [range(1, 4)], 0), layers, nobody, Clock(), transport=MPITransport(nobody))
    rng = np.random.default_rng(0)
    X = (spread * rng.standard_normal((60, inputs)) + mean).astype(np.float32)
    hyper = Hyper(NU, RHO, mu, solver, "exact", 25, "cross_entropy", **options)
    stage.start(X, rng.integers(0, 4, 60), 60, lambda start: Float32Codec(), hyper, kernels, 0)
    for i in range(iterations):
        stage.iterate(i, False)
    return layers


def test_damping_is_in_mean_eigenvalues_of_the_gram_matrix(kernels: Any) -> None:
    """The update solves the ridge regression with both pulls; the reference forms the Gram matrix itself."""
    for layer in layers_of(kernels, 2, damping=0.7):
        W = layer.W.astype(np.float64)
        weight = 0.7 * NU * np.linalg.eigvalsh(updates.centred_gram(layer.p)).mean()
        anchor = weight * W / (MU + weight)
        wanted, _ = updates.exact_weights(
            layer.p.astype(float), layer.z.astype(float), anchor, NU, MU + weight
        )
        layer.update_weights(2)
        np.testing.assert_allclose(layer.W, wanted, rtol=1e-3, atol=1e-4)
        assert np.abs(layer.W - W).max() > 1e-3  # or the comparison would say nothing


@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("mu", [0.3, 1e-6])
@pytest.mark.parametrize("inputs", [9, 90])  # more than the nodes: the dual system
def test_the_regression_bears_large_means_and_small_penalties(
    kernels: Any, inputs: int, mu: float, mean: float
) -> None:
    """Against the same in float64: the cost is within a thousandth of the least."""
    for number, layer in enumerate(layers_of(kernels, 2, mean=mean, mu=mu, inputs=inputs)):
        if number:  # a hidden layer's inputs have such means, too
            layer.p += np.float32(mean)
        p, z = layer.p.astype(float), layer.z.astype(float)

        def cost(W: Any, b: Any, p: Any = p, z: Any = z) -> float:
            return float(NU * ((p @ W.T + b - z) ** 2).sum() + mu * (W**2).sum())

        wanted, b = updates.exact_weights(p, z, 0.0, NU, mu)
        layer.weights.W_bar = 0.0
        layer.update_weights(2)
        least, floor = cost(wanted, b), 1e-7 * float((z**2).sum())
        assert cost(layer.W.astype(float), layer.b.astype(float)) <= least * 1.001 + floor


@pytest.mark.parametrize("inputs", [9, 90])
def test_the_system_of_layer_1_is_made_once_for_every_penalty(
    kernels: Any, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layers_of(kernels, 1, inputs=inputs)[0]
    p, z = layer.p.astype(float), layer.z.astype(float)
    layer.weights.W_bar = 0.0
    made: list[float] = []
    make = type(kernels).system

    def counted(self: Any, gram: Any, penalty: float) -> Any:
        made.append(penalty)
        return make(self, gram, penalty)

    monkeypatch.setattr(type(kernels), "system", counted)
    found = []
    for nu in (NU, NU, 0.2 * NU, 0.2 * NU, 5 * NU):  # the authors' schedule changes it
        layer.hyper.nu = nu
        layer.update_weights(1)
        found.append(layer.W.copy())
        wanted, _ = updates.exact_weights(p, z, 0.0, nu, MU)
        np.testing.assert_allclose(layer.W, wanted, rtol=1e-3, atol=1e-4)
    assert made == [MU / (0.2 * NU), MU / (5 * NU)]  # that of NU is there from the iteration before
    assert np.abs(found[0] - found[2]).max() > 1e-2


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_inputs_that_do_not_vary_leave_the_weights_finite(kernels: Any, damping: float) -> None:
    for layer in layers_of(kernels, 3, mean=0.7, spread=0.0, mu=0.0, damping=damping):
        assert np.isfinite(layer.W).all() and np.isfinite(layer.b).all()


def test_momentum_repeats_a_share_of_the_last_change_in_hidden_layers(kernels: Any) -> None:
    before, after = (layers_of(kernels, n, momentum=0.8, damping=1.0) for n in (2, 3))
    for old, new in zip(before, after, strict=True):
        step_W, step_b = (old.steps.get(name, 0.0) for name in "Wb")
        # the weights that come without momentum, from the p and z that the third iteration had
        old.p[...] = new.p
        W, b = old.W.copy(), old.b.copy()
        old.steps = {}
        old.update_weights(2)
        np.testing.assert_allclose(new.W, old.W + 0.8 * step_W, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(new.b, old.b + 0.8 * step_b, rtol=1e-4, atol=1e-5)
        if new.activation is None:
            assert new.steps == {}
        else:
            assert np.abs(0.8 * step_W).max() > 1e-3
            np.testing.assert_allclose(new.steps["W"], new.W - W, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(new.steps["b"], new.b - b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["gradient", "exact"])
def test_linear_centre_leaves_the_last_z_without_influence(kernels: Any, solver: str) -> None:
    layers = layers_of(kernels, 3, solver, z_centre="linear")
    old = [(layer.z.copy(), layer.above.own.copy()) for layer in layers[:-1]]  # type: ignore[union-attr]
    for layer in reversed(layers):
        layer.update_p(3)
    for layer in layers:
        layer.update_weights(3)
    for layer, (z, q) in zip(layers[:-1], old, strict=True):
        a = layer.linear(layer.p)
        found = layer.update_outputs(3, True)
        assert found is not None
        np.testing.assert_allclose(layer.z, updates.z_update(a, q, a, ReLU()), rtol=1e-4, atol=1e-4)
        assert np.abs(layer.z - updates.z_update(a, q, z, ReLU())).max() > 1e-2
        np.testing.assert_allclose(layer.M, a - layer.z, rtol=1e-4, atol=1e-4)
        assert found.change >= 0.5 * NU * ((layer.z - z) ** 2).sum() * (1 - 1e-5)
