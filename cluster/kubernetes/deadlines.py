"""All time limits of a run on Kubernetes, in seconds, derived from the run and the profile.

A pod that receives SIGTERM has the notice to save, then Ray stops its processes, then the kubelet kills them:

    notice < drain < grace

An attempt begins when KubeRay creates its cluster. Both deadlines of a RayJob count from there, while the driver's
walltime counts from the start of the driver:

    0                     the cluster is created
    start                 at the latest, all pods are ready and the driver is submitted: preRunningDeadlineSeconds
    start + W             at the latest, the walltime W is over: the driver gets SIGUSR2, saves and exits
    start + W + drain     at the latest, a driver that has not exited is killed

If the head is lost, the driver is submitted again to a new head, in the same attempt, and has the whole walltime
again (KubeRay v1.7.0, rayjob_controller.go). The latest time for this is just before the driver's end, and each head
takes as long as the first one. activeDeadlineSeconds covers this once for each of `HEAD_LOSSES`: KubeRay never
retries a run that exceeds it.
"""

from __future__ import annotations

from cluster.profile import KubernetesProfile
from cluster.spec import RunSpec

HEAD_LOSSES = 1  # per attempt, at any time; assumption: two are rare, and a longer deadline holds a stuck run longer

DRAIN_MARGIN_S = 15  # assumption: the driver polls for drains every second, writes two files and exits
GRACE_MARGIN_S = 30  # assumption: Ray stops its processes within seconds, before the kubelet's SIGKILL
RESUBMIT_S = 360  # the longest pause between two retries of a Job (Kubernetes: "Pod backoff failure policy")


def notice_s(spec: RunSpec, profile: KubernetesProfile) -> int:
    """For a save and a clean exit after a pod's SIGTERM."""
    return max(spec.notice_s, profile.notice_s)


def drain_s(spec: RunSpec, profile: KubernetesProfile) -> int:
    """From SIGTERM until Ray stops its processes, and from the walltime until the driver is killed."""
    return notice_s(spec, profile) + DRAIN_MARGIN_S


def grace_s(spec: RunSpec, profile: KubernetesProfile) -> int:
    """Between SIGTERM and SIGKILL."""
    return drain_s(spec, profile) + GRACE_MARGIN_S


def active_s(spec: RunSpec, profile: KubernetesProfile) -> int:
    """Until an attempt ends, if its head is lost at most `HEAD_LOSSES` times: activeDeadlineSeconds."""
    assert spec.walltime_s is not None  # see `rules.problems`
    head_s = profile.start_timeout_s + spec.walltime_s + drain_s(spec, profile)
    return head_s + HEAD_LOSSES * (RESUBMIT_S + head_s) + GRACE_MARGIN_S
