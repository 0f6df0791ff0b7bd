"""Files made to harm: feature files, models, profiles and configurations are refused in one line."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Finished, python, succeed, summary_of, words

import pdadmm
from pdadmm.admm.options import OPTIONS, parse
from pdadmm.errors import InputError, one_line
from pdadmm.files.names import safe_name
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.profile.__main__ import main as report
from pdadmm.profile.simulate import Network, Op, simulate

TERABYTES = 1 << 40
ESCAPE = "\x1b]0;owned\x07\x1b[31m"

FUZZED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def trained(mpirun: Callable[..., Finished], small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks with measured links."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = "--layers 3 --stages 3 --hidden 6 --iterations 8 --input-norm hellinger --measure-links --quiet"
    succeed(mpirun(2, "-m", "pdadmm.run", small, *options.split(), "--out", folder))
    return folder


@pytest.fixture(scope="module")
def trained_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a graph network."""
    folder = tmp_path_factory.mktemp("trained_graph")
    cut = "synthetic --parts 1 --synthetic-nodes 90 --synthetic-features 9 --synthetic-classes 3 --out"
    succeed(python("-m", "pdadmm.gnn.prepare", *words(cut), folder / "g.h5"))
    options = "--model sage --layers 3 --hidden 6 --epochs 2 --quiet --out"
    succeed(python("-m", "pdadmm.gnn.run", folder / "g.h5", *words(options), folder / "run"))
    return folder / "run"


@pytest.fixture
def sources(small: Path, trained: Path, trained_graph: Path) -> dict[str, Path]:
    """Files by their kind."""
    return {"features": small, "model": trained / "model.h5", "graph model": trained_graph / "model.h5"}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Python and NumPy take no more than some megabytes."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def changed(source: Path, target: Path, change: Callable[[Any], object]) -> Path:
    """A copy of an HDF5 file, changed."""
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def refused(read: Callable[[Path], object], path: Path | str, *words: str) -> None:
    """Reading raises one line that names the file and says the words."""
    with pytest.raises(InputError) as caught:
        read(path)  # type: ignore[arg-type]
    text = str(caught.value)
    assert one_line(path)[-100:] in one_line(text) or "\0" in str(path)
    assert one_line(text).count("\n") == 0
    for word in words:
        assert word in text


# ---- what HDF5 can do besides ----------------------------------------------------------------------


def bomb(name: str) -> Callable[[Any], None]:
    """Kilobytes that unfold to terabytes."""

    def change(file: Any) -> None:
        kind = file[name].dtype
        shape = (TERABYTES // 8, *file[name].shape[1:])
        del file[name]
        chunks = (1 << 16, *shape[1:])
        file.create_dataset(name, shape, kind, chunks=chunks, compression="gzip", fillvalue=1)

    return change


def low_level(name: str, prepare: Callable[[Any], None], rows: int | None = None) -> Callable[[Any], None]:
    """A data set of the same shape and type, made by a plan."""

    def change(file: Any) -> None:
        shape, kind = file[name].shape, h5py.h5t.py_create(file[name].dtype)
        del file[name]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        prepare(plan)
        space = h5py.h5s.create_simple(shape if rows is None else (rows, *shape[1:]))
        h5py.h5d.create(
            file[name.rpartition("/")[0] or "/"].id, name.split("/")[-1].encode(), kind, space, plan
        )

    return change


def replaced(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file[name] = value

    return change


def virtual(name: str, source: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        shape, kind = file[name].shape, file[name].dtype
        del file[name]
        layout = h5py.VirtualLayout(shape, kind)
        layout[...] = h5py.VirtualSource(source, "x", shape)
        file.create_virtual_dataset(name, layout)

    return change


def claims(name: str) -> Callable[[Any], None]:
    """An array of terabytes of which nothing is there."""
    return low_level(name, lambda plan: plan.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE), TERABYTES)


def other_ways(name: str) -> dict[str, tuple[Callable[[Any], None], str]]:
    """Ways of storing an array other than in the file, contiguous: what is made, and the complaint."""
    contiguous = "not contiguous"
    return {
        "chunked": (bomb(name), contiguous),
        "compact": (low_level(name, lambda plan: plan.set_layout(h5py.h5d.COMPACT)), contiguous)
        if name != "x"
        else (bomb(name), contiguous),
        "virtual": (virtual(name, "pipe"), contiguous),
        "virtual without a source": (virtual(name, "nowhere.h5"), contiguous),
        "values in another file": (
            low_level(name, lambda plan: plan.set_external(b"pipe", 0, h5py.h5f.UNLIMITED)),
            "in another file",
        ),
        "link to another file": (replaced(name, h5py.ExternalLink("pipe", "/x")), "is a link"),
        "link to a missing file": (replaced(name, h5py.ExternalLink("nowhere.h5", "/x")), "is a link"),
        "soft link": (replaced(name, h5py.SoftLink("/node_id")), "is a link"),
        "soft link to itself": (replaced(name, h5py.SoftLink(f"/{name}")), "is a link"),
        "never written": (claims(name), "larger than the file"),
        "empty": (replaced(name, h5py.Empty("f4")), name),
        "a number": (replaced(name, 3.0), name),
        "a text": (replaced(name, "hello"), name),
    }


WAYS = list(other_ways("x"))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pipe that nobody writes into: who opens it for reading waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["x", "y", "node_id"])
@pytest.mark.parametrize("way", WAYS)
def test_a_feature_file_is_contiguous_arrays_in_the_file_and_nothing_else(
    way: str, name: str, small: Path, workplace: Path
) -> None:
    change, complaint = other_ways(name)[way]
    refused(
        FeatureFile,
        changed(small, workplace / "f.h5", change),
        f"/{name}" if name in complaint else "",
        complaint,
    )


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["layer_0002/W", "layer_0002/b"])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_is_contiguous_arrays_in_the_file_and_nothing_else(
    way: str, name: str, trained: Path, workplace: Path
) -> None:
    change, complaint = other_ways(name)[way]
    if name in complaint:
        complaint = "layer"
    refused(pdadmm.Model.load, changed(trained / "model.h5", workplace / "m.h5", change), complaint)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["layer_0002/W_neighbours", "layer_0002/W_self", "layer_0002/gamma"])
