"""Options as a tree of dataclasses, filled from TOML files and command lines, whatever the system.

Those fields of the tree that are dataclasses are its sections: tables of the TOML file, groups of the
command line, where all options are flat, ``--grid-low`` for ``[messages] grid_low``. What stands outside
of them is a positional argument, and a key above the tables. A system declares its tree and reads it::

    @dataclass
    class Training:
        rate: float = option(0.01, "length of a step")

    @dataclass
    class Config:
        graph: str = positional("FILE.h5", "made by prepare")
        training: Training = field(default_factory=Training)
        run: Run = field(default_factory=Run)
        output: Output = field(default_factory=Output)

    OPTIONS = Options(Config, "python -m somewhere.train", "Train something.")
    config = Config()
    fill(config, OPTIONS.read(arguments))
"""

from __future__ import annotations

import argparse
import dataclasses
import numbers
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import tomli_w

from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.files.given import read_file
from pdadmm.runtime.parser import Parser

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "COUNT",
    "FINITE",
    "POSITIVE",
    "SECONDS",
    "Options",
    "Range",
    "check_ranges",
    "fill",
    "merged",
    "option",
    "positional",
    "to_toml",
]

Value = TypeVar("Value")

_FILE_BYTES = (
    1 << 16
)  #: of a TOML file; one of this program has two thousand, and larger ones may take minutes


@dataclasses.dataclass(frozen=True)
class Range:
    """Values that a number may have: from `least` to `most`, which it may not reach where `below` says so."""

    least: float
    most: float
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.below and value == self.most)

    def __str__(self) -> str:
        if self.below:
            return f"at least {self.least:g} and below {self.most:g}"
        return f"from {_shown(self.least)} to {_shown(self.most)}"


#: of iterations
COUNT = Range(1, 10**9)
#: single precision has numbers up to 3.4e38 and, but for rounding, down to 1.2e-38
FINITE = Range(-1e38, 1e38)
POSITIVE = Range(1e-37, 1e38)
#: some thirty years; what sleeps and waits takes no more
SECONDS = Range(0, 1e9)


def option(
    default: Value,
    text: str,
    choices: Sequence[Value] | None = None,
    metavar: str | None = None,
    parse: Callable[[str], Value] | None = None,
    within: Range | None = None,
    kept: bool = True,
    path: bool = False,
) -> Value:
    """Field of a section: a switch where it is a bool, else an option with a value.

    Parameters
    ----------
    default
        None where nothing is the default; a list is copied for every tree.
    text
        Its help.
    parse
        Makes the value of what stands on the command line; None: the field's type does.
    within
        Of a number, or of every number of a list: see :func:`check_ranges`.
    kept
        False: of this start alone, neither written to a file nor taken from one.
    path
        It names a file: absolute where it is written, found beside a TOML file that names it.
    """
    metadata = {
        "help": text,
        "choices": choices,
        "metavar": metavar,
        "parse": parse,
        "within": within,
        "kept": kept,
        "path": path,
    }
    if isinstance(default, list):
        return cast(Value, dataclasses.field(default_factory=default.copy, metadata=metadata))
    return dataclasses.field(default=default, metadata=metadata)


def positional(metavar: str, text: str) -> str:
    """Field of the tree itself: the path of a file, an argument that may be left out and is then empty."""
    return dataclasses.field(default="", metadata={"help": text, "metavar": metavar})


