"""Rules that Kubernetes' schemas do not hold: KubeRay's, Kueue's, and those between one manifest and another.

Most of them show only after submission, as a RayJob that fails or stays where it is. Read in KubeRay v1.7.0
(validation.go, pod.go, rayjob_controller.go and its CEL rules) and in Kueue 0.19 (pkg/controller/jobs/rayjob).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from cluster.errors import Mismatch
from cluster.kubernetes.lint_pods import matches, pod_problems, run_of
from cluster.kubernetes.names import (
    MAX_RUN_NAME,
    is_label,
    is_label_value,
    is_object_name,
    is_qualified,
    is_service_name,
)
from cluster.kubernetes.pods import DASHBOARD_PORT, RUN_LABEL
from cluster.kubernetes.yaml import Manifest

_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_SHELL_SIGNS = re.compile(r"[^A-Za-z0-9 _./:=,@%+-]")
_QUEUE = "kueue.x-k8s.io/queue-name"
_MAX_GROUPS = 16  # Kueue 0.19: 18 pod sets, of which the head and the submitter are two
_FIRST_WITH_TOKENS = (2, 52)
_ALPHA = ("networkPolicy", "tlsOptions", "historyServerOptions")  # refused while their gates are off
_MAX_CONFIG_BYTES = 2**20  # Kubernetes' limit for a ConfigMap


def lint(manifests: Sequence[Manifest]) -> list[Mismatch]:
    """Everything that is wrong with a run's manifests; keys begin with the kind: RayJob.spec.backoffLimit."""
    found = [problem for manifest in manifests for problem in _metadata(manifest)]
    namespaces = sorted({str(manifest["metadata"].get("namespace")) for manifest in manifests})
    if len(namespaces) > 1:
        found.append(Mismatch("", "metadata.namespace", f"found {', '.join(namespaces)}", "one namespace for all"))
    for manifest in manifests:
        if manifest["kind"] == "RayJob":
            found += _job(manifest["spec"], manifest["metadata"].get("labels", {}))
            found += pod_problems(manifest["spec"])
            found += _beside(manifest["spec"], manifests)
        elif manifest["kind"] == "ConfigMap":
            size = sum(len(text.encode()) for text in manifest["data"].values())
            if size >= _MAX_CONFIG_BYTES:
                found.append(Mismatch("", "ConfigMap.data", f"{size} bytes", f"below {_MAX_CONFIG_BYTES}"))
    return found


def _metadata(manifest: Manifest) -> Iterator[Mismatch]:
    kind, metadata = manifest["kind"], manifest["metadata"]
    name = metadata.get("name", metadata.get("generateName", "") + "x")
    if kind == "RayJob":
        if not is_service_name(name) or len(name) > MAX_RUN_NAME:
            allowed = f"at most {MAX_RUN_NAME} of a-z, 0-9 and -, a letter first"
            yield Mismatch("", f"{kind}.metadata.name", f'found "{name}"', allowed)
    elif not is_object_name(name):
        yield Mismatch("", f"{kind}.metadata.name", f'found "{name}"', "lower-case letters, digits, - and .")
    namespace = metadata.get("namespace")
    if namespace is None or not is_label(namespace):
        yield Mismatch("", f"{kind}.metadata.namespace", f"found {namespace}", "a DNS label of 63 characters at most")
    yield from _keys(f"{kind}.metadata", metadata)


def _keys(where: str, metadata: Mapping[str, Any]) -> Iterator[Mismatch]:
    for label, value in metadata.get("labels", {}).items():
        if not is_qualified(label) or not isinstance(value, str) or not is_label_value(value):
            allowed = "63 letters, digits, - _ and . with a letter or digit at both ends"
            yield Mismatch("", f"{where}.labels.{label}", f'found "{value}"', allowed)
    for annotation, value in metadata.get("annotations", {}).items():
        if not is_qualified(annotation) or not isinstance(value, str):
            yield Mismatch("", f"{where}.annotations.{annotation}", f'found "{value}"', "domain/name, and text")


