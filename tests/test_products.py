"""Products in tiles: the same bits on any number of threads, whatever the shapes, and right ones."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support import (
    Finished,
    python,
    records_of,
    run_each,
    succeed,
    summary_of,
    weights_of,
    without_times,
    words,
)
from threadpoolctl import threadpool_limits

from pdadmm.arrays.groups import rows_of_groups, tree
from pdadmm.arrays.products import Products


@pytest.fixture(autouse=True)
def _one_thread_in_blas() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def matrix(rng: np.random.Generator, rows: int, cols: int, turned: bool, dtype: type) -> np.ndarray:
    """A matrix, or the transposed view of one."""
    x = rng.standard_normal((cols, rows) if turned else (rows, cols)).astype(dtype)
    return x.T if turned else x


# beside the bounds of products.py: small ones, few and many rows, narrow results, sums too large for groups
SHAPES = [
    (1, 1, 1), (5, 0, 3), (0, 4, 2), (140, 300, 30), (2047, 70, 90), (5000, 60, 70), (300, 40, 5000),
    (60, 2047, 90), (60, 2048, 90), (75, 9001, 61), (1030, 2100, 1020), (10, 20_000, 50),
]  # fmt: skip


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_bits_do_not_depend_on_threads(shape: tuple[int, int, int], turned: tuple[bool, bool]) -> None:
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = matrix(rng, m, k, turned[0], np.float32), matrix(rng, k, n, turned[1], np.float32)
    found = [Products(threads).matmul(a, b) for threads in (1, 2, 3, 5)]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    exact = a.astype(np.float64) @ b
    np.testing.assert_allclose(found[0], exact, rtol=1e-4, atol=2e-6 * max(k, 1) ** 0.5 * 10)


@pytest.mark.parametrize("groups", [0, 1, 2, 4, 8])
@pytest.mark.parametrize(("rows", "cols"), [(9, 5), (2048, 128), (5000, 300), (2100, 1100)])
def test_a_matrix_with_itself(rows: int, cols: int, groups: int) -> None:
    """Half is formed, on any threads the same, where something else stood before; shards add up to it."""
    G = np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32)
    found = []
    for threads in (1, 2, 3, 8):
        products, out = Products(threads, groups), np.full((cols, cols), np.nan, np.float32)
        other = np.full_like(out, np.nan)
        products.over_rows(G, G.copy(), other)  # in the room that the sums have
        products.over_rows(G, G, out)
        np.testing.assert_allclose(out, other, rtol=2e-6, atol=1e-5 * rows**0.5)
        found.append(out)
    for out in found[1:]:
        np.testing.assert_array_equal(found[0], out)
    np.testing.assert_allclose(found[0], G.T.astype(np.float64) @ G, rtol=1e-4, atol=2e-5 * rows**0.5)
    if groups > 1:
        halves = []
        for part in rows_of_groups(rows, 2):
            half, mine = np.empty_like(found[0]), G[part]
            Products(2, groups // 2).over_rows(mine, mine, half)
            halves.append(half)
        assert groups == 2 or rows < 2048 or np.array_equal(halves[0] + halves[1], found[0])


def test_a_large_matrix_with_itself_is_the_same_in_shards_of_one_group() -> None:
    G = np.random.default_rng(0).standard_normal((9001, 1100)).astype(np.float32)
    whole, share = np.empty((1100, 1100), np.float32), np.empty((1100, 1100), np.float32)
    Products(2, 8).over_rows(G, G, whole)
    shares = []
    for part in rows_of_groups(9001, 8):
        mine = G[part]
        Products(1, 1).over_rows(mine, mine, share)
        shares.append(share.copy())
    np.testing.assert_array_equal(tree(shares), whole)


def test_float64_and_given_results() -> None:
    rng = np.random.default_rng(0)
    products = Products(2)
    a, b = matrix(rng, 3000, 200, False, np.float64), matrix(rng, 200, 100, True, np.float64)
    out = np.empty((3000, 100))
    assert products.matmul(a, b, out) is out
    np.testing.assert_allclose(out, a @ b, rtol=1e-12, atol=1e-12)
    products.rows(a, b, out, add=True)
    np.testing.assert_allclose(out, 2 * (a @ b), rtol=1e-12, atol=1e-11)
    for _ in range(2):  # the groups' sums have a room of their own
        np.testing.assert_allclose(products.matmul(a.T, a), a.T @ a, rtol=1e-10, atol=1e-10)
    products.close()


def test_an_error_in_a_thread_comes_out() -> None:
    products = Products(3)
    with pytest.raises(ValueError, match="mismatch"):
        products.rows(np.zeros((5000, 80), np.float32), np.zeros((70, 90), np.float32), np.empty((5000, 90)))
    assert products.matmul(np.ones((2, 2)), np.ones((2, 2)))[0, 0] == 2


def test_threads_do_not_warn_of_overflow() -> None:
    """Which ends a run in words, and not in warnings."""
    products, huge = Products(4), np.full((6000, 90), 1e30, np.float32)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        for _ in range(5):
            assert np.isinf(products.matmul(huge, huge[:90])).all()


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More training nodes than a tile has, and products that are worth a thread."""
    path = tmp_path_factory.mktemp("features") / "many.h5"
    options = "--synthetic-nodes 2600 --synthetic-features 90 --synthetic-train-per-class 320 --hops 1"
    succeed(python("-m", "pdadmm.prepare", "synthetic", *words(options), "--out", path))
    return path


WAYS = [
    "--codec delta --bits 4",
    "--codec affine --bits 8",
    "--codec grid --bits 8",
    "--codec float32 --solver exact --damping 0.1 --momentum 0.5",
    "--codec delta --bits 2 --kernels reference",
    "--codec float32 --solver exact --kernels reference",
]


@pytest.fixture(scope="module")
def by_threads(
    features: Path, mpirun: Callable[..., Finished], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Path]]:
    """The folders of the runs of WAYS, of every start of the program; the first is on one thread."""
    common = words("--layers 4 --stages 4 --hidden 100 --iterations 6 --eval-every 3 --quiet")
    folders = []
    for ranks, threads in ((1, 1), (1, 2), (1, 3), (2, 2)):
        folder = tmp_path_factory.mktemp(f"{ranks}-{threads}-")
        runs = {way: [features, *common, *words(f"{way} --threads {threads}")] for way in WAYS}
        folders.append(run_each(partial(mpirun, ranks), "pdadmm.run", runs, folder))
        assert all(summary_of(run)["threads"] == threads for run in folders[-1].values())
    return folders


@pytest.mark.parametrize("options", WAYS)
def test_runs_on_any_number_of_threads(options: str, by_threads: list[dict[str, Path]]) -> None:
    first, *others = (folders[options] for folders in by_threads)
    for other in others:
        assert [without_times(r) for r in records_of(first)] == [without_times(r) for r in records_of(other)]
        pairs = zip(weights_of(first / "model.h5"), weights_of(other / "model.h5"), strict=True)
        for a, b in pairs:
            assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


def test_more_threads_than_cores_are_warned_of(
    small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    many = str(4 * (os.cpu_count() or 1))
    options = words(f"--layers 2 --hidden 8 --iterations 3 --quiet --threads {many}")
    finished = succeed(mpirun(2, "-m", "pdadmm.run", small, *options, "--out", tmp_path / "run"))
    assert finished.err.count("\n") == 1
    assert f"--threads {many} on each of 2 ranks is more than" in finished.err
