"""cluster/kubernetes/access.py: who may do what."""

from __future__ import annotations

import pytest

from cluster.kubernetes.access import VERBS, roles
from cluster.kubernetes.manifests import manifests, reader_job

PLURALS = {
    "RayJob": "rayjobs",
    "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "ServiceAccount": "serviceaccounts",
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Job": "jobs",
}


def _allows(role, manifest, verb):
    group = manifest["apiVersion"].rpartition("/")[0]
    return any(
        group in rule["apiGroups"] and PLURALS[manifest["kind"]] in rule["resources"] and verb in rule["verbs"]
        for rule in role["rules"]
    )


@pytest.fixture
def role_of(profile):
    return {role["metadata"]["name"].removeprefix("resnet-launcher-"): role for role in roles(profile)}


def test_every_verb_has_a_role_in_the_runs_namespace(role_of, profile):
    assert list(role_of) == ["submit", "status", "logs", "report", "watch", "list", "cancel"] == list(VERBS)
    assert {role["metadata"]["namespace"] for role in role_of.values()} == {profile.namespace}


def test_whoever_submits_may_apply_everything_that_is_rendered(role_of, spec, everything):
    for manifest in manifests(spec, everything):
        for verb in ("get", "create", "patch"):
            assert _allows(role_of["submit"], manifest, verb), (manifest["kind"], verb)


@pytest.mark.parametrize("verb", ["status", "logs", "report", "watch", "cancel"])
def test_whoever_reads_a_run_may_make_a_reader_and_see_its_log(role_of, spec, profile, verb):
    job = reader_job(spec, profile, ["status"])
    assert all(_allows(role_of[verb], job, right) for right in ("create", "get", "watch", "delete"))
    assert any("pods/log" in rule["resources"] for rule in role_of[verb]["rules"])


def test_nobody_reads_secrets_executes_in_pods_or_has_every_right(role_of):
    for role in role_of.values():
        for rule in role["rules"]:
            resources = set(rule["resources"])
            assert not resources & {"secrets", "pods/exec", "pods/attach", "pods/portforward", "*"}
            assert "*" not in rule["verbs"] + rule["apiGroups"]
