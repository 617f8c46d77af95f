"""A run on Kubernetes: a RayJob of KubeRay 1.7 and the objects that belong to it, as data.

    PersistentVolumeClaim   the run's storage, unless the profile names a claim
    ConfigMap               the resolved config
    ServiceAccount          without a token, because a run does not use the API server
    NetworkPolicy           allows traffic within the cluster, and from operator and submitter to the dashboard's port
    PodDisruptionBudget     draining a node waits for the end of the run
    RayJob                  the driver's command, and one RayCluster per attempt

The driver's command contains no value of the user, because KubeRay pastes it into a shell. Config, paths and variables
are passed as data. `docs/kubernetes.md` explains each object and has the sources of its rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from cluster.errors import PlaceError
from cluster.kubernetes import deadlines, pods
from cluster.kubernetes.names import num_bytes, quantity, run_name
from cluster.kubernetes.pods import DASHBOARD_PORT, RAY_ROLES, ROLE_LABEL, RUN_LABEL
from cluster.kubernetes.rules import problems
from cluster.kubernetes.yaml import Manifest, to_yaml
from cluster.profile import KubernetesProfile
from cluster.spec import RunSpec

__all__ = ["manifests", "reader_job", "submission_of", "to_yaml"]

TTL_S = 60  # time for the submitter to print the driver's last lines before the cluster is deleted
READER_TTL_S = 600  # time in which a reader's log can be fetched
READER_DEADLINE_S = 600  # assumption: time of an image pull and a minute of reading
SUBMITTER_RETRIES = 10  # the log stream may break; a restarted submitter attaches to the same driver


def manifests(
    spec: RunSpec,
    profile: KubernetesProfile,
    *,
    working_dir: str | None = None,
    submission: str | None = None,
) -> list[Manifest]:
    """All manifests of a run for `kubectl apply`, in the order of creation.

    `working_dir` is the address of a .zip with the user's code (https, s3, gs, or file on the storage volume).
    `submission` identifies this submission, so that KubeRay's retries do not repeat a final failure; the default is
    `submission_of`. `spec` must not have overrides or variants. Raises PlaceError with all mistakes.
    """
    assert not spec.overrides, "apply overrides to the config before"
    assert not spec.variants, "render each variant by itself"
    found = problems(spec, profile, working_dir=working_dir)
    if found:
        raise PlaceError(found)
    submission = submission or submission_of(spec, profile, working_dir)
    made: list[Manifest] = []
    if profile.storage.claim is None:
        made.append(_claim(spec, profile))
    made.append(_config_map(spec, profile))
    if profile.service_account is None:
        made.append(_service_account(spec, profile))
    if profile.network_policy:
        made.append(_network_policy(spec, profile))
    if profile.disruption_budget:
        made.append(_disruption_budget(spec, profile))
    made.append(_ray_job(spec, profile, working_dir, submission))
    return made


def submission_of(spec: RunSpec, profile: KubernetesProfile, working_dir: str | None = None) -> str:
    """An identifier of a submission: a hash of config, image and code."""
    content = json.dumps([spec.config, profile.image, working_dir])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def reader_job(
    spec: RunSpec, profile: KubernetesProfile, arguments: Sequence[str], *, writes: bool = False
) -> Manifest:
    """A Job that runs `launcher ARGUMENTS` with the run's volume mounted, read-only unless it `writes`.

    Its output is the log of its pod, so the verbs status, logs and report do not need the right to `exec`. Its name is
    generated: `kubectl create -f - -o name` creates it and prints the name.
    """
    name = run_name(spec.name)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "generateName": f"{name}-read-",
            "namespace": profile.namespace,
            "labels": pods.labels(spec, profile, "reader"),
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": READER_DEADLINE_S,
            "ttlSecondsAfterFinished": READER_TTL_S,
            "template": pods.reader(spec, profile, arguments, writes),
        },
    }


def _ray_job(spec: RunSpec, profile: KubernetesProfile, working_dir: str | None, submission: str) -> Manifest:
    replicas = pods.num_pods(spec, profile)
    start = {"object-store-memory": str(pods.OBJECT_STORE_BYTES)}
    cluster: Manifest = {
        "rayVersion": profile.ray_version,
        "authOptions": {"mode": "token"},  # KubeRay creates a new token per attempt, in a Secret
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", **start},  # no worker runs next to the driver
            "template": pods.head(spec, profile, submission),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": replicas,  # Kueue reads this number
                "minReplicas": replicas,
                "maxReplicas": replicas,
                "rayStartParams": {"num-cpus": str(spec.cpus_per_node), "num-gpus": str(spec.gpus_per_node), **start},
                "template": pods.worker(spec, profile),
            }
        ],
    }
    job: Manifest = {
        "submissionMode": profile.submission_mode,
        "entrypoint": _entrypoint(spec, profile),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_S,
        "backoffLimit": spec.max_requeues,
        "preRunningDeadlineSeconds": profile.start_timeout_s,
        "activeDeadlineSeconds": deadlines.active_s(spec, profile),
    }
    if working_dir is not None:
        job["runtimeEnvYAML"] = f"working_dir: {json.dumps(working_dir)}\n"
    if profile.submission_mode == "K8sJobMode":
        job["submitterConfig"] = {"backoffLimit": SUBMITTER_RETRIES}
        job["submitterPodTemplate"] = pods.submitter(spec, profile)
    job["rayClusterSpec"] = cluster
    metadata = _metadata(spec, profile, run_name(spec.name), "Trains the run. Deleting it stops the run")
    metadata["labels"] |= _queue_labels(profile)
    metadata["annotations"]["resnet-launcher/run-directory"] = f"{spec.storage.rstrip('/')}/{spec.name}"
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": job}


def _entrypoint(spec: RunSpec, profile: KubernetesProfile) -> str:
    """The driver's command, with a signal to save at the walltime: KubeRay's deadline would stop it without a save."""
    limit = f"timeout --foreground --preserve-status --signal=USR2 --kill-after={deadlines.drain_s(spec, profile)}"
    return f"{limit} {spec.walltime_s} python -m launcher.train {pods.CONFIG_FILE}"


def _queue_labels(profile: KubernetesProfile) -> dict[str, str]:
    labels = {
        "kueue.x-k8s.io/queue-name": profile.queue,
        "kueue.x-k8s.io/priority-class": profile.workload_priority_class,
    }
    return {label: value for label, value in labels.items() if value is not None}


def _claim(spec: RunSpec, profile: KubernetesProfile) -> Manifest:
    claim: Manifest = {
        "accessModes": [profile.storage.access_mode],
        "resources": {"requests": {"storage": quantity(num_bytes(profile.storage.size))}},
    }
    if profile.storage.storage_class is not None:
        claim["storageClassName"] = profile.storage.storage_class
    purpose = "The run directory: checkpoints, metrics, logs. Deleting it deletes them"
    metadata = _metadata(spec, profile, pods.storage_claim(spec, profile), purpose)
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}


def _config_map(spec: RunSpec, profile: KubernetesProfile) -> Manifest:
    metadata = _metadata(spec, profile, pods.config_name(spec), "The resolved config. The name depends on the content")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {"config.yaml": spec.config},
    }


def _service_account(spec: RunSpec, profile: KubernetesProfile) -> Manifest:
    metadata = _metadata(
        spec, profile, pods.service_account(spec, profile), "Has no permissions. Its pods get no token"
    )
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }


def _network_policy(spec: RunSpec, profile: KubernetesProfile) -> Manifest:
    run = {RUN_LABEL: run_name(spec.name)}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": profile.operator_namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    }
    submitter = {"podSelector": {"matchLabels": {**run, ROLE_LABEL: "submitter"}}}
    rules: list[Manifest] = [
        {"from": [{"podSelector": _ray_pods(spec)}]},  # all ports: Ray, gloo and NCCL use random ones
        {"from": [operator, submitter], "ports": [{"protocol": "TCP", "port": DASHBOARD_PORT}]},
    ]
    purpose = "Allows traffic within the cluster, and from operator and submitter to the dashboard's port"
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(spec, profile, run_name(spec.name), purpose),
        "spec": {"podSelector": {"matchLabels": run}, "policyTypes": ["Ingress"], "ingress": rules},
    }


def _disruption_budget(spec: RunSpec, profile: KubernetesProfile) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(spec, profile, run_name(spec.name), "Draining a node waits for the end of the run"),
        "spec": {
            # A number: percentages and maxUnavailable need a scale subresource, which a RayCluster does not have.
            "minAvailable": 1 + pods.num_pods(spec, profile),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",  # a pod that is not ready does not block a drain
            "selector": _ray_pods(spec),
        },
    }


def _ray_pods(spec: RunSpec) -> Manifest:
    """A label selector of head and workers."""
    return {
        "matchLabels": {RUN_LABEL: run_name(spec.name)},
        "matchExpressions": [{"key": ROLE_LABEL, "operator": "In", "values": list(RAY_ROLES)}],
    }


def _metadata(spec: RunSpec, profile: KubernetesProfile, name: str, purpose: str) -> Manifest:
    return {
        "name": name,
        "namespace": profile.namespace,
        "labels": pods.labels(spec, profile),
        "annotations": {"kubernetes.io/description": purpose},
    }
