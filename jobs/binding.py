"""Prints, rank after rank, the host, CPUs and GPUs that each is bound to; run by the job scripts."""

import os
import platform

from mpi4py import MPI

comm = MPI.COMM_WORLD
cpus = sorted(os.sched_getaffinity(0))
gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all that the node has")
line = f"rank {comm.rank} of {comm.size} on {platform.node()}: CPUs {cpus}, GPUs {gpus}"
lines = comm.gather(line)
if comm.rank == 0:
    print("\n".join(lines))
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if comm.size == 1 < tasks:  # mpirun starts one task a node, of any number of ranks
        raise SystemExit(f"srun started {tasks} tasks, MPI sees worlds of 1: srun's --mpi does not match")
