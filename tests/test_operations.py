"""Operations: a small /dev/shm, what killed jobs leave, streams that fail, signals at the start, hangs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import PROGRAMS, Finished, find_mpirun, start, succeed

import pdadmm

MPIRun = Callable[..., Finished]

OPTIONS = ["--layers", "4", "--hidden", "16", "--quiet"]
SOURCE = str(Path(pdadmm.__file__).resolve().parents[1])
HANGING = PROGRAMS / "hanging_rank.py"


def in_own_memory(size: str, command: str, timeout: float = 120) -> Finished:
    """Run a shell command with a /dev/shm of its own, of `size`."""
    if not Path("/dev/shm").is_dir() or shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if start(["unshare", "-m", "bash", "-c", mount], 20).code:
        pytest.skip("mounting is not permitted")
    return start(["unshare", "-m", "bash", "-c", f"{mount} && {command}"], timeout)


def lines_of(found: Finished) -> list[str]:
    """What the program itself says on stderr."""
    assert "Traceback" not in found.err, found.err
    return [line for line in found.err.splitlines() if line.startswith("pdadmm")]


def mpirun_of(ranks: int) -> str:
    program = find_mpirun()
    if program is None:
        pytest.skip("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")
    return f"{program} -n {ranks} {sys.executable}"


# ---- shared memory ----------------------------------------------------------------------------------


def test_sixteen_ranks_run_in_a_container_s_shared_memory(small: Path, tmp_path: Path) -> None:
    options = "--layers 16 --hidden 16 --iterations 2 --quiet"
    # what the ranks have taken is seen by the checkpoint's clock, when all of them have exchanged messages
    command = f"{mpirun_of(16)} -m pdadmm.run {small} {options} --out {tmp_path / 'o'}"
    found = in_own_memory("20m", f"{command}; code=$?; ls /dev/shm; exit $code")
    succeed(found)
    assert (tmp_path / "o" / "summary.json").exists()
    assert "mpich_shm" not in found.out


@pytest.mark.parametrize("program", ["run", "prepare"])
def test_too_little_shared_memory_is_one_line(small: Path, tmp_path: Path, program: str) -> None:
    command = f"{mpirun_of(4)} -m pdadmm.{program} {small} --out {tmp_path / 'o'}"
    found = in_own_memory("2m", f"{command}; code=$?; ls -A /dev/shm; exit $code")
    assert found.code == 2
    assert len(lines_of(found)) == 1, found.err
    assert re.search(r"/dev/shm has 2\.1 MB free, .* 4 ranks take 4\.8 MB; .*--shm-size=64m", found.err)
    assert not found.out.strip() and not (tmp_path / "o").exists()


def test_too_little_shared_memory_for_one_rank_is_one_line(small: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m pdadmm.run {small} {' '.join(OPTIONS)} --out {tmp_path / 'o'}"
    found = in_own_memory("1m", command)
    assert found.code == 2 and len(lines_of(found)) == 1, found
    assert "/dev/shm has 1.0 MB free, and MPI takes 1.2 MB" in found.err
    fit = (
        "import numpy as np; from pdadmm import ADMMClassifier\n"
        "X = np.random.default_rng(0).random((20, 3))\n"
        "ADMMClassifier(layers=2, hidden=4, iterations=2).fit(X, X[:, 0] > 0.5)\n"
    )
    (tmp_path / "fit.py").write_text(fit)
    found = in_own_memory("1m", f"{sys.executable} {tmp_path / 'fit.py'}")
    assert found.code == 1 and "MPI takes 1.2 MB" in found.err.splitlines()[-1], found
    # and what a process that is killed has taken is freed with it
    (tmp_path / "fit.py").write_text(fit + "import os; os.kill(os.getpid(), 9)")
    found = in_own_memory("8m", f"{sys.executable} {tmp_path / 'fit.py'}; ls -A /dev/shm")
    assert found.out == "", found


def test_few_file_descriptors_are_enough(small: Path, tmp_path: Path) -> None:
    command = f"ulimit -n 64; {sys.executable} -m pdadmm.run {small} {' '.join(OPTIONS)} --iterations 3"
    found = start(["bash", "-c", f"{command} --out {tmp_path / 'o'}"], 60)
    assert (found.code, found.err) == (0, ""), found


ENDINGS = {
    "kill": ("faulty_rank.py kill 1 12", 9),
    "diverge": ("faulty_rank.py diverge -1 3", 1),
    "twice": ("faulty_rank.py term-twice 1 12", 143),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_job_that_fails_leaves_nothing_in_shared_memory(small: Path, tmp_path: Path, ending: str) -> None:
    program, code = ENDINGS[ending]
    options = f"{small} {' '.join(OPTIONS)} --iterations 300 --eval-every 5 --out {tmp_path / 'o'}"
    command = f"{mpirun_of(3)} {PROGRAMS}/{program} {options} >{tmp_path}/out"
    found = in_own_memory("64m", f"{command}; code=$?; ls -A /dev/shm; exit $code")
    assert found.code == code, found.err
    assert found.out == ""


# ---- who died, and what becomes of the others -------------------------------------------------------


def test_the_rank_that_was_killed_is_named(small: Path, tmp_path: Path) -> None:
    mpirun_of(8)
    times = 4
    program = f"{sys.executable} {PROGRAMS / 'kill_rank.py'} {small} {tmp_path / 'o'} --times {times}"
    found = in_own_memory("64m", f"{program} --seed {os.getpid()}", timeout=60 + 30 * times)
    succeed(found)
    kills = [json.loads(line) for line in found.out.splitlines()]
    assert len(kills) == times
    assert all(k["named"] == [k["victim"]] and len(k["lines"]) == 1 and not k["left"] for k in kills)


@contextlib.contextmanager
def running(command: str, folder: Path, err: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A training under mpirun that has written a record."""
    env = {**os.environ, "PYTHONPATH": SOURCE, "OPENBLAS_NUM_THREADS": "1"}
    with err.open("wb") as stream:
        process = subprocess.Popen(
            command.split(), env=env, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True
        )
    try:
        limit = time.monotonic() + 60
        while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
            assert process.poll() is None and time.monotonic() < limit, err.read_text()
            time.sleep(0.02)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def children(parent: int) -> list[int]:
    """Processes that a process has started, and that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, its_parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(its_parent) == parent and state != "Z":
                found.append(int(folder.name))
    return found


def alive(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("victim", ["proxy", "mpirun"])
def test_ranks_do_not_outlive_their_launcher(small: Path, tmp_path: Path, victim: str) -> None:
    folder = tmp_path / "o"
    command = f"{mpirun_of(3)} -m pdadmm.run {small} {' '.join(OPTIONS)} --iterations 1000000 --out {folder}"
    with running(command, folder, tmp_path / "err") as process:
        (proxy,) = children(process.pid)
        ranks = children(proxy)
        assert len(ranks) == 3
        os.kill(proxy if victim == "proxy" else process.pid, signal.SIGKILL)
        limit = time.monotonic() + 10
        while any(map(alive, ranks)) and time.monotonic() < limit:
            time.sleep(0.02)
        assert not any(map(alive, ranks))


def test_ps_tells_the_witness_from_a_rank(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "o"
    command = f"{mpirun_of(2)} -m pdadmm.run {small} {' '.join(OPTIONS)} --iterations 1000000 --out {folder}"
    with running(command, folder, tmp_path / "err") as process:
        (proxy,) = children(process.pid)
        ranks = {str(rank) for rank in children(proxy)}
        found = [
            (path.parent.name, path.read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode())
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if (path.parent / "comm").read_text() == "pdadmm-witness\n" and path.read_bytes()
        ]
        own = [line for number, line in found if number not in ranks]
        assert len(ranks) == 2 and own and all(line.startswith("pdadmm witness: ") for line in own)
        assert all("pdadmm.run" in Path(f"/proc/{rank}/cmdline").read_text() for rank in ranks)


# ---- streams ----------------------------------------------------------------------------------------

STREAMS = {
    "stderr on a full disk": "2>/dev/full",
    "both on a full disk": ">/dev/full 2>&1",
    "closed": ">&- 2>&-",
    "all closed": "<&- >&- 2>&-",
    "a pipe that nobody reads": "2>&1 | true",
}


@pytest.mark.parametrize("redirection", STREAMS.values(), ids=STREAMS)
def test_streams_that_fail_end_nothing(small: Path, tmp_path: Path, redirection: str) -> None:
    """Without --quiet, so that a line comes with every evaluation and a table at the end."""
    run = f"{sys.executable} -m pdadmm.run {small} --layers 2 --hidden 8 --iterations 6 --eval-every 1"
    command = f"set -o pipefail; {run} --out {tmp_path / 'o'} {redirection}"
    succeed(start(["bash", "-c", command], 60))
    assert (tmp_path / "o" / "summary.json").exists()
    assert len((tmp_path / "o" / "metrics.jsonl").read_text().splitlines()) == 6


def test_a_closed_stderr_ends_no_rank_and_no_preparation(small: Path, tmp_path: Path) -> None:
    """Of the ranks, that is: MPICH's mpirun ends the job when it cannot write to its own."""
    run = f"-m pdadmm.run {small} --layers 2 --hidden 8 --iterations 6 --eval-every 1 --out {tmp_path / 'o'}"
    mpirun, _, python = mpirun_of(2).rpartition(" ")
    succeed(start([*mpirun.split(), "bash", "-c", f"exec {python} {run} >&- 2>&-"], 60))
    assert (tmp_path / "o" / "summary.json").exists()
    out = tmp_path / "x.h5"
    command = f"{sys.executable} -m pdadmm.prepare synthetic --hops 1 --out {out} >/dev/full 2>&-"
    succeed(start(["bash", "-c", command], 60))
    assert out.exists()


