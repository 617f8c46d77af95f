"""RayJobs on Kubernetes, through kubectl; nothing needs the right to `exec` or to read a Secret.

A RayJob has its run's name, so that it is found without a record. Where the run's volume is not mounted here, a reader
Job runs the same verb where it is, and its log comes back through the API server.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cluster.kubernetes import manifests as kuberay
from cluster.kubernetes.pods import RUN_LABEL
from cluster.kubernetes.yaml import Manifest
from cluster.profile import KubernetesProfile
from cluster.spec import RunSpec
from launcher.errors import ClusterUnavailable
from launcher.places.programs import Answer, call, stream
from launcher.run.submissions import JobStatus

DELETE_S = 120  # for an ended RayJob to go: its finalizer stops a job that is stopped already
READER_START_S = 180  # assumption: an image pull; the image is mostly on the node already

# KubeRay v1.7.0, rayjob_types.go: JobDeploymentStatus
_WAITING = {
    "": "KubeRay has not looked at it yet: is its operator running?",
    "Initializing": "its pods are being made",
    "Waiting": "waits for a job id",
    "Suspended": "suspended: Kueue has not admitted it",
    "Retrying": "an attempt has ended, and the next one's cluster is being made",
}
_OVER = ("Complete", "Failed", "ValidationFailed")
_STARTING = ("PodInitializing", "ContainerCreating")


def check(manifests: Sequence[Manifest], namespace: str, context: str | None) -> None:
    """Let the API server judge all manifests, and keep none. Raises ClusterUnavailable with what it says."""
    _done(
        "apply --dry-run=server",
        _kubectl(namespace, context, "apply", "--dry-run=server", "-f", "-", given=kuberay.to_yaml(manifests)),
    )


def submit(manifests: Sequence[Manifest], name: str, namespace: str, context: str | None) -> None:
    """Apply all manifests. An ended RayJob of the same name makes room first. Raises ClusterUnavailable."""
    if _rayjob(name, namespace, context):
        deleted = _kubectl(namespace, context, "delete", "rayjob", name, f"--timeout={DELETE_S}s", wait_s=DELETE_S + 10)
        _done("delete rayjob", deleted)
    _done("apply", _kubectl(namespace, context, "apply", "-f", "-", given=kuberay.to_yaml(manifests)))


def ask(name: str, namespace: str, context: str | None) -> JobStatus:
    """What KubeRay says of a RayJob, and of a waiting one why. Raises ClusterUnavailable where kubectl is not here."""
    try:
        job = _rayjob(name, namespace, context)
    except ClusterUnavailable as error:
        return JobStatus("unreachable", str(error))
    if not job:
        return JobStatus("gone", f"there is no RayJob {name} in namespace {namespace}")
    status = job.get("status", {})
    state = status.get("jobDeploymentStatus", "")
    if state in _WAITING:
        why = _why_pods_wait(name, namespace, context) if state in ("Initializing", "Retrying") else ""
        why = _why_queued(name, namespace, context) if state == "Suspended" else why
        return JobStatus("pending", ": ".join(text for text in (_WAITING[state], why) if text))
    if state in _OVER:
        told = ": ".join(text for text in (status.get("reason", ""), status.get("message", "")) if text)
        return JobStatus("gone", f"KubeRay says {state}{f': {told}' if told else ''}")
    return JobStatus("running", state.lower())


def stop(name: str, namespace: str, context: str | None, *, save: bool) -> str:
    """Delete the RayJob: KubeRay stops the driver, which has the profile's notice to save. Raises ClusterUnavailable.

    Not to `save`: its pods are deleted without that time.
    """
    if not _rayjob(name, namespace, context):
        return f"there is no RayJob {name} in namespace {namespace}; nothing to end"
    _done("delete rayjob", _kubectl(namespace, context, "delete", "rayjob", name, "--wait=false"))
    if save:
        return f"RayJob {name} is being deleted: the run saves and ends, and KubeRay does not start it again"
    pods = ("delete", "pods", f"--selector={RUN_LABEL}={name}", "--grace-period=1", "--wait=false")
    _done("delete pods", _kubectl(namespace, context, *pods))
    return f"RayJob {name} and its pods are deleted; the newest checkpoint counts"


def read(
    spec: RunSpec, profile: KubernetesProfile, arguments: Sequence[str], context: str | None, *, live: bool = False
) -> str:
    """What `launcher ARGUMENTS` prints where the run's volume is mounted; `live` prints it here as it comes.

    Raises ClusterUnavailable.
    """
    namespace = profile.namespace
    manifest = kuberay.reader_job(spec, profile, arguments)
    made = _kubectl(namespace, context, "create", "-f", "-", "-o", "name", given=kuberay.to_yaml([manifest]))
    _done("create job", made)
    job = made.out.strip()
    logs = ("logs", "--follow", f"--pod-running-timeout={READER_START_S}s", job)
    try:
        if live:
            stream("kubectl", *_where(namespace, context), *logs)
            return ""
        answer = _kubectl(namespace, context, *logs, wait_s=READER_START_S + kuberay.READER_DEADLINE_S)
        _done(f"logs {job}", answer)
        return answer.out
    finally:
        _kubectl(namespace, context, "delete", job, "--wait=false")


def _rayjob(name: str, namespace: str, context: str | None) -> dict[str, Any]:
    """The RayJob; empty where there is none. Raises ClusterUnavailable."""
    answer = _kubectl(namespace, context, "get", "rayjob", name, "--ignore-not-found", "-o", "json")
    _done("get rayjob", answer)
    return _json(answer)


def _why_pods_wait(name: str, namespace: str, context: str | None) -> str:
    answer = _kubectl(namespace, context, "get", "pods", f"--selector={RUN_LABEL}={name}", "-o", "json")
    for pod in _json(answer).get("items", []) if answer.code == 0 else []:
        status = pod.get("status", {})
        for condition in status.get("conditions", []):
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return str(condition.get("message", condition.get("reason", "")))
        for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
            waiting = container.get("state", {}).get("waiting")
            if waiting and waiting.get("reason") not in _STARTING:
                return f"{waiting.get('reason')}: {waiting.get('message', '')}".rstrip(": ")
    return ""


def _why_queued(name: str, namespace: str, context: str | None) -> str:
    answer = _kubectl(namespace, context, "get", "workloads.kueue.x-k8s.io", "-o", "json")
    for workload in _json(answer).get("items", []) if answer.code == 0 else []:
        if any(owner.get("name") == name for owner in workload.get("metadata", {}).get("ownerReferences", [])):
            for condition in workload.get("status", {}).get("conditions", []):
                if condition.get("type") == "QuotaReserved" and condition.get("status") == "False":
                    return str(condition.get("message", ""))
    return ""


def _json(answer: Answer) -> dict[str, Any]:
    """Empty where there is no output. Raises ClusterUnavailable where it is not JSON."""
    try:
        found: dict[str, Any] = json.loads(answer.out or "{}")
    except ValueError:
        raise ClusterUnavailable(f"kubectl: {answer.problem}") from None
    return found


def _kubectl(
    namespace: str, context: str | None, *arguments: str, given: str | None = None, wait_s: float = 60.0
) -> Answer:
    return call("kubectl", *_where(namespace, context), *arguments, given=given, timeout_s=wait_s)


def _where(namespace: str, context: str | None) -> list[str]:
    return [*([] if context is None else [f"--context={context}"]), f"--namespace={namespace}"]


def _done(what: str, answer: Answer) -> None:
    if answer.code != 0:
        raise ClusterUnavailable(f"kubectl {what}: {answer.err.strip() or answer.problem}")
