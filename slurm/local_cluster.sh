#!/usr/bin/env bash
# A private Slurm of N nodes on this machine, in a scratch folder: for trying things and for tests.
#
#   eval "$(slurm/local_cluster.sh start --nodes 2)"   # this shell's sbatch, srun ... now use it
#   slurm/local_cluster.sh status
#   slurm/local_cluster.sh stop                        # ends jobs and daemons, removes the folder
#
# start   [--nodes 2] [--cpus-per-node 2] [--gpus-per-node 0] [--accounting] [--dir DIR]
# env     prints the line that makes a shell use a cluster that is up:  export SLURM_CONF=...
# status  nodes and jobs
# Several clusters may be up at once, each with its own --dir (default: diga-slurm-UID in the
# temporary folder).
#
# CPUs and GPUs are simulated: a laptop can claim four nodes of 8 GPUs. A simulated GPU is a device
# file like /dev/null (making it needs root); jobs get CUDA_VISIBLE_DEVICES, CUDA finds no device.
# Partitions: main, and urgent, whose jobs preempt those of main (signal, then requeue).
# Accounting (sacct) runs a private database and needs slurmdbd and mariadbd.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

nodes=2 cpus=2 gpus=0 accounting=no dir=${TMPDIR:-/tmp}/diga-slurm-$(id -u)

die() { echo "local_cluster.sh: $*" >&2; exit 2; }

parse() {
  while (($#)); do
    case $1 in
      --nodes) nodes=$2; shift ;;
      --cpus-per-node) cpus=$2; shift ;;
      --gpus-per-node) gpus=$2; shift ;;
      --dir) dir=$2; shift ;;
      --accounting) accounting=yes ;;
      *) die "unknown option $1; see the top of $0" ;;
    esac
    shift
  done
  [[ $nodes$cpus$gpus =~ ^[0-9]+$ ]] || die "--nodes, --cpus-per-node and --gpus-per-node take whole numbers"
  dir=$(realpath -m "$dir")
}

mark=local_cluster # a file that only a folder made here has

# Slurm makes Unix sockets as DIR/node64/node64_1234567.4294967291; Linux allows 107 characters.
longest_dir=74

# -------------------------------------------------------------------------------------------- start

require() { # command, Debian package
  command -v "$1" >/dev/null || die "$1 is missing; install it: apt-get install $2"
}

# Prints free ports, and keeps them bound until its input ends: the kernel gives them to nobody
# else, while a daemon that asks for one by its number may listen on it (SO_REUSEADDR).
hold_ports='
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for holder in held:
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
print(*(holder.getsockname()[1] for holder in held), flush=True)
sys.stdin.read()
'

