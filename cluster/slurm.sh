#!/usr/bin/env bash
# One Ray cluster for one sweep on Slurm: sbatch cluster/slurm.sh jobs/ablation.yaml [options of fabric sweep]
# Run it from a clone with .venv on storage that all nodes share. Sent again after a time limit, it goes on.
#SBATCH --job-name=fabric
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

job=${1:?usage: sbatch cluster/slurm.sh JOB [options of fabric sweep]}
shift
bin=${FABRIC_BIN:-.venv/bin}
out=${FABRIC_OUT:-runs}
port=${FABRIC_PORT:-6379}
export RAY_USAGE_STATS_ENABLED=0 TUNE_FUNCTION_THREAD_TIMEOUT_S=60 MALLOC_ARENA_MAX=1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')

# --block: the steps end with the allocation, and Ray with them.
srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    "$bin/ray" start --head --node-ip-address="$head" --port="$port" --dashboard-host=127.0.0.1 \
    --disable-usage-stats --block &
sleep 15
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="${nodes[0]}" \
        "$bin/ray" start --address="$head:$port" --disable-usage-stats --block &
fi

# Slurm warns two minutes before the end: the sweep stops cleanly, and the requeued job goes on.
"$bin/fabric" sweep "$job" --address "$head:$port" --out "$out" "$@" &
sweep=$!
trap 'kill -TERM $sweep; wait $sweep; scontrol requeue "$SLURM_JOB_ID"' TERM
wait "$sweep"
