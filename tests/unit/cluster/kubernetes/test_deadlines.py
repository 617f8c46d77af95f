"""cluster/kubernetes/deadlines.py: the life of an attempt, whenever its head is lost."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.kubernetes.deadlines import RESUBMIT_S
from cluster.kubernetes.manifests import manifests
from cluster.profile import KubernetesProfile, StorageVolume
from cluster.spec import RunSpec

SPEC = RunSpec(name="rn50", config="", storage="/runs")
PROFILE = KubernetesProfile(image="training/launcher:1.0", storage=StorageVolume(claim="runs"))
SITES = st.tuples(
    st.integers(60, 7 * 86_400),  # walltime
    st.integers(1, 7200),  # start timeout
    st.integers(1, 900),  # notice
)


@dataclass(frozen=True)
class Limits:
    """What a RayJob says about time."""

    pre_running_s: int
    active_s: int
    walltime_s: int
    kill_after_s: int

    @property
    def driver_s(self) -> int:
        """The longest life of a driver."""
        return self.walltime_s + self.kill_after_s


def limits_of(site: tuple[int, int, int]) -> Limits:
    walltime_s, start_timeout_s, notice_s = site
    spec = dataclasses.replace(SPEC, walltime_s=walltime_s)
    profile = dataclasses.replace(PROFILE, start_timeout_s=start_timeout_s, notice_s=notice_s)
    job: dict[str, Any] = manifests(spec, profile)[-1]["spec"]
    command = re.search(r"--kill-after=(\d+) (\d+) python", job["entrypoint"])
    return Limits(job["preRunningDeadlineSeconds"], job["activeDeadlineSeconds"], int(command[2]), int(command[1]))


def outcome(limits: Limits, ready_s: int, heads_lost: list[tuple[int, int]], driver_s: int) -> str:
    """The end of an attempt whose drivers each run `driver_s`, in the words of KubeRay.

    Pods are ready after `ready_s`; each of `heads_lost` is the driver's age at the loss, and the seconds until the
    driver runs again on a new head.
    """
    if ready_s > limits.pre_running_s:
        return "PreRunningDeadlineExceeded"  # is retried
    started = ready_s
    for age_s, new_head_s in heads_lost:
        started += age_s + new_head_s
    return "the driver's own exit" if started + driver_s < limits.active_s else "DeadlineExceeded"  # is not retried


@settings(deadline=None, max_examples=200)
@given(SITES, st.data())
def test_a_head_that_is_lost_at_any_time_leaves_the_next_driver_its_whole_walltime(site, data):
    limits = limits_of(site)
    ready_s = data.draw(st.integers(0, limits.pre_running_s))
    lost_s = data.draw(st.integers(0, limits.driver_s) | st.just(limits.driver_s))
    new_head_s = data.draw(
        st.integers(0, limits.pre_running_s + RESUBMIT_S) | st.just(limits.pre_running_s + RESUBMIT_S)
    )
    assert outcome(limits, ready_s, [(lost_s, new_head_s)], limits.driver_s) == "the driver's own exit"


@settings(deadline=None, max_examples=100)
@given(SITES, st.data())
def test_without_a_loss_the_driver_ends_before_any_deadline(site, data):
    limits = limits_of(site)
    ready_s = data.draw(st.integers(0, limits.pre_running_s))
    assert outcome(limits, ready_s, [], limits.driver_s) == "the driver's own exit"


@pytest.mark.parametrize("site", [(60, 60, 1), (4 * 3600, 1800, 120), (7 * 86_400, 7200, 900)])
def test_pods_that_are_late_are_retried_and_a_run_that_is_stuck_ends(site):
    limits = limits_of(site)
    assert outcome(limits, limits.pre_running_s + 1, [], limits.driver_s) == "PreRunningDeadlineExceeded"
    assert limits.pre_running_s < limits.active_s
    late = (limits.driver_s, limits.pre_running_s + RESUBMIT_S)
    assert outcome(limits, limits.pre_running_s, [late, late], limits.driver_s) == "DeadlineExceeded"
    assert limits.active_s < 3 * (limits.pre_running_s + limits.driver_s + RESUBMIT_S)