def _job(job: Manifest, labels: Mapping[str, str]) -> Iterator[Mismatch]:
    def wrong(key: str, found: object, allowed: str) -> Mismatch:
        return Mismatch("", f"RayJob.spec.{key}", f"found {found}", allowed)

    mode, retries = job.get("submissionMode", _MODES[0]), job.get("backoffLimit", 0)
    shuts_down = job.get("shutdownAfterJobFinishes", False)
    if mode not in _MODES:  # KubeRay accepts it and submits nothing
        yield wrong("submissionMode", mode, ", ".join(_MODES))
    if ("rayClusterSpec" in job) == ("clusterSelector" in job):
        yield wrong("rayClusterSpec", "it with clusterSelector, or neither", "one of them")
    if retries < 0 or (retries and (mode == "InteractiveMode" or "clusterSelector" in job)):
        yield wrong("backoffLimit", retries, "0 up, and 0 with InteractiveMode or clusterSelector")
    if job.get("ttlSecondsAfterFinished", 0) < 0 or (job.get("ttlSecondsAfterFinished") and not shuts_down):
        yield wrong("ttlSecondsAfterFinished", job["ttlSecondsAfterFinished"], "0 up, with shutdownAfterJobFinishes")
    if not shuts_down and (job.get("suspend") or _QUEUE in labels):
        yield wrong("shutdownAfterJobFinishes", shuts_down, "true: a queue suspends jobs by deleting their cluster")
    if "suspend" in job:
        yield wrong("suspend", job["suspend"], "nothing: Kueue sets it, and without Kueue the job would wait for ever")
    if job.get("managedBy", _MANAGERS[0]) not in _MANAGERS:
        yield wrong("managedBy", job["managedBy"], " or ".join(_MANAGERS))
    if "deletionStrategy" in job and (shuts_down or _QUEUE in labels):
        yield wrong("deletionStrategy", "it with shutdownAfterJobFinishes or a queue", "shutdownAfterJobFinishes alone")
    if mode in ("SidecarMode", "HTTPMode") and {"submitterPodTemplate", "submitterConfig"} & job.keys():
        yield wrong("submitterPodTemplate", f"it with {mode}", "nothing: there is no submitter")
    yield from _deadlines(job)
    yield from _shell(job, mode)
    yield from _cluster(job.get("rayClusterSpec", {}), _QUEUE in labels)


def _deadlines(job: Manifest) -> Iterator[Mismatch]:
    """Without them a job stays in Initializing or Running for ever: an image that is missing, a head that is gone."""
    start, whole = job.get("preRunningDeadlineSeconds", 0), job.get("activeDeadlineSeconds", 0)
    if start < 1:
        yield Mismatch("", "RayJob.spec.preRunningDeadlineSeconds", f"found {start}", "seconds, from 1 up")
    if whole <= start:
        allowed = f"more than preRunningDeadlineSeconds ({start}): it covers the start too"
        yield Mismatch("", "RayJob.spec.activeDeadlineSeconds", f"found {whole}", allowed)


def _shell(job: Manifest, mode: str) -> Iterator[Mismatch]:
    """KubeRay pastes these into the submitter's shell."""
    entrypoint = job.get("entrypoint", "")
    if sign := _SHELL_SIGNS.search(entrypoint):
        allowed = "one plain command: letters, digits, spaces and _./:=,@%+-"
        yield Mismatch("", "RayJob.spec.entrypoint", f'found "{sign[0]}" in it', allowed)
    environment = job.get("runtimeEnvYAML", "")
    try:
        yaml.safe_load(environment)
    except yaml.YAMLError:
        yield Mismatch("", "RayJob.spec.runtimeEnvYAML", "it is not YAML", "a YAML mapping")
    if mode != "HTTPMode" and re.search(r"[$`]", environment):
        yield Mismatch("", "RayJob.spec.runtimeEnvYAML", "found $ or `, which a shell would expand", "neither")


def _cluster(cluster: Manifest, queued: bool) -> Iterator[Mismatch]:
    where = "RayJob.spec.rayClusterSpec"
    for key in ("upgradeStrategy", *_ALPHA):
        if key in cluster:
            yield Mismatch("", f"{where}.{key}", "it is set", "nothing: KubeRay 1.7 refuses the cluster")
    version = re.match(r"([0-9]+)\.([0-9]+)", str(cluster.get("rayVersion", "")))
    if cluster.get("authOptions", {}).get("mode") == "token" and (
        version is None or (int(version[1]), int(version[2])) < _FIRST_WITH_TOKENS
    ):
        yield Mismatch("", f"{where}.rayVersion", f"found {cluster.get('rayVersion')}", "2.52 or later, for tokens")
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield Mismatch("", f"{where}.authOptions.mode", "no token", "token: without it, who reaches a port runs code")
    if queued and cluster.get("enableInTreeAutoscaling"):
        yield Mismatch("", f"{where}.enableInTreeAutoscaling", "it with a queue", "nothing: Kueue refuses it")
    groups = cluster.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in groups]
    if len(set(names)) < len(names) or {"head", "submitter"} & set(names) or len(names) > _MAX_GROUPS:
        allowed = f"at most {_MAX_GROUPS} different names, none of them head or submitter"
        yield Mismatch("", f"{where}.workerGroupSpecs", f"found {', '.join(names)}", allowed)
    for group in groups:
        counts = [group.get(key) for key in ("replicas", "minReplicas", "maxReplicas")]
        if len(set(counts)) > 1 or not isinstance(counts[0], int) or counts[0] < 1:
            allowed = "three equal numbers from 1 up: Kueue counts replicas as written, and nothing scales a run"
            yield Mismatch("", f"{where}.workerGroupSpecs.replicas", f"found {counts}", allowed)