start() {
  require slurmctld slurm-wlm
  require slurmd slurm-wlm
  require munged munge
  require python3 python3
  if [[ $accounting == yes ]]; then
    require slurmdbd slurmdbd
    require mariadbd mariadb-server
  fi
  [[ ! -e $dir ]] || die "$dir exists: a cluster is up there, or was; first: $0 stop --dir $dir"
  ((${#dir} <= longest_dir)) ||
    die "$dir has ${#dir} characters; sockets below it allow $longest_dir: give a shorter one with --dir"
  ((gpus == 0 || UID == 0)) || die "simulated GPUs need root, for mknod; leave --gpus-per-node out"
  mkdir -p "$dir"
  chmod 755 "$dir"
  echo "${SLURM_JOB_ID:-}" >"$dir/$mark" # the job that this shell itself is part of, if any
  trap take_down EXIT
  start_munge
  local ports
  coproc holder { exec python3 -c "$hold_ports" $((nodes + 3)); }
  read -r -a ports <&"${holder[0]}"
  [[ $accounting == no ]] || start_accounting "${ports[nodes + 1]}" "${ports[nodes + 2]}"
  write_configuration "${ports[@]}"
  export SLURM_CONF=$dir/slurm.conf
  (cd "$dir" && slurmctld -f "$SLURM_CONF")
  for n in $(seq "$nodes"); do (cd "$dir" && slurmd -N "node$n" -f "$SLURM_CONF"); done
  wait_for 60 nodes_are_idle
  exec {holder[1]}>&- # the daemons have their ports
  trap - EXIT
  echo "up: $nodes nodes of $cpus CPUs and $gpus GPUs in $dir" >&2
  print_env
}

take_down() { # after a failed start: say why, and stop what it had started
  echo "local_cluster.sh: did not come up; the last lines of its logs:" >&2
  tail -n 5 "$dir"/*.log >&2 || true
  stop
  exit 1
}

start_munge() {
  mkdir -m 700 "$dir/munge"
  chmod 755 "$dir/munge" # clients reach the socket; the key is readable by its owner only
  (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
  munged --force --socket="$dir/munge/socket" --key-file="$dir/munge/key" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" --num-threads=2
}

start_accounting() { # port of the database, port of slurmdbd
  local password
  password=$(head -c 18 /dev/urandom | base64 | tr -d '+/=')
  mkdir "$dir/database"
  mariadb-install-db --no-defaults --user="$(id -un)" --datadir="$dir/database" --auth-root-authentication-method=socket \
    --skip-test-db >"$dir/database.log" 2>&1
  (umask 077 && cat >"$dir/database.sql" <<SQL
CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '$password';
GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';
SQL
  )
  mariadbd --no-defaults --user="$(id -un)" --datadir="$dir/database" --socket="$dir/database.socket" --port="$1" \
    --bind-address=127.0.0.1 --skip-name-resolve=OFF --pid-file="$dir/mariadbd.pid" --init-file="$dir/database.sql" \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 >>"$dir/database.log" 2>&1 &
  wait_for 60 port_answers "$1"
  (umask 077 && cat >"$dir/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$2
SlurmUser=$(id -un)
LogFile=$dir/slurmdbd.log
PidFile=$dir/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$1
StorageUser=slurm
StoragePass=$password
StorageLoc=slurm
CONF
  )
  (cd "$dir" && SLURM_CONF=$dir/slurm.conf slurmdbd) # finds its file beside slurm.conf
  wait_for 60 port_answers "$2"
}

write_configuration() { # ports: slurmctld, one a node
  local host memory
  host=$(hostname -s)
  memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  cat >"$dir/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$1
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job is held: two minutes by default.
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdSpoolDir=$dir/%n
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmdLogFile=$dir/slurmd-%n.log
# Jobs of two clusters on this machine get different ids.
FirstJobId=$((1000 + RANDOM))
# Processes are tracked through /proc: no cgroups, no systemd.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Nodes have what is configured below, not what the machine has.
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
ReturnToService=2
JobRequeue=1
# Long timeouts: the machine may be busy.
MessageTimeout=60
TCPTimeout=30
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
CONF
  if [[ $accounting == yes ]]; then
    local dbd
    dbd=$(sed -n 's/^DbdPort=//p' "$dir/slurmdbd.conf")
    echo "AccountingStorageType=accounting_storage/slurmdbd
AccountingStoragePass=$dir/munge/socket
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$dbd" >>"$dir/slurm.conf"
  fi
  mkdir -p "$dir/state"
  echo "AutoDetect=off" >"$dir/gres.conf"
  if ((gpus)); then
    for g in $(seq 0 $((gpus - 1))); do mknod "$dir/gpu$g" c 1 3; done
    echo "NodeName=node[1-$nodes] Name=gpu File=$dir/gpu[0-$((gpus - 1))]" >>"$dir/gres.conf"
  fi
  shift
  for n in $(seq "$nodes"); do
    echo "NodeName=node$n NodeHostname=localhost NodeAddr=127.0.0.1 Port=$1 CPUs=$cpus RealMemory=$memory" \
      "$( ((gpus)) && echo "Gres=gpu:$gpus") State=UNKNOWN" >>"$dir/slurm.conf"
    shift
  done
  echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2" >>"$dir/slurm.conf"
  # Read only if Slurm loads its cgroup plugin nevertheless.
  echo "IgnoreSystemd=yes" >"$dir/cgroup.conf"
}

wait_for() { # seconds, command
  local seconds=$1 end
  shift
  end=$((SECONDS + seconds))
  until "$@" 2>/dev/null; do
    if ((SECONDS >= end)); then
      echo "local_cluster.sh: waited $seconds s for: $*" >&2
      return 1
    fi
    sleep 0.2
  done
}

nodes_are_idle() { [[ $(sinfo -h -p main -t idle -o %D) == "$nodes" ]]; }
port_answers() { (: <"/dev/tcp/127.0.0.1/$1"); }

# --------------------------------------------------------------------------------------------- stop

stop() {
  export SLURM_CONF=$dir/slurm.conf
  [[ -e $dir/$mark ]] || die "no cluster in $dir"
  if alive "$dir/slurmctld.pid"; then
    squeue -h -o %A | sort -u | xargs -r scancel --full --signal=KILL 2>/dev/null || true
    squeue -h -o %A | sort -u | xargs -r scancel 2>/dev/null || true
    wait_for 10 no_jobs || true
  fi
  end_processes "$dir"/slurmd-*.pid "$dir"/slurmctld.pid
  end_processes "$dir/slurmdbd.pid"
  end_processes "$dir/mariadbd.pid" "$dir/munge/pid"
  leftovers | xargs -r kill -KILL 2>/dev/null || true
  rm -rf "$dir"
  echo "stopped: $dir" >&2
}

alive() { [[ -s $1 ]] && kill -0 "$(<"$1")" 2>/dev/null; }
no_jobs() { [[ -z $(squeue -h -o %A) ]]; }

end_processes() { # pid files
  local file pids=()
  for file in "$@"; do
    if alive "$file"; then pids+=("$(<"$file")"); fi
  done
  ((${#pids[@]})) || return 0
  kill "${pids[@]}" 2>/dev/null || true
  for _ in $(seq 10); do # no longer: their state is discarded anyway
    kill -0 "${pids[@]}" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "${pids[@]}" 2>/dev/null || true
}

leftovers() { # processes of this cluster's jobs that outlived it
  local environ outer
  outer=$(<"$dir/$mark")
  for environ in /proc/[0-9]*/environ; do
    # A shell that only uses the cluster has no job id.
    if { tr '\0' '\n' <"$environ"; } 2>/dev/null | awk -v mine="SLURM_CONF=$dir/slurm.conf" -v outer="SLURM_JOB_ID=$outer" \
      '$0 == mine {conf = 1} /^SLURM_JOB_ID=/ && $0 != outer {job = 1} END {exit !(conf && job)}'; then
      echo "${environ//[^0-9]/}"
    fi
  done
}

# ------------------------------------------------------------------------------------------- status

print_env() { echo "export SLURM_CONF=$dir/slurm.conf"; }

require_up() {
  alive "$dir/slurmctld.pid" || die "no cluster is up in $dir; start one: $0 start --dir $dir"
}

command=${1:-}
shift || true
parse "$@"
case $command in
  start) start ;;
  stop) stop ;;
  env) require_up && print_env ;;
  status) require_up && SLURM_CONF=$dir/slurm.conf sinfo -N -l && SLURM_CONF=$dir/slurm.conf squeue ;;
  *) die "start, stop, status or env? See the top of $0" ;;
esac
