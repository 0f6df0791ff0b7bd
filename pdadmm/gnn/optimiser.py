"""The parameters of the layers, their gradients summed over all parts, and Adam's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pdadmm.arrays import Array, copy_into
from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.comm.reduction import Reduction
from pdadmm.comm.waiter import Waiter
from pdadmm.files import Record
from pdadmm.gnn.equations import Moments, xavier_uniform
from pdadmm.gnn.laps import Laps, gradients_name
from pdadmm.gnn.layer import Shape
from pdadmm.gnn.passes.protocol import Passes

__all__ = ["Parameters"]


class Parameters:
    """Every rank has all parameters and takes the same steps; a layer's are one vector.

    Parameters
    ----------
    shape
        Of the layers.
    mine
        Parts of this rank.
    owners
        Parts of every rank.
    waiter
        Of all ranks.
    passes
        That take the steps.
    seed
        Of the start.
    laps
        Told of the sums.
    backend
        Where the vectors are.

    Attributes
    ----------
    weights
        By layer and name.
    gradients
        By part, layer and name: of the parts of this rank, to be filled in an epoch.
    step
        Steps of Adam taken.
    """

    def __init__(
        self,
        shape: Shape,
        mine: Sequence[int],
        owners: Sequence[range],
        waiter: Waiter,
        passes: Passes,
        seed: int,
        laps: Laps | None = None,
        backend: Backend = NUMPY,
    ) -> None:
        self._passes = passes
        self._laps = laps or Laps()
        self._shapes = {layer: shape.parameters(layer) for layer in range(1, shape.layers + 1)}
        sizes = {layer: _size(named) for layer, named in self._shapes.items()}
        zeros = backend.zeros
        self.vectors = {layer: backend.asarray(self._start(seed, layer)) for layer in sizes}
        self.moments = {layer: Moments(zeros(size), zeros(size)) for layer, size in sizes.items()}
        self._of_part = {part: {layer: zeros(size) for layer, size in sizes.items()} for part in mine}
        self.weights = {layer: self.named(layer, vector) for layer, vector in self.vectors.items()}
        self.gradients = {
            part: {layer: self.named(layer, vector) for layer, vector in vectors.items()}
            for part, vectors in self._of_part.items()
        }
        self._reductions = {
            layer: Reduction(waiter, owners, size, backend=backend) for layer, size in sizes.items()
        }
        self.step = 0

    @property
    def bytes_sent(self) -> int:
        """What this rank sends to others for the sums of an epoch."""
        return sum(reduction.nbytes for reduction in self._reductions.values())

    def facts(self) -> dict[str, Record]:
        """By name of the sum, bytes that this rank sends to each of the others, in both halves."""
        return {
            gradients_name(layer): {"bytes": reduction.piece, "sum_bytes": reduction.slice_bytes}
            for layer, reduction in self._reductions.items()
        }

    def ready(self, layer: int) -> None:
        """Begin to sum the gradients of a layer; on all ranks in the same order."""
        self._reductions[layer].start({part: vectors[layer] for part, vectors in self._of_part.items()})
        self._laps.reduced(layer)

    def update(self, examples: float, rate: float, decay: float) -> None:
        """A step of Adam with the sums over all parts, divided by the number of `examples`; collective."""
        layers = sorted(self.vectors, reverse=True)
        for layer in layers:
            self._reductions[layer].launch()
        for layer in layers:
            self._laps.part("update", layer)
            self._reductions[layer].combine()
            self._laps.reduced(layer)
        self.step += 1
        scale = np.float32(1 / examples)
        for layer in layers:
            self._laps.part("update", layer)
            gradient = self._reductions[layer].finish()
            self._laps.reduced(layer)
            gradient = gradient * scale
            moments = self.moments[layer]
            self._passes.adam(
                self.vectors[layer], gradient, moments.first, moments.second, self.step, rate, decay
            )

    def _start(self, seed: int, layer: int) -> np.ndarray:
        """A layer's first vector."""
        vector = np.zeros(_size(self._shapes[layer]), np.float32)
        named = self.named(layer, vector)
        rng = np.random.default_rng([seed, layer])
        for name in sorted(named):
            if named[name].ndim == 2:
                n_out, n_in = named[name].shape
                named[name][...] = xavier_uniform(n_out, n_in, rng)
            elif name == "gamma":
                named[name][...] = 1
        return vector

    def take(self, weights: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Begin with given arrays, by layer and name."""
        for layer, named in weights.items():
            for name, array in named.items():
                copy_into(self.weights[layer][name], array)

    def named(self, layer: int, vector: Array) -> Mapping[str, Array]:
        """Views of a layer's vector."""
        views, place = {}, 0
        for name, shape in self._shapes[layer].items():
            size = int(np.prod(shape))
            views[name] = vector[place : place + size].reshape(shape)
            place += size
        return views


def _size(named: Mapping[str, tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in named.values())
