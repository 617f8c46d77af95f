"""What KubeRay, Kueue and Pod Security require of the rendered manifests beyond their schemas.

Most violations show only after submission, as a RayJob that fails or stays where it is. Read in KubeRay v1.7.0
(validation.go, pod.go, rayjob_controller.go and its CEL rules) and in Kueue 0.19 (pkg/controller/jobs/rayjob).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cluster.kubernetes.names import (
    MAX_RUN_NAME,
    is_label,
    is_label_value,
    is_object_name,
    is_qualified,
    is_service_name,
    num_bytes,
)
from cluster.kubernetes.pods import DASHBOARD_PORT, RUN_LABEL

Manifest = dict[str, Any]

QUEUE = "kueue.x-k8s.io/queue-name"
VOLUMES = {"configMap", "secret", "projected", "downwardAPI", "emptyDir", "persistentVolumeClaim", "ephemeral"}


@pytest.fixture
def ray_job(rendered: list[Manifest]) -> Manifest:
    return next(manifest for manifest in rendered if manifest["kind"] == "RayJob")


@pytest.fixture
def job(ray_job: Manifest) -> Manifest:
    return ray_job["spec"]


@pytest.fixture
def groups(job: Manifest) -> list[Manifest]:
    """The head's group and the workers'."""
    cluster = job["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.fixture
def submitters(job: Manifest) -> list[Manifest]:
    return [job["submitterPodTemplate"]] if "submitterPodTemplate" in job else []


@pytest.fixture
def templates(groups: list[Manifest], submitters: list[Manifest]) -> list[Manifest]:
    return [*(group["template"] for group in groups), *submitters]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest["spec"] for manifest in manifests if manifest["kind"] == kind]


def matches(selector: Manifest, template: Manifest) -> bool:
    """Whether a label selector (matchLabels, and matchExpressions with In) selects the template's pods."""
    labels = template["metadata"]["labels"]
    return all(labels.get(label) == value for label, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
    )


def ray_container(group: Manifest) -> Manifest:
    return group["template"]["spec"]["containers"][0]


