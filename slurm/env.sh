# Facts about your cluster, read by every job on its first node before it starts its ranks. Edit this file once.
#
# Nodes, GPUs, partition, account and time are not here: they are options of sbatch, or its variables
# (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT) in your ~/.bashrc.

# ---- Software: what makes the command `diga-hpc` available. Else a .venv beside slurm/ is used.
# module purge
# module load python/3.11 cuda/12.4
# source /project/me/venv/bin/activate
command -v diga-hpc >/dev/null || PATH=$repository/.venv/bin:$PATH

# ---- Network: the interface that connects the nodes, if NCCL or Gloo choose the wrong one (`ip link` names them).
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# Where only some ports are open between nodes:
# export MASTER_PORT=29500

# ---- Caches on the node's own disk: hundreds of ranks that compile into one shared folder wait for each other.
scratch=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/diga-hpc-$UID
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton}
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$scratch/torch_extensions}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}

# ---- Options of srun.
srun_options=(--mpi=none)

# ---- CPUs: a rank's share. Since Slurm 22.05 srun does not take --cpus-per-task over from sbatch by itself. Binding
# keeps a rank on its CPUs, next to its memory; without a number (--cpus-per-gpu, --exclusive) it would be one core.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if ((${SLURM_CPUS_PER_TASK:-1} > 1)); then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  srun_options+=(--cpu-bind=cores)
fi

# Seconds that ranks wait for each other at the start, for file systems where importing takes long.
export DIGA_JOIN_TIMEOUT=${DIGA_JOIN_TIMEOUT:-50}
