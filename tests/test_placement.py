"""Layers on ranks: contiguous, complete, none idle, and the largest load as small as can be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.admm.growth import default_stages, stage_positions
from pdadmm.admm.placement import layer_cost, place
from pdadmm.admm.stage import Plan


def largest(costs: list[float], blocks: list[range]) -> float:
    return max(sum(costs[i - 1] for i in block) for block in blocks)


@settings(deadline=None, derandomize=True)
@given(data=st.data(), costs=st.lists(st.integers(1, 20), min_size=1, max_size=9))
def test_no_contiguous_spread_has_a_smaller_largest_load(data: st.DataObject, costs: list[int]) -> None:
    ranks = data.draw(st.integers(1, len(costs)))
    loads = [float(c) for c in costs]
    blocks = place(loads, ranks)
    assert [i for block in blocks for i in block] == list(range(1, len(costs) + 1))
    assert len(blocks) == ranks and all(len(block) for block in blocks)
    best = min(
        largest(loads, [range(a + 1, b + 1) for a, b in itertools.pairwise([0, *cuts, len(costs)])])
        for cuts in itertools.combinations(range(1, len(costs)), ranks - 1)
    )
    assert largest(loads, blocks) == best


def test_one_layer_a_rank_and_one_rank_for_all() -> None:
    assert place([3.0, 1.0, 2.0], 3) == [range(1, 2), range(2, 3), range(3, 4)]
    assert place([3.0, 1.0, 2.0], 1) == [range(1, 4)]


@pytest.mark.parametrize("ranks", [0, 4])
def test_ranks_without_a_layer_are_refused(ranks: int) -> None:
    with pytest.raises(ValueError, match="cannot be spread"):
        place([1.0, 1.0, 1.0], ranks)


def test_a_wide_first_layer_gets_a_rank_to_itself() -> None:
    widths = [7165, *[100] * 9, 7]
    costs = [layer_cost(140, widths[i], widths[i + 1], first=i == 0) for i in range(10)]
    assert place(costs, 3)[0] == range(1, 2)


@pytest.mark.parametrize(
    ("layers", "stages"),
    [(1, [1]), (2, [2]), (3, [2, 3]), (4, [2, 4]), (10, [2, 4, 8, 10]), (16, [2, 4, 8, 16])],
)
def test_stages_double_up_to_the_depth(layers: int, stages: list[int]) -> None:
    assert default_stages(layers) == stages


def test_growth_moves_no_layer_to_another_rank() -> None:
    blocks = [range(1, 3), range(3, 7), range(7, 9)]
    homes: dict[int, int] = {}
    for depth in (2, 4, 8):
        assert stage_positions(depth, 8)[-1] == 8 and len(stage_positions(depth, 8)) == depth
        for rank in range(3):
            for position in Plan(depth, 8, blocks, rank).mine:
                assert homes.setdefault(position, rank) == rank
    assert homes == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 1, 7: 2, 8: 2}


def test_neighbours_skip_ranks_that_have_no_layer_yet() -> None:
    blocks = [range(1, 3), range(3, 5), range(5, 7)]
    bottom, middle, top = (Plan(2, 6, blocks, rank) for rank in range(3))
    assert (bottom.below, bottom.above, bottom.mine) == (None, 2, [1])
    assert (middle.below, middle.above, middle.mine) == (None, None, [])
    assert (top.below, top.above, top.mine) == (0, None, [6])
    assert bottom.owners[-1] == 2


def test_messages_are_named_after_the_layers_they_join() -> None:
    """Layers 1 and 2 of rank 0, 3 and 6 of others, since 4 and 5 are not born yet."""
    plans = [Plan(4, 6, [range(1, 3), range(3, 5), range(5, 7)], rank) for rank in range(3)]
    assert [plan.positions for plan in plans] == [[1, 2, 3, 6]] * 3
    shown = [
        {
            part.name: [(c.name, c.peer, c.tag, c.nbytes, c.sends, c.other) for c in part.channels]
            for part in rounds
        }
        for rounds in (plan.rounds(10 * plan.block, 10 * plan.block + 10) for plan in plans)
    ]
    assert shown[0] == {
        "P": [("p 3", 1, 4, 10, False, "layer 3")],
        "Q": [("q 2", 1, 5, 10, True, "layer 3")],
    }
    assert shown[1] == {
        "P": [("p 3", 0, 4, 10, True, "layer 2"), ("p 6", 2, 6, 20, False, "layer 6")],
        "Q": [("q 2", 0, 5, 10, False, "layer 2"), ("q 3", 2, 7, 20, True, "layer 6")],
    }
    assert shown[2] == {
        "P": [("p 6", 1, 6, 20, True, "layer 3")],
        "Q": [("q 3", 1, 7, 20, False, "layer 3")],
    }
