"""RayJobs on Kubernetes, through kubectl. No call needs the right to `exec` or to read a Secret.

A RayJob has the name of its run, so it is found without a record. If the run's volume is not mounted on this machine, a
reader Job runs the same verb in the cluster, and its log is read through the API server.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.kubernetes import manifests as kuberay
from cluster.kubernetes.pods import RUN_LABEL
from cluster.kubernetes.yaml import Manifest
from cluster.profile import KubernetesProfile
from cluster.spec import RunSpec
from launcher.errors import ClusterUnavailable
from launcher.places import programs
from launcher.places.programs import Answer, Lines, NotAnswered, PlaceUnavailable, call, call_once, stream
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
    _apply(manifests, namespace, context, "--dry-run=server")


def submit(manifests: Sequence[Manifest], name: str, namespace: str, context: str | None) -> None:
    """Apply all manifests, after deleting an ended RayJob of the same name.

    Raises ClusterUnavailable, with words about what was created.
    """
    is_applied = False
    try:
        if _rayjob(name, namespace, context):
            options = (f"--timeout={DELETE_S}s", "--ignore-not-found")
            _kubectl(namespace, context, "delete", "rayjob", *options, "--", name, wait_s=DELETE_S + 10)
        is_applied = True
        _apply(manifests, namespace, context)
    except PlaceUnavailable as error:
        is_applied = is_applied and (not isinstance(error, NotAnswered) or error.maybe_arrived)
        raise error.but(_outcome(name, namespace, context) if is_applied else "nothing was submitted") from None


def ask(name: str, namespace: str, context: str | None) -> JobStatus:
    """The status of a RayJob, with the reason if it waits. Raises ClusterUnavailable without an answer."""
    job = _rayjob(name, namespace, context)
    if not job:
        return JobStatus("gone", f"there is no RayJob {name} in namespace {namespace}")
    status = _part(job, "status")
    state = str(status.get("jobDeploymentStatus") or "")
    if state in _WAITING:
        why = _why_pods_wait(name, namespace, context) if state in ("Initializing", "Retrying") else ""
        why = _why_queued(name, namespace, context) if state == "Suspended" else why
        restarts = status.get("failed")
        again = f"restart {restarts}" if isinstance(restarts, int) and restarts > 0 else ""
        return JobStatus("pending", ": ".join(text for text in (again, _WAITING[state], why) if text))
    if state in _OVER:
        details = ": ".join(str(text) for text in (status.get("reason"), status.get("message")) if text)
        return JobStatus("gone", f"KubeRay reports {state}{f': {details}' if details else ''}")
    return JobStatus("running", state.lower())


def stop(name: str, namespace: str, context: str | None, *, save: bool) -> str:
    """Delete the RayJob and describe what happens. Raises ClusterUnavailable.

    KubeRay stops the driver, which has the profile's notice to save. Without `save`, the pods are deleted at once.
    """
    if not _rayjob(name, namespace, context):
        return f"there is no RayJob {name} in namespace {namespace}; nothing to stop"
    options = ("--wait=false", "--ignore-not-found")
    _kubectl(namespace, context, "delete", "rayjob", *options, "--", name)
    if save:
        return f"RayJob {name} is being deleted: the run saves and exits, and KubeRay does not restart it"
    pods = ("delete", "pods", f"--selector={RUN_LABEL}={name}", "--grace-period=1", "--wait=false")
    _kubectl(namespace, context, *pods)
    return f"RayJob {name} and its pods are deleted; the newest checkpoint remains"


def read(
    spec: RunSpec, profile: KubernetesProfile, arguments: Sequence[str], context: str | None, *, live: bool = False
) -> str:
    """The output of `launcher ARGUMENTS` in a pod that mounts the run's volume. `live`: print it, return nothing.

    Raises ClusterUnavailable.
    """
    with _reader(spec, profile, arguments, context) as logs:
        if live:
            if code := stream("kubectl", *_where(profile.namespace, context), *logs):
                raise PlaceUnavailable(
                    f"kubectl logs ended with exit code {code}: the output may be incomplete. The run is not affected: "
                    "use the same command again"
                )
            return ""
        wait_s = READER_START_S + kuberay.READER_DEADLINE_S
        return _kubectl(profile.namespace, context, *logs, wait_s=wait_s, limit_s=0.0)


def lines(spec: RunSpec, profile: KubernetesProfile, arguments: Sequence[str], context: str | None) -> Lines:
    """The lines of `read`, as they come. Raises ClusterUnavailable."""
    with _reader(spec, profile, arguments, context) as logs:
        yield from programs.lines("kubectl", *_where(profile.namespace, context), *logs)


@contextlib.contextmanager
def _reader(
    spec: RunSpec, profile: KubernetesProfile, arguments: Sequence[str], context: str | None
) -> Iterator[tuple[str, ...]]:
    """A reader Job that exists inside of the block; yields kubectl's arguments for its log."""
    manifest = kuberay.to_yaml([kuberay.reader_job(spec, profile, arguments)])
    job = _kubectl(profile.namespace, context, "create", "-f", "-", "-o", "name", given=manifest).strip()
    try:
        yield ("logs", "--follow", f"--pod-running-timeout={READER_START_S}s", "--", job)
    finally:
        with contextlib.suppress(ClusterUnavailable):  # it ends by itself
            _kubectl(profile.namespace, context, "delete", "--wait=false", "--", job, limit_s=0.0)