# ---- signals at the start ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["run", "prepare", "gnn.prepare"])
def test_a_signal_while_a_command_starts_ends_it_quietly(
    small: Path, tmp_path: Path, program: str, number: int
) -> None:
    """At many moments from the first line of the command on."""
    code = (
        "import sys, pdadmm.process as p; p.begin(); print(flush=True)\n"
        f"import pdadmm.{program} as m; sys.exit(m.main())"
    )
    given = {
        "run": [small, *OPTIONS, "--out"],
        "prepare": ["synthetic", "--hops", "3", "--out"],
        "gnn.prepare": ["synthetic", "--parts", "2", "--out"],
    }[program]
    env = {**os.environ, "PYTHONPATH": SOURCE, "OPENBLAS_NUM_THREADS": "1"}
    for step in range(8):
        folder = tmp_path / str(step)
        folder.mkdir()
        command = [sys.executable, "-c", code, *map(str, given), str(folder / "o")]
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(0.06 * step)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        # it may listen, or have come to its end, where Python restores what signals do by themselves
        assert process.returncode in (128 + number, 75, 0, -number), err
        assert len(err.splitlines()) <= 1 and "Traceback" not in err
        assert not list(folder.glob(".*")), err


def test_an_interrupt_in_a_destructor_ends_a_run_quietly() -> None:
    code = (
        "import os, signal, time, pdadmm.process as p; p.begin(); p.heed_interrupts()\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        for _ in range(1000): pass\n"
        "try:\n"
        "    last = Last(); del last\n"
        "    while True: time.sleep(0.01)\n"
        "except KeyboardInterrupt:\n"
        "    print('ended')\n"
    )
    found = succeed(start([sys.executable, "-c", code], 30))
    assert (found.out, found.err) == ("ended\n", "")


