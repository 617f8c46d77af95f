"""All checks of one host, in the order in which they are shown, with their time limits."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import partial

from launcher.checks import network, packages, ray_token, system, variables
from launcher.checks.finding import Check, Finding, failed, run_checks, skipped
from launcher.checks.host_requirements import HostRequirements, requirements_of
from launcher.config.schema import RunConfig


def host_checks(
    config: RunConfig | None,
    required: HostRequirements,
    profile: Mapping[str, str],
    environment: Mapping[str, str] = os.environ,
) -> list[Check]:
    """The checks of a host. `profile` holds the variables that the site's profile sets.

    If torch cannot be imported, there is a check that fails in place of those that need it.
    """
    several = required.nodes > 1
    alone = not several and not required.joins_a_cluster
    gpus = required.gpus
    checks = [
        Check("packages", lambda: packages.packages(config, required), 10),
        Check("CPUs", lambda: system.cpus(required.cpus), 5),
        Check("open files", lambda: system.open_files(several_ray_nodes=several and required.ray), 5),
        Check("locked memory", lambda: system.locked_memory(gpus), 5),
        Check("/dev/shm", lambda: system.shared_memory(required), 5),
        Check("host name", lambda: network.host_name(several_nodes=several), 10),
        Check("ports", lambda: network.ports(network.wanted_ports(required, environment)), 5),
        Check("proxies", lambda: network.proxies(network.addresses(environment), environment, alone=alone), 10),
        Check("variables", lambda: variables.variables(profile, environment, on_gpu=gpus > 0), 5),
        Check("Ray token", lambda: ray_token.token(required, environment), 15),
    ]
    try:
        from launcher.checks import accelerator

        of_run = _checks_of_run(config, required)
    except (ImportError, OSError) as error:  # torch or a package beside it is missing, or a library that they load
        found = f"storage, data and GPUs cannot be checked: {type(error).__name__}: {error}"
        advice = "install the project again, as its README says"
        return [*checks, Check("packages", partial(failed, "packages", found, advice), 5)]
    return [
        *checks,
        *of_run,
        Check("driver", lambda: accelerator.driver(gpus), 20),
        Check("GPUs", lambda: accelerator.gpus(gpus), 20),
        Check("matmul", accelerator.cpu_matmul, 20, slow=True),
        Check("memory", accelerator.cpu_memory, 20, slow=True),
        Check("GPU arithmetic", accelerator.gpu_arithmetic, accelerator.CHILD_S + 5, slow=True),
    ]


def _checks_of_run(config: RunConfig | None, required: HostRequirements) -> list[Check]:
    """The checks of a run's storage and data."""
    from launcher.checks import dataset, storage  # torch

    run = required.run
    if config is None or run is None:
        return [Check(name, partial(skipped, name, "no config was given"), 1) for name in ("storage", "data")]
    size = partial(storage.needed_bytes, run, required.model, required.keep)
    return [
        Check("storage", lambda: storage.writable(run, required.nodes), 30),
        Check("storage clock", lambda: storage.clock(run.storage), 30),
        Check("free disk", lambda: storage.space(run.storage, *size(), required.keep), 20),
        Check("inodes", lambda: storage.inodes(os.statvfs(storage.existing(run.storage))), 20),
        Check("quota", lambda: storage.quota(size()[1]), storage.QUOTA_S + 10),
        Check("data", lambda: dataset.data(config), 30),
    ]


def preflight(
    config: RunConfig | None,
    seconds: float,
    *,
    quick: bool = False,
    profile: Mapping[str, str] | None = None,
    omitted: Collection[str] = (),
) -> list[Finding]:
    """Check this host for `config` within `seconds`, without the checks `omitted`.

    `profile` holds the variables that the site's profile sets.

    `launcher.checks.finding.require` raises ClusterUnavailable (exit code 69) for findings that failed.
    """
    checks = host_checks(config, requirements_of(config), profile or {})
    return run_checks([check for check in checks if check.name not in omitted], seconds, quick)
