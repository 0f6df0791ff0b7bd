"""A SLURM cluster of one node on the loopback interface, for the tests of jobs/.

    with Cluster(folder) as cluster:
        cluster.sbatch(script)

Needs root, slurmctld, slurmd and munged (Debian: slurm-wlm, munge). Nothing outside `folder` is
touched: munge has its own key and socket, the daemons their own ports. The node claims 16 CPUs
whatever the machine has. A partition ``gpu`` has two nodes of 4 GPUs that do not exist, against which
``sbatch --test-only`` checks the scripts for GPUs.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")

_CONFIGURATION = """\
ClusterName=loopback
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=2
MessageTimeout=30
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,requeue_delay=1,bf_interval=1
GresTypes=gpu
ResumeProgram=/bin/true
SuspendProgram=/bin/true
SuspendTime=600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 Gres=gpu:4 State=UNKNOWN
NodeName=gpu[1-2] NodeAddr=127.0.0.1 CPUs=16 Gres=gpu:4 State=CLOUD
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=gpu[1-2] MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty when one can."""
    places = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    absent = [name for name in PROGRAMS if shutil.which(name, path=places) is None]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)}); Debian: apt install slurm-wlm munge"
    if os.getuid() != 0:
        return "slurmd needs root"
    return ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    """Starts the daemons on entry and ends them on exit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[Any]] = []
        path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
        unwanted = ("SLURM_", "SBATCH_", "PMI", "OMPI_", "HYDRA_")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        self.env.update(PATH=path, SLURM_CONF=str(folder / "slurm.conf"))

    def __enter__(self) -> Cluster:
        f = self.folder
        f.chmod(0o755)
        for name in ("state", "spool"):
            (f / name).mkdir(exist_ok=True)
        (f / "munge.key").write_bytes(os.urandom(128))
        (f / "munge.key").chmod(0o400)
        # MPICH names its shared memory after job and step: no job of a cluster before had these numbers
        first = int.from_bytes(os.urandom(3), "big") + 1
        host = socket.gethostname().split(".")[0]
        text = _CONFIGURATION.format(host=host, folder=f, ports=_free_ports(2), first=first)
        (f / "slurm.conf").write_text(text)
        for number in range(4):
            (f / f"gpu{number}").touch()
        (f / "gres.conf").write_text(f"Name=gpu File={f}/gpu[0-3]\n")
        try:
            files = ("key-file", "socket", "pid-file", "log-file", "seed-file")
            options = [f"--{name}={f}/munge.{name.split('-')[0]}" for name in files]
            self._start("munged", "--foreground", "--force", "--num-threads=2", *options)
            self._until(lambda: (f / "munge.socket").exists(), "munged", 10)
            self._start("slurmctld", "-D", "-c")
            self._start("slurmd", "-D", "-c")
            self._until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%t").stdout, "the node", 40)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if len(self._daemons) > 1:
            # daemons that end before their jobs would leave the ranks behind
            self.run("scancel", "--user=root")
            limit = time.monotonic() + 15
            while self.run("squeue", "-h").stdout.strip() and time.monotonic() < limit:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(3)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons = []

    def _start(self, name: str, *options: str) -> None:
        program = shutil.which(name, path=self.env["PATH"])
        assert program is not None
        with (self.folder / f"{name}.out").open("wb") as out:
            self._daemons.append(
                subprocess.Popen(
                    [program, *options], env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            )

    def _until(self, done: Any, what: str, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while not done():
            if time.monotonic() > limit:
                logs = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.out"))
                tails = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in logs)
                raise RuntimeError(f"{what} did not come up within {seconds:g} s\n{tails}")
            time.sleep(0.1)

    # ---- commands -----------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster."""
        found = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        if check and found.returncode:
            raise RuntimeError(f"{' '.join(command)}: {found.stderr}")
        return found

    def sbatch(
        self, *arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Submit a job; returns its id."""
        found = subprocess.run(
            ["sbatch", "--parsable", *map(str, arguments)],
            env={**self.env, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if found.returncode:
            raise RuntimeError(f"sbatch {arguments}: {found.stderr}")
        return found.stdout.strip().split(";")[0]

    def job(self, job: str) -> dict[str, str]:
        """``scontrol show job`` as a dictionary; of a job array, its last task."""
        text = self.run("scontrol", "show", "job", "-o", job).stdout.strip().splitlines()
        return dict(pair.partition("=")[::2] for pair in text[-1].split() if "=" in pair) if text else {}

    def wait(self, job: str, seconds: float) -> list[str]:
        """Wait for a job, and all tasks of an array, to end; returns their states."""
        limit = time.monotonic() + seconds
        while True:
            text = self.run("scontrol", "show", "job", "-o", job).stdout
            states = [word[9:] for word in text.split() if word.startswith("JobState=")]
            ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
            if states and all(state in ended for state in states):
                return states
            if time.monotonic() > limit:
                raise AssertionError(f"job {job} did not end within {seconds:g} s\n{text}")
            time.sleep(0.2)
