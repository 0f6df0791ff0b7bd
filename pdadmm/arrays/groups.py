"""Groups of nodes, the leaves of the tree by which sums over nodes are formed.

All nodes are halved, and the halves, and so on. A shard of the nodes is a node of this tree where the
number of shards is a power of two, and has whole groups, so that a sum has the same bits however the nodes
are cut into shards: within a group by one function of its rows, over groups and shards by the tree.

Few nodes are in no groups unless asked for: their products are so short that eight in the place of one
make an iteration on Cora 1.7 times as long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from pdadmm.arrays.helpers import Array, Scalar

__all__ = ["MOST_GROUPS", "groups_of_shard", "rows_of_groups", "rows_of_shard", "total", "tree"]

#: of all nodes, where they are `_MANY`; kernels/passes.h has room for as many
MOST_GROUPS = 8
_MANY = 2048


def groups_of_shard(nodes: int, shards: int, always: bool = False) -> int:
    """Groups in a shard of so many nodes, a power of two; 0 where they are few, but for `always`."""
    return max(1, MOST_GROUPS // shards) if always or nodes >= _MANY else 0


@functools.lru_cache(1024)
def rows_of_groups(rows: int, groups: int) -> tuple[slice, ...]:
    """The rows of each of a power of two of groups; some may be empty, and later halves are the larger."""
    if groups <= 1:
        return (slice(0, rows),)
    half = rows // 2
    first, second = rows_of_groups(half, groups // 2), rows_of_groups(rows - half, groups // 2)
    return (*first, *(slice(half + s.start, half + s.stop) for s in second))


def rows_of_shard(rows: int, shard: int, shards: int) -> tuple[int, int]:
    """First and past-the-last row of a shard."""
    if shards & (shards - 1) == 0:
        part = rows_of_groups(rows, shards)[shard]
        return part.start, part.stop
    return rows * shard // shards, rows * (shard + 1) // shards


def tree(sums: Sequence[Scalar]) -> Scalar:
    """The sum of what a power of two of groups have, numbers or arrays."""
    if len(sums) == 1:
        return sums[0]
    half = len(sums) // 2
    return tree(sums[:half]) + tree(sums[half:])


def total(groups: int, function: Callable[..., Scalar], *arrays: Array) -> Scalar:
    """The sum over all rows of arrays of what a function forms of some, by group where there are any."""
    if groups <= 1:
        return function(*arrays)
    return tree([function(*(x[part] for x in arrays)) for part in rows_of_groups(len(arrays[0]), groups)])
