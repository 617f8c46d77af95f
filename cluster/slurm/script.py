"""From a run's needs and a site's profile to a bash script for sbatch.

The script consists of #SBATCH lines, the run's values (quoted by `cluster.slurm.quoting`), and code from `templates/`,
which is the same for all runs. No value of a run or profile is inserted into the code.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from typing import Literal

from cluster.errors import PlaceError, Problem
from cluster.profile import Container, SlurmProfile
from cluster.slurm.quoting import array, assignment, expanding, quote
from cluster.spec import RunSpec

Launcher = Literal["ray", "torchrun"]

OBJECT_STORE_BYTES = 200_000_000  # Ray's shared memory, which a run uses for a few kilobytes
MAX_CONFIG_BYTES = 100_000  # SLURM's default limit for the whole script is 4 MB (slurm.conf: max_script_size)
MAX_VARIANTS = 1000  # SLURM's default MaxArraySize is 1001

# Variables in the profile's `scratch` that are expanded on the node, and the longest value of each. The length of a
# user's name is an assumption; Ray refuses to start with a path that is too long.
SCRATCH_VARIABLES = {"SLURM_JOB_ID": "9" * 10, "SLURM_JOB_USER": "u" * 8}
MAX_SOCKET_BYTES = 107  # of the path of a Unix socket

# Options in a profile's `sbatch` that would change the layout: one task per node, requeued by the script itself.
_LAYOUT = (
    *("nodes", "ntasks", "ntasks-per-node", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket", "cpus-per-task"),
    *("cpus-per-gpu", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "array", "wrap", "signal"),
    *("requeue", "no-requeue", "no-kill"),
)

# Allowed in an #SBATCH line: names, node sets and features, but no space, quote or newline.
_OPTION = re.compile(r"--[a-z][a-z-]*(=[A-Za-z0-9_.,:;%@/+=\[\]()&|*!-]+)?")


def render(spec: RunSpec, profile: SlurmProfile, launcher: Launcher = "ray") -> str:
    """The script for `sbatch FILE`, with the config in it.

    `launcher` is `ray` (survives the loss of a node, uses spare nodes) or `torchrun` (starts without Ray). Raises
    PlaceError with all combinations that do not work.
    """
    problems = list(_problems(spec, profile, launcher))
    if problems:
        raise PlaceError(problems)
    parts = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in (*_options(spec, profile, launcher), *profile.sbatch)),
        *_introduction(spec, profile, launcher),
        "set -uo pipefail # no -e: exit codes are checked explicitly",
        "",
        _template("slurm_environment.sh"),
        f"# ---- this run {'-' * 104}",
        "",
        *_values(spec, profile, launcher),
        "",
        _template("slurm_common.sh"),
        _template(f"slurm_{launcher}.sh").rstrip("\n"),
    ]
    return "\n".join(parts) + "\n"


def doubts(spec: RunSpec, profile: SlurmProfile, launcher: Launcher) -> list[Problem]:
    """Settings that are valid but probably a mistake."""
    if launcher == "torchrun" and (not spec.gpus_per_worker or profile.gpus is None):
        return []  # the workers' CPUs, and all GPUs that the first node shows, can be used
    return spec.doubts(profile.spare_nodes)


def ray_socket(scratch: str, job: str, restart: int | str, pid: int | str) -> str:
    """The longest path of a socket of Ray in a job's folder, as in Ray 2.60 (ray/_private/node.py)."""
    session = f"session_2026-01-01_00-00-00_000000_{pid}"  # always as long
    return f"{scratch}/rl-{job}-{restart}/ray/{session}/sockets/plasma_store"


def _options(spec: RunSpec, profile: SlurmProfile, launcher: Launcher) -> list[str]:
    """The options of sbatch, without those of the profile's `sbatch`."""
    one_of_many = "%A_%a" if spec.variants else "%j"
    options = [
        f"--job-name={spec.name}",
        f"--output=slurm-%x-{one_of_many}.out",
        "--open-mode=append",  # one file for all restarts of the job
        f"--nodes={spec.nodes + profile.spare_nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={spec.cpus_per_node}",
    ]
    named = ("partition", "account", "qos", "constraint")
    options += [f"--{name}={value}" for name in named if (value := getattr(profile, name)) is not None]
    if spec.gpus_per_node and profile.gpus is not None:
        options.append(profile.gpus.replace("{count}", str(spec.gpus_per_node)))
    if profile.memory is not None:
        options.append(f"--mem={profile.memory}")
    if spec.walltime_s is not None:
        options.append(f"--time={_time(spec.walltime_s)}")
    options.append(f"--signal=B:USR2@{_notice_s(spec, profile)}")
    options.append("--requeue" if spec.max_requeues else "--no-requeue")
    if launcher == "ray":
        options.append("--no-kill")  # a lost node does not end the job
    if profile.exclusive:
        options.append("--exclusive")
    if spec.variants:
        options.append(f"--array=0-{len(spec.variants) - 1}")
    return options


