"""Forward and backward passes of a rank's parts, layer by layer, central rows behind the messages.

A layer aggregates its narrower side: H before its product, ``(A H) Wᵀ``, where it has no more columns than
it makes, and ``A (H Wᵀ)`` else; the gradient goes back the same way. Rows are worked on in two ranges,
central and marginal: marginal rows are what neighbours wait for, so they are made ready first, and while
messages travel the central rows are aggregated and multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from pdadmm.arrays import Array
from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.datasets.graph import Matrix
from pdadmm.gnn.equations import drop_rows, hidden_output
from pdadmm.gnn.halo import Slot
from pdadmm.gnn.laps import Laps
from pdadmm.gnn.part import Part
from pdadmm.gnn.passes.protocol import Drop, Passes, Sparse
from pdadmm.gnn.products import Products

__all__ = ["Halos", "Inputs", "Network", "Shape", "slots_of"]


class Halos(Protocol):
    """Fills halos; see :class:`pdadmm.gnn.halo.Exchange`."""

    def send(self, slot: str, part: int, X: Array) -> None: ...

    def receive(self, slot: str, part: int, X: Array) -> None: ...


@dataclass(frozen=True)
class Shape:
    """What the layers are.

    Parameters
    ----------
    model
        ``gcn`` or ``sage``.
    widths
        Columns of the features, of every hidden layer and of the output, n_0 ... n_L.
    dropped_first
        AdaQP's order: dropout before the norm.
    exact_inputs
        The first layer's aggregation of the features is made once; else it is sent for in every epoch.
    narrow
        Aggregate the narrower side; else always the inputs, as AdaQP does.
    eager
        Multiply central rows behind the messages too; else only aggregate them.
    changes
        Embeddings travel as changes since the epoch before: aggregated before the product, and as they are
        before dropout, whose masks differ from epoch to epoch; the receiver repeats the mask.
    """

    model: str
    widths: tuple[int, ...]
    dropped_first: bool = False
    exact_inputs: bool = True
    narrow: bool = True
    eager: bool = True
    changes: bool = False

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.widths) - 1

    def transforms_first(self, layer: int) -> bool:
        """Whether a layer multiplies before it aggregates."""
        narrower = layer > 1 and self.widths[layer] < self.widths[layer - 1]
        return self.narrow and narrower and not self.changes

    def sends_undropped(self, layer: int) -> bool:
        """Whether a layer sends its inputs as they are before dropout."""
        return self.changes and layer > 1 and not self.dropped_first

    def sent(self, layer: int) -> int:
        """Entries of a row that a layer sends, either way."""
        return self.widths[layer] if self.transforms_first(layer) else self.widths[layer - 1]

    @property
    def neighbours(self) -> str:
        """The weight of what is aggregated."""
        return "W" if self.model == "gcn" else "W_neighbours"

    def parameters(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a layer's parameters by name."""
        n_in, n_out = self.widths[layer - 1], self.widths[layer]
        shapes: dict[str, tuple[int, ...]] = {self.neighbours: (n_out, n_in)}
        if self.model == "sage":
            shapes["W_self"] = (n_out, n_in)
        shapes["b"] = (n_out,)
        if layer < self.layers:
            shapes["gamma"] = shapes["beta"] = (n_out,)
        return shapes


def slots_of(shape: Shape) -> list[Slot]:
    """The messages of an epoch, in order."""
    first = 2 if shape.exact_inputs else 1
    names = [("F", layer) for layer in range(first, shape.layers + 1)]
    names += [("B", layer) for layer in range(shape.layers, 1, -1)]
    return [Slot(f"{way}{i}", number, i, shape.sent(i)) for number, (way, i) in enumerate(names)]


class Inputs:
    """The features of a part, or their aggregation; sparse where that takes less.

    Parameters
    ----------
    matrix
        (n, n_0), an array or a scipy.sparse.csr_matrix.
    backend
        Where they are multiplied.
    """

    def __init__(self, matrix: Matrix, dtype: type = np.float32, backend: Backend = NUMPY) -> None:
        self._shape = matrix.shape
        self._backend = backend
        self.sparse: tuple[Sparse, Sparse] | None = None
        self.dense: Array | None = None
        if isinstance(matrix, np.ndarray):
            self.dense = backend.asarray(np.ascontiguousarray(matrix, dtype))
        else:
            transposed = matrix.T.tocsr()
            self.sparse = _csr(matrix, dtype).to(backend), _csr(transposed, dtype).to(backend)

    def times(self, W: Array, products: Products, passes: Passes, out: Array, add: bool = False) -> None:
        """``out = X Wᵀ`` or ``out += X Wᵀ``."""
        if self.dense is not None:
            products.rows(self.dense, W.T, out, add)
        elif self.sparse is not None:
            passes.aggregate(self.sparse[0], W.T.copy(), out, add)

    def rows(self) -> Array:
        """All of it as an array."""
        if self.dense is not None:
            return self.dense
        assert self.sparse is not None
        forward = self.sparse[0]
        values, indices, indptr = map(
            self._backend.to_host, (forward.values, forward.indices, forward.indptr)
        )
        return self._backend.asarray(sp.csr_matrix((values, indices, indptr), shape=self._shape).toarray())

    def gradient(self, G: Array, products: Products, passes: Passes, out: Array) -> None:
        """``out = Gᵀ X``."""
        if self.dense is not None:
            products.over_rows(G, self.dense, out)
        elif self.sparse is not None:
            transposed = self._backend.empty((out.shape[1], out.shape[0]), out.dtype)
            passes.aggregate(self.sparse[1], G, transposed)
            out[...] = transposed.T


