"""Which rank owns which layers."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["layer_cost", "place"]


def layer_cost(nodes: int, n_in: int, n_out: int, first: bool, in_row_space: bool = False) -> float:
    """Rough time of a layer-iteration in multiply-adds.

    Four products of V n_in n_out, two in layer 1, whose p is fixed, or one of V V n_out where it is
    kept in the row space of its input; and about 26 passes over a (V, n) array, each worth some ten
    multiply-adds an entry.
    """
    if first:
        products = nodes * n_out * (nodes if in_row_space else 2 * n_in)
    else:
        products = 4 * nodes * n_in * n_out
    passes = 10.0 * nodes * (26 * n_out + (0 if first else 8 * n_in))
    return products + passes


def place(costs: Sequence[float], ranks: int) -> list[range]:
    """Contiguous blocks of layers, one a rank, with the least possible largest cost.

    Parameters
    ----------
    costs
        Cost of layers 1 to L.
    ranks
        At most L.

    Returns
    -------
    list of range
        Layer numbers (from 1) of every rank; none is empty.
    """
    layers = len(costs)
    if not 1 <= ranks <= layers:
        raise ValueError(f"{layers} layers cannot be spread over {ranks} ranks")
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    # best[r][i]: least largest cost of the first i layers on r ranks; cut: where the last block starts
    best = [[float("inf")] * (layers + 1) for _ in range(ranks + 1)]
    cut = [[0] * (layers + 1) for _ in range(ranks + 1)]
    best[0][0] = 0.0
    for r in range(1, ranks + 1):
        before, j = best[r - 1], r - 1
        for i in range(r, layers - (ranks - r) + 1):
            # with j the first grows and the second falls, which grows with i: they cross ever later
            while j < i - 1 and before[j] < prefix[i] - prefix[j]:
                j += 1
            best[r][i], cut[r][i] = max(before[j], prefix[i] - prefix[j]), j
            if j > r - 1 and (cost := max(before[j - 1], prefix[i] - prefix[j - 1])) <= best[r][i]:
                best[r][i], cut[r][i] = cost, j - 1
    blocks = []
    end = layers
    for r in range(ranks, 0, -1):
        start = cut[r][end]
        blocks.append(range(start + 1, end + 1))
        end = start
    return blocks[::-1]
