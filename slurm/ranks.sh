# run_ranks: srun for ranks that train together. stage.sh and the jobs of `diga-hpc launch` source this, before env.sh.

# Signals are meant for the ranks: this shell outlives them, and a rank meets them when it is ready to. Where env
# cannot hold them back (before coreutils 8.31) a rank that is only starting misses USR2, instead of ending by it.
trap : TERM USR2
hold=(env --block-signal=TERM,USR2)
"${hold[@]}" true 2>/dev/null || hold=(bash -c 'trap "" USR2; exec "$@"' hold)

# The shell that submitted may be a rank of something else: sbatch hands its variables over.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT "${!TORCHELASTIC@}" SRUN_CPUS_PER_TASK
# Ranks have this shell's environment, whatever `sbatch --export` said.
export SLURM_EXPORT_ENV=ALL
# sbatch hands over the variables of the job that it is called in as well: these would name that one.
if this_job=$(scontrol show job --oneliner "$SLURM_JOB_ID"); then
  if [[ $this_job != *" ArrayTaskId="* ]]; then
    unset "${!SLURM_ARRAY@}"
    [[ $this_job != *" Restarts=0 "* ]] || unset SLURM_RESTART_COUNT
  fi
  # srun would take these for its own options, and refuses two kinds of memory.
  for option in MinMemoryNode:SLURM_MEM_PER_NODE MinMemoryCPU:SLURM_MEM_PER_CPU MemPerTres:SLURM_MEM_PER_GPU \
    CpusPerTres:SLURM_CPUS_PER_GPU TresPerNode:SLURM_GPUS_PER_NODE TresPerTask:SLURM_GPUS_PER_TASK TresPerJob:SLURM_GPUS; do
    [[ $this_job == *" ${option%:*}="* ]] || unset "${option#*:}"
  done
fi

# run_ranks OPTIONS COMMAND: like srun, but ranks that fail end each other, saying why (diga_hpc/watchdog.py), and what
# is left elsewhere when this node's have ended is killed. If a node is dead even that is not the end for srun, which
# waits until Slurm has noticed (SlurmdTimeout: minutes): the job is requeued if it may be, status 75, else status 1.
run_ranks() {
  local srun step= running gone_since= was_killed=no
  # This is the host of rank 0; a port of its own lets jobs share a node. A requeued job draws another one.
  export MASTER_PORT=${MASTER_PORT:-$(free_port)}
  # With --kill-on-bad-exit=1 what hangs would live for KillWait, and nothing else could kill it before.
  command srun "${srun_options[@]}" --kill-on-bad-exit=0 --wait=30 "$@" &
  srun=$!
  while kill -0 "$srun" 2>/dev/null; do
    sleep 2 || true
    running=$(step_of_this_node)
    [[ $running != [0-9]* ]] || step=$running
    if [[ -z $step || $running != none ]] || ! kill -0 "$srun" 2>/dev/null; then
      gone_since=
      continue
    fi
    gone_since=${gone_since:-$SECONDS}
    if [[ $was_killed == no ]] && ((SECONDS - gone_since >= 10)); then
      was_killed=yes
      echo "ranks on other nodes are still there 10 s after the last one here: they are killed"
      timeout 10 scancel --signal=KILL "$SLURM_JOB_ID.$step" 2>/dev/null || true
    elif ((SECONDS - gone_since >= 18)); then
      echo "srun still waits for a node though all ranks have ended or been killed: the node is lost; ending without it"
      { kill -KILL "$srun" && wait "$srun"; } 2>/dev/null || true
      requeue_if_allowed && return 75
      return 1
    fi
  done
  wait "$srun"
}

free_port() { # below 32768, where Linux starts to give out ports by itself: to srun, for one, before rank 0 can have it
  local port
  while port=$((15000 + RANDOM % 15000)); (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

step_of_this_node() { # the number of the step that has ranks here, none, or nothing where it cannot be known
  timeout 10 scontrol listpids "$SLURM_JOB_ID" "${SLURMD_NODENAME:-}" 2>/dev/null |
    awk '$3 == "batch" {found = "none"} $3 ~ /^[0-9]+$/ {found = $3; exit} END {print found}'
}

requeue_if_allowed() {
  # The number of an array's last task is also that of the whole array.
  local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} state
  job=${job:-$SLURM_JOB_ID}
  state=$(scontrol show job --oneliner "$job") || return
  # One that is being cancelled, or is out of time, would come back.
  [[ $state == *" JobState=RUNNING "* && $state == *" Requeue=1 "* ]] || return
  scontrol requeue "$job" && echo "job $job is requeued"
}