def _problems(spec: RunSpec, profile: SlurmProfile, launcher: Launcher) -> Iterator[Problem]:
    options = _options(spec, profile, launcher)
    for option in (*options, *profile.sbatch):
        if _OPTION.fullmatch(option) is None:
            yield Problem("", "sbatch", f"found {option!r}", "letters, digits and _.,:;%@/+=[]()&|*!- in its value")
    taken = (*map(_name, options), *_LAYOUT)
    for option in profile.sbatch:
        if any(name.startswith(_name(option)) for name in taken):  # sbatch accepts abbreviations
            found = f'found "{option}", which the script or another key sets'
            yield Problem("", "sbatch", found, "options that the script does not set, for example --reservation=name")
    yield from _scratch_problems(profile.scratch, launcher)
    notice_s = _notice_s(spec, profile)
    if spec.walltime_s is not None and spec.walltime_s <= 2 * notice_s:
        found = f"found {spec.walltime_s} s, of which the last {notice_s} s are the notice"
        yield Problem("", "cluster.walltime", found, f"more than twice the notice: above {2 * notice_s} s")
    if launcher == "torchrun" and profile.spare_nodes:
        found = f"found {profile.spare_nodes}, which torchrun cannot use"
        yield Problem("", "spare_nodes", found, "0 with --launcher torchrun, or --launcher ray")
    if launcher == "torchrun" and spec.is_elastic:
        found = f"found {spec.least_workers}..{spec.most_workers}, which torchrun does not support"
        yield Problem("", "workers", found, "one number with --launcher torchrun, or --launcher ray")
    if len(spec.config.encode("utf-8", "replace")) > MAX_CONFIG_BYTES:
        yield Problem("", "", f"a config of more than {MAX_CONFIG_BYTES} bytes", "a smaller config")
    if len(spec.variants) > MAX_VARIANTS:
        yield Problem("", "", f"{len(spec.variants)} variants", f"at most {MAX_VARIANTS} in a job array")
    named = [(f"variant {variant.name}", text) for variant in spec.variants for text in variant.overrides]
    named += [("overrides", text) for text in spec.overrides]
    named += [("config", spec.config), ("storage", spec.storage), ("data.root", spec.data_root or "")]
    for key, text in named:
        try:
            quote(text)
        except ValueError as error:
            yield Problem("", key, f"cannot be written into a script: {error}", "text")
    for key, path in (("storage", spec.storage), ("data.root", spec.data_root)):
        if profile.container is not None and path is not None and re.search("[:,]", path):
            yield Problem("", key, f'found "{path}"', "a path without : and , which separate mounts")


def _scratch_problems(scratch: str, launcher: Launcher) -> Iterator[Problem]:
    longest = re.sub(r"\$(\w+)", lambda match: SCRATCH_VARIABLES.get(match[1], match[0]), scratch)
    over = len(ray_socket(longest, "9" * 10, "9" * 4, "9" * 7)) - MAX_SOCKET_BYTES
    if launcher == "ray" and over > 0:
        found = f'found "{scratch}", at most {len(longest)} characters on a node'
        allowed = f"at most {len(longest) - over}, because Ray's sockets are in it: /tmp"
        yield Problem("", "scratch", found, allowed)


def _introduction(spec: RunSpec, profile: SlurmProfile, launcher: Launcher) -> list[str]:
    least = f"{spec.least_workers} to " if spec.is_elastic else ""
    workers = f"{least}{_count(spec.most_workers, 'worker')}"
    spares = f" and {_count(profile.spare_nodes, 'spare node')}" if profile.spare_nodes else ""
    many = f", a job array of {_count(len(spec.variants), 'run')}" if spec.variants else ""
    return [
        "#",
        f"# {spec.name}: {workers} on {_count(spec.nodes, 'node')}{spares}, started by {launcher}{many}",
        "#",
        "#   sbatch --test-only FILE     check whether SLURM accepts it",
        "#   sbatch FILE                 submit it; then use squeue --me, and tail -f slurm-*.out in this folder",
        "#   scancel JOB                 save and stop; the job is not restarted",
        "#",
        "# The exit code is that of `python -m launcher.train`. 75 (stopped, saved) and 76 (hardware) are requeued.",
        "# Needs bash 4.4 or newer.",
        "#",
        "# shellcheck disable=SC2016,SC2054,SC2317,SC2329 # literal $ and comma; functions for traps and other nodes",
    ]