def test_a_signal_in_a_destructor_ends_a_preparation_quietly() -> None:
    """Python swallows what a destructor raises; the next report of progress ends the command."""
    code = (
        "import os, signal, pdadmm.process as p; p.begin()\n"
        "from pdadmm.runtime.preparing import Reporter, listen\n"
        "listen()\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        sum(range(1000))\n"
        "Last()\n"
        "print('goes on', flush=True)\n"
        "Reporter()('products', 1, 2)\n"
        "print('never')\n"
    )
    ended = start([sys.executable, "-c", code], 60)
    assert (ended.code, ended.out, ended.err) == (128 + signal.SIGTERM, "goes on\n", "")


@pytest.mark.parametrize("program", ["run", "prepare"])
def test_a_signal_to_mpirun_while_ranks_start_ends_them_quietly(
    small: Path, tmp_path: Path, program: str
) -> None:
    """Rank 1 is kept from MPI, so that the others are in MPI_Init when the signal comes."""
    command = f"{mpirun_of(3)} {HANGING} start-{program} 1 {small} --out {tmp_path / 'o'}"
    process = subprocess.Popen(
        command.split(),
        env={**os.environ, "PYTHONPATH": SOURCE, "HANG": str(tmp_path / "hang")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        limit = time.monotonic() + 60
        while not (tmp_path / "hang").exists():
            assert time.monotonic() < limit
            time.sleep(0.02)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Traceback" not in err and not re.search("^pdadmm", err, re.MULTILINE)
    assert not (tmp_path / "o").exists()


def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    command = f"mkdir d && cd d && rmdir ../d && {sys.executable} -m pdadmm.prepare synthetic"
    found = start(["bash", "-c", command], 60, cwd=tmp_path)
    assert found.code == 2 and len(found.err.splitlines()) == 1 and "cannot be written" in found.err, found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["run", "prepare", "gnn.run"])
def test_a_signal_to_one_rank_while_it_loads_ends_all(
    tmp_path: Path, program: str, number: signal.Signals
) -> None:
    """The launcher takes no notice of a rank that ends before MPI_Init, where the others wait for it."""
    code = (
        "import os, signal, sys, pdadmm.process as p; p.begin()\n"
        f"if os.environ.get('PMI_RANK') == '1': os.kill(os.getpid(), {int(number)})\n"
        f"import pdadmm.{program} as m; sys.exit(m.main())"
    )
    (tmp_path / "one.py").write_text(code)
    given = ["synthetic"] if program == "prepare" else ["--quiet"]
    command = [*mpirun_of(3).split(), str(tmp_path / "one.py"), *given, "--out", str(tmp_path / "o.h5")]
    ended = start(command, 60)
    # Hydra may have words of its own, about a rank that it has killed before it learnt why
    said = re.sub(r"\n=+\n=   BAD TERMINATION.*?\n=+\n", "", ended.out, flags=re.DOTALL)
    assert (ended.code, said) == (128 + number, ""), ended
    assert not re.search("^pdadmm", ended.err, re.MULTILINE) and not (tmp_path / "o.h5").exists()


def test_a_closed_terminal_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, pdadmm.process as p; p.begin()\n"
        "import pdadmm.prepare as m; from pdadmm.inputs import write\n"
        "reserve = write.reserve\n"
        "def hung_up(path, size):\n"
        "    reserve(path, size)\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "write.reserve = hung_up\n"
        f"raise SystemExit(m.main(['synthetic', '--out', {str(tmp_path / 'x.h5')!r}]))"
    )
    ended = start([sys.executable, "-c", code], 60)
    assert (ended.code, ended.err) == (128 + signal.SIGHUP, "")
    assert list(tmp_path.iterdir()) == []


