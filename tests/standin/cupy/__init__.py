"""A stand-in for CuPy on a machine without a GPU: NumPy arrays that may not be mixed with NumPy's own.

It has what the package uses of CuPy and refuses what CuPy refuses: implicit copies between host and
device raise, and so do ufunc methods and ``where=``. `counts` says how often the host waited for the
"device" and how many arrays and events were made. Work on the default stream is done at once; other
streams are threads (see `cupy.cuda`). Kernels in CUDA are replaced by Python by their name.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

counts = {"waits": 0, "arrays": 0, "events": 0, "launches": 0, "graphs": 0}
#: what a captured iteration does; None: work is done at once
tape: list[Any] | None = None
__version__ = "stand-in"

float64, float32, uint8, uint16, int64, int32 = (
    np.float64, np.float32, np.uint8, np.uint16, np.int64, np.int32,
)  # fmt: skip
_SCALARS = (int, float, bool, np.generic)


class _Data:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array "on the device"."""

    __array_priority__ = 100

    def __init__(self, array: np.ndarray) -> None:
        self._a = array

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct one."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """As CuPy's, within a captured iteration too."""
        if method != "__call__":
            return NotImplemented
        unknown = set(kwargs) - {"out", "dtype", "casting"}
        if unknown:
            raise TypeError(f"Wrong arguments {unknown}")
        out = kwargs.pop("out", None)
        taken = tuple(map(_unwrap, inputs))
        if out is None:
            return _made(lambda: ufunc(*taken, **kwargs))
        kwargs["out"] = tuple(map(_unwrap, out))
        _do(lambda: ufunc(*taken, **kwargs))
        return out[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        taken, named = _unwrap(args), _unwrap(kwargs)
        return _made(lambda: func(*taken, **named))

    def _to_host(self, kind: Any) -> Any:
        assert tape is None, "a number was asked for while an iteration is captured"
        counts["waits"] += 1
        return kind(self._a)

    def __float__(self) -> float:
        return self._to_host(float)

    def __int__(self) -> int:
        return self._to_host(int)

    def __bool__(self) -> bool:
        return self._to_host(bool)

    def __len__(self) -> int:
        return len(self._a)

    def __getitem__(self, key: Any) -> ndarray:
        key = _unwrap(key)
        found = self._a[key]
        if isinstance(found, np.generic):  # CuPy's is a view
            return _wrap(self._a[(*key, ...) if isinstance(key, tuple) else (key, ...)])
        return _wrap(found) if np.may_share_memory(found, self._a) else _made(lambda: self._a[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        key, value = _unwrap(key), _unwrap(value)
        _do(lambda: self._a.__setitem__(key, value))

    def fill(self, value: Any) -> None:
        _do(lambda: self._a.fill(value))

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        assert tape is None, "an array was asked for while an iteration is captured"
        target = np.empty_like(self._a) if out is None else out
        if not isinstance(target, np.ndarray) or target.shape != self.shape or target.dtype != self.dtype:
            raise TypeError("out does not fit")
        if blocking:
            counts["waits"] += 1
            target[...] = self._a
        else:
            source = self._a
            stream._do(lambda: target.__setitem__(..., source))
        return target

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray) or arr.shape != self.shape or arr.dtype != self.dtype:
            raise TypeError("the array does not fit")
        target = self._a
        if stream is None:
            target[...] = arr
        else:
            stream._do(lambda: target.__setitem__(..., arr))

    @property
    def data(self) -> _Data:
        return _Data(self._a.ctypes.data)

    @property
    def T(self) -> ndarray:
        return ndarray(self._a.T)


def _delegate(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        taken, named = _unwrap(args), _unwrap(kwargs)
        return _made(lambda: getattr(self._a, name)(*taken, **named))

    return method


for _name in ("ravel", "reshape", "astype", "copy", "sum", "mean", "max", "min", "argmax", "view", "trace"):
    setattr(ndarray, _name, _delegate(_name))
for _name in ("shape", "dtype", "size", "nbytes", "ndim", "flags", "strides"):
    setattr(ndarray, _name, property(functools.partial(lambda n, self: getattr(self._a, n), _name)))


def _unwrap(x: Any) -> Any:
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, (tuple, list)):
        return type(x)(map(_unwrap, x))
    if isinstance(x, dict):
        return {key: _unwrap(value) for key, value in x.items()}
    return x


def _wrap(x: Any) -> Any:
    if isinstance(x, (np.ndarray, np.generic)):
        counts["arrays"] += 1
        return ndarray(np.asarray(x))
    if isinstance(x, tuple):
        return tuple(map(_wrap, x))
    return x


def _do(work: Any) -> None:
    """Work that changes arrays: now, or whenever the graph being captured is launched."""
    if tape is None:
        work()
    else:
        tape.append(work)


def _made(work: Any) -> Any:
    """A new array; in a graph being captured the same one is computed anew at every launch."""
    result = work()
    if tape is not None:
        assert isinstance(result, (np.ndarray, np.generic))
        result = np.asarray(result)
        tape.append(lambda: np.copyto(result, work()))
    return _wrap(result)


def asarray(x: Any, dtype: Any = None) -> ndarray:
    return x if isinstance(x, ndarray) else ndarray(np.array(x, dtype))


def asnumpy(x: Any) -> np.ndarray:
    return x.get() if isinstance(x, ndarray) else np.asarray(x)


def get_array_module(*arrays: Any) -> Any:
    import cupy

    return cupy if any(isinstance(x, ndarray) for x in arrays) else np


def dot(a: ndarray, b: ndarray, out: ndarray) -> ndarray:
    if not out.flags.c_contiguous or out.dtype != np.result_type(a.dtype, b.dtype):
        raise ValueError("out does not fit")
    _do(lambda: np.matmul(a._a, b._a, out=out._a))
    return out


def __getattr__(name: str) -> Any:
    """The rest is NumPy's, on device arrays."""
    if name.startswith("_"):
        raise AttributeError(name)
    found = getattr(np, name)
    if name == "linalg":
        return _Linalg()
    if isinstance(found, type) or not callable(found):
        return found

    def function(*args: Any, **kwargs: Any) -> Any:
        taken, named = _unwrap(args), _unwrap(kwargs)
        if tape is not None and name == "empty":
            return _wrap(found(*taken, **named))
        return _wrap(found(*taken, **named)) if tape is None else _made(lambda: found(*taken, **named))

    return function


class _Linalg:
    def __getattr__(self, name: str) -> Any:
        found = getattr(np.linalg, name)
        return lambda *args: _wrap(found(*_unwrap(args)))


class _Pool:
    def total_bytes(self) -> int:
        return 0


def get_default_memory_pool() -> _Pool:
    return _Pool()


def _step_length(image: Any, norm: Any, curvature: Any, weight: Any, doubling: Any, label: Any, moved: Any,
                 length: Any, first_bad: Any) -> None:  # fmt: skip
    label = label + moved._a[0]
    n, i = float(norm._a), float(image._a)
    if not (np.isfinite(n) and np.isfinite(i)) and label < first_bad._a[0]:
        first_bad._a[0] = label
    if n == 0.0:
        length._a[...] = 0.0
        return
    tau = float(curvature) + float(weight) * i / n
    trials = [20.0 * 2.0**k for k in range(11)] if doubling else [tau]
    length._a[...] = next((1.0 / trial for trial in trials if not trial < tau), 0.0)


def _bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )


def _widen(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _split_bfloat16(x: Any, high: Any, low: Any, size: Any) -> None:
    assert size == x.size and x.flags.c_contiguous
    high._a[...] = _bfloat16(x._a)
    low._a[...] = _bfloat16(x._a - _widen(high._a))


_KERNELS = {"step_length": _step_length, "split_bfloat16": _split_bfloat16}


class RawKernel:
    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        assert f" {name}(" in code
        self._run = _KERNELS[name]

    def __call__(self, grid: Any, block: Any, args: tuple[Any, ...]) -> None:
        assert all(isinstance(x, (ndarray, np.generic)) for x in args)
        counts["launches"] += 1
        _do(lambda: self._run(*args))


def _column_major(ptr: int, kind: int, rows: int, cols: int, lead: int) -> np.ndarray:
    dtype = {0: np.dtype(np.float32), 14: np.dtype(np.uint16)}[kind]
    raw = (ctypes.c_char * (dtype.itemsize * lead * cols)).from_address(ptr)
    return np.frombuffer(raw, dtype).reshape(cols, lead).T[:rows]


from cupy import cuda  # noqa: E402, F401
