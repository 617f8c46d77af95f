"""Rules for the pods of a RayJob: times that fit each other, amounts that agree, Pod Security, names that are taken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.errors import Mismatch
from cluster.kubernetes.names import num_bytes
from cluster.kubernetes.pods import RUN_LABEL
from cluster.kubernetes.yaml import Manifest

# KubeRay appends these to every Ray container (pod.go): another of the same name would be there twice.
KUBERAY_VARIABLES = (
    "RAY_CLUSTER_NAME",
    "RAY_CLUSTER_NAMESPACE",
    "RAY_CLOUD_INSTANCE_ID",
    "RAY_NODE_TYPE_NAME",
    "KUBERAY_GEN_RAY_START_CMD",
    "FQ_RAY_IP",
    "RAY_IP",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
)
_GROUP_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
TOPOLOGIES = ("podset-required-topology", "podset-preferred-topology", "podset-unconstrained-topology")
_VOLUMES = ("configMap", "secret", "projected", "downwardAPI", "emptyDir", "persistentVolumeClaim", "ephemeral")


def run_of(template: Manifest) -> str | None:
    """The run that a pod template belongs to, by our own label."""
    labels: dict[str, str] = template.get("metadata", {}).get("labels", {})
    return labels.get(RUN_LABEL)


def matches(selector: Manifest, template: Manifest) -> bool:
    """Whether a label selector (matchLabels, and matchExpressions with In) takes the template's pods."""
    labels = template.get("metadata", {}).get("labels", {})
    return all(labels.get(label) == value for label, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
    )


def pod_problems(job: Manifest) -> Iterator[Mismatch]:
    """What is wrong with the pods of a RayJob's spec."""
    cluster = job.get("rayClusterSpec", {})
    where = "RayJob.spec.rayClusterSpec"
    groups = [(f"{where}.headGroupSpec", cluster["headGroupSpec"])]
    groups += [(f"{where}.workerGroupSpecs.{group['groupName']}", group) for group in cluster["workerGroupSpecs"]]
    for key, group in groups:
        containers = group["template"]["spec"].get("containers", [])
        if not containers:
            yield Mismatch("", f"{key}.template.spec.containers", "there are none", "Ray's container first")
            continue
        yield from _start_parameters(key, group, containers[0])
        yield from _ray_container(key, containers[0])
        yield from _times(key, group["template"]["spec"], containers[0])
        yield from _memory(key, group, group["template"]["spec"], containers[0])
        yield from _topology(key, group["template"]["metadata"].get("annotations", {}))
        yield from _pod("", key, group["template"]["spec"])
    ports = [port.get("name") for port in groups[0][1]["template"]["spec"]["containers"][0].get("ports", [])]
    if ports and "dashboard" not in ports:
        allowed = "a port named dashboard among them, or none: else the job stays in Initializing"
        yield Mismatch("", f"{where}.headGroupSpec...ports", f"found {', '.join(map(str, ports))}", allowed)
    if "submitterPodTemplate" in job:
        submitter = job["submitterPodTemplate"]["spec"]
        if submitter.get("restartPolicy") not in ("Never", "OnFailure"):
            found = f"found {submitter.get('restartPolicy')}"
            yield Mismatch("", "RayJob.spec.submitterPodTemplate.spec.restartPolicy", found, "Never or OnFailure")
        yield from _pod("", "RayJob.spec.submitterPodTemplate", submitter)


def _start_parameters(key: str, group: Manifest, container: Manifest) -> Iterator[Mismatch]:
    parameters = group.get("rayStartParams", {})
    for name, value in parameters.items():
        if not isinstance(value, str):
            yield Mismatch("", f"{key}.rayStartParams.{name}", f"found {value!r}", "text: quote it")
    both = [name for name in _GROUP_PARAMETERS if name in parameters and "resources" in group]
    if both or "labels" in parameters:
        yield Mismatch("", f"{key}.rayStartParams", "a value that the group's own field has", "one of the two")
    gpus = {name: int(count) for name, count in _limits(container).items() if _is_gpu(name)}
    if len(gpus) > 1:
        yield Mismatch("", f"{key}...limits", f"found {', '.join(gpus)}", "one kind of GPU a container")
    told = int(parameters.get("num-gpus", sum(gpus.values())))
    if gpus and told != sum(gpus.values()):
        allowed = f"{sum(gpus.values())}, the GPUs of its container"
        yield Mismatch("", f"{key}.rayStartParams.num-gpus", f"found {told}", allowed)


def _ray_container(key: str, container: Manifest) -> Iterator[Mismatch]:
    names = [variable["name"] for variable in container.get("env", [])]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Mismatch("", f"{key}...env", f"{name} is there twice", "each variable once")
    for name in sorted(set(names) & set(KUBERAY_VARIABLES)):
        yield Mismatch("", f"{key}...env", f"found {name}", "nothing: KubeRay sets it")
    requests = container.get("resources", {}).get("requests", {})
    for name, amount in _limits(container).items():
        if "/" in name and (requests.get(name, amount) != amount or not str(amount).isdecimal()):
            allowed = "whole numbers, the same in requests and limits"
            yield Mismatch("", f"{key}...resources.{name}", f"found {requests.get(name)} and {amount}", allowed)


