"""The grid of ranks. Runs under ``mpirun -n R python -m mpi4py -m pytest --with-mpi tests/mpi``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pdadmm.admm.activations import ReLU
from pdadmm.admm.growth import random_layer
from pdadmm.admm.layer import Hyper
from pdadmm.admm.passes import select_passes
from pdadmm.admm.stage import Plan, Stage
from pdadmm.codec import make_codec
from pdadmm.comm import waiter as waiting
from pdadmm.comm.grid import ALONE, Axis, Grid
from pdadmm.comm.mpi import MPITransport
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError
from pdadmm.trace.clock import Clock

pytestmark = pytest.mark.mpi(min_size=2)


def test_ranks_are_blocks_times_shards(waiter: Waiter) -> None:
    size, rank = waiter.comm.size, waiter.comm.rank
    for shards in range(1, size + 1):
        if size % shards:
            with pytest.raises(InputError, match=f"--shards {shards} does not divide"):
                Grid(waiter, shards)
            continue
        grid = Grid(waiter, shards)
        assert (grid.blocks, grid.shards) == (size // shards, shards)
        assert rank == grid.block * shards + grid.shard == grid.rank_of(grid.block)
        assert grid.nodes.size == shards
        assert (grid.nodes is ALONE) == (shards == 1)
        # neighbours have the same shard, and everybody is somebody's
        assert sorted(grid.rank_of(b) for b in range(grid.blocks)) == list(range(grid.shard, size, shards))
        total = grid.nodes.sum(np.array([rank, 1.0]))
        block = range(grid.block * shards, (grid.block + 1) * shards)
        assert total.tolist() == [sum(block), shards]
        grid.close()


@pytest.mark.parametrize("max_bytes", [None, 24])
def test_sums_are_a_binary_tree_over_the_shards(
    max_bytes: int | None, waiter: Waiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    if max_bytes:
        monkeypatch.setattr(waiting, "MAX_BYTES", max_bytes)
    grid = Grid(waiter, waiter.comm.size)
    parts = [
        np.random.default_rng(shard).standard_normal((7, 3)).astype(np.float32) * np.float32(10.0**shard)
        for shard in range(grid.shards)
    ]

    def tree(leaves: list[Any]) -> Any:
        """The left half of n leaves is the largest power of two below n."""
        if len(leaves) == 1:
            return leaves[0]
        middle = 1 << (len(leaves) - 1).bit_length() - 1
        return tree(leaves[:middle]) + tree(leaves[middle:])

    found = grid.nodes.sum(parts[grid.shard])
    assert found.dtype == np.float32 and found.tobytes() == tree(parts).tobytes()
    before = grid.nodes.bytes
    large = [np.resize(part, (70, 90)) for part in parts]  # whose slices are added up by one shard each
    for _ in range(2):
        found = grid.nodes.sum(large[grid.shard].copy())
        assert found.tobytes() == tree(large).tobytes()
    assert 0 < grid.nodes.bytes - before <= 2 * 2 * found.nbytes
    numbers = grid.nodes.sums(0.1 * (grid.shard + 1), 2.0)
    assert numbers == (tree([0.1 * (s + 1) for s in range(grid.shards)]), 2.0 * grid.shards)
    assert grid.nodes.span(-float(grid.shard), 1.0 + grid.shard) == (1.0 - grid.shards, float(grid.shards))
    assert grid.nodes.sum(np.empty(0)).shape == (0,)
    grid.close()


WIDTHS = [9, 8, 8, 4]


def stage_of(rows: slice, nodes: Axis, kernels: str, solver: str, codec: str, step: str) -> Stage:
    """A stage of three layers on this rank, of some rows of the same nodes."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((61, WIDTHS[0]), dtype=np.float32) + 1, rng.integers(0, WIDTHS[-1], 61)
    layers = [random_layer(i, WIDTHS[i - 1], WIDTHS[i], ReLU() if i < 3 else None, 0) for i in (1, 2, 3)]
    nobody: Any = None
    stage = Stage(
        Plan(3, 3, [range(1, 4)], 0), layers, nobody, Clock(), transport=MPITransport(nobody), nodes=nodes
    )
    hyper = Hyper(0.02, 0.1, 0.3, solver, step, 4, "cross_entropy", damping=0.5 if solver == "exact" else 0.0)
    bits = 32 if codec == "float32" else 8

    def coding(start: Any) -> Any:
        return make_codec(codec, bits, (-1.0, 6.0))

    mine = np.ascontiguousarray(X[rows])
    stage.start(mine, y[rows].copy(), len(mine), coding, hyper, select_passes(kernels, 1, "numpy"), 0)
    return stage


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize(
    ("solver", "codec", "step"),
    [("gradient", "float32", "exact"), ("gradient", "delta", "doubling"), ("gradient", "grid", "exact"),
     ("gradient", "delta", "row"), ("exact", "float32", "exact")],
)  # fmt: skip
def test_a_layer_adds_up_every_sum_over_nodes(
    kernels: str, solver: str, codec: str, step: str, waiter: Waiter
) -> None:
    """Nodes cut into shards give the iterates of all nodes on one rank, up to rounding."""
    grid = Grid(waiter, waiter.comm.size)
    cuts = np.linspace(0, 61, grid.shards + 1).astype(int)
    rows = slice(cuts[grid.shard], cuts[grid.shard + 1])
    options = (kernels, solver, codec, step)
    whole, mine = stage_of(slice(0, 61), ALONE, *options), stage_of(rows, grid.nodes, *options)
    for i in range(10):
        wanted, found = (stage.iterate(i, True) for stage in (whole, mine))
        for position, terms in wanted.items():
            for name, value in vars(terms).items():
                ours = vars(found[position])[name]
                assert ours == pytest.approx(value, rel=2e-3, abs=2e-4), (i, position, name)
    for one, other in zip(whole.layers, mine.layers, strict=True):
        np.testing.assert_allclose(other.W, one.W, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(other.b, one.b, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(other.z, one.z[rows], rtol=5e-3, atol=5e-3)
        everyones = waiter.gather(other.W.tobytes())
        if everyones is not None:  # the shards of a block never drift apart
            assert len(set(everyones)) == 1
    grid.close()
