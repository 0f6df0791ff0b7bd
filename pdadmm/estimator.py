"""Networks trained by ADMM, with scikit-learn's manners."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pdadmm.errors import InputError, RunError
from pdadmm.inputs.class_prior import noted
from pdadmm.model import Model

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("ADMMClassifier needs scikit-learn 1.6; pip install 'pdadmm[sklearn]'") from error

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from sklearn.utils import Tags

    from pdadmm.admm.fitting import Task
    from pdadmm.admm.start import Start
    from pdadmm.datasets.graph import Matrix

__all__ = ["ADMMClassifier"]

#: of a sparse X, made dense at once
_ROWS = 4096


def _of_parameters(message: str) -> str:
    """A message of the command line in the names of parameters: z_centre for --z-centre."""
    # not what looks like one in the name of a file
    return re.sub(
        r"(?<![^\s(,'\"])--([a-z][a-z-]*[a-z])(?![\w/])", lambda found: found[1].replace("-", "_"), message
    )


def _dense(X: Matrix | np.ndarray) -> np.ndarray:
    """An array, or a matrix of scipy.sparse, as an array."""
    return X if isinstance(X, np.ndarray) else np.asarray(X.toarray())


class ADMMClassifier(ClassifierMixin, BaseEstimator):
    """A deep MLP, trained layer by layer in parallel by ADMM.

    In a plain process all layers are trained in that process. Under ``mpirun -n R python script.py`` they are
    spread over the ranks: every rank calls `fit` with the same data, and every rank has the same network,
    bit for bit that of one rank.

    Parameters are the options of ``python -m pdadmm.run`` of the same names, and so are their defaults, but
    for `layers`, which does not follow the number of ranks, `stages`, a sequence of depths, and `start`. They
    are checked by `fit`.

    Parameters
    ----------
    layers
        Layers of the finished network.
    hidden
        Neurons of a hidden layer.
    activation
        Of the hidden layers: relu, leaky_relu, tanh or sigmoid.
    input_norm
        Scaling of the rows of X: none, or hellinger, the square root of their share of the row's sum.
    start
        A `pdadmm.Model`, or the path of a model.h5, whose layers the first stage begins with; None: random.
    stages
        Depths to grow through; None: doubling up to `layers`.
    iterations
        Iterations of every stage.
    solver
        p and W by a gradient step (gradient) or by exact minimisation (exact).
    step
        Step length: exact line search (exact), one a node in p and a neuron in W (row), or the authors'
        doubling (doubling).
    nu
        Penalty of z = pW+b and q = f(z).
    rho
        Penalty of p = q between layers.
    mu
        L2 penalty of the weights.
    damping
        Exact solver: pull of W to its last value, in mean eigenvalues of the Gram matrix of its inputs.
    momentum
        Exact solver: share of their last change that W and b of the hidden layers repeat, below 1.
    z_centre
        What the z-update of the hidden layers stays near: the previous z, or the linear output pW+b.
    anchor
        What the L2 penalty pulls inserted layers towards: identity or zero.
    risk
        Loss of the output layer: cross_entropy or least_squares.
    class_prior
        Class distribution to predict for: that of y (train) or, as correction of
        label shift, of the validation data (val).
    schedule
        Constant nu and rho, or the authors' rule (authors): tenfold, up to 1, when the training loss stalls.
    refresh
        Iterations between recomputations of the residual.
    seed
        Of the initial weights and of stochastic rounding.
    codec
        Coding of the messages: float32, grid, affine or delta.
    bits
        Bits an entry: 8, 4, 2 or (delta) 1; None: 4, and 32 for float32.
    grid_low
        Smallest value of the grid; None: from the forward pass.
    grid_high
        Largest value of the grid; None: from the forward pass.
    kernels
        The passes between products: fused, compiled; reference, plain array operations; auto.
    threads
        Threads of a rank; None: OMP_NUM_THREADS, or else OPENBLAS_NUM_THREADS, or the node's cores over
        its ranks.
    shards
        Shards that the rows are cut into; under mpirun the number of ranks is a multiple of it.
    as_sharded
        Compute as 8 shards would: the same bits in 1, 2, 4 and 8 also of few rows, for longer iterations.
    eval_every
        Iterations between evaluations.
    keep_best
        Whether the network is that of the evaluated iteration that was best on the validation data (of equal
        ones the last; perhaps of an earlier stage, with fewer layers), in place of the last iteration's.

    Attributes
    ----------
    classes_ : (classes,)
        Labels, sorted.
    n_features_in_ : int
        Columns of X.
    history_ : list of dict
        Every evaluated iteration, the fields of metrics.jsonl; those of validation are NaN without such data,
        and those of test always.
    model_ : pdadmm.Model
        The network, for files and PyTorch.

    Examples
    --------
    >>> from pdadmm import ADMMClassifier
    >>> ADMMClassifier(layers=4, hidden=64, bits=2).fit(X, y).predict(X)      # doctest: +SKIP
    """

    def __init__(
        self,
        layers: int = 10,
        hidden: int = 100,
        activation: str = "relu",
        input_norm: str = "none",
        *,
        start: Model | str | os.PathLike[str] | None = None,
        stages: Sequence[int] | None = None,
        iterations: int = 100,
        solver: str = "gradient",
        step: str = "exact",
        nu: float = 0.01,
        rho: float = 0.1,
        mu: float = 0.01,
        damping: float = 0.0,
        momentum: float = 0.0,
        z_centre: str = "previous",
        anchor: str = "identity",
        risk: str = "cross_entropy",
        class_prior: str = "train",
        schedule: str = "constant",
        refresh: int = 25,
        seed: int = 0,
        codec: str = "delta",
        bits: int | None = None,
        grid_low: float | None = None,
        grid_high: float | None = None,
        kernels: str = "auto",
        threads: int | None = None,
        shards: int = 1,
        as_sharded: bool = False,
        eval_every: int = 10,
        keep_best: bool = False,
    ) -> None:
        self.layers = layers
        self.hidden = hidden
        self.activation = activation
        self.input_norm = input_norm
        self.start = start
        self.stages = stages
        self.iterations = iterations
        self.solver = solver
        self.step = step
        self.nu = nu
        self.rho = rho
        self.mu = mu
        self.damping = damping
        self.momentum = momentum
        self.z_centre = z_centre
        self.anchor = anchor
        self.risk = risk
        self.class_prior = class_prior
        self.schedule = schedule
        self.refresh = refresh
        self.seed = seed
        self.codec = codec
        self.bits = bits
        self.grid_low = grid_low
        self.grid_high = grid_high
        self.kernels = kernels
        self.threads = threads
        self.shards = shards
        self.as_sharded = as_sharded
        self.eval_every = eval_every
        self.keep_best = keep_best

    def fit(
        self, X: ArrayLike, y: ArrayLike, validation: tuple[ArrayLike, ArrayLike] | None = None
    ) -> ADMMClassifier:
        """Train anew; under mpirun collective, with the same data on all ranks.

        Parameters
        ----------
        X : (rows, inputs)
            Taken as float32; a sparse matrix is made dense.
        y : (rows,)
            Labels of any kind, of two classes or more.
        validation
            X and y to evaluate on, see `history_`; the network depends on them with `keep_best` and
            ``class_prior="val"`` only, which need them.

        Raises
        ------
        ValueError
            When data or parameters cannot be trained on.
        pdadmm.errors.RunError
            When the run diverges.
        """
        from pdadmm.admm.fitting import fit

        task: Task | Exception
        classes = np.empty(0)
        try:
            task, classes = self._task(X, y, validation)
        except Exception as error:  # the other ranks are not to wait
            task = error
        try:
            fitted = fit(task)
        except InputError as error:
            raise ValueError(_of_parameters(str(error))) from None
        except RunError as error:
            raise RunError(_of_parameters(str(error)), error.everywhere) from None
        self.classes_ = classes
        attributes = {
            "activation": self.activation, "input_norm": self.input_norm, "hop_decay": 1.0,
            "features_per_hop": self.n_features_in_, "first_depth": fitted.first_depth,
            **noted(self.class_prior, fitted.shift),
        }  # fmt: skip
        self.model_ = Model(fitted.weights, fitted.biases, self.activation, attributes)
        self.history_ = fitted.history
        return self

    def _task(
        self, X: ArrayLike, y: ArrayLike, validation: tuple[ArrayLike, ArrayLike] | None
    ) -> tuple[Task, np.ndarray]:
        """What is to be trained on and how, and the classes; ValueError where that cannot be."""
        from pdadmm.admm.fitting import Data, Task

        inputs, labels = validate_data(self, X, y, dtype=np.float32, accept_sparse="csr")
        inputs = _dense(inputs)
        check_classification_targets(labels)
        classes, found = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"ADMMClassifier needs labels of at least 2 classes; y has {len(classes)} class")
        train = len(inputs)
        if validation is None and (self.keep_best or self.class_prior == "val"):
            name = "keep_best" if self.keep_best else "class_prior='val'"
            raise ValueError(f"{name} needs validation data; give fit some, or leave it out")
        if validation is not None:
            if not isinstance(validation, tuple | list) or len(validation) != 2:
                raise ValueError("validation must be a pair (X, y)")
            X_val, y_val = validate_data(
                self, *validation, dtype=np.float32, accept_sparse="csr", reset=False
            )
            unknown = np.setdiff1d(y_val, classes)
            if len(unknown):
                raise ValueError(f"validation has the label {unknown[0]}, which y has not")
            inputs = np.concatenate([inputs, _dense(X_val)])
            found = np.concatenate([found, np.searchsorted(classes, y_val)])
        data = Data(np.ascontiguousarray(inputs), found.astype(np.int64), train, len(classes))
        options: dict[str, Any] = self.get_params(deep=False)
        del options["start"], options["keep_best"]
        # the command's words for what it is to choose itself
        options["stages"] = [] if self.stages is None else np.asarray(self.stages).tolist()
        options.update({name: 0 for name in ("bits", "threads") if options[name] is None})
        for name in ("grid_low", "grid_high"):
            if options[name] is None:
                del options[name]
        return Task(data, options, self._start(), bool(self.keep_best)), classes

    def _start(self) -> Start | None:
        from pdadmm.admm.start import Start

        if self.start is None:
            return None
        if isinstance(self.start, Model):
            attributes = {**self.start.attributes, "activation": self.start.activation}
            found = Start.of_arrays(self.start.weights, self.start.biases, attributes)
        elif isinstance(self.start, str | os.PathLike):
            found = Start.of_file(self.start)
        else:
            raise ValueError(
                f"start is a {type(self.start).__name__}; give a pdadmm.Model, as a fitted estimator's "
                "model_, or the path of a model.h5"
            )
        decay = found.options["hop_decay"]
        if decay != 1:
            raise ValueError(
                f"start weighs operators by a hop_decay of {decay:g}, which is none of the parameters here; "
                "go on from it with python -m pdadmm.run --start"
            )
        return found

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities (rows, classes), in the order of `classes_`."""
        return self._predicted(X, Model.predict_proba)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Labels (rows,)."""
        found = self._predicted(X, Model.predict)
        return np.asarray(self.classes_[found])

    def _predicted(self, X: ArrayLike, how: Callable[[Model, np.ndarray], np.ndarray]) -> np.ndarray:
        check_is_fitted(self)
        try:
            found = validate_data(self, X, dtype=np.float32, accept_sparse="csr", reset=False)
            if isinstance(found, np.ndarray):
                return how(self.model_, found)
            starts = range(0, found.shape[0], _ROWS)
            return np.concatenate([how(self.model_, _dense(found[i : i + _ROWS])) for i in starts])
        except InputError as error:
            raise ValueError(_of_parameters(str(error))) from None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
