#!/bin/bash

# Parameters
#SBATCH --array=0-3%4
#SBATCH --constraint=icelake
#SBATCH --dependency=afterok:12
#SBATCH --job-name=diga-pipeline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/run/logs/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@60

# setup
repository=CHECKOUT
source "$repository/slurm/ranks.sh"
source "$repository/slurm/env.sh"
srun() { run_ranks "$@"; }

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/run/logs/%A_%a_%t_log.out --open-mode=append "${hold[@]}" PYTHON -u -m submitit.core._submit FOLDER/run/logs
