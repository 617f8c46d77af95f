# ---- the environment -------------------------------------------------------------------------------------------------

log() { printf '%s %s\n' "$(date +%T)" "$*"; }

# sbatch passes on the variables of the shell that submitted the job. The profile, not that shell, configures srun, Ray,
# torchrun and NCCL: drop their variables, but keep those by which SLURM describes the job.
drop_variables() {
    local name dropped=()
    for name in $(compgen -e); do
        case $name in
            SLURM_CONF | SLURM_JWT | SLURM_CLUSTER_NAME | SLURM_WORKING_CLUSTER) ;;
            SLURM_JOB_* | SLURM_JOBID | SLURM_ARRAY_* | SLURM_RESTART_COUNT | SLURM_SUBMIT_* | SLURM_TOPOLOGY_*) ;;
            SLURM_NODELIST | SLURM_NNODES | SLURM_TASKS_PER_NODE | SLURM_CPUS_ON_NODE | SLURM_GPUS_ON_NODE) ;;
            SLURM_NODEID | SLURM_PROCID | SLURM_LOCALID | SLURM_GTIDS | SLURM_TASK_PID | SLURM_NODE_ALIASES) ;;
            # Options of srun that sbatch sets, too. The steps below have their own.
            SLURM_CPU* | SLURM_GPU* | SLURM_MEM_* | SLURM_NTASKS* | SLURM_NPROCS | SLURM_THREADS_PER_CORE | \
                SLURM_DIST* | SLURM_OPEN_MODE | SLURM_OVERCOMMIT | SLURM_PROFILE | SLURM_EXPORT_ENV | \
                SLURM_GET_USER_ENV | SLURM_PRIO_PROCESS | SLURM_RLIMIT_* | SBATCH_CPU_BIND* | SBATCH_MEM_BIND*)
                unset "$name"
                ;;
            SLURM_* | SLURMD_DEBUG | SRUN_* | SBATCH_* | SALLOC_* | PYXIS_* | RAY_* | NCCL_* | TORCH_NCCL_* | GLOO_* | \
                RANK | WORLD_SIZE | LOCAL_RANK | LOCAL_WORLD_SIZE | GROUP_RANK | MASTER_ADDR | MASTER_PORT | \
                TORCHELASTIC_* | PET_* | OMP_NUM_THREADS)
                dropped+=("$name")
                unset "$name"
                ;;
        esac
    done
    [ "${#dropped[@]}" -eq 0 ] || log "ignored variables of the environment: ${dropped[*]}. The profile can set them"
}
drop_variables

# Load modules on this node; other nodes inherit the variables. Exit if one does not load.
load_modules() {
    local init module before
    set +u # the site's files may use unset variables
    for init in /etc/profile.d/{modules,lmod,z00_lmod}.sh {"$LMOD_PKG","$MODULESHOME"}/init/bash \
        /usr/share/{lmod/lmod,modules,Modules}/init/bash; do
        # shellcheck disable=SC1090 # defines `module`, for Lmod or for Tcl modules
        command -v module > /dev/null || { [ -r "$init" ] && . "$init"; }
    done
    for module; do
        before=$LOADEDMODULES
        module load "$module" && { [ "$LOADEDMODULES" != "$before" ] || is_loaded "$module"; } && continue
        log "$SLURMD_NODENAME: module $module does not load. Allowed in the profile: what \`module avail\` lists"
        exit 78
    done
    set -u
}

# Whether a module that changed nothing was loaded before. Some versions of `module load` return 0 when they fail.
is_loaded() {
    case ":$LOADEDMODULES:" in *":$1:"* | *":$1/"*) return 0 ;; esac
    module is-loaded "$1"
}
