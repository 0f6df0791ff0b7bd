#!/usr/bin/env bash
# Make a feature file.
#
#     sbatch jobs/prepare.sh NAME|FILE.npz [OPTIONS OF pdadmm.prepare]
#
# Compute nodes often have no way out: then download on a login node and give --raw.
#SBATCH --job-name=pdadmm-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=4
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.out

here=$(dirname "$0")
# SLURM runs a copy of this script: ask it for the original
[ -f "$here/common.sh" ] || here=$(dirname "$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s/^ *Command=\(.*\/[a-z_]*\.sh\).*/\1/p;q}')")
# shellcheck source=jobs/common.sh
. "$here/common.sh" || exit

if [ $# -eq 0 ]; then set -- synthetic; fi

describe
launch -m pdadmm.prepare "$@"
