"""cluster/kubernetes/lint.py and kubernetes_lint_pods.py: each rule finds the manifest that breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from cluster.kubernetes.lint import lint
from cluster.kubernetes.manifests import manifests

Parts = dict[str, Any]


def _parts(manifests: list[dict[str, Any]]) -> Parts:
    """The manifests by kind, and short ways into the RayJob."""
    parts: Parts = {manifest["kind"]: manifest for manifest in manifests}
    parts["metadata"], parts["job"] = parts["RayJob"]["metadata"], parts["RayJob"]["spec"]
    parts["cluster"] = parts["job"]["rayClusterSpec"]
    parts["head"], parts["group"] = parts["cluster"]["headGroupSpec"], parts["cluster"]["workerGroupSpecs"][0]
    parts["pod"] = parts["group"]["template"]["spec"]
    parts["container"] = parts["pod"]["containers"][0]
    return parts


def test_what_is_rendered_breaks_no_rule(rendered):
    assert lint(rendered) == []


def _set(part: str, key: str, value: object) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts[part][key] = value

    return change


def _drop(part: str, key: str) -> Callable[[Parts], None]:
    return lambda parts: parts[part].pop(key)


GROUPS = "RayJob.spec.rayClusterSpec.workerGroupSpecs"

CHANGES: dict[str, tuple[Callable[[Parts], Any], str]] = {
    "a name of 48 characters": (_set("metadata", "name", "a" * 48), "RayJob.metadata.name"),
    "a name with a dot": (_set("metadata", "name", "a.b"), "RayJob.metadata.name"),
    "a name that begins with a digit": (_set("metadata", "name", "1a"), "RayJob.metadata.name"),
    "another namespace": (_set("metadata", "namespace", "other"), "metadata.namespace"),
    "a label with a space": (lambda parts: parts["metadata"]["labels"].update(a="b c"), "RayJob.metadata.labels.a"),
    "a submission mode that is misspelt": (_set("job", "submissionMode", "K8SJobMode"), "RayJob.spec.submissionMode"),
    "two clusters": (_set("job", "clusterSelector", {"ray.io/cluster": "a"}), "RayJob.spec.rayClusterSpec"),
    "fewer than no retries": (_set("job", "backoffLimit", -1), "RayJob.spec.backoffLimit"),
    "a cluster that stays": (_set("job", "shutdownAfterJobFinishes", False), "RayJob.spec.ttlSecondsAfterFinished"),
    "suspended by hand": (_set("job", "suspend", True), "RayJob.spec.suspend"),
    "another manager": (_set("job", "managedBy", "me"), "RayJob.spec.managedBy"),
    "two ways to delete": (_set("job", "deletionStrategy", {}), "RayJob.spec.deletionStrategy"),
    "a submitter in HTTPMode": (_set("job", "submissionMode", "HTTPMode"), "RayJob.spec.submitterPodTemplate"),
    "no deadline for the start": (_drop("job", "preRunningDeadlineSeconds"), "RayJob.spec.preRunningDeadlineSeconds"),
    "no deadline at all": (_drop("job", "activeDeadlineSeconds"), "RayJob.spec.activeDeadlineSeconds"),
    "a deadline within the start": (_set("job", "activeDeadlineSeconds", 1800), "RayJob.spec.activeDeadlineSeconds"),
    "two commands": (_set("job", "entrypoint", "a; b"), "RayJob.spec.entrypoint"),
    "a variable in the command": (_set("job", "entrypoint", "a $HOME"), "RayJob.spec.entrypoint"),
    "code at an address with a variable": (_set("job", "runtimeEnvYAML", "a: $HOME"), "RayJob.spec.runtimeEnvYAML"),
    "an environment that is no YAML": (_set("job", "runtimeEnvYAML", "a: {"), "RayJob.spec.runtimeEnvYAML"),
    "no tokens": (_drop("cluster", "authOptions"), "RayJob.spec.rayClusterSpec.authOptions.mode"),
    "a Ray without tokens": (_set("cluster", "rayVersion", "2.9.0"), "RayJob.spec.rayClusterSpec.rayVersion"),
    "an upgrade strategy": (_set("cluster", "upgradeStrategy", {}), "RayJob.spec.rayClusterSpec.upgradeStrategy"),
    "KubeRay's own policy": (_set("cluster", "networkPolicy", {}), "RayJob.spec.rayClusterSpec.networkPolicy"),
    "autoscaling in a queue": (
        _set("cluster", "enableInTreeAutoscaling", True),
        "RayJob.spec.rayClusterSpec.enableInTreeAutoscaling",
    ),
    "a group called head": (_set("group", "groupName", "head"), GROUPS),
    "replicas left to the default": (
        _drop("group", "replicas"),
        GROUPS + ".replicas",
    ),
    "a range of replicas": (_set("group", "maxReplicas", 9), GROUPS + ".replicas"),
    "a number of CPUs that is no text": (
        lambda parts: parts["group"]["rayStartParams"].update({"num-cpus": 16}),
        GROUPS + ".workers.rayStartParams.num-cpus",
    ),
    "resources in two places": (
        _set("group", "resources", {"CPU": "1"}),
        GROUPS + ".workers.rayStartParams",
    ),
    "GPUs that Ray is not told of": (
        lambda parts: parts["group"]["rayStartParams"].update({"num-gpus": "1"}),
        GROUPS + ".workers.rayStartParams.num-gpus",
    ),
    "two kinds of GPU": (
        lambda parts: parts["container"]["resources"]["limits"].update({"nvidia.com/gpu": "1"}),
        GROUPS + ".workers...limits",
    ),
    "fewer GPUs asked for than allowed": (
        lambda parts: parts["container"]["resources"]["requests"].update({"nvidia.com/mig-3g.40gb": "1"}),
        GROUPS + ".workers...resources.nvidia.com/mig-3g.40gb",
    ),
    "a variable twice": (
        lambda parts: parts["container"]["env"].append({"name": "HOME", "value": "/"}),
        GROUPS + ".workers...env",
    ),
    "a variable of KubeRay's": (
        lambda parts: parts["container"]["env"].append({"name": "RAY_IP", "value": "::"}),
        GROUPS + ".workers...env",
    ),
    "a grace period within the drain": (
        _set("pod", "terminationGracePeriodSeconds", 75),
        GROUPS + ".workers.template.spec.terminationGracePeriodSeconds",
    ),
    "Kubernetes' own grace period": (
        _drop("pod", "terminationGracePeriodSeconds"),
        GROUPS + ".workers.template.spec.terminationGracePeriodSeconds",
    ),
    "an object store larger than /dev/shm": (
        lambda parts: parts["group"]["rayStartParams"].update({"object-store-memory": "2000000000"}),
        GROUPS + ".workers...sizeLimit",
    ),
    "no /dev/shm": (
        lambda parts: parts["container"]["volumeMounts"].pop(0),
        GROUPS + ".workers...volumeMounts",
    ),
    "a mount of what is not there": (
        lambda parts: parts["pod"]["volumes"].pop(1),
        GROUPS + ".workers...ray-worker.volumeMounts",
    ),
    "a folder of the host": (
        lambda parts: parts["pod"]["volumes"].append({"name": "dev", "hostPath": {"path": "/dev"}}),
        GROUPS + ".workers...volumes.dev",
    ),
    "root": (
        lambda parts: parts["pod"]["securityContext"].update(runAsUser=0),
        GROUPS + ".workers...securityContext",
    ),
    "no seccomp": (
        lambda parts: parts["pod"]["securityContext"].pop("seccompProfile"),
        GROUPS + ".workers...securityContext.seccompProfile",
    ),
    "a token": (
        _drop("pod", "automountServiceAccountToken"),
        GROUPS + ".workers...automountServiceAccountToken",
    ),
    "capabilities": (
        lambda parts: parts["container"]["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        GROUPS + ".workers...ray-worker.securityContext.capabilities",
    ),
    "escalation": (
        lambda parts: parts["container"]["securityContext"].pop("allowPrivilegeEscalation"),
        GROUPS + ".workers...ray-worker.securityContext",
    ),
    "half of a slice": (
        lambda parts: parts["group"]["template"]["metadata"]["annotations"].update(
            {"kueue.x-k8s.io/podset-slice-size": "2"}
        ),
        GROUPS + ".workers...annotations",
    ),
    "a head without its dashboard's port": (
        lambda parts: parts["head"]["template"]["spec"]["containers"][0]["ports"].pop(1),
        "RayJob.spec.rayClusterSpec.headGroupSpec...ports",
    ),
    "a submitter that starts over for ever": (
        lambda parts: parts["job"]["submitterPodTemplate"]["spec"].update(restartPolicy="Always"),
        "RayJob.spec.submitterPodTemplate.spec.restartPolicy",
    ),
    "pods without our label": (
        lambda parts: parts["group"]["template"]["metadata"]["labels"].pop("resnet-launcher/run"),
        "RayJob.spec...labels.resnet-launcher/run",
    ),
    "a budget in per cent": (
        lambda parts: parts["PodDisruptionBudget"]["spec"].update(minAvailable="50%"),
        "PodDisruptionBudget.spec",
    ),
    "a budget by what may be gone": (
        lambda parts: parts["PodDisruptionBudget"]["spec"].update(maxUnavailable=0),
        "PodDisruptionBudget.spec",
    ),
    "a budget of more pods than there are": (
        lambda parts: parts["PodDisruptionBudget"]["spec"].update(minAvailable=5),
        "PodDisruptionBudget.spec.minAvailable",
    ),
    "a budget that counts the submitter": (
        lambda parts: parts["PodDisruptionBudget"]["spec"]["selector"].pop("matchExpressions"),
        "PodDisruptionBudget.spec.selector",
    ),
    "a policy that keeps workers apart": (
        lambda parts: parts["NetworkPolicy"]["spec"]["ingress"].pop(0),
        "NetworkPolicy.spec.ingress",
    ),
    "a policy that keeps the operator out": (
        lambda parts: parts["NetworkPolicy"]["spec"]["ingress"][1]["from"].pop(0),
        "NetworkPolicy.spec.ingress",
    ),
    "a policy that keeps the submitter out": (
        lambda parts: parts["NetworkPolicy"]["spec"]["ingress"][1]["from"].pop(1),
        "NetworkPolicy.spec.ingress",
    ),
    "a policy for the head alone": (
        lambda parts: parts["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].update(
            {"resnet-launcher/role": "head"}
        ),
        "NetworkPolicy.spec.podSelector",
    ),
    "a config map of another name": (
        lambda parts: parts["ConfigMap"]["metadata"].update(name="other"),
        "RayJob.spec...volumes.configMap",
    ),
    "a config of a megabyte": (
        lambda parts: parts["ConfigMap"]["data"].update({"config.yaml": "x" * 2**20}),
        "ConfigMap.data",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_rule_finds(spec, everything, name):
    changed = copy.deepcopy(manifests(spec, everything))
    change, key = CHANGES[name]
    change(_parts(changed))
    assert key in [mismatch.key for mismatch in lint(changed)]


def test_a_pod_has_one_budget(spec, everything):
    made = manifests(spec, everything)
    budget = next(manifest for manifest in made if manifest["kind"] == "PodDisruptionBudget")
    assert "PodDisruptionBudget" in [mismatch.key for mismatch in lint([*made, budget])]
