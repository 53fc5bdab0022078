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
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
repository=CHECKOUT
source "$repository/slurm/env.sh"
srun() { command srun "${srun_options[@]}" "$@"; }
trap : TERM USR2
hold=(env --block-signal=TERM,USR2)  # until the task is ready for them (coreutils 8.31)
"${hold[@]}" true 2>/dev/null || hold=()

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/run/logs/%A_%a_%t_log.out --kill-on-bad-exit=1 --open-mode=append "${hold[@]}" PYTHON -u -m submitit.core._submit FOLDER/run/logs