def _times(key: str, pod: Manifest, container: Manifest) -> Iterator[Mismatch]:
    grace = pod.get("terminationGracePeriodSeconds", 30)  # Kubernetes' and Ray's own 30 s are a race
    values = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
    drain = float(values.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30))
    if grace <= drain:
        allowed = f"more than Ray's drain of {drain:g} s: SIGKILL would come in the middle of a save"
        yield Mismatch("", f"{key}.template.spec.terminationGracePeriodSeconds", f"found {grace}", allowed)


def _memory(key: str, group: Manifest, pod: Manifest, container: Manifest) -> Iterator[Mismatch]:
    shared = {mount["name"] for mount in container.get("volumeMounts", []) if mount["mountPath"] == "/dev/shm"}
    sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod.get("volumes", []) if volume["name"] in shared]
    if not sizes or "memory" not in _limits(container):
        yield Mismatch("", f"{key}...volumeMounts", "no /dev/shm, or no memory limit", "both")
        return
    store = int(group.get("rayStartParams", {}).get("object-store-memory", 0))
    sizes_in_order = [store, num_bytes(sizes[0]), num_bytes(_limits(container)["memory"])]
    if store < 1 or not sizes_in_order[0] < sizes_in_order[1] < sizes_in_order[2]:
        allowed = "object-store-memory < /dev/shm < the memory limit: each lies within the next"
        yield Mismatch("", f"{key}...sizeLimit", f"found {sizes_in_order} bytes", allowed)


def _topology(key: str, annotations: Mapping[str, str]) -> Iterator[Mismatch]:
    kueue = {name.removeprefix("kueue.x-k8s.io/") for name in annotations if name.startswith("kueue.x-k8s.io/")}
    if len(kueue & set(TOPOLOGIES)) > 1:
        yield Mismatch("", f"{key}...annotations", "more than one topology", f"one of {', '.join(TOPOLOGIES)}")
    if len(kueue & {"podset-slice-required-topology", "podset-slice-size"}) == 1:
        yield Mismatch("", f"{key}...annotations", "half of a slice", "slice-required-topology with slice-size")


def _pod(place: str, key: str, pod: Manifest) -> Iterator[Mismatch]:
    """Mounts that are there, and Pod Security "restricted" but for RDMA's IPC_LOCK and the host's network."""
    volumes = [volume["name"] for volume in pod.get("volumes", [])]
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        yield Mismatch(place, f"{key}...securityContext", "it may be root", "runAsNonRoot, and a user above 0")
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield Mismatch(place, f"{key}...securityContext.seccompProfile", "missing", "RuntimeDefault")
    if pod.get("automountServiceAccountToken") is not False:
        yield Mismatch(place, f"{key}...automountServiceAccountToken", "a token is mounted", "false")
    for volume in pod.get("volumes", []):
        if not any(kind in volume for kind in _VOLUMES):
            yield Mismatch(place, f"{key}...volumes.{volume['name']}", "a kind that is refused", ", ".join(_VOLUMES))
    for container in (*pod.get("containers", []), *pod.get("initContainers", [])):
        yield from _container(f"{key}...{container['name']}", container, volumes)


def _container(key: str, container: Mapping[str, Any], volumes: list[str]) -> Iterator[Mismatch]:
    security = container.get("securityContext", {})
    capabilities = security.get("capabilities", {})
    if security.get("allowPrivilegeEscalation") is not False or capabilities.get("drop") != ["ALL"]:
        yield Mismatch("", f"{key}.securityContext", "privileges are left", "no escalation, all capabilities dropped")
    if not set(capabilities.get("add", [])) <= {"IPC_LOCK", "NET_BIND_SERVICE"}:
        yield Mismatch("", f"{key}.securityContext.capabilities", f"found {capabilities['add']}", "IPC_LOCK, for RDMA")
    paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    for mount in container.get("volumeMounts", []):
        path = mount["mountPath"]
        if mount["name"] not in volumes:
            yield Mismatch("", f"{key}.volumeMounts", f'found "{mount["name"]}"', f"one of {', '.join(volumes)}")
        if ":" in path or not path.startswith("/") or paths.count(path) > 1:
            yield Mismatch("", f"{key}.volumeMounts", f'found "{path}"', "an absolute path without :, once")


def _limits(container: Mapping[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = container.get("resources", {}).get("limits", {})
    return limits


def _is_gpu(resource: str) -> bool:
    return resource.endswith("gpu") or re.fullmatch(r"nvidia\.com/mig-[0-9a-z.+-]+", resource) is not None