@pytest.mark.parametrize("way", WAYS)
def test_a_graph_model_is_contiguous_arrays_in_the_file_and_nothing_else(
    way: str, name: str, trained_graph: Path, workplace: Path
) -> None:
    change, complaint = other_ways(name)[way]
    path = changed(trained_graph / "model.h5", workplace / "m.h5", change)
    refused(pdadmm.GraphModel.load, path, complaint)


def group_elsewhere(kind: str) -> Callable[[Any], None]:
    link = h5py.ExternalLink("pipe", "/") if kind == "external" else h5py.SoftLink("/layer_0001")
    return replaced("layer_0002", link)


def many_links(file: Any) -> None:
    """A hundred layers that share the numbers of one."""
    for name in ("layer_0001", "layer_0002", "layer_0003"):
        del file[name]
    file["layer_0001/W"], file["layer_0001/b"] = np.ones((500, 500), "f4"), np.ones(500, "f4")
    for position in range(2, 101):
        file[f"layer_{position:04d}"] = file["layer_0001"]
    file.attrs["layers"] = 100


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file.attrs[name] = value

    return change


def without(name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        if name in file.attrs:
            del file.attrs[name]
        else:
            del file[name]

    return change


def one_value(name: str, value: float) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[name][...] = value

    return change


BAD_MODELS: dict[str, tuple[Callable[[Any], None], str]] = {
    "another schema": (attribute("schema", "other"), "not a model"),
    "a schema that is a number": (attribute("schema", 3), "not a model"),
    "no schema": (without("schema"), "not a model"),
    "no version": (without("schema_version"), "schema version None"),
    "another version": (attribute("schema_version", 2), "schema version 2"),
    "versions": (attribute("schema_version", [1, 1]), "schema_version"),
    "no number of layers": (without("layers"), "lacks the attribute layers"),
    "no layers": (attribute("layers", 0), "layers is 0"),
    "negative layers": (attribute("layers", -1), "layers is -1"),
    "layers in words": (attribute("layers", "three"), "layers is 'three'"),
    "half a layer": (attribute("layers", 2.5), "layers is 2.5"),
    "a missing layer at the end": (without("layer_0003"), "holds 2 layers, not 3"),
    "a layer too many": (lambda f: f.copy("layer_0001", "layer_0004"), "holds 4 layers, not 3"),
    "layers without end": (attribute("layers", 2**62), "holds 3 layers"),
    "a hole": (lambda f: f.move("layer_0002", "layer_0005"), "lacks /layer_0002"),
    "no weights": (without("layer_0002/W"), "lacks /layer_0002/W"),
    "no bias": (without("layer_0002/b"), "lacks /layer_0002/b"),
    "a layer that is an array": (replaced("layer_0002", np.ones(3)), "lacks /layer_0002/W"),
    "an array that is a group": (
        lambda f: (without("layer_0002/b")(f), f.create_group("layer_0002/b")),
        "no array",
    ),
    "layers that do not fit": (replaced("layer_0002/W", np.ones((6, 5), "f4")), "takes 5 inputs"),
    "a bias that does not fit": (replaced("layer_0002/b", np.ones(5, "f4")), "b (5,)"),
    "a bias of two dimensions": (replaced("layer_0002/b", np.ones((6, 1), "f4")), "b (6, 1)"),
    "weights of three": (replaced("layer_0002/W", np.ones((6, 6, 1), "f4")), "W (6, 6, 1)"),
    "one weight": (replaced("layer_0002/W", np.float32(1)), "W ()"),
    "weights of whole numbers": (replaced("layer_0002/W", np.ones((6, 6), int)), "not float32"),
    "weights of booleans": (replaced("layer_0002/W", np.ones((6, 6), bool)), "not float32"),
    "weights of texts": (replaced("layer_0002/W", np.full((6, 6), b"a")), "not float32"),
    "complex weights": (replaced("layer_0002/W", np.ones((6, 6), complex)), "not float32"),
    "NaN": (one_value("layer_0002/W", np.nan), "NaN"),
    "an infinite bias": (one_value("layer_0003/b", np.inf), "NaN or Inf"),
    "weights beyond float32": (replaced("layer_0002/W", np.full((6, 6), 1e300)), "NaN or Inf"),
    "an unknown activation": (attribute("activation", "gelu"), "'gelu'"),
    "an activation that is a number": (attribute("activation", 1), "activation"),
    "no activation": (without("activation"), "lacks the attribute activation"),
    "an unknown norm": (attribute("input_norm", "l2"), "input_norm"),
    "a decay of zero": (attribute("hop_decay", 0.0), "hop_decay"),
    "a decay that is no number": (attribute("hop_decay", np.nan), "hop_decay"),
    "an infinite decay": (attribute("hop_decay", np.inf), "hop_decay"),
    "a decay in words": (attribute("hop_decay", "1"), "hop_decay"),
    "no features a hop": (attribute("features_per_hop", 0), "features_per_hop"),
    "features that are no hops": (attribute("features_per_hop", 7), "no hops of 7"),
    "scaled, but by what": (without("features_per_hop"), "lacks the attribute features_per_hop"),
    "many values": (attribute("dataset", np.zeros(1000)), "attribute dataset"),
    "a link to another layer": (group_elsewhere("soft"), "is a link"),
    "a layer in another file": (group_elsewhere("external"), "is a link"),
    "layers that share their numbers": (many_links, "larger than the file"),
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_model_that_is_none_is_refused(case: str, trained: Path, workplace: Path) -> None:
    change, complaint = BAD_MODELS[case]
    refused(pdadmm.Model.load, changed(trained / "model.h5", workplace / "m.h5", change), complaint)


BAD_GRAPH_MODELS: dict[str, tuple[Callable[[Any], None], str]] = {
    "another schema": (attribute("schema", "pdadmm-model"), "not the model of a graph network"),
    "no version": (without("schema_version"), "schema version None"),
    "no number of layers": (without("layers"), "lacks the attribute layers"),
    "layers without end": (attribute("layers", 2**62), "holds 3 layers"),
    "no layers": (attribute("layers", 0), "layers is 0"),
    "a layer too many": (lambda f: f.copy("layer_0001", "layer_0004"), "holds 4 layers, not 3"),
    "an unknown model": (attribute("model", "gat"), "model is 'gat'"),
    "the other model": (attribute("model", "gcn"), "lacks /layer_0001/W"),
    "no weights": (without("layer_0002/W_self"), "lacks /layer_0002/W_self"),
    "no norm": (without("layer_0002/beta"), "lacks /layer_0002/beta"),
    "a layer that is an array": (replaced("layer_0002", np.ones(3)), "lacks /layer_0002/W_neighbours"),
    "layers that do not fit": (replaced("layer_0002/W_self", np.ones((6, 5), "f4")), "is (6, 5), not (6, 6)"),
    "a norm that does not fit": (replaced("layer_0001/gamma", np.ones(5, "f4")), "is (5,), not (6,)"),
    "weights of three": (replaced("layer_0002/W_neighbours", np.ones((6, 6, 1), "f4")), "(6, 6, 1)"),
    "no outputs": (replaced("layer_0002/W_neighbours", np.ones((0, 6), "f4")), "(0, 6)"),
    "weights of whole numbers": (replaced("layer_0002/W_self", np.ones((6, 6), int)), "not float32"),
    "NaN": (one_value("layer_0002/W_self", np.nan), "NaN or Inf"),
    "an unknown norm": (attribute("feature_norm", "l2"), "feature_norm is 'l2'"),
    "labels in words": (attribute("multilabel", "yes"), "multilabel is 'yes'"),
    "many values": (attribute("dataset", np.zeros(1000)), "attribute dataset"),
    "a link to another layer": (group_elsewhere("soft"), "is a link"),
    "a layer in another file": (group_elsewhere("external"), "is a link"),
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("case", BAD_GRAPH_MODELS)
def test_a_graph_model_that_is_none_is_refused(case: str, trained_graph: Path, workplace: Path) -> None:
    change, complaint = BAD_GRAPH_MODELS[case]
    path = changed(trained_graph / "model.h5", workplace / "m.h5", change)
    refused(pdadmm.GraphModel.load, path, complaint)


def test_a_model_of_double_precision_is_read(trained: Path, tmp_path: Path) -> None:
    def widen(file: Any) -> None:
        W = file["layer_0002/W"][...].astype("f8")
        replaced("layer_0002/W", W)(file)

    expected = pdadmm.Model.load(trained / "model.h5")
    found = pdadmm.Model.load(changed(trained / "model.h5", tmp_path / "m.h5", widen))
    assert found.weights[1].dtype == np.float32
    np.testing.assert_array_equal(found.weights[1], expected.weights[1])


def test_a_model_says_what_it_was_trained_on_in_a_safe_name(trained: Path, tmp_path: Path) -> None:
    path = changed(trained / "model.h5", tmp_path / "m.h5", attribute("dataset", f"../{ESCAPE}x"))
    assert pdadmm.Model.load(path).attributes["dataset"] == safe_name(f"../{ESCAPE}x")


BAD_ATTRIBUTES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a list": (attribute("hops", [2, 2]), "attribute hops"),
    "a fraction": (attribute("hops", 2.0), "attribute hops is 2.0"),
    "a switch": (attribute("num_classes", True), "attribute num_classes"),
    "nothing": (attribute("seed", h5py.Empty("i8")), "attribute seed"),
    "a large array": (attribute("num_nodes", np.zeros(5000)), "attribute num_nodes"),
    "a long text": (attribute("title", "x" * 60000 + "y" * 9000), "attribute title"),
    "texts": (attribute("title", ["a", "b"]), "attribute title"),
    "a name that is a number": (attribute("dataset", 3), "attribute dataset is 3"),
    "hops without end": (attribute("hops", 2**62), "/x is float32"),
    "features without end": (attribute("features_per_hop", 2**62), "/x is float32"),
    "nodes without end": (attribute("n_test", 2**62), "more nodes than the graph"),
    "a negative split": (attribute("n_val", -5), "n_val is -5"),
    "more classes than nodes": (attribute("num_classes", 2**40), "more classes than nodes"),
}


@pytest.mark.parametrize("case", BAD_ATTRIBUTES)
def test_attributes_of_a_feature_file_are_one_value_of_their_type(
    case: str, small: Path, tmp_path: Path
) -> None:
    change, complaint = BAD_ATTRIBUTES[case]
    refused(FeatureFile, changed(small, tmp_path / "f.h5", change), complaint)


def test_a_user_block_is_refused(small: Path, tmp_path: Path) -> None:
    with h5py.File(small) as source, h5py.File(tmp_path / "f.h5", "w", userblock_size=512) as file:
        file.attrs.update(source.attrs)
        for name in source:
            source.copy(name, file)
    refused(FeatureFile, tmp_path / "f.h5", "user block")


@pytest.mark.parametrize(("number", "length"), [(0, 0), (0, 2**64 - 8), (1, 2**64 - 16), (1, 2**63)])
@pytest.mark.parametrize("kind", ["features", "model", "graph model"])
def test_a_heap_through_which_hdf5_would_walk_for_ever_is_refused(
    kind: str, number: int, length: int, sources: dict[str, Path], tmp_path: Path
) -> None:
    content = bytearray(sources[kind].read_bytes())
    place = content.index(b"GCOL")
    struct.pack_into("<H6xQ", content, place + 16, number, length)
    (tmp_path / "f.h5").write_bytes(content)
    refused(READERS[kind], tmp_path / "f.h5", "heap")


def test_a_file_that_is_being_written_is_refused(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    shutil.copy(small, path)
    code = f"""
import subprocess, sys, h5py
with h5py.File({str(path)!r}, "r+") as file:
    command = [sys.executable, "-m", "pdadmm.run", file.filename]
    found = subprocess.run(command, capture_output=True, text=True)
print(found.returncode, found.stderr)
"""
    out = succeed(python("-c", code, cwd=tmp_path)).out
    assert out.startswith("2 pdadmm: ") and "another program is writing it" in out


# ---- what is no file -------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "features": FeatureFile,
    "model": pdadmm.Model.load,
    "graph model": pdadmm.GraphModel.load,
    "configuration": lambda path: OPTIONS.load(str(path)),
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "path", ["pipe", ".", "/dev/zero", "/dev/null", "nowhere", "a\0b", "\udcff", "x" * 5000]
)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_and_not_waited_for(reader: str, path: str, workplace: Path) -> None:
    refused(READERS[reader], path)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_profile_that_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert_report(tmp_path, 2, "cannot read")


# ---- the name of a data set ------------------------------------------------------------------------

NAMES = [
    "../../../ESCAPED", "/etc/passwd", ".hidden", "..", "", "a/b", "a\0b", "a\nb", ESCAPE, "a[/]b",
    "x" * 10**4, "\u202egpj.exe", "données 1", "\udcff\udcfe", "日本語" * 90, "-rf", "a:smile:b", "~root",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_safe_name_is_one_part_of_a_path(name: str) -> None:
    found = safe_name(name)
    assert found.isprintable() and len(found.encode()) <= 100 and found[0] not in ".-"
    assert Path(found).name == found and not set(found) & set("/\\[]:~ \0")


@pytest.mark.parametrize("name", ["cora", "amazon-photo", "my.graph_2", "données"])
def test_a_safe_name_stays_as_it_is(name: str) -> None:
    assert safe_name(name) == name


@given(st.text())
def test_any_text_has_a_safe_name_and_is_one_line(text: str) -> None:
    assert safe_name(safe_name(text)) == safe_name(text)
    assert one_line(text).isprintable() and len(one_line("y" * 10**6 + text)) < 10**4


def test_a_run_on_a_hostile_name_stays_in_its_folder_and_ends_well(small: Path, tmp_path: Path) -> None:
    work = tmp_path / "a" / "b" / "c"
    work.mkdir(parents=True)
    name = b"../../../ESCAPED\x1b]0;owned\x07\n[/]b \xff:smile:"

    def rename(file: Any) -> None:
        file.attrs.create("dataset", name, dtype=h5py.string_dtype())

    path = changed(small, tmp_path / "f.h5", rename)
    options = words("--layers 2 --hidden 5 --iterations 4")
    finished = succeed(python("-m", "pdadmm.run", path, *options, cwd=work))
    assert {p.name for p in tmp_path.iterdir()} == {"f.h5", "a"}
    assert [p.name for p in work.iterdir()] == ["runs"]
    (run,) = (work / "runs").iterdir()
    assert run.name.startswith("ESCAPED-0-owned-b-smile-")
    assert all(c.isprintable() or c == "\n" for c in finished.out + finished.err)
    assert summary_of(run)["dataset"] == "ESCAPED-0-owned-b-smile"
    assert pdadmm.Model.load(run / "model.h5").attributes["dataset"] == "ESCAPED-0-owned-b-smile"


def test_markup_in_a_folders_name_is_text(small: Path, tmp_path: Path) -> None:
    folder = "a[/]b[red]\x1b[31m:smile:"
    options = words("--layers 2 --hidden 5 --iterations 6 --out")
    finished = succeed(python("-m", "pdadmm.run", small, *options, folder, cwd=tmp_path))
    assert all(c.isprintable() or c == "\n" for c in finished.out + finished.err)
    assert one_line(folder) in finished.out
    assert one_line("]b[red]\x1b[31m:smile:") in assert_report(tmp_path / folder, 0)


# ---- profiles --------------------------------------------------------------------------------------


def assert_report(folder: Path, code: int | None, *words: str, options: str = "") -> str:
    """Report on a folder; it ends with the code (None: 0 or 2), and in one line when it is 2."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = report([str(folder), *options.split()])
    assert found in ((0, 2) if code is None else (code,)), err.getvalue()
    assert err.getvalue().count("\n") == (1 if found == 2 else 0), err.getvalue()
    assert len(err.getvalue()) < 5000
    for word in words:
        assert word in err.getvalue()
    assert all(c.isprintable() or c == "\n" for c in out.getvalue() + err.getvalue())
    return out.getvalue()


@pytest.fixture(scope="module")
def profile(trained: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((trained / "profile.json").read_text())
    return found


BAD_TEXTS = {
    "empty": ("", "cannot read"),
    "half": ('{"schema": "pdadmm-profile", "sche', "cannot read"),
    "no object": ("[]", "not a profile"),
    "a number": ("1" * 10**6, "not a profile"),
    "NaN": ('{"schema": "pdadmm-profile", "schema_version": NaN}', "cannot read"),
    "deep lists": ("[" * 10**5, "not a profile"),
    "deep lists within": ('{"x": ' + "[" * 10**5, "cannot read"),
    "deep objects": ('{"schema": ' + '{"a":' * 10**5, "cannot read"),
    "a long version": ('{"schema": "pdadmm-profile", "schema_version": "%s"}' % ("9" * 10**6), "version"),
    "a version of newlines": ('{"schema": "pdadmm-profile", "schema_version": "\\n\\u001b[31m"}', "version"),
    "a version of a thousand digits": (
        '{"schema": "pdadmm-profile", "schema_version": %s}' % ("9" * 5000), "",
    ),
    "no text": (b'{"schema": "\xff\xfe"}', "cannot read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_what_is_no_profile_is_one_line(case: str, tmp_path: Path) -> None:
    text, complaint = BAD_TEXTS[case]
    (tmp_path / "profile.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_report(tmp_path, 2, complaint)


def at(*path: str | int) -> Callable[[Any], tuple[Any, str | int]]:
    """Where in a profile something stands: what holds it, and its key."""

    def find(value: Any) -> tuple[Any, str | int]:
        for key in path[:-1]:
            value = value[key]
        return value, path[-1]

    return find


STAGE = ("ranks", 0, "stages", -1)

BAD_PROFILES: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "no ranks": (("ranks",), []),
    "ranks that are none": (("ranks",), [None]),
    "one rank of two": (("run", "ranks"), 1),
    "a million ranks": (("run", "ranks"), 10**6),
    "ranks that are twice there": (("ranks", 1, "rank"), 0),
    "no stages": (("ranks", 0, "stages"), []),
    "other stages": (("ranks", 0, "stages"), "others"),
    "a negative count": ((*STAGE, "iterations"), -1),
    "a count of a fraction": ((*STAGE, "iterations"), 1.5),
    "a count of millions of digits": ((*STAGE, "iterations"), 10**400),
    "a negative time": ((*STAGE, "iteration_seconds", "mean"), -1.0),
    "no time at all": ((*STAGE, "iteration_seconds", "mean"), 0.0),
    "a time of an age": ((*STAGE, "iteration_seconds", "mean"), 1e300),
    "a time in words": ((*STAGE, "iteration_seconds", "mean"), "soon"),
    "no layers": ((*STAGE, "layers"), []),
    "no phases": ((*STAGE, "phases"), {"1": {}}),
    "a peer that is not there": (("ranks", 1, "stages", -1, "links", 0, "peer"), 7),
    "messages of nothing": ((*STAGE, "links", 0, "float32_bytes"), 0),
    "a message of another kind": ((*STAGE, "links", 0, "kind"), "lost"),
    "a message with a name of newlines": ((*STAGE, "links", 0, "name"), "p\n2\x1b"),
    "no run": (("run",), None),
    "hidden layers of all memory": (("run", "hidden"), 10**12),
    "no hidden neurons": (("run", "hidden"), 0),
    "no nodes": (("run", "nodes_train"), 0),
    "no overlap said": (("run", "overlap"), "yes"),
    "a data set that is a list": (("run", "dataset"), ["cora"]),
    "a host that is a number": (("ranks", 0, "host"), 7),
    "links measured without results": (("links_baseline", "transports", "mpi", 0, "results"), []),
    "links of no bandwidth": (("links_baseline", "transports", "mpi", 0, "results", 0, "bandwidth"), 0),
    "seconds that are missing": (("ranks", 0, "seconds"), {}),
}


def write(profile: Any, folder: Path) -> Path:
    (folder / "profile.json").write_text(json.dumps(profile))
    return folder


@pytest.mark.parametrize("case", BAD_PROFILES)
def test_a_profile_that_is_none_is_one_line(case: str, profile: dict[str, Any], tmp_path: Path) -> None:
    path, value = BAD_PROFILES[case]
    hostile = copy.deepcopy(profile)
    place, key = at(*path)(hostile)
    place[key] = value
    assert_report(write(hostile, tmp_path), 2)


PREDICTED = "--network 50us,1Gbit --ranks 1 --ranks 2 --ranks 3"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("run", "widths"), [3]),
        (("run", "widths"), []),
        ((*STAGE, "steps"), []),
        ((*STAGE, "steps", 0, "part"), "q"),
        ((*STAGE, "steps", 0, "layer"), 9),
        ((*STAGE, "layers"), [1, 2, 3]),
        ((*STAGE, "layers"), [900000]),
        (("run", "codec"), "gzip"),
        (("run", "bits"), 3),
    ],
)
def test_what_cannot_be_predicted_from_is_one_line(
    path: tuple[str | int, ...], value: Any, profile: dict[str, Any], tmp_path: Path
) -> None:
    hostile = copy.deepcopy(profile)
    place, key = at(*path)(hostile)
    place[key] = value
    assert_report(write(hostile, tmp_path), 2, options=PREDICTED)


def test_ranks_that_wait_for_each_other_for_ever_are_one_line() -> None:
    first = [Op("wait", key="p 2", nbytes=9, peer=1), Op("send", key="q 1", nbytes=9, peer=1)]
    second = [Op("wait", key="q 1", nbytes=9, peer=0), Op("send", key="p 2", nbytes=9, peer=0)]
    with pytest.raises(InputError, match="wait for each other"):
        simulate([first, second], Network(0.0, 1e9))


def test_names_in_a_profile_do_not_reach_the_terminal_or_the_page_raw(
    profile: dict[str, Any], tmp_path: Path
) -> None:
    hostile = copy.deepcopy(profile)
    hostile["run"]["dataset"] = f"a[/]b{ESCAPE}<script>\n\u202e"
    hostile["ranks"][0]["host"] = "[b]h[/]"
    hostile["run"]["codec"] = "<img src=x>"
    shown = assert_report(write(hostile, tmp_path), 0, options=f"--html {tmp_path}/page.html")
    assert "a[/]b" in shown and "[b]h[/]" in shown
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;" in page and "<script" not in page and "<img" not in page
    assert all(c.isprintable() or c == "\n" for c in page)


def test_flights_of_no_time_are_shown(profile: dict[str, Any], tmp_path: Path) -> None:
    hostile = copy.deepcopy(profile)
    for link in (link for rank in hostile["ranks"] for link in rank["stages"][-1]["links"]):
        link["flight_seconds"] = 5e-324
    assert_report(write(hostile, tmp_path), 0, options=f"--html {tmp_path}/page.html")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from([10**30, -1, 0, 1e308, 1e-308, "p", "", 2**63, 2**31]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def a_place(data: st.DataObject, value: Any) -> tuple[Any, Any]:
    """Somewhere in a JSON value: what holds it, and its key."""
    place: tuple[Any, Any] = (None, None)
    while isinstance(value, (dict, list)) and value:
        key = data.draw(
            st.sampled_from(sorted(value)) if isinstance(value, dict) else st.integers(0, len(value) - 1)
        )
        place = (value, key)
        value = value[key]
        if data.draw(st.integers(0, 5)) == 0:
            break
    return place


@FUZZED
@given(data=st.data())
def test_a_mutated_profile_gives_a_report_or_one_line(
    data: st.DataObject, profile: dict[str, Any], tmp_path: Path
) -> None:
    hostile = copy.deepcopy(profile)
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = a_place(data, hostile)
        if holder is None:
            break
        action = data.draw(st.sampled_from(["replace", "delete", "double", "swap"]))
        if action == "delete":
            del holder[key]
        elif action == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif action == "swap":
            other, place = a_place(data, hostile)
            if other is not None:
                other[place] = copy.deepcopy(holder[key])
        else:
            holder[key] = data.draw(JSON)
    outputs = f"--html {tmp_path}/a.html --csv {tmp_path}/a.csv --json {tmp_path}/a.json"
    assert_report(write(hostile, tmp_path), None, options=f"{PREDICTED} {outputs}")


VALUES = st.sampled_from([
    0, -1, 3, 2**31, 2**62, 1.5, np.nan, np.inf, "", "x" * 300, "a\nb", True, b"\xff", [1, 2],
    np.zeros(3), np.zeros((2, 2)), np.ones((6, 6), "f4"), np.ones(6, "f4"), np.full((6, 6), np.nan, "f4"),
    np.arange(300), h5py.Empty("f4"), np.dtype("f4"),
    h5py.SoftLink("/x"), h5py.SoftLink("/"), h5py.ExternalLink("nowhere.h5", "/"),
])  # fmt: skip


def mutate(data: st.DataObject, file: Any) -> None:
    """Change, remove, move or copy attributes and objects of an HDF5 file."""
    objects: list[str] = []
    file.visit(objects.append)
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()) or not objects:
            name = data.draw(st.sampled_from(sorted(file.attrs)))
            value = data.draw(VALUES)
            with contextlib.suppress(TypeError, ValueError, OSError):
                if data.draw(st.integers(0, 3)):
                    file.attrs[name] = value
                else:
                    del file.attrs[name]
            continue
        name, other = data.draw(st.sampled_from(objects)), data.draw(st.sampled_from(objects))
        action = data.draw(st.sampled_from(["replace", "delete", "move", "link", "resize"]))
        with contextlib.suppress(KeyError, ValueError, TypeError, OSError, RuntimeError):
            if action == "resize" and isinstance(file[name], h5py.Dataset):
                grown = np.resize(file[name][...], data.draw(st.integers(0, 40)))
                replaced(name, grown)(file)
            elif action == "move":
                file.move(name, f"{other}_")
            elif action == "link":
                copied = file[name]
                del file[other]
                file[other] = copied
            elif action == "delete":
                del file[name]
            else:
                replaced(name, data.draw(VALUES))(file)


@FUZZED
@given(data=st.data())
def test_a_mutated_feature_file_is_read_or_one_line(data: st.DataObject, small: Path, tmp_path: Path) -> None:
    path = changed(small, tmp_path / "f.h5", lambda file: mutate(data, file))
    with contextlib.suppress(InputError), FeatureFile(path) as features:
        for split in ("train", "val", "test", "all"):
            x, y = features.x(split), features.y(split)
            assert x.shape == (len(y), features.num_features) and np.isfinite(x).all()
            assert y.min() >= 0 and y.max() < features.num_classes


@FUZZED
@given(data=st.data())
def test_a_mutated_model_is_read_or_one_line(data: st.DataObject, trained: Path, tmp_path: Path) -> None:
    path = changed(trained / "model.h5", tmp_path / "m.h5", lambda file: mutate(data, file))
    with contextlib.suppress(InputError):
        model = pdadmm.Model.load(path)
        found = model.forward(np.ones((2, model.weights[0].shape[1]), np.float32))
        assert found.shape == (2, len(model.biases[-1]))


@FUZZED
@given(data=st.data())
def test_a_mutated_graph_model_is_read_or_one_line(
    data: st.DataObject, trained_graph: Path, tmp_path: Path
) -> None:
    path = changed(trained_graph / "model.h5", tmp_path / "m.h5", lambda file: mutate(data, file))
    with contextlib.suppress(InputError):
        model = pdadmm.GraphModel.load(path)
        assert sorted(model.weights) == list(range(1, model.shape.layers + 1))
        for layer, named in model.weights.items():
            assert {name: x.shape for name, x in named.items()} == model.shape.parameters(layer)
            assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in named.values())


@pytest.mark.parametrize("kind", ["features", "model", "graph model"])
def test_a_file_cut_anywhere_is_one_line(kind: str, sources: dict[str, Path], tmp_path: Path) -> None:
    content, path = sources[kind].read_bytes(), tmp_path / "cut.h5"
    for keep in [*range(0, min(len(content), 4096), 61), *range(0, len(content), len(content) // 40)]:
        path.write_bytes(content[:keep])
        refused(READERS[kind], path)


# ---- configurations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"x = " + b"[" * 10**4, "nested too deep"),
        (b"x = " + b"{a = " * 10**4, "nested too deep"),
        (b"[" + b"a." * 10**4 + b"b]", ""),
        (b"[training]\niterations = " + b"9" * 5000, "not valid TOML"),
        (b"[training]\niterations = 0x" + b"f" * 5000, "iterations"),
        (b"[training]\niterations = 0x" + b"f" * 500, "iterations"),
        (b"[training]\nnu = 0x" + b"f" * 5000, "nu"),
        (b"[training]\nnu = " + b"9" * 400, "nu"),
        (b"[training]\nnu = nan", "--nu is nan"),
        (b"[training]\nrho = inf", "--rho is inf"),
        (b"[training]\nmu = 1e400", "--mu is inf"),
        (b"[training]\nstages = [2, 0x" + b"f" * 5000 + b"]", "--stages"),
        (b"[training]\nsolver = '" + b"x" * 10**4 + b"'", "solver"),
        (b"[training]\nsolver = [[[[[[[[1]]]]]]]]", "solver"),
        (b"[network]\nhidden = '\\u0000'", "hidden"),
        (b'[output]\nout = "a\\u0000b"', "NUL"),
        (b'features = "a\\u0000b"', "NUL"),
        (b"[messages]\ngrid_low = -inf\ngrid_high = inf", "--grid-low is -inf"),
        (b"\xff\xfe", "not valid TOML"),
        (b"[training]\n" + "été".encode("latin-1") + b" = 1", "not valid TOML"),
        (b"\0" * 100, "not valid TOML"),
        (b"# " + b"x" * (1 << 20), "larger than"),
    ],
    ids=range(22),
)
def test_a_hostile_configuration_is_one_line(content: bytes, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        parse(["--config", str(file)])
    assert complaint in str(caught.value)
    assert len(one_line(caught.value)) < 5000