def test_a_preparation_under_mpirun_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    command = f"{mpirun_of(3)} -m pdadmm.prepare synthetic --synthetic-nodes 6000 --synthetic-features 3000"
    process = subprocess.Popen(
        [*command.split(), "--hops", "6", "--nodes", "all", "--out", str(tmp_path / "x.h5")],
        env={**os.environ, "PYTHONPATH": SOURCE, "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        limit = time.monotonic() + 60
        while not list(tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Traceback" not in err and not re.search("^pdadmm", err, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


# ---- hangs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "victim", "reason"),
    [
        ("start-run", 1, r"no answer within 4 s while MPI starts, .*; rank 1 did not come: look for what"),
        ("stop", 1, r"no answer within 4 s while MPI starts, .*; rank 1 \(process \d+\) is stopped: send it"),
        ("read", 0, r"rank 0, .* no answer within 4 s while reading the features of synthetic; the file"),
        ("options", 0, r"rank 0, .* no answer within 4 s while reading the options and the sizes of"),
    ],
)
def test_a_hang_before_the_first_iteration_is_one_line(
    mpirun: MPIRun, small: Path, tmp_path: Path, kind: str, victim: int, reason: str
) -> None:
    given = [small, *OPTIONS, "--timeout", "0.2", "--out", tmp_path / "o"]
    found = mpirun(3, HANGING, kind, str(victim), *given, env={"HANG": str(tmp_path / "hang")})
    assert found.code != 0
    assert len(lines_of(found)) == 1, found.err
    assert re.search(reason, found.err), found.err


@pytest.mark.parametrize("where", ["clocks", "links"])
def test_a_rank_that_hangs_before_the_first_iteration_ends_the_run_in_time(
    mpirun: MPIRun, small: Path, tmp_path: Path, where: str
) -> None:
    given = [small, *OPTIONS, "--timeout", "0.1", "--measure-links", "--out", tmp_path / "o"]
    found = mpirun(2, HANGING, where, "1", *given, env={"HANG": str(tmp_path / "hang")})
    assert found.code != 0 and (tmp_path / "hang").exists()
    (line,) = lines_of(found)
    assert re.search(rf"no answer within 2 s while the {where} .*; rank 1 \(process \d+\) is stopped", line)


@pytest.mark.parametrize("system", ["run", "gnn"])
@pytest.mark.parametrize("slow", ["model.h5", "summary.json", "profile.json"])
def test_ranks_wait_for_the_one_that_writes_the_results(
    mpirun: MPIRun, small: Path, tmp_path: Path, system: str, slow: str
) -> None:
    given = [small, *OPTIONS, "--iterations", "5"] if system == "run" else ["--epochs", "3", "--quiet"]
    given += ["--timeout", "0.5", "--out", tmp_path / "o"]
    succeed(mpirun(2, PROGRAMS / "slow_disk.py", system, *given, env={"SLOW": slow}))
    assert (tmp_path / "o" / "model.h5").exists() and (tmp_path / "o" / "profile.json").exists()


def test_of_many_ranks_that_wait_for_a_hung_one_one_speaks(
    mpirun: MPIRun, small: Path, tmp_path: Path
) -> None:
    given = [small, *OPTIONS, "--iterations", "100000", "--timeout", "2", "--out", tmp_path / "o"]
    found = mpirun(4, PROGRAMS / "faulty_rank.py", "stop", "1", "12", *given)
    assert found.code == 1
    (line,) = lines_of(found)
    assert re.search(r"rank [02], .*: no answer within 2 s .*; rank 1 \(process \d+\) is stopped", line), line
