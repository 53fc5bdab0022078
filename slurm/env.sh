# Settings of your cluster: edit this file once. Every job sources it on its first node before it
# starts its ranks.
#
# Nodes, GPUs, partition, account and time are options of sbatch, or its variables
# (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT) in your ~/.bashrc.

# ---- Software: make the command `diga-hpc` available. Without it, .venv beside slurm/ is used.
# module purge
# module load python/3.11 cuda/12.4
# source /project/me/venv/bin/activate
command -v diga-hpc >/dev/null || PATH=$repository/.venv/bin:$PATH

# ---- Network: the interface between the nodes, if NCCL or Gloo choose a wrong one (see `ip link`).
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# Where only some ports are open between nodes:
# export MASTER_PORT=29500

# ---- Caches on the node's local disk: ranks that compile into one shared folder block each other.
scratch=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/diga-hpc-$UID
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton}
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$scratch/torch_extensions}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}

# ---- Options of srun.
srun_options=(--mpi=none)

# ---- CPUs of a rank. Since Slurm 22.05 srun does not inherit --cpus-per-task from sbatch. Binding
# keeps a rank on its CPUs, close to its memory; without a number of CPUs (--cpus-per-gpu,
# --exclusive) a rank would be bound to a single core.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if ((${SLURM_CPUS_PER_TASK:-1} > 1)); then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  srun_options+=(--cpu-bind=cores)
fi

# Seconds that ranks wait for each other at the start. Raise it for file systems with slow imports.
export DIGA_JOIN_TIMEOUT=${DIGA_JOIN_TIMEOUT:-50}