def _values(spec: RunSpec, profile: SlurmProfile, launcher: Launcher) -> Iterator[str]:
    notice_s = _notice_s(spec, profile)
    yield assignment("RUN_NAME", spec.name)
    yield assignment("MAX_REQUEUES", spec.max_requeues)
    # A third of the notice, at most 30 s, is reserved to kill late processes and to requeue.
    yield assignment("SAVE_S", notice_s - min(30, notice_s // 3))
    yield f"readonly SCRATCH={expanding(profile.scratch, SCRATCH_VARIABLES)}"
    yield assignment("CPUS_PER_NODE", spec.cpus_per_node)
    if launcher == "ray":
        yield assignment("START_S", spec.start_timeout_s)
        yield assignment("GPUS_PER_NODE", spec.gpus_per_node)
        yield assignment("OBJECT_STORE_BYTES", OBJECT_STORE_BYTES)
    else:
        yield assignment("NUM_NODES", spec.nodes)
        yield assignment("WORKERS_PER_NODE", spec.workers_per_node)
    yield f"readonly CONFIG={quote(spec.config)}"
    yield array("OVERRIDES", spec.overrides)
    run = "RUN=" + quote(f"{spec.storage}/{spec.name}")
    if spec.variants:
        # SLURM_JOB_ID of one task is the id of the array for some commands: a requeue would requeue all tasks.
        yield "JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
        yield "case $SLURM_ARRAY_TASK_ID in"
        for number, variant in enumerate(spec.variants):
            run = "RUN=" + quote(f"{spec.storage}/{variant.name}")
            yield f"    {number}) {run} OVERRIDES+=({' '.join(map(quote, variant.overrides))}) ;;"
        yield "esac"
    else:
        yield "JOB=$SLURM_JOB_ID"
        yield run
    yield "readonly JOB RUN"
    yield from _site(spec, profile, launcher)
    yield from _container(spec, profile.container)


def _site(spec: RunSpec, profile: SlurmProfile, launcher: Launcher) -> Iterator[str]:
    if profile.gpus is None:
        yield "unset CUDA_VISIBLE_DEVICES # of the submitting shell: SLURM assigns no GPUs here"
    if profile.modules:
        yield f"load_modules {' '.join(map(quote, profile.modules))}"
    for folder, variable in ((profile.venv, "VIRTUAL_ENV"), (profile.conda, "CONDA_PREFIX")):
        if folder is not None:
            yield f"export {variable}={quote(folder)} PATH={quote(f'{folder}/bin')}:$PATH"
    variables = profile.network.variables | profile.environment
    for name, value in variables.items():
        yield f"export {name}={quote(value)}"
    if launcher == "torchrun" and "OMP_NUM_THREADS" not in variables:
        yield f"export OMP_NUM_THREADS={spec.cpus_per_worker}"
        variables["OMP_NUM_THREADS"] = ""
    yield array("VARIABLES", variables)


def _container(spec: RunSpec, container: Container | None) -> Iterator[str]:
    """INSIDE is the prefix of commands that run in the image; CONTAINER are options of srun for whole tasks."""
    inside: list[str] = []
    options: list[str] = []
    if container is not None:
        folders = dict.fromkeys(folder for folder in (spec.storage, spec.data_root) if folder is not None)
        mounts = [*(quote(f"{folder}:{folder}") for folder in folders), '"$SCRATCH:$SCRATCH"']
        mounts += map(quote, container.mounts)
        if container.runtime == "apptainer":
            inside = ["apptainer exec", *(["--nv"] if spec.gpus_per_worker else [])]
            inside += [*(f"--bind {mount}" for mount in mounts), quote(container.image)]
        else:
            # pyxis imports the image into a container of this name once on each node; later steps use that one.
            options = [quote(f"--container-image={container.image}"), '--container-name="rl-$SLURM_JOB_ID"']
            options.append(f"--container-mounts={','.join(mounts)}")
    yield f"INSIDE=({' '.join(inside)})"
    yield f"CONTAINER=({' '.join(options)})"


def _name(option: str) -> str:
    return option.removeprefix("--").partition("=")[0]


def _notice_s(spec: RunSpec, profile: SlurmProfile) -> int:
    return max(spec.notice_s, profile.notice_s)


def _time(seconds: int) -> str:
    """In sbatch's format: [days-]hours:minutes:seconds."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hours:02}:{minutes:02}:{seconds:02}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _template(name: str) -> str:
    return (importlib.resources.files("cluster") / "templates" / name).read_text(encoding="utf-8")