def _rayjob(name: str, namespace: str, context: str | None, limit_s: float | None = None) -> dict[str, Any]:
    """The RayJob; empty if there is none. Raises ClusterUnavailable."""
    named = ("--ignore-not-found", "-o", "json", "--", name)
    return _json(_kubectl(namespace, context, "get", "rayjob", *named, limit_s=limit_s))


def _apply(manifests: Sequence[Manifest], namespace: str, context: str | None, *options: str) -> None:
    text = kuberay.to_yaml(manifests)
    _kubectl(namespace, context, "apply", *options, "-f", "-", given=text, limit_s=programs.SUBMIT_LIMIT_S)


def _outcome(name: str, namespace: str, context: str | None) -> str:
    """What an `apply` with an error has done to the RayJob."""
    try:
        exists = _rayjob(name, namespace, context, limit_s=0.0)
    except ClusterUnavailable:
        return (
            f"RayJob {name} may have been created: `launcher status` finds it with --profile, once the cluster answers"
        )
    if exists:
        return f"RayJob {name} was created anyway: `launcher status` and `cancel` find it with --profile"
    return f"RayJob {name} was not created"


def _why_pods_wait(name: str, namespace: str, context: str | None) -> str:
    for pod in _items(namespace, context, "pods", f"--selector={RUN_LABEL}={name}"):
        status = _part(pod, "status")
        for condition in _list(status, "conditions"):
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return str(condition.get("message", condition.get("reason", "")))
        for container in [*_list(status, "initContainerStatuses"), *_list(status, "containerStatuses")]:
            waiting = _part(_part(container, "state"), "waiting")
            if waiting and waiting.get("reason") not in _STARTING:
                return f"{waiting.get('reason')}: {waiting.get('message', '')}".rstrip(": ")
    return ""


def _why_queued(name: str, namespace: str, context: str | None) -> str:
    for workload in _items(namespace, context, "workloads.kueue.x-k8s.io"):
        if any(owner.get("name") == name for owner in _list(_part(workload, "metadata"), "ownerReferences")):
            for condition in _list(_part(workload, "status"), "conditions"):
                if condition.get("type") == "QuotaReserved" and condition.get("status") == "False":
                    return str(condition.get("message", ""))
    return ""


def _items(namespace: str, context: str | None, *what: str) -> Iterator[dict[str, Any]]:
    """Objects that only explain; none if they cannot be read."""
    with contextlib.suppress(ClusterUnavailable):
        yield from _list(_json(_kubectl(namespace, context, "get", *what, "-o", "json", limit_s=0.0)), "items")


def _part(content: dict[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def _list(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = content.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _json(printed: str) -> dict[str, Any]:
    """The output as JSON; empty if there is none. Raises ClusterUnavailable if it is not a JSON object."""
    try:
        found = json.loads(printed or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PlaceUnavailable("kubectl: its output is not a JSON object", printed)
    return found


def _kubectl(
    namespace: str,
    context: str | None,
    *arguments: str,
    given: str | None = None,
    wait_s: float = programs.TIMEOUT_S,
    limit_s: float | None = None,
) -> str:
    """What kubectl prints. Raises PlaceUnavailable if it fails, NotAnswered without an answer of the cluster."""
    where = _where(namespace, context)
    try:
        answer = call("kubectl", *where, *arguments, given=given, timeout_s=wait_s, limit_s=limit_s)
    except NotAnswered as error:
        raise error.of(f"kubectl: {_cluster(context)}", error.asked_s, maybe_arrived=error.maybe_arrived) from None
    if answer.code != 0:
        what = " ".join(itertools.takewhile(lambda argument: argument[0] != "-", arguments))
        raise _refusal(what, answer, context)
    return answer.out


def _where(namespace: str, context: str | None) -> list[str]:
    return [*([] if context is None else [f"--context={context}"]), f"--namespace={namespace}"]


def _cluster(context: str | None) -> str:
    """The cluster that kubectl asks, for a message."""
    name = context or _current_context()
    return f"the cluster of context {name}" if name else "the cluster"  # in a pod


def _current_context() -> str:
    return call_once("kubectl", "config", "current-context").out.strip()


def _refusal(what: str, answer: Answer, context: str | None) -> PlaceUnavailable:
    """The error of `kubectl WHAT`."""
    unknown = re.search('context ".*" does not exist', answer.err)
    if unknown or ("localhost:8080" in answer.err and not (context or _current_context())):
        found = "kubectl has no current context" if context is None else f"kubectl has no context {context}"
        names = call_once("kubectl", "config", "get-contexts", "-o", "name").out.split()
        allowed = f"--context with one of {', '.join(names)}" if names else "KUBECONFIG with the path of a kubeconfig"
        return PlaceUnavailable(found, answer.text, allowed)
    if "localhost:8080" in answer.err:
        return NotAnswered(f"kubectl: {_cluster(context)}", answer.text, maybe_arrived=False)
    if "doesn't have a resource type" in answer.err:
        return PlaceUnavailable(f"kubectl {what}: {_cluster(context)} has no RayJobs", answer.text, "one with KubeRay")
    return PlaceUnavailable(f"kubectl {what}: {_cluster(context)} refuses it", answer.text)
