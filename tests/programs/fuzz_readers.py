"""Reads hostile raw files by the hundred in a process of its own: a crash or a bomb ends only that.

    python fuzz_readers.py EXAMPLES pickles|FORMAT ...

`pickles` makes opcode sequences out of pieces that real pickles are made of; a FORMAT (planetoid, npz,
graphsaint, ogb, idx, idx.gz) takes valid files and changes bytes of one. Whatever comes must be read or
refused by InputError with one line, without a warning, and within half a GiB more than the start takes.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from data_files import write_graphsaint, write_idx, write_npz, write_ogb, write_planetoid

from pdadmm.datasets import load
from pdadmm.datasets.safe_pickle import load_pickle
from pdadmm.errors import InputError

FORMATS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "planetoid": ("cora", write_planetoid),
    "npz": ("g.npz", lambda folder: write_npz(folder / "g.npz")),
    "graphsaint": ("flickr", write_graphsaint),
    "ogb": ("ogbn-arxiv", write_ogb),
    "idx": ("mnist", lambda folder: write_idx(folder, compress=False)),
    "idx.gz": ("mnist", lambda folder: write_idx(folder, compress=True)),
}

GLOBALS = [
    *(f"c{module}\n{name}\n".encode() for module, name in (
        ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"), ("_codecs", "encode"), ("collections", "defaultdict"),
        ("__builtin__", "list"), ("builtins", "dict"), ("scipy.sparse.csr", "csr_matrix"), ("os", "system"),
    )),
]  # fmt: skip
NUMBERS = [
    b"K\x00",
    b"K\x01",
    b"K\x03",
    b"M\xff\xff",
    b"J\xff\xff\xff\xff",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x09" + b"\xff" * 9,
]
TEXTS = [
    b"U\x01b",
    b"U\x02u8",
    b"U\x02O8",
    b"U\x02V8",
    b"U\x01<",
    b"X\x06\x00\x00\x00latin1",
    b"C\x08" + bytes(8),
]
TEXTS += [b"U" + bytes([len(name)]) + name for name in (b"data", b"indices", b"indptr", b"_shape")]
MEMO = [op + bytes([i]) for op in (b"q", b"h") for i in range(4)] + [
    b"r\xff\xff\xff\x7f",
    b"j\x00\x00\x00\x00",
    b"\x94",
]
OTHERS = [bytes([op]) for op in b"()]}Nt\x85\x86\x87\x88\x89Rb\x81aesu.012Q\x8f\x90\x93"]
# whole arrays, their parts and what BUILD takes, so that sequences get far
DTYPE = b"cnumpy\ndtype\nU\x02u8K\x00K\x01\x87R"
PLAIN = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
FIELDS = b"(K\x03U\x01|NU\x01a\x85}U\x01a" + DTYPE + b"J\xff\xff\xff\x7f\x86sK\x08K\x01K?t"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
STATE = b"(K\x01K\x01\x85" + DTYPE + PLAIN + b"b\x89U\x08" + bytes(8) + b"t"
LARGE = b"(K\x01\x8a\x06" + b"\xff" * 5 + b"\x00\x85" + DTYPE + PLAIN + b"b\x89U\x08" + bytes(8) + b"t"
PIECES = [DTYPE, PLAIN, FIELDS, EMPTY, STATE, LARGE, EMPTY + STATE + b"b", EMPTY + LARGE + b"b"]


def attempt(read: Callable[[], object]) -> bool:
    """Whether something is read; False where it is refused as it should be."""
    try:
        read()
    except InputError as exc:
        line = str(exc)
    else:
        return True
    assert "\n" not in line and len(line) < 1000, repr(line)
    return False


def fuzz_pickles(folder: Path, examples: int) -> None:
    """Sequences of opcodes."""
    path = folder / "pickle"

    @settings(max_examples=examples, database=None, derandomize=True, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.lists(st.sampled_from([*GLOBALS, *NUMBERS, *TEXTS, *MEMO, *OTHERS, *PIECES]), max_size=40))
    @example([EMPTY, STATE, b"b"])
    def check(pieces: list[bytes]) -> None:
        path.write_bytes(b"\x80\x02" + b"".join(pieces) + b".")
        attempt(lambda: load_pickle(path))

    check()


def fuzz_format(form: str, folder: Path, examples: int) -> None:
    """Valid files, one of which is changed in some places."""
    name, write = FORMATS[form]
    write(folder)
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    where = st.integers(0, 1 << 30)
    change = st.tuples(
        st.sampled_from(["set", "flip", "cut", "insert", "repeat"]), where, st.binary(min_size=1, max_size=8)
    )

    def read() -> object:
        own = name.endswith(".npz")
        return load(folder / name) if own else load(name, raw=folder, verify=False)

    assert attempt(read), "the files are not valid to begin with"

    @settings(max_examples=examples, database=None, derandomize=True, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.sampled_from(list(files)), st.lists(change, min_size=1, max_size=4))
    def check(path: Path, changes: list[tuple[str, int, bytes]]) -> None:
        content = bytearray(files[path])
        for kind, place, new in changes:
            # headers are at the start, and at the end of a zip
            at = place % (min(len(content), 200) if place % 3 else len(content) or 1) if content else 0
            at = max(0, len(content) - 1 - at) if place % 5 == 0 else at
            if kind == "set":
                content[at : at + len(new)] = new
            elif kind == "flip" and content:
                content[at] ^= new[0]
            elif kind == "cut":
                del content[at : at + 1 + new[0]]
            elif kind == "insert":
                content[at:at] = new
            elif kind == "repeat":
                content[at:at] = content[at : at + 1 + new[0]]
        path.write_bytes(content)
        try:
            attempt(read)
        finally:
            path.write_bytes(files[path])

    check()


def main() -> None:
    """Limit memory, make warnings errors, fuzz."""
    examples, kinds = int(sys.argv[1]), sys.argv[2:]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (512 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("error")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            if kind == "pickles":
                fuzz_pickles(Path(folder), examples)
            else:
                fuzz_format(kind, Path(folder), examples)


if __name__ == "__main__":
    main()
