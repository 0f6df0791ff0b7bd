"""Gradients of the graph networks against central differences in float64 and against each other's cuts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graph_networks import Copies, Source, network_of, weights_of

from pdadmm.gnn.equations import softmax_cross_entropy
from pdadmm.gnn.layer import Shape
from pdadmm.gnn.passes.protocol import Drop

WIDTHS = (7, 5, 9, 4)

# as lean, as adaqp, and as lean with embeddings that travel as changes
SHAPES = [
    Shape(model, WIDTHS, dropped_first, exact, narrow, eager, changes)
    for model, dropped_first, (exact, narrow, eager, changes) in itertools.product(
        ("gcn", "sage"),
        (False, True),
        ((True, True, True, False), (False, False, False, False), (True, True, True, True)),
    )
]


def loss_of(source, shape, weights):
    """Summed loss of the training nodes, and the gradients of every part."""
    network, parts, gradients = network_of(source, shape, weights)
    drops = {layer: Drop(0.4, 77 + layer, shape.dropped_first) for layer in range(1, shape.layers)}
    halos = Copies(parts)
    network.forward(halos, drops)
    total = 0.0
    for number, part in parts.items():
        train = source.split_original[source.id[part.rows]] == 1
        losses, G = softmax_cross_entropy(network.output(number), source.y_original[source.id[part.rows]])
        total += losses[train].sum()
        network.output_gradient(number)[:] = G * train[:, None]
    ready = []
    network.backward(halos, drops, ready.append)
    assert ready == [3, 2, 1]
    return total, gradients


def summed(gradients, layer, name):
    return sum(of_part[layer][name] for of_part in gradients.values())


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_central_differences(shape, parts):
    source, weights = Source(parts), weights_of(shape)
    _, gradients = loss_of(source, shape, weights)
    rng = np.random.default_rng(1)
    for layer, named in weights.items():
        for name, x in named.items():
            direction = rng.normal(size=x.shape)
            kept = x.copy()
            step = 1e-5
            losses = []
            for sign in (1, -1):
                x[...] = kept + sign * step * direction
                losses.append(loss_of(source, shape, weights)[0])
            x[...] = kept
            measured = (losses[0] - losses[1]) / (2 * step)
            found = (summed(gradients, layer, name) * direction).sum()
            assert found == pytest.approx(measured, rel=1e-6, abs=1e-7), (layer, name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cut_changes_nothing_but_rounding(shape):
    weights = weights_of(shape)
    found = [loss_of(Source(parts), shape, weights) for parts in (1, 2, 3)]
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-12)
        for layer, named in weights.items():
            for name in named:
                expected = summed(found[0][1], layer, name)
                np.testing.assert_allclose(summed(gradients, layer, name), expected, rtol=1e-9, atol=1e-11)
