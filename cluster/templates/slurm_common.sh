# ---- signals ---------------------------------------------------------------------------------------------------------
# USR2  a notice: save, end with 75, come back. SLURM sends it before the time limit; the first node's task passes it on
#       when the job is being preempted.
# TERM  the job ends (scancel, the time limit, a lost node), and SLURM decides what comes after: no requeue from here.

notified=false terminated=false
driver='' keeper='' step='' watch='' # process ids

say() { printf '%s %s\n' "$(date +%T)" "$*"; }

on_usr2() {
    $notified || say "notice: the run is asked to save and end"
    notified=true
    [ -n "$driver" ] || return 0
    kill -USR2 "$driver" 2> /dev/null
    if [ -z "$watch" ]; then
        kill_late "$driver" &
        watch=$!
    fi
}

on_term() {
    terminated=true
    on_usr2
}

# A life that ends by itself is requeued, one that SLURM has to end is not.
kill_late() {
    pause "$SAVE_S"
    say "nothing ended within $SAVE_S s of the notice: killed; the newest checkpoint counts"
    kill "-$LAST_SIGNAL" "$1" 2> /dev/null
}

trap on_usr2 USR2
trap on_term TERM

# Sleep without a process of its own, which would outlive this one: read from a pipe into which nothing is written.
exec 8<> <(:)
pause() { read -rt "$1" -u 8; }

# ---- waiting ---------------------------------------------------------------------------------------------------------

# Run a command in the foreground of a background shell, and leave its process id and its exit code in files. `wait` may
# lose the code of a child that ends when a signal comes; a command in the foreground keeps it.
keep() {
    trap : USR2 TERM # not ignored: what is ignored would stay so in the command
    bash -c 'echo "$$" > "$0/kept"; exec "$@"' "$JOB_DIR" "$@"
    echo "$?" > "$JOB_DIR/exit-code"
}

# The process id of what is kept, as soon as it has one.
kept() {
    until [ -s "$JOB_DIR/kept" ]; do
        kill -0 "$keeper" 2> /dev/null || return 1
        pause 0.05
    done
    cat "$JOB_DIR/kept"
}

# Wait until it has ended, and return its exit code. Meanwhile signals are acted on.
exit_code() {
    while kill -0 "$keeper" 2> /dev/null; do wait "$keeper"; done
    [ -s "$JOB_DIR/exit-code" ] || return 76 # the keeper was killed
    return "$(< "$JOB_DIR/exit-code")"
}

# Wait for a process, for so many seconds at most; false where it is still there.
await_briefly() {
    local tenths=$(($2 * 10))
    while kill -0 "$1" 2> /dev/null; do
        ((tenths-- > 0)) || return 1
        sleep 0.1
    done
}

# ---- addresses and ports ---------------------------------------------------------------------------------------------

# This host's own address as another one sees it: the local end of a UDP socket, through which nothing is sent.
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

# The first of ten free ports in a row; where to look first depends on the job, so that jobs which share a node differ.
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

# ---- the job's own folder on a node's disk ---------------------------------------------------------------------------

# mkdir fails where the name is taken: nobody can have prepared it.
make_folder() { mkdir -m 700 "$JOB_DIR" || { say "$SLURMD_NODENAME: cannot make $JOB_DIR"; exit 69; }; }

# What is being killed may still write for a moment.
remove_folder() {
    for _ in {1..50}; do
        rm -rf "$JOB_DIR" 2> /dev/null
        [ -e "$JOB_DIR" ] || return 0
        sleep 0.1
    done
}

# ---- the end ---------------------------------------------------------------------------------------------------------

# Exit with a code of launcher.train. 75 (stopped, saved) and 76 (hardware at fault) are worth another life.
finish() {
    local code=$1 patience=10 state
    driver=''
    [ -z "$watch" ] || kill "$watch" 2> /dev/null
    ! $terminated || patience=2 # SLURM kills what is left soon
    [ -z "$step" ] || stop_step "$patience"
    remove_folder
    if [ "$code" -eq 75 ] || [ "$code" -eq 76 ]; then
        state=$(squeue --noheader --jobs="$JOB" --format=%T 2> /dev/null)
        if $terminated || [ "$state" != RUNNING ]; then
            say "exit code $code, and the job is being ended (${state:-gone}): not requeued"
        elif [ "$RESTARTS" -ge "$MAX_REQUEUES" ]; then
            say "exit code $code, and no restart is left of $MAX_REQUEUES: not requeued; sbatch it again to go on"
        else
            say "exit code $code: requeued, restart $((RESTARTS + 1)) of at most $MAX_REQUEUES"
            trap - TERM # SLURM ends this shell as soon as it has requeued the job
            scontrol requeue "$JOB" && pause 60
        fi
    else
        say "exit code $code"
    fi
    exit "$code"
}

readonly RESTARTS=${SLURM_RESTART_COUNT:-0}
# A job array's first task has the array's own id, and a requeue by that id would take all tasks.
JOB=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID-}" ] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
readonly JOB
export LAUNCHER_SUBMISSION=slurm-$JOB # the same in every life of the job: a life waits for the end of the one before
readonly JOB_DIR=$SCRATCH/rl-$SLURM_JOB_ID-$RESTARTS
readonly SHELL_PID=$$

mapfile -t HOSTS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=127.0.0.1
[ "${#HOSTS[@]}" -eq 1 ] || HEAD=$(address_towards "${HOSTS[1]}") || finish 69
PORT=$(free_ports "$HEAD") || finish 69
readonly HEAD PORT

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # newer versions of srun do not take it over from sbatch
readonly STEP=(srun --nodes="${#HOSTS[@]}" --ntasks="${#HOSTS[@]}" --ntasks-per-node=1 --export=ALL --cpu-bind=none)

say "job $JOB, restart $RESTARTS: $RUN_NAME on ${HOSTS[*]}"
make_folder
printf '%s' "$CONFIG" > "$JOB_DIR/config.yaml"
