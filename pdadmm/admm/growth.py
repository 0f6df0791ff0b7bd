"""Growing a network: train a shallow one, insert identity layers before the output, go on.

Every layer has the place it will have in the finished network from the start: a stage of depth D
trains layers 1 to D-1 and the output layer L. So growth moves no weights between ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pdadmm.admm.activations import Activation
from pdadmm.admm.layer import Layer

__all__ = ["default_stages", "depth_at", "identity_layer", "random_layer", "stage_positions"]


def default_stages(layers: int, first: int = 2) -> list[int]:
    """Doubling depths from `first`: 2, 4, 8, ... up to `layers`."""
    if layers <= first:
        return [layers]
    stages = [first]
    while stages[-1] * 2 < layers:
        stages.append(stages[-1] * 2)
    return [*stages, layers]


def stage_positions(depth: int, layers: int) -> list[int]:
    """Positions of the layers that a stage of `depth` trains, ascending."""
    return [*range(1, depth), layers]


def depth_at(iteration: int, stages: Sequence[int], iterations: int) -> int:
    """Layers of the network in an iteration, counted from 1 over all stages of so many iterations each."""
    return stages[(iteration - 1) // iterations]


def random_layer(position: int, n_in: int, n_out: int, activation: Activation | None, seed: int) -> Layer:
    """He-normal weights, variance 2/n_in, from the seed and the position alone; zero bias; anchored at 0."""
    rng = np.random.default_rng([seed, position])
    W = rng.standard_normal((n_out, n_in), dtype=np.float32) * np.float32(np.sqrt(2.0 / n_in))
    return Layer(position, W, np.zeros(n_out, np.float32), 0.0, activation)


def identity_layer(position: int, n: int, activation: Activation | None, anchored: bool) -> Layer:
    """Identity weights and zero bias, anchored at the identity or at 0."""
    eye = np.eye(n, dtype=np.float32)
    return Layer(position, eye, np.zeros(n, np.float32), eye.copy() if anchored else 0.0, activation)
