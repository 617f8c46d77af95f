"""cluster/kustomize: the objects that a team applies once, before its first run.

access.yaml is made of cluster/kubernetes/access.py. After a change that is meant:

    WRITE_EXAMPLES=1 python -m pytest tests/unit/cluster/kubernetes/test_kustomize.py
"""

from __future__ import annotations

import os
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from cluster.kubernetes.access import roles
from cluster.kubernetes.manifests import manifests
from cluster.kubernetes.yaml import to_yaml
from cluster.spec import RunSpec
from launcher.config.profiles import load_profile

FOLDER = Path(__file__).parents[4] / "cluster" / "kustomize"
PROFILE = FOLDER / "profile.yaml"
ACCESS = FOLDER / "base" / "access.yaml"
GROUP = "training"
HEADING = ["What each verb of the launcher may do, for the users of the group `training` of the cluster's login."]
VARIANTS = ("base", "single-node", "monitoring")
KUBERNETES = "1.34"


def kustomization(folder):
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def objects(folder):
    """The objects of a kustomization, before its patches."""
    for entry in kustomization(folder)["resources"]:
        path = folder / entry
        if path.is_dir():
            yield from objects(path.resolve())
        else:
            yield from yaml.safe_load_all(path.read_text())


def of_kind(kind, variant="base"):
    return {found["metadata"]["name"]: found for found in objects(FOLDER / variant) if found["kind"] == kind}


def pods():
    for found in objects(FOLDER / "monitoring"):
        if found["kind"] in ("Job", "Deployment"):
            yield found["metadata"]["name"], found["spec"]["template"]["spec"]


def bindings(profile, group):
    """One RoleBinding per Role, which gives it to the users of `group`."""
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": role["metadata"]["name"], "namespace": profile.namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
        }
        for role in roles(profile)
    ]


def test_the_roles_are_those_of_the_verbs():
    profile = load_profile(str(PROFILE), "kubernetes")
    text = to_yaml([*roles(profile), *bindings(profile, GROUP)], heading=HEADING)
    if os.environ.get("WRITE_EXAMPLES") == "1":
        ACCESS.write_text(text)
    assert ACCESS.read_text() == text


def test_every_role_is_bound():
    bound = {binding["roleRef"]["name"] for binding in of_kind("RoleBinding").values()}
    assert bound == set(of_kind("Role"))
    assert len(bound) >= 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_knows_every_field(variant):
    found = list(objects(FOLDER / variant))
    assert len(found) > 15
    for manifest in found:
        if manifest["kind"] != "PodMonitor":  # of the Prometheus operator
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_file_is_part_of_its_set(variant):
    files = {path.name for path in (FOLDER / variant).glob("*.yaml")} - {"kustomization.yaml"}
    assert files == {entry for entry in kustomization(FOLDER / variant)["resources"] if entry.endswith(".yaml")}


def test_pods_meet_the_restricted_level():
    found = dict(pods())
    assert set(found) == {"fill-data", "tensorboard"}
    for pod in found.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        [container] = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


def test_pods_mount_claims_of_the_set_and_can_write_where_their_programs_do():
    claims = set(of_kind("PersistentVolumeClaim"))
    for _, pod in pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        [container] = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == set(volumes)
        used = {one["persistentVolumeClaim"]["claimName"] for one in volumes.values() if "persistentVolumeClaim" in one}
        assert used <= claims
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        assert "tmp" in volumes


def test_a_run_with_the_profile_uses_the_namespace_volumes_and_image_of_the_set():
    profile = load_profile(str(PROFILE), "kubernetes")
    settings = kustomization(FOLDER / "base")
    assert profile.namespace == settings["namespace"]
    assert {profile.storage.claim, profile.data.claim} == set(of_kind("PersistentVolumeClaim"))
    [image] = settings["images"]
    assert profile.image == f"{image['newName']}:{image['newTag']}"
    assert {container["image"] for _, pod in pods() for container in pod["containers"]} == {image["name"]}


def test_the_monitor_selects_the_pods_of_a_run():
    spec = RunSpec(name="run", config="schema: 1\n", storage="/runs", data_root="/data/digits", walltime_s=600)
    job = manifests(spec, load_profile(str(PROFILE), "kubernetes"))[-1]
    cluster = job["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    roles_of_pods = {template["metadata"]["labels"]["resnet-launcher/role"] for template in templates}
    for kind, name in (("PodMonitor", "resnet-launcher"), ("NetworkPolicy", "prometheus")):
        found = of_kind(kind, "monitoring")[name]["spec"]
        [expression] = (found.get("selector") or found["podSelector"])["matchExpressions"]
        assert expression["key"] == "resnet-launcher/role"
        assert set(expression["values"]) == roles_of_pods


def test_a_cluster_of_one_node_gets_other_claims():
    [patch] = kustomization(FOLDER / "single-node")["patches"]
    for operation in yaml.safe_load(patch["patch"]):
        for claim in of_kind("PersistentVolumeClaim").values():
            target = claim
            for part in operation["path"].strip("/").split("/"):
                target = target[part]  # the path exists
            assert type(target) is type(operation["value"])
