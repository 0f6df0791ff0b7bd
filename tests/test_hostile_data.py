"""Raw files made to do harm, and targets that are not ours: one line, bounded memory, no hang."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import socket
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from data_files import (
    idx_bytes,
    npz_arrays,
    prepare,
    write_graphsaint,
    write_idx,
    write_npz,
    write_ogb,
    write_planetoid,
)
from support import PROGRAMS, python, succeed

from pdadmm.admm.command import preset
from pdadmm.datasets import REGISTRY, called, load, synthetic_graph
from pdadmm.datasets.fetch import raw_files
from pdadmm.datasets.registry import Archive, Dataset, RawFile
from pdadmm.datasets.safe_pickle import load_pickle
from pdadmm.datasets.splits import draw_split
from pdadmm.errors import InputError
from pdadmm.inputs.augment import Augmentation
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.inputs.write import write_features
from pdadmm.prepare import main

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _bounded() -> Iterator[None]:
    """Half a GiB more than there is now, for the time of a test."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 512 * MIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(read: Callable[[], object], message: str) -> None:
    """Fail unless `read` is refused with one line, and without a warning, which would be another line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=message) as caught:
            read()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "MemoryError" not in str(caught.value)


def own(**changes: Any) -> Callable[[], object]:
    """Read a user's .npz with changed arrays."""
    return lambda: load(write_npz(Path("g.npz"), **changes))


# ----------------------------------------------------------------------------- pickles

DTYPE = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R"
PLAIN = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


def array_pickle(dtype: bytes, shape: bytes = b"K\x01\x85", after: bytes = b"") -> bytes:
    """An array of 8 bytes of that type and shape, then what is to come after."""
    return b"\x80\x02" + ARRAY + b"(K\x01" + shape + dtype + b"\x89U\x08" + b"\x07" * 8 + b"tb" + after + b"."


OBJECT_FIELD = b"(K\x03U\x01|NU\x01a\x85}U\x01a" + DTYPE % b"O8" + b"K\x00\x86sK\x08K\x01K?t"
FAR_FIELD = b"(K\x03U\x01|NU\x01a\x85}U\x01a" + DTYPE % b"u8" + b"J\xff\xff\xff\x7f\x86sK\x08K\x01K\x00t"
WIDE_ITEM = b"(K\x03U\x01<NNNJ\x00\x00\x00\x70K\x01K\x00t"
PICKLES = {
    # these three end an unpickler that calls numpy.dtype by a signal
    "objects forged after the array": array_pickle(
        DTYPE % b"V8" + b"q\x01", after=b"h\x01" + OBJECT_FIELD + b"b0"
    ),
    "an offset far outside": array_pickle(DTYPE % b"V8" + FAR_FIELD + b"b"),
    "objects forged before": array_pickle(DTYPE % b"V8" + OBJECT_FIELD + b"b"),
    "another item size": array_pickle(DTYPE % b"u8" + WIDE_ITEM + b"b"),
    "objects": array_pickle(DTYPE % b"O8"),
    "a shape of 10^12": array_pickle(
        DTYPE % b"u8" + PLAIN + b"b", b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85"
    ),
    "a negative shape": array_pickle(DTYPE % b"u8" + PLAIN + b"b", b"J\xff\xff\xff\xff\x85"),
    "a shape of 100 axes": array_pickle(DTYPE % b"u8" + PLAIN + b"b", b"(" + b"K\x01" * 100 + b"t"),
    "an array without a state": b"\x80\x02" + ARRAY + b".",
    # hashes, representations and arrays of nested tuples and lists take 2^60 steps, or all of the stack
    "a tuple doubled 60 times as a key": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "a tuple nested deeply as a key": b"\x80\x02})" + b"\x85" * 10**5 + b"Ns.",
    "a list doubled 60 times as a name": b"\x80\x04]" + b"q\x00(h\x00h\x00t" * 60 + b"q\x00h\x00\x93.",
    "a list doubled 60 times as a type": b"\x80\x02cnumpy\ndtype\n)"
    + b"q\x00h\x00\x86" * 60 + b"K\x00K\x01\x87R.",
    "a list doubled 60 times as a shape": b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n)\x81}U\x06_shape)"
    + b"q\x00h\x00\x86" * 60 + b"sb.",
    # memory
    "a memo of 2^31 places": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "text of 4 GB": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "bytes of 2^60": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"abc.",
    "a bytearray of 2^60": b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little") + b"abc.",
    "lists made of text over and over": b"\x80\x02T" + struct.pack("<i", MIB) + b"a" * MIB + b"q\x00"
    + b"c__builtin__\nlist\nh\x00\x85R" * 10_000 + b".",
    "text encoded over and over": b"\x80\x02X" + struct.pack("<i", MIB) + b"a" * MIB + b"q\x00"
    + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 10_000 + b"d.",
    "a number of a million digits": b"I" + b"9" * 10**6 + b"\n.",
    "a number of a million bytes": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
    # anything else that would be called
    "a persistent id": b"\x80\x02Uaq\x00Q.",
    "an extension": b"\x80\x02\x82\x01.",
    "a class made anew": b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n)}\x92.",
    "dict called": b"\x80\x02c__builtin__\ndict\n)R.",
}  # fmt: skip


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize("case", [*PICKLES])
def test_a_hostile_pickle_is_refused(tmp_path: Path, case: str) -> None:
    """Or, where nothing in it is wrong, read as something that no reader takes for an array."""
    write_planetoid(tmp_path)
    for part in ("y", "graph"):
        (tmp_path / f"ind.cora.{part}").write_bytes(PICKLES[case])
        refused(lambda: load("cora", raw=tmp_path, verify=False), rf"ind\.cora\.{part}: ")
        write_planetoid(tmp_path)