def _beside(job: Manifest, manifests: Sequence[Manifest]) -> Iterator[Mismatch]:
    """NetworkPolicy and PodDisruptionBudget against the pods that they are for, and names against what is there."""
    cluster = job.get("rayClusterSpec", {})
    ray_pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    counts = [1, *(group.get("replicas", 0) for group in cluster["workerGroupSpecs"])]
    submitters = [job["submitterPodTemplate"]] if "submitterPodTemplate" in job else []
    for template in (*ray_pods, *submitters):
        if run_of(template) is None:
            allowed = "a label of our own: the names in KubeRay's change with every attempt"
            yield Mismatch("", f"RayJob.spec...labels.{RUN_LABEL}", "missing", allowed)
        yield from _keys("RayJob.spec...metadata", template["metadata"])
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "PodDisruptionBudget":
            yield from _budget(spec, ray_pods, counts, submitters)
        elif manifest["kind"] == "NetworkPolicy":
            yield from _policy(spec, ray_pods, submitters)
    budgets = sum(manifest["kind"] == "PodDisruptionBudget" for manifest in manifests)
    if budgets > 1:
        yield Mismatch("", "PodDisruptionBudget", f"found {budgets}", "one: with two for a pod, no eviction succeeds")
    made = {(manifest["kind"], manifest["metadata"].get("name")) for manifest in manifests}
    for template in ray_pods:
        for volume in template["spec"]["volumes"]:
            name = volume.get("configMap", {}).get("name")
            if name is not None and ("ConfigMap", name) not in made:
                yield Mismatch("", "RayJob.spec...volumes.configMap", f'found "{name}"', "a ConfigMap that is there")


def _budget(
    spec: Manifest, ray_pods: Sequence[Manifest], counts: Sequence[int], submitters: Sequence[Manifest]
) -> Iterator[Mismatch]:
    covered = sum(count for pod, count in zip(ray_pods, counts, strict=True) if matches(spec["selector"], pod))
    least = spec.get("minAvailable")
    if "maxUnavailable" in spec or not isinstance(least, int):
        allowed = "minAvailable as a whole number: a RayCluster has no scale subresource"
        yield Mismatch("", "PodDisruptionBudget.spec", "maxUnavailable or a percentage", allowed)
    elif not 1 <= least <= covered:
        allowed = f"1 to {covered}, the pods that it selects"
        yield Mismatch("", "PodDisruptionBudget.spec.minAvailable", f"found {least}", allowed)
    if covered != sum(counts) or any(matches(spec["selector"], pod) for pod in submitters):
        allowed = f"all {sum(counts)} pods of Ray, and not the submitter"
        yield Mismatch("", "PodDisruptionBudget.spec.selector", f"it selects {covered} pods", allowed)


def _policy(spec: Manifest, ray_pods: Sequence[Manifest], submitters: Sequence[Manifest]) -> Iterator[Mismatch]:
    if not all(matches(spec["podSelector"], pod) for pod in ray_pods):
        yield Mismatch("", "NetworkPolicy.spec.podSelector", "it leaves pods of Ray out", "head and workers")
    rules = spec.get("ingress", [])
    own = [peer["podSelector"] for rule in rules if "ports" not in rule for peer in rule["from"] if len(peer) == 1]
    if not all(any(matches(selector, pod) for selector in own) for pod in ray_pods):
        allowed = "all ports between the run's own pods: Ray, gloo and NCCL choose theirs at random"
        yield Mismatch("", "NetworkPolicy.spec.ingress", "pods of Ray do not reach each other", allowed)
    dashboard = [
        peer
        for rule in rules
        for peer in rule["from"]
        if any(port.get("port") == DASHBOARD_PORT for port in rule.get("ports", []))
    ]
    if not any("namespaceSelector" in peer for peer in dashboard):
        allowed = f"KubeRay's operator on port {DASHBOARD_PORT}: without it the job fails after 300 s"
        yield Mismatch("", "NetworkPolicy.spec.ingress", "the operator is kept out", allowed)
    inside = [peer["podSelector"] for peer in dashboard if "namespaceSelector" not in peer]
    if not all(any(matches(selector, pod) for selector in inside) for pod in submitters):
        yield Mismatch("", "NetworkPolicy.spec.ingress", "the submitter is kept out", f"it on port {DASHBOARD_PORT}")
