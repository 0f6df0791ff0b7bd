"""The update equations against the authors' iterates, finite differences and general-purpose solvers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from scipy.special import logsumexp

from pdadmm.admm import updates
from pdadmm.admm.activations import make_activation
from pdadmm.arrays import squared_norm
from pdadmm.codec import GridCodec

GRID = GridCodec(8, -1.0, 2.0)


# ---- the authors' iterates ------------------------------------------------------------------------


@pytest.fixture(params=[(case, dtype) for case in range(4) for dtype in ("float64", "float32")], ids=str)
def authors(request: pytest.FixtureRequest, shared: Path) -> dict[str, Any]:
    """One case of the authors' inputs and outputs, nodes first."""
    case, dtype = request.param
    found: dict[str, Any] = {"dtype": dtype}
    with np.load(shared / "golden" / "authors_updates.npz") as file:
        for key in file.files:
            group, name = key.split("/")
            if group != f"case{case}":
                continue
            value = file[key]
            if value.ndim == 0:
                found[name] = float(value)
            elif name.startswith("W"):
                found[name] = value.astype(dtype)
            elif value.ndim == 2:
                value = value[:, 0] if name.startswith("b") else np.ascontiguousarray(value.T)
                found[name] = value if value.dtype == bool else value.astype(dtype)
            else:
                found[name] = value
    return found


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def p_gradient_of(a: dict[str, Any]) -> Any:
    M = updates.residual(a["p"], a["W"], a["b"], a["z"])
    return updates.p_gradient(M @ a["W"], a["p"], a["q_prev"], a["u_prev"], a["rho"], a["rho"])


def test_p_update_is_the_authors(authors: dict[str, Any]) -> None:
    a, rho = authors, authors["rho"]
    G = p_gradient_of(a)
    image = squared_norm(G @ a["W"].T)
    length = updates.step_length(rho, rho, image, squared_norm(G), "doubling")
    assert length > 0
    p = a["p"] - np.asarray(length, a["dtype"]) * G
    close(p, a["p_new"])
    # the steps are short where the penalties are small: compare them too
    theirs = a["p_new"].astype(np.float64) - a["p"]
    assert np.linalg.norm(p - a["p"] - theirs) <= 0.02 * np.linalg.norm(theirs)


def test_quantized_p_update_is_the_authors(authors: dict[str, Any]) -> None:
    a, rho = authors, authors["rho"]
    G = p_gradient_of(a)
    norm = squared_norm(G)
    change, image, length = updates.projected_step(
        a["p"], G, norm, a["W"], rho, rho, "doubling", GRID.project
    )
    close(a["p"] + change if length else a["p"], a["p_new_quantized"])
    close(image, change @ a["W"].T)


def test_weight_update_is_the_authors(authors: dict[str, Any]) -> None:
    a, rho = authors, authors["rho"]
    M = updates.residual(a["p"], a["W"], a["b"], a["z"])
    G = updates.weight_gradient(M.T @ a["p"], a["W"], 0.0, rho, a["mu"])
    image = squared_norm(a["p"] @ G.T)
    length = updates.step_length(a["mu"], rho, image, squared_norm(G), "doubling")
    assert length > 0
    W = a["W"] - np.asarray(length, a["dtype"]) * G
    close(W, a["W_new"])
    theirs = a["W_new"].astype(np.float64) - a["W"]
    assert np.linalg.norm(W - a["W"] - theirs) <= 0.02 * np.linalg.norm(theirs)


def test_bias_update_is_the_authors(authors: dict[str, Any]) -> None:
    a = authors
    close(a["b"] - updates.bias_step(updates.residual(a["p"], a["W"], a["b"], a["z"])), a["b_new"])


def test_z_update_is_the_authors_where_the_branches_agree(authors: dict[str, Any]) -> None:
    a = authors
    z = updates.z_update(a["p"] @ a["W"].T + a["b"], a["q"], a["z"], make_activation("relu"))
    agree = a["z_branches_agree"]
    assert agree.mean() > 0.5
    close(z[agree], a["z_new"][agree])