def planetoid(part: str, content: bytes) -> Callable[[], object]:
    def read() -> object:
        write_planetoid(Path())
        Path(f"ind.cora.{part}").write_bytes(content)
        return load("cora", raw=".", verify=False)

    return read


def ids(*numbers: int) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"e"


def neighbours(lists: bytes, nodes: int = 30) -> bytes:
    """A pickle of {0: LISTS, 1: LISTS, …}."""
    return b"\x80\x02}(" + b"".join(b"J" + struct.pack("<i", n) + lists for n in range(nodes)) + b"u."


SHARED_LIST = b"\x80\x02}(J\x00\x00\x00\x00]q\x00" + ids(*range(30_000)) + b"".join(
    b"J" + struct.pack("<i", n) + b"h\x00" for n in range(1, 30_000)
) + b"u."  # fmt: skip


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SHARED_LIST, "not a dictionary of neighbour lists"),
        (neighbours(b"]]a"), "something other than node ids"),
        (neighbours(b"]\x88a"), "something other than node ids"),
        (neighbours(b"]U\x015a"), "something other than node ids"),
        (neighbours(b"U\x015"), "not a dictionary of neighbour lists"),
        (neighbours(b"}"), "not a dictionary of neighbour lists"),
        (neighbours(b"]" + ids(-1)), "out of range"),
        (neighbours(b"]", 15), "15 nodes for 20 rows of allx"),
        (b"\x80\x02}.", "not a dictionary of neighbour lists"),
        (b"\x80\x02]q\x00h\x00a.", "not a dictionary of neighbour lists"),
    ],
)
def test_a_hostile_dictionary_of_neighbours_is_refused(content: bytes, message: str) -> None:
    refused(planetoid("graph", content), message)


def test_pickles_of_every_protocol_that_published_files_have_are_read(tmp_path: Path) -> None:
    values = [np.arange(6).reshape(2, 3).astype(kind) for kind in ("u1", ">i4", "f8", "?", "f2")]
    values.append(np.asfortranarray(values[0]))
    for protocol in (2, 3, 4):
        for value in [*values, {1: [2, 3], 4: []}, [1, None, "a"]]:
            (tmp_path / "p").write_bytes(pickle.dumps(value, protocol=protocol))
            np.testing.assert_equal(load_pickle(tmp_path / "p"), value)
        matrix = sp.csr_matrix(np.eye(4, 3))
        (tmp_path / "p").write_bytes(pickle.dumps(matrix, protocol=protocol))
        found: Any = load_pickle(tmp_path / "p")
        np.testing.assert_array_equal(found.toarray(), np.eye(4, 3))


