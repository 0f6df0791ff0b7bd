"""Options: defaults < preset < TOML file < command line; what is out of range is named."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from support import words

from pdadmm.admm.options import OPTIONS, Config, Messages, Network, Training, parse
from pdadmm.errors import InputError
from pdadmm.gnn.options import SCHEMES
from pdadmm.gnn.options import parse as graph_network
from pdadmm.runtime.options import Options, fill, option, positional, to_toml
from pdadmm.runtime.sections import Output, Run


def test_every_source_wins_over_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("[training]\nnu = 0.3\nrho = 0.3\n[messages]\ncodec = 'affine'\n")

    def preset(path: str) -> dict[str, float]:
        assert path == "cora.h5"
        return {"nu": 0.2, "rho": 0.2, "mu": 0.2}

    config = parse(["cora.h5", "--config", str(file), "--rho", "0.4"], preset)
    t = config.training
    assert (t.iterations, t.mu, t.nu, t.rho) == (100, 0.2, 0.3, 0.4)
    assert (config.messages.codec, config.messages.bits) == ("affine", 4)


def test_written_options_read_back_the_same(tmp_path: Path) -> None:
    first = parse(words("/x.h5 --stages 2,5,10 --nu 3e-4 --codec grid --bits 8 --grid-low -1 --grid-high 2"))
    file = tmp_path / "config.toml"
    file.write_text(to_toml(first))
    assert parse(["--config", str(file)]) == first
    file.write_text(to_toml(parse([])))
    assert parse(["--config", str(file)]) == parse([])


def test_a_preset_adds_nothing_to_what_a_run_of_before_was_told(tmp_path: Path) -> None:
    """Its file lacks what came later, which has its default then; a file with less is the user's."""

    def preset(_: str) -> dict[str, object]:
        return {"class_prior": "val", "mu": 0.2}

    lines = to_toml(parse(words("/x.h5 --layers 4 --stages 2,4"))).splitlines()
    older = [line for line in lines if not line.startswith(("class_prior", "start"))]
    assert len(older) == len(lines) - 2
    file = tmp_path / "config.toml"
    file.write_text("\n".join(older))
    of_resumed = ["--resume", "--out", str(tmp_path)]
    for arguments in (["--config", str(file)], ["--config", str(file), "--layers", "8"], of_resumed):
        t = parse(arguments, preset).training
        assert (t.class_prior, t.mu) == ("train", 0.01)
    file.write_text("\n".join(line for line in older if not line.startswith("mu")))
    t = parse(["--config", str(file)], preset).training
    assert (t.class_prior, t.mu) == ("val", 0.2)


