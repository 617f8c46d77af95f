"""The pods of a run on Kubernetes, as data: Ray's head and workers, KubeRay's submitter, and readers of the volume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.kubernetes.deadlines import GRACE_MARGIN_S, drain_s, grace_s, notice_s
from cluster.kubernetes.names import literal, num_bytes, quantity, run_name
from cluster.kubernetes.yaml import Manifest
from cluster.profile import KubernetesProfile, Pod, Volume
from cluster.spec import RunSpec

# Labels of the run. KubeRay's labels have the name of the RayCluster, which changes with every attempt.
RUN_LABEL = "resnet-launcher/run"
ROLE_LABEL = "resnet-launcher/role"  # head, worker, submitter, reader
RAY_ROLES = ("head", "worker")

CONFIG_FOLDER = "/etc/resnet-launcher"
CONFIG_FILE = f"{CONFIG_FOLDER}/config.yaml"
SUBMISSION_VARIABLE = "LAUNCHER_SUBMISSION"  # the same in all of KubeRay's retries of one submission

DASHBOARD_PORT = 8265
AGENT_PORT = 52365  # KubeRay v1.7.0, constant.go: health endpoint of a Ray node, Ray 2.53 and later
GCS_PORT = 6379

OBJECT_STORE_BYTES = 200_000_000  # Ray transports configs and metrics, never images; its minimum is 75 MB
HEAD_SHM = "256Mi"  # more than the object store
TMP_SIZE = "10Gi"  # assumption: enough for Ray's logs of a run

_PROBE_TIMEOUT_S = 10  # with KubeRay's default of 2 s, a busy node fails (kuberay #4133)
_LIVENESS_MISSES = 60  # of 10 s each: ten minutes, as KubeRay's default


def num_pods(spec: RunSpec, profile: KubernetesProfile) -> int:
    """Number of worker pods, including spares."""
    return spec.nodes + profile.spare_nodes


def labels(spec: RunSpec, profile: KubernetesProfile, role: str | None = None) -> dict[str, str]:
    """Labels of all objects of the run; with a role, of its pods."""
    own = {RUN_LABEL: run_name(spec.name)} | ({} if role is None else {ROLE_LABEL: role})
    return {**profile.labels, **own}


def storage_mount(spec: RunSpec, profile: KubernetesProfile) -> str:
    """The mount path of the storage volume."""
    return profile.storage.mount or spec.storage


def data_mount(spec: RunSpec, profile: KubernetesProfile) -> str | None:
    """The mount path of the data volume; None if there is none."""
    return None if profile.data is None else profile.data.mount or spec.data_root


def storage_claim(spec: RunSpec, profile: KubernetesProfile) -> str:
    """The name of the claim with the run directory."""
    return profile.storage.claim or f"{run_name(spec.name)}-storage"


def service_account(spec: RunSpec, profile: KubernetesProfile) -> str:
    """The name of the pods' ServiceAccount."""
    return profile.service_account or run_name(spec.name)


def head(spec: RunSpec, profile: KubernetesProfile, submission: str) -> Manifest:
    """The pod template of Ray's head, which runs the driver and no worker."""
    container = _ray_container(spec, profile, "ray-head")
    container["env"] += [
        _variable(SUBMISSION_VARIABLE, submission),
        _variable("RAY_JOB_STOP_WAIT_TIME_S", str(notice_s(spec, profile))),  # Ray's default: 3 s
    ]
    container["ports"] = [
        {"name": "gcs-server", "containerPort": GCS_PORT},
        {"name": "dashboard", "containerPort": DASHBOARD_PORT},
    ]
    container["resources"] = _resources({"cpu": profile.head.cpus, "memory": profile.head.memory})
    container["volumeMounts"].append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
    pod = _pod(spec, profile, container)
    pod["volumes"] += [_shm(HEAD_SHM), {"name": "config", "configMap": {"name": config_name(spec)}}]
    return _template(spec, profile, "head", pod, profile.head)