def containers(templates: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Each container with its pod."""
    for template in templates:
        for container in template["spec"]["containers"]:
            yield container, template["spec"]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_and_labels_are_valid_and_in_one_namespace(rendered: list[Manifest], templates: list[Manifest]) -> None:
    namespaces = {manifest["metadata"]["namespace"] for manifest in rendered}
    assert len(namespaces) == 1
    assert is_label(namespaces.pop())
    for manifest in rendered:
        name = manifest["metadata"]["name"]
        assert is_object_name(name)
        assert manifest["kind"] != "RayJob" or (is_service_name(name) and len(name) <= MAX_RUN_NAME)
    for metadata in [each["metadata"] for each in (*rendered, *templates)]:
        assert all(is_qualified(label) and is_label_value(value) for label, value in metadata["labels"].items())
        assert all(map(is_qualified, metadata.get("annotations", {})))


def test_a_mounted_config_map_is_rendered_and_below_the_size_limit(
    rendered: list[Manifest], templates: list[Manifest]
) -> None:
    maps = {manifest["metadata"]["name"]: manifest["data"] for manifest in rendered if manifest["kind"] == "ConfigMap"}
    volumes = [volume for template in templates for volume in template["spec"]["volumes"]]
    assert {volume["configMap"]["name"] for volume in volumes if "configMap" in volume} == set(maps)
    assert all(len(text.encode()) < 2**20 for data in maps.values() for text in data.values())


# ---- the RayJob ------------------------------------------------------------------------------------------------------


def test_the_job_owns_its_cluster_and_shuts_it_down(ray_job: Manifest, job: Manifest) -> None:
    assert job["submissionMode"] in ("K8sJobMode", "HTTPMode")  # KubeRay accepts a misspelt mode and submits nothing
    assert job["backoffLimit"] >= 0
    assert job["shutdownAfterJobFinishes"] is True  # a TTL needs it, and a queue suspends jobs by deleting the cluster
    assert job["ttlSecondsAfterFinished"] >= 0
    refused = {"clusterSelector", "suspend", "managedBy", "deletionStrategy"}  # suspend is Kueue's to set
    assert not refused & job.keys()
    if job["submissionMode"] == "HTTPMode":
        assert not {"submitterPodTemplate", "submitterConfig"} & job.keys()


def test_the_job_has_a_deadline_for_its_start_and_a_later_one_for_all(job: Manifest) -> None:
    """Without them a job stays in Initializing or Running without end: a missing image, a lost head."""
    assert 1 <= job["preRunningDeadlineSeconds"] < job["activeDeadlineSeconds"]


def test_a_shell_has_nothing_to_expand(job: Manifest) -> None:
    """KubeRay pastes both into the submitter's shell."""
    assert re.fullmatch(r"[A-Za-z0-9 _./:=,@%+-]+", job["entrypoint"])
    environment = job.get("runtimeEnvYAML", "{}")
    assert isinstance(yaml.safe_load(environment), dict)
    assert not re.search(r"[$`]", environment)


def test_the_cluster_needs_tokens_and_has_nothing_that_kuberay_refuses(ray_job: Manifest, job: Manifest) -> None:
    cluster = job["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    major, minor = map(int, cluster["rayVersion"].split(".")[:2])
    assert (major, minor) >= (2, 52)  # the first with tokens
    refused = {"upgradeStrategy", "networkPolicy", "tlsOptions", "historyServerOptions"}  # without their feature gates
    refused |= {"enableInTreeAutoscaling"} if QUEUE in ray_job["metadata"]["labels"] else set()
    assert not refused & cluster.keys()


def test_nothing_scales_the_worker_groups(job: Manifest) -> None:
    """Kueue counts `replicas` as they are written; head and submitter are two of its 18 pod sets."""
    groups = job["rayClusterSpec"]["workerGroupSpecs"]
    names = [group["groupName"] for group in groups]
    assert len(set(names)) == len(names) <= 16
    assert not {"head", "submitter"} & set(names)
    for group in groups:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] >= 1


# ---- pods ------------------------------------------------------------------------------------------------------------


def test_ray_is_started_with_the_amounts_of_its_container(groups: list[Manifest]) -> None:
    for group in groups:
        parameters, resources = group["rayStartParams"], ray_container(group)["resources"]
        assert all(isinstance(value, str) for value in parameters.values())
        assert "resources" not in group  # KubeRay refuses an amount in both places
        assert "labels" not in parameters
        gpus = {name: int(amount) for name, amount in resources["limits"].items() if re.search(r"gpu$|/mig-", name)}
        assert len(gpus) <= 1
        assert int(parameters["num-gpus"]) == sum(gpus.values())
        for name, amount in resources["limits"].items():
            if "/" in name:  # extended resources are whole numbers, the same in both
                assert amount.isdecimal()
                assert resources["requests"][name] == amount


def test_a_variable_is_set_once_and_not_by_kuberay(groups: list[Manifest]) -> None:
    appended = {"RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE", "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME"}
    appended |= {"KUBERAY_GEN_RAY_START_CMD", "FQ_RAY_IP", "RAY_IP", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    for group in groups:
        names = [variable["name"] for variable in ray_container(group)["env"]]
        assert len(set(names)) == len(names)
        assert not appended & set(names)


def test_the_grace_period_is_longer_than_rays_drain(groups: list[Manifest]) -> None:
    """Kubernetes' and Ray's defaults are both 30 s: SIGKILL could come in the middle of a save."""
    for group in groups:
        values = {variable["name"]: variable.get("value") for variable in ray_container(group)["env"]}
        drain_s = float(values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drain_s


def test_the_object_store_fits_into_shared_memory_and_that_into_the_limit(groups: list[Manifest]) -> None:
    for group in groups:
        pod, container = group["template"]["spec"], ray_container(group)
        [name] = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        [shm] = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == name]
        store = int(group["rayStartParams"]["object-store-memory"])
        assert 0 < store < num_bytes(shm) < num_bytes(container["resources"]["limits"]["memory"])


def test_the_head_names_its_dashboard_port(groups: list[Manifest]) -> None:
    """Or the job stays in Initializing."""
    assert "dashboard" in [port["name"] for port in ray_container(groups[0])["ports"]]


def test_the_submitter_is_not_restarted_without_end(submitters: list[Manifest]) -> None:
    assert all(template["spec"]["restartPolicy"] in ("Never", "OnFailure") for template in submitters)


def test_pods_satisfy_the_restricted_pod_security_standard(templates: list[Manifest]) -> None:
    """But for RDMA's IPC_LOCK."""
    for template in templates:
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(VOLUMES & volume.keys() for volume in pod["volumes"])
    for container, _ in containers(templates):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["securityContext"]["capabilities"].get("add", []) in ([], ["IPC_LOCK"])


def test_every_mount_has_a_volume_and_a_path_of_its_own(templates: list[Manifest]) -> None:
    for container, pod in containers(templates):
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert len(set(paths)) == len(paths)
        assert all(path.startswith("/") and ":" not in path for path in paths)
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


# ---- objects beside the RayJob ---------------------------------------------------------------------------------------


def test_every_pod_has_the_runs_label(templates: list[Manifest], ray_job: Manifest) -> None:
    """The names in KubeRay's own labels change with every attempt."""
    assert {template["metadata"]["labels"][RUN_LABEL] for template in templates} == {ray_job["metadata"]["name"]}


def test_one_disruption_budget_covers_all_pods_of_ray(
    rendered: list[Manifest], groups: list[Manifest], submitters: list[Manifest]
) -> None:
    """A RayCluster has no scale subresource, which maxUnavailable and percentages need. Two budgets block evictions."""
    [budget] = of_kind(rendered, "PodDisruptionBudget")
    assert all(matches(budget["selector"], group["template"]) for group in groups)
    assert not any(matches(budget["selector"], template) for template in submitters)
    assert budget["minAvailable"] == sum(group.get("replicas", 1) for group in groups)
    assert "maxUnavailable" not in budget


def test_the_network_policy_lets_in_what_the_run_needs(
    rendered: list[Manifest], groups: list[Manifest], submitters: list[Manifest]
) -> None:
    for policy in of_kind(rendered, "NetworkPolicy"):
        assert all(matches(policy["podSelector"], group["template"]) for group in groups)
        all_ports = [peer for rule in policy["ingress"] if "ports" not in rule for peer in rule["from"]]
        own = [peer["podSelector"] for peer in all_ports if peer.keys() == {"podSelector"}]
        assert all(any(matches(selector, group["template"]) for selector in own) for group in groups)
        [dashboard] = [rule for rule in policy["ingress"] if "ports" in rule]
        assert [port["port"] for port in dashboard["ports"]] == [DASHBOARD_PORT]
        assert any("namespaceSelector" in peer for peer in dashboard["from"])  # or the job fails after 300 s
        inside = [peer["podSelector"] for peer in dashboard["from"] if "namespaceSelector" not in peer]
        assert all(any(matches(selector, template) for selector in inside) for template in submitters)