def _csr(matrix: Matrix, dtype: type) -> Sparse:
    matrix.sort_indices()
    return Sparse(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data.astype(dtype))


class _Range:
    """Rows of a part that are worked on together, as views that are made once."""

    def __init__(self, at: _PartOfLayer, rows: slice, part: Part) -> None:
        self.nodes = part.nodes[rows]
        self.rows = part.forward.between(rows.start, rows.stop)
        self.transposed = part.backward.between(rows.start, rows.stop)
        self.Z, self.inverse, self.G, self.H = at.Z[rows], at.inverse[rows], at.G[rows], at.H[rows]
        self.A, self.G_A = at.A[rows], at.G_A[rows]
        self.forward, self.back = at.forward[rows], at.back[rows]


class _PartOfLayer:
    """The arrays of a part in a layer; made once, empty where the layer has no use for one.

    Attributes
    ----------
    H
        (n, n_in) input.
    A
        (n, n_in) aggregated input, where the layer aggregates first.
    Z, inverse
        (n, n_out), (n,): linear output; normalised, and by what, after the hidden pass.
    forward, back
        (n + h, sent): what is aggregated, either way, own rows and halo.
    G, G_A
        (n, n_out): gradients of Z and, where the layer multiplies first, of what it aggregates.
    sums
        (3, n_out) float64: gradients of gamma, beta and b.
    undropped
        (n, n_in) input before dropout, of marginal rows alone, where that travels.
    """

    def __init__(
        self, part: Part, shape: Shape, layer: int, dtype: type, backward: bool, backend: Backend
    ) -> None:
        n, n_in, n_out = part.size, shape.widths[layer - 1], shape.widths[layer]
        transforms, exact = shape.transforms_first(layer), layer == 1 and shape.exact_inputs

        def make(rows: int, cols: int, wanted: bool = True) -> Array:
            return backend.zeros((rows if wanted else 0, cols), dtype)

        self.Z: Array = make(n, n_out)
        self.inverse: Array = backend.asarray(np.ones(n, dtype))
        self.forward = make(part.extent, shape.sent(layer), not exact)
        self.back = make(part.extent, shape.sent(layer), backward and layer > 1)
        self.H = make(n, n_in, not exact) if transforms or exact else self.forward[:n]
        self.A = make(n, n_in, not (transforms or exact))
        self.G = self.back[:n] if transforms else make(n, n_out, backward)
        self.G_A = make(n, n_out, backward and transforms)
        self.sums: Array = backend.zeros((3, n_out), np.float64)
        self.undropped = make(n, n_in, shape.sends_undropped(layer))
        self.central = _Range(self, slice(0, part.central), part)
        self.marginal = _Range(self, slice(part.central, n), part)


