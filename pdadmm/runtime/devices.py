"""Which arrays and which way for messages a run takes, decided at its start for all ranks together."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from pdadmm.arrays.backend import Backend, NumpyBackend
from pdadmm.comm.mpi import MPITransport, ProgressThread
from pdadmm.comm.rounds import Rounds
from pdadmm.comm.transport import Transport
from pdadmm.comm.waiter import Waiter, end_all, place_on_node
from pdadmm.errors import InputError
from pdadmm.runtime.launch import agree
from pdadmm.runtime.sections import Run

__all__ = ["ON_CPUS", "Choice", "Place", "choose", "decide", "make_backend", "make_transport"]

_BFLOAT16 = 80  # compute capability from which on there are products of bfloat16
_INSTALL = "pip install 'pdadmm[cuda12]' or 'pdadmm[cuda13]'"


@dataclass(frozen=True)
class Place:
    """What a rank finds where it runs."""

    host: str = ""
    problem: str | None = "it was not looked for"  #: why there is no GPU to use; None: there is one
    device: int = 0  #: number among the visible devices
    name: str = ""
    uuid: str = ""
    nccl_problem: str | None = None
    nccl_version: int = 0  #: 23007 for 2.30.7
    shares: bool = False  #: NCCL_MULTI_RANK_GPU_ENABLE=1
    capability: int = _BFLOAT16  #: 90 for 9.0


@dataclass(frozen=True)
class Choice:
    """What all ranks take."""

    backend: str = "numpy"
    transport: str = "mpi"
    places: list[Place] = field(default_factory=list)
    nccl_version: int = 0
    why_not_nccl: str = ""  #: what made a run on several GPUs fall back to MPI

    @property
    def devices(self) -> list[str]:
        """Name and UUID of the GPU of every rank; empty on CPUs."""
        return [f"{p.name} {p.uuid}" for p in self.places] if self.backend == "cupy" else []

    @property
    def ways(self) -> list[str]:
        """All ways that messages can take here, by the names of ``bench links``."""
        nccl = ["nccl"] if self.transport == "nccl" else []
        return ["mpi", *nccl, "staged"] if self.backend == "cupy" else ["mpi"]

    @property
    def way(self) -> str:
        """The one of them that a run takes."""
        return self.transport if self.backend == "numpy" or self.transport == "nccl" else "staged"


ON_CPUS = Choice()


def look_around(run: Run, waiter: Waiter) -> Place:
    """What this rank finds; imports CuPy only where the options leave a choice of it."""
    host = platform.node()
    place = place_on_node(waiter.comm)[0]  # collective: before what only some ranks may find
    if run.backend == "numpy":
        return Place(host)
    if importlib.util.find_spec("cupy") is None:
        return Place(host, f"CuPy is not installed; {_INSTALL}")
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy and its libraries raise errors of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Place(host, f"CuPy finds no GPU ({reason}); check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if not count:
        return Place(host, "CuPy finds no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    # what only GPUs want is imported where they are, here and below
    from pdadmm.arrays.cupy_backend import device_name
    from pdadmm.comm.nccl import require_nccl

    device = place % count
    name, uuid = device_name(device)
    problem, version = None, 0
    try:
        version = int(require_nccl().get_version())
    except InputError as error:
        problem = str(error)
    shares = os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1"
    capability = int(cupy.cuda.Device(device).compute_capability)
    return Place(host, None, device, name, uuid, problem, version, shares, capability)


def decide(run: Run, places: Sequence[Place]) -> Choice:
    """Backend and transport from the options and what every rank found, in rank order.

    Raises
    ------
    InputError
        When what was asked for is missing, or some ranks have a GPU and others none.
    """
    without = [rank for rank, place in enumerate(places) if place.problem is not None]
    if run.backend == "numpy" or (run.backend == "auto" and len(without) == len(places)):
        if run.transport == "nccl":
            raise InputError(f"--transport nccl needs GPUs: {places[0].problem}")
        if run.cuda_aware_mpi:
            raise InputError("--cuda-aware-mpi needs GPUs and --backend cupy; leave it out on CPUs")
        if run.precision != "float32":
            raise InputError(
                f"--precision {run.precision} needs GPUs and --backend cupy; leave it out on CPUs"
            )
        return Choice("numpy", "mpi", list(places))
    if without:
        first = places[without[0]]
        where = f"rank {without[0]} on {first.host}" if len(places) > 1 else "there is none"
        if len(without) == len(places):
            raise InputError(f"--backend cupy needs a GPU: {first.problem}, or use --backend numpy")
        raise InputError(
            f"{len(places) - len(without)} ranks have a GPU and {len(without)} have none ({where}: "
            f"{first.problem}); all ranks must compute alike: give every rank a GPU, or use --backend numpy"
        )
    for rank, place in enumerate(places):
        if run.precision == "bf16x3" and place.capability < _BFLOAT16:
            raise InputError(
                f"--precision bf16x3 needs GPUs of compute capability 8.0 or more, and rank {rank} on "
                f"{place.host} has a {place.name} of {place.capability / 10:.1f}; use float32"
            )
    obstacle = why_not_nccl(places)
    if run.transport == "nccl":
        if obstacle:
            raise InputError(
                obstacle if obstacle.startswith("--transport") else f"--transport nccl: {obstacle}"
            )
        if run.cuda_aware_mpi:
            raise InputError("--cuda-aware-mpi goes with --transport mpi, not nccl; give one of them")
    asked_for_mpi = run.transport == "mpi" or run.cuda_aware_mpi
    if asked_for_mpi or obstacle or len(places) == 1:
        reason = "" if asked_for_mpi or len(places) == 1 else obstacle
        return Choice("cupy", "mpi", list(places), 0, reason)
    return Choice("cupy", "nccl", list(places), places[0].nccl_version)


def why_not_nccl(places: Sequence[Place]) -> str:
    """What keeps the ranks from NCCL; empty when nothing does."""
    for place in places:
        if place.nccl_problem:
            return place.nccl_problem
    versions = sorted({place.nccl_version for place in places})
    if len(versions) > 1:
        shown = " and ".join(map(version_text, versions))
        return f"the ranks have different versions of NCCL ({shown}); install one everywhere"
    if len({place.uuid for place in places}) == len(places):
        return ""
    from pdadmm.comm.nccl import MULTI_RANK_VERSION

    if versions[0] < MULTI_RANK_VERSION:
        return (
            f"several ranks share a GPU, which NCCL {version_text(versions[0])} does not allow; "
            "it takes NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1, or a GPU for every rank"
        )
    if not all(place.shares for place in places):
        return "several ranks share a GPU, which NCCL allows only with NCCL_MULTI_RANK_GPU_ENABLE=1"
    return ""


def version_text(version: int) -> str:
    """2.30.7 for 23007."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def choose(run: Run, waiter: Waiter) -> Choice:
    """Look around on every rank and decide; collective, and the same on all ranks.

    Raises
    ------
    InputError
        On all ranks.
    """
    wants_gpus = run.transport == "nccl" or run.cuda_aware_mpi or run.precision != "float32"
    if run.backend == "numpy" and not wants_gpus:  # nothing to look around for, and nothing to refuse
        return ON_CPUS
    places = waiter.gather(look_around(run, waiter))
    return waiter.broadcast(agree(waiter, lambda: decide(run, places) if places is not None else None))


