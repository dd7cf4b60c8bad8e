#!/usr/bin/env bash
# For `argosy-coordinator --scale ops/deploy/slurm/scale.sh`: asks Slurm for the workers that are missing, and for no more while
# those that were asked for still wait in the queue.
set -euo pipefail

: "${ARGOSY_WORKERS_WANTED:?the coordinator sets it}"
waiting=$(squeue --me --noheader --name=argosy-workers --states=PENDING --format=%D | awk '{ n += $1 } END { print n + 0 }')
missing=$((ARGOSY_WORKERS_WANTED - waiting))
if [ "$missing" -gt 0 ]; then
  sbatch --nodes="$missing" "$(dirname "$0")/argosy-workers.sbatch"
fi
