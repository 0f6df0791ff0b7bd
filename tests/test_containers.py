"""The images' recipes and the lock that they install."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from support import start, succeed

import pdadmm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "jobs" / "containers"
CONTAINERFILE = FOLDER / "Containerfile"
LOCKS = {"requirements.lock": ("mpich", "gnn"), "requirements-cuda12.lock": ("mpich", "gnn", "cuda12")}
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
#: sections of a definition file, by Apptainer's manual, of which these are shell
SHELL = {"pre", "setup", "post", "runscript", "startscript", "test", "environment"}
SECTIONS = SHELL | {"arguments", "files", "labels", "help"}


@dataclass
class Stage:
    """A stage of a definition file: its header and its sections, a list of lines each."""

    header: dict[str, str] = field(default_factory=dict)
    sections: dict[str, list[str]] = field(default_factory=dict)


def stages(text: str) -> list[Stage]:
    """A definition file as Apptainer reads it: every Bootstrap begins a stage, every % a section."""
    found: list[Stage] = []
    section: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("Bootstrap:"):
            found.append(Stage())
            section = None
        if line.startswith("%"):
            name = line[1:].strip()
            assert name not in found[-1].sections, f"%{name} twice in a stage"
            section = found[-1].sections.setdefault(name, [])
        elif section is not None:
            section.append(line)
        elif line.strip() and not line.startswith("#"):
            key, _, value = line.partition(":")
            found[-1].header[key] = value.strip()
    return found


@pytest.fixture(scope="module")
def definition() -> list[Stage]:
    return stages((FOLDER / "pdadmm.def").read_text())


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions and what they are given, without comments."""
    lines = [line for line in CONTAINERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def pins(name: str) -> list[Requirement]:
    """What a lock names, an entry a version."""
    lines = (FOLDER / name).read_text().replace("\\\n", " ").splitlines()
    entries = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert [line for line in entries if "--hash=sha256:" not in line] == []
    return [Requirement(line.partition(" --hash")[0]) for line in entries]


def at(marker: Marker | None, python: str) -> bool:
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    of_python = {"python_version": python, "python_full_version": f"{python}.2"}
    return marker is None or marker.evaluate({**linux, **of_python})


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_pins_every_dependency_within_its_bound(name: str, python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in LOCKS[name]:
        asked += project["optional-dependencies"][extra]
    pinned: dict[str, str] = {}
    for entry in pins(name):
        if at(entry.marker, python):
            assert entry.name not in pinned, f"{entry.name} has two versions"
            (version,) = entry.specifier
            assert version.operator == "=="
            pinned[entry.name] = version.version
    needed = [r for r in map(Requirement, asked) if at(r.marker, python)]
    assert len(needed) >= len(asked) - 1
    wrong = {str(r): pinned.get(r.name) for r in needed if pinned.get(r.name, "") not in r.specifier}
    assert wrong == {}


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_says_nothing_of_where_it_was_made(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text)) > 100
    assert (
        re.findall(
            r".*(?:://|@|--index|--extra-index|--find-links|--trusted|/tmp|/home|/opt|\.local).*", text
        )
        == []
    )


def test_a_lock_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("uv is not installed: pip install 'pdadmm[lock]'")
    copy = tmp_path / "jobs" / "containers"
    copy.mkdir(parents=True)
    for path in (FOLDER / "lock.sh", FOLDER / "requirements.lock"):
        shutil.copy(path, copy)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = start(["bash", str(copy / "lock.sh")], 60, {"UV": str(tmp_path / "uv")})
    assert (done.code, done.err) == (2, "lock: uv is missing; run: pip install uv, or: make lock\n")
    env = {"UV": str(uv), "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "cache")}
    done = start(["bash", str(copy / "lock.sh")], 60, env)
    assert done.code == 1
    assert "lock: no lock was written: the package index was not reached" in done.err
    assert (copy / "requirements.lock").read_bytes() == (FOLDER / "requirements.lock").read_bytes()
    assert not (copy / "requirements-cuda12.lock").exists()


def test_the_containerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install 'pdadmm[lint]'")
    done = start([str(hadolint), "--failure-threshold", "style", str(CONTAINERFILE)], 60)
    assert (done.code, done.out) == (0, "")


def test_the_images_are_of_this_version_and_hold_what_there_is(definition: list[Stage]) -> None:
    assert f'image.version="{pdadmm.__version__}"' in CONTAINERFILE.read_text()
    labels = dict(line.split(None, 1) for line in definition[-1].sections["labels"] if line.strip())
    assert labels["org.opencontainers.image.version"] == pdadmm.__version__
    copied = [rest for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    copied += [line for stage in definition for line in stage.sections["files"]]
    for lock in LOCKS:
        lines = [re.sub(r"\$\{LOCK\}|\{\{ LOCK \}\}", lock, line).split() for line in copied]
        sources = [name for line in lines for name in line[:-1]]
        assert len(sources) >= 15
        assert [name for name in sources if not (ROOT / name).exists()] == []


def test_the_definition_has_apptainers_sections(definition: list[Stage]) -> None:
    assert [set(stage.header) for stage in definition] == [{"Bootstrap", "From", "Stage"}] * 2
    build, run = definition
    assert set(build.sections) <= SECTIONS
    # files of another stage are a section of their own; all else comes from the last stage alone
    assert set(run.sections) <= SECTIONS | {f"files from {build.header['Stage']}"}
    assert {"environment", "runscript", "labels", "help", "test"} <= set(run.sections)
    text = "\n".join(line for stage in definition for lines in stage.sections.values() for line in lines)
    declared = {line.split("=")[0].strip() for line in build.sections["arguments"] if line.strip()}
    assert set(re.findall(r"\{\{ (\w+) \}\}", text)) == declared
    for stage in definition:
        for section in SHELL & set(stage.sections):
            assert stage.sections[section], section


def test_the_definitions_shell_passes_shellcheck(definition: list[Stage], tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; Debian: apt install shellcheck")
    scripts = []
    for stage in definition:
        for section in SHELL & set(stage.sections):
            path = tmp_path / f"{stage.header['Stage']}-{section}.sh"
            text = "\n".join(stage.sections[section]).replace("{{ LOCK }}", "requirements.lock")
            path.write_text(f"# shellcheck shell=sh\n{text}\n")
            scripts.append(str(path))
    assert len(scripts) == 5
    found = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_both_recipes_take_the_same_steps(definition: list[Stage]) -> None:
    text = CONTAINERFILE.read_text()
    bases = set(re.findall(r"^ARG BASE=(\S+)", text, re.M)) | {stage.header["From"] for stage in definition}
    assert len(bases) == 1
    wanted = re.compile(r"(?:apt-get install|/opt/tools/bin/pip|python3 -m venv|build_wheel)[^&\n]*")

    def steps(shell: str) -> list[str]:
        plain = re.sub(r"\\\n\s*", "", shell).replace('"', "")
        plain = plain.replace("${LOCK}", "LOCK").replace("{{ LOCK }}", "LOCK")
        return [" ".join(step.split()) for step in wanted.findall(plain)]

    shell = "\n".join(rest for word, rest in instructions() if word == "RUN")
    posts = "\n".join("\n".join(stage.sections["post"]) for stage in definition)
    assert len(steps(shell)) == 8
    assert steps(shell) == steps(posts)


def test_without_arguments_an_image_says_what_there_is_to_run(tmp_path: Path) -> None:
    entry = FOLDER / "entrypoint.sh"
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    said = succeed(start([str(entry)], 60, {"PATH": path}, tmp_path)).out
    assert said.startswith(f"pdadmm {pdadmm.__version__}\n") and "mpirun -n 4 python -m pdadmm.run" in said
    for module in set(re.findall(r"python -m (pdadmm[\w.]*)", said)):
        succeed(start([str(entry), "python", "-m", module, "--help"], 60, {"PATH": path}, tmp_path))
    assert start([str(entry), "sh", "-c", "exit 7"], 60, {"PATH": path}, tmp_path).code == 7
