#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=diga-pipeline
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/run/logs/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=720

# setup
repository=CHECKOUT
source "$repository/slurm/ranks.sh"
source "$repository/slurm/env.sh"
srun() { run_ranks "$@"; }

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/run/logs/%j_%t_log.out --open-mode=append --cpus-per-task=8 "${hold[@]}" PYTHON -u -m submitit.core._submit FOLDER/run/logs
