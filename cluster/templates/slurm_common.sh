# ---- signals ---------------------------------------------------------------------------------------------------------
# USR2  preemption notice: save, exit with 75, requeue. SLURM sends it before the time limit; on a preemption, the first
#       node's task sends it.
# TERM  the job ends (scancel, time limit, lost node): save and exit. The script does not requeue the job; SLURM may.

notified=false terminated=false
driver='' child_shell='' step='' timer='' # process ids

log() { printf '%s %s\n' "$(date +%T)" "$*"; }

on_usr2() {
    $notified || log "notice: the run saves and exits"
    notified=true
    [ -n "$driver" ] || return 0
    kill -USR2 "$driver" 2> /dev/null
    if [ -z "$timer" ]; then
        kill_late "$driver" &
        timer=$!
    fi
}

on_term() {
    terminated=true
    on_usr2
}

# Kill a driver that is late, because SLURM does not requeue a job that it has to kill itself.
kill_late() {
    pause "$SAVE_S"
    log "killed: still running $SAVE_S s after the notice; the newest checkpoint remains"
    kill "-$LAST_SIGNAL" "$1" 2> /dev/null
}

trap on_usr2 USR2
trap on_term TERM

# Sleep without a child process, which could outlive this one: read from a pipe that nothing writes to.
exec 8<> <(:)
pause() { read -rt "$1" -u 8; }

# ---- waiting ---------------------------------------------------------------------------------------------------------

# Run a command in the foreground of a background shell; write its process id and exit code to files. `wait` can lose
# the exit code of a child that ends when a signal arrives; a foreground command does not.
run_child() {
    trap : USR2 TERM # not '': the command would inherit an ignored signal
    bash -c 'echo "$$" > "$0/child-pid"; exec "$@"' "$JOB_DIR" "$@"
    echo "$?" > "$JOB_DIR/exit-code"
}

# Print the process id of the command, as soon as there is one.
child_pid() {
    until [ -s "$JOB_DIR/child-pid" ]; do
        kill -0 "$child_shell" 2> /dev/null || return 1
        pause 0.05
    done
    cat "$JOB_DIR/child-pid"
}

# Wait for the command, handling signals, and return its exit code.
wait_for_child() {
    while kill -0 "$child_shell" 2> /dev/null; do wait "$child_shell"; done
    [ -s "$JOB_DIR/exit-code" ] || return 76 # the background shell was killed
    return "$(< "$JOB_DIR/exit-code")"
}

# wait_at_most PID SECONDS: false if the process is still running then.
wait_at_most() {
    local tenths=$(($2 * 10))
    while kill -0 "$1" 2> /dev/null; do
        ((tenths-- > 0)) || return 1
        sleep 0.1
    done
}

# ---- addresses and ports ---------------------------------------------------------------------------------------------

# This host's address as seen from another host: the local end of a UDP socket. Nothing is sent.
address_towards() {
    local python=(python3)
    command -v python3 > /dev/null || python=("${INSIDE[@]}" python)
    "${python[@]}" - "$1" << 'END'
import socket, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect((sys.argv[1], 9))
print(probe.getsockname()[0])
END
}

listens() { (: > "/dev/tcp/$1/$2") 2> /dev/null; }

# The first of ten consecutive free ports. The search starts at a port that depends on the job, so that jobs on one node
# use different ports.
free_ports() {
    local base=$((10000 + SLURM_JOB_ID % 200 * 100)) offset
    for _ in {1..200}; do
        for offset in {0..9}; do
            if listens 127.0.0.1 $((base + offset)) || listens "$1" $((base + offset)); then
                base=$((10000 + (base - 9900) % 20000))
                continue 2
            fi
        done
        echo "$base"
        return
    done
    return 1
}

# ---- the job's folder on a node's local disk -------------------------------------------------------------------------

# mkdir fails if the folder exists, so no other user can have prepared it.
make_folder() { mkdir -m 700 "$JOB_DIR" || { log "$SLURMD_NODENAME: cannot create $JOB_DIR"; exit 69; }; }

# Killed processes may still write for a moment.
remove_folder() {
    for _ in {1..50}; do
        rm -rf "$JOB_DIR" 2> /dev/null
        [ -e "$JOB_DIR" ] || return 0
        sleep 0.1
    done
}

# ---- the end ---------------------------------------------------------------------------------------------------------

# Exit with a code of launcher.train. 75 (stopped, saved) and 76 (hardware fault) requeue the job.
finish() {
    local code=$1 wait_s=10 state
    driver=''
    [ -z "$timer" ] || kill "$timer" 2> /dev/null
    ! $terminated || wait_s=2 # SLURM kills the remaining processes soon
    [ -z "$step" ] || stop_step "$wait_s"
    remove_folder
    if [ "$code" -eq 75 ] || [ "$code" -eq 76 ]; then
        state=$(squeue --noheader --jobs="$JOB" --format=%T 2> /dev/null)
        if $terminated || [ "$state" != RUNNING ]; then
            log "exit code $code; SLURM is ending the job (${state:-not listed}): not requeued"
        elif [ "$RESTARTS" -ge "$MAX_REQUEUES" ]; then
            log "exit code $code; all $MAX_REQUEUES restarts are used: not requeued. Submit the script again to resume"
        else
            log "exit code $code: requeued, restart $((RESTARTS + 1)) of at most $MAX_REQUEUES"
            trap - TERM # SLURM ends this shell once it has requeued the job
            scontrol requeue "$JOB" && pause 60
        fi
    else
        log "exit code $code"
    fi
    exit "$code"
}

readonly RESTARTS=${SLURM_RESTART_COUNT:-0}
# SLURM_JOB_ID of one task of a job array is the id of the array; a requeue by that id would requeue all tasks.
JOB=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID-}" ] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
readonly JOB
export LAUNCHER_SUBMISSION=slurm-$JOB # the same in all restarts, which wait until the previous one has ended
readonly JOB_DIR=$SCRATCH/rl-$SLURM_JOB_ID-$RESTARTS
readonly SHELL_PID=$$

mapfile -t HOSTS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=127.0.0.1
[ "${#HOSTS[@]}" -eq 1 ] || HEAD=$(address_towards "${HOSTS[1]}") || finish 69
PORT=$(free_ports "$HEAD") || finish 69
readonly HEAD PORT

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # newer versions of srun do not inherit it from sbatch
readonly STEP=(srun --nodes="${#HOSTS[@]}" --ntasks="${#HOSTS[@]}" --ntasks-per-node=1 --export=ALL --cpu-bind=none)

log "job $JOB, restart $RESTARTS: $RUN_NAME on ${HOSTS[*]}"
make_folder
printf '%s' "$CONFIG" > "$JOB_DIR/config.yaml"