@pytest.mark.parametrize("what", ["pickles planetoid", "npz graphsaint ogb idx idx.gz"])
def test_whatever_is_in_a_file_is_read_or_refused(what: str) -> None:
    """In another process, which may not crash, warn or take half a GiB."""
    succeed(python(PROGRAMS / "fuzz_readers.py", "150", *what.split(), timeout=240))


# ----------------------------------------------------------------------------- .npz and .npy


def npy(header: bytes, version: bytes = b"\x01\x00", content: bytes = b"") -> bytes:
    """An .npy with that header."""
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + content


def header(descr: str, shape: object, fortran: bool = False) -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()


def member(content: bytes, name: str = "labels", **keywords: Any) -> Callable[[], object]:
    """Read a user's .npz one of whose members is that."""

    def read() -> object:
        path = write_npz(Path("g.npz"), **{name: None})
        with zipfile.ZipFile(path, "a", **keywords) as archive:
            archive.writestr(f"{name}.npy", content)
        return load(path)

    return read


def zip_with(change: Callable[[bytearray], None]) -> Callable[[], object]:
    def read() -> object:
        content = bytearray(write_npz(Path("g.npz")).read_bytes())
        change(content)
        Path("g.npz").write_bytes(content)
        return load("g.npz")

    return read


def encrypt(content: bytearray) -> None:
    """Set the flag in every entry of the directory and every member's own header."""
    for magic, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = content.find(magic)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(magic, at + 1)


def twice() -> object:
    path = write_npz(Path("g.npz"))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("labels.npy", b"another")
    return load(path)


