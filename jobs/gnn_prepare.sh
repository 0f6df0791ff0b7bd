#!/usr/bin/env bash
# Cut a graph into parts, for graph networks.
#
#     sbatch jobs/gnn_prepare.sh NAME|FILE.npz --parts P [OPTIONS OF pdadmm.gnn.prepare]
#
# Compute nodes often have no way out: then download on a login node and give --raw.
#SBATCH --job-name=pdadmm-gnn-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.out

here=$(dirname "$0")
# SLURM runs a copy of this script: ask it for the original
[ -f "$here/common.sh" ] || here=$(dirname "$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s/^ *Command=\(.*\/[a-z_]*\.sh\).*/\1/p;q}')")
# shellcheck source=jobs/common.sh
. "$here/common.sh" || exit

describe
launch -m pdadmm.gnn.prepare "$@"