def test_q_update_is_the_authors(authors: dict[str, Any]) -> None:
    a, rho = authors, np.asarray(authors["rho"], authors["dtype"])
    q = updates.q_update(a["p_next"], a["u"], np.maximum(a["z"], 0), rho, rho)
    close(q, a["q_new"])
    close(GRID.project(q), a["q_new_quantized"])


def test_the_grid_is_the_authors(authors: dict[str, Any]) -> None:
    close(GRID.values(np.arange(256, dtype=np.uint8)), authors["delta"])


def last_objective(z: Any, a: Any, y: Any, nu: float) -> float:
    """Summed cross-entropy plus (nu/2)|z - a|^2, float64."""
    z, a = z.astype(np.float64), a.astype(np.float64)
    risk = (logsumexp(z, axis=1) - z[np.arange(len(z)), y]).sum()
    return float(risk + 0.5 * nu * ((z - a) ** 2).sum())


def test_the_output_layer_gets_no_higher_than_the_authors(authors: dict[str, Any]) -> None:
    a, rho = authors, authors["rho"]
    centre = a["p"] @ a["W_last"].T + a["b_last"]
    theirs = last_objective(a["z_last_new"], centre, a["label"], rho)
    assert theirs == pytest.approx(a["z_last_objective"], rel=1e-4)  # the same objective is meant
    z = updates.z_last_cross_entropy(centre, a["label"], a["z_last"], rho)
    assert last_objective(z, centre, a["label"], rho) <= theirs * (1 + 1e-5)


# ---- finite differences ---------------------------------------------------------------------------


class Problem:
    """A random layer in float64 and its share of the Lagrangian, written out from the paper."""

    def __init__(self, seed: int, nu: float, rho: float, mu: float) -> None:
        rng = np.random.default_rng(seed)
        V, n_in, n_out = 23, 11, 7
        self.p, self.q_prev, self.u_prev = rng.standard_normal((3, V, n_in))
        self.W, self.W_bar = rng.standard_normal((2, n_out, n_in))
        self.b = rng.standard_normal(n_out)
        self.z = rng.standard_normal((V, n_out))
        self.nu, self.rho, self.mu = nu, rho, mu

    def value(self, p: Any = None, W: Any = None, b: Any = None) -> float:
        p = self.p if p is None else p
        W = self.W if W is None else W
        b = self.b if b is None else b
        gap = p - self.q_prev
        total = 0.5 * self.nu * np.sum((self.z - (p @ W.T + b)) ** 2)
        total += np.sum(self.u_prev * gap) + 0.5 * self.rho * np.sum(gap**2)
        return float(total + 0.5 * self.mu * np.sum((W - self.W_bar) ** 2))

    def p_gradient(self) -> Any:
        M = updates.residual(self.p, self.W, self.b, self.z)
        return updates.p_gradient(M @ self.W, self.p, self.q_prev, self.u_prev, self.nu, self.rho)

    def W_gradient(self) -> Any:
        M = updates.residual(self.p, self.W, self.b, self.z)
        return updates.weight_gradient(M.T @ self.p, self.W, self.W_bar, self.nu, self.mu)


PROBLEMS = [Problem(seed, nu, rho, mu) for seed, (nu, rho, mu) in enumerate([(0.3, 2, 0.1), (2, 0.01, 5)])]


def slopes(f: Any, x: Any) -> Any:
    """Gradient of a function by central differences, entry by entry."""
    found = np.zeros_like(x)
    h = 1e-5
    for i in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[i] = h
        found[i] = (f(x + step) - f(x - step)) / (2 * h)
    return found


