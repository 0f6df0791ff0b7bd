"""Several hosts on one machine: network namespaces joined by a switch, links of a chosen bandwidth.

Every host is a namespace with one port to a bridge. Both directions of the port pass a token bucket
(``tc … tbf``), so that a host has one full-duplex link of the given rate, as a workstation has.
MPICH is told to leave shared memory alone, else its ranks would bypass the network.

Needs Linux, root, iproute2 and MPICH.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

__all__ = ["Hosts", "reason_not_to"]

#: bytes a bucket may send at once, at least; a burst of 2 ms lets TCP reach the rate
_BURST_SECONDS = 2e-3
_LEAST_BURST = 32 << 10


def reason_not_to() -> str | None:
    """Why hosts cannot be made here; None when they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} missing: install iproute2"
    if not (Path(sys.executable).parent / "mpirun").exists():
        return "there is no mpirun beside this Python: pip install 'pdadmm[mpich]'"
    trial = subprocess.run(["ip", "netns", "add", "pdadmm-trial"], capture_output=True, text=True)
    if trial.returncode:
        return f"no namespace can be made: {trial.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "pdadmm-trial"], check=False)
    return None


class Hosts:
    """`count` namespaces that start ranks, one a host.

    Parameters
    ----------
    count
        Number of hosts.
    rate
        Bits per second of every link and direction; None leaves them unlimited.
    wrapper
        Command that starts every rank, for binding it to cores or for its priority; empty: none.
    """

    def __init__(self, count: int, rate: float | None = None, wrapper: str = "") -> None:
        self.wrapper = shlex.split(wrapper)
        self.names = [f"pdadmm-{os.getpid()}-h{i}" for i in range(count)]
        self.rate = rate
        self._switch = f"pdadmm-{os.getpid()}-switch"
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Hosts:
        # a killed benchmark would leave ranks behind that wait for a network that is gone
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            self._build()
        except subprocess.CalledProcessError:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for i, name in enumerate(self.names):
            _ip("netns", "add", name)
            port = f"port{i}"
            _ip(
                "link",
                "add",
                "eth0",
                "netns",
                name,
                "type",
                "veth",
                "peer",
                "name",
                port,
                "netns",
                self._switch,
            )
            _ip("-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", self._switch, "link", "set", port, "master", "br0")
            _ip("-n", self._switch, "link", "set", port, "up")
            if self.rate:
                self._limit(name, "eth0")
                self._limit(self._switch, port)
        script = Path(self._folder.name) / "enter"
        # MPICH calls it as it would call ssh: options, the host, the command
        script.write_text(
            '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\n' + self._cases() + "shift\n"
        )
        script.write_text(script.read_text() + 'exec ip netns exec "$namespace" sh -c "$*"\n')
        script.chmod(0o755)
        self._script = script

    def _cases(self) -> str:
        lines = [f"  {self.address(i)}) namespace={name} ;;" for i, name in enumerate(self.names)]
        return 'case "$1" in\n' + "\n".join(lines) + "\nesac\n"

    def _limit(self, namespace: str, device: str) -> None:
        assert self.rate is not None
        burst = max(int(self.rate / 8 * _BURST_SECONDS), _LEAST_BURST)
        options = f"root tbf rate {int(self.rate)}bit burst {burst} latency 50ms".split()
        subprocess.run(
            ["ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, *options], check=True
        )

    def address(self, host: int) -> str:
        """IP address of a host."""
        return f"10.77.0.{host + 1}"

    def mpirun(
        self, *arguments: str | Path, timeout: float, ranks: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Python with `arguments`, one rank a host; raises CalledProcessError when it fails."""
        ranks = ranks or len(self.names)
        addresses = ",".join(self.address(i) for i in range(len(self.names)))
        mpirun = str(Path(sys.executable).parent / "mpirun")
        command = ["ip", "netns", "exec", self.names[0], mpirun]
        command += ["-launcher", "ssh", "-launcher-exec", str(self._script), "-iface", "eth0"]
        command += ["-hosts", addresses, "-n", str(ranks), "-ppn", "1"]
        command += [*self.wrapper, sys.executable, *map(str, arguments)]
        environment = {
            **os.environ,
            "MPIR_CVAR_NOLOCAL": "1",  # without these two, ranks find shared memory and bypass the network
            "UCX_TLS": "tcp,self",
            "UCX_NET_DEVICES": "eth0",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=True
        )

    def close(self) -> None:
        """End what still runs in the namespaces, then delete them and with them their devices."""
        for name in [*self.names, self._switch]:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for process in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        self._folder.cleanup()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
