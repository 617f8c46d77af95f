"""RayJobs on Kubernetes, through kubectl. No call needs the right to `exec` or to read a Secret.

A RayJob has the name of its run, so it is found without a record. If the run's volume is not mounted on this machine, a
reader Job runs the same verb in the cluster, and its log is read through the API server.
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

DELETE_S = 120  # to delete an ended RayJob: its finalizer stops the job again
READER_START_S = 180  # assumption: time of an image pull

# KubeRay v1.7.0, rayjob_types.go: JobDeploymentStatus
_WAITING = {
    "": "KubeRay has not processed it yet: check that its operator is running",
    "Initializing": "its pods are being created",
    "Waiting": "waiting for a job id",
    "Suspended": "suspended: Kueue has not admitted it",
    "Retrying": "an attempt has ended; the cluster of the next one is being created",
}
_OVER = ("Complete", "Failed", "ValidationFailed")
_STARTING = ("PodInitializing", "ContainerCreating")


def check(manifests: Sequence[Manifest], namespace: str, context: str | None) -> None:
    """Validate all manifests on the API server; nothing is created. Raises ClusterUnavailable with its message."""
    _done(
        "apply --dry-run=server",
        _kubectl(namespace, context, "apply", "--dry-run=server", "-f", "-", given=kuberay.to_yaml(manifests)),
    )


def submit(manifests: Sequence[Manifest], name: str, namespace: str, context: str | None) -> None:
    """Apply all manifests, after deleting an ended RayJob of the same name. Raises ClusterUnavailable."""
    if _rayjob(name, namespace, context):
        deleted = _kubectl(namespace, context, "delete", "rayjob", name, f"--timeout={DELETE_S}s", wait_s=DELETE_S + 10)
        _done("delete rayjob", deleted)
    _done("apply", _kubectl(namespace, context, "apply", "-f", "-", given=kuberay.to_yaml(manifests)))


def ask(name: str, namespace: str, context: str | None) -> JobStatus:
    """The status of a RayJob, with the reason if it waits. Raises ClusterUnavailable if kubectl cannot be read."""
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
        details = ": ".join(text for text in (status.get("reason", ""), status.get("message", "")) if text)
        return JobStatus("gone", f"KubeRay reports {state}{f': {details}' if details else ''}")
    return JobStatus("running", state.lower())


def stop(name: str, namespace: str, context: str | None, *, save: bool) -> str:
    """Delete the RayJob and describe what happens. Raises ClusterUnavailable.

    KubeRay stops the driver, which has the profile's notice to save. Without `save`, the pods are deleted at once.
    """
    if not _rayjob(name, namespace, context):
        return f"there is no RayJob {name} in namespace {namespace}; nothing to stop"
    _done("delete rayjob", _kubectl(namespace, context, "delete", "rayjob", name, "--wait=false"))
    if save:
        return f"RayJob {name} is being deleted: the run saves and exits, and KubeRay does not restart it"
    pods = ("delete", "pods", f"--selector={RUN_LABEL}={name}", "--grace-period=1", "--wait=false")
    _done("delete pods", _kubectl(namespace, context, *pods))
    return f"RayJob {name} and its pods are deleted; the newest checkpoint remains"


def read(
    spec: RunSpec, profile: KubernetesProfile, arguments: Sequence[str], context: str | None, *, live: bool = False
) -> str:
    """The output of `launcher ARGUMENTS` in a pod that mounts the run's volume. `live`: print it, return nothing.

    Raises ClusterUnavailable.
    """
    namespace = profile.namespace
    manifest = kuberay.reader_job(spec, profile, arguments)
    created = _kubectl(namespace, context, "create", "-f", "-", "-o", "name", given=kuberay.to_yaml([manifest]))
    _done("create job", created)
    job = created.out.strip()
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
    """The RayJob; empty if there is none. Raises ClusterUnavailable."""
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
    """The output as JSON; empty if there is none. Raises ClusterUnavailable if it is not JSON."""
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
