"""An iteration as a stage makes it, held against the equations in float64, whatever makes the passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pdadmm.admm import updates
from pdadmm.admm.activations import make_activation
from pdadmm.admm.growth import random_layer
from pdadmm.admm.layer import Hyper, Layer
from pdadmm.admm.passes import select_passes
from pdadmm.admm.stage import Plan, Stage
from pdadmm.arrays.backend import NUMPY
from pdadmm.codec import make_codec
from pdadmm.comm.mpi import MPITransport
from pdadmm.trace.clock import Clock

NU, RHO, MU = 0.02, 0.1, 0.3
CODECS = {
    "float32": ("float32", 32, None),
    "delta": ("delta", 4, None),
    "affine": ("affine", 8, None),
    "grid 4": ("grid", 4, (-2.0, 4.0)),
    "grid 2": ("grid", 2, (-2.0, 4.0)),
}
METHODS = {
    "exact length": {"solver": "gradient", "step": "exact"},
    "row": {"solver": "gradient", "step": "row"},
    "doubling": {"solver": "gradient", "step": "doubling"},
    "linear centre": {"solver": "gradient", "step": "exact", "z_centre": "linear"},
    "exact solver": {"solver": "exact", "step": "exact"},
}


def stage_of(
    kernels: str, codec: str, method: str, activation: str = "relu", refresh: int = 10**9, nodes: int = 60
) -> tuple[Stage, list[Layer]]:
    """A stage of four layers that has begun."""
    widths = [9, 8, 8, 8, 4]
    f = make_activation(activation)
    layers = [
        random_layer(i, widths[i - 1], widths[i], f if i < 4 else None, 0).to(NUMPY) for i in range(1, 5)
    ]
    nobody: Any = None
    stage = Stage(Plan(4, 4, [range(1, 5)], 0), layers, nobody, Clock(), transport=MPITransport(nobody))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((nodes, 9)).astype(np.float32)
    options: dict[str, Any] = METHODS[method]
    hyper = Hyper(NU, RHO, MU, refresh=refresh, risk="cross_entropy", **options)
    passes = select_passes(kernels, 1, "numpy")
    stage.start(
        X, rng.integers(0, 4, nodes), nodes, lambda start: make_codec(*CODECS[codec]), hyper, passes, 0
    )
    return stage, layers


def residual(layer: Layer) -> Any:
    """``p W^T + b - z`` in float64."""
    p, W, b, z = (x.astype(np.float64) for x in (layer.p, layer.W, layer.b, layer.z))
    return p @ W.T + b - z


@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "exact solver"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_residual_is_carried_along(kernels: str, activation: str, method: str, codec: str) -> None:
    """It is never computed anew here, through 20 iterations, and stays that of p, W, b and z."""
    stage, layers = stage_of(kernels, codec, method, activation)
    for i in range(20):
        stage.iterate(i, False)
        for layer in layers:
            scale = 1 + np.abs(layer.p @ layer.W.T).max()
            np.testing.assert_allclose(layer.M, residual(layer), atol=2e-5 * scale, err_msg=f"iteration {i}")


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_the_residual_is_refreshed_when_it_is_due(kernels: str) -> None:
    stage, layers = stage_of(kernels, "float32", "exact length", refresh=3)
    for i in range(3):
        stage.iterate(i, False)
    for layer in layers:
        layer.M += 1
    stage.iterate(3, False)
    for layer in layers:
        np.testing.assert_allclose(layer.M, residual(layer), atol=1e-4)


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_the_exact_step_ends_where_the_gradient_of_p_vanishes(kernels: str) -> None:
    stage, layers = stage_of(kernels, "float32", "exact solver")
    for i in range(3):
        stage.iterate(i, False)
    for layer in layers[:0:-1]:
        end: Any = layer.below
        u, q = end.u.astype(np.float64).copy(), end.other_hat.astype(np.float64).copy()
        layer.update_p(3)
        if not end.shared:
            u, q = end.u.astype(np.float64), end.other_hat.astype(np.float64)
        W, p = layer.W.astype(np.float64), layer.p.astype(np.float64)
        M = p @ W.T + layer.b - layer.z
        gradient = updates.p_gradient(M @ W, p, q, u, NU, RHO)
        assert np.abs(gradient).max() < 1e-4 * np.abs(RHO * p).max()


@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("method", ["exact length", "doubling"])
@pytest.mark.parametrize("codec", ["grid 4", "grid 2"])
@pytest.mark.parametrize("nodes", [60, 200])  # few, and many for their 8 or 9 inputs
def test_a_projected_step_decreases_sufficiently(kernels: str, method: str, codec: str, nodes: int) -> None:
    """And is the one that the equations find in float64; p begins off the grid, and ends on it."""
    grid = make_codec(*CODECS[codec])
    assert hasattr(grid, "project")
    _, layers = stage_of(kernels, codec, method, nodes=nodes)
    moved = 0
    for i in range(12):
        for layer in layers[:0:-1]:
            end: Any = layer.below
            before = end.own.astype(np.float64).copy()
            u, q = end.u.astype(np.float64).copy(), end.other_hat.astype(np.float64).copy()
            W = layer.W.astype(np.float64)
            G = updates.p_gradient(residual(layer) @ W, before, q, u, NU, RHO)
            layer.update_p(i)
            step = "doubling" if method == "doubling" else "exact"
            wanted, _, length = updates.projected_step(
                before, G, float((G**2).sum()), W, NU, RHO, step, grid.project
            )
            change = end.own.astype(np.float64) - before
            np.testing.assert_allclose(grid.project(end.own), end.own, atol=1e-6)
            # single precision may round a few entries to the other neighbour
            assert np.mean(np.abs(change - wanted) > 1e-3) < 0.02
            if length:
                moved += 1
                square = float((change**2).sum())
                assert (1 + 1e-3) * square / length >= RHO * square + NU * float(((change @ W.T) ** 2).sum())
        layers[0].update_p(i)
        for layer in layers:
            layer.update_weights(i)
        for layer in layers:
            layer.update_outputs(i, False)
    assert moved > 10


@pytest.mark.parametrize("scale", [1.0, 1e-17, 1e14])
@pytest.mark.parametrize("nodes", [60, 200])
def test_the_norm_of_an_image_is_that_in_float64(nodes: int, scale: float) -> None:
    """However it is formed."""
    _, layers = stage_of("fused", "grid 4", "exact length", nodes=nodes)
    G = np.random.default_rng(1).standard_normal((nodes, 8)).astype(np.float32) * np.float32(scale)
    for layer in layers[1:]:
        layer.W[...] *= np.float32(100)
        wanted = ((G.astype(np.float64) @ layer.W.T.astype(np.float64)) ** 2).sum()
        assert layer._image_norm(G) == pytest.approx(wanted, rel=1e-5)