def make_backend(choice: Choice, rank: int, precision: str, threads: int = 1, groups: int = 0) -> Backend:
    """The arrays of this rank; on the host with products on some threads, of nodes in some groups."""
    if choice.backend == "numpy":
        return NumpyBackend(threads, groups)
    from pdadmm.arrays.cupy_backend import CupyBackend

    return CupyBackend(choice.places[rank].device, precision)


def make_transport(
    choice: Choice,
    backend: Backend,
    waiter: Waiter,
    run: Run,
    stages: Sequence[Rounds],
) -> Transport:
    """The way of this rank's messages; collective.

    Parameters
    ----------
    stages
        What this rank sends and receives in every stage, whatever the sizes.
    """
    if choice.transport == "nccl":
        from pdadmm.comm.nccl import NCCLTransport, Watch, connect

        device = connect(waiter, stages)

        def end(problem: str) -> None:
            if waiter.where.claim():
                print(f"pdadmm: {waiter.where}: NCCL: {problem}", file=sys.stderr, flush=True)
            end_all(waiter.comm, 1)

        return NCCLTransport(device, backend, Watch(device.problem, end))
    if choice.backend == "cupy":
        from pdadmm.arrays.streams import Streams
        from pdadmm.comm.staged import StagedTransport

        return StagedTransport(waiter, backend, Streams(), run.overlap, run.cuda_aware_mpi)
    progress = None
    if run.overlap and waiter.comm.size > 1 and ProgressThread.available():
        progress = ProgressThread(waiter.comm)
    return MPITransport(waiter, progress, run.overlap)


def describe(choice: Choice, run: Run, ranks: int, kernels: str, threads: int) -> str:
    """One line about what was chosen."""
    parts = [f"{ranks} rank{'s' if ranks > 1 else ''}"]
    if choice.backend == "numpy":
        parts += [f"NumPy with {kernels}", f"{threads} thread{'s' if threads > 1 else ''} a rank"]
        return ", ".join(parts)
    parts += [f"CuPy with {kernels}", f"products in {run.precision}"]
    if choice.transport == "nccl":
        parts.append(f"NCCL {version_text(choice.nccl_version)}")
    elif ranks > 1:
        parts.append("CUDA-aware MPI" if run.cuda_aware_mpi else "MPI through pinned host buffers")
        if choice.why_not_nccl:
            parts[-1] += f" ({choice.why_not_nccl})"
    places = [f"rank {i} {p.name} {p.uuid} on {p.host}" for i, p in enumerate(choice.places)]
    return ", ".join(parts) + ": " + "; ".join(places)