@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradients_are_the_slopes_of_the_lagrangian(problem: Problem) -> None:
    f = problem
    np.testing.assert_allclose(f.p_gradient(), slopes(lambda p: f.value(p=p), f.p), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(f.W_gradient(), slopes(lambda W: f.value(W=W), f.W), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("variable", ["p", "W"])
@pytest.mark.parametrize("step", ["exact", "doubling"])
def test_steps_decrease_sufficiently_and_the_exact_one_no_more_than_that(
    problem: Problem, variable: str, step: str
) -> None:
    f = problem
    G = f.p_gradient() if variable == "p" else f.W_gradient()
    image = G @ f.W.T if variable == "p" else f.p @ G.T
    curvature = f.rho if variable == "p" else f.mu
    norm = squared_norm(G)
    length = updates.step_length(curvature, f.nu, squared_norm(image), norm, step)
    after = f.value(**{variable: getattr(f, variable) - length * G})
    bound = f.value() - 0.5 * length * norm  # phi(x) + <G, d> + |d|^2 / (2 length), d = -length G
    if step == "exact":
        assert after == pytest.approx(bound, rel=1e-12)
        for other in (0.99 * length, 1.01 * length):  # and it is the lowest point of the line
            assert f.value(**{variable: getattr(f, variable) - other * G}) > after
    else:
        assert after <= bound
        trial = 1 / length
        assert trial in [20 * 2.0**k for k in range(11)]
        if trial > 20:  # the trial before would not have passed
            d = G * (2 * length)
            rejected = f.value(**{variable: getattr(f, variable) - d})
            assert rejected > f.value() - length * norm


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("variable", ["p", "W"])
def test_every_row_of_a_line_search_is_at_its_lowest(problem: Problem, variable: str) -> None:
    """And all of them together fall by half the sum of their lengths times squared norms."""
    f = problem
    G = f.p_gradient() if variable == "p" else f.W_gradient()
    G[1] = 0.0
    images = (G @ f.W.T if variable == "p" else G @ f.p.T).__pow__(2).sum(axis=1)
    norms = (G**2).sum(axis=1)
    lengths = updates.line_lengths(f.rho if variable == "p" else f.mu, f.nu, images, norms)
    assert lengths[1] == 0 and np.all(np.delete(lengths, 1) > 0)

    def after(lengths: Any) -> float:
        return f.value(**{variable: getattr(f, variable) - lengths[:, None] * G})

    assert after(lengths) == pytest.approx(f.value() - 0.5 * (lengths @ norms), rel=1e-12)
    for row in np.flatnonzero(lengths):
        for factor in (0.99, 1.01):
            other = lengths.copy()
            other[row] *= factor
            assert after(other) > after(lengths)


def test_step_length_keeps_the_variable_when_there_is_no_step() -> None:
    assert updates.step_length(1.0, 1.0, 0.0, 0.0, "exact") == 0
    assert updates.step_length(1.0, 1.0, 0.0, 0.0, "doubling") == 0
    # the image of a tiny gradient is 0 in single precision, and with mu = 0 nothing else bends
    assert updates.step_length(0.0, 1.0, 0.0, 1e-30, "exact") == 0
    assert updates.line_lengths(0.0, 1.0, np.array([0.0, 1.0]), np.array([1e-30, 2.0])).tolist() == [0, 2]
    assert updates.step_length(20 * 2**10, 1.0, 0.0, 1.0, "doubling") == 1 / (20 * 2**10)
    assert updates.step_length(20 * 2**10 + 1, 1.0, 0.0, 1.0, "doubling") == 0  # no trial is long enough


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("step", ["exact", "doubling"])
def test_projected_step_lands_on_the_grid_and_decreases_sufficiently(problem: Problem, step: str) -> None:
    f = problem
    grid = GridCodec(8, -4.0, 4.0)
    p = grid.project(f.p).astype(np.float64)
    here = Problem.__new__(Problem)
    here.__dict__ = {**f.__dict__, "p": p}
    G = here.p_gradient()
    change, image, length = updates.projected_step(
        p, G, squared_norm(G), f.W, f.nu, f.rho, step, grid.project
    )
    assert length > 0 and np.any(change)
    np.testing.assert_allclose(grid.project(p + change), p + change, atol=1e-6)
    np.testing.assert_allclose(image, change @ f.W.T)
    bound = here.value() + np.sum(G * change) + 0.5 / length * np.sum(change**2)
    assert here.value(p=p + change) <= bound * (1 + 1e-6)


# ---- minimisers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS)
def test_inverse_hessian_leads_to_the_minimiser_in_p(problem: Problem) -> None:
    f = problem
    p = f.p - f.p_gradient() @ updates.inverse_hessian(f.W, f.nu, f.rho)
    np.testing.assert_allclose(slopes(lambda x: f.value(p=x), p), 0, atol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_bias_step_leads_to_the_minimiser_in_b(problem: Problem) -> None:
    f = problem
    b = f.b - updates.bias_step(updates.residual(f.p, f.W, f.b, f.z))
    np.testing.assert_allclose(slopes(lambda x: f.value(b=x), b), 0, atol=1e-5)


@pytest.mark.parametrize(("V", "n"), [(40, 9), (9, 40), (15, 15)])
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_exact_weights_are_the_ridge_regression(V: int, n: int, anchored: bool, given: bool) -> None:
    rng = np.random.default_rng(V)
    n_out, nu, mu = 5, 0.3, 0.02
    p, z = rng.standard_normal((V, n)) + 2, rng.standard_normal((V, n_out)) - 1
    W_bar = rng.standard_normal((n_out, n)) if anchored else np.zeros((n_out, n))
    # least squares of [sqrt(nu) (p, 1); sqrt(mu) (I, 0)] on [sqrt(nu) z; sqrt(mu) W_bar]
    A = np.zeros((V + n, n + 1))
    A[:V, :n], A[:V, n], A[V:, :n] = np.sqrt(nu) * p, np.sqrt(nu), np.sqrt(mu) * np.eye(n)
    right = np.concatenate([np.sqrt(nu) * z, np.sqrt(mu) * W_bar.T])
    wanted = np.linalg.lstsq(A, right, rcond=None)[0]
    gram = updates.centred_gram(p) if given else None
    kept = None if gram is None else gram.copy()
    W, b = updates.exact_weights(p, z, W_bar if anchored else 0.0, nu, mu, gram)
    np.testing.assert_allclose(W, wanted[:n].T, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(b, wanted[n], rtol=1e-8, atol=1e-8)
    if gram is not None:
        np.testing.assert_array_equal(gram, kept)


def test_an_anchor_without_a_pull_is_where_the_weights_are() -> None:
    W = np.ones((2, 3), np.float32)
    anchor, total = updates.damped_anchor(W, 0.0, 0.0, np.float64(0.0))
    np.testing.assert_array_equal(anchor, W)
    assert total == 0


def test_damped_anchor_is_both_pulls_in_one() -> None:
    rng = np.random.default_rng(5)
    W, W_bar, other = rng.standard_normal((3, 4, 6))
    mu, weight = 0.3, 2.0
    anchor, total = updates.damped_anchor(W, W_bar, mu, weight)

    def both(x: Any) -> float:
        return float(mu * ((x - W_bar) ** 2).sum() + weight * ((x - W) ** 2).sum())

    # the same but for a constant
    for x in (W, W_bar):
        difference = total * (((x - anchor) ** 2).sum() - ((other - anchor) ** 2).sum())
        assert both(x) - both(other) == pytest.approx(difference)


@pytest.mark.parametrize("nu", [1e-4, 1e-2, 1.0, 30.0])
def test_output_layer_reaches_the_minimum_that_scipy_finds(nu: float) -> None:
    rng = np.random.default_rng(3)
    V, classes = 12, 7
    a, start = 4 * rng.standard_normal((2, V, classes))
    y = rng.integers(0, classes, V)
    z = updates.z_last_cross_entropy(a, y, start, nu)
    for i in range(V):
        onehot = np.eye(classes)[y[i]]

        def value(x: Any, i: int = i) -> float:
            return float(logsumexp(x) - x[y[i]] + 0.5 * nu * np.sum((x - a[i]) ** 2))

        def slope(x: Any, i: int = i, onehot: Any = onehot) -> Any:
            return np.exp(x - logsumexp(x)) - onehot + nu * (x - a[i])

        def curvature(x: Any) -> Any:
            s = np.exp(x - logsumexp(x))
            return np.diag(s + nu) - np.outer(s, s)

        found = scipy.optimize.minimize(
            value, a[i], jac=slope, hess=curvature, method="trust-exact", options={"gtol": 1e-9}
        )
        assert value(z[i]) <= found.fun * (1 + 1e-9) + 1e-9
        np.testing.assert_allclose(z[i], found.x, atol=1e-6)


def test_least_squares_output_is_the_minimiser() -> None:
    rng = np.random.default_rng(4)
    a, y, nu = rng.standard_normal((6, 4)), rng.integers(0, 4, 6), 0.7
    z = updates.z_last_least_squares(a, y, nu)

    def value(x: Any) -> float:
        return float(0.5 * np.sum((x - np.eye(4)[y]) ** 2) + 0.5 * nu * np.sum((x - a) ** 2))

    np.testing.assert_allclose(slopes(value, z), 0, atol=1e-8)


FORMULAS = {
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "tanh": lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_activation_is_its_formula_and_keeps_the_dtype(name: str, dtype: str) -> None:
    x = np.linspace(-5, 5, 101).astype(dtype)
    found = make_activation(name)(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, FORMULAS[name](x.astype(np.float64)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_z_update_is_the_lowest_point_of_a_dense_search(name: str, dtype: str) -> None:
    rng = np.random.default_rng(5)
    a, q, z = (3 * rng.standard_normal((3, 20, 15))).astype(dtype)
    if name in ("tanh", "sigmoid"):
        q = np.clip(q, -1.5, 1.5)  # where the problem is convex, for these f
    f = FORMULAS[name]

    def cost(x: Any, a: Any, q: Any, z: Any) -> Any:
        return (x - a) ** 2 + (q - f(x)) ** 2 + (x - z) ** 2

    found = updates.z_update(a, q, z, make_activation(name))
    assert found.dtype == dtype
    a, q, z, found = (x.astype(np.float64).ravel() for x in (a, q, z, found))
    line = np.linspace(-14, 14, 14001)
    lowest = np.array([cost(line, *entry).min() for entry in zip(a, q, z, strict=True)])
    mine = cost(found, a, q, z)
    assert np.all(mine <= lowest + (1e-10 if dtype == "float64" else 1e-5) * (1 + lowest))
    assert np.all(mine >= lowest - 1e-5)  # the search itself would have found anything lower


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
@pytest.mark.parametrize("spread", [3, 10])
def test_z_update_goes_downhill_to_a_stationary_point_where_it_is_not_convex(name: str, spread: int) -> None:
    rng = np.random.default_rng(6)
    a, z = 3 * rng.standard_normal((2, 100, 200))
    q = rng.uniform(-spread, spread, a.shape)
    f = FORMULAS[name]
    found = updates.z_update(a, q, z, make_activation(name))

    def cost(x: Any) -> Any:
        return (x - a) ** 2 + (q - f(x)) ** 2 + (x - z) ** 2

    assert np.all(cost(found) <= cost(z) + 1e-12)
    h = 1e-5
    slope = (cost(found + h) - cost(found - h)) / (2 * h)
    np.testing.assert_allclose(slope[found != z], 0, atol=1e-4)
    assert (found == z).mean() < 1e-3


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_updates_leave_their_arguments_alone(dtype: str) -> None:
    rng = np.random.default_rng(7)
    p, q, u = rng.standard_normal((3, 9, 4)).astype(dtype)
    W, b = rng.standard_normal((3, 4)).astype(dtype), rng.standard_normal(3).astype(dtype)
    a, z = rng.standard_normal((2, 9, 3)).astype(dtype)
    y = rng.integers(0, 3, 9)
    arguments = [p, q, u, W, b, a, z, y]
    before = [x.copy() for x in arguments]
    G = updates.p_gradient(updates.residual(p, W, b, z) @ W, p, q, u, 0.1, 0.2)
    updates.weight_gradient(z.T @ p, W, 0.0, 0.1, 0.2)
    updates.bias_step(z)
    for name in FORMULAS:
        updates.z_update(a, z, z, make_activation(name))
    updates.q_update(p, u, q, 0.1, 0.2)
    updates.u_update(u, p, q, 0.2)
    updates.z_last_cross_entropy(a, y, z, 0.1)
    updates.z_last_least_squares(a, y, 0.1)
    updates.inverse_hessian(W, 0.1, 0.2)
    updates.exact_weights(p, z, 0.0, 0.1, 0.2)
    updates.projected_step(p, G, squared_norm(G), W, 0.1, 0.2, "exact", GRID.project)
    for x, kept in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(x, kept)
