"""Reading pickles of arrays and containers without Python's unpickler.

An unpickler calls what a file names, with what the file says. Even where it may name arrays only, that
reaches compiled code which trusts its arguments: a forged dtype or a wild index into the unpickler's
memory ends the process, a few bytes that double a tuple sixty times hang it. Here the opcodes are carried
out on lists, dictionaries and inert stand-ins; an array is made at the end, from a plain type, a shape
and as many bytes as these two say. Memory stays within a multiple of the file's size.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import warnings
from pathlib import Path

import numpy as np

from ..errors import InputError
from .graph import csr_from_parts
from .raw import read_whole

__all__ = ["load_pickle"]

# What pickles of NumPy arrays, SciPy's CSR matrices and defaultdicts name, as Python 2 and 3 write them.
_NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("_codecs", "encode"): "encode",
    ("collections", "defaultdict"): "defaultdict",
    ("scipy.sparse.csr", "csr_matrix"): "sparse",
    ("scipy.sparse.csr", "csr_array"): "sparse",
    ("scipy.sparse._csr", "csr_matrix"): "sparse",
    ("scipy.sparse._csr", "csr_array"): "sparse",
    **{
        (module, kind): "factory"
        for module in ("__builtin__", "builtins")
        for kind in ("list", "dict", "int")
    },
}
_PLAIN_TYPE = re.compile(r"b1|[iu][1248]|f[248]")

_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE",
    "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INT64 = range(-(1 << 63), 1 << 63)


class _Refused(Exception):
    """The pickle holds something that is neither a plain array nor a container."""


class _Name:
    """One of `_NAMES`, on its way to being called."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Type:
    """The type of an array: a name, and a byte order that comes later."""

    def __init__(self, name: object) -> None:
        if not isinstance(name, str) or not _PLAIN_TYPE.fullmatch(name):
            raise _Refused(f"the pickle holds an array of type {_shown(name)}, not of numbers")
        self.name, self.order = name, "="

    def build(self, state: object) -> None:
        """Take the state of a plain type: nothing in it but the byte order."""
        if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", ">", "|", "="):
            raise _Refused("the pickle changes the inside of a type")
        if (state[0], *state[2:]) != (3, None, None, None, -1, -1, 0):
            raise _Refused("the pickle changes the inside of a type")
        self.order = state[1]


