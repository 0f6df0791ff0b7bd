"""The passes on CPUs: calls into the compiled library of ``kernels/``."""

from __future__ import annotations

import ctypes
import struct
import weakref

import numpy as np

from pdadmm.admm.activations import Activation
from pdadmm.admm.passes import in_place
from pdadmm.admm.passes.lengths import HostLengths, Lengths
from pdadmm.admm.passes.protocol import Coupled, HiddenSums, Workspace
from pdadmm.admm.passes.reference import ReferencePasses
from pdadmm.admm.updates import RidgeSystem
from pdadmm.arrays import Array, Scalar
from pdadmm.codec import NonFiniteError
from pdadmm.codec.base import require_size
from pdadmm.kernels.host import CODING, HostKernels, doubles, same_shape

__all__ = ["HostPasses"]

_WEIGHT_GRADIENT = struct.Struct("=5q2d").pack
_SUBTRACT_MEAN = struct.Struct("=4qd3q").pack
_WEIGHT_LINE_SEARCH = struct.Struct("=6q2d").pack
_RESIDUAL = struct.Struct("=5q").pack
_P_GRADIENT = struct.Struct("=8q2d" + CODING + "q").pack
_P_STEP = struct.Struct("=6qdq" + CODING).pack
_P_LINE_SEARCH = struct.Struct("=9q2dq" + CODING + "q").pack
_PROJECTED_CHANGE = struct.Struct("=5qd" + CODING + "q").pack
_HIDDEN = struct.Struct("=11q3d4q" + CODING + "q").pack
_OUTPUT = struct.Struct("=6qd3q").pack


