"""All checks of one host, in the order in which they are told."""

from __future__ import annotations

import os
from collections.abc import Mapping

from launcher.checks import accelerator, access, dataset, network, packages, storage, system, variables
from launcher.checks.finding import Check, Finding, run_checks
from launcher.checks.needs import Needs, needs_of
from launcher.config.schema import RunConfig


def host_checks(
    config: RunConfig | None, needs: Needs, profile: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> list[Check]:
    """The checks of a host of which the run asks `needs`; `profile` holds the variables that the site sets."""
    return [
        *packages.checks(config, needs),
        *system.checks(needs),
        *network.checks(needs, environment),
        *variables.checks(needs, profile, environment),
        *access.checks(needs, environment),
        *storage.checks(needs),
        *dataset.checks(config),
        *accelerator.checks(needs),
    ]


def preflight(
    config: RunConfig | None, seconds: float, *, quick: bool = False, profile: Mapping[str, str] | None = None
) -> list[Finding]:
    """Check this host for `config` within `seconds`. `profile`: variables that the site's profile sets.

    `launcher.checks.finding.require` raises ClusterUnavailable (exit code 69) where a finding fails.
    """
    return run_checks(host_checks(config, needs_of(config), profile or {}), seconds, quick)
