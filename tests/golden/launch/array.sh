#!/bin/bash
# lora of llama3-8b under fsdp on 1 node of 8 x h100-80g
#
# Written by fitlaunch; what it starts is frozen beside it. Queue it with
#   sbatch /shared/runs/sweeps/20261122-031502-sweep-3f9a/array-1.sh 1
# where 1 counts its submissions: under one number one job runs, however many are queued.
# Memory: 22.50 GiB planned, with room (the most of 64 cells).
# Saves and stops 120 s before its time limit:
#   60 s that Slurm may be off, 3 steps of about 0.2 s, and 640.0 MiB saved at 200 MB/s, twice over; but 120 s at least (the most of 64 cells).
#SBATCH --job-name=fitlaunch-20261122-031502-sweep-3f9a-1
#SBATCH --array=0-63%8
#SBATCH --chdir=/shared/runs/sweeps/20261122-031502-sweep-3f9a
#SBATCH --output=/shared/runs/sweeps/20261122-031502-sweep-3f9a/slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --mem=31G
#SBATCH --time=1440
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

set -u
SUBMISSION=${1:?the number of this submission is missing: sbatch array-1.sh 1}
# The id of the last element's job is also that of the whole array: an element is named by both numbers.
JOB=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
mapfile -t CELLS < '/shared/runs/sweeps/20261122-031502-sweep-3f9a/cells-1.txt'
RUN=${CELLS[SLURM_ARRAY_TASK_ID]:?no such cell in /shared/runs/sweeps/20261122-031502-sweep-3f9a/cells-1.txt}
cd "$RUN" || exit 1
mkdir -p control attempts || exit 1
exec >> "slurm-$JOB.out" 2>&1 # with its run, as the output of a single run is

say() { echo "fitlaunch: $*"; }

# Write a file whole, unless it is there already: the first to write it counts.
write_once() {
  echo "$2" > "$1.$JOB" && ln "$1.$JOB" "$1" 2> /dev/null
  rm -f "$1.$JOB"
}

# A cancelled run stays cancelled. Of two jobs of one submission the second ends here; a requeued job meets its own claim.
if [ -e control/cancelled ]; then
  say "the run was cancelled: nothing is started"
  exit 0
fi
write_once "control/job-$SUBMISSION" "$JOB"
[ -s "control/job-$SUBMISSION" ] || { say "nothing can be written in $RUN/control"; exit 1; }
CLAIMED=$(< "control/job-$SUBMISSION")
if [ "$CLAIMED" != "$JOB" ]; then
  say "submission $SUBMISSION runs as job $CLAIMED: job $JOB has nothing to do"
  exit 0
fi

# This attempt: the next number that nobody has.
K=1
until mkdir "attempts/$K" 2> /dev/null; do
  [ -d "attempts/$K" ] || { say "attempts/$K cannot be made in $RUN"; exit 1; }
  K=$((K + 1))
done

# Where the nodes meet: never localhost, and below the ports that outgoing connections take.
HEAD_NODE=
read -r HEAD_NODE < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ -n "$HEAD_NODE" ] || { say "scontrol names no node of '$SLURM_JOB_NODELIST'"; exit 1; }
PORT=$((10000 + (7 * SLURM_JOB_ID + K) % 20000))

# All ranks stop at the end of the same step when control/stop-K is there; its line says why. USR1 comes before the
# time limit. TERM is somebody's cancel or a preemption: after it, only Slurm itself may requeue the job.
ENDED=
trap 'say "time limit: the ranks save and stop"; write_once "control/stop-$K" "time limit"' USR1
trap 'ENDED=yes; say "TERM: the ranks save and stop"; write_once "control/stop-$K" TERM' TERM

say "job $JOB, attempt $K on $SLURM_JOB_NODELIST"
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=60 --cpu-bind=none \
  '/venv/bin/python' -P -m launcher.node "$RUN" "$K" --head "$HEAD_NODE" --port "$PORT" --rendezvous "$JOB-$K" &
STEP=$!
while :; do # a trap ends `wait`, and srun goes on
  wait "$STEP"
  CODE=$?
  kill -0 "$STEP" 2> /dev/null || break
done

if [ -e "attempts/$K/finished.json" ]; then
  exit 0
fi

# A preemption tells the ranks alone, and Slurm requeues the job when the grace is over, unless it has ended by then.
GOES_ON=
if [ -e "attempts/$K/requeue" ]; then
  GOES_ON="it saved and stopped before its time limit"
elif [ -e "attempts/$K/stopped.json" ] && [[ $(scontrol show job "$JOB") =~ PreemptTime=[0-9] ]]; then
  GOES_ON="it was preempted, and saved and stopped"
fi
if [ -n "$GOES_ON" ] && [ -z "$ENDED" ] && [ ! -e control/cancelled ]; then
  say "attempt $K is requeued: $GOES_ON"
  scontrol requeue "$JOB" && exit 0 # it ends this script: nothing can stand after it
fi
exit "$CODE"