class HostPasses(HostKernels):
    """The compiled passes; methods and results as in :class:`pdadmm.admm.passes.protocol.Passes`.

    Activations other than ReLU and leaky ReLU have no compiled z-update, and codecs that the library
    does not know no compiled form at all: the NumPy form runs for them.
    """

    centres = False

    def __init__(self, threads: int = 1, groups: int = 0) -> None:
        super().__init__(threads, groups)
        self.lengths: Lengths = HostLengths()
        integer, real = ctypes.c_int, ctypes.c_double
        self._weight_gradient = self._function("weight_gradient", real)
        self._subtract_mean = self._function("subtract_mean", integer)
        self._weight_line_search = self._function("weight_line_search", real)
        self._residual = self._function("residual", integer)
        self._p_gradient = self._function("p_gradient", real)
        self._p_step = self._function("p_step", integer)
        self._p_line_search = self._function("p_line_search", real)
        self._projected_change = self._function("projected_change", real)
        self._hidden = self._function("hidden", integer)
        self._output = self._function("output", real)
        self._sums = np.zeros(6)
        self._sums_address = self._sums.ctypes.data
        self._labels: dict[int, tuple[Array, weakref.ref[Array]]] = {}
        self._reference = ReferencePasses(groups=groups)

    # ---- sums and steps -----------------------------------------------------------------------------

    def weight_gradient(self, G: Array, W: Array, W_bar: Array | float, nu: float, mu: float) -> float:
        rows, cols = G.shape
        same_shape(G, W)
        if isinstance(W_bar, np.ndarray):
            same_shape(G, W_bar)
            anchor = self._address(W_bar)
        else:
            if W_bar:
                raise ValueError(f"the anchor W_bar is an array or 0, not {W_bar}")
            anchor = 0
        norm: float = self._weight_gradient(
            _WEIGHT_GRADIENT(rows, cols, self._address(G), self._address(W), anchor, nu, mu)
        )
        return norm

    def subtract_mean(self, M: Array, K: Array, length: float | Array) -> Array:
        rows, cols = M.shape
        same_shape(M, K)
        sums, address = self._column_room(cols)
        one, each = (0.0, doubles(length, cols)) if isinstance(length, np.ndarray) else (length, 0)
        self._subtract_mean(
            _SUBTRACT_MEAN(rows, cols, self._address(M), self._address(K), one, each, address, self.groups)
        )
        return sums

    def weight_line_search(
        self, W: Array, G: Array, images: Array, nu: float, mu: float, lengths: Array
    ) -> float:
        rows, cols = W.shape
        same_shape(W, G)
        return self._weight_line_search(
            _WEIGHT_LINE_SEARCH(
                rows, cols, self._address(W), self._address(G), doubles(images, rows),
                doubles(lengths, rows), nu, mu,
            )
        )  # fmt: skip

    def bias_step(self, sums: Array, nodes: int, b: Array, mean: Array) -> None:
        np.divide(sums, nodes, out=mean, casting="unsafe")
        b -= mean

    def residual(self, M: Array, b: Array, z: Array) -> None:
        rows, cols = M.shape
        same_shape(M, z)
        at = self._address
        self._residual(_RESIDUAL(rows, cols, at(M), at(b), at(z)))

    # ---- the update of p ----------------------------------------------------------------------------

    def p_gradient(self, G: Array, end: Coupled, message: Array | None, nu: float, rho: float) -> float:
        coding = self._coding(end.codec)
        if coding is None:
            return self._reference.p_gradient(G, end, message, nu, rho)
        rows, cols = G.shape
        p, p_hat, q_hat, u = end.own, end.own_hat, end.other_hat, end.u
        same_shape(G, p, p_hat, q_hat, u)
        at = self._address
        if message is not None:
            require_size(message, end.codec, rows, cols)
        return self._p_gradient(
            _P_GRADIENT(
                rows, cols, at(G), at(p), at(p_hat), at(q_hat), at(u),
                0 if message is None else at(message), nu, rho, *coding, self.groups,
            )
        )  # fmt: skip

    def p_step(self, end: Coupled, G: Array, length: float, out: Array, key: int) -> None:
        coding = self._coding(end.codec)
        if coding is None:
            self._reference.p_step(end, G, length, out, key)
            return
        rows, cols = G.shape
        p, p_hat = end.own, end.own_hat
        same_shape(G, p, p_hat)
        require_size(out, end.codec, rows, cols)
        at = self._address
        if self._p_step(_P_STEP(rows, cols, at(p), at(G), at(p_hat), at(out), length, key, *coding)):
            raise NonFiniteError

    def p_line_search(
        self, end: Coupled, G: Array, H: Array, M: Array, nu: float, rho: float, out: Array, key: int
    ) -> float:
        coding = self._coding(end.codec)
        if coding is None:
            return float(self._reference.p_line_search(end, G, H, M, nu, rho, out, key))
        rows, cols = G.shape
        p, p_hat = end.own, end.own_hat
        same_shape(G, p, p_hat)
        same_shape(M, H)
        if len(M) != rows:
            raise ValueError(f"{len(M)} rows of M for {rows} nodes")
        require_size(out, end.codec, rows, cols)
        at = self._address
        decrease = self._p_line_search(
            _P_LINE_SEARCH(
                rows, cols, at(p), at(G), at(p_hat), at(out), at(M), at(H), M.shape[1], nu, rho, key,
                *coding, self.groups,
            )
        )  # fmt: skip
        if np.isnan(decrease):
            raise NonFiniteError
        return decrease

    def projected_change(self, change: Array, end: Coupled, G: Array, length: float) -> float:
        coding = self._coding(end.codec)
        if coding is None:
            return self._reference.projected_change(change, end, G, length)
        rows, cols = G.shape
        same_shape(G, end.own, change)
        at = self._address
        moved = self._projected_change(
            _PROJECTED_CHANGE(rows, cols, at(change), at(end.own), at(G), length, *coding, self.groups)
        )
        if not np.isfinite(moved):
            raise NonFiniteError
        return moved

    # ---- the exact solver ---------------------------------------------------------------------------

    def inverse_hessian(self, W: Array, nu: float, rho: float, work: Workspace) -> Array:
        return in_place.inverse_hessian(W, nu, rho, work)

    def gram_share(self, p: Array, p_mean: Array, work: Workspace) -> Array:
        return in_place.gram_share(p, work)

    def gram(self, shares: Array, p_mean: Array, nodes: int) -> Array:
        return in_place.centred(shares, p_mean, p_mean, nodes)

    def right_share(
        self, p: Array, z: Array, p_mean: Array, z_mean: Array, W_bar: Array | float, work: Workspace
    ) -> Array:
        return in_place.right_share(p, z, work)

    def right(self, shares: Array, p_mean: Array, z_mean: Array, nodes: int) -> Array:
        return in_place.centred(shares, p_mean, z_mean, nodes)

    def dual_gram(self, p: Array, p_mean: Array, work: Workspace) -> Array:
        return in_place.dual_gram(p, work)

    def system(self, gram: Array, penalty: Scalar) -> RidgeSystem:
        return in_place.FactoredRidge(gram, penalty)

    def ridge(self, system: RidgeSystem, right: Array, W_bar: Array | float) -> Array:
        return in_place.ridge(system, right, W_bar)

    def dual_ridge(
        self,
        system: RidgeSystem,
        p: Array,
        z: Array,
        p_mean: Array,
        z_mean: Array,
        W_bar: Array | float,
        work: Workspace,
    ) -> Array:
        return in_place.dual_ridge(system, p, z, W_bar, work)

    # ---- the updates of z, q and u ------------------------------------------------------------------

    def hidden(
        self,
        M: Array,
        mean: Array,
        z: Array,
        end: Coupled,
        message: Array | None,
        out: Array,
        key: int,
        f: Activation,
        nu: float,
        rho: float,
        measure: bool,
        fresh: bool = False,
    ) -> HiddenSums | None:
        coding = self._coding(end.codec)
        slope = f.slope_below
        if coding is None or slope is None:
            return self._reference.hidden(M, mean, z, end, message, out, key, f, nu, rho, measure, fresh)
        rows, cols = M.shape
        q, p_hat, q_hat, u = end.own, end.other_hat, end.own_hat, end.u
        same_shape(M, z, q, p_hat, q_hat, u)
        if message is not None:
            require_size(message, end.codec, rows, cols)
        require_size(out, end.codec, rows, cols)
        at = self._address
        if self._hidden(
            _HIDDEN(
                rows, cols, at(M), at(mean), at(z), at(q), at(p_hat), at(q_hat), at(u),
                0 if message is None else at(message), at(out),
                nu, rho, slope, key, measure, fresh, self._sums_address, *coding, self.groups,
            )
        ):  # fmt: skip
            raise NonFiniteError
        return HiddenSums(*self._sums.tolist()) if measure else None

    def output(
        self, M: Array, mean: Array, z: Array, y: Array, nu: float, risk: str, fresh: bool = False
    ) -> float:
        rows, cols = M.shape
        same_shape(M, z)
        at = self._address
        return self._output(
            _OUTPUT(
                rows, cols, at(M), at(mean), at(z), self._label_address(y, rows, cols), nu,
                risk == "cross_entropy", fresh, self.groups,
            )
        )  # fmt: skip

    def _label_address(self, y: Array, rows: int, classes: int) -> int:
        entry = self._labels.get(id(y))
        if entry is None:
            labels = np.array(y, np.int64)  # a copy: nobody may change it after the check
            if labels.shape != (rows,) or (rows and not 0 <= labels.min() <= labels.max() < classes):
                raise ValueError(f"labels must be {rows} numbers from 0 to {classes - 1}")
            key, known = id(y), self._labels
            entry = known[key] = (labels, weakref.ref(y, lambda _: known.pop(key, None)))
        if entry[0].shape != (rows,):
            raise ValueError(f"{len(entry[0])} labels for {rows} nodes")
        return int(entry[0].ctypes.data)