class _Array:
    """An array: type, shape, memory order and content, unchecked until it is made."""

    state: object = None

    def make(self) -> np.ndarray:
        """Build it from exactly the bytes that shape and type ask for; raises ValueError otherwise."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("an array without a state")
        _, shape, kind, fortran, content = self.state
        if isinstance(content, str):
            content = content.encode("latin1")  # Python 2 keeps array bytes in str
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("an array without a shape")
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise ValueError("an array without a type or content")
        dtype = np.dtype(kind.order + kind.name)
        if math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError("an array of another size than its content")
        return np.frombuffer(content, dtype).copy().reshape(shape, order="F" if fortran else "C")


class _Sparse:
    """A CSR matrix: its attributes."""

    def __init__(self) -> None:
        self.state: dict[object, object] = {}


def _call(function: object, arguments: object) -> object:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("the pickle calls something that cannot be called")
    if function.kind == "array":
        return _Array()
    if function.kind == "dtype":
        return _Type(arguments[0])
    if function.kind == "encode":  # bytes as text, which `_Array.make` encodes
        text, encoding = arguments
        if encoding != "latin1":
            raise _Refused(f"the pickle holds text in the encoding {_shown(encoding)}")
        return text
    if function.kind == "defaultdict":
        return {}  # nobody asks it for what it lacks
    raise _Refused(f"the pickle calls {function.kind}")


def _build(value: object, state: object) -> None:
    if isinstance(value, _Array):
        value.state = state
    elif isinstance(value, _Type):
        value.build(state)
    elif isinstance(value, _Sparse) and isinstance(state, dict):
        value.state = state
    else:
        raise _Refused(f"the pickle changes the inside of a {type(value).__name__.lstrip('_')}")


class _Machine:
    """The stack, marks and memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self, content: bytes) -> object:
        """Carry out all opcodes; returns the value at the end."""
        for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise EOFError

    def _since_mark(self) -> list[object]:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def _step(self, name: str, argument: object) -> None:
        stack = self.stack
        if name in _VALUES:
            if isinstance(argument, int) and argument not in _INT64:
                raise _Refused("the pickle holds a number of more than 64 bits")
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            assert isinstance(argument, int)
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            assert isinstance(argument, int)
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            values = tuple(stack[-_TUPLES[name] :])
            del stack[-_TUPLES[name] :]
            stack.append(values)
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("APPEND", "APPENDS"):
            self._append(self._since_mark() if name == "APPENDS" else [stack.pop()])
        elif name in ("SETITEM", "SETITEMS"):
            self._set(self._since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()])
        elif name == "GLOBAL":
            assert isinstance(argument, str)
            stack.append(_named(*argument.partition(" ")[::2]))
        elif name == "STACK_GLOBAL":
            module, attribute = stack.pop(-2), stack.pop()
            stack.append(_named(module, attribute))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_call(stack.pop(), arguments))
        elif name == "NEWOBJ":
            arguments, kind = stack.pop(), stack.pop()
            if not isinstance(kind, _Name) or kind.kind != "sparse" or arguments != ():
                raise _Refused("the pickle makes an object of a class that is no sparse matrix")
            stack.append(_Sparse())
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"the pickle uses {name}, which arrays and lists do not need")

    def _append(self, values: list[object]) -> None:
        into = self.stack[-1]
        if type(into) is not list:
            raise _Refused("the pickle appends to something that is no list")
        into.extend(values)

    def _set(self, values: list[object]) -> None:
        into = self.stack[-1]
        # The hash of a tuple can take for ever, or more stack than there is.
        if type(into) is not dict or not all(type(key) in (int, str) for key in values[::2]):
            raise _Refused("the pickle holds a dictionary whose keys are neither numbers nor text")
        into.update(zip(values[::2], values[1::2], strict=True))


def _named(module: object, attribute: object) -> _Name:
    kind = _NAMES.get((_shown(module), _shown(attribute)))
    if kind is None:
        name = f"{_shown(module)}.{_shown(attribute)}"
        raise _Refused(f"the pickle asks for {name}, which is neither an array nor a plain container")
    return _Name(kind)


def _shown(value: object) -> str:
    """A value for a message: text of a line's length, or its type (lists can take for ever to write out)."""
    return value[:80] if isinstance(value, str) else f"a {type(value).__name__}"


def load_pickle(path: Path) -> object:
    """Read a pickle, protocol 2 to 4, of NumPy arrays, SciPy CSR matrices, dicts and lists.

    Returns
    -------
    ndarray, scipy.sparse.csr_matrix, dict, list, str, bytes, int, bool, None or tuple
        Arrays inside of containers are not made; they are objects of no use.

    Raises
    ------
    InputError
        When the file is missing or damaged, or names any other class or function. Nothing that the
        pickle names is imported or called.
    """
    content = read_whole(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that a name should not have
            loaded = _Machine().run(content)
        if isinstance(loaded, _Array):
            return loaded.make()
        if not isinstance(loaded, _Sparse):
            return loaded
        parts = [loaded.state.get(key) for key in ("data", "indices", "indptr")]
        arrays = [part.make() for part in parts if isinstance(part, _Array)]
        shape = loaded.state.get("_shape")
        if not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
            raise ValueError("a matrix without a shape")
    except _Refused as exc:
        raise InputError(f"{path}: refused: {exc}; fetch the file again from its publisher") from None
    except (ValueError, TypeError, LookupError, EOFError, OverflowError) as exc:
        kind = type(exc).__name__
        raise InputError(f"{path}: truncated or damaged ({kind}); fetch the file again") from None
    return csr_from_parts([*arrays, shape], str(path))