def worker(spec: RunSpec, profile: KubernetesProfile) -> Manifest:
    """The pod template of the workers of one node."""
    container = _ray_container(spec, profile, "ray-worker")
    memory = spec.workers_per_node * num_bytes(profile.worker_memory) + num_bytes(profile.shm_size)
    amounts = {"cpu": str(spec.cpus_per_node), "memory": quantity(memory)}
    if spec.gpus_per_node:
        amounts[profile.gpu_resource] = str(spec.gpus_per_node)
    if profile.rdma_resource is not None:
        amounts[profile.rdma_resource] = str(profile.rdma_count)
        container["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]  # RDMA pins memory
    container["resources"] = _resources(amounts)
    pod = _pod(spec, profile, container)
    pod["volumes"].append(_shm(profile.shm_size))
    if profile.runtime_class is not None:
        pod["runtimeClassName"] = profile.runtime_class
    return _template(spec, profile, "worker", pod, profile)


def submitter(spec: RunSpec, profile: KubernetesProfile) -> Manifest:
    """The pod template of KubeRay's submitter, which starts the driver on the head and prints its log."""
    container = _container(profile, "ray-job-submitter", [_variable("HOME", "/tmp")])
    container["resources"] = _resources({"cpu": profile.submitter.cpus, "memory": profile.submitter.memory})
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    pod = _base_pod(spec, profile, container, "Never", GRACE_MARGIN_S)
    pod["volumes"] = [_tmp()]
    return _template(spec, profile, "submitter", pod, profile.submitter)


def reader(spec: RunSpec, profile: KubernetesProfile, arguments: Sequence[str], writes: bool) -> Manifest:
    """The pod template of `launcher ARGUMENTS` with the run's storage; without a shell, Ray or secrets."""
    container = _container(profile, "reader", [_variable("HOME", "/tmp"), _variable("PYTHONUNBUFFERED", "1")])
    container["command"] = ["python", "-m", "launcher"]
    container["args"] = [literal(argument) for argument in arguments]
    container["resources"] = _resources({"cpu": profile.submitter.cpus, "memory": profile.submitter.memory})
    storage = _mount("storage", storage_mount(spec, profile), profile.storage)
    container["volumeMounts"] = [
        {"name": "tmp", "mountPath": "/tmp"},
        storage if writes else {**storage, "readOnly": True},
    ]
    pod = _base_pod(spec, profile, container, "Never", GRACE_MARGIN_S)
    pod["volumes"] = [_tmp(), _claim("storage", storage_claim(spec, profile), read_only=False)]
    return _template(spec, profile, "reader", pod, profile.submitter)


def config_name(spec: RunSpec) -> str:
    """The name of the ConfigMap. The map is immutable, so the name depends on the content."""
    return f"{run_name(spec.name)}-config-{hashlib.sha256(spec.config.encode()).hexdigest()[:8]}"


def variables(spec: RunSpec, profile: KubernetesProfile) -> dict[str, str]:
    """Environment variables of Ray's containers, without those from Secrets."""
    fixed = {
        "HOME": "/tmp",  # the root is read-only, and Ray and its libraries write files below HOME
        "PYTHONUNBUFFERED": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_s(spec, profile)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_num_workers_soft_limit": "64",  # idle processes, which replace failed workers, although no CPU is free
        "RAY_prestart_worker_first_driver": "0",
    }
    return fixed | profile.network.variables | profile.environment


def _ray_container(spec: RunSpec, profile: KubernetesProfile, name: str) -> Manifest:
    environment = [_variable(variable, value) for variable, value in variables(spec, profile).items()]
    environment += [
        {"name": entry.variable, "valueFrom": {"secretKeyRef": {"name": entry.secret, "key": entry.key}}}
        for entry in profile.secrets
    ]
    container = _container(profile, name, environment)
    probe = {
        "httpGet": {"path": "/api/healthz", "port": AGENT_PORT},
        "timeoutSeconds": _PROBE_TIMEOUT_S,
        "initialDelaySeconds": 10,
    }
    container["livenessProbe"] = {**probe, "periodSeconds": 10, "failureThreshold": _LIVENESS_MISSES}
    container["readinessProbe"] = {**probe, "periodSeconds": 5, "failureThreshold": 10}
    container["volumeMounts"] = [
        {"name": "shared-mem", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
        _mount("storage", storage_mount(spec, profile), profile.storage),
    ]
    data = data_mount(spec, profile)
    if profile.data is not None and data is not None:
        container["volumeMounts"].append({**_mount("data", data, profile.data), "readOnly": True})
    return container


def _container(profile: KubernetesProfile, name: str, environment: list[Manifest]) -> Manifest:
    return {
        "name": name,
        "image": profile.image,
        "imagePullPolicy": profile.image_pull_policy,
        "env": environment,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _pod(spec: RunSpec, profile: KubernetesProfile, container: Manifest) -> Manifest:
    pod = _base_pod(spec, profile, container, "Always", grace_s(spec, profile))
    pod["volumes"] = [_tmp(), _claim("storage", storage_claim(spec, profile), read_only=False)]
    if profile.data is not None and profile.data.claim is not None:
        pod["volumes"].append(_claim("data", profile.data.claim, read_only=True))
    if profile.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return pod


def _base_pod(spec: RunSpec, profile: KubernetesProfile, container: Manifest, restart: str, grace: int) -> Manifest:
    pod: Manifest = {
        "serviceAccountName": service_account(spec, profile),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # no variables for the services of the namespace
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": grace,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": profile.user_id,
            "runAsGroup": profile.group_id,
            "fsGroup": profile.group_id,
            "fsGroupChangePolicy": "OnRootMismatch",  # do not walk a volume of a million images at each start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if profile.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in profile.image_pull_secrets]
    if profile.priority_class is not None:
        pod["priorityClassName"] = profile.priority_class
    return pod


def _template(
    spec: RunSpec, profile: KubernetesProfile, role: str, pod: Manifest, settings: Pod | KubernetesProfile
) -> Manifest:
    """The pod with the `settings` of its role: those of the workers are keys of the profile itself."""
    metadata: dict[str, Any] = {"labels": labels(spec, profile, role)}
    if settings.annotations:
        metadata["annotations"] = dict(settings.annotations)
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        given = [vars(toleration).items() for toleration in settings.tolerations]
        pod["tolerations"] = [{key: value for key, value in items if value is not None} for items in given]
    return {"metadata": metadata, "spec": pod}


def _resources(amounts: Mapping[str, str]) -> Manifest:
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _variable(name: str, value: str) -> Manifest:
    return {"name": name, "value": literal(value)}


def _mount(name: str, folder: str, volume: Volume) -> Manifest:
    mount = {"name": name, "mountPath": folder}
    return mount if volume.sub_path is None else {**mount, "subPath": volume.sub_path}


def _claim(name: str, claim: str, *, read_only: bool) -> Manifest:
    source: Manifest = {"claimName": claim}
    return {"name": name, "persistentVolumeClaim": {**source, "readOnly": True} if read_only else source}


def _tmp() -> Manifest:
    return {"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}}


def _shm(size: str) -> Manifest:
    return {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": size}}