class Network:
    """The layers of a rank's parts.

    Parameters
    ----------
    shape
        Of the layers.
    parts
        Of this rank, by number.
    inputs
        By part, what the first layer multiplies: the aggregated features where they are exact, else the
        features.
    own_inputs
        By part: the features, for the own weight of GraphSAGE; empty for GCN.
    weights, gradients
        By layer (from 1): parameters by name, and by part and layer their gradients, which a backward
        pass writes.
    backward
        Whether there is room for a backward pass.
    laps
        Told which layer it is.
    backend
        Where the arrays are; those of `parts` are copied there.
    """

    def __init__(
        self,
        shape: Shape,
        parts: Mapping[int, Part],
        inputs: Mapping[int, Inputs],
        own_inputs: Mapping[int, Inputs],
        weights: Mapping[int, Mapping[str, Array]],
        gradients: Mapping[int, Mapping[int, Mapping[str, Array]]],
        passes: Passes,
        products: Products,
        dtype: type = np.float32,
        backward: bool = True,
        laps: Laps | None = None,
        backend: Backend = NUMPY,
    ) -> None:
        self._laps = laps or Laps()
        self.shape = shape
        self.parts = parts = {number: part.to(backend) for number, part in parts.items()}
        self._inputs, self._own = inputs, own_inputs
        self._weights, self._gradients = weights, gradients
        self._passes, self._products = passes, products
        self._at = {
            layer: {
                number: _PartOfLayer(part, shape, layer, dtype, backward, backend)
                for number, part in parts.items()
            }
            for layer in range(1, shape.layers + 1)
        }
        if not shape.exact_inputs:
            for number, at in self._at[1].items():
                at.H[...] = inputs[number].rows()

    def output(self, part: int) -> Array:
        """(n, n_L) output of the last layer, bias included, after :meth:`forward`."""
        return self._at[self.shape.layers][part].Z

    def output_gradient(self, part: int) -> Array:
        """(n, n_L) its gradient, to be filled before :meth:`backward`."""
        return self._at[self.shape.layers][part].G

    # ---- forward ------------------------------------------------------------------------------------

    def forward(self, halos: Halos, drops: Mapping[int, Drop]) -> None:
        """Compute the output; `drops` by hidden layer."""
        for layer in range(1, self.shape.layers + 1):
            self._laps.part("forward", layer)
            if layer == 1 and self.shape.exact_inputs:
                self._first(drops)
            else:
                self._forward(layer, halos, drops)

    def _first(self, drops: Mapping[int, Drop]) -> None:
        """The first layer, whose aggregated inputs are at hand."""
        W = self._weights[1]
        for number, at in self._at[1].items():
            self._inputs[number].times(W[self.shape.neighbours], self._products, self._passes, at.Z)
            if number in self._own:
                self._own[number].times(W["W_self"], self._products, self._passes, at.Z, add=True)
            for part in ("central", "marginal"):
                self._finish(1, number, part, drops)

    def _forward(self, layer: int, halos: Halos, drops: Mapping[int, Drop]) -> None:
        slot, transforms = f"F{layer}", self.shape.transforms_first(layer)
        W = self._weights[layer]
        multiply = self._products.rows
        for number, at in self._at[layer].items():
            if transforms:
                multiply(at.marginal.H, W[self.shape.neighbours].T, at.marginal.forward)
            if self.shape.sends_undropped(layer):
                self._undrop(layer, number)
                halos.send(slot, number, at.undropped)
            else:
                halos.send(slot, number, at.forward)
        for number, at in self._at[layer].items():
            rows = at.central
            if transforms:
                multiply(rows.H, W[self.shape.neighbours].T, rows.forward)
            self._passes.aggregate(rows.rows, at.forward, rows.Z if transforms else rows.A)
            if self.shape.eager:
                self._multiply(layer, rows)
                self._finish(layer, number, "central", drops)
        for number, at in self._at[layer].items():
            halos.receive(slot, number, at.forward)
            if self.shape.sends_undropped(layer):
                part = self.parts[number]
                drop = drops[layer - 1]
                drop_rows(at.forward[part.size :], drop.rate, drop.key, part.halo_nodes)
            rows = at.marginal
            self._passes.aggregate(rows.rows, at.forward, rows.Z if transforms else rows.A)
            if not self.shape.eager:
                self._multiply(layer, at.central)
                self._finish(layer, number, "central", drops)
            self._multiply(layer, rows)
            self._finish(layer, number, "marginal", drops)

    def _undrop(self, layer: int, number: int) -> None:
        """The input of a layer before dropout, of marginal rows, from what the layer below has kept."""
        below, weights = self._range(layer - 1, number, "marginal"), self._weights[layer - 1]
        target = self._at[layer][number].undropped[self.parts[number].central :]
        target[...] = hidden_output(below.Z, weights["gamma"], weights["beta"], None)

    def _multiply(self, layer: int, rows: _Range) -> None:
        """What a layer has left to do for Z after aggregation, but for the bias."""
        W, transforms = self._weights[layer], self.shape.transforms_first(layer)
        if not transforms:
            self._products.rows(rows.A, W[self.shape.neighbours].T, rows.Z)
        if self.shape.model == "sage":
            self._products.rows(rows.H, W["W_self"].T, rows.Z, add=True)

    def _finish(self, layer: int, number: int, which: str, drops: Mapping[int, Drop]) -> None:
        """Bias, and in hidden layers norm, activation and dropout, into the next layer's input."""
        W, rows = self._weights[layer], self._range(layer, number, which)
        if layer == self.shape.layers:
            rows.Z += W["b"]
            return
        H = self._range(layer + 1, number, which).H
        self._passes.hidden(
            rows.Z, W["b"], W["gamma"], W["beta"], rows.nodes, drops[layer], rows.Z, rows.inverse, H
        )

    def _range(self, layer: int, number: int, which: str) -> _Range:
        at = self._at[layer][number]
        return at.central if which == "central" else at.marginal

    # ---- backward -----------------------------------------------------------------------------------

    def backward(self, halos: Halos, drops: Mapping[int, Drop], ready: Callable[[int], None]) -> None:
        """Compute the gradients from that of the output.

        Parameters
        ----------
        ready
            Called with every layer, from the last to the first, when its gradients are there.
        """
        for layer in range(self.shape.layers, 0, -1):
            self._laps.part("backward", layer)
            for at in self._at[layer].values():
                if layer == self.shape.layers:
                    at.sums[:] = 0
                    self._passes.column_sums(at.G, at.sums[2])
            if layer == 1:
                self._backward_first()
            else:
                self._backward(layer, halos, drops)
            for number, at in self._at[layer].items():
                of_part = self._gradients[number][layer]
                of_part["b"][...] = at.sums[2]
                if layer < self.shape.layers:
                    of_part["gamma"][...], of_part["beta"][...] = at.sums[0], at.sums[1]
            ready(layer)

    def _backward_first(self) -> None:
        """Gradients of the first layer's weights; the features need none."""
        for number, at in self._at[1].items():
            found = self._gradients[number][1]
            if self.shape.exact_inputs:
                inputs = self._inputs[number]
                inputs.gradient(at.G, self._products, self._passes, found[self.shape.neighbours])
                if number in self._own:
                    self._own[number].gradient(at.G, self._products, self._passes, found["W_self"])
            else:
                self._products.over_rows(at.G, at.A, found[self.shape.neighbours])
                if self.shape.model == "sage":
                    self._products.over_rows(at.G, at.H, found["W_self"])

    def _backward(self, layer: int, halos: Halos, drops: Mapping[int, Drop]) -> None:
        slot, transforms = f"B{layer}", self.shape.transforms_first(layer)
        W = self._weights[layer]
        multiply = self._products.rows
        for number, at in self._at[layer].items():
            if not transforms:
                multiply(at.marginal.G, W[self.shape.neighbours], at.marginal.back)
                if not self.shape.eager:
                    multiply(at.central.G, W[self.shape.neighbours], at.central.back)
            halos.send(slot, number, at.back)
        for number, at in self._at[layer].items():
            if not transforms and self.shape.eager:
                multiply(at.central.G, W[self.shape.neighbours], at.central.back)
            if self.shape.eager:
                self._own_gradients(layer, number)
            self._descend(layer, number, "central")
            if self.shape.eager:
                self._lower(layer, number, "central", drops)
        for number, at in self._at[layer].items():
            halos.receive(slot, number, at.back)
            if not self.shape.eager:
                self._own_gradients(layer, number)
                self._lower(layer, number, "central", drops)
            self._descend(layer, number, "marginal")
            self._lower(layer, number, "marginal", drops)
            if transforms:
                self._products.over_rows(at.G_A, at.H, self._gradients[number][layer][self.shape.neighbours])

    def _own_gradients(self, layer: int, number: int) -> None:
        """Gradients of weights that need no halo."""
        at, found = self._at[layer][number], self._gradients[number][layer]
        if not self.shape.transforms_first(layer):
            self._products.over_rows(at.G, at.A, found[self.shape.neighbours])
        if self.shape.model == "sage":
            self._products.over_rows(at.G, at.H, found["W_self"])

    def _descend(self, layer: int, number: int, which: str) -> None:
        """Aggregate what neighbours hold of the gradient: to that of the input, or of what was aggregated."""
        at, rows = self._at[layer][number], self._range(layer, number, which)
        below = self._range(layer - 1, number, which)
        target = rows.G_A if self.shape.transforms_first(layer) else below.G
        self._passes.aggregate(rows.transposed, at.back, target)

    def _lower(self, layer: int, number: int, which: str, drops: Mapping[int, Drop]) -> None:
        """From the gradient of a layer's input to that of the linear output of the layer below."""
        W = self._weights[layer]
        rows, below = self._range(layer, number, which), self._range(layer - 1, number, which)
        if self.shape.transforms_first(layer):
            self._products.rows(rows.G_A, W[self.shape.neighbours], below.G)
        if self.shape.model == "sage":
            self._products.rows(rows.G, W["W_self"], below.G, add=True)
        sums = self._at[layer - 1][number].sums
        if which == "central":
            sums[:] = 0
        weights = self._weights[layer - 1]
        self._passes.hidden_backward(
            below.G, below.Z, below.inverse, weights["gamma"], weights["beta"], below.nodes,
            drops[layer - 1], sums,
        )  # fmt: skip