class Options:
    """The options of a command.

    Parameters
    ----------
    tree
        A dataclass of sections and positional arguments.
    prog, description
        The command in words, for its help and its messages.
    others
        Commands by a key that stands in their files alone.
    """

    def __init__(
        self,
        tree: type[DataclassInstance],
        prog: str,
        description: str,
        others: Mapping[str, str] | None = None,
    ) -> None:
        self._prog, self._description = prog, description
        self._others = others or {}
        hints = typing.get_type_hints(tree)
        self._positionals = {f.name: f for f in dataclasses.fields(tree) if hints[f.name] is str}
        self._sections: dict[str, type[DataclassInstance]] = {
            f.name: hints[f.name] for f in dataclasses.fields(tree) if f.name not in self._positionals
        }
        self._options = {(section, o.name): o for section, cls in self._sections.items() for o in _of(cls)}

    def parser(self) -> Parser:
        """Of the command line."""
        parser = Parser(
            prog=self._prog,
            description=self._description,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        for name, f in self._positionals.items():
            parser.add_argument(
                name, nargs="?", type=_text, metavar=f.metadata["metavar"], help=f.metadata["help"]
            )
        parser.add_argument(
            "--config", type=_text, metavar="FILE.toml", help="options from a file; the command line wins"
        )
        groups = {section: parser.add_argument_group(section) for section in self._sections}
        for (section, _), known in self._options.items():
            known.add_to(groups[section])
        return parser

    def load(self, path: str) -> Record:
        """Values of a TOML file, in the shape of the tree.

        A relative path is of the working folder; where it leads to nothing there, of the folder of the file.
        Options of a single start, such as --out, are named in a warning and left out.

        Raises
        ------
        InputError
            When the file is missing, is no TOML, or has a table, key or value that is not an option.
        """
        try:
            found = tomllib.loads(read_file(path, _FILE_BYTES).decode("utf-8-sig"))
        except OSError as error:
            raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
        except RecursionError:
            raise InputError(f"{path} is not valid TOML: its arrays or tables are nested too deep") from None
        except ValueError as error:  # of TOML, of UTF-8, of a number with thousands of digits
            raise InputError(f"{path} is not valid TOML: {error}") from None
        values: Record = {}
        for section, table in found.items():
            if section in self._positionals:
                values[section] = _found(str(_coerced(table, str, f"{section} in {path}")), Path(path).parent)
                continue
            if section in self._others:
                other = self._others[section]
                raise InputError(f"{path} is a configuration of {other}; give one of {self._prog}")
            if section not in self._sections or not isinstance(table, dict):
                raise InputError(f"{path} has an unknown {self._unknown(section, table)}")
            for key, value in table.items():
                if (section, key) not in self._options:
                    raise InputError(f"{path} has an unknown option '{key}' in [{section}]{self._hint(key)}")
                known, where = self._options[section, key], f"{key} in [{section}] of {path}"
                checked = known.checked(value, where)
                if known.path:
                    checked = _found(str(checked), Path(path).parent)
                if known.kept:
                    values.setdefault(section, {})[key] = checked
                else:
                    line = f"pdadmm: warning: {where} is ignored; it is an option of the command line alone"
                    print(line, file=sys.stderr, flush=True)
        return values

    def _unknown(self, name: str, value: object) -> str:
        """What stands above the tables of a file, or is a table, but of no name that is known."""
        if isinstance(value, dict):
            return f"table [{name}]; there are {', '.join(self._sections)}"
        if name in self._sections:
            return f"key '{name}', which is a table: [{name}]"
        return f"key '{name}' above its tables{self._hint(name)}"

    def _hint(self, name: str) -> str:
        """Where an option is that stands in a wrong place, or is written otherwise."""
        right = name.replace("-", "_")
        places = [section for section, known in self._options if known == right]
        return f"; there is '{right}' in [{places[0]}]" if places else ""

    def named(self, options: Mapping[str, object]) -> Record:
        """Values of options by name, in the shape of the tree; NumPy's numbers are numbers.

        Raises
        ------
        InputError
            When one is not an option, or a value is not of its type or none of its choices.
        """
        values: Record = {}
        sections = {name: section for section, name in self._options}
        for name, value in options.items():
            if name not in sections:
                raise InputError(f"there is no option {name}")
            if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
                value = bool(value)
            if isinstance(value, numbers.Integral) and not isinstance(value, bool):
                value = int(value)
            elif isinstance(value, numbers.Real) and not isinstance(value, bool):
                value = float(value)
            section = sections[name]
            values.setdefault(section, {})[name] = self._options[section, name].checked(value, name)
        return values

    def read(self, arguments: Sequence[str]) -> Record:
        """Values of a command line and of the file that it names, which is the weaker one.

        Raises
        ------
        InputError
        """
        return merged(*self.sources(arguments))

    def sources(self, arguments: Sequence[str]) -> tuple[Record, Record]:
        """Values of the file that a command line names, and of the command line, in the shape of the tree.

        With --resume and without --config the file is the config.toml of the run in --out, of which a section
        has no more than its class lists as `resumed`, if it does.

        Raises
        ------
        InputError
        """
        found = vars(self.parser().parse_args(arguments))
        of_file = self.load(found["config"]) if "config" in found else self._of_run_before(found)
        given: Record = {name: found[name] for name in self._positionals if name in found}
        for section, name in self._options:
            if name in found:
                given.setdefault(section, {})[name] = found[name]
        return of_file, given

    def _of_run_before(self, given: Record) -> Record:
        before = Path(given.get("out", "")) / "config.toml"
        if not (given.get("resume") and given.get("out") and before.exists()):
            return {}
        values = self.load(str(before))
        for section, cls in self._sections.items():
            kept: Sequence[str] | None = getattr(cls, "resumed", None)
            if kept is not None and section in values:
                values[section] = {name: value for name, value in values[section].items() if name in kept}
        return values


def merged(weaker: Record, stronger: Record) -> Record:
    """Values of two sources, each in the shape of a tree."""
    values = {**weaker, **stronger}
    for name, table in stronger.items():
        if isinstance(table, dict):
            values[name] = {**weaker.get(name, {}), **table}
    return values


def fill(tree: DataclassInstance, values: Record) -> None:
    """Set the fields of a tree, and of its sections, that have values."""
    for name, value in values.items():
        if isinstance(value, dict):
            fill(getattr(tree, name), value)
        else:
            setattr(tree, name if hasattr(tree, name) else f"{name}_", value)


def to_toml(tree: DataclassInstance) -> str:
    """The whole tree as TOML, from which another start in any folder is the same.

    Values that are unset and options of this start alone are left out; paths are absolute.
    """
    values: Record = {}
    for f in dataclasses.fields(tree):
        value = getattr(tree, f.name)
        if dataclasses.is_dataclass(value):
            kept = {
                _told(o.name): _absolute(found) if o.metadata["path"] else found
                for o in dataclasses.fields(value)
                if o.metadata["kept"] and (found := getattr(value, o.name)) is not None
            }
            values[f.name] = kept
        else:
            values[f.name] = _absolute(value)
    return tomli_w.dumps(values)


def check_ranges(tree: DataclassInstance) -> None:
    """Refuse numbers that are out of the ranges of their options.

    Raises
    ------
    InputError
    """
    for section in (getattr(tree, f.name) for f in dataclasses.fields(tree)):
        if dataclasses.is_dataclass(section) and not isinstance(section, type):
            check_section(section)


def check_section(section: DataclassInstance) -> None:
    """The same for a section alone."""
    for f in dataclasses.fields(section):
        within: Range | None = f.metadata["within"]
        value = getattr(section, f.name)
        if within is None or value is None:
            continue
        for number in value if isinstance(value, list) else [value]:
            if number not in within:
                name = _told(f.name).replace("_", "-")
                raise InputError(f"--{name} is {_shown(number)}; it must be {within}")


@dataclasses.dataclass(frozen=True)
class _Option:
    """A field of a section."""

    name: str
    kind: type  #: of its values
    default: object  #: None: there is none to be told
    text: str
    choices: Sequence[object] | None
    metavar: str | None
    parse: Callable[[str], object] | None
    kept: bool
    path: bool

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        name = "--" + self.name.replace("_", "-")
        if self.kind is bool:
            switch = argparse.BooleanOptionalAction if self.default else "store_true"
            group.add_argument(name, action=switch, help=self.text)
            return
        text = f"{self.text} (default: {self.default})" if self.default else self.text
        kind = self.parse or (_text if self.kind is str else self.kind)
        group.add_argument(name, type=kind, choices=self.choices, metavar=self.metavar, help=text)

    def checked(self, value: object, where: str) -> object:
        """A TOML value as one of the option."""
        if self.kind is str and self.choices and type(value) is int and str(value) in self.choices:
            value = str(value)  # 8 for "8"
        value = _coerced(value, self.kind, where)
        if self.choices and value not in self.choices:
            names = ", ".join(map(str, self.choices))
            raise InputError(f"{where} must be one of {names}, not {_shown(value)}")
        return value


def _told(field: str) -> str:
    """The option of a field, whose name ends with an underscore where the option's is a word of Python."""
    return field.removesuffix("_")


def _of(section: type[DataclassInstance]) -> list[_Option]:
    """The options of a section."""
    hints = typing.get_type_hints(section)
    return [
        _Option(
            _told(f.name),
            _plain(hints[f.name]),
            None if f.default is dataclasses.MISSING else f.default,
            f.metadata["help"],
            f.metadata["choices"],
            f.metadata["metavar"],
            f.metadata["parse"],
            f.metadata["kept"],
            f.metadata["path"],
        )
        for f in dataclasses.fields(section)
    ]


def _plain(hint: object) -> type:
    """The type of a field's values: X for X | None, list for a list."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    kind = typing.get_origin(hint) or hint
    assert isinstance(kind, type)
    return kind


def _absolute(path: str) -> str:
    """A path from any folder; an empty one stays empty."""
    return os.path.abspath(path) if path else path


def _found(path: str, folder: Path) -> str:
    """A path of a TOML file in a folder, as one of the working folder."""
    beside = folder / path
    return str(beside) if path and not os.path.exists(path) and beside.exists() else path


_KINDS = {
    list: "a list of integers",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def _coerced(value: object, kind: type, where: str) -> object:
    """A TOML value as one of its type."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise InputError(f"{where} is {_shown(value)}, which is too large") from None
    whole = isinstance(value, list) and all(type(v) is int for v in value)
    if type(value) is not kind or (kind is list and not whole):
        shown = repr(value) if isinstance(value, float) else _shown(value)
        raise InputError(f"{where} must be {_KINDS[kind]}, not {shown}")
    if isinstance(value, str):
        try:
            _text(value)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"{where}: {error}") from None
    return value


def _text(text: str) -> str:
    """A text that can name a file and stand in a TOML file.

    Raises
    ------
    argparse.ArgumentTypeError
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not UTF-8, or the locale is not (PYTHONUTF8=1 sets it); rename the file"
        ) from None
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} holds a NUL character")
    return text


def _shown(value: object) -> str:
    """A value in few characters, however large it is."""
    if isinstance(value, float):
        return f"{value:g}"
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes out no number of more than 4300 digits
        return "a number of thousands of digits"