def test_the_file_may_name_the_features_and_the_command_line_others(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("features = 'a.h5'\n")
    assert parse(["--config", str(file)]).features == "a.h5"
    assert parse(["b.h5", "--config", str(file)]).features == "b.h5"
    assert parse([]).features == ""


def test_a_path_survives_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written absolute; read as of the working folder, or of the file's where it leads to nothing there."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        (folder / "data").mkdir(parents=True)
    monkeypatch.chdir(here)
    Path("data/a.h5").touch()
    Path("own.toml").write_text("features = 'data/a.h5'\n")
    Path("written.toml").write_text(to_toml(parse(["data/a.h5"])))
    for name in ("own.toml", "written.toml"):
        monkeypatch.chdir(elsewhere)
        assert Path(parse(["--config", str(here / name)]).features).samefile(here / "data" / "a.h5")
    Path("data/a.h5").touch()
    assert parse(["--config", str(here / "own.toml")]).features == "data/a.h5"
    assert parse(["--config", str(here / "written.toml")]).features == str(here / "data" / "a.h5")
    (here / "data" / "a.h5").unlink()  # where there is none, the line about it says what stands in the file
    Path("data/a.h5").unlink()
    assert parse(["--config", str(here / "own.toml")]).features == "data/a.h5"


def test_options_of_a_single_start_are_neither_written_nor_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(to_toml(parse(words("--out runs/a --resume --max-seconds 5"))))
    found = parse(["--config", str(file)]).output
    assert (found.out, found.resume, found.max_seconds) == ("", False, 5.0)
    assert capsys.readouterr().err == ""
    file.write_text("[output]\nout = 'runs/a'\noverwrite = true\n")  # as of an earlier version
    assert parse(["--config", str(file)]) == parse([])
    assert capsys.readouterr().err.count("is ignored; it is an option of the command line alone\n") == 2


def test_whole_numbers_are_fine_where_fractions_are(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("[training]\nnu = 1\n")
    nu = OPTIONS.load(str(file))["training"]["nu"]
    assert nu == 1.0 and isinstance(nu, float)


@pytest.mark.parametrize(("codec", "bits"), [("float32", 32), ("grid", 4), ("affine", 4), ("delta", 4)])
def test_bits_follow_the_codec(codec: str, bits: int) -> None:
    assert parse(["--codec", codec]).messages.bits == bits


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[training]\nnu = 'x'\n", "nu"),
        ("[training]\nnu = true\n", "nu"),
        ("[training]\niterations = 1.5\n", "iterations"),
        ("[training]\nstages = [2, 'x']\n", "stages"),
        ("[training]\nstages = [true]\n", "stages"),
        ("[training]\nsolver = 'newton'\n", "gradient, exact"),
        ("[training]\nsteps = 3\n", "'steps'"),
        ("[train]\nnu = 1\n", "[train]"),
        ("training = 3\n", "[training]"),
        ("nu = 3\n", "unknown key 'nu' above its tables; there is 'nu' in [training]"),
        ("[network]\nz-centre = 'linear'\n", "'z-centre' in [network]; there is 'z_centre' in [training]"),
        ("[network]\nlayers = 2.0\n", "must be an integer, not 2.0"),
        ("graph = ''\n", "is a configuration of python -m pdadmm.gnn.run; give one of python -m pdadmm.run"),
        ("features = 3\n", "features"),
        ("[training\n", "not valid TOML"),
        ("[training]\nnu = 1\nnu = 2\n", "not valid TOML"),
        ("[output]\nquiet = 1\n", "quiet"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        parse(["--config", str(file)])
    assert complaint in str(caught.value) and "options.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        OPTIONS.load(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="directory"):
        OPTIONS.load(str(tmp_path))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="not valid TOML"):
        OPTIONS.load(str(tmp_path / "binary.toml"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--nu 0", "--nu is 0"),
        ("--nu nan", "--nu is nan"),
        ("--rho -1", "--rho is -1"),
        ("--rho inf", "--rho is inf"),
        ("--mu -0.1", "--mu is -0.1"),
        ("--solver exact --damping -1", "--damping is -1"),
        ("--solver exact --momentum 1", "--momentum is 1"),
        ("--solver exact --momentum -0.1", "--momentum is -0.1"),
        ("--damping 1", "--solver exact"),
        ("--momentum 0.9", "--solver exact"),
        ("--hidden 0", "--hidden is 0"),
        ("--layers -1", "--layers is -1"),
        ("--iterations 0", "--iterations is 0"),
        ("--eval-every 0", "--eval-every is 0"),
        ("--seed -1", "--seed is -1"),
        ("--refresh 0", "--refresh is 0"),
        ("--layers 100000000000000000000", "--layers is 1000"),
        ("--hidden 1000000000000", "--hidden is 1000000000000"),
        ("--iterations 1000000000000000000000000000000", "--iterations is 1000"),
        ("--threads 100000000000000000000", "--threads is 1000"),
        ("--seed 100000000000000000000", "--seed is 1000"),
        (f"--seed {'9' * 4000}", "--seed is 9999"),
        (f"--seed {'9' * 5000}", "--seed"),
        ("--bits 100000000000000000000", "--bits is 1000"),
        ("--stages 2,100000000000000000000", "--stages is 1000"),
        ("--nu 1e300", "--nu is 1e+300"),
        ("--hop-decay 1e-300", "--hop-decay is 1e-300"),
        ("--timeout inf", "--timeout is inf"),
        ("--max-seconds nan", "--max-seconds is nan"),
        ("--checkpoint-seconds 1e300", "--checkpoint-seconds is 1e+300"),
        ("--grid-low=-inf --grid-high inf", "--grid-low is -inf"),
        ("--grid-low nan --grid-high nan", "--grid-low is nan"),
        ("--grid-low 1 --grid-high 1.0000001", "too narrow for float32"),
        ("--codec grid --bits 1", "no 1-bit form"),
        ("--codec float32 --bits 8", "no 8-bit form"),
        ("--bits 3", "no 3-bit form"),
        ("--codec gzip", "gzip"),
        ("--grid-low 1", "go together"),
        ("--grid-low 2 --grid-high 1", "is empty"),
        ("--stages 2,2,5", "does not grow"),
        ("--stages 5,2", "does not grow"),
        ("--stages 0,2", "--stages is 0; it must be from 1"),
        ("--stages 1,4", "starts below 2"),
        ("--stages 2,x", "2,x"),
        ("--stages 2,5 --layers 6", "make them agree"),
        ("--layer 3", "--layer"),
        ("--nu x", "'x'"),
        ("a.h5 b.h5", "b.h5"),
        ("--resume", "--resume needs --out"),
        ("--overwrite", "--overwrite needs --out"),
        ("--overwrite --resume --out x", "give one of them"),
    ],
)
def test_values_out_of_range_are_refused_by_name(arguments: str, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(arguments.split())
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_negative_numbers_have_exponents() -> None:
    given = ["f.h5", "--codec", "grid", "--bits", "8", "--grid-low", "-1e1", "--grid-high", "-.5E-1"]
    messages = parse(given).messages
    assert (messages.grid_low, messages.grid_high) == (-10.0, -0.05)


def test_every_number_has_a_range() -> None:
    for section in (Network, Training, Messages, Run, Output):
        for f in fields(section):
            if f.type in ("int", "float", "float | None", "list[int]"):
                assert f.metadata["within"] is not None, f.name


@pytest.mark.parametrize("text", ["a\0b", "\udcff.h5"])
def test_a_name_that_no_file_can_have_is_refused(text: str) -> None:
    for arguments in ([text], ["--out", text], ["--config", text]):
        with pytest.raises(InputError, match=r"NUL|UTF-8"):
            parse(arguments)


def test_defaults_are_those_of_the_documentation() -> None:
    c = Config()
    assert (c.network.hidden, c.training.iterations, c.output.eval_every) == (100, 100, 10)
    assert (c.training.solver, c.training.step, c.messages.codec) == ("gradient", "exact", "delta")
    assert (c.training.anchor, c.training.seed) == ("identity", 0)


def test_options_of_the_exact_solver_in_a_preset_give_way_to_another_solver() -> None:
    def preset(_: str) -> dict[str, object]:
        return {"solver": "exact", "momentum": 0.9, "damping": 0.5}

    assert parse([], preset).training.momentum == 0.9
    changed = parse(["--solver", "gradient"], preset).training
    assert (changed.momentum, changed.damping) == (0.0, 0.0)
    with pytest.raises(InputError, match="exact solver"):
        parse(["--solver", "gradient", "--momentum", "0.5"], preset)


# ---- another system's options ---------------------------------------------------------------------


@dataclass
class Descent:
    rate: float = option(0.1, "length of a step")
    method: str = option("plain", "how it descends", ("plain", "adam"))
    widths: list[int] = option([4], "of the layers", parse=lambda text: [int(w) for w in text.split(",")])
    limit: float | None = option(None, "of a gradient")
    averaged: bool = option(True, "average the iterates")


@dataclass
class Tree:
    graph: str = positional("FILE.h5", "what it descends on")
    descent: Descent = field(default_factory=Descent)
    run: Run = field(default_factory=Run)
    output: Output = field(default_factory=Output)


OTHER = Options(Tree, "python -m other.train", "Descends.")


def read(*arguments: str | Path) -> Tree:
    tree = Tree()
    fill(tree, OTHER.read([str(a) for a in arguments]))
    return tree


def test_another_system_declares_its_options_and_has_command_line_and_toml(tmp_path: Path) -> None:
    assert read() == Tree() and read().descent.widths is not Tree().descent.widths
    tree = read("/g.h5", *words("--rate 1 --method adam --widths 5,3 --limit 2 --no-averaged --threads 3"))
    assert tree.graph == "/g.h5" and tree.run.threads == 3
    assert tree.descent == Descent(1.0, "adam", [5, 3], 2.0, False)
    file = tmp_path / "tree.toml"
    file.write_text(to_toml(tree))
    assert read("--config", file) == tree
    assert read("h.h5", "--config", file, "--rate", "3").descent.rate == 3
    help_text = OTHER.parser().format_help()
    for name in ("--rate", "--no-averaged", "--backend", "--checkpoint-every", "FILE.h5"):
        assert name in help_text


def test_another_system_has_the_same_messages(tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    for text, complaint in (
        ("[descent]\nspeed = 1\n", "an unknown option 'speed' in [descent]"),
        ("[network]\nlayers = 1\n", "an unknown table [network]; there are descent, run, output"),
        ("[descent]\nlimit = 'x'\n", "limit in [descent] of"),
        ("graph = 1\n", "graph in"),
    ):
        file.write_text(text)
        with pytest.raises(InputError) as caught:
            OTHER.load(str(file))
        assert complaint in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"see python -m other\.train --help"):
        read("--speed", "1")


def test_a_resumed_run_takes_over_what_it_was_but_not_where_and_how_long(tmp_path: Path) -> None:
    given = words("--rate 2 --threads 5 --checkpoint-every 3 --max-seconds 9 --trace --quiet")
    (tmp_path / "config.toml").write_text(to_toml(read("/g.h5", *given)))
    tree = read("--resume", "--out", tmp_path)
    assert (tree.graph, tree.descent.rate, tree.output.checkpoint_every) == ("/g.h5", 2.0, 3)
    assert tree.run == Run() and (tree.output.max_seconds, tree.output.trace) == (0.0, False)
    assert read("--resume", "--out", tmp_path, "--rate", "7").descent.rate == 7
    assert read("--out", tmp_path) == read("--out", tmp_path, "--config", _empty(tmp_path))


def _empty(folder: Path) -> Path:
    file = folder / "empty.toml"
    file.write_text("")
    return file


@pytest.mark.parametrize(("first", "second"), [("lean", "float32"), ("float32", "adaqp"), ("adaqp", "lean")])
def test_a_scheme_on_the_command_line_is_whole(first: str, second: str, tmp_path: Path) -> None:
    """What the file's scheme stood for goes with it; what its user chose stays."""
    file = tmp_path / "config.toml"
    file.write_text(to_toml(graph_network(["--messages", first])))
    found = graph_network(["--config", str(file), "--messages", second])
    assert found == graph_network(["--messages", second])
    assert graph_network(["--config", str(file)]) == graph_network(["--messages", first])
    file.write_text(
        to_toml(graph_network(["--messages", first, "--backward", "affine", "--forward", "delta"]))
    )
    found = graph_network(["--config", str(file), "--messages", second])
    assert found.messages.forward == "delta" and found.network.order == SCHEMES[second].order


def test_a_scheme_that_is_named_again_keeps_the_bits_of_what_is_coded(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for first in ("--messages float32 --forward affine --bits 8", "--messages lean --forward delta --bits 8"):
        file.write_text(to_toml(graph_network(words(first))))
        found = graph_network(["--config", str(file), "--messages", "float32"]).messages
        assert (found.bits, found.backward) == ("8", "float32") and found.forward in first
    file.write_text(to_toml(graph_network(words("--messages lean --bits 8"))))
    assert graph_network(["--config", str(file), "--messages", "float32"]).messages.bits == "auto"


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xef\xbb\xbf[training]\r\nseed = 7\r\n")
    assert graph_network(["--config", str(file)]).training.seed == 7


def test_bits_of_a_graph_network_may_be_a_number_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[messages]\nbits = 8\n")
    assert graph_network(["--config", str(file)]).messages.bits == "8"
    file.write_text("[messages]\nbits = 3\n")
    with pytest.raises(InputError, match="bits"):
        graph_network(["--config", str(file)])


def test_default_stages_of_a_file_are_not_those_of_other_layers(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    for stages, arguments, wanted in (
        ([2, 4, 8, 10], "", [2, 4, 8, 10]),
        ([2, 4, 8, 10], "--layers 3", []),  # to be filled in as without a file
        ([2, 4, 8, 10], "--layers 3 --stages 2,3", [2, 3]),
    ):
        file.write_text(f"[network]\nlayers = 10\n\n[training]\nstages = {stages}\n")
        assert parse([*words(arguments), "--config", str(file)]).training.stages == wanted
    file.write_text("[network]\nlayers = 10\n\n[training]\nstages = [3, 10]\n")
    with pytest.raises(InputError, match="ends at 10 layers"):
        parse(["--layers", "12", "--config", str(file)])