def deflated(zeros: int) -> Callable[[], object]:
    def read() -> object:
        path = write_npz(
            Path("g.npz"), **dict.fromkeys(("attr_data", "attr_indices", "attr_indptr", "attr_shape"))
        )
        with (
            zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
            archive.open("attr_matrix.npy", "w") as file,
        ):
            file.write(npy(header("'<f4'", (60, zeros // 240))))
            for _ in range(60):
                file.write(bytes(zeros // 60))
        return load(path)

    return read


BOUNDS = np.iinfo(np.int64)
EDGES = npz_arrays()["adj_indices"].size
NPZ: dict[str, tuple[Callable[[], object], str]] = {
    "zeros that unpack to 120 MB": (deflated(120_000_000), r"unpack to more .* save it with numpy\.savez"),
    "a header of 10^15 entries": (member(npy(header("'<i8'", (10**15,)))), "damaged"),
    "a header of 10^15 columns": (member(npy(header("'<f4'", (60, 10**15))), "attr_matrix"), "damaged"),
    "a header of 4 GB": (member(b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), "damaged"),
    "a header of 100 MB": (
        member(npy(b" " * 100_000_000, b"\x02\x00"), compression=zipfile.ZIP_DEFLATED),
        "damaged",
    ),
    "a header nested deeply": (member(npy(b"(" * 9000 + b")" * 900)), "damaged"),
    "a header of minus signs": (member(npy(b"-" * 9000 + b"1")), "damaged"),
    "a header of a number without end": (member(npy(header("'<i8'", "9" * 9000))), "damaged"),
    "a header of two lines of code": (member(npy(b"1\nimport os")), "damaged"),
    "a header that Python warns of": (member(npy(b"{'descr': 0in (), }")), "damaged"),
    "a header that is not closed": (member(npy(b"{'descr': L(")), "damaged"),
    "a version from the future": (member(b"\x93NUMPY\x09\x00" + bytes(100)), "damaged"),
    "a negative shape": (member(npy(header("'<i8'", (-1, -60)), content=bytes(480))), "damaged"),
    "entries of a GB": (member(npy(header("'<U268435456'", (60,)))), "damaged"),
    "entries of no size": (member(npy(header("'<U0'", (10**15,)))), "damaged"),
    "entries without a type": (member(npy(header("'|V8'", (60,)), content=bytes(480))), "damaged"),
    "entries with fields": (member(npy(header("[('a', '<i8')]", (60,)), content=bytes(480))), "damaged"),
    "objects": (member(npy(header("'|O'", (60,)), content=bytes(480))), "pickled objects"),
    "more content than its header says": (member(npy(header("'<i8'", (60,)), content=bytes(488))), "damaged"),
    "LZMA": (member(b"", compression=zipfile.ZIP_LZMA), "damaged"),
    "an encrypted archive": (zip_with(encrypt), "damaged"),
    "labels twice": (twice, "holds labels 2 times"),
    "columns without end": (own(attr_shape=np.array([60, 10**12])), "1000000000000 columns for"),
    "row pointers whose differences overflow": (
        own(adj_indptr=np.concatenate([[0, BOUNDS.max, BOUNDS.min, -1], np.full(57, EDGES)])),
        "row pointers",
    ),
    "row pointers without a sign": (
        own(adj_indptr=np.concatenate([[0], np.full(59, 2**63), [EDGES]]).astype(np.uint64)),
        "row pointers",
    ),
    "a class a node": (
        own(labels=np.arange(10**5), adj_indptr=np.zeros(10**5 + 1, int), adj_indices=np.zeros(0, int),
            adj_data=np.zeros(0), adj_shape=np.array([10**5] * 2), attr_indptr=np.zeros(10**5 + 1, int),
            attr_indices=np.zeros(0, int), attr_data=np.zeros(0), attr_shape=np.array([10**5, 9])),
        "too few",
    ),
    "a label that is no number of 64 bits": (own(labels=np.full(60, 1e300)), "out of range"),
}  # fmt: skip


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize("case", [*NPZ])
def test_a_hostile_npz_is_refused(case: str) -> None:
    read, message = NPZ[case]
    refused(read, message)


def test_what_a_compressed_npz_of_real_data_takes_is_read(tmp_path: Path) -> None:
    """Dense bags of words, nearly all zeros, compressed."""
    changes = dict.fromkeys(("attr_data", "attr_indices", "attr_indptr", "attr_shape"))
    words = np.zeros((60, 100_000), np.float32)  # 24 MB in 25 kB
    words[:, ::997] = 1
    arrays = {k: v for k, v in {**npz_arrays(), **changes, "attr_matrix": words}.items() if v is not None}
    np.savez_compressed("g.npz", **arrays)
    np.testing.assert_array_equal(load("g.npz").features, words)
    np.savez_compressed("g.npz", **{**arrays, "attr_matrix": np.asfortranarray(words.astype(">f8"))})
    np.testing.assert_array_equal(load("g.npz").features, words)


# ----------------------------------------------------------------------------- the other formats


def file_of(write: Callable[[Path], object], data: str, name: str, content: bytes) -> Callable[[], object]:
    """Read a folder one of whose files holds something else."""

    def read() -> object:
        write(Path())
        Path(name).write_bytes(content)
        return load(data, raw=".", verify=False)

    return read


def flickr(name: str, content: bytes | str) -> Callable[[], object]:
    return file_of(
        write_graphsaint, "flickr", name, content.encode() if isinstance(content, str) else content
    )


def arxiv(name: str, content: bytes) -> Callable[[], object]:
    return file_of(write_ogb, "ogbn-arxiv", f"{name}.csv.gz", content)


def mnist(name: str, content: bytes) -> Callable[[], object]:
    return file_of(lambda folder: write_idx(folder, name.endswith(".gz")), "mnist", name, content)


def zeros(count: int, line: bytes) -> bytes:
    """Gzip of many lines, made piece by piece."""
    packed = io.BytesIO()
    with gzip.open(packed, "wb", 1) as file:
        for _ in range(count // MIB):
            file.write(line * (MIB // len(line)))
    return packed.getvalue()


IMAGES = "t10k-images-idx3-ubyte"
NO_IMAGES = b"\x00\x00\x08\x03" + struct.pack(">3I", 0, 4, 4)
OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "JSON nested deeply": (flickr("class_map.json", "[" * 10**6), "damaged JSON"),
    "JSON objects nested deeply": (flickr("role.json", '{"a":' * 10**6), "damaged JSON"),
    "JSON of a number of a million digits": (
        flickr("class_map.json", '{"0": ' + "9" * 10**6 + "}"), "damaged JSON"
    ),
    "JSON of a number of 4000 digits": (
        flickr("role.json", json.dumps({"tr": [10**4000], "va": [1], "te": [2]})), "ids"
    ),
    "a class of 4000 digits": (
        flickr("class_map.json", json.dumps({str(i): 10**4000 for i in range(12)})), "labels are"
    ),
    "a node of 4000 digits": (flickr("class_map.json", json.dumps({"9" * 4000: 0})), "class_map"),
    "a class that is infinite": (
        flickr("class_map.json", "{" + ",".join(f'"{i}": 1e999' for i in range(12)) + "}"), "whole number"
    ),
    "JSON in another encoding": (flickr("role.json", b"\xff\xfe{"), "damaged JSON"),
    "features of 10^15 rows": (flickr("feats.npy", npy(header("'<f4'", (10**15, 4)))), "damaged"),
    "features of objects": (
        flickr("feats.npy", npy(header("'|O'", (12,)), content=bytes(96))), "pickled objects"
    ),
    "gzip of 100 MB of lines": (
        arxiv("raw/node-feat", zeros(100 * MIB, b"0" * 1023 + b"\n")), "unpack to more"
    ),
    "gzip of a line of 100 MB": (arxiv("raw/node-feat", zeros(100 * MIB, b"0,")), "a line of"),
    "gzip of a number of 10 MB": (arxiv("raw/node-label", zeros(10 * MIB, b"0")), "a line of"),
    "gzip of an IDX of 100 MB": (
        mnist(f"{IMAGES}.gz", gzip.compress(b"\x00\x00\x08\x03" + struct.pack(">3I", 100, 1024, 1024))),
        "unpack to more",
    ),
    "gzip of an IDX of 2^96": (
        mnist(f"{IMAGES}.gz", gzip.compress(b"\x00\x00\x08\x03" + b"\xff" * 12)), "unpack to more than"
    ),
    "gzip of an IDX and 100 MB": (
        mnist(f"{IMAGES}.gz", gzip.compress(idx_bytes(np.zeros((10, 4, 4)))) + zeros(100 * MIB, b"0")),
        "160 bytes",
    ),
    "an IDX of 2^96": (mnist(IMAGES, b"\x00\x00\x08\x03" + b"\xff" * 12), IMAGES),
    "an IDX without images": (mnist(IMAGES, NO_IMAGES), IMAGES),
    "test ids that are no numbers of 64 bits": (planetoid("test.index", b"9" * 30), "node ids"),
    "a test id of a million digits": (planetoid("test.index", b"9" * 10**6), "node ids"),
}  # fmt: skip


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize("case", [*OTHERS])
def test_a_hostile_raw_file_is_refused(case: str) -> None:
    read, message = OTHERS[case]
    refused(read, message)


def archived(write: Callable[[zipfile.ZipFile], None]) -> None:
    """Download an archive of one file that is not checked."""
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        write(archive)
    entry = Dataset(
        "thing", "", "mnist", ((RawFile("file.bin"),),), 1, 1, 1, "", "", "",
        archive=Archive(Path("a.zip").absolute().as_uri(), ("",), "top"),
    )  # fmt: skip
    raw_files(entry, None, verify=False)


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_not_unpacked() -> None:
    refused(
        lambda: archived(lambda a: a.writestr("top/file.bin", bytes(100 * MIB))),
        "a.zip: .* unpack to more than",
    )
    assert list(Path("data/raw/thing").iterdir()) == []


# ----------------------------------------------------------------------------- no files at all


def special(path: Path, kind: str) -> None:
    """A FIFO, a socket, a device or a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # which may be too long in full
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("only root makes device nodes")


KINDS = ["fifo", "socket", "device", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    special(tmp_path / "g.npz", kind)
    refused(lambda: load("g.npz"), r"g\.npz: is no regular file")
    write_planetoid(tmp_path / "raw")
    (tmp_path / "raw" / "ind.cora.x").unlink()
    special(tmp_path / "raw" / "ind.cora.x", kind)
    refused(lambda: load("cora", raw="raw", verify=False), r"lacks ind\.cora\.x")


def test_a_fifo_in_the_folder_of_downloads_is_neither_opened_nor_replaced(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    file = RawFile("file.bin", (tmp_path / "source").as_uri(), (), False)
    entry = Dataset("thing", "", "mnist", ((file,),), 1, 1, 1, "", "", "")
    folder = tmp_path / "data" / "raw" / "thing"
    special(folder / "file.bin", "fifo")
    refused(lambda: raw_files(entry, None), r"file\.bin: is no regular file")
    assert stat.S_ISFIFO((folder / "file.bin").stat().st_mode)
    (folder / "file.bin").unlink()
    special(folder / ".downloaded.sha256", "fifo")
    refused(lambda: raw_files(entry, None), r"\.downloaded\.sha256: is no regular file")
    (folder / "file.bin").write_bytes(b"content")
    assert raw_files(entry, None) == {"file.bin": Path("data/raw/thing/file.bin")}


# ----------------------------------------------------------------------------- the whole command


@pytest.mark.parametrize(
    ("make", "command", "message"),
    [
        (lambda: write_npz(Path("g.npz"), labels=np.arange(60) % 3 * 10**9), "g.npz", "out of range"),
        (lambda: os.mkfifo("g.npz"), "g.npz", "no regular file"),
        (
            lambda: (
                write_planetoid(Path()),
                Path("ind.cora.y").write_bytes(PICKLES["an offset far outside"]),
            ),
            "cora --raw . --no-verify",
            "refused",
        ),
    ],
)
def test_hostile_files_are_one_line_of_the_real_command(
    tmp_path: Path, make: Callable[[], object], command: str, message: str
) -> None:
    make()
    before = sorted(tmp_path.iterdir())
    done = prepare(*command.split(), cwd=tmp_path, timeout=60)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_options_that_ask_for_too_much_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(Path("g.npz"))
    for command in (
        "synthetic --synthetic-nodes 100000000000000000000",
        "synthetic --synthetic-nodes 1" + "0" * 400,
        "synthetic --synthetic-features 1000000000000",
        "synthetic --synthetic-nodes 100000000 --synthetic-degree 90000000",
        "synthetic --synthetic-degree inf",
        "synthetic --synthetic-homophily nan",
        "synthetic --seed 100000000000000000000",
        "g.npz --seed 100000000000000000000",
        "g.npz --hops 100000000000000000000",
        "g.npz --hops 100000000000000",
    ):
        assert main(command.split()) == 2, command
        out = capsys.readouterr()
        assert (out.out, out.err.count("\n")) == ("", 1)
    assert main(["synthetic", "--synthetic-nodes", "300", "--synthetic-train-per-class", "1" + "0" * 20]) == 0
    assert sorted(p.name for p in Path().iterdir()) == ["data", "g.npz"]
    assert os.listdir("data") == ["synthetic.h5"]


def test_too_little_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pdadmm.inputs.augment.Augmentation", full)
    assert main(["synthetic"]) == 2
    assert "not enough memory" in capsys.readouterr().err


# ----------------------------------------------------------------------------- labels


def classes_of(form: str, labels: Any) -> Callable[[], object]:
    """Read 12 nodes (planetoid 30, MNIST 70) with these labels and a split of their own, in a format."""
    labels = np.asarray(labels)
    if form == "npz":
        splits = {"train_idx": np.arange(0, 6), "val_idx": np.arange(6, 9), "test_idx": np.arange(9, 12)}
        return own(labels=np.resize(labels, 60), **splits)
    if form == "ogb":
        text = "".join(f"{label}\n" for label in labels)
        return arxiv("raw/node-label", gzip.compress(text.encode()))
    return flickr("class_map.json", json.dumps({str(i): int(label) for i, label in enumerate(labels)}))


@pytest.mark.parametrize("form", ["npz", "ogb", "graphsaint"])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (9, "class 3 has no node"),
        (10**9, "1000000000 is out of range"),
        (2**62, "out of range"),
        (-2, "label -2"),
    ],
)
@pytest.mark.usefixtures("_bounded")
def test_labels_have_no_gaps_with_a_split_of_their_own_either(form: str, label: int, message: str) -> None:
    refused(classes_of(form, [label, *np.arange(11) % 3]), message)


def test_labels_of_a_published_set_have_no_gaps(tmp_path: Path) -> None:
    write_npz(
        tmp_path / "amazon_electronics_photo.npz", labels=np.where(np.arange(60) == 5, 9, np.arange(60) % 3)
    )
    refused(lambda: load("amazon-photo", raw=tmp_path, verify=False), "class 3 has no node")


@pytest.mark.parametrize("form", ["npz", "idx"])
def test_mnist_without_one_of_the_digits_is_refused(form: str) -> None:
    arrays = write_idx(Path(), compress=False)
    y = {key: np.where(arrays[key] == 7, 8, arrays[key]) for key in ("y_train", "y_test")}
    if form == "npz":
        np.savez("mnist.npz", **{**arrays, **y})
    else:
        for key, name in (("y_train", "train"), ("y_test", "t10k")):
            Path(f"{name}-labels-idx1-ubyte").write_bytes(idx_bytes(y[key]))
    refused(lambda: load("mnist", raw=".", verify=False), "class 7 has no node")


def one_hot(path: str, classes: Callable[[Any], Any]) -> None:
    with open(path, "rb") as file:
        values = pickle.load(file)
    Path(path).write_bytes(pickle.dumps(classes(values), protocol=2))


def test_a_planetoid_class_without_a_node_is_refused(tmp_path: Path) -> None:
    write_planetoid(tmp_path)
    for part in ("y", "ty", "ally"):
        one_hot(f"ind.cora.{part}", lambda v: np.insert(v, 1, 0, axis=1))
    refused(lambda: load("cora", raw=".", verify=False), "class 1 has no node")


@pytest.mark.parametrize(("part", "row"), [("ally", 2), ("ally", 19), ("ty", 3)])
def test_a_planetoid_node_of_a_split_without_a_class_is_refused(tmp_path: Path, part: str, row: int) -> None:
    """It would count as one of class 0."""
    write_planetoid(tmp_path)

    def unlabelled(values: Any) -> Any:
        values[row] = 0
        return values

    one_hot(f"ind.cora.{part}", unlabelled)
    refused(lambda: load("cora", raw=".", verify=False), "label -1 is out of range")


def test_a_class_that_is_not_in_training_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    ids = {"train_idx": np.array([0, 1, 3]), "val_idx": np.array([2]), "test_idx": np.array([5, 8])}
    write_npz(Path("g.npz"), **ids)
    assert main(["g.npz"]) == 0
    assert capsys.readouterr().err.endswith("\npdadmm.prepare: warning: no training node of class 2\n")


def test_drawing_a_split_takes_no_longer_for_many_classes() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(400_000) // 4)
    train, _, _ = draw_split(labels, 0, "g")
    assert np.bincount(labels[train]).tolist() == [2] * 100_000


# ----------------------------------------------------------------------------- where it is written


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file's inode, mode and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        found[str(path)] = (
            info.st_ino,
            info.st_mode,
            path.read_bytes() if stat.S_ISREG(info.st_mode) else b"",
        )
    return found


def foreign_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["mine"] = np.arange(1000)


def link(path: Path) -> None:
    path.symlink_to("g.npz")


TARGETS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "the input": ("g.npz", lambda p: None, "is the file to read"),
    "the input by another path": ("sub/../g.npz", lambda p: Path("sub").mkdir(), "is the file to read"),
    "the input by a symbolic link": ("link.h5", link, "is the file to read"),
    "the input by a hard link": ("link.h5", lambda p: os.link("g.npz", p), "is the file to read"),
    "somebody's text": ("notes.txt", lambda p: p.write_text("mine"), "is no feature file, so it stays"),
    "an empty file": ("empty.h5", lambda p: p.touch(), "is no feature file, so it stays"),
    "somebody's HDF5": ("theirs.h5", foreign_hdf5, "is no feature file, so it stays"),
    "a link to somebody's text": (
        "link.h5",
        lambda p: (Path("notes.txt").write_text("mine"), p.symlink_to("notes.txt")),
        "is no feature file, so it stays",
    ),
    "a link in a circle": ("link.h5", lambda p: p.symlink_to("link.h5"), "cannot be written"),
    "a link to a device": (
        "link.h5",
        lambda p: (special(Path("node"), "device"), p.symlink_to("node")),
        "it is no regular file",
    ),
    **{kind: ("target.h5", lambda p, k=kind: special(p, k), "cannot be written") for kind in KINDS},
}  # fmt: skip


@pytest.mark.parametrize("case", [*TARGETS])
def test_a_target_that_is_not_ours_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    out, make, message = TARGETS[case]
    write_npz(tmp_path / "g.npz")
    make(tmp_path / out)
    before = snapshot(tmp_path)
    assert main(["g.npz", "--out", out]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("form", ["itself", "symbolic", "hard"])
def test_a_raw_file_is_no_target(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    write_planetoid(tmp_path / "raw")
    raw, out = tmp_path / "raw" / "ind.cora.x", tmp_path / "out.h5"
    if form == "symbolic":
        out.symlink_to(raw)
    elif form == "hard":
        os.link(raw, out)
    before = snapshot(tmp_path)
    assert main(["cora", "--raw", "raw", "--no-verify", "--out", str(raw if form == "itself" else out)]) == 2
    assert "is no feature file, so it stays" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_a_target_is_looked_at_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["cora", "--raw", "nowhere", "--out", "notes.txt"]) == 2
    assert "notes.txt: exists" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["shut/g.h5", "shut/new/folder/g.h5"])
def test_a_folder_is_looked_at_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """As root everything may be written to, but for what is mounted for reading."""
    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "shut")
    assert main(["no-such-file.npz", "--out", out]) == 2
    said = capsys.readouterr().err
    assert "cannot be written (nothing may be written to" in said and said.count("\n") == 1
    assert main(["no-such-file.npz", "--out", "g.h5"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert not any((tmp_path / "shut").iterdir())


def test_a_file_that_came_into_the_way_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="so it stays"):
        write_features(tmp_path / "notes.txt", Augmentation(synthetic_graph(nodes=100), 1))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "state", ["whole", "truncated", "another version", "linked", "behind a link to nothing"]
)
def test_a_feature_file_is_replaced(tmp_path: Path, state: str) -> None:
    """A damaged one too: `prepare it again` is what its reader says."""
    write_npz(tmp_path / "g.npz")
    out, real = Path("out.h5"), Path("real.h5")
    if state != "behind a link to nothing":
        write_features(real if state == "linked" else out, Augmentation(synthetic_graph(nodes=100), 1))
    if state == "truncated":
        out.write_bytes(out.read_bytes()[:5000])
    elif state == "another version":
        with h5py.File(out, "r+") as file:
            file.attrs["schema_version"] = 99
    elif state != "whole":
        out.symlink_to(real)
    assert main(["g.npz", "--out", "out.h5"]) == 0
    with FeatureFile(out) as file:
        assert file.dataset == "g"
    assert out.is_symlink() == ("link" in state)


# ----------------------------------------------------------------------------- whose graph it is


@pytest.mark.parametrize("stem", ["cora", "Cora", "synthetic", "mnist"])
def test_a_graph_of_ones_own_is_not_the_published_one(tmp_path: Path, stem: str) -> None:
    assert main(["synthetic", "--synthetic-nodes", "300", "--out", f"data/{stem}.h5"]) == 0
    published = Path("data", f"{stem}.h5").read_bytes()
    write_npz(tmp_path / f"{stem}.npz")
    assert main([f"{stem}.npz", "--hops", "1"]) == 0
    assert Path("data", f"{stem}.h5").read_bytes() == published
    made = f"data/{stem}.npz.h5"
    with FeatureFile(made) as file:
        assert file.dataset == f"{stem}.npz"
        assert file.dataset not in REGISTRY
        assert file.attrs["citation"] == ""
    assert preset(made) == {}


def test_called() -> None:
    assert called("cora") == "cora"
    assert called("a/mine.npz") == "mine"
    assert called(Path("a/cora.npz")) == "cora.npz"
    with pytest.raises(InputError, match="unknown data set"):
        called("corra")


def test_a_file_that_only_has_the_name_of_a_data_set_gets_no_preset(tmp_path: Path) -> None:
    """As files of a user's own cora.npz had it once."""
    write_features(tmp_path / "f.h5", Augmentation(synthetic_graph(nodes=300), 1), dataset="cora")
    assert REGISTRY["cora"].preset
    assert preset(str(tmp_path / "f.h5")) == {}


def test_the_published_one_gets_its_preset(prepared: Callable[..., Path]) -> None:
    assert preset(str(prepared("cora"))) == REGISTRY["cora"].preset_for(REGISTRY["cora"].operators)
